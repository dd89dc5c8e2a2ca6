"""What scanners find on the host. Their figures are printed, and are those of the documentation."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from typing import Any

import pytest
from exposure import exposures
from installation import Installation
from probes import wait_for
from testinfra.host import Host

LYNIS_INDEX = 80
# Left out: kernel settings and USB, which belong to the machine below a container; the mount of /proc, since services
# have their own (ProtectProc); and the files of Debian's own Redis, which is disabled (ours have users with hashes).
LYNIS_PROFILE = "".join(
    f"skip-test={test}\n" for test in ("KRNL-6000", "USB-3000", "FILE-6344", "DBS-1884", "DBS-1886")
)

# systemd-analyze security, at most. The bounds of the documentation.
EXPOSURES = {"web": 1.5, "worker": 1.5, "beat": 1.5, "Flower": 1.5, "nginx": 2.6, "Redis": 1.2, "PostgreSQL": 1.2}

# What Debian's OpenSSL decides is scanned on both; what nginx's configuration does, the same on both, on one.
TESTSSL = {"debian12": "--protocols --std --fs --vulnerable"}
TESTSSL["debian13"] = f"{TESTSSL['debian12']} --server-defaults --server-preference --headers"

# What a test host cannot have: a certificate that an authority signed, and records in the DNS.
UNTRUSTED = {
    *("cert_chain_of_trust", "cert_trust", "cert_revocation", "cert_ocspRevoked", "DNS_CAArecord"),
    *("cert_crlDistributionPoints", "overall_grade", "grade_cap_reason_1", "grade_cap_reason_2"),
}
# HSTS starts with a small age on purpose, so that a mistake expires soon.
EXPECTED = {"HSTS_time"}
BAD = {"MEDIUM", "HIGH", "CRITICAL"}
# This finding says that testssl.sh did not complete. `engine_problem` may only say that OpenSSL has no GOST ciphers.
INCOMPLETE = "scanProblem"


@pytest.fixture(scope="module", autouse=True)
def testssl(outsider: Host, app: Installation, variables: dict[str, Any]) -> str:
    """Start testssl.sh, which takes a minute, beside the other scanners. Returns the file of its findings."""
    file = f"/tmp/testssl-{app.hostname}.json"
    checks = TESTSSL[variables["testhost_os"]]
    command = f"testssl --quiet --color 0 --fast --warnings off --jsonfile {file} {checks} {app.address}"
    outsider.check_output(f"rm -f {file} {file}.end; ({command}; touch {file}.end) </dev/null >{file}.log 2>&1 &")
    return file


def test_ssh_audit_finds_no_failure(outsider: Host, app: Installation, record_property: Callable) -> None:
    result = outsider.run(f"ssh-audit --skip-rate-test -j {app.address}")
    assert result.stdout, result.stderr
    report = json.loads(result.stdout)
    notes = {
        f"{kind} {entry['algorithm']}": entry.get("notes", {})
        for kind in ("kex", "key", "enc", "mac")
        for entry in report[kind]
    }
    assert len(notes) > 5, "the scanner reports nothing"
    failing = {name: note["fail"] for name, note in notes.items() if note.get("fail")}
    warnings = sum(bool(note.get("warn")) for note in notes.values())
    record_property("ssh-audit", f"{len(failing)} failures, {warnings} warnings")
    assert failing == {}
    assert report["cves"] == []


@pytest.mark.os("debian13")
def test_lynis_index(host: Host, record_property: Callable) -> None:
    apt = "DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold"
    # Upgraded first, as every night: lynis warns of updates since the image was built.
    host.check_output(f"({apt} update && {apt} upgrade && {apt} install --no-install-recommends lynis) 2>&1")
    host.check_output(f"printf %s {shlex.quote(LYNIS_PROFILE)} > /etc/lynis/custom.prf")
    host.run("lynis audit system --quick --no-colors --quiet")
    index = int(host.check_output("sed -n 's/^hardening_index=//p' /var/log/lynis-report.dat"))
    record_property("lynis", index)
    missing = host.check_output("grep -E '^(warning|suggestion)' /var/log/lynis-report.dat")
    assert index >= LYNIS_INDEX, missing
    # Debian's own files of PostgreSQL are readable and hold no secret.
    assert [line for line in missing.splitlines() if line.startswith("warning") and "DBS-1828" not in line] == []


def test_systemd_analyze(host: Host, app: Installation, release: str, record_property: Callable) -> None:
    server = host.check_output("systemctl list-units --plain --no-legend 'postgresql@*' | cut -d' ' -f1")
    units = {
        f"{app.name}-web@{release}": "web",
        **{f"{app.name}-worker-{worker['name']}@{release}": "worker" for worker in app.workers},
        f"{app.name}-beat": "beat",
        f"{app.name}-flower": "Flower",
        "nginx": "nginx",
        "redis-server@broker": "Redis",
        "redis-server@cache": "Redis",
        server: "PostgreSQL",
    }
    found = exposures(host, units)
    worst = {kind: max(level for unit, level in found.items() if units[unit] == kind) for kind in EXPOSURES}
    record_property("systemd-analyze", ", ".join(f"{kind} {level}" for kind, level in worst.items()))
    assert {unit: level for unit, level in found.items() if level > EXPOSURES[units[unit]]} == {}


def test_testssl_finds_no_weakness(outsider: Host, app: Installation, testssl: str, record_property: Callable) -> None:
    look = f"test -e {testssl}.end && echo complete || tail -n 20 {testssl}.log"
    wait_for(lambda: outsider.check_output(look), 600, "testssl.sh has ended", lambda said: said == "complete")
    report = json.loads(outsider.check_output(f"cat {testssl}"))
    found = {entry["id"]: f"{entry['severity']}: {entry['finding']}" for entry in report}
    assert [said for name, said in found.items() if name.startswith(INCOMPLETE)] == []
    assert "GOST" in found.get("engine_problem", "GOST")
    seen = {"TLS1_3", "heartbleed", "ROBOT", "BREACH", "cipherlist_NULL", "cipherlist_OBSOLETED", "FS"}
    assert seen <= set(found), "the scanner reports nothing"
    assert found["TLS1_2"].startswith("OK")
    assert found["TLS1"].startswith(("OK", "INFO"))
    weak = {name: said for name, said in found.items() if said.partition(":")[0] in BAD}
    unexpected = {name: said for name, said in weak.items() if name.split(" ")[0] not in UNTRUSTED | EXPECTED}
    record_property("testssl.sh", f"{len(unexpected)} weaknesses of medium severity or above")
    assert unexpected == {}
