"""The recovery kit: what a person types who has nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template

ROLE = Path(__file__).parents[2] / "roles/backup"
# The one of root on Debian, and that of /bin/sh (dash), whose echo interprets backslashes.
SHELLS = ["bash", "sh"]
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n-----END OPENSSH PRIVATE KEY-----\n"
TARGET = {
    "type": "sftp", "host": "backup.example.net", "port": 2222, "user": "shop", "folder": "shop",
    "host_keys": ["ssh-ed25519 AAAA", "ecdsa-sha2-nistp256 BBBB"],
}  # fmt: skip


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
    variables = {
        "backup_name": "shop", "backup_postgresql_version": "17", "backup_postgresql_data": "/data",
        "backup_target": TARGET | {"ssh_key": str(folder / "key")}, "backup_key": "a'b $c\\n",
        "backup_files_key": "files", "backup_secrets": {"django_key": "d", "backup_files_key": "files"},
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
    part = typed(kit(tmp_path), "(umask 027; cat >/etc/pgbackrest.conf", "  # Up to where").replace(
        "/etc/", f"{tmp_path}/"
    )
    run(shell, f'chgrp() {{ echo "$@" >{tmp_path}/group; }}\numask 022\n{part}')
    written = file.read_text()
    assert written.startswith("[global]\n")
    assert "repo1-cipher-pass=a'b $c\\n\n" in written
    assert written.endswith("[shop]\npg1-path=/data\n")
    assert file.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "group").read_text() == f"postgres {file}\n"


def test_packages_take_no_line_that_is_pasted_after_them(tmp_path: Path) -> None:
    commands = 'apt-get() { [ "$1" = update ] || { env >env; cat; }; }\n'
    part = typed(kit(tmp_path), "  apt-get update", "  install -d")
    text = f"{commands}{part}echo went on"
    done = subprocess.run(["bash"], cwd=tmp_path, input=text, capture_output=True, text=True, check=True)
    assert done.stdout == "went on\n"
    assert "DEBIAN_FRONTEND=noninteractive\n" in (tmp_path / "env").read_text()


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    "shipped", ['{\n "seconds": 1.5,\n "lsn": "0/11000110",\n "host": "shop"\n}\n', '{\n "lsn": "0/1']
)
def test_the_position_is_read_from_the_target(tmp_path: Path, shell: str, shipped: str) -> None:
    (tmp_path / "shipped.json").write_text(shipped)
    part = typed(kit(tmp_path), "  LSN=", "  systemctl stop") + typed(kit(tmp_path), "  runuser", "  # Without")
    commands = 'rclone() { cat "${2#offsite:*/}"; }; runuser() { echo "$@" >restored; }\n'
    done = subprocess.run([shell, "-c", commands + part], cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=False)
    if shipped.endswith("}\n"):
        assert done.stdout == "0/11000110\n"
        assert "--type=lsn --target=0/11000110 --target-action=promote" in (tmp_path / "restored").read_text()
    else:
        assert done.returncode != 0, "nothing is restored without a position"
        assert not (tmp_path / "restored").exists()


def new_machine(text: str) -> str:
    """Return the commands for a new machine."""
    part = text[text.index("\n(\n  umask 077; mkdir -p") :]
    part = part.partition("\nIs group_vars/ENV lost")[0]
    return part.replace("\nThe SSH key", "\n# The SSH key")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_secrets_are_written_where_ansible_reads_them(tmp_path: Path, shell: str) -> None:
    run(shell, f"umask 022\n{new_machine(kit(tmp_path))}\numask >umask", tmp_path)
    folder = tmp_path / "inventory/.secrets/production"
    found = {file.name: file.read_text() for file in folder.iterdir()}
    assert found == {"backup_key": "a'b $c\\n\n", "backup_files_key": "files\n", "django_key": "d\n"}
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
    assert (tmp_path / "umask").read_text().strip() == "0022", "the shell stays in its folder and keeps its umask"


@pytest.mark.parametrize(
    ("folder", "written"),
    [
        ("app/inventory/.secrets/a b", "'inventory/.secrets/a b'"),
        ("app/secrets", "secrets"),
        ("kept/secrets", "{}/kept/secrets"),
    ],
)
def test_the_folder_of_the_secrets_is_that_of_app_secrets(tmp_path: Path, folder: str, written: str) -> None:
    path = tmp_path / folder
    repository = tmp_path / "app"
    repository.mkdir()
    text = kit(tmp_path, backup_kit=f"{path}/recovery-kit.txt", role_path=f"{repository}/roles/backup")
    assert f"mkdir -p {written.format(tmp_path)} && cd {written.format(tmp_path)}\n" in text
    assert f"on the former machine\n{path}:\n" in text
    run("sh", new_machine(text), repository)
    assert (path / "django_key").read_text() == "d\n"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("configured", "told", "written"),
    [
        ("{}/app/inventory/a key", "inventory/a key", "app/inventory/a key"),
        ("{}/outside/key", "{}/outside/key", "outside/key"),
        ("inventory/key", "inventory/key", "app/inventory/key"),
        ("~/.ssh/a key", "~/.ssh/a key", ".ssh/a key"),
    ],
)
def test_the_key_of_the_target_is_written_where_its_settings_name_it(
    tmp_path: Path, shell: str, configured: str, told: str, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    repository = tmp_path / "app"
    key = tmp_path / written
    key.parent.mkdir(parents=True)
    key.write_text(KEY)
    target = TARGET | {"ssh_key": configured.format(tmp_path)}
    text = kit(
        tmp_path, backup_target=target, backup_target_folder="copies/shop", role_path=f"{repository}/roles/backup"
    )
    key.unlink()
    repository.mkdir(exist_ok=True)
    run(shell, new_machine(text), repository)
    assert key.read_text() == KEY
    assert key.stat().st_mode & 0o777 == 0o600
    settings = yaml.safe_load(text[text.index("\napp_backup_target:") :])["app_backup_target"]
    assert settings == target | {"ssh_key": told.format(tmp_path), "folder": "copies/shop"}


def test_the_settings_of_an_s3_target_are_told(tmp_path: Path) -> None:
    target = {
        "type": "s3",
        "endpoint": "https://s3.example.net",
        "bucket": "b",
        "access_key": "a",
        "secret_key": "s: '$",
    }
    text = kit(tmp_path, backup_target=target, backup_target_folder="shop")
    settings = yaml.safe_load(text[text.index("\napp_backup_target:") :])["app_backup_target"]
    assert settings == target | {"folder": "shop"}
    assert "SSH key" not in text


@pytest.mark.parametrize(("version", "debian"), [("17", "13"), ("15", "12")])
def test_the_debian_is_named(tmp_path: Path, version: str, debian: str) -> None:
    text = kit(tmp_path, backup_postgresql_version=version)
    assert f"The usual way: a new server with a bare Debian {debian} (PostgreSQL {version})," in text
    assert f"As root on a bare\nDebian {debian} (PostgreSQL {version}), in one shell" in text


def test_without_a_target_it_is_said(tmp_path: Path) -> None:
    assert "There is no copy off the server" in kit(tmp_path, backup_target={})
