"""Who is tried, in which order, on the way into a server."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleConnectionFailure, AnsibleError

PATH = Path(__file__).parents[2] / "plugins/action/detect_connection.py"
SPEC = importlib.util.spec_from_file_location("connection_action", PATH)
contact = importlib.util.module_from_spec(SPEC)
sys.modules["connection_action"] = contact
SPEC.loader.exec_module(contact)

ALICE, BOB, CAROL = (
    {"name": name, "keys": [f"ssh-ed25519 AAAA{name} {name}@laptop"]} for name in ("alice", "bob", "carol")
)


@pytest.mark.parametrize(
    ("configured", "local", "keys", "expected"),
    [
        ("root", "somebody", set(), ["alice"]),
        ("root", "somebody", {"AAAAbob"}, ["bob"]),
        ("root", "carol", set(), ["carol"]),
        ("carol", "somebody", {"AAAAbob"}, ["carol", "bob"]),
        ("carol", "alice", {"AAAAbob"}, ["carol", "bob"]),
        ("bob", "bob", {"AAAAbob"}, ["bob"]),
    ],
)
def test_who_this_machine_is_likely_to_be(configured: str, local: str, keys: set[str], expected: list[str]) -> None:
    assert contact.likely([ALICE, BOB, CAROL], configured, local, keys) == expected


def test_without_administrators_nobody_is_guessed() -> None:
    assert contact.likely([], "root", "root", {"AAAAbob"}) == []


def test_administrators_come_first_and_never_use_a_password() -> None:
    found = list(contact.ways(["alice"], ["root"], [2222, None], password=True))
    assert [str(way) for way in found] == [
        "as alice on port 2222",
        "as root on port 2222",
        "as root on port 2222, by password",
        "as alice on port 22",
        "as root on port 22",
        "as root on port 22, by password",
    ]
    assert [way.administrator for way in found] == [True, False, False] * 2


@pytest.mark.parametrize(
    "line",
    ["ssh-ed25519 AAAAkey alice@laptop", "ssh-ed25519 AAAAkey", 'from="192.0.2.0/24" ssh-rsa AAAAkey a comment'],
)
def test_a_key_is_known_by_itself(line: str) -> None:
    assert contact.key_of(line) == "AAAAkey"


def test_own_keys_are_those_beside_the_private_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/id_ed25519.pub").write_text("ssh-ed25519 AAAAone me\n")
    (tmp_path / "server.pub").write_text("ssh-ed25519 AAAAtwo me\n")
    assert contact.own_keys(str(tmp_path / "server")) == {"AAAAone", "AAAAtwo"}
    assert contact.own_keys(None) == {"AAAAone"}


ROOT_WAY, ADMINISTRATOR = contact.Way("root", None), contact.Way("alice", 2222, administrator=True)


def test_what_is_known_of_a_way_that_leads_in() -> None:
    found = contact.understood(ADMINISTRATOR, 0, "1000\n2222\n", "")
    expected = {"user": "alice", "port": 2222, "become": True, "server_port": "2222"}
    assert found == expected | {"administrator": True, "password": False}
    assert contact.understood(ROOT_WAY, 0, "0\n\n", "")["become"] is False
    greeted = contact.understood(ROOT_WAY, 0, "Welcome to 12 servers\n0\n22\n", "")
    assert (greeted["become"], greeted["server_port"]) == (False, "22")


@pytest.mark.parametrize(
    ("status", "output", "error", "says"),
    [
        # As the images of many providers have it.
        (
            142,
            'Please login as the user "debian" rather than the user "root".\n\n',
            "",
            'Please login as the user "debian"',
        ),
        (0, "Welcome. Bye.\n", "", "Welcome. Bye."),
        (1, "1000\n22\n", "sudo: a password is required\n", "sudo: a password is required"),
        (1, "", "", "it says nothing"),
    ],
    ids=["another_user", "no_shell", "no_sudo", "silence"],
)
def test_a_way_that_leads_nowhere_says_what_was_met(status: int, output: str, error: str, says: str) -> None:
    with pytest.raises(contact.AnsibleConnectionFailure, match="is denied what root may: ") as failure:
        contact.understood(ROOT_WAY, status, output, error)
    assert says in str(failure.value)


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("Host key verification failed.", "ssh-keygen -R"),
        ("ssh: connect to host 203.0.113.10 port 22: Connection refused", "fail2ban-client unban"),
        ("Permission denied (publickey).", ""),
    ],
)
def test_what_may_be_tried_when_nothing_gets_in(reason: str, advice: str) -> None:
    action = object.__new__(contact.ActionModule)
    action.host, action._task = "production", SimpleNamespace(args={})
    said = action.advice({"as root on port 22": reason})
    assert f"as root on port 22: {reason}" in said
    assert "connection_user=NAME" in said
    assert [word for word in ("ssh-keygen -R", "fail2ban-client unban") if word in said] == [advice] * bool(advice)


def test_a_server_that_ssh_does_not_know_is_one_with_a_password_too() -> None:
    def exec_command(*_: object, **__: object) -> None:
        raise AnsibleError("With a SSH password this is not possible because Host Key checking is enabled.")

    action = object.__new__(contact.ActionModule)
    action._connection = SimpleNamespace(transport="local", exec_command=exec_command)
    with pytest.raises(contact.AnsibleConnectionFailure, match="Host key verification failed"):
        action.look(ROOT_WAY)


# As OpenSSH says it, in two lines.
HANGS_UP = (
    "Received disconnect from 192.0.2.7 port 22:2: Too many authentication failures\n"
    "Disconnected from 192.0.2.7 port 22"
)


@pytest.mark.parametrize(
    ("answers", "tried"),
    [
        # Dropped on every port: again, three times in all.
        (["Connection reset by peer"] * 9, ["alice"] * 3),
        (["Connection reset by peer", "in"], ["alice"] * 2),
        (["connect to host 192.0.2.7 port 22: Connection timed out"] * 9, ["alice"]),
        # Who is denied stays so.
        (["Permission denied (publickey)."] * 9, ["alice", "root"]),
        (["Permission denied (publickey).", "Connection closed by 192.0.2.7", "in"], ["alice", "root", "root"]),
        # Too many keys of one user say nothing of the next.
        ([HANGS_UP, "in"], ["alice", "root"]),
    ],
)
def test_what_is_tried_again(monkeypatch: pytest.MonkeyPatch, answers: list[str], tried: list[str]) -> None:
    monkeypatch.setattr(contact.time, "sleep", lambda seconds: None)
    module, seen, said = object.__new__(contact.ActionModule), [], iter(answers)

    def look(way: contact.Way) -> dict[str, bool]:
        seen.append(way.user)
        if (answer := next(said)) == "in":
            return {"failed": False}
        raise AnsibleConnectionFailure(answer)

    module.look, module._task, module.host = look, SimpleNamespace(args={}), "web"
    found = module.try_all(list(contact.ways(["alice"], ["root"], [None], password=False)), 0)
    assert seen == tried
    assert found["failed"] is ("in" not in answers)


def test_too_many_keys_have_advice_of_their_own() -> None:
    module = object.__new__(contact.ActionModule)
    module._task, module.host = SimpleNamespace(args={}), "web"

    def look(way: contact.Way) -> None:
        raise AnsibleConnectionFailure(HANGS_UP)

    module.look = look
    found = module.try_all(list(contact.ways([], ["root"], [None], password=False)), 0)
    assert "IdentitiesOnly" in found["msg"]
