"""Private SSH keys that a server gets: what it could not use is refused by name, before a host is contacted."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plugin_utils.preflight.backups import check_target
from plugin_utils.preflight.builds import check_ssh_key
from plugin_utils.preflight.problems import Installation, Problem

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKMXJ2zGHsrkdF4zIhPEXC/OkkCoL5M7SPKYvbbiIj+f"


def of_target(here: Path, key: str) -> list[Problem]:
    target = {"type": "sftp", "host": "backup.example.net", "user": "shop", "host_keys": [HOST_KEY], "ssh_key": key}
    values: dict[str, Any] = {"app_backup": True, "app_backup_target": target}
    return list(check_target(Installation(values, {}, here)))


def of_build(here: Path, key: str) -> list[Problem]:
    return list(check_ssh_key(Installation({"app_build_ssh_key": key}, {}, here)))


Check = Callable[[Path, str], list[Problem]]
SETTINGS = pytest.mark.parametrize(
    ("check", "setting"),
    [(of_target, "app_backup_target.ssh_key"), (of_build, "app_build_ssh_key")],
    ids=["target", "build"],
)


def create(file: Path, passphrase: str = "", *options: str) -> str:
    subprocess.run(["ssh-keygen", "-q", "-a", "1", *options, "-N", passphrase, "-f", file], check=True)
    return file.read_text()


@SETTINGS
@pytest.mark.parametrize(
    "options", ["-t ed25519", "-t rsa -b 2048", "-t rsa -b 2048 -m PEM", "-t rsa -b 2048 -m PKCS8"]
)
def test_keys_with_a_passphrase(tmp_path: Path, check: Check, setting: str, options: str) -> None:
    create(tmp_path / "plain", "", *options.split())
    create(tmp_path / "locked", "hunter2-colon", *options.split())
    assert check(tmp_path, "plain") == []
    (problem,) = check(tmp_path, "locked")
    assert problem.name + problem.part == setting
    assert "a key with a passphrase" in problem.sentence
    assert f"ssh-keygen -t ed25519 -N '' -f {tmp_path}/locked-server;" in problem.sentence


def test_a_key_of_another_cipher(tmp_path: Path) -> None:
    create(tmp_path / "key", "hunter2-colon", "-Z", "chacha20-poly1305@openssh.com")
    (problem,) = of_build(tmp_path, "key")
    assert problem.sentence.startswith(f"names {tmp_path}/key, which is encrypted, or of a kind that is not supported")


@SETTINGS
def test_files_that_are_no_private_key(tmp_path: Path, check: Check, setting: str) -> None:
    key = create(tmp_path / "key")
    (tmp_path / "text").write_text("a deploy key\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "half").write_text("".join(key.splitlines(keepends=True)[:3]))
    wrong = {
        "key.pub": f"must name a private SSH key; {tmp_path}/key.pub is a public one. (Name the file without .pub.)",
        "text": f"must name a private SSH key; {tmp_path}/text is none. Create one: ssh-keygen -t ed25519",
        "binary": "must name a private SSH key; ",
        "half": "must name a private SSH key; ",
        "nothing": f"names the file {tmp_path}/nothing, which does not exist on this machine.",
        "~unknown-user/key": "(~unknown-user/key) is in the home folder of a user",
    }
    for name, sentence in wrong.items():
        (problem,) = check(tmp_path, name)
        assert problem.name + problem.part == setting
        assert problem.sentence.startswith(sentence)


@SETTINGS
@pytest.mark.parametrize("public", [False, True])
def test_a_key_instead_of_its_file(tmp_path: Path, check: Check, setting: str, public: bool) -> None:
    """It is not shown."""
    private = create(tmp_path / "key")
    (problem,) = check(tmp_path, (tmp_path / "key.pub").read_text().strip() if public else private)
    assert problem.name + problem.part == setting
    assert problem.sentence == "must be the path of a private SSH key on this machine, not the key itself."
