"""Every service is confined, and none can exhaust the host's memory."""

from __future__ import annotations

import pytest
from installation import Installation, run_python
from testinfra.host import Host

# Each of these is refused except writing to its own folder. Without the sandbox, this user could do all of it.
FORBIDDEN = """
import ctypes, mmap, os, socket
def attempt(name, what):
    try:
        what()
        print(name, 'done')
    except (OSError, PermissionError) as error:
        print(name, 'refused')
def machine_code():
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
attempt('code', machine_code)
attempt('write', lambda: open('/srv/APP/shared/beat/of_a_test', 'w'))
attempt('kernel', lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
attempt('own', lambda: open('/srv/APP/shared/media/of_a_test', 'w'))
# Outside of the sandbox every user sees this process.
attempt('other', lambda: os.stat('/proc/1'))
"""


def test_sandbox_refuses_what_it_promises(host: Host, app: Installation, release: str) -> None:
    """In a process of its own in the sandbox of a worker."""
    unit = f"{app.name}-worker-{app.workers[0]['name']}@{release}.service"
    names = (
        *("User", "NoNewPrivileges", "ProtectSystem", "ReadWritePaths", "PrivateDevices", "ProtectProc", "ProcSubset"),
        *("RestrictAddressFamilies", "MemoryDenyWriteExecute", "CapabilityBoundingSet"),
    )
    shown = host.check_output(f"systemctl show {unit} {' '.join(f'-p {name}' for name in names)}")
    options = " ".join(f"-p '{line}'" for line in shown.splitlines())
    script = FORBIDDEN.replace("APP", app.name)
    command = f"systemd-run --quiet --wait --pipe {options} /usr/bin/python3 - <<'SCRIPT'\n{script}\nSCRIPT"
    answers = dict(line.split() for line in host.check_output(command).splitlines())
    host.run(f"rm -f /srv/{app.name}/shared/media/of_a_test /srv/{app.name}/shared/beat/of_a_test")
    expected = {"code": "refused", "write": "refused", "kernel": "refused", "own": "done", "other": "refused"}
    assert answers == expected


def test_memory_limits(host: Host, app: Installation, release: str) -> None:
    """The limits are set; a kernel with version 1 of cgroups does not enforce them."""
    units = [*app.units(release), f"{app.name}-beat.service", f"{app.name}-flower.service"]
    names = "MemoryMax,MemorySwapMax,MemoryHigh,OOMScoreAdjust"
    shown = host.check_output(f"systemctl show --property={names} {' '.join(units)}")
    for unit, block in zip(units, shown.split("\n\n"), strict=True):
        limits = dict(line.split("=") for line in block.splitlines())
        most = int(limits["MemoryMax"])
        assert 150 * 2**20 < most <= 512 * 2**20, unit
        # Swapping out a part of the limit takes seconds; MemoryHigh would throttle for minutes.
        assert int(limits["MemorySwapMax"]) <= most // 8, unit
        assert limits["MemoryHigh"] == "infinity", unit
        assert limits["OOMScoreAdjust"] == "500", unit


def test_oom_killer_spares_the_data(host: Host, app: Installation) -> None:
    """It kills the process with the highest score first."""
    script = """
import subprocess
scores = {}
for line in subprocess.run(['ps', '-e', '-o', 'pid=,unit='], stdout=subprocess.PIPE, text=True).stdout.splitlines():
    pid, unit = line.split()
    try:
        scores.setdefault(unit, []).append(int(open('/proc/%s/oom_score_adj' % pid).read()))
    except FileNotFoundError:
        pass
for unit, found in scores.items():
    print(unit, min(found), max(found))
"""
    scores = {unit: (int(low), int(high)) for unit, low, high in map(str.split, run_python(host, script).splitlines())}
    application = [unit for unit in scores if unit.startswith((f"{app.name}-web@", f"{app.name}-worker-"))]
    assert application
    assert {unit: scores[unit] for unit in application} == dict.fromkeys(application, (500, 500))
    (server,) = [unit for unit in scores if unit.startswith("postgresql@")]
    data = ["redis-server@broker.service", "redis-server@cache.service", server]
    settings = host.check_output(f"systemctl show -p OOMScoreAdjust --value {' '.join(data)}").split()
    for unit, setting in zip(data, settings, strict=True):
        # A container may not let a score become less than 0.
        assert scores[unit][0] <= 0, unit
        assert int(setting) <= -500, unit


# --- Django's own checks ---------------------------------------------------------------------


@pytest.mark.os("debian13")
def test_application_passes_djangos_deployment_checks(host: Host, app: Installation) -> None:
    result = host.run(f"{app.name}ctl manage check --deploy --fail-level WARNING")
    assert result.succeeded, result.stdout + result.stderr
    assert "no issues" in result.stdout
