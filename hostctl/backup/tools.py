"""Call pgBackRest, rclone and restic. None of them is trusted by its exit status alone."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..settings import ReleaseError, tail
from .configuration import Configuration

ACCOUNT = "postgres"
# A target that does not answer must not hold a run for longer.
RCLONE_OPTIONS = (
    "--contimeout=10s", "--timeout=60s", "--retries=2", "--low-level-retries=3", "--transfers=2", "--checkers=4",
    "--skip-links", "--config=/dev/null", "--stats=0", "--log-level=NOTICE", "--use-mmap",
)  # fmt: skip
# Of a program whose parent was killed before setpriv asked for the signal: it has another parent.
WITH_PARENT = '[ "$PPID" = "$0" ] && exec "$@"'
CA_FILE = Path("/etc/ssl/certs/ca-certificates.crt")

# Lines of `pgbackrest verify` that name a file.
DAMAGED = re.compile(
    r"^P\d+ +\w+: (?:\[\d+\]: )?((?:invalid|file missing|missing|mismatched|unable)\b.*)$", re.MULTILINE
)
# What programs write before their messages.
STAMP = re.compile(r"^\d{4}[/-]\d\d[/-]\d\d \d\d:\d\d:\d\d(\.\d+)? *(?:P\d+)? *", re.MULTILINE)

WRITE_SECRETS = (
    "write the secrets that they were made with, which are at the end of the recovery kit, into "
    "inventory/.secrets/ENV/, one file each"
)
SECRETS_REMEDY = f"{WRITE_SECRETS}, then run site.yml -e secrets_replace=true"


def move_away(repository: Path) -> str:
    """Return the commands, for root on the server, that empty a repository and keep what it had.

    The folder itself stays: a running PostgreSQL cannot write to another one of its name (ReadWritePaths of systemd).
    """
    return f"mkdir {repository}.former && mv {repository}/* {repository}.former/"


class DamagedError(ReleaseError):
    """Files of a repository are damaged or lost: `files` are the lines of `pgbackrest verify` that name them."""

    def __init__(self, message: str, files: list[str]) -> None:
        super().__init__(message)
        self.files = files


class ToolError(ReleaseError):
    """A program failed; `status` is its exit status, None when it was killed after its time limit.

    `output` is what it has printed.
    """

    def __init__(self, message: str, status: int | None, output: str = "") -> None:
        super().__init__(message, output=output)
        self.status = status


def call(
    command: list[str], *, seconds: float, user: str = "", environment: Mapping[str, str] | None = None,
    stdin: str = "",
) -> str:  # fmt: skip
    """Run a program and return what it prints. Raises ToolError with the end of its errors, also after `seconds`."""
    variables = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root"} | dict(
        environment or {}
    )
    account = {"user": user, "group": user, "extra_groups": []} if user and os.geteuid() == 0 else {}
    name = Path(command[0]).name
    if not shutil.which(command[0], path=variables["PATH"]):
        raise ToolError(f"{name} is not on this host: run playbooks/provision.yml, which installs it.", None)
    try:
        done = subprocess.run(
            tied(command), input=stdin, env=variables, cwd="/", capture_output=True, text=True, errors="replace",
            check=False, timeout=seconds, umask=0o027, **account,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ToolError(f"{name} did not end within {seconds:.0f} s, and was stopped.", None) from None
    if done.returncode != 0:
        text = STAMP.sub("", tail(done.stderr or done.stdout, 6))
        raise ToolError(f"{name} failed: {text}", done.returncode, done.stdout)
    return done.stdout


def tied(command: Sequence[str], with_signal: str = "TERM") -> list[str]:
    """Return a command that ends with this program, also when that is killed: the next run must not meet it.

    It ends by `with_signal`, or does not begin. This process itself must start it.
    """
    return ["setpriv", "--pdeathsig", with_signal, "--", "sh", "-c", WITH_PARENT, str(os.getpid()), *command]


def wait_ended(command: re.Pattern[str], seconds: float) -> None:
    """Wait until no process has such a command line. Raises ReleaseError after `seconds`."""
    deadline = time.monotonic() + seconds
    while found := [line for line in command_lines() if command.search(line)]:
        if time.monotonic() > deadline:
            raise ReleaseError(f"This is still running: {found[0]}")
        time.sleep(0.2)


def command_lines() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_text(errors="replace").replace("\0", " ")
        except OSError:  # It has ended.
            continue


# --- pgBackRest ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Backup:
    """A base backup. Times are seconds since 1970; LSNs are positions in the write-ahead log."""

    label: str
    kind: str
    started: int
    stopped: int
    lsn_stop: int
    wal_start: str
    size: int
    needs: list[str]
    failed: bool


class Repository:
    """A repository of pgBackRest: this host's, or a copy of it."""

    def __init__(self, configuration: Configuration, path: Path | None = None) -> None:
        self.stanza = configuration.name
        self.path = path or configuration.repository

    def call(self, command: str, *options: str, seconds: float) -> str:
        words = ["pgbackrest", f"--stanza={self.stanza}", f"--repo1-path={self.path}", *options, command]
        return call(words, seconds=seconds, user=ACCOUNT)

    def info(self) -> dict[str, Any]:
        """Return the stanza's part of `info`.

        Raises ReleaseError with the repository's problem, such as a wrong key.
        """
        # A message in it may contain line breaks, which JSON forbids.
        found = json.loads(self.call("info", "--output=json", "--log-level-console=off", seconds=60), strict=False)
        stanza = next((one for one in found if one["name"] == self.stanza), None)
        if stanza is None:
            return {"backup": [], "db": [], "archive": []}
        status = stanza["status"]
        # 1 and 3: not created yet; 2: no backup yet.
        if status["code"] in (1, 3):
            return {"backup": [], "db": [], "archive": []}
        # 6: not all of its repositories can be read, which says less than what they say themselves.
        for found in [*(repository["status"] for repository in stanza.get("repo", [])), status]:
            if found["code"] not in (0, 2):
                raise ReleaseError(
                    f"The backups in {self.path} cannot be read: {found['message']}. If they were made with another "
                    f"passphrase (backup_key): {SECRETS_REMEDY}. If they are not needed: {move_away(self.path)} (as "
                    "root on this server), and, if their copies are at the target, set another folder in "
                    "app_backup_target; then run site.yml. To restore other backups, which the target has, move them "
                    "in the same way, but keep the folder."
                )
        return stanza

    def verify(self, seconds: float) -> None:
        """Read every file, and compare its checksum. Raises DamagedError with what is damaged.

        Segments that are missing in between are no error to pgBackRest: see ship.holes.
        """
        options = ["--output=text", "--verbose", "--log-level-console=detail", "--no-log-timestamp"]
        output = self.call("verify", *options, seconds=seconds)
        # It ends with 0 in any case.
        if re.search(r"^status: ok$", output, re.MULTILINE):
            return
        damaged = list(dict.fromkeys(DAMAGED.findall(output)))
        shown = "; ".join(damaged[:3]) or tail(output, 6)
        message = f"Files of the backups in {self.path} are damaged ({len(damaged) or 'unknown'}): {shown}"
        raise DamagedError(message, damaged)

    def backups(self, info: dict[str, Any] | None = None) -> list[Backup]:
        """Return the base backups, oldest first; those of an earlier version of PostgreSQL are left out."""
        info = info or self.info()
        newest = max((one["id"] for one in info["db"]), default=0)
        return [
            Backup(
                one["label"], one["type"], one["timestamp"]["start"], one["timestamp"]["stop"],
                lsn_number(one["lsn"]["stop"]) if one.get("lsn") else 0, one["archive"]["start"],
                one["info"]["size"], one.get("reference") or [], bool(one.get("error")),
            )
            for one in info["backup"] if one["database"]["id"] == newest
        ]  # fmt: skip

    def system_id(self, info: dict[str, Any] | None = None) -> str:
        """Return the identifier of the database cluster that the backups are of, or ""."""
        databases = (info or self.info())["db"]
        return str(max(databases, key=lambda one: one["id"])["system-id"]) if databases else ""

    def system_ids(self) -> list[str]:
        """Return the identifiers of all clusters that the backups are of: also those before an upgrade."""
        return [str(one["system-id"]) for one in self.info()["db"]]

    def version(self, info: dict[str, Any] | None = None) -> str:
        databases = (info or self.info())["db"]
        return str(max(databases, key=lambda one: one["id"])["version"]) if databases else ""


def lsn_number(text: str) -> int:
    """Return a position in the write-ahead log, such as 0/3000148, as a number."""
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


# --- rclone --------------------------------------------------------------------------------------------------------


class Target:
    """The place off this host."""

    def __init__(self, configuration: Configuration) -> None:
        self.root = configuration.remote
        self.name = configuration.target
        self.variables = configuration.environment()
        self.credentials = configuration.config / configuration.name / "backup.env"

    def command(self, command: str, *words: str) -> str:
        """Return a call of rclone, with the credentials of the backups, for a person to type."""
        return f"(set -a; . {self.credentials}; rclone {command} --config=/dev/null {shlex.join(words)})"

    def call(self, command: str, *words: str, seconds: float, stdin: str = "") -> str:
        options = [*RCLONE_OPTIONS, *([f"--ca-cert={CA_FILE}"] if CA_FILE.exists() else [])]
        return call(
            ["rclone", command, *words, *options], seconds=seconds, environment=self.variables, stdin=stdin
        )  # fmt: skip

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def read(self, name: str, seconds: float = 60) -> str | None:
        """Return the text of a file, or None when there is none. Raises ToolError when the target does not answer."""
        try:
            text = self.call("cat", self.path(name), seconds=seconds)
            # Of S3, rclone prints nothing for a file that is not there, as for an empty one, and ends well.
            return text if text or self.call("lsf", self.path(name), seconds=seconds).strip() else None
        except ToolError as error:
            if error.status in (3, 4) or "object not found" in str(error) or "directory not found" in str(error):
                return None
            raise

    def write(self, name: str, text: str) -> None:
        """Write a small file, and read it back. Raises ReleaseError when it is not there as written."""
        self.call("rcat", self.path(name), seconds=60, stdin=text)
        if self.read(name) != text:
            raise ReleaseError(f"{self.name} does not return {name} as it was written.")

    def copy(self, folder: Path, name: str, files: Iterable[str], seconds: float) -> None:
        """Copy files of a folder to a folder of the target, and read every byte of them back."""
        listing = "".join(f"{file}\n" for file in files)
        if not listing:
            return
        source, place = str(folder), self.path(name)
        given = ["--files-from-raw=-", "--no-traverse"]
        self.call("copy", source, place, *given, "--ignore-times", seconds=seconds, stdin=listing)
        try:
            self.call("check", source, place, *given, "--download", "--one-way", seconds=seconds, stdin=listing)
        except ToolError as error:
            if "differences found" not in str(error):
                raise
            raise ReleaseError(f"{self.name} does not return what was copied to it: {error}") from None

    def differing(
        self, folder: Path, name: str, files: Iterable[str], *, how: Iterable[str] = ("--size-only",),
        seconds: float = 6 * 3600,
    ) -> list[str]:  # fmt: skip
        """Return the files of a folder that a folder of the target lacks, or has in another size.

        With `--download` as `how`, they are read there, and their content is compared.
        """
        listing = "".join(f"{file}\n" for file in files)
        if not listing:
            return []
        words = [str(folder), self.path(name), "--files-from-raw=-", "--one-way", "--combined=-", *how]
        try:
            found = self.call("check", *words, seconds=seconds, stdin=listing)
        except ToolError as error:
            if "differences found" not in str(error):
                raise
            found = error.output
        return [f"{name}/{line[2:]}" for line in found.splitlines() if line[:2] in ("+ ", "* ", "! ")]

    def size(self) -> int:
        """Return the bytes of the copy of the repository at the target."""
        parts = ["--include=/archive/**", "--include=/backup/**"]
        return int(json.loads(self.call("size", self.root, "--json", *parts, seconds=600))["bytes"])

    def fetch(self, name: str, folder: Path, *filters: str, seconds: float) -> None:
        """Copy a folder of the target to one of this host."""
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        self.call("copy", self.path(name), str(folder), *filters, seconds=seconds)


# --- restic --------------------------------------------------------------------------------------------------------


class Restic:
    """The repository of uploads at the target, through rclone, so that both use one configuration."""

    def __init__(self, configuration: Configuration) -> None:
        self.host = configuration.name
        options = " ".join(["serve restic --stdio", *RCLONE_OPTIONS])
        certificates = f" --ca-cert={CA_FILE}" if CA_FILE.exists() else ""
        self.command = ["restic", f"--repo=rclone:{configuration.remote}/files"]
        self.command += ["--option", f"rclone.args={options}{certificates}"]
        self.command += ["--cache-dir", str(configuration.state_folder / "restic")]
        # A smaller heap, for a small host.
        self.variables = configuration.environment() | {"GOGC": "20"}

    def call(self, *words: str, seconds: float) -> str:
        return call([*self.command, *words], seconds=seconds, environment=self.variables)

    def exists(self) -> bool:
        try:
            self.call("cat", "config", "--quiet", seconds=120)
        except ToolError as error:
            if "unable to open config file" in str(error) or "does not exist" in str(error):
                return False
            raise
        return True

    def snapshots(self) -> list[dict[str, Any]]:
        """Return the snapshots, oldest first."""
        found = json.loads(self.call("snapshots", "--json", f"--host={self.host}", seconds=120) or "[]") or []
        return sorted(found, key=lambda one: one["time"])
