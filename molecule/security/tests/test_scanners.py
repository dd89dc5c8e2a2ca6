"""What scanners that others wrote say of the host; their figures are printed, and are those of README.md."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
from installation import Installation
from probes import wait_for
from testinfra.host import Host

LYNIS_INDEX = 80
# Left out: kernel settings and USB, which belong to the machine below a container; the mount of /proc, since services
# have their own (ProtectProc); and the files of Debian's own Redis, which is off (ours have users with hashes).
LYNIS_PROFILE = "".join(
    f"skip-test={test}\n" for test in ("KRNL-6000", "USB-3000", "FILE-6344", "DBS-1884", "DBS-1886")
)

# What a test host cannot have: a certificate that somebody else signed, and records in the DNS.
TRUST = {
    *(
        "cert_chain_of_trust",
        "cert_trust",
        "cert_revocation",
        "cert_ocspRevoked",
        "DNS_CAArecord",
        "cert_crlDistributionPoints",
    ),
    *("overall_grade", "grade_cap_reason_1", "grade_cap_reason_2", "engine_problem", "scanProblem"),
}
# HSTS starts small on purpose, so that a mistake can be waited out.
EXPECTED = {"HSTS_time"}
BAD = {"MEDIUM", "HIGH", "CRITICAL"}


@pytest.fixture(scope="module")
def outsider(request: pytest.FixtureRequest, host: Host) -> Host:
    """The host that looks from outside."""
    return Host.get_host("ansible://outsider", ansible_inventory=host.backend.ansible_inventory)


@pytest.fixture(scope="module")
def figures(host: Host, capfd_disabled: Any) -> Iterator[dict[str, Any]]:
    """What is found, printed when all have looked."""
    found: dict[str, Any] = {}
    yield found
    with capfd_disabled():
        print(f"\n{host.backend.hostname}: " + ", ".join(f"{name} {value}" for name, value in found.items()))


@pytest.fixture(scope="module")
def capfd_disabled(request: pytest.FixtureRequest) -> Any:
    """Printing that a passed test does not swallow."""
    return request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled


@pytest.fixture(scope="module", autouse=True)
def testssl(outsider: Host, app: Installation) -> str:
    """The file of testssl.sh's findings. It takes a minute, and works while the other scanners do."""
    file = f"/tmp/testssl-{app.hostname}.json"
    checks = "--protocols --std --fs --server-defaults --server-preference --headers --vulnerable"
    command = f"testssl --quiet --color 0 --fast --warnings off --jsonfile {file} {checks} {app.address}"
    outsider.check_output(f"rm -f {file} {file}.end; ({command}; touch {file}.end) </dev/null >{file}.log 2>&1 &")
    return file


def test_ssh_audit_fails_nothing(outsider: Host, app: Installation, figures: dict[str, Any]) -> None:
    result = outsider.run(f"ssh-audit --skip-rate-test -j {app.address}")
    assert result.stdout, result.stderr
    report = json.loads(result.stdout)
    notes = {
        f"{kind} {entry['algorithm']}": entry.get("notes", {})
        for kind in ("kex", "key", "enc", "mac")
        for entry in report[kind]
    }
    assert len(notes) > 5, "this test sees nothing"
    failing = {name: note["fail"] for name, note in notes.items() if note.get("fail")}
    figures["ssh-audit"] = f"{len(failing)} failures, {sum(bool(note.get('warn')) for note in notes.values())} warnings"
    assert failing == {}
    assert report["cves"] == []


def test_lynis_index(host: Host, figures: dict[str, Any]) -> None:
    apt = "DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold"
    # Upgraded first, as by the nightly upgrades: lynis warns of what Debian has mended since the image was made.
    host.check_output(f"({apt} update && {apt} upgrade && {apt} install --no-install-recommends lynis) 2>&1")
    host.check_output(f"printf %s {shlex.quote(LYNIS_PROFILE)} > /etc/lynis/custom.prf")
    host.run("lynis audit system --quick --no-colors --quiet")
    index = int(host.check_output("sed -n 's/^hardening_index=//p' /var/log/lynis-report.dat"))
    figures["lynis"] = index
    missing = host.check_output("grep -E '^(warning|suggestion)' /var/log/lynis-report.dat")
    assert index >= LYNIS_INDEX, missing
    # Debian's own files of PostgreSQL hold no secret, and may be read.
    assert [line for line in missing.splitlines() if line.startswith("warning") and "DBS-1828" not in line] == []


def test_systemd_analyze(host: Host, app: Installation, release: str, figures: dict[str, Any]) -> None:
    """The bounds are in test_sandbox.py; here are the figures."""
    units = {
        "web": f"{app.name}-web@{release}",
        "workers": f"{app.name}-worker-{app.workers[0]['name']}@{release}",
        "beat": f"{app.name}-beat",
        "Flower": f"{app.name}-flower",
        "nginx": "nginx",
        "Redis": "redis-server@broker",
        "PostgreSQL": host.check_output("systemctl list-units --plain --no-legend 'postgresql@*' | cut -d' ' -f1"),
    }
    show = "systemd-analyze security --no-pager '{}' | sed -n 's/.*level for .*: \\([0-9.]*\\) .*/\\1/p'"
    levels = {name: host.check_output(show.format(unit)) for name, unit in units.items()}
    figures["systemd-analyze"] = ", ".join(f"{name} {level}" for name, level in levels.items())
    assert all(levels.values())


def test_testssl_finds_no_weakness(outsider: Host, app: Installation, testssl: str, figures: dict[str, Any]) -> None:
    what = "testssl.sh has come to its end"
    look = f"test -e {testssl}.end && echo over || tail -n 20 {testssl}.log"
    wait_for(lambda: outsider.check_output(look), 600, what, lambda said: said == "over")
    report = json.loads(outsider.check_output(f"cat {testssl}"))
    found = {entry["id"]: f"{entry['severity']}: {entry['finding']}" for entry in report}
    seen = {"TLS1_3", "heartbleed", "ROBOT", "BREACH", "cipherlist_NULL", "cipherlist_OBSOLETED", "FS"}
    assert seen <= set(found), "this test sees nothing"
    assert found["TLS1_2"].startswith("OK")
    assert found["TLS1"].startswith(("OK", "INFO"))
    weak = {name: said for name, said in found.items() if said.partition(":")[0] in BAD}
    unexpected = {name: said for name, said in weak.items() if name.split(" ")[0] not in TRUST | EXPECTED}
    figures["testssl.sh"] = f"{len(unexpected)} weaknesses of medium or above"
    assert unexpected == {}
