"""An ASGI project with WebSockets and a channel layer, processes of its own and a command on a timer."""

from __future__ import annotations

import re
from itertools import pairwise

from probes import wait_for
from user_projects import Project

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


def test_sockets_processes_and_timers_over_a_deployment(project: Project) -> None:
    project.site(project.source("asgi"), **SETTINGS).succeeded()
    visitor, old = project.visitor(), project.deployments.current
    assert visitor.get("/").json["version"] == "one"
    held = project.websocket()
    assert held.ask("a") == f"a {old}"
    project.host.check_output(f"{project.app.name}ctl manage tell 'to all'")
    assert held.receive() == "to all", "another process reaches the sockets through Redis"
    assert visitor.get("/limit").json == {"limit": "7s"}
    expected = ["tick has 9s", *(f"{name} {old}" for name in ("the bot", "consumer", "tick"))]
    wait_for(
        lambda: visitor.get("/").json["notes"], 60, "processes and timer run", lambda notes: set(expected) <= set(notes)
    )

    run = project.deployments.begin(project.source("asgi", "second"))
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
