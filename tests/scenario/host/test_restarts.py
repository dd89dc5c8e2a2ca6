"""Every service comes back, whatever ended it; a service that was stopped on purpose stays down."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from installation import Installation, run_python
from probes import Visitor, wait_for
from testinfra.host import Host

# Patterns of units; NAME is the application's.
SERVICES = (
    "postgresql@*",
    "redis-server@broker.service",
    "redis-server@cache.service",
    "nginx.service",
    "fail2ban.service",
    "ssh.service",
    "NAME-web@*",
    "NAME-worker-*",
    "NAME-beat.service",
    "NAME-flower.service",
)
# Twelve services start at once, maybe on a busy machine.
SECONDS = 60
# Longer than the 2 s until a restart.
PAUSE = 4

# In one session, since sshd is among them. Prints how long each unit was away, or null for one that did not come back.
KILL = """
import json, os, signal, subprocess, time
def show(unit):
    output = subprocess.run(['systemctl', 'show', '-p', 'MainPID,ActiveState', unit], stdout=subprocess.PIPE, text=True)
    found = dict(line.split('=') for line in output.stdout.splitlines())
    return int(found['MainPID']), found['ActiveState']
command = ['systemctl', 'list-units', '--plain', '--no-legend', '--type=service', '--state=active', *PATTERNS]
listed = subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout
killed = {line.split()[0]: show(line.split()[0])[0] for line in listed.splitlines()}
for pid in killed.values():
    os.kill(pid, signal.SIGKILL)
began, away = time.monotonic(), dict.fromkeys(killed)
while None in away.values() and time.monotonic() < began + SECONDS:
    time.sleep(0.2)
    for unit in [unit for unit, seconds in away.items() if seconds is None]:
        pid, state = show(unit)
        if pid not in (0, killed[unit]) and state == 'active':
            away[unit] = round(time.monotonic() - began, 1)
print(json.dumps(away))
"""


def patterns(app: Installation) -> list[str]:
    return [pattern.replace("NAME", app.name) for pattern in SERVICES]


@pytest.fixture(scope="module")
def away(host: Host, app: Installation) -> Iterator[dict[str, float | None]]:
    """Kill the main process of every service at once; return the seconds until each was back, or None."""
    script = KILL.replace("PATTERNS", repr(patterns(app))).replace("SECONDS", str(SECONDS))
    yield json.loads(run_python(host, script))
    # Sets NRestarts to 0.
    host.check_output("systemctl reset-failed " + " ".join(f"'{pattern}'" for pattern in patterns(app)))


@pytest.mark.parametrize("service", SERVICES)
def test_a_killed_service_is_back(app: Installation, away: dict[str, float | None], service: str) -> None:
    prefix = service.replace("NAME", app.name).rstrip("*")
    found = {unit: seconds for unit, seconds in away.items() if unit.startswith(prefix)}
    assert found, f"{service} did not run"
    assert None not in found.values(), f"not back after {SECONDS} s: {found}"


@pytest.mark.usefixtures("away")
def test_site_works_after_every_service_was_killed(visitor: Visitor) -> None:
    wait_for(lambda: visitor.get("/readyz/").status == 200, SECONDS, "the site is ready")
    visitor.finished_order(visitor.order(), SECONDS)


def test_postgresql_stops_when_told_to(host: Host, visitor: Visitor) -> None:
    """Without an error, and for good."""
    [unit] = host.check_output("systemctl list-units --plain --no-legend 'postgresql@*' | cut -d' ' -f1").split()
    began = host.check_output("date '+%F %T'")
    try:
        host.check_output(f"systemctl stop {unit}; sleep {PAUSE}")
        assert host.check_output(f"systemctl show -p ActiveState --value {unit}") == "inactive"
        journal = host.check_output(f"journalctl --unit {unit} --since '{began}' --output cat")
        assert "Deactivated successfully" in journal
        assert "pid file is invalid" not in journal
    finally:
        host.check_output(f"systemctl start {unit}")
    wait_for(lambda: visitor.get("/readyz/").status == 200, SECONDS, "the site is ready")


# On both, a reboot does so, too: see boot/test_after_reboot.py.
@pytest.mark.os("debian12")
def test_application_stops_workers_before_the_pages(
    host: Host, app: Installation, release: str, visitor: Visitor
) -> None:
    """As at a shutdown: the pages stay until the last task has ended. Its process is frozen until they were seen."""
    heavy = f"{app.name}-worker-{app.queues['heavy']}@{release}.service"
    children = f"--parent $(systemctl show --property=MainPID --value {heavy})"
    report = visitor.report()
    wait_for(
        lambda: visitor.get(report).json["state"], SECONDS, "a worker has the report", lambda seen: seen != "PENDING"
    )
    try:
        host.check_output(f"pkill -STOP {children} && systemctl stop --no-block {app.name}")
        stopping = f"systemctl is-active {heavy} {app.name}-web@{release}"
        wait_for(
            lambda: host.run(stopping).stdout.split(),
            SECONDS,
            "the worker stops, and the pages stay",
            lambda seen: seen == ["deactivating", "active"],
        )
        assert visitor.get("/healthz/").status == 200
        host.check_output(f"pkill -CONT {children}")
        wait_for(lambda: host.run(stopping).stdout.split(), SECONDS, "all stops", lambda seen: seen == ["inactive"] * 2)
    finally:
        host.check_output(f"pkill -CONT {children}; systemctl stop {app.name}; systemctl start {app.name}")
    wait_for(lambda: visitor.get("/readyz/").status == 200, SECONDS, "the site is ready")
    assert visitor.get(report).json["state"] == "SUCCESS"


@pytest.mark.os("debian12")
def test_a_frozen_worker_is_restarted(host: Host, app: Installation, release: str, visitor: Visitor) -> None:
    """Its tasks run again. The limit of the unit, a minute, is a few seconds here."""
    heavy = f"{app.name}-worker-{app.queues['heavy']}"
    folder, unit = f"/run/systemd/system/{heavy}@.service.d", f"{heavy}@{release}.service"
    watchdog = f"systemctl show --property=WatchdogUSec --property=WatchdogSignal --value {unit}"
    assert host.check_output(watchdog).split() == ["1min", "9"]
    main_process = f"systemctl show --property=MainPID --value {unit}"
    try:
        limit = rf"mkdir -p {folder}; printf '[Service]\nWatchdogSec=10\n' >{folder}/test.conf"
        host.check_output(f"{limit}; systemctl daemon-reload; systemctl restart {unit}")
        frozen = host.check_output(main_process)
        report = visitor.report()
        wait_for(lambda: visitor.get(report).json["state"], SECONDS, "it begins", lambda seen: seen != "PENDING")
        host.check_output(f"kill -STOP {frozen}")
        wait_for(
            lambda: host.check_output(main_process), SECONDS, "it is restarted", lambda pid: pid not in ("0", frozen)
        )
        visitor.wait_for_json(report, 2 * SECONDS, "state", "SUCCESS")
    finally:
        host.check_output(f"rm -r {folder}; systemctl daemon-reload; systemctl restart {unit}")
