"""django-configurations, a schedule, directives of nginx, and no health page: one is found, a broken one fails.

The project is not complete in git: its build adds private packages, settings and a private key.
"""

from __future__ import annotations

import base64
import io
import json
import shlex
import subprocess
import tarfile
from pathlib import Path

from deployments import Run
from package_index import package_index
from probes import wait_for
from user_projects import Project

# This machine, as test hosts reach it.
ADDRESS = "10.177.0.1"
# With what a shell and systemd could change; PEM files end with a line end.
KEY = "-----BEGIN KEY-----\nquotes \" and ' $HOME `id` \\n 100% #\n\n\ttab\n-----END KEY-----\n"
TOKEN = "a-token-for-builds"
REPOSITORY = "/srv/git/private_mail.git"
# The network of the visitor of the tests is a trusted proxy, which no inspection can know.
PROXY = "10.177.0.0/24"
CLIENT = "203.0.113.9"
SETTINGS = {
    # Build commands, secrets and files that no inspection can know.
    "app_build_commands": [
        'mkdir assets && printf %s "$BUILD_TOKEN" | sha256sum > assets/main.js',
        "python manage.py findstatic main.js > assets/found.txt",
    ],
    "app_build_environment": {"BUILD_TOKEN": TOKEN, "INDEX_TOKEN": TOKEN},
    "app_environment": {"PRIVATE_KEY": KEY},
    "app_files": {"config/local_settings.py": {"content": 'GREETING = "from app_files"\n'}},
    "app_database_extensions": ["citext"],
    "app_trusted_proxies": [PROXY],
    "app_nginx_locations": "location = /robots.txt {\n    return 200 'Disallow: /letter';\n}\n",
    "app_response_headers": {"X-Notes": "ours"},
    "app_web": {"preload": False},
    "app_request_timeout": 7,
    "app_long_requests": {"/export/": 60},
}
# Longer than app_request_timeout.
SLOW_SECONDS = 12
PYPROJECT = """
[build-system]
requires = ["flit_core >=3.2,<4"]
build-backend = "flit_core.buildapi"

[project]
name = "private_mail"
version = "1.0"
description = "A package of the project's company."
"""


def run(command: str, folder: Path) -> None:
    subprocess.run(shlex.split(command), cwd=folder, check=True, stdout=subprocess.DEVNULL)


def serve_repository(project: Project, folder: Path) -> Path:
    """Have a git user of the host serve a repository with a package by SSH; return the key that may read it."""
    source = folder / "private_mail"
    source.mkdir()
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "private_mail.py").write_text('GREETING = "from git"\n')
    for command in (
        "git init --quiet",
        "git add --all",
        "git -c user.name=a -c user.email=a@b commit --quiet -m package",
        f"git clone --quiet --bare . {folder}/private_mail.git",
        f"ssh-keygen -q -t ed25519 -N '' -C deploy -f {folder}/deploy_key",
    ):
        run(command, source)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        archive.add(folder / "private_mail.git", "private_mail.git")
    # Git itself comes with the deployment.
    project.host.check_output(
        "id git || useradd --create-home --shell /bin/sh git; mkdir -p /srv/git ~git/.ssh && "
        f"echo {base64.b64encode(stream.getvalue()).decode()} | base64 -d | tar -xz -C /srv/git && "
        f"echo {shlex.quote((folder / 'deploy_key.pub').read_text().strip())} > ~git/.ssh/authorized_keys && "
        "chown -R git: /srv/git ~git && chmod 700 ~git/.ssh"
    )
    return folder / "deploy_key"


def has_nginx_of_the_project(project: Project) -> None:
    visitor, folder = project.visitor(), f"/srv/{project.app.name}/shared/private"
    project.host.check_output(f"echo secret > {folder}/letter.txt")
    assert visitor.get("/letter").body == "secret\n"
    assert visitor.get("/_private/letter.txt").status == 404
    assert visitor.get("/robots.txt").body == "Disallow: /letter"
    assert visitor.get("/").headers["X-Notes"] == "ours"
    # nginx refuses it, and serves the site as before.
    wrong = project.settings | {"app_nginx_locations": "locatoin /robots.txt {}"}
    run = project.deployments.playbook("playbooks/provision.yml", tags="nginx", **wrong).wait().failed()
    assert 'unknown directive "locatoin"' in run.output
    project.host.check_output("nginx -t && systemctl reload nginx")
    assert project.visitor().get("/robots.txt").body == "Disallow: /letter"


def has_processes_of_its_own(project: Project) -> None:
    """Each process has loaded the application itself, and a request may take as long as its path says."""
    visitor = project.visitor()
    visitor.timeout = 5 * SLOW_SECONDS
    for found in (visitor.get("/loaded").json for _ in range(8)):
        assert found["loaded_by"] == found["process"]
    assert visitor.get(f"/export/slow?seconds={SLOW_SECONDS}").body == "late"
    assert visitor.get(f"/slow?seconds={SLOW_SECONDS}").status == 504
    log = f"{project.app.name}ctl logs web"
    wait_for(lambda: "GET /slow" in project.host.check_output(log), 60, "the log names the request that did not return")


def is_completed_by_its_build(project: Project, site: Run, key: Path) -> None:
    listing = " ".join(project.listing.split())
    assert "PRIVATE_KEY is read without a default" in listing
    assert "Set app_build_ssh_key" in listing
    visitor = project.visitor()
    greetings = ["from app_files", "from git", "from the index"]
    assert visitor.get("/built").json == {"greetings": greetings, "key": KEY}
    assert visitor.get("/static/main.js").status == 200
    assert "assets/main.js" in visitor.get("/static/found.txt").body, "what a command of manage.py has written"
    assert set(visitor.get("/find?text=TICK").json["found"]) == {"tick"}, "the column's type is citext"
    assert TOKEN not in site.output
    name = project.app.name
    # What only builds may see is not left where the application could read it.
    kept = project.host.run(f"grep -rl {TOKEN} /etc/{name} /srv/{name} /var/log /var/cache/{name} /run").stdout.split()
    assert kept == [f"/etc/{name}/next/build.env"]
    secret = key.read_text().splitlines()[1]
    kept = project.host.run(f"grep -rlF {secret} /etc/{name} /srv/{name} /var/cache/{name} /run").stdout.split()
    assert kept == [f"/etc/{name}/next/build_ssh_key"]


def test_health_page_is_detected_and_a_broken_page_fails_its_release(project: Project) -> None:
    layers = ("configurations", "no-health-page", "builds")
    key = serve_repository(project, project.folder)
    with package_index(ADDRESS, "private_units", 'GREETING = "from the index"\n', f"company:{TOKEN}") as port:

        def require(folder: Path) -> None:
            requirements = folder / "requirements.txt"
            lines = (
                f"--extra-index-url http://company:${{INDEX_TOKEN}}@{ADDRESS}:{port}/simple",
                f"private_mail @ git+ssh://git@127.0.0.1{REPOSITORY}",
                "private_units==1.0",
            )
            requirements.write_text(requirements.read_text() + "\n".join(lines) + "\n")

        source = project.source(*layers, prepare=require)
        run = project.site(source, app_build_ssh_key=str(key), **SETTINGS).succeeded()
        assert project.settings["app_environment"] == {"DJANGO_CONFIGURATION": "Production", "PRIVATE_KEY": KEY}
        assert "Health page found: / " in run.output
        visitor = project.visitor()
        assert visitor.get("/who", headers={"X-Forwarded-For": f"192.0.2.1, {CLIENT}"}).json == {
            "address": CLIENT,
            "forwarded": CLIENT,
        }
        wait_for(lambda: visitor.get("/").json["notes"], 60, "beat sends tasks, and a worker runs them")

        is_completed_by_its_build(project, run, key)
        has_nginx_of_the_project(project)
        has_processes_of_its_own(project)

        failed = project.deploy(project.source(*layers, "broken-page", prepare=require)).failed()
    message = failed.output[failed.output.rindex("fatal: ") :]
    assert "health check: /: status 500 instead of 200." in message
    assert "AttributeError: 'WSGIRequest' object has no attribute 'settings_of_an_earlier_version'" in message
    assert "(notes/views.py, line 5)" in message
    assert "app_health_path in group_vars/ENV/app.yml" in message
    history = json.loads(project.host.check_output(f"{project.app.name}ctl releases --json"))
    assert "(notes/views.py, line 5)" in history[-1]["outcome"]
    before = len(visitor.get("/").json["notes"])
    wait_for(lambda: len(visitor.get("/").json["notes"]) > before, 60, "the first release still runs, and its schedule")
