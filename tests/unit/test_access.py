"""Who may log in: what the templates of the role say, and what its variables make of the way in that was found."""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

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
