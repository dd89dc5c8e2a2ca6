#!/usr/bin/env python3
"""Roll out releases of one application on this host.

Installed as APP-release; its settings are /etc/APP/release.json. A rollout is a row of phases, called in order, on
several hosts in step:

    prepare ID ARCHIVE   unpack, build the Python environment, run the application's checks, collect static files
    migrate ID           bring the database to the release's migrations (on one host)
    start ID             start its processes beside those that serve
    gate ID              wait until its own socket and its own workers answer
    switch ID            /srv/APP/current points to it: the traffic follows
    finish ID            restart beat, let the other releases' processes finish and stop, remove old releases

    abort ID             stop and remove a release that is not current
    boot                 start the processes of the current release (systemd calls this)
    status [--json]      what is here and what runs

Exits with 0 when the phase is done, 1 when the release is at fault (whatever served before still serves), 2 when it was
called wrongly, 3 when another rollout is at work.
"""

from __future__ import annotations

import argparse
import fcntl
import http.client
import json
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

UV = "/opt/uv/bin/uv"
SYSTEM_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
ID_FORM = re.compile(r"[0-9A-Za-z][0-9A-Za-z.-]{3,63}")


class ReleaseError(Exception):
    """The release cannot go live; the message says why and what to do."""


class BusyError(Exception):
    """Another rollout holds the lock; the message names it."""


def say(text: str) -> None:
    print(text, flush=True)


# --- settings


@dataclass(frozen=True)
class Settings:
    """What Ansible wrote to /etc/APP/release.json."""

    name: str
    domain: str
    directory: str = ""
    settings_module: str = ""
    wsgi: str = ""
    celery: str = ""
    requirements: str = "requirements.txt"
    python: str = "python3"
    health_path: str = "/healthz/"
    health_names_release: bool = True
    gate_timeout: int = 60
    keep: int = 5
    web: bool = True
    workers: list[str] = field(default_factory=list)
    beat: bool = True
    admin: bool = False
    root: Path = Path("/srv")
    config: Path = Path("/etc")

    @classmethod
    def load(cls, path: Path) -> Settings:
        return cls(**json.loads(path.read_text()))

    @property
    def home(self) -> Path:
        return self.root / self.name

    @property
    def etc(self) -> Path:
        return self.config / self.name

    @property
    def releases(self) -> Path:
        return self.home / "releases"

    @property
    def current(self) -> Path:
        return self.home / "current"


def read_environment(path: Path) -> dict[str, str]:
    """The variables of an environment file that Ansible wrote: NAME="value", with \\" \\\\ \\$ and \\` escaped."""
    pattern = re.compile(r'^(\w+)="((?:[^"\\]|\\.)*)"$', re.MULTILINE | re.DOTALL)
    return {name: re.sub(r'\\(["\\$`])', r"\1", value) for name, value in pattern.findall(path.read_text())}


# --- systemd


@dataclass(frozen=True)
class Systemd:
    """The processes of the application's releases as systemd units."""

    settings: Settings

    def units(self, release: str) -> list[str]:
        """Every unit that a release runs on this host."""
        name = self.settings.name
        web = [f"{name}-web@{release}.service"] if self.settings.web else []
        return web + [f"{name}-worker-{worker}@{release}.service" for worker in self.settings.workers]

    def alive(self) -> dict[str, str]:
        """Every unit of every release that is running, starting or stopping, and its release."""
        name = self.settings.name
        patterns = [f"{name}-web@*", f"{name}-worker-*@*"]
        states = "--state=active,activating,deactivating,reloading"
        output = systemctl("list-units", "--plain", "--no-legend", states, *patterns)
        units = [line.split()[0] for line in output.splitlines() if line.strip()]
        return {unit: unit.partition("@")[2].removesuffix(".service") for unit in units}

    def failed(self, release: str) -> list[str]:
        """The units of a release that have ended or had to be started again."""
        units = self.units(release)
        output = systemctl("show", "--property=Id,ActiveState,NRestarts", *units)
        states = [dict(line.split("=", 1) for line in block.splitlines()) for block in output.strip().split("\n\n")]
        return [
            state["Id"]
            for state in states
            if state["ActiveState"] not in ("active", "activating") or state["NRestarts"] != "0"
        ]

    def start(self, units: list[str], *, wait: bool = True) -> None:
        if units:
            systemctl("start", *([] if wait else ["--no-block"]), *units)

    def stop(self, units: list[str], *, wait: bool = True) -> None:
        if units:
            systemctl("stop", *([] if wait else ["--no-block"]), *units)

    def renew_beat(self) -> None:
        """Restart beat where it belongs to this host, and end it where it did and does no more."""
        unit = f"{self.settings.name}-beat.service"
        if self.settings.beat:
            systemctl("restart", unit)
        elif systemctl("list-units", "--plain", "--no-legend", "--state=active", unit):
            systemctl("stop", unit)

    def last_words(self, units: list[str], lines: int = 25) -> str:
        """The last log lines of the units."""
        selected = [argument for unit in units for argument in ("--unit", unit)]
        command = ["journalctl", "--no-pager", "--output=cat", f"--lines={lines}", *selected]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.rstrip()


def systemctl(*arguments: str) -> str:
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ReleaseError(f"systemctl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


# --- a release


class Host:
    """The releases of one application on this host, and the phases that move them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.manager = Systemd(settings)

    # -- what is here

    def path(self, release: str) -> Path:
        return self.settings.releases / release

    def serving(self) -> str:
        """The release that `current` points to, or ""."""
        try:
            return self.settings.current.readlink().name
        except FileNotFoundError:
            return ""

    def built(self) -> list[str]:
        """Every release that was built to the end, the newest first."""
        marks = self.settings.releases.glob("*/release.json")
        return [mark.parent.name for mark in sorted(marks, key=lambda mark: mark.stat().st_mtime, reverse=True)]

    def facts(self, release: str) -> dict[str, Any]:
        """What was noted when the release was built."""
        return json.loads((self.path(release) / "release.json").read_text())

    def status(self) -> dict[str, Any]:
        serving = self.serving()
        return {
            "current": serving,
            "releases": self.built(),
            "running": sorted(self.manager.alive()),
            "versions": self.facts(serving)["versions"] if serving else {},
        }

    # -- running things

    def environment(self, release: str, *, owner: bool = False) -> dict[str, str]:
        """The environment of a release's processes; with `owner`, that of the commands which may alter the schema."""
        variables = {
            "PATH": f"{self.path(release)}/.venv/bin:/usr/bin:/bin",
            "HOME": f"{self.settings.home}/shared",
            "LANG": "C.UTF-8",
        }
        files = [self.settings.etc / "app.env", self.path(release) / "release.env"]
        for file in files + ([self.settings.etc / "release.env"] if owner else []):
            variables |= read_environment(file)
        return variables

    def as_user(self, user: str, command: list[str], environment: dict[str, str], folder: Path, what: str) -> str:
        """Run a command as one of the application's users, in the application's group, and return its output.

        Raises ReleaseError with the end of that output when the command fails.
        """
        done = subprocess.run(
            command, env=environment, cwd=folder, user=user, group=self.settings.name, extra_groups=[], umask=0o027,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise ReleaseError(f"{what} failed with exit status {done.returncode}:\n{tail(done.stdout)}")
        return done.stdout

    def manage(self, release: str, *arguments: str, owner: bool = False) -> str:
        """Run manage.py of a release as the application."""
        command = [f"{self.path(release)}/.venv/bin/python", "manage.py", *arguments]
        folder = self.path(release) / self.settings.directory
        environment = self.environment(release, owner=owner) | {"PGOPTIONS": "-c lock_timeout=3s"}
        return self.as_user(self.settings.name, command, environment, folder, f"manage.py {' '.join(arguments)}")

    def inspect(self, release: str, question: str, *arguments: str) -> dict[str, Any]:
        """Ask the application something inside its own interpreter; see inspect_release.py."""
        script = Path("/usr/local/lib/inspect_release.py")
        command = [f"{self.path(release)}/.venv/bin/python", str(script), question, *arguments]
        folder = self.path(release) / self.settings.directory
        output = self.as_user(self.settings.name, command, self.environment(release), folder, f"The {question}")
        return json.loads(output.splitlines()[-1])

    # -- phases

    def prepare(self, release: str, archive: Path) -> None:
        """Build the release from its archive; nothing that serves is touched."""
        if release in self.built():
            say(f"Release {release} is already built.")
            return
        self.clear_away(release)
        began = time.monotonic()
        path, builder = self.path(release), f"{self.settings.name}-build"
        make_folder(path, 0o751, builder, self.settings.name)
        cache = {"HOME": f"/var/cache/{self.settings.name}", "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
        self.as_user(builder, ["tar", "--extract", "--gzip", f"--file={archive}"], cache, path, "Unpacking the archive")
        make_folder(path / "run", 0o2750, self.settings.name, "www-data")
        (path / "release.env").write_text(f'RELEASE_ID="{release}"\nSTATIC_MANIFEST_ROOT="{path}/run"\n')
        say(f"Release {release} is unpacked in {path}.")
        self.build_environment(release, cache)
        say(f"Its Python environment is built ({time.monotonic() - began:.1f} s).")
        compile_all = [f"{path}/.venv/bin/python", "-m", "compileall", "-q", "-x", "/[.]venv/", "."]
        self.as_user(builder, compile_all, cache, path, "Compiling the application")
        settings = self.settings
        found = self.inspect(release, "check", settings.wsgi, settings.celery)
        say(f"The application's checks pass, static files are in place ({time.monotonic() - began:.1f} s).")
        mark = path / "release.json.new"
        mark.write_text(json.dumps({"id": release, "versions": found["versions"]}))
        mark.rename(path / "release.json")
        archive.unlink()

    def build_environment(self, release: str, base: dict[str, str]) -> None:
        """Make .venv from the requirements file or uv.lock, as the user who owns the releases."""
        path, builder = self.path(release), f"{self.settings.name}-build"
        requirements = path / self.settings.requirements
        if not requirements.is_file():
            raise ReleaseError(
                f"The project has no {self.settings.requirements}. Set app_requirements in group_vars/all/app.yml "
                "to its requirements file or uv.lock."
            )
        environment = base | {
            "UV_CACHE_DIR": f"/var/cache/{self.settings.name}/uv",
            "UV_PYTHON_INSTALL_DIR": f"/var/cache/{self.settings.name}/python",
            "UV_PROJECT_ENVIRONMENT": f"{path}/.venv",
            "UV_SYSTEM_CERTS": "true",
            "SSL_CERT_FILE": SYSTEM_CERTIFICATES,
            "UV_NO_PROGRESS": "true",
        }
        python = ["--python", self.settings.python]
        if self.settings.python == "python3":
            python = ["--python", "/usr/bin/python3", "--no-python-downloads"]
        venv = path / ".venv"
        self.as_user(builder, [UV, "venv", "--quiet", *python, str(venv)], environment, path, "Making .venv")
        if requirements.name == "uv.lock":
            install = ["sync", "--frozen", "--no-dev", "--no-install-project", *python]
        else:
            install = ["pip", "install", "--python", f"{venv}/bin/python", "--requirements", str(requirements)]
        what = f"Installing {self.settings.requirements}"
        self.as_user(builder, [UV, *install, "--compile-bytecode"], environment, requirements.parent, what)
        needed = {"gunicorn": self.settings.web, "celery": self.settings.workers or self.settings.beat}
        for program, wanted in needed.items():
            if wanted and not (venv / "bin" / program).exists():
                raise ReleaseError(f"{self.settings.requirements} does not bring {program}: add a pinned {program}.")

    def migrate(self, release: str) -> None:
        """Bring the database to the release's migrations, as the owner of the tables."""
        pending = self.inspect(release, "migrations")["pending"] if self.serving() else ["all of a first release"]
        if pending:
            say(f"Migrating: {', '.join(pending)}.")
            self.manage(release, "migrate", "--noinput", owner=True)
        say(f"The database is at the migrations of release {release}.")
        if self.settings.admin and not self.serving():
            say(self.manage(release, "ensure_admin", owner=True).strip())

    def start(self, release: str) -> None:
        """Start the release's processes beside those that serve; what a killed run left behind stops first."""
        strays = [unit for unit, other in self.manager.alive().items() if other not in (release, self.serving())]
        self.manager.stop(strays, wait=False)
        try:
            self.manager.start(self.manager.units(release))
        except ReleaseError as error:
            raise ReleaseError(self.explain(release, str(error))) from None
        say(f"Its processes are started: {', '.join(self.manager.units(release)) or 'none on this host'}.")

    def gate(self, release: str) -> None:
        """Wait until the release's own socket answers its health check and its own workers answer a ping."""
        deadline = time.monotonic() + self.settings.gate_timeout
        if self.settings.web:
            self.wait_for_web(release, deadline)
        if self.settings.workers:
            names = [f"{worker}.{release}@{socket.gethostname()}" for worker in self.settings.workers]
            remaining = max(1, int(deadline - time.monotonic()))
            silent = self.inspect(release, "ping", self.settings.celery, str(remaining), *names)["silent"]
            if silent:
                reason = f"No answer within {self.settings.gate_timeout} s from {', '.join(silent)}."
                raise ReleaseError(self.explain(release, reason))
            say(f"Its workers answer: {', '.join(self.settings.workers)}.")

    def wait_for_web(self, release: str, deadline: float) -> None:
        while True:
            problem = health_problem(self.settings, self.path(release) / "run/web.sock", release)
            if not problem:
                say(f"Its own socket answers {self.settings.health_path} with 200.")
                return
            failed = self.manager.failed(release)
            if failed or time.monotonic() > deadline:
                raise ReleaseError(self.explain(release, f"Its health check {self.settings.health_path}: {problem}."))
            time.sleep(0.1)

    def explain(self, release: str, reason: str) -> str:
        units = self.manager.failed(release) or self.manager.units(release)
        return f"{reason}\nLast log lines of {', '.join(units)}:\n{self.manager.last_words(units)}"

    def switch(self, release: str) -> None:
        """Rename `current` onto the release: traffic and code move in one step."""
        link = self.settings.home / "current.new"
        link.unlink(missing_ok=True)
        link.symlink_to(self.path(release).relative_to(self.settings.home))
        link.rename(self.settings.current)
        say(f"Release {release} is current.")

    def finish(self, release: str) -> None:
        """Restart beat on the release, let the others' processes finish and stop, remove old releases."""
        if release != self.serving():
            raise ReleaseError(f"Release {release} is not current ({self.serving() or 'none'} is): nothing is stopped.")
        systemctl("start", "--no-block", f"{self.settings.name}.service")
        self.manager.renew_beat()
        old = [unit for unit, other in self.manager.alive().items() if other != release]
        web = [unit for unit in old if unit.startswith(f"{self.settings.name}-web@")]
        if web:
            time.sleep(1)  # a connection that nginx opened just before the switch reaches gunicorn's queue within this
            self.manager.stop(web)
        self.manager.stop([unit for unit in old if unit not in web], wait=False)
        self.prune()
        say(f"Release {release} serves.")

    def prune(self) -> None:
        """Remove all but the newest releases, never one that is current or has a process alive."""
        used = {self.serving(), *self.manager.alive().values()}
        keep = used | set(self.built()[: self.settings.keep])
        for path in self.settings.releases.iterdir():
            if path.name not in keep:
                shutil.rmtree(path)
                say(f"Removed release {path.name}.")

    def abort(self, release: str) -> None:
        """Stop and remove a release that is not current."""
        if release == self.serving():
            raise ReleaseError(f"Release {release} is current and stays.")
        self.manager.stop([unit for unit, other in self.manager.alive().items() if other == release])
        self.clear_away(release)
        say(f"Release {release} is removed; {self.serving() or 'nothing'} serves.")

    def clear_away(self, release: str) -> None:
        if self.path(release).exists():
            shutil.rmtree(self.path(release))

    def boot(self) -> None:
        """Start the processes of the current release, without waiting for them."""
        units = self.manager.units(self.serving())
        beat = [f"{self.settings.name}-beat.service"] if self.settings.beat else []
        self.manager.start(units + beat, wait=False)


# --- helpers


def tail(text: str, lines: int = 30) -> str:
    return "\n".join(text.rstrip().splitlines()[-lines:])


def make_folder(path: Path, mode: int, user: str, group: str) -> None:
    path.mkdir(exist_ok=True)
    shutil.chown(path, user, group)
    path.chmod(mode)


def health_problem(settings: Settings, path: Path, release: str, timeout: float = 5) -> str:
    """Ask a release's own socket for its health page. Returns "" when all is well, else what is wrong, in a few words.

    `timeout` is in seconds.
    """
    connection = http.client.HTTPConnection(settings.domain, timeout=timeout)
    try:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(timeout)
        connection.sock.connect(str(path))
        connection.request("GET", settings.health_path, headers={"Host": settings.domain, "X-Forwarded-Proto": "https"})
        answer = connection.getresponse()
        body = answer.read(100_000).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return f"no answer ({error or type(error).__name__})"
    finally:
        connection.close()
    if answer.status != 200:
        return f"status {answer.status} instead of 200"
    if settings.health_names_release and release not in body:
        return f"the answer does not name release {release}"
    return ""


def lock(settings: Settings, phase: str) -> int:
    """Take the application's lock for as long as this process lives; an open file cannot outlive it.

    Raises BusyError, naming the holder, when another process has it.
    """
    handle = os.open(settings.home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(handle, 500, 0).decode()
        raise BusyError(f"Another rollout is at work ({holder}). Wait until it has ended, then run again.") from None
    who = os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{phase}, by {who}, since {time.strftime('%F %T %Z')}, process {os.getpid()}".encode(), 0)
    return handle


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    name = Path(sys.argv[0]).name.removesuffix("-release")
    parser.add_argument("--settings", type=Path, default=Path(f"/etc/{name}/release.json"), help="default: %(default)s")
    phases = parser.add_subparsers(dest="phase", required=True, metavar="PHASE")
    for phase in ("prepare", "migrate", "start", "gate", "switch", "finish", "abort"):
        of = phases.add_parser(phase)
        of.add_argument("release", metavar="ID")
        if phase == "prepare":
            of.add_argument("archive", type=Path, metavar="ARCHIVE")
    phases.add_parser("boot")
    phases.add_parser("status").add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    if not ID_FORM.fullmatch(getattr(chosen, "release", "none")):
        parser.error(f"{chosen.release!r} cannot name a release: 4 to 64 letters, digits, dots and dashes")
    return chosen


def main(arguments: list[str]) -> int:
    chosen = parse(arguments)
    settings = Settings.load(chosen.settings)
    host = Host(settings)
    if chosen.phase == "status":
        status = host.status()
        say(json.dumps(status) if chosen.json else describe(status))
        return 0
    if chosen.phase == "boot":
        host.boot()
        return 0
    try:
        lock(settings, f"{chosen.phase} {chosen.release}")
        if chosen.phase not in ("prepare", "abort") and chosen.release not in host.built():
            raise ReleaseError(f"It is not built on this host; built are: {', '.join(host.built()) or 'none'}.")
        extra = [chosen.archive] if chosen.phase == "prepare" else []
        getattr(host, chosen.phase)(chosen.release, *extra)
    except BusyError as error:
        say(str(error))
        return 3
    except ReleaseError as error:
        say(f"Release {chosen.release} stops at {chosen.phase}. {error}")
        if chosen.phase in ("prepare", "migrate", "start", "gate") and chosen.release != host.serving():
            host.abort(chosen.release)
        return 1
    return 0


def describe(status: dict[str, Any]) -> str:
    lines = [f"current   {status['current'] or 'none'}", f"built     {', '.join(status['releases']) or 'none'}"]
    lines += [f"running   {unit}" for unit in status["running"]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
