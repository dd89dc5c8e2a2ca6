"""An ASGI project: WebSockets, a channel layer, processes of its own, commands on timers, and static files on S3.

Nothing of these files is on the host, and each release has its own manifest.
"""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from itertools import pairwise

import pytest
from moto.server import ThreadedMotoServer
from probes import Visitor, wait_for
from user_projects import Project

# This machine, as test hosts reach it.
ADDRESS = "10.177.0.1"
BUCKET = "notes"
# What no inspection can know: which commands run beside the site, and how long an open socket may hold the old release.
SETTINGS = {
    "app_web": {"worker": "asgi", "processes": 2, "stop_timeout": 120},
    "app_processes": [
        {"name": "bot", "command": "python manage.py bot 'the bot'", "stop_timeout": 5},
        {"name": "consumer", "command": "python manage.py bot consumer", "stop_timeout": 5, "single": True},
    ],
    "app_database_limits": {"web": {"statement_timeout": "7s"}, "cron": {"statement_timeout": "9s"}},
    "app_cron": [
        {"name": "tick", "command": "python manage.py tick", "schedule": "*:*:0/10"},
        # It is due again while it runs.
        {"name": "slow", "command": "sh -c 'date +started-%s; sleep 12'", "schedule": "*:*:0/10"},
    ],
}
# Seconds between the starts of runs of 12 seconds: 12 if one begins right after another, else 20, less a late start.
APART = 14


@pytest.fixture
def endpoint() -> Iterator[str]:
    """The address of an S3 server with an empty bucket."""
    server = ThreadedMotoServer(ip_address=ADDRESS, port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    urllib.request.urlopen(urllib.request.Request(f"{address}/{BUCKET}", method="PUT"), timeout=30).close()
    yield address
    server.stop()


def color(visitor: Visitor, endpoint: str) -> str:
    """Return the color in the style sheet that the page names, from S3."""
    page = visitor.get("/page")
    assert page.status == 200, page.body
    (address,) = re.findall(rf'href="({endpoint}/{BUCKET}/static/notes/a\.[0-9a-f]{{12}}\.css)"', page.body)
    with urllib.request.urlopen(address, timeout=30) as answer:
        text = answer.read().decode()
    (found,) = re.findall(r"color: (\w+);", text)
    return found


def restart(project: Project) -> None:
    project.host.check_output(f"systemctl restart {project.app.name}")
    wait_for(lambda: project.visitor().get("/page").status == 200, 60, "the site serves again")


def test_sockets_processes_timers_and_files_on_s3_over_deployments(project: Project, endpoint: str) -> None:
    environment = {
        "AWS_STORAGE_BUCKET_NAME": BUCKET,
        "AWS_S3_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
    }
    site = project.site(project.source("asgi", "s3"), app_environment=environment, **SETTINGS).succeeded()
    assert "Static files collected to the project's storage" in site.output
    assert "Settings from the environment: STORAGES" in site.output
    visitor, old = project.visitor(), project.deployments.current
    assert visitor.get("/").json["version"] == "one"
    assert color(visitor, endpoint) == "green"
    held = project.websocket()
    assert held.ask("a") == f"a {old}"
    project.host.check_output(f"{project.app.name}ctl manage tell 'to all'")
    assert held.receive() == "to all", "another process reaches the sockets through Redis"
    assert visitor.get("/limit").json == {"limit": "7s"}
    expected = ["tick has 9s", *(f"{name} {old}" for name in ("the bot", "consumer", "tick"))]
    wait_for(
        lambda: visitor.get("/").json["notes"], 60, "processes and timer run", lambda notes: set(expected) <= set(notes)
    )

    run = project.deployments.begin(project.source("asgi", "s3", "second"))
    new = wait_for(lambda: project.deployments.current, 300, "the switch", lambda release: release != old)
    assert held.ask("b") == f"b {old}", "the old release serves its sockets"
    fresh = project.websocket()
    assert fresh.ask("c") == f"c {new}"
    project.host.check_output(f"{project.app.name}ctl manage tell again")
    assert [held.receive(), fresh.receive()] == ["again", "again"], "of both releases"
    expected = [f"{name} {new}" for name in ("the bot", "consumer", "tick")]
    wait_for(
        lambda: visitor.get("/").json["notes"],
        60,
        "those of the new release",
        lambda notes: set(expected) <= set(notes),
    )
    held.close()
    run.wait().succeeded()
    assert color(visitor, endpoint) == "blue"
    status = project.deployments.status()
    assert {one["release"] for one in status["running"]} == {new}
    assert {one["process"] for one in status["running"]} == {"web", "worker-main", "process-bot", "process-consumer"}
    assert [(one["name"], one["timer"], one["result"]) for one in status["cron"]] == [
        ("cron-tick", "active", "success"),
        ("cron-slow", "active", "success"),
    ]
    assert not status["problems"]
    assert fresh.ask("d") == f"d {new}"
    logs = f"{project.deployments.app.name}ctl logs cron-slow"
    starts = wait_for(
        lambda: [int(second) for second in re.findall(r"started-(\d+)", project.host.check_output(logs))],
        60,
        "it has run twice",
        lambda found: len(found) >= 2,
    )
    distances = [later - earlier for earlier, later in pairwise(starts)]
    assert min(distances) >= APART, f"what was due during a run is skipped: {starts}"
    # Else the rollback waits for it.
    fresh.close()

    # It has the style sheet of the first release, another one that is new, and a health page that answers 500.
    with project.deployments.settings(health_check_timeout=3):
        broken = project.deployments.deploy(project.source("asgi", "s3", "static-broken"))
    broken.failed().says("failed at step health_check")
    # Processes read the manifest when they start.
    restart(project)
    assert color(visitor, endpoint) == "blue"

    project.deployments.rollback().succeeded()
    assert color(visitor, endpoint) == "green"
    restart(project)
    assert color(visitor, endpoint) == "green"
