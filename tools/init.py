#!/usr/bin/env python3
"""Inspect a project and write the inventory and the settings of an environment: `make init`.

Existing files are never changed. The list of what was found is printed again by `make inspect ENV=...`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from urllib.parse import urlsplit

from init_files import Entry, Server, inventory_text, settings_text
from machine import ROOT, SetupError, exit_with_instructions, say

sys.path.insert(0, str(ROOT / "plugins"))
from plugin_utils.findings import in_files_of, listing, with_setting
from plugin_utils.inspection import Report, inspect_project
from plugin_utils.preflight.application import DOTTED, NAME, RESERVED, is_git_url
from plugin_utils.preflight.domains import DOMAIN
from plugin_utils.preflight.files import SERVICE_GROUPS

ENVIRONMENT = "[a-z][a-z0-9_]{0,31}"
# `make demo` owns the first; the second is the name of the host, the third that of this machine.
TAKEN = {"demo", "server1", "localhost", *SERVICE_GROUPS}
IPV6 = r"(?=.*:.*:)[0-9a-fA-F:.]+"
SERVER = rf"((?P<user>[A-Za-z_][\w.-]*)@)?(?P<host>\[{IPV6}\]|{IPV6}|{DOMAIN})(:(?P<port>\d+))?"
# Folders whose name says nothing about the project.
GENERIC = {"app", "backend", "code", "django", "project", "server", "site", "source", "src", "web", "website"}
EXAMPLE = "make init PROJECT=../notes ENV=production DOMAIN=notes.example.org SERVER=203.0.113.10"


@dataclass(frozen=True)
class Answers:
    """What `make init` was told on the command line; what is empty is asked for."""

    project: str
    env: str
    domain: str = ""
    server: str = ""
    name: str = ""
    ref: str = ""
    # Of a project that is a package: without manage.py, nothing tells them.
    settings: str = ""
    wsgi: str = ""
    celery: str = ""

    @property
    def given(self) -> dict[str, str]:
        """The settings of Seedbed that decide what is inspected."""
        names = {"app_settings_module": self.settings, "app_wsgi_app": self.wsgi, "app_celery_app": self.celery}
        names |= {"app_domain": self.domain}
        source = {"app_source": self.project} if is_git_url(self.project) else {}
        return source | {name: value for name, value in names.items() if value}


def invalid_environment(name: str) -> str:
    """Return why a name cannot be that of an environment; "" if it can."""
    if not re.fullmatch(ENVIRONMENT, name):
        return f'ENV must match ^{ENVIRONMENT}$, such as production or staging; it is "{name}".'
    if name in TAKEN:
        return f'ENV must not be "{name}", which names something else in an inventory. Write ENV=production.'
    return ""


def invalid_domain(name: str) -> str:
    if re.fullmatch(DOMAIN, name):
        return ""
    return (
        "DOMAIN must be a domain such as notes.example.org, or the server's IPv4 address, without https://, port and "
        f'path; it is "{name}".'
    )


def invalid_server(text: str) -> str:
    found = re.fullmatch(SERVER, text)
    if found and 1 <= int(found["port"] or 22) <= 65535:
        return ""
    return (
        "SERVER must be an address or a name, such as 203.0.113.10, with the SSH user where it is not root "
        f'(debian@203.0.113.10) and the SSH port where it is not 22 (203.0.113.10:2222); it is "{text}".'
    )


def invalid_name(name: str) -> str:
    if not re.fullmatch(NAME, name):
        return f'NAME must match ^{NAME}$; it is "{name}".'
    if name in RESERVED or name.startswith("pg_"):
        return f'NAME must not be "{name}": the system or a service has a user of that name.'
    return ""


def must_match(variable: str, pattern: str, example: str) -> Callable[[str], str]:
    """Return a check of an answer, which may be empty."""

    def invalid(text: str) -> str:
        if not text or re.fullmatch(pattern, text):
            return ""
        return f'{variable} must match ^{pattern}$, such as {example}; it is "{text}".'

    return invalid


invalid_settings = must_match("SETTINGS", DOTTED, "notes.settings")
invalid_wsgi = must_match("WSGI", f"{DOTTED}:{DOTTED}", "notes.wsgi:application")
invalid_celery = must_match("CELERY", f"{DOTTED}(:{DOTTED})?", "notes.celery_app")


def parse_server(text: str) -> Server:
    found = re.fullmatch(SERVER, text)
    assert found
    return Server(found["host"].strip("[]"), found["user"] or "root", int(found["port"] or 0))


def invalid_project(project: str) -> str:
    """Return why a git URL cannot be app_source: it holds a credential, which would be written to app.yml."""
    try:
        url = urlsplit(project) if "://" in project else None
        credential = url and (url.password is not None or (url.scheme in ("http", "https") and url.username))
    except ValueError:
        return ""
    if not credential:
        return ""
    plain = url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()
    return (
        "PROJECT must not contain a user or a token, which would be written to app.yml. Type PROJECT="
        f"{plain} and give the credential to git on this machine (git config --global credential.helper), or use an "
        "SSH URL such as git@example.org:ada/notes.git."
    )


def propose_name(project: str) -> str:
    """Return a valid app_name made from the name of a project's folder or git URL."""
    parts = [part.removesuffix(".git") for part in re.split(r"[/:]", project) if part.strip("./~")]
    named = [part for part in parts[-2:] if part.lower() not in GENERIC] or parts[-1:] or ["site"]
    words = re.sub(r"[^a-z0-9]+", "_", named[-1].lower()).strip("_")
    name = re.sub(r"^[^a-z]+", "", words)[:24].rstrip("_") or "site"
    return name if not invalid_name(name) else f"{name[:20].removeprefix('pg_')}_app"


def refusal(reason: str) -> SetupError:
    return SetupError(f"{reason}\nNothing was written.")


def ask(question: str, variable: str, invalid: Callable[[str], str], proposal: str = "") -> str:
    """Return the user's answer, once it is valid. Raises SetupError where there is no terminal."""
    if not sys.stdin.isatty():
        raise refusal(f"{variable} is missing. Type for example:\n    {EXAMPLE}")
    while True:
        try:
            answer = input(f"{question}{f' [{proposal}]' if proposal else ''}: ").strip() or proposal
        except (EOFError, KeyboardInterrupt):
            raise SetupError("Nothing was written.") from None
        reason = invalid(answer)
        if not reason:
            return answer
        say(f"  {reason}")


def stored_source(project: str, root: Path) -> str:
    """Return app_source for what the user typed: a relative path stays relative to this repository."""
    if is_git_url(project):
        return project
    path = Path(project).expanduser()
    return str(path) if path.is_absolute() else os.path.relpath(root / path, root)


@contextmanager
def project_folder(project: str, ref: str, root: Path) -> Iterator[Path]:
    """Give the project's folder; that of a git URL is a shallow clone, removed at the end."""
    if not is_git_url(project):
        folder = (root / Path(project).expanduser()).resolve()
        if not folder.is_dir():
            raise refusal(f"PROJECT must be a folder or a git URL; there is no folder {folder}.")
        if ref:
            raise refusal("REF is for a git URL; PROJECT is a folder, whose files are deployed as they are.")
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="seedbed-init-") as folder:
        say(f"Fetching {project} {f'({ref}) ' if ref else ''}...")
        shallow_clone(project, ref, Path(folder))
        yield Path(folder)


def shallow_clone(url: str, ref: str, folder: Path) -> None:
    """Check out one commit of a repository. Raises SetupError with git's message."""
    # Questions of git and ssh go to the terminal, if there is one.
    quiet = os.environ | {"GIT_LFS_SKIP_SMUDGE": "1"} | ({} if sys.stdin.isatty() else {"GIT_TERMINAL_PROMPT": "0"})
    for command in (
        ["git", "init", "--quiet"],
        ["git", "fetch", "--quiet", "--depth", "1", url, ref or "HEAD"],
        ["git", "-c", "advice.detachedHead=false", "checkout", "--quiet", "FETCH_HEAD"],
    ):
        done = subprocess.run(command, cwd=folder, env=quiet, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            given = f"PROJECT={url}" + (f" REF={ref}" if ref else "")
            raise refusal(f"{given} cannot be fetched. git {command[1]} failed: {done.stderr.strip()}")


def sections(answers: Answers, root: Path, report: Report) -> dict[str, list[Entry | str]]:
    """Return what app.yml holds, by section."""
    name = answers.name or propose_name(name_source(answers.project, root))
    site = [
        Entry(
            "app_name",
            name,
            "Short name: the system user, the folders /srv/NAME and /etc/NAME, the database. It cannot be changed "
            "after the first run of site.yml.",
        ),
        Entry("app_domain", answers.domain, "The domain of the site: its DNS record must point at the server."),
        Entry(
            "app_certificate_email",
            "you@example.org",
            "A certificate by Let's Encrypt, once the domain points at the server. Until then it is self-signed, and "
            "browsers warn.",
            suggested=True,
        ),
        Entry(
            "app_administrators",
            [{"name": "alice", "keys": ["ssh-ed25519 AAAA... alice@laptop"]}],
            "Administrators of the server; after the first login of one of them, root's login is disabled.",
            suggested=True,
        ),
    ]
    source = Entry("app_source", stored_source(answers.project, root), source_comment(answers.project))
    project: list[Entry | str] = [source]
    if is_git_url(answers.project):
        ref = Entry("app_git_ref", answers.ref or "main", "The branch, tag or commit to deploy.", not answers.ref)
        project.append(ref)
    project += [
        Entry(setting, proposal.value, in_files_of(answers.env, proposal.why))
        for setting, proposal in report.settings.items()
        if proposal.value not in ("", [], {})
    ]
    return {
        "The site": site,
        "The project, as it was found": project,
        f"Needs you: make inspect ENV={answers.env} lists what is left": notes(report, "needs", answers.env),
        "Decided for you; a setting here changes it": notes(report, "decided", answers.env),
    }


def notes(report: Report, kind: str, env: str) -> list[Entry | str]:
    """Return the findings of a kind as comments, without those whose setting is written with its reason."""
    return [
        f"{finding.subject}: {with_setting(finding, env)}"
        for finding in report.findings
        if finding.kind == kind and (kind == "needs" or finding.setting not in report.settings)
    ]


def name_source(project: str, root: Path) -> str:
    """Return the text whose last part names the project."""
    return project if is_git_url(project) else str((root / Path(project).expanduser()).resolve())


def source_comment(project: str) -> str:
    if is_git_url(project):
        return "The project's repository. This machine fetches it; the server needs no access."
    return (
        "The project's folder on this machine; a relative path starts at Seedbed's folder. In a git repository, files "
        "that git ignores are not deployed."
    )


def write_new(files: Mapping[Path, str]) -> None:
    """Write files that do not exist yet: all of them, or none."""
    written: list[Path] = []
    folders: list[Path] = []
    try:
        for path, text in files.items():
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True)
                folders.append(path.parent)
            partial = path.with_name(f".{path.name}.{os.getpid()}")
            written.append(partial)
            partial.write_text(text)
        for path in files:
            partial = path.with_name(f".{path.name}.{os.getpid()}")
            partial.rename(path)
            written[written.index(partial)] = path
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        for folder in folders:
            folder.rmdir()
        raise refusal(f"{error.filename}: {error.strerror}.") from None


def init(answers: Answers, root: Path = ROOT) -> None:
    """Inspect the project, ask for the rest, write the files that do not exist, print the list."""
    env = answers.env
    if reason := invalid_environment(env):
        raise refusal(reason)
    paths = root / f"inventory/{env}.yml", root / f"group_vars/{env}/app.yml"
    missing = [path for path in paths if not path.exists()]
    for path in paths:
        if path not in missing:
            say(f"{path.relative_to(root)} exists and stays as it is.")
    if not missing:
        print_again(env, root)
        return
    refuse_invalid(answers)
    with project_folder(answers.project, answers.ref, root) as folder:
        report = inspected(folder, answers.given)
        if is_unknown(report) and sys.stdin.isatty():
            answers = ask_for_modules(answers)
            report = inspected(folder, answers.given)
    answers, server = complete(answers)
    texts = inventory_text(env, server), settings_text(env, sections(answers, root, report))
    write_new({path: text for path, text in zip(paths, texts, strict=True) if path in missing})
    say("")
    say(listing(report.findings, env, terminal_width(), has_color()))
    say(f"Written: {', '.join(str(path.relative_to(root)) for path in missing)}\n")
    settings = paths[1] not in missing
    if settings:
        say(f"{paths[1].relative_to(root)} was there before: it has nothing of the list above, unless you wrote it.\n")
    next_steps(env, report, server, settings_stay=settings)


def inspected(folder: Path, given: Mapping[str, str]) -> Report:
    """Inspect the project. Raises SetupError where the inspection itself fails."""
    try:
        return inspect_project(folder, given, writes=True)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
        example = "inventory/production.example.yml and group_vars/production.example/"
        raise refusal(
            f"The inspection itself failed, please report it: {reason}\nTo write the files by hand, copy {example}."
        ) from error


def is_unknown(report: Report) -> bool:
    """Return whether the project has neither a manage.py nor settings that were found."""
    return any(finding.kind == "needs" and finding.setting == "app_project_dir" for finding in report.findings)


def ask_for_modules(answers: Answers) -> Answers:
    """Ask for what no file tells in a project without manage.py; the first question can be left empty."""
    question = "No manage.py was found. A package from PyPI: its settings module, such as notes.settings (Enter: none)"
    settings = ask(question, "SETTINGS", invalid_settings)
    if not settings:
        return answers
    package = settings.partition(".")[0]
    wsgi = answers.wsgi or ask("Its WSGI callable", "WSGI", invalid_wsgi, f"{package}.wsgi:application")
    celery = answers.celery or ask("Its Celery application", "CELERY", invalid_celery, package)
    return replace(answers, settings=settings, wsgi=wsgi, celery=celery)


def refuse_invalid(answers: Answers) -> None:
    """Raise SetupError for the first answer of the command line that is not valid."""
    if not answers.project:
        raise refusal(f"PROJECT is missing: your project's folder or its git URL. Type for example:\n    {EXAMPLE}")
    if reason := invalid_project(answers.project):
        raise refusal(reason)
    checks = {"name": invalid_name, "server": invalid_server, "domain": invalid_domain}
    checks |= {"settings": invalid_settings, "wsgi": invalid_wsgi, "celery": invalid_celery}
    for name, invalid in checks.items():
        given = getattr(answers, name)
        if given and (reason := invalid(given)):
            raise refusal(reason)


def complete(answers: Answers) -> tuple[Answers, Server]:
    """Ask for what is missing. Returns all answers, and the server."""
    server = answers.server or ask(
        "The server: its address; with the SSH user where it is not root, such as debian@203.0.113.10",
        "SERVER",
        invalid_server,
    )
    host = parse_server(server)
    proposal = "" if invalid_domain(host.host) else host.host
    domain = answers.domain or ask(
        "The domain of the site (until one points at the server, the server's address)",
        "DOMAIN",
        invalid_domain,
        proposal,
    )
    return replace(answers, server=server, domain=domain), host


def print_again(env: str, root: Path) -> None:
    """Print the list for the files as they are, as `make inspect` does."""
    say(f"Nothing was written. (To start again: rm inventory/{env}.yml group_vars/{env}/app.yml)\n")
    command = ["ansible-playbook", "-i", f"inventory/{env}.yml", "playbooks/inspect.yml"]
    quiet = os.environ | {"ANSIBLE_DISPLAY_OK_HOSTS": "false"}
    if subprocess.run(command, cwd=root, env=quiet, check=False).returncode != 0:
        raise SetupError(f"Correct what is said above, then type: make inspect ENV={env}")


def next_steps(env: str, report: Report, server: Server, *, settings_stay: bool) -> None:
    """Print what to type next. Settings that stayed as they are have not been compared with the project yet."""
    needs = sum(finding.kind == "needs" for finding in report.findings)
    port = f" -p {server.port}" if server.port else ""
    steps = [(f"ssh{port} {server.user}@{server.host} exit", "once: compare the server's host key, accept it")]
    if settings_stay:
        steps = [(f"make inspect ENV={env}", "the list for your settings; it contacts no host"), *steps]
    elif needs:
        steps = [
            (f"$EDITOR group_vars/{env}/app.yml", f"{needs} of the findings above need{'s' if needs == 1 else ''} you"),
            (f"make inspect ENV={env}", "until none is left; it contacts no host"),
            *steps,
        ]
    steps += [
        (". .venv/bin/activate", ""),
        (f"ansible-playbook -i inventory/{env}.yml site.yml", "the server and the release, in a few minutes"),
    ]
    column = max(len(command) for command, _ in steps)
    say("Next, type:")
    for command, comment in steps:
        say(f"    {command:<{column}}    # {comment}" if comment else f"    {command}")


def terminal_width() -> int:
    return min(shutil.get_terminal_size().columns, 110)


def has_color() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def main() -> None:
    """Read the answers from the environment, where the Makefile puts the variables of `make init`."""
    given = {field.name: os.environ.get(f"INIT_{field.name.upper()}", "").strip() for field in fields(Answers)}
    answers = Answers(**given)
    if not answers.project:
        raise SetupError(
            f"PROJECT is missing: the folder or the git URL of your project. Type for example:\n    {EXAMPLE}"
        )
    init(answers)


if __name__ == "__main__":
    exit_with_instructions(main)
