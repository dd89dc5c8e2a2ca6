"""Administrators get in and nobody else does; a change that would shut the operator out is taken back by the host."""

from __future__ import annotations

import shlex
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from installation import Installation
from probes import wait_for
from rollouts import ROOT, Rollouts, Run
from testinfra.host import Host

KEY = ROOT / ".testhosts/id_ed25519"
OPTIONS = {
    "ControlPath": "none",
    "StrictHostKeyChecking": "no",
    "UserKnownHostsFile": "/dev/null",
    "LogLevel": "ERROR",
    "IdentitiesOnly": "yes",
    "BatchMode": "yes",
    "ConnectTimeout": "3",
}
PORT = 2222
# The host has to give access back within this many seconds.
BOUND = 60


@dataclass(frozen=True)
class Door:
    """The server's SSH as one person stands before it; every try is a connection of its own."""

    address: str
    user: str
    key: Path = KEY
    port: int = PORT

    def words(self, command: str, **options: str) -> list[str]:
        """What one would type."""
        given = [word for name, value in (OPTIONS | options).items() for word in ("-o", f"{name}={value}")]
        who = ["-i", str(self.key), "-p", str(self.port), f"{self.user}@{self.address}"]
        return ["ssh", "-F", "none", *given, *who, command]

    def knock(self, command: str = "true", **options: str) -> subprocess.CompletedProcess[str]:
        words = self.words(command, **options)
        return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)

    def as_root(self, command: str) -> str:
        done = self.knock(f"sudo -n sh -c {shlex.quote(command)}")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def lets_in(self) -> bool:
        return self.knock().returncode == 0


def public(key: Path) -> str:
    return key.with_suffix(".pub").read_text().strip()


@pytest.fixture(scope="module")
def guest_key(folder: Path) -> Path:
    """Somebody else's key."""
    key = folder / "guest"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "guest", "-f", str(key)], check=True)
    return key


@pytest.fixture(scope="module")
def settings(guest_key: Path) -> dict[str, Any]:
    """What is in group_vars/all/app.yml; the inventory goes on saying root and port 22."""
    people = [{"name": "ops", "keys": [public(KEY)]}, {"name": "guest", "keys": [public(guest_key)]}]
    return {"app_administrators": people, "app_ssh_port": PORT}


# What a provider's image does where nothing but root's password is known.
PASSWORD_ONLY = """
mv /root/.ssh/authorized_keys /root/.ssh/authorized_keys.away
echo 'root:{word}' | chpasswd
printf 'PermitRootLogin yes\\nPasswordAuthentication yes\\n' >/etc/ssh/sshd_config.d/50-cloud-init.conf
rm /etc/ssh/sshd_config.d/00-seedbed.conf
systemctl reload ssh
"""


@pytest.fixture(scope="module")
def password(host: Host, app: Installation, folder: Path) -> Iterator[Path | None]:
    """The file with root's password, on Debian 12, where it is the one way in; on Debian 13 root's key is."""
    if host.ansible.get_variables()["testhost_os"] != "debian12":
        yield None
        return
    file = folder / "password"
    file.write_text(uuid.uuid4().hex)
    host.check_output(PASSWORD_ONLY.format(word=file.read_text()))
    assert not Door(app.address, "root", port=22).lets_in()
    yield file
    host.check_output("rm /etc/ssh/sshd_config.d/50-cloud-init.conf && usermod --password '*' root")


@pytest.fixture(scope="module")
def first(rollouts: Rollouts, settings: dict[str, Any], password: Path | None, folder: Path) -> Iterator[Run]:
    """The first run with administrators and another port; in the end, root has the server back for the other tests."""
    # With a password, no connection that root's key has opened already.
    options = [f"--connection-password-file={password}"] if password else []
    given = settings | ({"ansible_control_path_dir": str(folder)} if password else {})
    run = rollouts.playbook("playbooks/provision.yml", *options, tags="access", **given).wait().succeeded()
    if password:
        Door(rollouts.app.address, "ops").as_root("mv /root/.ssh/authorized_keys.away /root/.ssh/authorized_keys")
    yield run
    back = {"app_administrators": [], "app_ssh_port": 22, "connection_user": "ops", "connection_port": PORT}
    rollouts.playbook("playbooks/provision.yml", tags="access", **back).wait().succeeded()


@pytest.fixture(scope="module")
def ops(app: Installation, first: Run) -> Door:
    return Door(app.address, "ops")


def test_administrators_get_in_and_become_root(ops: Door, guest_key: Path) -> None:
    assert ops.as_root("id -u").strip() == "0"
    assert Door(ops.address, "guest", guest_key).as_root("id -u").strip() == "0"


def test_another_key_does_not_get_in(ops: Door, guest_key: Path) -> None:
    assert "Permission denied" in Door(ops.address, "ops", guest_key).knock().stderr


def test_root_is_shut_out(ops: Door) -> None:
    """By the very key that root had before the first administrator got in."""
    assert "Permission denied" in Door(ops.address, "root").knock().stderr
    assert public(KEY).split()[1] in ops.as_root("cat /root/.ssh/authorized_keys")


@pytest.mark.parametrize("user", ["ops", "root"])
def test_no_password_is_asked_for(ops: Door, user: str) -> None:
    """Not even root's, by which the first run has come on Debian 12."""
    door = Door(ops.address, user)
    refused = door.knock(PubkeyAuthentication="no", PreferredAuthentications="password,keyboard-interactive")
    assert "Permission denied (publickey)." in refused.stderr


def test_the_old_port_is_closed(ops: Door) -> None:
    assert not Door(ops.address, "ops", port=22).lets_in()
    assert ops.as_root("ss --no-header -ltn 'sport = :22'") == ""


def test_what_sshd_makes_of_all_its_files(ops: Door, variables: dict[str, Any]) -> None:
    effective = dict(line.split(" ", 1) for line in ops.as_root("sshd -T").splitlines() if " " in line)
    wanted = {"port": str(PORT), "permitrootlogin": "no", "passwordauthentication": "no", "x11forwarding": "no"}
    wanted |= {"kbdinteractiveauthentication": "no", "permitemptypasswords": "no", "pubkeyauthentication": "yes"}
    # Debian 12's cannot ban.
    if variables["testhost_os"] == "debian13":
        wanted["persourcepenaltyexemptlist"] = ",".join(variables["app_trusted_addresses"])
    assert {name: effective[name] for name in wanted} == wanted


def test_the_unchanged_inventory_works_for_the_administrator(
    rollouts: Rollouts, ops: Door, settings: dict[str, Any]
) -> None:
    again = rollouts.playbook("site.yml", **settings).wait().succeeded()
    assert again.changed == 0, again.output


DENIED = "insert 1 deny from {operator}"


@pytest.mark.parametrize(
    "fault",
    [
        # A rule that denies the operator's machine.
        {"access_firewall_rules": [DENIED, "allow 80,443/tcp"]},
        # A port that something on the way does not let through.
        {"app_ssh_port": 2223, "access_firewall_rules": [f"{DENIED} to any port 2223 proto tcp", "allow 80,443/tcp"]},
    ],
    ids=["firewall", "port"],
)
def test_the_host_gives_access_back(
    rollouts: Rollouts, ops: Door, settings: dict[str, Any], variables: dict[str, Any], fault: dict[str, Any]
) -> None:
    operator = ops.knock("echo ${SSH_CONNECTION%% *}").stdout.strip()
    fault = {
        name: [rule.format(operator=operator) for rule in value] if isinstance(value, list) else value
        for name, value in fault.items()
    }
    # Once with the time that operators get.
    in_full = "app_ssh_port" in fault and variables["testhost_os"] == "debian13"
    time_given = {} if in_full else {"access_revert_after": 10}
    # The port from which a change begins, since neither the settings nor the inventory know it any more.
    given = settings | fault | time_given | {"connection_port": PORT}
    run = rollouts.playbook("playbooks/provision.yml", tags="access", **given)
    wait_for(lambda: not ops.lets_in(), 240, "the operator is shut out")
    shut = time.monotonic()
    wait_for(ops.lets_in, BOUND, "the host gives access back")
    assert time.monotonic() - shut <= BOUND
    run.wait().failed()
    assert "reverted this change, since no new connection confirmed it" in run.output
    assert "ALLOW IN" in ops.as_root("ufw status verbose")
    assert ops.as_root("sshd -T | grep ^port").split() == ["port", str(PORT)]


def test_who_is_removed_is_shut_out(rollouts: Rollouts, ops: Door, settings: dict[str, Any], guest_key: Path) -> None:
    """Keys, sudo and account go, and a session that is open ends."""
    guest = Door(ops.address, "guest", guest_key)
    session = subprocess.Popen(guest.words("sleep 600"), stdin=subprocess.DEVNULL)
    try:
        wait_for(lambda: "sleep 600" in ops.as_root("ps -o args= -u guest || true"), 10, "the session is open")
        fewer = settings | {"app_administrators": settings["app_administrators"][:1]}
        rollouts.playbook("playbooks/provision.yml", tags="access", **fewer).wait().succeeded()
        assert session.wait(10) != 0
    finally:
        session.kill()
    assert "Permission denied" in guest.knock().stderr
    account = ops.as_root("getent shadow guest").split(":")
    assert account[1].startswith("!")
    assert account[7] == "1"
    assert "guest" not in ops.as_root("cat /etc/sudoers.d/seedbed")
