#!/usr/bin/env python3
"""Snapshots: images of a provisioned host, for scenarios that do not test provisioning.

The first scenario that needs a snapshot builds it: it boots a bare host, runs site.yml on it with the shop and the
defaults, shuts it down and commits it. The image's tag carries a hash of everything that provisions a host.
All snapshots share one set of generated secrets, which a host's inventory gets along with the host.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from machine import ROOT, STATE, SetupError, ensure_engine, exit_with_instructions, only_one, run, timed
from testhost import (
    KEY,
    RELEASES,
    Host,
    Image,
    boot,
    ca_files,
    ensure_image,
    image_is_fresh,
    remove,
    remove_images,
    stop,
)

FOLDER = STATE / "snapshots"
SECRETS = FOLDER / "secrets"
# A snapshot is built on this address, and boots as another host with an address of its own.
ADDRESSES = {"debian12": "10.177.0.8", "debian13": "10.177.0.9"}
GROUPS = ("demo_shop", "web", "worker", "scheduler", "database", "broker")
# Everything that determines what site.yml makes of a bare host.
INPUTS = (
    *("ansible.cfg", "app_src", "group_vars", "hostctl", "playbooks", "plugins", "requirements.txt", "roles"),
    *("site.yml", "tools/snapshot.py"),
)


def input_files() -> Iterator[Path]:
    for name in INPUTS:
        place = ROOT / name
        files = sorted(place.rglob("*")) if place.is_dir() else [place]
        yield from (file for file in files if file.is_file() and "__pycache__" not in file.parts)


def digest(base: str, secrets: str) -> str:
    """Return a hash of the base image's tag, the set of secrets, and every file that provisions a host."""
    found = hashlib.sha256(f"{base} {secrets}".encode())
    for file in input_files():
        found.update(f"{file.relative_to(ROOT)}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return found.hexdigest()[:12]


def secrets_id() -> str:
    """Return the name of this clone's set of secrets; the secrets themselves are made by the first build."""
    with only_one("snapshot-secrets"):
        SECRETS.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = FOLDER / "secrets.id"
        if not file.exists():
            file.write_text(uuid.uuid4().hex)
        return file.read_text()


def inventory(system: str) -> dict:
    host = {
        "ansible_host": ADDRESSES[system],
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(KEY),
        "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
        "app_memory_mb": 1024,
        "app_secrets": str(SECRETS),
        "app_trusted_addresses": ["10.177.0.1"],
        "app_rate_limit": {"requests_per_second": 0, "burst": 0, "connections": 0},
        "base_ca_certificates": [str(file) for file in ca_files()],
    }
    return {
        "all": {
            "hosts": {"snapshot": host},
            "children": {group: {"hosts": {"snapshot": {}}} for group in GROUPS},
        }
    }


def ensure_snapshot(docker: list[str], system: str) -> str:
    """Build the snapshot unless it exists; return its tag. Other processes wait for the build."""
    base = ensure_image(docker, Image(system, "test-host"))
    label = f"{system}-snapshot"
    tag = f"seedbed:{label}-{digest(base, secrets_id())}"
    with only_one(label):
        if not (any(SECRETS.iterdir()) and image_is_fresh(docker, tag)):
            with timed(f"Building the snapshot {tag}"):
                remove_images(docker, label)
                build(docker, system, base, tag)
    return tag


def build(docker: list[str], system: str, base: str, tag: str) -> None:
    host = Host(f"snapshot-{system}", FOLDER / system)
    boot(docker, host, base, ADDRESSES[system])
    try:
        provision(system)
        stop(docker, host, "poweroff")
        run([*docker, "commit", host.container, tag])
    finally:
        remove(docker, host)


def provision(system: str) -> None:
    """Run site.yml. Raises SetupError with the end of its output."""
    file = FOLDER / system / "inventory" / "hosts.yml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(inventory(system), indent=2))
    log = FOLDER / system / "site.log"
    playbook = str(Path(sys.executable).parent / "ansible-playbook")
    # Not the settings of the scenario that needs the snapshot.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "MOLECULE_"))}
    environment |= {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    if home := os.environ.get("ANSIBLE_HOME"):
        environment["ANSIBLE_HOME"] = home
    with log.open("w") as output:
        command = [playbook, f"--inventory={file}", str(ROOT / "site.yml")]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    if done.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-60:])
        raise SetupError(f"site.yml failed on the host for the snapshot ({log}):\n{tail}")


def up(host: Host, system: str, address: str, secrets: Path) -> None:
    """Replace the host with one from the snapshot; give its inventory the snapshot's secrets."""
    docker = ensure_engine()
    image = ensure_snapshot(docker, system)
    with only_one("snapshot-secrets"):
        shutil.rmtree(secrets, ignore_errors=True)
        shutil.copytree(SECRETS, secrets)
    boot(docker, host, image, address)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    build = commands.add_parser("build", help="build the snapshot unless it exists")
    build.add_argument("--os", choices=RELEASES, default="debian13")
    make = commands.add_parser("up", help="create a host from the snapshot; replaces one of that name")
    make.add_argument("name", help="its container is called seedbed-NAME")
    make.add_argument("--os", choices=RELEASES, default="debian13")
    make.add_argument("--address", required=True)
    make.add_argument("--secrets", type=Path, required=True, help="the folder that gets the generated secrets")
    return parser.parse_args(words)


def main() -> None:
    given = parse()
    if given.command == "build":
        print(ensure_snapshot(ensure_engine(), given.os))
    else:
        up(Host(given.name, STATE / given.name), given.os, given.address, given.secrets)


if __name__ == "__main__":
    exit_with_instructions(main)
