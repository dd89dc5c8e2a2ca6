"""Only administrators can log in; the host reverts a change that would lock the operator out."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from deployments import ROOT, Deployments, Run
from installation import Installation, run_python
from probes import wait_for
from testinfra.host import Host

KEY = ROOT / ".testhosts/id_ed25519"
OPTIONS = {
    "ControlPath": "none",
    "StrictHostKeyChecking": "no",
    "UserKnownHostsFile": "/dev/null",
    "LogLevel": "ERROR",
    "IdentitiesOnly": "yes",
    "BatchMode": "yes",
    # A busy machine may take seconds to greet.
    "ConnectTimeout": "20",
}
# Seconds after which packets count as dropped.
DROPPED = "3"
PORT = 2222
# The host must revert within this many seconds: 45 from the end of the change, and what both take.
BOUND = 75


@dataclass(frozen=True)
class Login:
    """SSH to the server as one user; every call opens a new connection."""

    address: str
    user: str
    key: Path = KEY
    port: int = PORT

    def words(self, command: str, **options: str) -> list[str]:
        """Return the command to type."""
        given = [word for name, value in (OPTIONS | options).items() for word in ("-o", f"{name}={value}")]
        who = ["-i", str(self.key), "-p", str(self.port), f"{self.user}@{self.address}"]
        return ["ssh", "-F", "none", *given, *who, command]

    def run(self, command: str = "true", **options: str) -> subprocess.CompletedProcess[str]:
        words = self.words(command, **options)
        return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240)

    def as_root(self, command: str) -> str:
        done = self.run(f"sudo -n sh -c {shlex.quote(command)}")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def succeeds(self) -> bool:
        return self.run(ConnectTimeout=DROPPED).returncode == 0

    def blocked(self) -> bool:
        """Return whether packets are dropped. A connection that is refused can also meet a restart of sshd."""
        error = self.run(ConnectTimeout=DROPPED).stderr
        return "connect to host" in error and "timed out" in error


def public(key: Path) -> str:
    return key.with_suffix(".pub").read_text().strip()


@pytest.fixture(scope="module")
def guest_key(folder: Path) -> Path:
    """The key of another administrator."""
    key = folder / "guest"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "guest", "-f", str(key)], check=True)
    return key


@pytest.fixture(scope="module")
def settings(guest_key: Path) -> dict[str, Any]:
    """The settings; the inventory still has root and port 22."""
    people = [{"name": "ops", "keys": [public(KEY)]}, {"name": "guest", "keys": [public(guest_key)]}]
    return {"app_administrators": people, "app_ssh_port": PORT}


# What an image of a provider may have in sshd_config.
PROVIDERS = {"debian12": "AllowGroups root", "debian13": "AllowUsers root"}


@pytest.fixture(scope="module")
def limited(host: Host) -> Iterator[None]:
    """sshd lets only root, or root's group, log in. The host's policy is kept for later."""
    host.check_output("rm -rf /root/policy && cp -a /etc/seedbed/access /root/policy")
    line = PROVIDERS[host.ansible.get_variables()["testhost_os"]]
    host.check_output(f"echo {line} >>/etc/ssh/sshd_config && sshd -t && systemctl reload ssh")
    yield
    host.check_output(f"sed -i '/^{line}$/d' /etc/ssh/sshd_config && systemctl reload ssh")


# As on a provider's image on which only root's password is known.
PASSWORD_ONLY = """
mv /root/.ssh/authorized_keys /root/.ssh/authorized_keys.away
echo 'root:{word}' | chpasswd
printf 'PermitRootLogin yes\\nPasswordAuthentication yes\\n' >/etc/ssh/sshd_config.d/50-cloud-init.conf
rm /etc/ssh/sshd_config.d/00-seedbed.conf
systemctl reload ssh
"""


@pytest.fixture(scope="module")
def password(host: Host, app: Installation, folder: Path, limited: None) -> Iterator[Path | None]:
    """The file with root's password on Debian 12, where nothing else is accepted; on Debian 13 root's key is."""
    if host.ansible.get_variables()["testhost_os"] != "debian12":
        yield None
        return
    file = folder / "password"
    file.write_text(uuid.uuid4().hex)
    host.check_output(PASSWORD_ONLY.format(word=file.read_text()))
    assert not Login(app.address, "root", port=22).succeeds()
    yield file
    host.check_output("rm /etc/ssh/sshd_config.d/50-cloud-init.conf && usermod --password '*' root")


# What the role bootstrap asks a host that is not Seedbed's yet; without its files, only the kernel's rules count.
CLOSING_RULES = """
{program}
ports = {{"http": 80, "https": 443}}
request = {{"application": "a", "services": [], "ports": ports, "firewall_rules": [], "ssh_port": 22}}
print(json.dumps([text for name, text in Host(request, Path("/nowhere")).firewall() if not name]))
"""


def closing_rules(host: Host) -> list[str]:
    """Return what bootstrap says of rules in the host's kernel that close the ports of the site."""
    program = (ROOT / "plugins/host/host_in_use.py").read_text().partition("if __name__")[0]
    return json.loads(run_python(host, CLOSING_RULES.format(program=program)))


@pytest.mark.parametrize("program", ["iptables", "ip6tables"])
def test_rule_that_closes_the_site_is_named_with_the_command_that_removes_it(host: Host, program: str) -> None:
    """As a provider's image has it. Here it comes after ufw's rules, and has no effect."""
    assert closing_rules(host) == []
    host.check_output(f"{program} -A INPUT -j REJECT")
    [text] = closing_rules(host)
    assert text.startswith(f"{program} closes the ports of the site before ufw can open them (-A INPUT -j REJECT")
    host.check_output(text.partition(" and type: ")[2])
    assert closing_rules(host) == []


# Applies the policy of before the tests again, without Ansible.
RESTORE = """
set -eu
rm -r /etc/seedbed/access
mv /root/policy /etc/seedbed/access
seedbed-access apply
seedbed-access confirm
"""


@pytest.fixture(scope="module")
def first(deployments: Deployments, settings: dict[str, Any], password: Path | None, folder: Path) -> Iterator[Run]:
    """The first run with administrators and another port. Afterwards root has access again, for the other tests.

    On Debian 13 of site.yml, which continues as an administrator. On Debian 12 with a password; there, a run without
    administrators gives root its login back, as an operator does it.
    """
    if password:
        # Not over a connection that root's key has opened before.
        given = settings | {"ansible_control_path_dir": str(folder)}
        option = f"--connection-password-file={password}"
        run = deployments.playbook("playbooks/provision.yml", option, tags="access", **given).wait().succeeded()
        Login(deployments.app.address, "ops").as_root("mv /root/.ssh/authorized_keys.away /root/.ssh/authorized_keys")
    else:
        run = deployments.playbook("site.yml", **settings).wait().succeeded()
    yield run
    if password:
        back = {"app_administrators": [], "app_ssh_port": 22, "connection_user": "ops", "connection_port": PORT}
        deployments.playbook("playbooks/provision.yml", tags="access", **back).wait().succeeded()
        assert Login(deployments.app.address, "root", port=22).run().returncode == 0
        assert "Permission denied" in Login(deployments.app.address, "ops", port=22).run().stderr
    else:
        Login(deployments.app.address, "ops").as_root(RESTORE)


@pytest.fixture(scope="module")
def ops(app: Installation, first: Run) -> Login:
    return Login(app.address, "ops")


def test_administrators_log_in_and_become_root(ops: Login, guest_key: Path) -> None:
    assert ops.as_root("id -u").strip() == "0"
    assert Login(ops.address, "guest", guest_key).as_root("id -u").strip() == "0"


def test_administrators_are_admitted_beside_those_of_the_provider(ops: Login) -> None:
    effective = [line.split() for line in ops.as_root("sshd -T").splitlines()]
    [names] = [
        {name for setting, *names in effective if setting == wanted for name in names}
        for wanted in ("allowusers", "allowgroups")
        if wanted in {setting for setting, *_ in effective}
    ]
    assert names == {"root", "ops", "guest"}


def test_other_keys_are_refused(ops: Login, guest_key: Path) -> None:
    assert "Permission denied" in Login(ops.address, "ops", guest_key).run().stderr


def test_root_is_refused(ops: Login) -> None:
    """With the key that root had before the first administrator logged in."""
    assert "Permission denied" in Login(ops.address, "root").run().stderr
    assert public(KEY).split()[1] in ops.as_root("cat /root/.ssh/authorized_keys")


@pytest.mark.parametrize("user", ["ops", "root"])
def test_passwords_are_not_accepted(ops: Login, user: str) -> None:
    """Not even root's, with which the first run has logged in on Debian 12."""
    login = Login(ops.address, user)
    refused = login.run(PubkeyAuthentication="no", PreferredAuthentications="password,keyboard-interactive")
    assert "Permission denied (publickey)." in refused.stderr


def test_old_port_is_closed(ops: Login) -> None:
    assert not Login(ops.address, "ops", port=22).succeeds()
    assert ops.as_root("ss --no-header -ltn 'sport = :22'") == ""


def test_effective_settings_of_sshd(ops: Login, variables: dict[str, Any]) -> None:
    effective = dict(line.split(" ", 1) for line in ops.as_root("sshd -T").splitlines() if " " in line)
    wanted = {"port": str(PORT), "permitrootlogin": "no", "passwordauthentication": "no", "x11forwarding": "no"}
    wanted |= {"kbdinteractiveauthentication": "no", "permitemptypasswords": "no", "pubkeyauthentication": "yes"}
    # Debian 12's sshd has no penalties.
    if variables["testhost_os"] == "debian13":
        wanted["persourcepenaltyexemptlist"] = ",".join(variables["app_trusted_addresses"])
    assert {name: effective[name] for name in wanted} == wanted


@pytest.mark.os("debian13")
def test_unchanged_inventory_works_for_the_administrator(
    deployments: Deployments, ops: Login, settings: dict[str, Any]
) -> None:
    again = deployments.playbook("site.yml", **settings).wait().succeeded()
    assert again.changed == 0, again.output


DENIED = "insert 1 deny from {operator}"
# The settings only allow; preflight, which refuses a rule that denies, is left out here.
WITHOUT_PREFLIGHT = """\
- name: Apply a policy that locks the operator out
  hosts: web
  gather_facts: false
  roles:
    - connection
  tasks:
    - name: Gather facts
      ansible.builtin.setup:
        gather_subset: ["!all", "!min", distribution]

    - name: Apply the policy
      ansible.builtin.import_role:
        name: access
"""


@pytest.mark.parametrize(
    "fault",
    [
        # A rule that denies the operator's address.
        pytest.param({"access_firewall_rules": [DENIED, "allow 80,443/tcp"]}, marks=pytest.mark.os("debian12")),
        # A port that a firewall on the way blocks.
        pytest.param(
            {
                "app_ssh_port": 2223,
                "access_firewall_rules": [f"{DENIED} to any port 2223 proto tcp", "allow 80,443/tcp"],
            },
            marks=pytest.mark.os("debian13"),
        ),
    ],
    ids=["firewall", "port"],
)
def test_host_reverts_a_change_that_locks_out(
    deployments: Deployments,
    ops: Login,
    settings: dict[str, Any],
    folder: Path,
    fault: dict[str, Any],
) -> None:
    operator = ops.run("echo ${SSH_CONNECTION%% *}").stdout.strip()
    fault = {
        name: [rule.format(operator=operator) for rule in value] if isinstance(value, list) else value
        for name, value in fault.items()
    }
    # Once with the time that operators have.
    time_given = {} if "app_ssh_port" in fault else {"access_revert_after": 10}
    # The present port, which neither the settings nor the inventory have any more.
    given = settings | fault | time_given | {"connection_port": PORT}
    playbook = folder / "without_preflight.yml"
    playbook.write_text(WITHOUT_PREFLIGHT)
    run = deployments.playbook(str(playbook), **given)
    wait_for(lambda: ops.blocked() or run.process.poll() is not None, 240, "the operator is locked out")
    assert run.process.poll() is None, run.output
    shut = time.monotonic()
    wait_for(ops.succeeds, BOUND, "the host reverts the change")
    assert time.monotonic() - shut <= BOUND
    run.wait().failed()
    assert "reverted this change, since no new connection confirmed it" in run.output
    # ufw cannot read rules that change meanwhile.
    wait_for(lambda: "ALLOW IN" in ops.run("sudo -n ufw status verbose").stdout, 60, "the firewall is active again")
    assert ops.as_root("sshd -T | grep ^port").split() == ["port", str(PORT)]


@pytest.mark.os("debian13")
def test_removed_administrator_is_refused(
    deployments: Deployments, ops: Login, settings: dict[str, Any], guest_key: Path
) -> None:
    """Keys, sudo and account are removed, and an open session ends."""
    guest = Login(ops.address, "guest", guest_key)
    session = subprocess.Popen(guest.words("sleep 600"), stdin=subprocess.DEVNULL)
    try:
        wait_for(lambda: "sleep 600" in ops.as_root("ps -o args= -u guest || true"), 60, "the session is open")
        fewer = settings | {"app_administrators": settings["app_administrators"][:1]}
        deployments.playbook("playbooks/provision.yml", tags="access", **fewer).wait().succeeded()
        assert session.wait(60) != 0
    finally:
        session.kill()
    assert "Permission denied" in guest.run().stderr
    account = ops.as_root("getent shadow guest").split(":")
    assert account[1].startswith("!")
    assert account[7] == "1"
    assert "guest" not in ops.as_root("cat /etc/sudoers.d/seedbed")


# The firewall's part of a change takes longer than the time to confirm it. The policy is restored afterwards.
SLOW = """
set -eu
folder=$(mktemp -d /root/policy.XXXX)
cp -a /etc/seedbed/access "$folder/policy"
restore() { rm -rf /etc/seedbed/access; cp -a "$folder/policy" /etc/seedbed/access; rm -rf "$folder"; }
trap restore EXIT
printf '#!/bin/sh\\nsleep 2\\nexec /usr/sbin/ufw "$@"\\n' >"$folder/ufw"
chmod +x "$folder/ufw"
sed -i 's/^revert_after=.*/revert_after=6/' /etc/seedbed/access/settings
echo 'allow 8123/tcp' >>/etc/seedbed/access/firewall
began=$(date +%s)
PATH=$folder:$PATH seedbed-access apply
[ $(($(date +%s) - began)) -gt 6 ]
seedbed-access confirm
ufw status | grep 8123
restore
trap - EXIT
seedbed-access apply
seedbed-access confirm
"""


@pytest.mark.os("debian13")
def test_slow_change_can_be_confirmed(ops: Login) -> None:
    """Its timer runs out meanwhile, and starts again when the change is complete.

    The policy on the host must be the one in force: a reverted change leaves its own, until the run of the test above.
    """
    assert "8123/tcp" in ops.as_root(SLOW)
    assert ops.as_root("seedbed-access check; systemctl list-units --failed --no-legend 'seedbed-access*'") == ""
