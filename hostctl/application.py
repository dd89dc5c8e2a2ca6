"""Run a release's own code: its commands, its hooks, and questions that only its interpreter can answer."""

from __future__ import annotations

import grp
import json
import math
import os
import pwd
import selectors
import signal
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from .host import Host
from .settings import ReleaseError, Settings, read_environment, tail

# The kernel's counters, with oom_kill.
MEMORY_COUNTERS = Path("/proc/vmstat")


class CommandError(ReleaseError):
    """A command failed; `what` names it, and `output` is all of its output."""

    def __init__(self, text: str, what: str, output: str, cause: str = "") -> None:
        super().__init__(text, output=output, cause=cause)
        self.what = what


class Application:
    """The code of one release on this host."""

    def __init__(self, host: Host, release: str) -> None:
        self.host = host
        self.release = release
        self.path = host.path(release)
        self.python = f"{self.path}/.venv/bin/python"
        self._inspector: Inspector | None = None

    @property
    def settings(self) -> Settings:
        """The settings of this release; a deployment records them when it builds the release."""
        return self.host.settings.of(self.release)

    @property
    def folder(self) -> Path:
        return self.path / self.settings.project_dir

    @property
    def django(self) -> list[str]:
        """Return the interpreter's arguments for Django's commands: the project's manage.py, or a module in its place.

        With -m, the working folder is first on sys.path: the project's, as with manage.py.
        """
        if (self.folder / "manage.py").is_file():
            return ["manage.py"]
        return ["-m", "configurations" if self.environment().get("DJANGO_CONFIGURATION") else "django"]

    def environment(self, *, owner: bool = False) -> dict[str, str]:
        """Return the environment of the release's processes; with `owner`, of commands that may alter the schema."""
        variables = {
            "PATH": f"{self.path}/.venv/bin:/usr/bin:/bin",
            "HOME": f"{self.settings.home}/shared",
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
        }
        configuration = self.settings.configuration(self.release)
        files = [configuration / "app.env", self.path / "release.env"]
        for file in files + ([configuration / "migrate.env"] if owner else []):
            variables |= read_environment(file)
        return variables

    @property
    def limits(self) -> dict[str, str]:
        """Return the variable with the limits of the database for commands that a person or a hook calls."""
        return {"PGOPTIONS": self.settings.manage_options} if self.settings.manage_options else {}

    def manage(
        self, *arguments: str, environment: dict[str, str] | None = None, stop: threading.Event | None = None
    ) -> str:
        """Run a command of Django's as the owner of the tables, until its end or until `stop` is set.

        Returns its output. Raises ReleaseError with the end of that output when it fails.
        """
        words = [*self.django, *arguments]
        variables = self.environment(owner=True) | (environment or {})
        what = f"python {' '.join(words)}"
        return as_user(self.settings, [self.python, *words], variables, self.folder, what, stop=stop)

    def replace_process(self, *arguments: str, owner: bool = False) -> NoReturn:
        """Become `python ARGUMENTS` of this release: as the application's user, in its folder, with its environment.

        Terminal and environment of the caller stay; the application's variables take precedence. With `owner`, the
        database's owner is used, as in migrations. Raises ReleaseError where this host does not know it.
        """
        if owner and not (file := self.settings.configuration(self.release) / "migrate.env").exists():
            raise ReleaseError(
                f"This host has no credentials of the database's owner: {file} is missing. Run site.yml."
            )
        account = self.settings.name
        # Read as root: only root can read the owner's credentials.
        limits = {} if owner else self.limits
        variables = limits | os.environ | self.environment(owner=owner) | {"USER": account, "LOGNAME": account}
        os.chdir(self.folder)
        os.umask(0o027)
        become(account)
        os.execve(self.python, [self.python, *arguments], variables)

    def hook(self, name: str) -> list[str]:
        """Run the commands of a hook one after another, as the application; return those commands."""
        for command in self.settings.hooks.get(name, []):
            shell = ["/bin/sh", "-euc", command]
            variables = self.limits | self.environment()
            as_user(self.settings, shell, variables, self.folder, f"The command of {name} ({command})")
        return self.settings.hooks.get(name, [])

    def ask(self, question: str, *arguments: Any, seconds: float = 120) -> Any:
        """Ask the application a question inside its own interpreter; see in_app/questions.py.

        Raises ReleaseError when the application cannot answer, or not within `seconds`.
        """
        if self._inspector is None:
            self._inspector = Inspector(self)
        return self._inspector.ask(question, *arguments, seconds=seconds)

    def check(self) -> dict[str, Any]:
        """Run the application's own checks, and return what they found, with the versions of its packages.

        Raises ReleaseError when it cannot be imported or fails a check.
        """
        settings = self.settings
        beat = bool(settings.celery_app) and settings.beat
        arguments = (settings.asgi_app or settings.wsgi_app, settings.celery_app, beat, settings.beat_scheduler)
        return self.ask("check", *arguments, list(settings.databases), seconds=300)

    def close(self) -> None:
        """End the process that answers questions."""
        if self._inspector is not None:
            self._inspector.close()
            self._inspector = None


class Inspector:
    """in_app/inspector.py of a release: one process for a whole deployment, so that Django is loaded once."""

    def __init__(self, application: Application) -> None:
        self.kills_before = memory_kills()
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- closed by close()
        command = [application.python, str(application.settings.library / "hostctl/in_app/inspector.py")]
        self.process = subprocess.Popen(
            command, env=application.environment(), cwd=application.folder,
            user=application.settings.name, group=application.settings.name, extra_groups=[], umask=0o027,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
        )  # fmt: skip

    def ask(self, question: str, *arguments: Any, seconds: float) -> Any:
        try:
            self.process.stdin.write(json.dumps([question, *arguments]) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self.exit_error(question) from None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                self.process.kill()
                raise ReleaseError(
                    f"The application's {question} has no answer after {seconds:.0f} s.\n{tail(self.output())}"
                )
        line = self.process.stdout.readline()
        if not line:
            raise self.exit_error(question)
        answer = json.loads(line)
        if "error" in answer:
            text = f"The application's {question} failed:\n{tail(answer['error'], 15)}"
            raise ReleaseError(text, output=answer["error"])
        return answer["answer"]

    def output(self) -> str:
        self.errors.seek(0)
        return self.errors.read()

    def exit_error(self, question: str) -> ReleaseError:
        status = self.process.wait()
        return failure(f"The application's {question}", status, self.output(), self.kills_before)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            stream.close()


def become(account: str) -> None:
    """Switch this process to a user and the group of the same name, without supplementary groups."""
    group, user = grp.getgrnam(account).gr_gid, pwd.getpwnam(account).pw_uid
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)


def as_user(
    settings: Settings, command: list[str], environment: dict[str, str], folder: Path, what: str, user: str = "",
    stop: threading.Event | None = None, group: str = "", seconds: float = 0,
) -> str:  # fmt: skip
    """Run a command as one of the application's users, in the application's group or another, and return its output.

    It is killed when `stop` is set, and with all its children after `seconds`; 0 is no limit. Raises CommandError with
    the end of that output when the command fails.
    """
    kills_before = memory_kills()
    with subprocess.Popen(
        command, env=environment, cwd=folder, user=user or settings.name, group=group or settings.name, extra_groups=[],
        umask=0o027, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", start_new_session=bool(seconds),
    ) as process:  # fmt: skip
        try:
            output = read_output(process, stop, seconds)
        except subprocess.TimeoutExpired as expired:
            reason, output = f"{what} did not end within {seconds:.0f} s and was killed", expired.output
            raise CommandError(f"{reason}:\n{tail(output)}", what, output, cause=f"{reason}.") from None
    if process.returncode == -signal.SIGKILL and stop and stop.is_set():
        raise CommandError(f"{what} was stopped:\n{tail(output)}", what, output)
    if process.returncode != 0:
        raise failure(what, process.returncode, output, kills_before)
    return output


def memory_kills() -> int:
    """Return how many processes of this host the kernel has killed for memory since the boot."""
    try:
        counters = dict(line.split() for line in MEMORY_COUNTERS.read_text().splitlines())
    except OSError:
        return 0
    return int(counters.get("oom_kill", 0))


def failure(what: str, status: int, output: str, kills_before: int) -> CommandError:
    """Return the error for a command that failed, with the end of its output. (A shell reports SIGKILL as 137.)

    `kills_before` is `memory_kills` from before the command.
    """
    if status in (-signal.SIGKILL, 128 + signal.SIGKILL):
        reason, advice = f"{what} was killed (SIGKILL)", "."
        if memory_kills() > kills_before:
            reason, advice = f"{what} was killed because the host has no free memory", ": see `journalctl -k`."
        return CommandError(f"{reason}:\n{tail(output)}", what, output, cause=f"{reason}{advice}")
    return CommandError(f"{what} failed with exit status {status}:\n{tail(output)}", what, output)


def read_output(process: subprocess.Popen[str], stop: threading.Event | None, seconds: float = 0) -> str:
    """Return a process's output at its end; kill it when `stop` is set.

    With `seconds`, it leads a session of its own, which is killed after them. Raises subprocess.TimeoutExpired then,
    with the output as text.
    """
    deadline = time.monotonic() + seconds if seconds else math.inf
    while True:
        left = min(0.1 if stop else math.inf, max(deadline - time.monotonic(), 0))
        try:
            return process.communicate(timeout=left if left < math.inf else None)[0]
        except subprocess.TimeoutExpired:
            if stop and stop.is_set():
                process.kill()
            if time.monotonic() >= deadline:
                output = kill_session(process)
                raise subprocess.TimeoutExpired(process.args, seconds, output) from None
        except BaseException:
            if seconds:
                kill_session(process)
            else:
                process.kill()
            raise


def kill_session(process: subprocess.Popen[str]) -> str:
    """Kill a process and its children, and return its output; a child in another session may still hold the pipe."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        return process.communicate(timeout=5)[0]
    except subprocess.TimeoutExpired as expired:
        return (expired.output or b"").decode(errors="replace")
