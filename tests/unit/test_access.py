"""Who may log in: what the templates of the role say, and what its variables make of the way in that was found."""

from __future__ import annotations

import configparser
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROLE = Path(__file__).parents[2] / "roles/access"
BY_KEY = {"user": "root", "port": 22, "become": False, "administrator": False, "password": False}


def template(name: str) -> str:
    return (ROLE / "templates" / name).read_text()


def variable(name: str, **given: Any) -> Any:
    """A variable of the role, as Ansible works it out."""
    loader = DataLoader()
    known = loader.load_from_file(str(ROLE / "vars/main.yml"), trusted_as_template=True)
    return Templar(loader, variables={**known, **given}).template(known[name])


def test_what_takes_a_change_back_at_boot_waits_for_no_network() -> None:
    """ufw comes before the network, and on many images the network (cloud-init) before sysinit.target."""
    unit = configparser.ConfigParser(strict=False)
    unit.optionxform = str
    unit.read_string(template("seedbed-access.service"))
    assert "ufw.service" in unit["Unit"]["Before"].split()
    assert unit["Unit"]["DefaultDependencies"] == "no"
    assert unit["Unit"]["After"] == "local-fs.target"


def test_the_program_is_one_that_a_shell_can_read() -> None:
    variables = {
        "ansible_managed": "Ansible",
        "access_undo_after": 45,
        "access_web_log": "/var/log/nginx/shop.access.log",
    }
    loader = DataLoader()
    known = loader.load_from_file(str(ROLE / "vars/main.yml"), trusted_as_template=True)
    text = Templar(loader, variables={**known, **variables}).template(trust_as_template(template("seedbed-access")))
    done = subprocess.run(["sh", "-n"], input=text, capture_output=True, text=True)
    assert done.stderr == ""
    wanted = set(re.findall(r"\$wanted/([\w.]+)", text))
    tasks = (ROLE / "tasks/apply.yml").read_text()
    assert {name for name in wanted if f'dest: "{{{{ __access_folder }}}}/{name}"' not in tasks} == set()


def finds(mode: str, line: str) -> bool:
    """Whether a jail counts a line of nginx's log, once fail2ban has taken the time out of it."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(template("filter.conf"))
    filters = parser["Definition"]
    pattern = filters["failregex"].replace("<re-<mode>>", filters[f"re-{mode}"]).replace("<ADDR>", "([0-9a-f.:]+)")
    return re.search(pattern, line) is not None


@pytest.mark.parametrize(
    ("mode", "request_line", "status", "counts"),
    [
        ("login", "GET /flower/ HTTP/1.1", 401, True),
        ("login", "GET /flower/ HTTP/1.1", 200, False),
        # nginx takes a request that names the site as well, and passes it on without.
        ("login", "GET https://shop.example.org/flower/ HTTP/1.1", 401, True),
        ("login", "GET HTTPS://shop.example.org:443/flower/api/workers HTTP/1.1", 401, True),
        ("login", "GET /api/flower/ HTTP/1.1", 401, False),
        ("flood", "GET / HTTP/1.1", 429, True),
        ("flood", "GET / HTTP/1.1", 404, False),
    ],
)
def test_what_counts_towards_a_ban(mode: str, request_line: str, status: int, counts: bool) -> None:
    line = f'2001:db8::7 - - [] "{request_line}" {status} 0 "-" "curl" time=0.001 upstream=0.001 id=1'
    assert finds(mode, line) is counts


@pytest.mark.parametrize(
    ("way", "root", "passwords"),
    [
        ({}, "prohibit-password", "no"),
        ({"password": True}, "yes", "yes"),
        # By a password too, but it is not root's: nothing is opened that was shut.
        ({"user": "debian", "become": True, "password": True}, "prohibit-password", "yes"),
        ({"user": "alice", "become": True, "administrator": True}, "no", "no"),
    ],
    ids=["root_by_key", "root_by_password", "another_by_password", "administrator"],
)
def test_what_root_and_passwords_may(way: dict[str, Any], root: str, passwords: str) -> None:
    given = {"access_way": BY_KEY | way, "__access_got_in": {}}
    assert variable("__access_root", **given) == root
    assert variable("__access_passwords", **given) == passwords
