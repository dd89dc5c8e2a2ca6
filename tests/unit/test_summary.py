"""What the last lines of a run say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

ROLE = Path(__file__).parents[2] / "roles/report"
STATUS = {
    "current": "3fa4c0",
    "versions": {"django": "5.2"},
    "running": ["app-web@3fa4c0", "app-worker-heavy@3fa4c0"],
    "beat": True,
}
SELF_SIGNED = "1dd40e84 1dd40e84 notAfter=Dec 24 12:00:00 2027 GMT"
SIGNED = "1dd40e84 8d33f237 notAfter=Feb  3 12:00:00 2027 GMT"


def report(first: str = "0", certificate: str = SELF_SIGNED, **given: Any) -> list[str]:
    """The lines, from what the host answered."""
    loader = DataLoader()
    files = [str(ROLE / name) for name in ("defaults/main.yml", "vars/main.yml")]
    defaults, known = (loader.load_from_file(file, trusted_as_template=True) for file in files)
    answer = {"stdout_lines": ["", first, certificate, json.dumps(STATUS)]}
    facts = {"__summary_status": answer, "inventory_hostname": "shop"}
    templar = Templar(loader, variables={**defaults, **known, **facts, **given})
    return templar.template(known["__summary_lines"])


@pytest.mark.parametrize(
    ("provider", "certificate", "says"),
    [
        (
            "self_signed",
            SELF_SIGNED,
            "self-signed until 24 Dec 2027, so browsers warn; for another see app_certificate",
        ),
        ("acme", SELF_SIGNED, "playbooks/provision.yml --tags certificate asks the CA again"),
        ("acme", SIGNED, "by a CA until 3 Feb 2027; the server renews it"),
        ("files", SIGNED, "your own until 3 Feb 2027; put a new one in its place"),
        # Signed by itself, but chosen.
        ("files", SELF_SIGNED, "your own until 24 Dec 2027"),
    ],
)
def test_the_certificate_and_what_to_do_next(provider: str, certificate: str, says: str) -> None:
    lines = [line for line in report(certificate=certificate, summary_certificate_provider=provider) if "TLS" in line]
    assert len(lines) == 1
    assert says in lines[0]


def test_the_processes_by_their_names() -> None:
    (line,) = [line for line in report() if line.startswith("Processes")]
    assert line == "Processes  web, worker-heavy, beat on shop; logs on the server: journalctl"


def test_what_is_only_said_where_it_is_so() -> None:
    quiet = report(certificate="")
    assert not [line for line in quiet if "TLS" in line]
    assert [line for line in quiet if line.startswith("Release")] == ["Release    3fa4c0"]
    said = " ".join(report("1 /run/reboot-required", summary_root_kept=True))
    for word in ("Maintenance is on", "waits for a restart", "Root may still log in"):
        assert word in said
        assert word not in " ".join(quiet)


def test_a_password_that_somebody_chose_is_in_no_file_of_generated_ones() -> None:
    given = {"summary_admin": "admin", "summary_flower": True, "summary_secrets": "/secrets"}
    lines = " ".join(report(**given, summary_chosen=["flower"]))
    assert "password in /secrets/admin_password" in lines
    assert "/secrets/flower_password" not in lines
    assert "user admin, the password that you chose" in lines
