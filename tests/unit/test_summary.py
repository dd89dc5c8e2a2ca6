"""The lines that a run prints at its end."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible import constants
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader, lookup_loader
from ansible.template import Templar
from project import ROOT, run_playbook

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
    given = {"summary_certificate_provider": provider, "summary_url": "https://shop.example.org"}
    lines = summary(certificate=certificate, **given)
    (line,) = [line for line in lines if line.startswith("Certificate")]
    assert expected in line


@pytest.mark.parametrize(
    ("host", "hinted"),
    [("shop.example.org:8443", True), ("127.0.0.1:8443", False), ("[::1]", False), ("shop", False)],
)
def test_a_certificate_is_proposed_only_where_a_ca_issues_one(host: str, hinted: bool) -> None:
    (line,) = [line for line in summary(summary_url=f"https://{host}") if line.startswith("Certificate")]
    assert line.endswith("browsers show a warning") is not hinted
    assert ("set app_certificate_email in app.yml" in line) is hinted


@pytest.mark.parametrize(
    ("inventory", "expected"),
    [
        ("inventory/production.yml", "make logs ENV=production, or shopctl logs on the server"),
        ("molecule/default/hosts.yml", "shopctl logs on the server"),
        ("", "shopctl logs on the server"),
    ],
)
def test_the_logs_are_named_by_the_command_that_reads_them(inventory: str, expected: str) -> None:
    wiring = DataLoader().load_from_file(str(ROOT / "group_vars/all/wiring.yml"), trusted_as_template=True)
    given = {"summary_logs": wiring["summary_logs"], "monitoring_inventory": inventory, "app_name": "shop"}
    assert f"Logs         {expected}" in summary(**given)


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


def test_a_host_without_the_site_prints_what_runs_on_it() -> None:
    lines = summary(certificate=[], summary_site=False)
    assert [line.split()[0] for line in lines] == ["Release", "Versions", "Processes", "Logs", "Doctor"]
    assert "web, worker-heavy, beat on shop" in lines[2]


def test_conditional_lines_are_printed_only_if_they_apply() -> None:
    quiet = summary(certificate=[])
    assert not [line for line in quiet if line.startswith("Certificate")]
    assert [line for line in quiet if line.startswith("Release")] == ["Release      3fa4c0"]
    full = " ".join(summary("maintenance=on", "restart=pending", summary_root_login=True))
    for words in ("Maintenance mode is on", "needs a restart of the server", "Root can still log in"):
        assert words in full
        assert words not in " ".join(quiet)


def test_backups_of_hosts_without_a_summary_are_named() -> None:
    def lines(answer: dict[str, Any], **given: Any) -> list[str]:
        hostvars = {"data": answer, "shop": {}}
        found = summary(summary_backup_hosts=["data"], hostvars=hostvars, summary_name="shop", **given)
        return [line for line in found if line.startswith("Backup")]

    status = {"backup": ["The database was last copied 9 min ago, and then failed: away", "second"]}
    for code in (0, 4):
        answer = {"__summary_backups": {"rc": code, "stdout": json.dumps(status)}}
        assert lines(answer) == [f"Backup       data: {text}" for text in status["backup"]]
        assert lines(answer, summary_site=False) == [], "one host tells it"
    for failed in ({"rc": 1, "stdout": ""}, {"unreachable": True}):
        assert lines({"__summary_backups": failed}) == [
            "Backup       data: not known, since shopctl status failed there"
        ]
    assert lines({}) == []


@pytest.mark.parametrize(
    ("path", "expected"), [("/ops/status/", ["Status       https://shop.example.org/ops/status/   user and"]), ("", [])]
)
def test_the_status_page_is_named_where_there_is_one(path: str, expected: list[str]) -> None:
    lines = summary(summary_url="https://shop.example.org", summary_status_path=path)
    assert [line.partition(" password")[0] for line in lines if line.startswith("Status")] == expected


def passwords(folder: Path, **chosen: str) -> str:
    """Return the lines for a folder of generated secrets and for secrets that the user has set."""
    lookup_loader.add_directory(str(ROOT / "plugins/lookup"))
    loader = DataLoader()
    secrets = loader.load_from_file(str(ROOT / "group_vars/all/secrets.yml"), trusted_as_template=True)
    wiring = loader.load_from_file(str(ROOT / "group_vars/all/wiring.yml"), trusted_as_template=True)
    templar = Templar(loader, variables={**secrets, "app_secrets": str(folder), **chosen})
    given = {"summary_admin": "admin", "summary_flower": True, "summary_secrets": str(folder)}
    return " ".join(summary(**given, summary_user_passwords=templar.template(wiring["summary_user_passwords"])))


def test_the_summary_says_where_passwords_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user has set that of Flower."""
    folder = tmp_path / "secrets"
    monkeypatch.setattr(constants, "DEFAULT_LOCAL_TMP", str(tmp_path / "run"))
    # As in a rollback from a second clone.
    lines = passwords(folder, secret_flower_password="x")
    assert "user admin, password in the file admin_password of the machine that ran site.yml" in lines
    assert lines.count("with the password that you set") == 1
    folder.mkdir()
    (folder / "admin_password").write_text("generated\n")
    lines = passwords(folder, secret_flower_password="x")
    assert f"user admin, password in {folder}/admin_password" in lines
    assert lines.count("with the password that you set") == 1
    # A file of before.
    (folder / "flower_password").write_text("generated\n")
    assert passwords(folder, secret_flower_password="x") == lines


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"admin_page": "/secret/"}, "Admin        https://shop.example.org/secret/   user admin"),
        ({"admin_page": ""}, None),
        # A host with an earlier version.
        ({}, "Admin        https://shop.example.org/admin/   user admin"),
    ],
)
def test_the_admin_site_is_named_where_the_project_has_it(
    monkeypatch: pytest.MonkeyPatch, status: dict[str, str], expected: str | None
) -> None:
    for name, value in status.items():
        monkeypatch.setitem(STATUS, name, value)
    lines = summary(summary_admin="admin", summary_url="https://shop.example.org")
    assert [line.partition(",")[0] for line in lines if line.startswith("Admin")] == ([expected] if expected else [])


# --- The role at the end of a run, with a stub of APPctl

DEAD = {"process": "beat", "unit": "app-beat", "text": "failed since 2026-11-28T10:00:00Z"}


@pytest.mark.parametrize(
    ("problems", "verified", "fails"),
    [([], None, False), ([DEAD], 0, False), ([DEAD], 1, True)],
    ids=["none", "started", "not started"],
)
@pytest.mark.parametrize("group", ["web", "scheduler"])
def test_a_run_fails_after_the_summary_if_something_does_not_run(
    tmp_path: Path, group: str, problems: list[dict[str, str]], verified: int | None, fails: bool
) -> None:
    said = {"text": "Release 3fa4c0 is live, but does not run: beat.\n", "running": False, "status": verified}
    (tmp_path / "status.json").write_text(json.dumps(STATUS | {"problems": problems}))
    (tmp_path / "verify.json").write_text(json.dumps(said))
    program = tmp_path / "appctl"
    program.write_text(
        f"#!/bin/sh\ncd {tmp_path}\ncat $1.json\n[ $1 = status ] || touch verified\nexit {4 if problems else 0}\n"
    )
    program.chmod(0o755)
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "ansible_become": False}
    (tmp_path / "hosts.yml").write_text(json.dumps({group: {"hosts": {"server1": local}}}))
    play = {"hosts": "all", "gather_facts": False, "roles": ["summary"]}
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    given = {"__summary_program": str(program), "summary_site": group == "web"}
    found = run_playbook(
        tmp_path / "play.yml",
        tmp_path / "hosts.yml",
        *("-e", json.dumps(given)),
        one_process=True,
        ANSIBLE_CONFIG=str(ROLE.parents[1] / "ansible.cfg"),
    )
    assert (found.status != 0) is fails, found.output
    # Before it the output of APPctl is printed.
    found = dataclasses.replace(found, output=found.output[found.output.index("{") :])
    (printed,) = [one["msg"] for one in found.results() if one["task"].endswith("Print the summary")]
    assert ("Problem      beat: failed since 2026-11-28T10:00:00Z" in printed) is bool(problems)
    assert (tmp_path / "verified").exists() is bool(problems)
    if fails:
        assert "is live, but does not run: beat" in found.messages()["server1"]
