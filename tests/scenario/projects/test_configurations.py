"""django-configurations, a schedule, directives of nginx, and no health page: one is found, a broken one fails."""

from __future__ import annotations

import json

from probes import wait_for
from user_projects import Project

# The network of the visitor of the tests is a trusted proxy, which no inspection can know.
PROXY = "10.177.0.0/24"
CLIENT = "203.0.113.9"
SETTINGS = {
    "app_trusted_proxies": [PROXY],
    "app_nginx_locations": "location = /robots.txt {\n    return 200 'Disallow: /letter';\n}\n",
    "app_response_headers": {"X-Notes": "ours"},
    "app_web": {"preload": False},
    "app_request_timeout": 7,
    "app_long_requests": {"/export/": 60},
}
# Longer than app_request_timeout.
SLOW_SECONDS = 12


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


def test_health_page_is_detected_and_a_broken_page_fails_its_release(project: Project) -> None:
    source = project.source("configurations", "no-health-page")
    run = project.site(source, **SETTINGS).succeeded()
    assert project.settings["app_environment"] == {"DJANGO_CONFIGURATION": "Production"}
    assert "Health page found: / " in run.output
    visitor = project.visitor()
    assert visitor.get("/who", headers={"X-Forwarded-For": f"192.0.2.1, {CLIENT}"}).json == {
        "address": CLIENT,
        "forwarded": CLIENT,
    }
    wait_for(lambda: visitor.get("/").json["notes"], 60, "beat sends tasks, and a worker runs them")

    has_nginx_of_the_project(project)
    has_processes_of_its_own(project)

    failed = project.deploy(project.source("configurations", "no-health-page", "broken-page")).failed()
    message = failed.output[failed.output.rindex("fatal: ") :]
    assert "health check: /: status 500 instead of 200." in message
    assert "AttributeError: 'WSGIRequest' object has no attribute 'settings_of_an_earlier_version'" in message
    assert "(notes/views.py, line 5)" in message
    assert "app_health_path in group_vars/ENV/app.yml" in message
    history = json.loads(project.host.check_output(f"{project.app.name}ctl releases --json"))
    assert "(notes/views.py, line 5)" in history[-1]["outcome"]
    before = len(visitor.get("/").json["notes"])
    wait_for(lambda: len(visitor.get("/").json["notes"]) > before, 60, "the first release still runs, and its schedule")
