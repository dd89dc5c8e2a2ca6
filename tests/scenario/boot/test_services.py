"""Every service runs, starts at boot, and has its own user. The scenario `security` tests how far it is confined."""

from __future__ import annotations

import pytest
from installation import Installation
from probes import wait_for
from testinfra.host import Host


def own_units(app: Installation, release: str) -> list[str]:
    """Return the application's long-running units."""
    return [*app.units(release), f"{app.name}-beat.service", f"{app.name}-flower.service"]


@pytest.fixture(scope="module")
def states(host: Host, app: Installation, release: str) -> dict[str, dict[str, str]]:
    """Return the state of every unit that an installation needs."""
    server = host.check_output("systemctl list-units --plain --no-legend 'postgresql@*' | cut -d' ' -f1")
    services = [server, "redis-server@broker.service", "redis-server@cache.service", "nginx.service", "ssh.service"]
    units = [f"{app.name}.service", *own_units(app, release), *services]
    output = host.check_output(f"systemctl show -p Id,ActiveState,SubState,NRestarts,UnitFileState {' '.join(units)}")
    blocks = [dict(line.split("=", 1) for line in block.splitlines()) for block in output.split("\n\n")]
    return dict(zip(units, blocks, strict=True))


def test_every_service_is_active(states: dict[str, dict[str, str]]) -> None:
    assert {unit: state["ActiveState"] for unit, state in states.items()} == dict.fromkeys(states, "active")


def test_no_service_was_restarted(states: dict[str, dict[str, str]]) -> None:
    restarts = {unit: state["NRestarts"] for unit, state in states.items() if "NRestarts" in state}
    assert restarts == dict.fromkeys(restarts, "0")


def test_every_service_starts_at_boot(app: Installation, states: dict[str, dict[str, str]]) -> None:
    """APP.service starts the processes of the current release: these are not enabled themselves."""
    started_by_app = ("-web@", "-worker-", "-beat.")
    for unit, state in states.items():
        if not unit.startswith(tuple(app.name + kind for kind in started_by_app)):
            assert state["UnitFileState"].startswith("enabled"), f"{unit} is {state['UnitFileState']}"


def test_debians_own_redis_is_disabled(host: Host) -> None:
    assert not host.service("redis-server").is_running
    assert host.run("systemctl is-enabled redis-server").stdout.strip() != "enabled"


def test_no_unit_has_failed(host: Host) -> None:
    failed = "systemctl --failed --no-legend --plain"
    # A copy of the log that met PostgreSQL stopped by an earlier test is made again within a minute.
    wait_for(lambda: host.check_output(failed), 90, "no unit has failed", lambda units: units == "", pause=2)


def test_only_the_current_release_runs(host: Host, app: Installation, release: str) -> None:
    output = host.check_output(f"systemctl list-units --plain --no-legend '{app.name}-*@*'")
    running = {line.split()[0] for line in output.splitlines()}
    assert running == set(app.units(release))


def test_processes_run_as_the_applications_user(host: Host, app: Installation, release: str) -> None:
    output = host.check_output("ps -e -o euser:40=,egroup:40=,unit:120=")
    owners = {unit: set() for unit in own_units(app, release)}
    for line in output.splitlines():
        user, group, unit = line.split()
        owners.get(unit, set()).add((user, group))
    flower = owners.pop(f"{app.name}-flower.service")
    assert all(users == {(app.name, app.name)} for users in owners.values()), owners
    assert len(flower) == 1
    assert not flower & {("root", "root"), (app.name, app.name)}


def test_beat_runs_exactly_once(host: Host, app: Installation) -> None:
    assert len(host.check_output("pgrep -f 'celery_runner.py beat '").split()) == 1
    lock = f"open('/srv/{app.name}/shared/beat/lock', 'r+')"
    code = f"import fcntl; fcntl.lockf({lock}, fcntl.LOCK_EX | fcntl.LOCK_NB)"
    second = host.run(f'runuser -u {app.name} -- python3 -c "{code}"')
    assert "BlockingIOError" in second.stderr, "a second beat could start: the lock is free"
