"""The recovery kit: what a person types who has nothing else."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template

ROLE = Path(__file__).parents[2] / "roles/backup"
# The one of root on Debian, and that of /bin/sh (dash), whose echo interprets backslashes.
SHELLS = ["bash", "sh"]
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n-----END OPENSSH PRIVATE KEY-----\n"


@pytest.fixture(scope="module", autouse=True)
def _plugins() -> None:
    init_plugin_loader()


def kit(folder: Path, **given: object) -> str:
    """Return the kit of a server with PostgreSQL 17 and an SFTP target."""
    (folder / "key").write_text(KEY)
    loader = DataLoader()
    loader.set_basedir(str(ROLE / "templates"))
    known = {}
    for name in ("defaults", "vars"):
        known |= loader.load_from_file(str(ROLE / name / "main.yml"), trusted_as_template=True)
    target = {
        "type": "sftp", "host": "backup.example.net", "port": 2222, "user": "shop", "folder": "shop",
        "ssh_key": str(folder / "key"), "host_keys": ["ssh-ed25519 AAAA", "ecdsa-sha2-nistp256 BBBB"],
    }  # fmt: skip
    variables = {
        "backup_name": "shop", "backup_postgresql_version": "17", "backup_postgresql_data": "/data",
        "backup_target": target, "backup_key": "a'b $c\\n", "backup_files_key": "files",
        "backup_secrets": {"django_key": "d", "backup_files_key": "files"},
        "backup_kit": "/home/ada/inventory/.secrets/production/kit", "playbook_dir": str(ROLE),
        "role_path": "/home/ada/roles/backup",
    }  # fmt: skip
    text = loader.get_text_file_contents(str(ROLE / "templates/recovery-kit.txt.j2"))
    return Templar(loader, variables=known | variables | given).template(trust_as_template(text))


def typed(text: str, begin: str, end: str) -> str:
    """Return a part of the kit, as a person pastes it into a shell."""
    return text[text.index(begin) : text.index(end)]


def run(shell: str, text: str, folder: Path | None = None) -> None:
    subprocess.run([shell, "-ec", text], cwd=folder, check=True)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_target_is_reached_with_what_the_kit_has(tmp_path: Path, shell: str) -> None:
    part = typed(kit(tmp_path), "  # The target", "  # The database").replace("/etc/shop", str(tmp_path))
    run(shell, part + "\nenv >env", tmp_path)
    environment = (tmp_path / "env").read_text()
    assert "RCLONE_CONFIG_OFFSITE_HOST=backup.example.net\n" in environment
    assert "RESTIC_PASSWORD=files\n" in environment
    assert (tmp_path / "backup.key").read_text() == KEY
    assert (tmp_path / "backup.key").stat().st_mode & 0o777 == 0o600
    hosts = (tmp_path / "backup.hosts").read_text()
    assert hosts == "[backup.example.net]:2222 ssh-ed25519 AAAA\n[backup.example.net]:2222 ecdsa-sha2-nistp256 BBBB\n"


@pytest.mark.parametrize("before", [False, True], ids=["new", "of the package"])
@pytest.mark.parametrize("shell", SHELLS)
def test_the_configuration_is_written_as_a_whole(tmp_path: Path, shell: str, before: bool) -> None:
    file = tmp_path / "pgbackrest.conf"
    if before:
        file.touch(0o644)
    part = typed(kit(tmp_path), "(umask 027; cat >/etc/pgbackrest.conf", "  rclone cat").replace(
        "/etc/", f"{tmp_path}/"
    )
    run(shell, f'chgrp() {{ echo "$@" >{tmp_path}/group; }}\numask 022\n{part}')
    written = file.read_text()
    assert written.startswith("[global]\n")
    assert "repo1-cipher-pass=a'b $c\\n\n" in written
    assert written.endswith("[shop]\npg1-path=/data\n")
    assert file.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "group").read_text() == f"postgres {file}\n"


def secrets(text: str) -> str:
    """Return the commands that write the secrets."""
    return text[text.index("  umask 077; mkdir -p") :]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_secrets_are_written_where_ansible_reads_them(tmp_path: Path, shell: str) -> None:
    run(shell, secrets(kit(tmp_path)), tmp_path)
    folder = tmp_path / "inventory/.secrets/production"
    found = {file.name: file.read_text() for file in folder.iterdir()}
    assert found == {"backup_key": "a'b $c\\n\n", "backup_files_key": "files\n", "django_key": "d\n"}


@pytest.mark.parametrize(
    ("folder", "told"),
    [
        ("app/inventory/.secrets/a b", "inventory/.secrets/a b of the repository (on this machine: {})"),
        ("app/secrets", "secrets of the repository (on this machine: {})"),
        ("kept/secrets", "app_secrets (on this machine: {})"),
    ],
)
def test_the_folder_of_the_secrets_is_that_of_app_secrets(tmp_path: Path, folder: str, told: str) -> None:
    path = tmp_path / folder
    repository = tmp_path / "app"
    repository.mkdir()
    text = kit(tmp_path, backup_kit=f"{path}/recovery-kit.txt", role_path=f"{repository}/roles/backup")
    assert f"Secrets, for the folder {told.format(path)}:\n" in text
    run("sh", secrets(text), repository)
    assert (path / "django_key").read_text() == "d\n"


@pytest.mark.parametrize(("version", "debian"), [("17", "13"), ("15", "12")])
def test_the_debian_is_named(tmp_path: Path, version: str, debian: str) -> None:
    text = kit(tmp_path, backup_postgresql_version=version)
    assert re.search(rf"As root on a bare Debian\n{debian} \(PostgreSQL {version}\):\n", text)


def test_without_a_target_it_is_said(tmp_path: Path) -> None:
    assert "There is no copy off the server" in kit(tmp_path, backup_target={})
