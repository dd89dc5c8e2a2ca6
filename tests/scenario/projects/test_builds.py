"""A project that is not complete in git: its build adds private packages, settings and a private key."""

from __future__ import annotations

import base64
import io
import shlex
import subprocess
import tarfile
from pathlib import Path

from package_index import package_index
from user_projects import Project

# This machine, as test hosts reach it.
ADDRESS = "10.177.0.1"
# With what a shell and systemd could change; PEM files end with a line end.
KEY = "-----BEGIN KEY-----\nquotes \" and ' $HOME `id` \\n 100% #\n\n\ttab\n-----END KEY-----\n"
TOKEN = "a-token-for-builds"
REPOSITORY = "/srv/git/private_mail.git"
# What no inspection can know: values and commands of the project's own.
SETTINGS = {
    "app_build_commands": ['mkdir assets && printf %s "$BUILD_TOKEN" | sha256sum > assets/main.js'],
    "app_build_environment": {"BUILD_TOKEN": TOKEN, "INDEX_TOKEN": TOKEN},
    "app_environment": {"PRIVATE_KEY": KEY},
    "app_files": {"config/local_settings.py": {"content": 'GREETING = "from app_files"\n'}},
    "app_database_extensions": ["citext"],
}
PYPROJECT = """
[build-system]
requires = ["flit_core >=3.2,<4"]
build-backend = "flit_core.buildapi"

[project]
name = "private_mail"
version = "1.0"
description = "A package of the project's company."
"""


def run(command: str, folder: Path) -> None:
    subprocess.run(shlex.split(command), cwd=folder, check=True, stdout=subprocess.DEVNULL)


def serve_repository(project: Project, folder: Path) -> Path:
    """Have a git user of the host serve a repository with a package by SSH; return the key that may read it."""
    source = folder / "private_mail"
    source.mkdir()
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "private_mail.py").write_text('GREETING = "from git"\n')
    for command in (
        "git init --quiet",
        "git add --all",
        "git -c user.name=a -c user.email=a@b commit --quiet -m package",
        f"git clone --quiet --bare . {folder}/private_mail.git",
        f"ssh-keygen -q -t ed25519 -N '' -C deploy -f {folder}/deploy_key",
    ):
        run(command, source)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        archive.add(folder / "private_mail.git", "private_mail.git")
    # Git itself comes with the deployment.
    project.host.check_output(
        "id git || useradd --create-home --shell /bin/sh git; mkdir -p /srv/git ~git/.ssh && "
        f"echo {base64.b64encode(stream.getvalue()).decode()} | base64 -d | tar -xz -C /srv/git && "
        f"echo {shlex.quote((folder / 'deploy_key.pub').read_text().strip())} > ~git/.ssh/authorized_keys && "
        "chown -R git: /srv/git ~git && chmod 700 ~git/.ssh"
    )
    return folder / "deploy_key"


def test_a_project_is_completed_by_its_build(project: Project, tmp_path: Path) -> None:
    key = serve_repository(project, tmp_path)

    with package_index(ADDRESS, "private_units", 'GREETING = "from the index"\n', f"company:{TOKEN}") as port:

        def require(folder: Path) -> None:
            requirements = folder / "requirements.txt"
            lines = (
                f"--extra-index-url http://company:${{INDEX_TOKEN}}@{ADDRESS}:{port}/simple",
                f"private_mail @ git+ssh://git@127.0.0.1{REPOSITORY}",
                "private_units==1.0",
            )
            requirements.write_text(requirements.read_text() + "\n".join(lines) + "\n")

        source = project.source("builds", prepare=require)
        run_of_site = project.site(source, app_build_ssh_key=str(key), **SETTINGS).succeeded()
    listing = " ".join(project.listing.split())
    assert "PRIVATE_KEY is read without a default" in listing
    assert "Set app_build_ssh_key" in listing
    visitor = project.visitor()
    greetings = ["from app_files", "from git", "from the index"]
    assert visitor.get("/built").json == {"greetings": greetings, "key": KEY}
    assert visitor.get("/static/main.js").status == 200
    project.writes_notes("first")
    assert visitor.get("/find?text=FIRST").json == {"found": ["first"]}, "the column's type is citext"
    assert TOKEN not in run_of_site.output
    name = project.app.name
    # What only builds may see is not left where the application could read it.
    kept = project.host.run(f"grep -rl {TOKEN} /etc/{name} /srv/{name} /var/log /var/cache/{name} /run").stdout.split()
    assert kept == [f"/etc/{name}/next/build.env"]
    secret = key.read_text().splitlines()[1]
    kept = project.host.run(f"grep -rlF {secret} /etc/{name} /srv/{name} /var/cache/{name} /run").stdout.split()
    assert kept == [f"/etc/{name}/next/build_ssh_key"]
