"""Find the way into a host: as which user and on which port; with a connection of its own where `fresh` is set.

    contact:
      administrators: [{name, keys}]   who may get in by key alone; tried first
      users: [root]                    tried after them ("": SSH's own choice); default: the connection's user
      ports: [2222, 22]                tried in this order; default: the connection's port
      fresh: true                      no connection that is open already
      patience: 60                     seconds to go on trying
      advice: false                    do not say what the user may try when nothing gets in

Returns user, port (null: SSH's own choice), become, administrator, password, server_port (the port of sshd that this
leads to), and user and port as they were `configured`. A connection that is not fresh stays open for Ansible.
"""

from __future__ import annotations

import getpass
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase

# Ahead of what is configured, since SSH takes the first value of an option.
FRESH = "-o ControlMaster=no -o ControlPath=none "
KEY_ONLY = "-o PasswordAuthentication=no -o KbdInteractiveAuthentication=no "
PAUSE = 1
# How often a server is tried that drops the connection, and how OpenSSH says that.
ROUNDS = 3
DROPPED = ("reset by", "closed by", "kex_exchange", "banner exchange")
# How it says that the agent has more keys than the server lets anybody try.
TOO_MANY_KEYS = "authentication failures"


@dataclass(frozen=True)
class Way:
    """One way to try. Administrators never use a password."""

    user: str
    port: int | None
    password: bool = False
    administrator: bool = False

    def __str__(self) -> str:
        whom = f"as {self.user}" if self.user else "as SSH's own choice of user"
        return f"{whom} on port {self.port or 22}{', by password' if self.password else ''}"


def key_of(line: str) -> str:
    """The key itself, without its type, its comment and options before it."""
    return next((word for word in line.split() if word.startswith("AAAA")), "")


def own_keys(private_key_file: str | None) -> set[str]:
    """The public keys whose private halves this machine can be taken to have."""
    files = [*Path("~/.ssh").expanduser().glob("*.pub")]
    if private_key_file:
        files.append(Path(f"{private_key_file}.pub").expanduser())
    lines = [file.read_text(errors="replace") for file in files if file.is_file()]
    try:
        agent = subprocess.run(["ssh-add", "-L"], capture_output=True, text=True, timeout=5)
        lines += agent.stdout.splitlines() if agent.returncode == 0 else []
    except (OSError, subprocess.TimeoutExpired):
        pass
    return {key_of(line) for line in lines} - {""}


def likely(administrators: Sequence[dict[str, Any]], configured: str, local: str, keys: set[str]) -> list[str]:
    """Which of the administrators this machine is, the likeliest first and two at most.

    A server takes failed logins for an attack, so names are not simply gone through.
    """
    names = [each["name"] for each in administrators]
    chosen = [name for name in (configured,) if name in names]
    chosen += [each["name"] for each in administrators if keys & {key_of(line) for line in each["keys"]}]
    chosen += [name for name in (local,) if name in names]
    return list(dict.fromkeys(chosen or names[:1]))[:2]


def ways(
    administrators: Sequence[str], users: Sequence[str], ports: Sequence[int | None], password: bool
) -> Iterator[Way]:
    """What to try, in this order: a port first, and there by key before by password."""
    for port in ports:
        yield from (Way(name, port, administrator=True) for name in administrators)
        for user in users:
            if user not in administrators:
                yield Way(user, port)
                if password:
                    yield Way(user, port, password=True)


def understood(way: Way, status: int, output: str, error: str) -> dict[str, Any]:
    """What is known of a way that leads in. Raises AnsibleConnectionFailure where it leads to nobody who can be root.

    An image of a provider may let root's key in only to say, as output, that one should come as somebody else.
    """
    # The last two lines: a shell may have greeted before.
    number, server_port = (line.strip() for line in ["", "", *output.splitlines()][-2:])
    if status != 0 or not number.isdecimal():
        said = " ".join((error.strip() or output).split()) or "it says nothing"
        raise AnsibleConnectionFailure(f"gets in, but is denied what root may: {said}")
    found = {"user": way.user or None, "port": way.port, "become": number != "0", "server_port": server_port}
    return found | {"administrator": way.administrator, "password": way.password}


def was_dropped(reason: str) -> bool:
    return any(word in reason for word in DROPPED)


class ActionModule(ActionBase):
    """Tries one way after the other."""

    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars) | {"changed": False}
        self.host = (task_vars or {}).get("inventory_hostname", "")
        args = self._task.args
        if self._connection.transport != "ssh":
            return result | {"configured": {"user": "", "port": None}} | self.look(Way("", None))
        self.before = {name: self._connection.get_option(name) for name in ("remote_user", "port", "password")}
        configured = self.before["remote_user"] or ""
        self.password = self.before["password"] or self._play_context.password
        self.ssh_args = self._connection.get_option("ssh_args") or ""
        self._connection.set_option("reconnection_retries", 0)
        administrators = args.get("administrators") or []
        keys = own_keys(self._connection.get_option("private_key_file")) if administrators else set()
        to_try = list(
            ways(
                likely(administrators, configured, getpass.getuser(), keys),
                args.get("users", [configured]),
                list(dict.fromkeys(int(port) if port else None for port in args.get("ports") or [self.before["port"]])),
                bool(self.password),
            )
        )
        found = self.try_all(to_try, time.monotonic() + int(args.get("patience", 0)))
        return result | {"configured": {"user": configured, "port": self.before["port"]}} | found

    def try_all(self, to_try: Sequence[Way], deadline: float) -> dict[str, Any]:
        rounds = 0
        refused: dict[str, str] = {}
        while True:
            rounds += 1
            closed: set[int | None] = set()
            for way in to_try:
                if way.port in closed:
                    continue
                try:
                    return self.look(way)
                except AnsibleConnectionFailure as error:
                    lines = str(error).strip().splitlines()
                    reason = next((line for line in lines if TOO_MANY_KEYS in line), lines[-1])
                    refused[str(way)] = reason
                    # The port itself is open, also where too many keys were offered.
                    if not any(word in str(error) for word in ("denied", "password", TOO_MANY_KEYS)):
                        closed.add(way.port)
            if time.monotonic() > deadline:
                # What was dropped is worth another try, and so is what was not tried for that; who is denied is not.
                to_try = [way for way in to_try if was_dropped(refused.get(str(way), DROPPED[0]))]
                if rounds >= ROUNDS or not any(was_dropped(reason) for reason in refused.values()):
                    # Not "unreachable": that cannot be rescued, and Ansible prints all plays to come below it.
                    return {"failed": True, "msg": self.advice(refused)}
            time.sleep(PAUSE)

    def look(self, way: Way) -> dict[str, Any]:
        """Go in and see who one is there. Raises AnsibleConnectionFailure where that way is shut."""
        if self._connection.transport == "ssh":
            # Where there is a password, an open connection says nothing of keys: it may have begun with that password.
            fresh = self._task.args.get("fresh") or (self.password and not way.password)
            ahead = (FRESH if fresh else "") + ("" if way.password else KEY_ONLY)
            self._connection.set_option("ssh_args", ahead + self.ssh_args)
            self._connection.set_option("remote_user", way.user or None)
            self._connection.set_option("port", way.port)
            self._connection.set_option("password", self.password if way.password else None)
            self._play_context.password = self.password if way.password else ""
        script = 'id -u; echo "${SSH_CONNECTION##* }"'
        if way.administrator:
            script += "; [ $(id -u) = 0 ] || sudo -n true"
        try:
            status, output, error = self._connection.exec_command(f"/bin/sh -c {shlex.quote(script)}", sudoable=False)
        except AnsibleError as problem:
            # Where there is a password, Ansible has another error for a server whose key SSH does not know.
            if "Host Key checking is enabled" not in str(problem):
                raise
            raise AnsibleConnectionFailure("Host key verification failed.") from None
        return understood(way, status, output.decode(errors="replace"), error.decode(errors="replace"))

    def advice(self, refused: dict[str, str]) -> str:
        tried = "\n".join(f"  {way}: {reason}" for way, reason in refused.items())
        if not self._task.args.get("advice", True):
            return tried
        hints = ""
        if "Host key verification failed" in tried:
            hints = (
                "The server shows another key than before, or one that this machine has not seen. If it was installed\n"
                "anew, forget the former key: ssh-keygen -R ADDRESS (at another port than 22: -R '[ADDRESS]:PORT').\n"
                "Then log in once by ssh, compare the key with the provider's console, and say yes.\n"
            )
        if "Connection refused" in tried:
            hints += (
                "Who failed to log in too often is refused, for an hour at first. From another address, or on the\n"
                "provider's console: fail2ban-client unban --all. Who is in app_trusted_addresses is never banned.\n"
            )
        if TOO_MANY_KEYS in tried:
            hints += (
                "The server hangs up after too many keys: name the right one in ~/.ssh/config, for this host, by\n"
                "IdentityFile and IdentitiesOnly yes.\n"
            )
        hints += (
            "Is the server up, and ansible_host in the inventory its address? Is your key loaded (ssh-add -l)?\n"
            "If the server knows you by another name, say so: -e connection_user=NAME; a password for SSH: -k.\n"
            "If sshd listens elsewhere, for instance where app_ssh_port said before, say so once: -e connection_port=PORT."
        )
        return f"No way into {self.host}:\n{tried}\n{hints}"
