"""The role access: its program, its templates, and what it allows root and passwords."""

from __future__ import annotations

import configparser
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

ROLE = Path(__file__).parents[2] / "roles/access"
PROGRAM = ROLE / "files/seedbed-access"
BY_KEY = {"user": "root", "port": 22, "become": False, "administrator": False, "password": False}


def template(name: str) -> str:
    return (ROLE / "templates" / f"{name}.j2").read_text()


def variable(name: str, **given: Any) -> Any:
    """Return a variable of the role, rendered by Ansible."""
    loader = DataLoader()
    known = loader.load_from_file(str(ROLE / "vars/main.yml"), trusted_as_template=True)
    return Templar(loader, variables={**known, **given}).template(known[name])


def test_revert_at_boot_does_not_wait_for_the_network() -> None:
    """ufw comes before the network, and on many images the network (cloud-init) before sysinit.target."""
    unit = configparser.ConfigParser(strict=False)
    unit.optionxform = str
    unit.read_string(template("seedbed-access.service"))
    assert "ufw.service" in unit["Unit"]["Before"].split()
    assert unit["Unit"]["DefaultDependencies"] == "no"
    assert unit["Unit"]["After"] == "local-fs.target"


def test_program_passes_shellcheck() -> None:
    done = subprocess.run(["shellcheck", str(PROGRAM)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_program_reads_only_files_that_the_role_writes() -> None:
    read = set(re.findall(r"\$policy/([\w.]+)", PROGRAM.read_text()))
    tasks = (ROLE / "tasks/apply.yml").read_text()
    assert read
    assert {name for name in read if f'dest: "{{{{ __access_folder }}}}/{name}"' not in tasks} == set()


def function(name: str) -> str:
    """Return a function of the program."""
    return re.search(rf"^{name}\(\) {{\n.*?^}}$", PROGRAM.read_text(), re.M | re.S)[0]


def test_time_to_confirm_begins_when_the_change_is_complete(tmp_path: Path) -> None:
    """And a revert that the first timer has started meanwhile, and that waits for the lock, is ended."""
    (tmp_path / "settings").write_text("revert_after=7\n")
    steps = ["apply_accounts", "apply_sshd", "apply_firewall", "apply_bans"]
    lines = [
        f"set -eu; state={tmp_path} policy={tmp_path} new={tmp_path}/new sudoers=none guarded=none",
        "differences() { echo sshd; }",
        "build() { :; }; refuse_system_users() { :; }",
        *(f'{name}() {{ echo {name} "$*" >>{tmp_path}/calls; }}' for name in (*steps, "systemctl", "systemd_run")),
        *(function(name).replace("systemd-run", "systemd_run") for name in ("start_timer", "arm", "apply")),
        "apply",
    ]
    done = subprocess.run(["sh", "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout == "sshd\n"
    timer = [
        "systemctl stop seedbed-access.timer seedbed-access.service",
        "systemctl reset-failed seedbed-access.service",
        "systemd_run -q --unit=seedbed-access.service --on-active=7 --timer-property=AccuracySec=100ms",
    ]
    called = (tmp_path / "calls").read_text().splitlines()
    assert [line.strip() for line in called] == [*timer, *steps, *timer]


@pytest.mark.parametrize(
    ("files", "printed"),
    [
        ({"sshd_config": "PermitRootLogin yes\n"}, ""),
        ({"sshd_config": "AllowUsers root\n"}, "AllowUsers alice bob\n"),
        ({"sshd_config.d/10-cloud.conf": "  allowgroups admins\n"}, "AllowGroups alice bob\n"),
        ({"sshd_config": "AllowUsers root deploy\nAllowGroups=root"}, "AllowUsers alice bob\nAllowGroups alice bob\n"),
        # Such a line limits some connections only.
        ({"sshd_config": "Match Address 192.0.2.7\n  AllowUsers root\n"}, ""),
        ({"sshd_config.d/00-seedbed.conf": "AllowUsers alice bob\n"}, ""),
        ({"sshd_config": "# AllowUsers root\n"}, ""),
    ],
)
def test_administrators_are_admitted_where_sshd_limits_who_may_log_in(
    tmp_path: Path, files: dict[str, str], printed: str
) -> None:
    (tmp_path / "sshd_config.d").mkdir()
    (tmp_path / "new").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    admit = function("admit_administrators").replace("/etc/ssh", str(tmp_path)).replace('"/$sshd"', '"$sshd"')
    lines = [
        f"set -eu; new={tmp_path}/new sshd={tmp_path}/sshd_config.d/00-seedbed.conf",
        "names() { echo alice; echo bob; }",
        admit,
        "admit_administrators",
    ]
    done = subprocess.run(["sh", "-c", "\n".join(lines)], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (printed, "")


def test_failure_lists_the_reverted_change_line_by_line() -> None:
    given = {
        "inventory_hostname": "web",
        "__access_reverted": {"user": "root"},
        "__access_change": {"stdout_lines": ["sshd: port 2222", "bans"]},
        "__access_login": {"msg": "  as root on port 2222: Connection refused"},
    }
    lines = variable("__access_failure", **given).splitlines()
    assert lines[:3] == [
        "web reverted this change, since no new connection confirmed it:",
        "  sshd: port 2222",
        "  bans",
    ]
    assert "  as root on port 2222: Connection refused" in lines


def matches(mode: str, line: str) -> bool:
    """Return whether a jail counts a line of nginx's log from which fail2ban has removed the time."""
    parser = configparser.ConfigParser(interpolation=None)
    paths = "{{ access_password_paths | join('|') }}"
    assert paths in template("filter.conf")
    parser.read_string(template("filter.conf").replace(paths, "/flower/|/ops/status/"))
    filters = parser["Definition"]
    pattern = filters["failregex"].replace("<re-<mode>>", filters[f"re-{mode}"]).replace("<ADDR>", "([0-9a-f.:]+)")
    return re.search(pattern, line) is not None


@pytest.mark.parametrize(
    ("mode", "request_line", "status", "counts"),
    [
        ("login", "GET /flower/ HTTP/1.1", 401, True),
        ("login", "GET /flower/ HTTP/1.1", 200, False),
        # nginx accepts a whole URL in the request line, and removes the host before it proxies.
        ("login", "GET https://shop.example.org/flower/ HTTP/1.1", 401, True),
        ("login", "GET HTTPS://shop.example.org:443/flower/api/workers HTTP/1.1", 401, True),
        ("login", "GET /api/flower/ HTTP/1.1", 401, False),
        ("login", "GET /ops/status/ HTTP/1.1", 401, True),
        ("login", "GET /status/ HTTP/1.1", 401, False),
        ("flood", "GET / HTTP/1.1", 429, True),
        ("flood", "GET / HTTP/1.1", 404, False),
    ],
)
def test_log_lines_that_count_towards_a_ban(mode: str, request_line: str, status: int, counts: bool) -> None:
    line = f'2001:db8::7 - - [] "{request_line}" {status} 0 "-" "curl" time=0.001 upstream=0.001 id=1'
    assert matches(mode, line) is counts


@pytest.mark.parametrize(
    ("login", "root", "passwords"),
    [
        ({}, "prohibit-password", "no"),
        ({"password": True}, "yes", "yes"),
        # A password, but not root's: root login by password stays disabled.
        ({"user": "debian", "become": True, "password": True}, "prohibit-password", "yes"),
        ({"user": "alice", "become": True, "administrator": True}, "no", "no"),
    ],
    ids=["root_by_key", "root_by_password", "another_by_password", "administrator"],
)
def test_root_login_and_passwords(login: dict[str, Any], root: str, passwords: str) -> None:
    given = {"access_connection": BY_KEY | login, "__access_login": {}}
    assert variable("__access_root", **given) == root
    assert variable("__access_passwords", **given) == passwords


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        ('"POST /admin/login/ HTTP/1.1" 429 1184 "-" "curl" time=0.000 upstream=- id=98f1 login', True),
        ('"POST /admin/login/ HTTP/1.1" 403 1184 "-" "curl" time=0.000 upstream=0.01 id=98f1 login', False),
        ('"POST /admin/login/ HTTP/1.1" 429 1184 "-" "curl" time=0.000 upstream=- id=98f1', False),
        ('"GET / HTTP/1.1" 429 1184 "-" "a login" time=0.000 upstream=- id=98f1', False),
    ],
)
def test_bans_for_refused_attempts_to_log_in(line: str, counts: bool) -> None:
    """A line of nginx's access log, without the time, which fail2ban removes."""
    filters = configparser.ConfigParser(interpolation=None)
    filters.read_string(template("filter.conf"))
    pattern = filters["Definition"]["failregex"].replace("<re-<mode>>", filters["Definition"]["re-logins"])
    assert bool(re.search(pattern.replace("<ADDR>", r"\S+"), f"192.0.2.7 - - [] {line}")) is counts
