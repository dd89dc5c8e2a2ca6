#!/usr/bin/env python3
"""Test hosts: Debian servers that have booted systemd, in containers, reached by SSH.

A test host is as bare as a new VPS (no Python, no sudo) and as small (1 GiB).
Every command is idempotent. Standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from machine import (
    ROOT,
    STATE,
    SetupError,
    as_root,
    ensure_engine,
    ensure_packages,
    exit_with_instructions,
    only_one,
    run,
    say,
    succeeds,
    timed,
)

RELEASES = {"debian12": ("debian:12", "bookworm"), "debian13": ("debian:13", "trixie")}
CA_FOLDER = Path("/usr/local/share/ca-certificates")
IMAGE_AGE = timedelta(days=7)
PULL_SECONDS = 60
BOOT_SECONDS = 90

NETWORK = "seedbed"
SUBNET = "10.177.0.0/24"
MEMORY = "1g"
KEY = STATE / "id_ed25519"
TOOLS = Path(__file__).resolve().parent

# systemd needs a cgroup tree of its own, mounted as version 2 even where the machine's is version 1.
CONTAINER_FLAGS = [
    *("--cap-add", "SYS_ADMIN", "--cap-add", "NET_ADMIN", "--cap-add", "SYS_PTRACE"),
    *("--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"),
    "--cgroupns=private",
    *("--tmpfs", "/run", "--tmpfs", "/run/lock", "--tmpfs", "/tmp"),
    *("--env", "container=docker"),
    *("--memory", MEMORY),
]
BOOT = "umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup; exec /lib/systemd/systemd"

# In the middle of a test or a build, packages would be upgraded, services restarted and apt's lock held. And dpkg would
# wait for the disk after each file, for which a host without power failures has no need.
THROWAWAY = """\
set -e
for unit in apt-daily apt-daily-upgrade; do
  mkdir -p /etc/systemd/system/$unit.service.d
  printf '[Service]\\nExecCondition=/bin/false\\n' >/etc/systemd/system/$unit.service.d/90-test-host.conf
done
mkdir -p /etc/dpkg/dpkg.cfg.d
echo force-unsafe-io >/etc/dpkg/dpkg.cfg.d/90-test-host
systemctl daemon-reload
"""

# The common part of both images. policy-rc.d keeps services from starting during the build. A registry's Debian has
# settings for containers: they are removed, so that a host behaves like an installed one. `ca` holds this machine's
# own authorities.
RECIPE = """\
FROM {base}
ARG DEBIAN_FRONTEND=noninteractive
RUN rm -f /etc/apt/apt.conf.d/docker-* /etc/dpkg/dpkg.cfg.d/docker* \\
 && printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d \\
 && apt-get -qq update \\
 && apt-get -qq install --yes --no-install-recommends {packages} >/dev/null \\
 && apt-get clean && rm -rf /usr/sbin/policy-rc.d /var/lib/apt/lists/*
COPY ca /usr/local/share/ca-certificates
RUN update-ca-certificates >/dev/null 2>&1
"""
RECIPE_END = {
    "test-host": "STOPSIGNAL SIGRTMIN+3\n",
    "application-tests": "ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt\n",
}
PACKAGES = {
    "test-host": "systemd systemd-sysv dbus openssh-server iproute2 procps ca-certificates",
    "application-tests": "postgresql redis-server prometheus python3-venv libfaketime ca-certificates",
}


# --- Images ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Image:
    """An image and its recipe; the tag carries a hash of everything that goes into it."""

    os: str
    variant: str

    @property
    def label(self) -> str:
        return f"{self.os}-{self.variant}"

    def recipe(self, base: str) -> str:
        return RECIPE.format(base=base, packages=PACKAGES[self.variant]) + RECIPE_END[self.variant]

    @property
    def tag(self) -> str:
        digest = hashlib.sha256(self.recipe(RELEASES[self.os][0]).encode())
        for certificate in ca_files():
            digest.update(certificate.read_bytes())
        return f"seedbed:{self.label}-{digest.hexdigest()[:12]}"


def ca_files() -> list[Path]:
    """Return the authorities' certificates that were added to this machine."""
    return sorted(CA_FOLDER.glob("*.crt"))


def is_fresh(created: str, now: datetime) -> bool:
    """Return whether an image created at that time (RFC 3339) has packages that are recent enough."""
    return now - datetime.fromisoformat(created[:19]).replace(tzinfo=UTC) < IMAGE_AGE


def ensure_image(docker: list[str], image: Image) -> str:
    """Build the image unless a recent one exists; return its tag."""
    with only_one(f"image-{image.label}"):
        if image_is_fresh(docker, image.tag):
            return image.tag
        with timed(f"Building the image {image.tag}"):
            remove_images(docker, image.label)
            build(docker, image, ensure_base(docker, image.os))
    return image.tag


def image_is_fresh(docker: list[str], tag: str) -> bool:
    if not succeeds([*docker, "image", "inspect", tag]):
        return False
    created = run([*docker, "image", "inspect", "--format", "{{.Created}}", tag])
    return is_fresh(created, datetime.now(UTC))


def remove_images(docker: list[str], label: str) -> None:
    """Remove the images of that label; an image that a container uses stays."""
    listing = [*docker, "image", "ls", "--filter", f"reference=seedbed:{label}-*"]
    for tag in run([*listing, "--format", "{{.Repository}}:{{.Tag}}"]).split():
        succeeds([*docker, "image", "rm", tag])


def build(docker: list[str], image: Image, base: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        (context / "ca").mkdir()
        for certificate in ca_files():
            shutil.copy(certificate, context / "ca")
        (context / "Dockerfile").write_text(image.recipe(base))
        run([*docker, "build", "--quiet", "--no-cache", "--tag", image.tag, folder])


def ensure_base(docker: list[str], os: str) -> str:
    """Return Debian's image: the registry's, or one made with mmdebstrap if no registry answers."""
    name, codename = RELEASES[os]
    with only_one(f"base-{os}"):
        if pull(docker, name):
            return name
        base = f"seedbed:{os}-base"
        if not image_is_fresh(docker, base):
            if not shutil.which("mmdebstrap"):
                ensure_packages(
                    ["mmdebstrap", "debian-archive-keyring"],
                    "No image registry answers, so Debian's image is made from its packages",
                )
            with timed(f"Making {name} from Debian's packages"):
                bootstrap(docker, codename, base)
        return base


def pull(docker: list[str], name: str) -> bool:
    """Return whether the registry delivered the image within PULL_SECONDS."""
    try:
        result = subprocess.run([*docker, "pull", "--quiet", name], capture_output=True, timeout=PULL_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return result.returncode == 0


def bootstrap(docker: list[str], codename: str, tag: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive = f"{folder}/base.tar"
        run(["mmdebstrap", "--quiet", "--variant=minbase", codename, archive])
        run([*docker, "import", archive, tag])


# --- Hosts -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Host:
    """A test host: `name` is its host name and its alias in `folder`/ssh_config."""

    name: str
    folder: Path

    @property
    def container(self) -> str:
        return f"seedbed-{self.name}"

    @property
    def ssh_config(self) -> Path:
        return self.folder / "ssh_config"


def ssh_endpoint(address: str, published: Sequence[str]) -> tuple[str, int]:
    """Return where SSH answers: on the published port if there is one, else on the host's own address."""
    for entry in published:
        ip, port, inner = entry.split(":")
        if inner == "22":
            return ip, int(port)
    return address, 22


def ssh_config_text(host: Host, address: str, port: int) -> str:
    """Return an SSH configuration for one throwaway host, whose host key is new each time."""
    return (
        f"Host {host.name}\n"
        f"  HostName {address}\n"
        f"  Port {port}\n"
        "  User root\n"
        f'  IdentityFile "{KEY}"\n'
        "  IdentitiesOnly yes\n"
        "  StrictHostKeyChecking no\n"
        "  UserKnownHostsFile /dev/null\n"
        "  LogLevel ERROR\n"
    )


def interfaces_change() -> AbstractContextManager[None]:
    """Hold off browser tests: Chromium aborts its requests when an interface appears or disappears."""
    return only_one("interfaces", shared=True)


def up(host: Host, os: str, address: str, published: Sequence[str], *, upgrades: bool = False) -> None:
    """Replace the host with a bare one, and wait until SSH answers. For `upgrades`, see `boot`."""
    docker = ensure_engine()
    image = ensure_image(docker, Image(os, "test-host"))
    boot(docker, host, image, address, published, upgrades=upgrades)


def boot(
    docker: list[str], host: Host, image: str, address: str, published: Sequence[str] = (), *, upgrades: bool = False
) -> None:
    """Replace the host with a new one from an image, and wait until SSH answers.

    Without `upgrades`, Debian's daily and nightly runs of apt do nothing on it, and dpkg does not wait for the disk.
    """
    with interfaces_change(), timed(f"Booting {host.name} from {image}"):
        remove(docker, host)
        ensure_network(docker)
        ports = [word for entry in published for word in ("--publish", entry)]
        place = ["--network", NETWORK, "--ip", address, *ports]
        names = ["--name", host.container, "--hostname", host.name]
        run([*docker, "run", "--detach", *names, *place, *CONTAINER_FLAGS, image, "sh", "-c", BOOT])
        wait_for_boot(docker, host)
        if not upgrades:
            run([*docker, "exec", host.container, "sh", "-c", THROWAWAY])
        authorize(docker, host)
        host.folder.mkdir(parents=True, exist_ok=True)
        host.ssh_config.write_text(ssh_config_text(host, *ssh_endpoint(address, published)))
        wait_for_ssh(host)


def down(host: Host) -> None:
    """Remove the host and its SSH configuration, if they exist."""
    docker = ensure_engine()
    with interfaces_change():
        remove(docker, host)
    shutil.rmtree(host.folder, ignore_errors=True)
    say(f"{host.name} is removed.")


def reboot(host: Host) -> None:
    """Reboot with `systemctl reboot`, and wait until SSH answers again."""
    docker = ensure_engine()
    with interfaces_change(), timed(f"Rebooting {host.name}"):
        stop(docker, host, "reboot")
        run([*docker, "start", host.container])
        wait_for_boot(docker, host)
        wait_for_ssh(host)


def stop(docker: list[str], host: Host, how: str) -> None:
    """Shut the host down cleanly; `how` is systemctl's command, poweroff or reboot."""
    run([*docker, "exec", host.container, "systemctl", how])
    run([*docker, "wait", host.container])


def remove(docker: list[str], host: Host) -> None:
    if succeeds([*docker, "container", "inspect", host.container]):
        run([*docker, "rm", "--force", "--volumes", host.container])


def ensure_network(docker: list[str]) -> None:
    with only_one("network"):
        if not succeeds([*docker, "network", "inspect", NETWORK]):
            run([*docker, "network", "create", "--subnet", SUBNET, NETWORK])
        root = as_root()
        if root is not None and shutil.which("iptables"):
            iptables = [*root, "iptables", "--table", "nat"]
            bridges = {path.name for path in Path("/sys/class/net").iterdir()}
            for rule in stale_rules(run([*iptables, "--list-rules", "POSTROUTING"]), bridges):
                run([*iptables, "--delete", *rule])


def stale_rules(rules: str, bridges: Collection[str]) -> list[list[str]]:
    """Return the NAT rules of bridges that do not exist any more, which a killed engine leaves.

    With them, packets between two test hosts would carry this machine's address.
    """
    words = [line.split()[1:] for line in rules.splitlines() if f"-s {SUBNET} ! -o br-" in line]
    return [rule for rule in words if rule[rule.index("-o") + 1] not in bridges]


def wait_for_boot(docker: list[str], host: Host) -> None:
    """Wait until systemd has booted; print failed units. Raises SetupError after BOOT_SECONDS."""
    inside = [*docker, "exec", host.container, "systemctl"]
    state, deadline = "", time.monotonic() + BOOT_SECONDS
    while time.monotonic() < deadline:
        result = subprocess.run([*inside, "is-system-running"], capture_output=True, text=True)
        state = result.stdout.strip()
        if state == "running":
            return
        if state == "degraded":
            say(f"{host.name} has failed units:\n{run([*inside, '--failed', '--no-legend'])}")
            return
        time.sleep(0.5)
    log = run([*docker, "logs", "--tail", "20", host.container])
    raise SetupError(f"{host.name} is still `{state}` {BOOT_SECONDS} s after its start.\n{log}")


def authorize(docker: list[str], host: Host) -> None:
    """Authorize the test hosts' key for root, as a provider does on a new VPS."""
    with only_one("key"):
        if not KEY.exists():
            comment = "throwaway test hosts"
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(KEY)])
    public = KEY.with_suffix(".pub").read_text()
    install = "umask 077 && mkdir -p /root/.ssh && cat >/root/.ssh/authorized_keys"
    run([*docker, "exec", "--interactive", host.container, "sh", "-c", install], stdin=public)


def wait_for_ssh(host: Host) -> None:
    command = ["ssh", "-F", str(host.ssh_config), "-o", "ConnectTimeout=5", host.name, "true"]
    deadline = time.monotonic() + BOOT_SECONDS
    while not succeeds(command):
        if time.monotonic() > deadline:
            raise SetupError(f"{host.name} does not answer. To see why, run: {' '.join(command)}")
        time.sleep(0.5)


# --- Tests on a Debian's own services --------------------------------------------------------------------------

# Their names are those that app-tests.sh takes.
APPLICATION_SUITES = ("app", "host_services", "in_app")


def application_tests(os: str, results: Path, suites: Sequence[str]) -> int:
    """Run suites with app-tests.sh in a container; JUnit files go to `results`. Returns the exit status."""
    docker = ensure_engine()
    image = ensure_image(docker, Image(os, "application-tests"))
    results.mkdir(parents=True, exist_ok=True)
    results.chmod(0o777)  # The tests do not run as root.
    mounts = {
        ROOT / "app_src": "/app:ro",
        ROOT / "hostctl": "/seedbed/hostctl:ro",
        ROOT / "roles": "/seedbed/roles:ro",  # The users of Redis.
        ROOT / "tests": "/seedbed/tests:ro",
        ROOT / "docs": "/seedbed/docs:ro",  # What they show is run.
        TOOLS / "app-tests.sh": "/app-tests.sh:ro",
        find_uv(): "/usr/local/bin/uv:ro",
        results: "/results",
        f"seedbed-{os}-cache": "/cache",
    }
    volumes = [word for source, target in mounts.items() for word in ("--volume", f"{source}:{target}")]
    options = ["--rm", "--init", "--cap-add", "NET_ADMIN", "--tmpfs", "/work:exec", *volumes]
    options += ["--env", f"JUNIT=/results/{os}"]
    return subprocess.run([*docker, "run", *options, image, "bash", "/app-tests.sh", *suites]).returncode


def find_uv() -> Path:
    """Return the uv beside this Python, as in .venv, or on the PATH."""
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if not found:
        raise SetupError("uv is missing. Use the virtual environment: .venv/bin/python tools/testhost.py ...")
    return Path(found).resolve()


# --- Command line ------------------------------------------------------------------------


def chosen_host(arguments: argparse.Namespace) -> Host:
    return Host(arguments.name, arguments.folder or STATE / arguments.name)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; `run` of the result executes the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    engine = commands.add_parser("engine", help="install and start a container engine if none answers")
    engine.set_defaults(run=lambda _: ensure_engine())

    image = commands.add_parser("image", help="build a host's image unless a recent one exists")
    image.add_argument("os", choices=RELEASES)
    image.set_defaults(run=lambda given: ensure_image(ensure_engine(), Image(given.os, "test-host")))

    tests = commands.add_parser("application-tests", help="run the application's own tests in a container")
    tests.add_argument("os", choices=RELEASES)
    tests.add_argument("results", type=lambda path: Path(path).resolve(), help="the folder for their JUnit file")
    tests.add_argument("suites", nargs="+", choices=APPLICATION_SUITES, help="which of them")
    tests.set_defaults(run=lambda given: sys.exit(application_tests(given.os, given.results, given.suites)))

    host = argparse.ArgumentParser(add_help=False)
    host.add_argument("name", help="its container is called seedbed-NAME")
    host.add_argument("--folder", type=Path, help="where its ssh_config goes; default: .testhosts/NAME")

    make = commands.add_parser("up", parents=[host], help="create a bare host; replaces one of that name")
    make.add_argument("--os", choices=RELEASES, default="debian13")
    make.add_argument("--address", required=True, help=f"a free address of {SUBNET}")
    make.add_argument("--publish", action="append", default=[], metavar="IP:PORT:PORT", help="as in docker run")
    make.set_defaults(run=lambda given: up(chosen_host(given), given.os, given.address, given.publish))

    remove = commands.add_parser("down", parents=[host], help="remove a host")
    remove.set_defaults(run=lambda given: down(chosen_host(given)))

    restart = commands.add_parser("reboot", parents=[host], help="reboot a host")
    restart.set_defaults(run=lambda given: reboot(chosen_host(given)))
    return parser.parse_args(words)


def main() -> None:
    arguments = parse()
    arguments.run(arguments)


if __name__ == "__main__":
    exit_with_instructions(main)
