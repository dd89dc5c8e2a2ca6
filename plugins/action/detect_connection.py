"""Detect a user and a port with which SSH logs in to a host and becomes root."""

from __future__ import annotations

import getpass
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase

sys.path.append(str(Path(__file__).parents[1]))

from plugin_utils.documented import documented_arguments

DOCUMENTATION = r"""
module: detect_connection
short_description: Detect a user and a port with which SSH logs in to a host and becomes root
description:
  - Tries each candidate (user, port, key or password) until one logs in and is root or can use sudo.
  - Leaves the connection that works open for the following tasks, unless O(fresh) is set.
  - Changes nothing on the host. Supports check mode.
options:
  administrators:
    description: Administrators of the host, tried first and by key only. At most two of them are tried.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {type: str, required: true, description: The user's name.}
      keys: {type: list, elements: str, required: true, description: Public SSH keys.}
  users:
    description:
      - Users to try after the administrators; an empty string is the user of SSH's own configuration.
      - Default is the connection's user.
    type: list
    elements: str
  ports:
    description:
      - Ports to try, in this order; null is the port of SSH's own configuration.
      - Default is the connection's port.
    type: list
    elements: raw
  fresh:
    description: Open a new connection instead of using one that is already open.
    type: bool
    default: false
  timeout:
    description: Seconds to keep trying.
    type: int
    default: 0
  hints:
    description: Add to the error what the user can do.
    type: bool
    default: true
author: Seedbed
"""

EXAMPLES = r"""
- name: Detect a working SSH user and port
  detect_connection:
    administrators: [{name: alice, keys: ["ssh-ed25519 AAAA... alice@laptop"]}]
    ports: [2222, 22]
"""

RETURN = r"""
user: {description: The user; null is SSH's own choice., type: str}
port: {description: The port; null is SSH's own choice., type: int}
become: {description: Whether the user needs sudo., type: bool}
administrator: {description: Whether the user is one of O(administrators)., type: bool}
password: {description: Whether the login needed a password., type: bool}
server_port: {description: The port of sshd on the host; differs from RV(port) behind port forwarding., type: str}
configured: {description: User and port as the inventory has them., type: dict}
"""

# Prepended to ssh_args, since SSH uses the first value of an option.
FRESH = "-o ControlMaster=no -o ControlPath=none "
KEY_ONLY = "-o PasswordAuthentication=no -o KbdInteractiveAuthentication=no "
PAUSE = 1
# A server that drops connections is tried this many times. The words are OpenSSH's.
ROUNDS = 3
DROPPED = ("reset by", "closed by", "kex_exchange", "banner exchange")
# OpenSSH's words if the agent offers more keys than sshd's MaxAuthTries.
TOO_MANY_KEYS = "authentication failures"

UNKNOWN_HOST_KEY = """\
The server's host key is unknown to this machine, or differs from the known one. If the server was reinstalled,
remove the old key: ssh-keygen -R ADDRESS (for a port other than 22: ssh-keygen -R '[ADDRESS]:PORT').
Then log in once with ssh, compare the key with the one in the provider's console, and accept it.
"""
REFUSED = """\
fail2ban may have banned your address after failed logins, for an hour at first. Unban it from another address or in
the provider's console: fail2ban-client unban --all. Addresses in app_trusted_addresses are never banned.
"""
MANY_KEYS = """\
The server rejects clients that offer too many keys: name the right key for this host in ~/.ssh/config, with
IdentityFile and IdentitiesOnly yes.
"""
CHECKLIST = """\
Is the server running, and is ansible_host in the inventory its address? Is your key loaded (ssh-add -l)?
If the server knows you by another name: -e connection_user=NAME. For an SSH password: -k.
If sshd listens on another port, such as the former app_ssh_port: -e connection_port=PORT."""


@dataclass(frozen=True)
class Candidate:
    """One login to try. Administrators never use a password."""

    user: str
    port: int | None
    password: bool = False
    administrator: bool = False

    def __str__(self) -> str:
        user = f"as {self.user}" if self.user else "as the user of SSH's configuration"
        return f"{user} on port {self.port or 22}{', by password' if self.password else ''}"


def key_of(line: str) -> str:
    """Return the key of a public key line, without type, comment and options."""
    return next((word for word in line.split() if word.startswith("AAAA")), "")


def agent_keys() -> list[str]:
    """Return the public key lines of ssh-agent."""
    try:
        agent = subprocess.run(["ssh-add", "-L"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return agent.stdout.splitlines() if agent.returncode == 0 else []


def own_keys(private_key_file: str | None) -> set[str]:
    """Return the public keys whose private keys this machine probably has."""
    folder = Path("~/.ssh").expanduser()
    private = [*folder.glob("id_*"), *([Path(private_key_file).expanduser()] if private_key_file else [])]
    private = [file for file in private if file.suffix != ".pub"]
    public = dict.fromkeys([*folder.glob("*.pub"), *(file.with_name(f"{file.name}.pub") for file in private)])
    lines = [file.read_text(errors="replace") for file in public if file.is_file()]
    # A CI job has the private key only.
    lines += [public_key(file) for file in private if not file.with_name(f"{file.name}.pub").is_file()]
    return {key_of(line) for line in lines + agent_keys()} - {""}


def public_key(file: Path) -> str:
    """Return the public key line of a private key file; "" if the file needs a passphrase or is no key."""
    try:
        command = ["ssh-keygen", "-y", "-P", "", "-f", str(file)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def guess_administrators(
    administrators: Sequence[dict[str, Any]], configured: str, local: str, keys: set[str]
) -> list[str]:
    """Return the names of the administrators that this user may be, the most likely first, at most two.

    Not all of them: a server takes failed logins for an attack.
    """
    names = [each["name"] for each in administrators]
    chosen = [name for name in (configured,) if name in names]
    chosen += [each["name"] for each in administrators if keys & {key_of(line) for line in each["keys"]}]
    chosen += [name for name in (local,) if name in names]
    return list(dict.fromkeys(chosen or names[:1]))[:2]


def candidates(
    administrators: Sequence[str], users: Sequence[str], ports: Sequence[int | None], password: bool
) -> Iterator[Candidate]:
    """Return the candidates in the order to try: port by port, administrators first, keys before passwords."""
    for port in ports:
        yield from (Candidate(name, port, administrator=True) for name in administrators)
        for user in users:
            if user not in administrators:
                yield Candidate(user, port)
                if password:
                    yield Candidate(user, port, password=True)


def parse_login(candidate: Candidate, status: int, output: str, error: str) -> dict[str, Any]:
    """Return what the login of a candidate shows. Raises AnsibleConnectionFailure if it is no way to become root.

    Images of some providers accept root's key only to print that one should log in as another user.
    """
    # The last two lines: a shell may print a greeting before them.
    uid, server_port = (line.strip() for line in ["", "", *output.splitlines()][-2:])
    if status != 0 or not uid.isdecimal():
        message = " ".join((error.strip() or output).split()) or "no output"
        raise AnsibleConnectionFailure(f"logged in, but cannot become root: {message}")
    return {
        "user": candidate.user or None,
        "port": candidate.port,
        "become": uid != "0",
        "server_port": server_port,
        "administrator": candidate.administrator,
        "password": candidate.password,
    }


def was_dropped(reason: str) -> bool:
    return any(word in reason for word in DROPPED)


def reason_of(error: AnsibleConnectionFailure) -> str:
    """Return the line of SSH's error that says why."""
    lines = str(error).strip().splitlines()
    return next((line for line in lines if TOO_MANY_KEYS in line), lines[-1])


def port_is_open(error: AnsibleConnectionFailure) -> bool:
    """Return whether sshd answered, so that other users are worth a try on this port."""
    return any(word in str(error) for word in ("denied", "password", TOO_MANY_KEYS))


class ActionModule(ActionBase):
    """Try one candidate after the other."""

    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars) | {"changed": False}
        self.host = (task_vars or {}).get("inventory_hostname", "")
        self.args = documented_arguments(self, DOCUMENTATION)
        if self._connection.transport != "ssh":
            return result | {"configured": {"user": "", "port": None}} | self.log_in(Candidate("", None))
        user, port = self._connection.get_option("remote_user") or "", self._connection.get_option("port")
        self.password = self._connection.get_option("password") or self._play_context.password
        self.ssh_args = self._connection.get_option("ssh_args") or ""
        self._connection.set_option("reconnection_retries", 0)
        to_try = self.candidates(user, port)
        found = self.try_all(to_try, time.monotonic() + self.args["timeout"])
        return result | {"configured": {"user": user, "port": port}} | found

    def candidates(self, user: str, port: int | None) -> list[Candidate]:
        """Return the candidates of this task; `user` and `port` are the inventory's."""
        administrators = self.args["administrators"]
        keys = own_keys(self._connection.get_option("private_key_file")) if administrators else set()
        names = guess_administrators(administrators, user, getpass.getuser(), keys)
        users = [user] if self.args["users"] is None else self.args["users"]
        ports = dict.fromkeys(int(each) if each else None for each in self.args["ports"] or [port])
        return list(candidates(names, users, list(ports), bool(self.password)))

    def try_all(self, to_try: Sequence[Candidate], deadline: float) -> dict[str, Any]:
        """Return the first login that works, or a failure with the reason of each."""
        rounds = 0
        reasons: dict[str, str] = {}
        while True:
            rounds += 1
            closed: set[int | None] = set()
            for candidate in to_try:
                if candidate.port in closed:
                    continue
                try:
                    return self.log_in(candidate)
                except AnsibleConnectionFailure as error:
                    reasons[str(candidate)] = reason_of(error)
                    if not port_is_open(error):
                        closed.add(candidate.port)
            if time.monotonic() > deadline:
                # Retry dropped connections and the candidates that were skipped because of them; a denial is final.
                to_try = [each for each in to_try if was_dropped(reasons.get(str(each), DROPPED[0]))]
                if rounds >= ROUNDS or not any(map(was_dropped, reasons.values())):
                    # Not "unreachable": a rescue block cannot handle that, and Ansible prints all following plays.
                    return {"failed": True, "msg": self.failure(reasons)}
            time.sleep(PAUSE)

    def log_in(self, candidate: Candidate) -> dict[str, Any]:
        """Log in and see whether the user can become root. Raises AnsibleConnectionFailure."""
        if self._connection.transport == "ssh":
            self.select(candidate)
        script = 'id -u; echo "${SSH_CONNECTION##* }"'
        if candidate.administrator:
            script += "; [ $(id -u) = 0 ] || sudo -n true"
        try:
            status, output, error = self._connection.exec_command(f"/bin/sh -c {shlex.quote(script)}", sudoable=False)
        except AnsibleError as problem:
            # With a password, Ansible raises another error for an unknown host key.
            if "Host Key checking is enabled" not in str(problem):
                raise
            raise AnsibleConnectionFailure("Host key verification failed.") from None
        return parse_login(candidate, status, output.decode(errors="replace"), error.decode(errors="replace"))

    def select(self, candidate: Candidate) -> None:
        """Have the connection use the candidate's user, port and credentials."""
        password = self.password if candidate.password else None
        # With a password, an open connection proves nothing about keys: it may have been opened with the password.
        fresh = self.args["fresh"] or (self.password and not candidate.password)
        options = (FRESH if fresh else "") + ("" if candidate.password else KEY_ONLY)
        self._connection.set_option("ssh_args", options + self.ssh_args)
        self._connection.set_option("remote_user", candidate.user or None)
        self._connection.set_option("port", candidate.port)
        self._connection.set_option("password", password)
        self._play_context.password = password or ""

    def failure(self, reasons: dict[str, str]) -> str:
        """Return the error message: each candidate with its reason, and hints."""
        tried = "\n".join(f"  {candidate}: {reason}" for candidate, reason in reasons.items())
        if not self.args["hints"]:
            return tried
        hints = UNKNOWN_HOST_KEY if "Host key verification failed" in tried else ""
        hints += REFUSED if "Connection refused" in tried else ""
        hints += MANY_KEYS if TOO_MANY_KEYS in tried else ""
        return f"Cannot log in to {self.host}:\n{tried}\n{hints}{CHECKLIST}"
