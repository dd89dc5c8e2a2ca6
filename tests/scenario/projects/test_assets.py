"""A project whose build makes files: npm, translations and django-compressor, with whitenoise and a URL of its own."""

from __future__ import annotations

import re

from probes import Visitor, wait_for
from user_projects import Project

# Asks the application itself, without nginx.
GET = """python3 -c 'import http.client, socket
connection = http.client.HTTPConnection("{app.address}")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect("/srv/{app.name}/current/run/web.sock")
connection.request("GET", "{path}", headers={{"X-Forwarded-Proto": "https"}})
print(connection.getresponse().read())'"""


def assets(visitor: Visitor) -> list[str]:
    """Return the addresses of the page's style sheets. Each file of the page is there, and its text is translated."""
    page = visitor.get("/page")
    assert page.status == 200, page.body
    found = re.findall(r'href="(/assets/notes/[ab]\.[0-9a-f]{12}\.css)"', page.body)
    assert len(found) == 1, page.body
    assert "<style" in page.body, "what is compressed offline"
    assert "<h1>Guten Tag</h1>" in page.body, "what compilemessages has compiled"
    (script,) = re.findall(r'src="(/assets/main\.[0-9a-f]{12}\.js)"', page.body)
    assert "built by node v" in visitor.get(script).body
    for asset in found:
        assert "immutable" in visitor.get(asset).headers["Cache-Control"]
    return found


def test_built_files_and_each_release_with_its_own(project: Project) -> None:
    host, deployments = project.host, project.deployments
    one, two = project.source("static-one"), project.source("static-one", "static-two")
    broken = project.source("static-one", "static-two", "static-broken")
    project.site(one).succeeded()
    visitor, root = project.visitor(), f"/srv/{project.app.name}"
    first = assets(visitor)
    assert visitor.get("/static/notes/a.css").status == 404
    assert "green" in host.check_output(GET.format(app=project.app, path=first[0])), "whitenoise serves it too"

    deployments.deploy(two).succeeded()
    second = assets(visitor)
    assert second != first
    assert visitor.get(first[0]).body == "body { color: green; }\n", "a page of the first release asks for it"

    with deployments.settings(health_check_timeout=3):
        deployments.deploy(broken).failed()
    assert assets(visitor) == second
    assert host.run(f"grep -rlF 'body {{ color: gray' {root}/shared {root}/releases").stdout == ""

    deployments.rollback().succeeded()
    assert assets(visitor) == first
    assert visitor.get(second[0]).status == 200
    host.check_output(f"systemctl restart {project.app.name}")
    wait_for(lambda: visitor.get("/page").status == 200, 60, "the older release serves again")
    assert assets(visitor) == first
