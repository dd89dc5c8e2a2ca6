"""The lines that a run prints at its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar

ROLE = Path(__file__).parents[2] / "roles/summary"
STATUS = {
    "current": "3fa4c0",
    "versions": {"django": "5.2"},
    "running": [
        {"unit": "app-web@3fa4c0", "process": "web", "release": "3fa4c0", "state": "active", "restarts": 0},
        {"unit": "app-worker-heavy@3fa4c0", "process": "worker-heavy", "release": "3fa4c0", "state": "active"},
        {"unit": "app-worker-heavy@00ff00", "process": "worker-heavy", "release": "00ff00", "state": "deactivating"},
    ],
    "beat": True,
}
SELF_SIGNED = ["subject=CN=shop", "issuer=CN=shop", "notAfter=2027-12-24 12:00:00Z"]
SIGNED = ["subject=", "issuer=C=US, O=Let's Encrypt, CN=R1", "notAfter=2027-02-03 12:00:00Z"]

init_plugin_loader()


def summary(*host: str, certificate: list[str] = SELF_SIGNED, **given: Any) -> list[str]:
    """Return the lines for the answers of a host."""
    loader = DataLoader()
    files = [str(ROLE / name) for name in ("defaults/main.yml", "vars/main.yml")]
    defaults, internal = (loader.load_from_file(file, trusted_as_template=True) for file in files)
    answers = {
        "__summary_status": {"stdout": json.dumps(STATUS)},
        "__summary_host": {"stdout_lines": [*host, *certificate]},
        "inventory_hostname": "shop",
    }
    templar = Templar(loader, variables={**defaults, **internal, **answers, **given})
    return templar.template(internal["__summary_lines"])


@pytest.mark.parametrize(
    ("provider", "certificate", "expected"),
    [
        (
            "self_signed",
            SELF_SIGNED,
            "self-signed, until 2027-12-24; browsers show a warning. For another one, set app_",
        ),
        ("self_signed", SIGNED, "the next run of playbooks/provision.yml replaces it by a self-signed one"),
        ("acme", SELF_SIGNED, "run playbooks/provision.yml --tags certificate"),
        ("acme", SIGNED, "signed by a CA, until 2027-02-03; the server renews it automatically"),
        ("files", SIGNED, "your own, until 2027-02-03; replace its files before that date"),
        # A self-signed certificate of the user's.
        ("files", SELF_SIGNED, "your own, until 2027-12-24"),
    ],
)
def test_certificate_line_says_what_to_do(provider: str, certificate: list[str], expected: str) -> None:
    lines = summary(certificate=certificate, summary_certificate_provider=provider)
    (line,) = [line for line in lines if line.startswith("Certificate")]
    assert expected in line


def test_processes_are_listed_once_by_name() -> None:
    (line,) = [line for line in summary() if line.startswith("Processes")]
    assert line == "Processes    web, worker-heavy, beat on shop"


def test_what_does_not_run_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [line for line in summary() if line.startswith("Problem")]
    problem = {"process": "worker-io", "unit": "app-worker-io@3fa4c0", "text": "failed since 2026-11-28T10:00:00Z"}
    monkeypatch.setitem(STATUS, "problems", [problem, problem | {"process": "web"}])
    assert [line for line in summary() if line.startswith("Problem")] == [
        "Problem      worker-io: failed since 2026-11-28T10:00:00Z",
        "Problem      web: failed since 2026-11-28T10:00:00Z",
    ]


def test_conditional_lines_are_printed_only_if_they_apply() -> None:
    quiet = summary(certificate=[])
    assert not [line for line in quiet if line.startswith("Certificate")]
    assert [line for line in quiet if line.startswith("Release")] == ["Release      3fa4c0"]
    full = " ".join(summary("maintenance=on", "restart=pending", summary_root_login=True))
    for words in ("Maintenance mode is on", "needs a restart of the server", "Root can still log in"):
        assert words in full
        assert words not in " ".join(quiet)


def test_a_password_that_the_user_set_is_not_looked_up_in_the_generated_ones() -> None:
    given = {"summary_admin": "admin", "summary_flower": True, "summary_secrets": "/secrets"}
    lines = " ".join(summary(**given, summary_user_passwords=["flower"]))
    assert "password in /secrets/admin_password" in lines
    assert "/secrets/flower_password" not in lines
    assert "user admin, with the password that you set" in lines
