"""The Python environment of a release: .venv from its requirements, shared by hard links with equal ones."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ..application import CommandError, as_user
from ..host import Host
from ..settings import ReleaseError, Settings, say
from .safe_files import replace_file
from .system_packages import hint

# Seconds that each command of a build may take; the other hosts wait as long at the first barrier.
BUILD_SECONDS = 3600
UV = "/opt/uv/bin/uv"
GIT = Path("/usr/bin/git")
SYSTEM_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
# Holds the hash of what a release's environment was made from.
MADE_FROM = "environment.sha256"
# app_extra_requirements, in the release's folder. In a file, since uv expands ${NAME} of files, not of its arguments.
EXTRA_FILE = ".extra-requirements.txt"
# The versions of a lock file, which the extra requirements must not change.
LOCKED_FILE = ".locked-requirements.txt"
# A requirement that is a folder or a file, in a requirements file or in uv.lock (where "." is the project, left out).
LOCAL = re.compile(
    r"""^\s*(-e|--editable)(?!\s*=?\s*git\+)|^\s*[./]|file:|(editable|directory|path) = "(?!\."\s)""", re.M
)
FROM_GIT = re.compile(r"""git\+|\bgit = \"""")
# Lock files of other tools, and the command that writes a requirements file from each.
EXPORTS = {
    "poetry.lock": "poetry self add poetry-plugin-export && poetry export --output requirements.txt",
    "Pipfile.lock": "pipenv requirements --hash > requirements.txt",
    "pdm.lock": "pdm export --prod --output requirements.txt",
}
# Folders of site-packages (* for any name), who needs one of them, and the requirement that brings it.
GUNICORN, REDIS, POSTGRESQL, GEVENT = "gunicorn", "celery[redis]", "psycopg[binary]", "gevent"
UVICORN = "uvicorn-worker"


def make_environment(host: Host, release: str, secrets: dict[str, str]) -> None:
    """Make .venv from the requirements file or uv.lock, and app_extra_requirements, as the build user.

    `secrets` are variables for the commands, such as credentials of an index.
    """
    path, settings = host.path(release), host.settings
    requirements = requirements_file(path, settings)
    extra = path / EXTRA_FILE
    replace_file(extra, path, "".join(f"{line}\n" for line in settings.extra_requirements))
    variables = uv_environment(host, release) | secrets
    venv = path / ".venv"

    def run(command: list[str], folder: Path, what: str) -> None:
        try:
            as_user(settings, command, variables, folder, what, builder(host), seconds=BUILD_SECONDS)
        except CommandError as error:
            raise with_hint(error, settings) from None

    files = requirement_files([requirements, requirements.with_name("pyproject.toml"), extra])
    for file in files:
        install_git_sources_plainly(file, path)
    texts = [file.read_text() for file in files]
    if any(FROM_GIT.search(text) for text in texts):
        install_git()
    made_from = fingerprint(settings, requirements, secrets)
    twin = find_twin(host, made_from)
    if twin:
        run([*copy_command(settings), str(twin), str(venv)], path, "Copying .venv")
    else:
        install(settings, requirements, extra, venv, run, any("--hash=" in text for text in texts))
    replace_file(path / MADE_FROM, path, made_from)
    require_packages(settings, venv)
    add_source_folders(settings, path, requirements.parent, venv)


def copy_command(settings: Settings) -> list[str]:
    """Return how the packages of another release are taken: by hard links, in a tenth of the time and without space.

    A build command may write into files of .venv, which must not be those of the live release.
    """
    return ["cp", "--archive", *([] if settings.build_commands else ["--link"])]


def requirements_file(path: Path, settings: Settings) -> Path:
    """Return the requirements file or uv.lock of a release. Raises ReleaseError when uv cannot install from it."""
    file = path / settings.requirements
    place = f"set app_requirements in group_vars/ENV/app.yml to {file.with_name('requirements.txt').relative_to(path)}"
    export = EXPORTS.get(file.name)
    if not export and not file.is_file():
        export = next((command for name, command in EXPORTS.items() if file.with_name(name).is_file()), None)
    if export:
        raise ReleaseError(
            f"uv cannot install from {settings.requirements}. Type `{export}`, commit the file, and {place}."
        )
    if not file.is_file():
        raise ReleaseError(
            f"the project has no {settings.requirements}. Set app_requirements in group_vars/ENV/app.yml to its "
            "requirements file or uv.lock."
        )
    return file


def uv_environment(host: Host, release: str) -> dict[str, str]:
    cache = f"/var/cache/{host.settings.name}"
    return base_environment(host) | {
        "UV_CACHE_DIR": f"{cache}/uv",
        "UV_PYTHON_INSTALL_DIR": f"{cache}/python",
        "UV_PROJECT_ENVIRONMENT": f"{host.path(release)}/.venv",
        "UV_SYSTEM_CERTS": "true",
        "UV_NO_PROGRESS": "true",
    }


def install(
    settings: Settings, requirements: Path, extra: Path, venv: Path, run: Callable[[list[str], Path, str], None],
    hashed: bool,
) -> None:  # fmt: skip
    """Make .venv and install the requirements; the extra ones with them, or after them where versions are locked."""
    python = ["--python", settings.python, "--python-preference", "system"]
    if settings.python == "python3":
        python = ["--python", "/usr/bin/python3", "--no-python-downloads"]
    run([UV, "venv", "--quiet", "--relocatable", *python, str(venv)], venv.parent, "Making .venv")
    pip = [UV, "pip", "install", "--python", f"{venv}/bin/python", "--compile-bytecode"]
    what, folder = f"Installing {settings.requirements}", requirements.parent
    locked = hashed or requirements.name == "uv.lock"
    together = ["--requirements", str(extra)] if settings.extra_requirements and not locked else []
    if requirements.name == "uv.lock":
        run([UV, "sync", "--frozen", "--no-dev", "--no-install-project", *python, "--compile-bytecode"], folder, what)
    else:
        run([*pip, "--requirements", str(requirements), *together], folder, what)
    if settings.extra_requirements and locked:
        constraints = extra.with_name(LOCKED_FILE)
        replace_file(constraints, venv.parent, installed(venv))
        command = [*pip, "--constraints", str(constraints), "--requirements", str(extra)]
        run(command, folder, "Installing app_extra_requirements beside the locked versions")


def installed(venv: Path) -> str:
    """Return every package of an environment with its version, as constraints."""
    found = (match for path in venv.glob("lib/python3*/site-packages/*.dist-info") if (match := named(path)))
    return "".join(sorted(f"{match[1]}=={match[2]}\n" for match in found))


def named(path: Path) -> re.Match[str] | None:
    return re.fullmatch(r"(.+)-([^-]+)\.dist-info", path.name)


def with_hint(error: CommandError, settings: Settings) -> ReleaseError:
    """Return the error of a command, with the Debian packages that it asks for in its first line."""
    advice = hint(error.output, settings.system_packages, settings.python)
    if not advice:
        return error
    line = f"{error.what} failed: {advice}"
    return ReleaseError(f"{line}\n{error}", output=error.output, cause=line)


def require_packages(settings: Settings, venv: Path) -> None:
    """Raise ReleaseError, with the line to write, unless the environment has what the processes need."""
    celery = settings.workers or settings.beat

    def has(*patterns: str) -> bool:
        return any(next(venv.glob(f"lib/python3*/site-packages/{pattern}"), None) for pattern in patterns)

    needed = {
        GUNICORN: settings.web and not (venv / "bin/gunicorn").exists(),
        POSTGRESQL: not has("psycopg", "psycopg2", "psycopg2cffi"),
        REDIS: celery and not ((venv / "bin/celery").exists() and has("redis")),
        # gunicorn has a worker for ASGI from version 25 on.
        UVICORN: settings.web and settings.asgi_app and not has("gunicorn/workers/gasgi.py", "uvicorn_worker"),
        GEVENT: any(worker.pool == "gevent" for worker in settings.workers) and not has("gevent"),
    }
    if missing := [name for name, lacks in needed.items() if lacks]:
        names = json.dumps([*settings.extra_requirements, *missing])
        raise ReleaseError(
            f"{settings.requirements} does not install {', '.join(missing)}: add them to it, pinned, or write into "
            f"group_vars/ENV/app.yml, then run site.yml: app_extra_requirements: {names}"
        )


def add_source_folders(settings: Settings, path: Path, project: Path, venv: Path) -> None:
    """Let the environment import packages of a src folder, as an installed project would."""
    top = {name.partition(":")[0].partition(".")[0] for name in (settings.wsgi_app, settings.celery_app) if name}
    folders = dict.fromkeys([path / "src", path / settings.project_dir / "src", project / "src"])
    wanted = [folder for folder in folders if any(is_module(folder / name) for name in top)]
    for packages in venv.glob("lib/python3*/site-packages"):
        # First removed: in a copied environment it is the other release's file.
        (packages / "release_source.pth").unlink(missing_ok=True)
        if wanted:
            replace_file(packages / "release_source.pth", path, "".join(f"{folder}\n" for folder in wanted))


def is_module(path: Path) -> bool:
    return path.is_dir() or path.with_suffix(".py").is_file()


def fingerprint(settings: Settings, requirements: Path, secrets: dict[str, str] | None = None) -> str:
    """Hash everything that decides the content of .venv; "" when the project's own files are installed into it."""
    files = requirement_files([requirements, requirements.with_name("pyproject.toml")])
    texts = [file.read_text() for file in files]
    if any(LOCAL.search(text) for text in [*texts, "\n".join(settings.extra_requirements)]):
        return ""
    # Build commands may install packages, too.
    more = [settings.extra_requirements, settings.build_commands, sorted((secrets or {}).items())]
    parts = [settings.python, sys.version, requirements.name, *texts, json.dumps(more)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def requirement_files(files: list[Path]) -> list[Path]:
    """Return those of the files that exist, and the requirements files that they include."""
    found, waiting = [], list(files)
    while waiting:
        file = waiting.pop()
        if file in found or not file.is_file():
            continue
        found.append(file)
        names = re.findall(r"^\s*-(?:r|c|-requirement|-constraint)[ =]*(\S+)", file.read_text(), re.M)
        waiting += [file.parent / name for name in names]
    return found


def install_git_sources_plainly(file: Path, release: Path) -> None:
    """Remove -e before git repositories: pip keeps a checkout for them, and uv rejects them.

    A file outside of the release stays as it is.
    """
    file, release = file.resolve(), release.resolve()
    if not file.is_relative_to(release):
        return
    before = file.read_text()
    if (after := re.sub(r"^\s*(?:-e|--editable)[ =]*(?=\S*git\+)", "", before, flags=re.M)) != before:
        replace_file(file, release, after)


def find_twin(host: Host, made_from: str) -> Path | None:
    """Return the environment of a release that was made from the same requirements."""
    for release in host.built() if made_from else []:
        mark = host.path(release) / MADE_FROM
        if mark.is_file() and mark.read_text() == made_from:
            return host.path(release) / ".venv"
    return None


def install_git() -> None:
    """Install git where requirements need it: the control machine may not have read them. Raises ReleaseError."""
    if GIT.exists():
        return
    say("The requirements name a git repository: installing git.")
    command = ["apt-get", "-qq", "install", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300", "git"]
    variables = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "DEBIAN_FRONTEND": "noninteractive",
        "NEEDRESTART_SUSPEND": "1",
    }
    done = subprocess.run(command, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReleaseError(
            "the requirements name a git repository, and git could not be installed. Write into "
            f"group_vars/ENV/app.yml, then run site.yml: app_system_packages: [git]\n{done.stderr.strip()}"
        )


def builder(host: Host) -> str:
    """Return the build user. It owns the releases, so that the application cannot change its own code."""
    return f"{host.settings.name}-build"


def base_environment(host: Host) -> dict[str, str]:
    return host.settings.proxy_environment | {
        "HOME": f"/var/cache/{host.settings.name}",
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "SSL_CERT_FILE": SYSTEM_CERTIFICATES,
    }
