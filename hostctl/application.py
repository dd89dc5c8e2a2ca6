"""Run a release's own code: its commands, its hooks, and questions that only its interpreter can answer."""

from __future__ import annotations

import grp
import json
import os
import pwd
import selectors
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any, NoReturn

from .host import Host
from .settings import ReleaseError, Settings, read_environment, tail


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

    def manage(
        self, *arguments: str, environment: dict[str, str] | None = None, stop: threading.Event | None = None
    ) -> str:
        """Run manage.py as the owner of the tables, until its end or until `stop` is set, and return its output.

        Raises ReleaseError with the end of that output when it fails.
        """
        command = [self.python, "manage.py", *arguments]
        variables = self.environment(owner=True) | (environment or {})
        return as_user(self.settings, command, variables, self.folder, f"manage.py {' '.join(arguments)}", stop=stop)

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
        variables = os.environ | self.environment(owner=owner) | {"USER": account, "LOGNAME": account}
        os.chdir(self.folder)
        os.umask(0o027)
        become(account)
        os.execve(self.python, [self.python, *arguments], variables)

    def hook(self, name: str) -> list[str]:
        """Run the commands of a hook one after another, as the application; return those commands."""
        for command in self.settings.hooks.get(name, []):
            shell = ["/bin/sh", "-euc", command]
            as_user(self.settings, shell, self.environment(), self.folder, f"The command of {name} ({command})")
        return self.settings.hooks.get(name, [])

    def ask(self, question: str, *arguments: Any, seconds: float = 120) -> Any:
        """Ask the application a question inside its own interpreter; see in_app/questions.py.

        Raises ReleaseError when the application cannot answer, or not within `seconds`.
        """
        if self._inspector is None:
            self._inspector = Inspector(self)
        return self._inspector.ask(question, *arguments, seconds=seconds)

    def close(self) -> None:
        """End the process that answers questions."""
        if self._inspector is not None:
            self._inspector.close()
            self._inspector = None


class Inspector:
    """in_app/inspector.py of a release: one process for a whole deployment, so that Django is loaded once."""

    def __init__(self, application: Application) -> None:
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
            raise ReleaseError(self.exit_reason(question)) from None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                self.process.kill()
                raise ReleaseError(
                    f"The application's {question} has no answer after {seconds:.0f} s.\n{self.output()}"
                )
        line = self.process.stdout.readline()
        if not line:
            raise ReleaseError(self.exit_reason(question))
        answer = json.loads(line)
        if "error" in answer:
            raise ReleaseError(f"The application's {question} failed:\n{tail(answer['error'], 15)}")
        return answer["answer"]

    def output(self) -> str:
        self.errors.seek(0)
        return tail(self.errors.read())

    def exit_reason(self, question: str) -> str:
        status = self.process.wait()
        return f"The application's {question} failed with exit status {status}:\n{self.output()}"

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
    stop: threading.Event | None = None,
) -> str:  # fmt: skip
    """Run a command as one of the application's users, in the application's group, and return its output.

    It is killed when `stop` is set. Raises ReleaseError with the end of that output when the command fails.
    """
    with subprocess.Popen(
        command, env=environment, cwd=folder, user=user or settings.name, group=settings.name, extra_groups=[],
        umask=0o027, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace",
    ) as process:  # fmt: skip
        output = read_output(process, stop)
    if process.returncode == -signal.SIGKILL and not (stop and stop.is_set()):
        raise ReleaseError(f"{what} was killed, most likely because the host has no free memory:\n{tail(output)}")
    if process.returncode != 0:
        raise ReleaseError(f"{what} failed with exit status {process.returncode}:\n{tail(output)}")
    return output


def read_output(process: subprocess.Popen[str], stop: threading.Event | None) -> str:
    """Return a process's output at its end; kill it when `stop` is set."""
    while True:
        try:
            return process.communicate(timeout=0.1 if stop else None)[0]
        except subprocess.TimeoutExpired:
            if stop.is_set():
                process.kill()
        except BaseException:
            process.kill()
            raise
