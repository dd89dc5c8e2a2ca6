"""The candidates of an SSH login, their order, and what the error says."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleConnectionFailure, AnsibleError

PATH = Path(__file__).parents[2] / "plugins/action/detect_connection.py"
SPEC = importlib.util.spec_from_file_location("connection_action", PATH)
connection = importlib.util.module_from_spec(SPEC)
sys.modules["connection_action"] = connection
SPEC.loader.exec_module(connection)

ALICE, BOB, CAROL = (
    {"name": name, "keys": [f"ssh-ed25519 AAAA{name} {name}@laptop"]} for name in ("alice", "bob", "carol")
)


@pytest.mark.parametrize(
    ("configured", "local", "keys", "expected"),
    [
        ("root", "guest", set(), ["alice"]),
        ("root", "guest", {"AAAAbob"}, ["bob"]),
        ("root", "carol", set(), ["carol"]),
        ("carol", "guest", {"AAAAbob"}, ["carol", "bob"]),
        ("carol", "alice", {"AAAAbob"}, ["carol", "bob"]),
        ("bob", "bob", {"AAAAbob"}, ["bob"]),
    ],
)
def test_guess_administrators(configured: str, local: str, keys: set[str], expected: list[str]) -> None:
    assert connection.guess_administrators([ALICE, BOB, CAROL], configured, local, keys) == expected


def test_without_administrators_none_is_guessed() -> None:
    assert connection.guess_administrators([], "root", "root", {"AAAAbob"}) == []


def test_administrators_come_first_and_never_use_a_password() -> None:
    found = list(connection.candidates(["alice"], ["root"], [2222, None], password=True))
    assert [str(candidate) for candidate in found] == [
        "as alice on port 2222",
        "as root on port 2222",
        "as root on port 2222, by password",
        "as alice on port 22",
        "as root on port 22",
        "as root on port 22, by password",
    ]
    assert [candidate.administrator for candidate in found] == [True, False, False] * 2


@pytest.mark.parametrize(
    "line",
    ["ssh-ed25519 AAAAkey alice@laptop", "ssh-ed25519 AAAAkey", 'from="192.0.2.0/24" ssh-rsa AAAAkey a comment'],
)
def test_key_of_a_line(line: str) -> None:
    assert connection.key_of(line) == "AAAAkey"


def test_own_keys_are_those_of_the_private_key_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/id_ed25519.pub").write_text("ssh-ed25519 AAAAone me\n")
    (tmp_path / "server.pub").write_text("ssh-ed25519 AAAAtwo me\n")
    assert connection.own_keys(str(tmp_path / "server")) == {"AAAAone", "AAAAtwo"}
    assert connection.own_keys(None) == {"AAAAone"}


def test_own_keys_are_also_those_without_a_public_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a CI job. One with a passphrase is not asked for it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / ".ssh").mkdir()
    keys = {}
    for name, phrase in {"id_ed25519": "", "server": "", "id_other": "secret"}.items():
        file = tmp_path / ".ssh" / name
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", phrase, "-f", str(file)], check=True)
        keys[name] = connection.key_of(Path(f"{file}.pub").read_text())
        Path(f"{file}.pub").unlink()
    assert connection.own_keys(str(tmp_path / ".ssh/server")) == {keys["id_ed25519"], keys["server"]}


ROOT_LOGIN = connection.Candidate("root", None)
ADMINISTRATOR = connection.Candidate("alice", 2222, administrator=True)


def test_login_that_works() -> None:
    found = connection.parse_login(ADMINISTRATOR, 0, "1000\n2222\n", "")
    expected = {"user": "alice", "port": 2222, "become": True, "server_port": "2222"}
    assert found == expected | {"administrator": True, "password": False}
    assert connection.parse_login(ROOT_LOGIN, 0, "0\n\n", "")["become"] is False
    greeting = connection.parse_login(ROOT_LOGIN, 0, "Welcome to 12 servers\n0\n22\n", "")
    assert (greeting["become"], greeting["server_port"]) == (False, "22")


@pytest.mark.parametrize(
    ("status", "output", "error", "says"),
    [
        # As images of many providers do.
        (
            142,
            'Please login as the user "debian" rather than the user "root".\n\n',
            "",
            'Please login as the user "debian"',
        ),
        (0, "Welcome. Bye.\n", "", "Welcome. Bye."),
        (1, "1000\n22\n", "sudo: a password is required\n", "sudo: a password is required"),
        (1, "", "", "no output"),
    ],
    ids=["another_user", "no_shell", "no_sudo", "silence"],
)
def test_login_without_root_includes_the_output(status: int, output: str, error: str, says: str) -> None:
    with pytest.raises(connection.AnsibleConnectionFailure, match="cannot become root: ") as failure:
        connection.parse_login(ROOT_LOGIN, status, output, error)
    assert says in str(failure.value)


@pytest.mark.parametrize(
    ("reason", "hint"),
    [
        ("Host key verification failed.", "ssh-keygen -R"),
        ("ssh: connect to host 203.0.113.10 port 22: Connection refused", "fail2ban-client unban"),
        ("Permission denied (publickey).", ""),
    ],
)
def test_hints_of_an_error(reason: str, hint: str) -> None:
    action = object.__new__(connection.ActionModule)
    action.host, action.args = "production", {"hints": True}
    message = action.failure({"as root on port 22": reason})
    assert f"as root on port 22: {reason}" in message
    assert "connection_user=NAME" in message
    assert [word for word in ("ssh-keygen -R", "fail2ban-client unban") if word in message] == [hint] * bool(hint)


def test_unknown_host_key_with_a_password() -> None:
    def exec_command(*_: object, **__: object) -> None:
        raise AnsibleError("With a SSH password this is not possible because Host Key checking is enabled.")

    action = object.__new__(connection.ActionModule)
    action._connection = SimpleNamespace(transport="local", exec_command=exec_command)
    with pytest.raises(connection.AnsibleConnectionFailure, match="Host key verification failed"):
        action.log_in(ROOT_LOGIN)


# OpenSSH's words, in two lines.
TOO_MANY_KEYS = (
    "Received disconnect from 192.0.2.7 port 22:2: Too many authentication failures\n"
    "Disconnected from 192.0.2.7 port 22"
)


@pytest.mark.parametrize(
    ("answers", "tried"),
    [
        # Dropped on every port: three rounds.
        (["Connection reset by peer"] * 9, ["alice"] * 3),
        (["Connection reset by peer", "in"], ["alice"] * 2),
        (["connect to host 192.0.2.7 port 22: Connection timed out"] * 9, ["alice"]),
        # A denial is final.
        (["Permission denied (publickey)."] * 9, ["alice", "root"]),
        (["Permission denied (publickey).", "Connection closed by 192.0.2.7", "in"], ["alice", "root", "root"]),
        # Too many keys for one user: the next one is tried.
        ([TOO_MANY_KEYS, "in"], ["alice", "root"]),
    ],
)
def test_retries(monkeypatch: pytest.MonkeyPatch, answers: list[str], tried: list[str]) -> None:
    monkeypatch.setattr(connection.time, "sleep", lambda seconds: None)
    module, seen, left = object.__new__(connection.ActionModule), [], iter(answers)

    def log_in(candidate: connection.Candidate) -> dict[str, bool]:
        seen.append(candidate.user)
        if (answer := next(left)) == "in":
            return {"failed": False}
        raise AnsibleConnectionFailure(answer)

    module.log_in, module.args, module.host = log_in, {"hints": True}, "web"
    found = module.try_all(list(connection.candidates(["alice"], ["root"], [None], password=False)), 0)
    assert seen == tried
    assert found["failed"] is ("in" not in answers)


def test_hint_for_too_many_keys() -> None:
    module = object.__new__(connection.ActionModule)
    module.args, module.host = {"hints": True}, "web"

    def log_in(candidate: connection.Candidate) -> None:
        raise AnsibleConnectionFailure(TOO_MANY_KEYS)

    module.log_in = log_in
    found = module.try_all(list(connection.candidates([], ["root"], [None], password=False)), 0)
    assert "IdentitiesOnly" in found["msg"]
