"""What may run only once in an installation (app_cron, single processes) is rendered for one of its hosts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from project import GROUPS, ROOT, run_playbook

SETTINGS: dict[str, Any] = {
    "ansible_connection": "local",
    "app_name": "shop",
    "app_cron": [{"name": "night", "command": "python manage.py night", "schedule": "daily"}],
    "app_processes": [
        {"name": "bot", "command": "python manage.py bot -Q none"},
        {"name": "consumer", "command": "python manage.py consume", "single": True},
        # It runs on the host of what is single, whatever its group.
        {"name": "feed", "command": "celery -A config worker -Q feed,feed.slow -c 1", "single": True, "group": "web"},
    ],
    "app_external_queues": ["billing"],
}
MESSAGE = """{{ {
  'units': services_processes | map(attribute='name'), 'timers': services_cron | map(attribute='name'),
  'program': [hostctl_settings.processes | map(attribute='name'), hostctl_settings.cron],
  'queues': hostctl_settings.external_queues, 'without': hostctl_settings.process_without_queues
} }}"""
FIRST = {"web": ["first"], "worker": ["first", "second"]}


def render(folder: Path, hosts: dict[str, Any], children: dict[str, Any]) -> dict[str, Any]:
    """Return what the wiring gives each host of an inventory, by its name."""
    inventory = {"all": {"hosts": hosts, "children": children}}
    (folder / "hosts.yml").write_text(json.dumps(inventory))
    (folder / "group_vars").mkdir()
    (folder / "group_vars/all").symlink_to(ROOT / "group_vars/all")
    task = {"name": "Print", "ansible.builtin.debug": {"msg": MESSAGE}}
    (folder / "play.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": [task]}]))
    found = run_playbook(folder / "play.yml", folder / "hosts.yml", ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"))
    assert found.status == 0, found.output
    return {result["host"]: result["msg"] for result in found.results()}


@pytest.mark.parametrize(
    ("groups", "single"),
    [
        (FIRST | {"scheduler": ["first"]}, "first"),
        (FIRST | {"scheduler": ["second"]}, "second"),
        # Only one may have beat; with several in the group, the first is the single one.
        (FIRST | {"scheduler": ["second", "first"]}, "second"),
        (FIRST, "first"),
    ],
    ids=["first", "second", "both", "none"],
)
def test_one_host_runs_what_may_run_only_once(tmp_path: Path, groups: dict[str, list[str]], single: str) -> None:
    hosts = {"first": SETTINGS, "second": SETTINGS}
    children = {group: {"hosts": {host: {} for host in groups.get(group, [])}} for group in GROUPS}
    rendered = render(tmp_path, hosts, children)
    for host in hosts:
        names, timers = (["bot", "consumer", "feed"], ["night"]) if host == single else (["bot"], [])
        # The queues of a worker that runs elsewhere are left out by the other hosts' workers, too.
        queues = ["billing", "feed", "feed.slow"]
        wanted = {"units": names, "timers": timers, "program": [names, timers], "queues": queues, "without": False}
        assert rendered[host] == wanted, host


# Commands of app_processes, and whether each is a Celery worker that names no queues.
COMMANDS = {
    "celery -A config worker -c 1": True,
    "exec celery --app config worker": True,
    "sh -c 'celery -A config worker'": True,
    "celery -A config worker -Q mail": False,
    "celery -A config worker --queues=mail": False,
    # Which queues are left, only Celery knows.
    "celery -A config worker -X mail": False,
    "celery -A worker flower": False,
    "celery --app worker events": False,
    "celery -A config.worker flower": False,
    "python manage.py worker": False,
    "python manage.py celery_worker": False,
}


def test_celery_worker_without_queues_is_told_to_the_host(tmp_path: Path) -> None:
    hosts = {
        f"host{number}": SETTINGS
        | {"app_processes": [{"name": "a", "command": command}], "app_hosts": [f"host{number}"]}
        for number, command in enumerate(COMMANDS)
    }
    rendered = render(tmp_path, hosts, {group: {"hosts": {host: {} for host in hosts}} for group in GROUPS})
    found = {command: rendered[f"host{number}"]["without"] for number, command in enumerate(COMMANDS)}
    assert found == COMMANDS
