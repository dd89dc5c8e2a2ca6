"""`doctor`: disk, memory, updates, ports, access and edited files."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hostctl.backup.tools import ToolError
from hostctl.deploy.record import Record, history_file
from hostctl.doctor import applied, checks, commands, drift, network, system
from hostctl.doctor.configuration import Configuration
from hostctl.doctor.finding import BAD, OK, WARN, Check, Context, Finding
from hostctl.host import Host
from hostctl.processes.state import ProcessState
from hostctl.processes.supervisor import Supervisor
from hostctl.processes.systemd import Systemd, services
from hostctl.settings import ReleaseError
from tests.hostctl.fakes import NEW, OLD, Manager

pytestmark = pytest.mark.usefixtures("remedies")

DAY = 86400
GIGABYTE = 10**9


@pytest.fixture
def context(live: Host, tmp_path: Path) -> Context:
    ports = {"22": "world", "80": "world", "443": "world", "6379": "installation"}
    return Context(live, Configuration("shop", ports=ports, etc=tmp_path / "etc", state=tmp_path), now=time.time())


def watch(context: Context, seconds: float = 0) -> Context:
    """Return the context of the watch, a while later, with the same memory."""
    return Context(
        context.host, context.configuration, memory=context.memory, watches=True, now=context.now + seconds
    )  # fmt: skip


# --- Disk ----------------------------------------------------------------------------------------------------------


def with_disks(monkeypatch: pytest.MonkeyPatch, **shares: tuple[float, float]) -> None:
    """Have a disk of 100 GB at each folder: the shares of its space and of its inodes that are used."""
    found = {
        f"/{name}": SimpleNamespace(
            f_frsize=1, f_blocks=100 * GIGABYTE, f_bfree=round((1 - space) * 100 * GIGABYTE),
            f_bavail=round((1 - space) * 100 * GIGABYTE), f_files=100, f_favail=round((1 - inodes) * 100),
        )
        for name, (space, inodes) in shares.items()
    }  # fmt: skip
    monkeypatch.setattr(system, "file_systems", lambda folders: found)


@pytest.mark.parametrize(
    ("space", "inodes", "state"),
    [(0.5, 0.1, OK), (0.79, 0.79, OK), (0.81, 0.1, WARN), (0.91, 0.1, BAD), (0.1, 0.85, WARN), (0.1, 0.95, BAD)],
)
def test_disk(context: Context, monkeypatch: pytest.MonkeyPatch, space: float, inodes: float, state: str) -> None:
    with_disks(monkeypatch, boot=(0.2, 0.0), srv=(space, inodes))
    found = system.disk(context)
    assert (found.state, found.alerts) == (state, state != OK)
    assert f"/srv {space * 100:.1f} of 100.0 GB, inodes {inodes * 100:.0f} %" in found.text
    assert state == OK or found.text.endswith(f" % used (limit {90 if state == BAD else 80} %)")
    # Of the fullest one.
    assert found.values["disk_used"] == pytest.approx(max(space, 0.2) * 100 * GIGABYTE)
    assert found.values["inodes_used"] == pytest.approx(inodes)
    assert ("/boot" in found.text) is (state == OK)


def test_a_disk_that_fills(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def used(space: float, hours: float) -> str:
        with_disks(monkeypatch, srv=(space, 0.1))
        return system.disk(watch(context, hours * 3600)).text

    assert "full in" not in used(0.60, 0)
    # A deployment, or a dump: too early for a prediction.
    assert "full in" not in used(0.70, 1)
    assert "full in 18 h at the pace of the last hours" in used(0.70, 6.1)
    # It is as full as a day ago.
    assert "full in" not in used(0.71, 50)
    assert len(context.memory["disk"]["/srv"]) == 1


def test_the_disks_of_this_machine(context: Context) -> None:
    found = system.disk(context)
    assert 0 < found.values["disk_used"] <= found.values["disk_total"]
    assert found.text


# --- Memory --------------------------------------------------------------------------------------------------------

MEMINFO = "MemTotal: 1048576 kB\nMemAvailable: 524288 kB\nSwapTotal: 1048576 kB\nSwapFree: 1038336 kB\n"


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "proc"
    (folder / "pressure").mkdir(parents=True)
    (folder / "meminfo").write_text(MEMINFO)
    (folder / "vmstat").write_text("nr_free_pages 1\noom_kill 3\n")
    (folder / "pressure/memory").write_text("some avg10=0 avg60=0 avg300=50.0 total=0\nfull avg300=2.50 total=0\n")
    monkeypatch.setattr(system, "PROC", folder)
    return folder


def test_memory(context: Context, kernel: Path) -> None:
    found = system.memory(context)
    assert (found.state, found.text) == (OK, "512 of 1,024 MiB, swap 10 of 1,024, no OOM kill")
    assert found.values == {"memory_used": 2**29, "memory_total": 2**30, "swap_used": 10 * 2**20}
    (kernel / "pressure/memory").write_text("full avg10=0.00 avg60=0.00 avg300=12.00 total=0\n")
    found = system.memory(context)
    assert (found.state, found.alerts) == (WARN, True)
    assert found.text.startswith("all processes wait for memory 12 % of the time (limit 10 %)")
    (kernel / "pressure/memory").unlink()
    assert system.memory(context).state == OK


def test_a_process_that_the_kernel_has_killed(context: Context, kernel: Path) -> None:
    assert system.memory(watch(context)).state == OK
    (kernel / "vmstat").write_text("oom_kill 4\n")
    found = system.memory(watch(context, 60))
    assert (found.state, found.alerts) == (BAD, True)
    assert found.text.startswith("out of memory: the kernel has killed a process; 512 of")
    # Long enough for an alert, and then it is over.
    assert system.memory(watch(context, 120)).state == BAD
    found = system.memory(watch(context, 700))
    assert (found.state, found.text.rpartition("; ")[2]) == (OK, "last OOM kill 11 min ago")
    # A boot.
    (kernel / "vmstat").write_text("oom_kill 0\n")
    assert system.memory(watch(context, 800)).state == OK
    (kernel / "vmstat").write_text("oom_kill 1\n")
    assert system.memory(watch(context, 860)).state == BAD


def test_a_kill_at_the_limit_of_a_worker_names_it(
    context: Context, kernel: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(units: list[str]) -> list[ProcessState]:
        raise ReleaseError("systemctl show: no bus")

    system.memory(watch(context))
    unit = f"shop-worker-default@{OLD}"
    manager.state[unit] = ProcessState(unit, "active", 0, memory_kills=1)
    (kernel / "vmstat").write_text("oom_kill 4\n")
    assert "has killed worker-default; " in system.memory(watch(context, 60)).text
    # A process manager that does not answer for a minute makes no new kill of an old one.
    monkeypatch.setattr(manager, "states_of", refuse)
    assert system.memory(watch(context, 800)).state == OK
    monkeypatch.undo()
    monkeypatch.setattr(system, "PROC", kernel)
    assert system.memory(watch(context, 860)).state == OK


# --- Updates -------------------------------------------------------------------------------------------------------


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have the last nightly run so many days ago, with this log."""
    for name in ("APT", "APT_SETTINGS", "UPGRADE_LOG", "KEPT_BACK", "REBOOT"):
        monkeypatch.setattr(system, name, tmp_path / name.lower())
    (tmp_path / "apt").mkdir()
    (tmp_path / "apt_settings").touch()
    monkeypatch.setattr(system, "seconds_up", lambda: 90 * DAY)

    def last(days: float, *log: str) -> None:
        for file in ("unattended-upgrades-stamp", "upgrade-stamp"):
            (tmp_path / "apt" / file).touch()
            os.utime(tmp_path / "apt" / file, (time.time() - days * DAY,) * 2)
        (tmp_path / "upgrade_log").write_text("".join(f"2026-11-28 03:31:00,123 {line}\n" for line in log))

    return last


@pytest.mark.parametrize(
    ("days", "log", "state", "text"),
    [
        (0.5, [], OK, "the last nightly run was 12 h ago"),
        (4, [], WARN, "security updates were last installed 4 d ago (limit 3 d)"),
        (8, [], BAD, "security updates were last installed 8 d ago (limit 7 d)"),
        (0.5, ["ERROR Installing failed!"], WARN, "the run 12 h ago failed: Installing failed!"),
        (0.5, ["ERROR old", "INFO Starting unattended upgrades script"], OK, "the last nightly run was 12 h ago"),
    ],
)  # fmt: skip
def test_updates(
    context: Context, apt: Callable[..., None], days: float, log: list[str], state: str, text: str
) -> None:
    apt(days, *log)
    found = system.updates(context)
    assert (found.state, found.text) == (state, text)
    assert bool(found.remedy) is (state != OK)


def test_updates_of_a_server_that_was_off(
    context: Context, apt: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    apt(8)
    monkeypatch.setattr(system, "seconds_up", lambda: 60.0)
    assert (system.updates(context).state, system.updates(context).alerts) == (WARN, False)
    monkeypatch.setattr(system, "seconds_up", lambda: 26 * 3600.0)
    assert (system.updates(context).state, system.updates(context).alerts) == (BAD, True)
    # No nightly run for three days is told, too.
    apt(4)
    assert (system.updates(context).state, system.updates(context).alerts) == (WARN, True)


def test_updates_that_were_kept_back(context: Context, apt: Callable[..., None], tmp_path: Path) -> None:
    apt(0.5)
    (tmp_path / "kept_back").write_text("openssl libssl3\n")
    found = system.updates(context)
    assert (found.state, found.text) == (WARN, "2 updates not installed automatically: libssl3, openssl")
    assert found.remedy.startswith("apt-get install --only-upgrade libssl3 openssl; ")


def test_updates_that_stay_back_for_days_are_told(context: Context, apt: Callable[..., None], tmp_path: Path) -> None:
    def alerts(days: float) -> bool:
        apt(0.5 - days)
        return system.updates(watch(context, days * DAY)).alerts

    apt(0.5)
    (tmp_path / "kept_back").write_text("openssl\n")
    assert [alerts(days) for days in (0, 1, 2.9, 3, 4)] == [False, False, False, True, True]
    # Other ones, such as of the next day.
    (tmp_path / "kept_back").write_text("curl\n")
    assert alerts(4.1) is False
    (tmp_path / "kept_back").write_text("")
    assert alerts(5) is False
    assert "kept_back" not in context.memory


def test_the_first_run_of_a_new_server_is_awaited(context: Context, apt: Callable[..., None], tmp_path: Path) -> None:
    assert system.updates(context).text == "the first nightly run is due"
    os.utime(tmp_path / "apt_settings", (time.time() - 4 * DAY,) * 2)
    assert (system.updates(context).state, system.updates(context).text) == (
        WARN,
        "none were installed yet (limit 3 d)",
    )
    (tmp_path / "apt_settings").unlink()
    assert system.updates(context) is None


def test_reboot(context: Context, apt: Callable[..., None], tmp_path: Path) -> None:
    assert (system.reboot(context).state, system.reboot(context).text) == (OK, "not needed")
    (tmp_path / "reboot").touch()
    found = system.reboot(context)
    assert (found.state, found.alerts) == (WARN, False)
    (tmp_path / "reboot-required.pkgs").write_text("linux-image-amd64\nlinux-image-amd64\n")
    os.utime(tmp_path / "reboot", (time.time() - 8 * DAY,) * 2)
    found = system.reboot(context)
    assert (found.alerts, found.text) == (True, "needed for 8 d: linux-image-amd64")
    assert found.remedy == "systemctl reboot"


def test_services_with_old_libraries(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    output = "NEEDRESTART-VER: 3.6\nNEEDRESTART-SVC: cron.service\nNEEDRESTART-SVC: shop-web@3fa4c0-938f98.service\n"
    monkeypatch.setattr(system, "call", lambda words, **options: output)
    found = system.libraries(context)
    assert (found.state, found.alerts) == (WARN, False)
    assert "2 services with libraries from before an upgrade: cron, shop-web" in found.text
    assert found.remedy.startswith("systemctl restart cron.service shop-web@3fa4c0-938f98.service\n# ")
    units = [
        *(f"shop-worker-heavy@{number}.service" for number in range(2)),
        *(f"{name}.service" for name in "abcdefg"),
    ]
    output = "".join(f"NEEDRESTART-SVC: {unit}\n" for unit in units)
    found = system.libraries(context)
    assert found.text.endswith(
        "9 services with libraries from before an upgrade: shop-worker-heavy, a, b, c, d, e and 2 more"
    )
    assert found.remedy.startswith("systemctl reboot\n# ")
    output = "NEEDRESTART-VER: 3.6\n"
    assert system.libraries(context).state == OK


# --- Ports and access ----------------------------------------------------------------------------------------------

SOCKETS = """\
LISTEN 0 511     0.0.0.0:443    0.0.0.0:* users:(("nginx",pid=2599,fd=9),("nginx",pid=155,fd=9))
LISTEN 0 128        [::]:22        [::]:* users:(("sshd",pid=121,fd=7))
LISTEN 0 100   127.0.0.1:5432   0.0.0.0:* users:(("postgres",pid=2346,fd=6))
LISTEN 0 100 127.0.0.53%lo:53   0.0.0.0:* users:(("systemd-resolve",pid=7,fd=6))
LISTEN 0 100       [::1]:6379      [::]:*
LISTEN 0 100           *:9000         *:* users:(("python3",pid=9,fd=3))
"""
POLICY = """\
# Written by Ansible
allow 22/tcp
allow 80,443/tcp
allow from 10.0.0.5 to any port 6379 proto tcp
allow from 10.0.0.9 to any port 9100 proto tcp
limit 2222/tcp comment 'second'
"""
RULES = """\
### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in
### tuple ### allow tcp 80,443 0.0.0.0/0 any 0.0.0.0/0 in
### tuple ### allow tcp 6379 0.0.0.0/0 any 10.0.0.5 in
### tuple ### allow tcp 9100 0.0.0.0/0 any 10.0.0.9 in
### tuple ### limit tcp 2222 0.0.0.0/0 any 0.0.0.0/0 in comment=7365636f6e64
### tuple ### deny tcp 25 0.0.0.0/0 any 0.0.0.0/0 in
"""
FIREWALL = "-P INPUT DROP\n-A INPUT -j ufw-before-logging-input\n-A INPUT -j ufw-before-input\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What programs print; a program that is not in it fails."""
    (tmp_path / "policy").write_text(POLICY)
    (tmp_path / "rules").write_text(RULES)
    monkeypatch.setattr(network, "POLICY", tmp_path / "policy")
    (tmp_path / "applied").write_text(f"{POLICY}\n{RULES}-P INPUT DROP\n")
    monkeypatch.setattr(network, "APPLIED", tmp_path / "applied")
    monkeypatch.setattr(network, "RULES", (tmp_path / "rules", tmp_path / "rules6"))
    (tmp_path / "if_inet6").write_text("00000000000000000000000000000001 01 80 10 80       lo\n")
    monkeypatch.setattr(network, "IPV6", tmp_path / "if_inet6", raising=False)
    output = {
        "ss": SOCKETS,
        "iptables": FIREWALL,
        "ip6tables": "-P INPUT DROP\n",
        "systemctl": "",
        "seedbed-access": "",
    }
    output["fail2ban-client"] = "[{'sshd': ['203.0.113.5', '203.0.113.6']}, {'seedbed-web': ['203.0.113.5']}]\n"

    def call(words: list[str], **options: Any) -> str:
        name = Path(words[0]).name
        if name not in output:
            raise ToolError(f"{name} failed", 3)
        return output[name]

    monkeypatch.setattr(network, "call", call)
    return output


def test_ports(context: Context, machine: dict[str, str]) -> None:
    assert network.ports(context).text == "open: 22, 443; 1 more listens"


def test_the_port_of_ssh_is_that_of_the_policy(context: Context, machine: dict[str, str], tmp_path: Path) -> None:
    """As after `--tags access`, which does not write the doctor's configuration."""
    machine["ss"] = SOCKETS.replace("[::]:22 ", "[::]:2200 ")
    (tmp_path / "policy").write_text(POLICY.replace("allow 22/tcp", "allow 2200/tcp"))
    assert network.ports(context).text == "open: 443, 2200; 1 more listens"
    machine["iptables"] = "-P INPUT ACCEPT\n"
    assert network.ports(context).text == "reachable, as the firewall is off: port 9000 (python3)"


@pytest.mark.parametrize("rule", ["deny tcp 25 ::/0 any ::/0 in", "allow tcp 25 ::/0 any ::/0 out"])
def test_a_rule_that_opens_nothing(context: Context, machine: dict[str, str], tmp_path: Path, rule: str) -> None:
    (tmp_path / "rules6").write_text(f"### tuple ### {rule}\n")
    assert network.ports(context).state == OK


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("allow tcp 9000 0.0.0.0/0 any 0.0.0.0/0 in", "port 9000 (python3) from anywhere"),
        ("allow tcp 5432 ::/0 any ::/0 in", "port 5432 from anywhere"),
        ("allow_log any any 0.0.0.0/0 any 10.1.0.7 in_eth0 comment=7a", "port any from 10.1.0.7"),
        ("allow udp 60000:61000 0.0.0.0/0 any 10.1.0.0/16 in", "port 60000:61000 from 10.1.0.0/16"),
        ("allow tcp 8025 0.0.0.0/0 any 0.0.0.0/0 Mail%20catcher - in", "port Mail catcher from anywhere"),
    ],
)
def test_a_rule_that_is_not_of_the_policy(
    context: Context, machine: dict[str, str], tmp_path: Path, rule: str, text: str
) -> None:
    (tmp_path / "rules6").write_text(f"### tuple ### {rule}\n")
    found = network.ports(context)
    assert (found.state, found.text) == (WARN, f"open beyond what the groups allow: {text}")
    assert "ufw status numbered" in found.remedy


def test_without_a_firewall_every_port_is_open(context: Context, machine: dict[str, str]) -> None:
    machine["iptables"] = "-P INPUT ACCEPT\n"
    found = network.ports(context)
    assert (found.state, found.text) == (BAD, "reachable, as the firewall is off: port 9000 (python3)")
    assert (network.access(context).state, network.access(context).text) == (BAD, "the firewall is off")


def test_a_firewall_for_one_protocol(context: Context, machine: dict[str, str], tmp_path: Path) -> None:
    machine["ip6tables"] = "-P INPUT ACCEPT\n"
    assert network.access(context).text == "the firewall is off for IPv6"
    assert network.ports(context).text == "reachable, as the firewall is off for IPv6: port 9000 (python3)"
    # A kernel without IPv6 has no such program, or it fails.
    del machine["ip6tables"]
    (tmp_path / "if_inet6").write_text("")
    assert network.access(context).state == OK


def test_a_port_that_docker_publishes(context: Context, machine: dict[str, str]) -> None:
    machine["ss"] += 'LISTEN 0 4096 0.0.0.0:8080 0.0.0.0:* users:(("docker-proxy",pid=9,fd=4))\n'
    assert network.ports(context).text == "Docker publishes port 8080, which ufw does not filter"


def test_the_listeners_of_this_machine() -> None:
    with socket.create_server(("0.0.0.0", 0)) as everywhere, socket.create_server(("127.0.0.1", 0)) as here:
        found = {one.port for one in network.listeners()}
        assert str(everywhere.getsockname()[1]) in found
        assert str(here.getsockname()[1]) not in found


def test_access(context: Context, machine: dict[str, str]) -> None:
    assert network.access(context).text == "firewall on, fail2ban 2 jails, 2 banned"
    assert network.access(watch(context)).text == "firewall on, fail2ban runs"
    del machine["systemctl"]
    assert (network.access(context).state, network.access(watch(context)).state) == (BAD, BAD)


def test_what_differs_from_the_access_policy_is_seen_by_the_watch(context: Context, machine: dict[str, str]) -> None:
    assert network.policy(watch(context)) == Finding(OK, "administrators, sshd, firewall and bans as in the policy")
    machine["seedbed-access"] = "sshd: port 22, root: no\nbans\n"
    found = network.policy(watch(context))
    assert (found.state, found.text) == (WARN, "differs from the access policy: sshd: port 22, root: no; bans")
    assert found.remedy.endswith("playbooks/provision.yml --tags access")
    [check] = [check for check in checks.CHECKS if check.look is network.policy]
    assert check.hourly


def test_a_host_whose_access_is_not_managed(context: Context, machine: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "policy").unlink()
    assert network.ports(context) is None
    assert network.access(context) is None
    assert network.policy(context) is None


# --- Files that were edited ----------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.setattr(drift, "RECORD", tmp_path / "files.json")
    files = {name: tmp_path / "host" / name for name in ("nginx.conf", "unit", "pages/index.html")}
    for name, path in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    record = {str(path): hashlib.sha256(name.encode()).hexdigest() for name, path in files.items()}
    (tmp_path / "files.json").write_text(json.dumps(record))
    return files


def test_files_as_they_were_written(context: Context, written: dict[str, Path]) -> None:
    (context.settings.home / "history.jsonl").write_text('{"since": "2026-11-27T10:00:00Z", "by": "anna"}\n')
    found = drift.settings(context)
    assert found.state == OK
    assert found.text.startswith("as Ansible wrote them, last changed 20")
    assert found.text.endswith("; last deployment 2026-11-27 10:00 UTC by anna")


def test_files_that_were_edited_or_deleted(context: Context, written: dict[str, Path]) -> None:
    written["nginx.conf"].write_text("worker_processes 1;")
    written["unit"].unlink()
    # Removed with its folder, as maintenance pages are.
    written["pages/index.html"].unlink()
    written["pages/index.html"].parent.rmdir()
    found = drift.settings(context)
    assert (found.state, found.alerts) == (WARN, False)
    assert found.text == f"edited by hand: {written['nginx.conf']}; deleted: {written['unit']}"
    assert found.remedy.splitlines()[1] == "ansible-playbook -i INVENTORY site.yml"
    # What nothing writes any more can be removed from the list.
    assert re.match(rf"# if one .*: rm {drift.RECORD}, and again", found.remedy.splitlines()[-1])
    written["unit"].write_text("unit")
    assert "rm " not in drift.settings(context).remedy


def test_what_others_change_is_not_told(
    context: Context, written: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rules for the database of another application, and modules that the program removes after an upgrade."""
    monkeypatch.setattr(type(context.settings), "library", tmp_path / "host/pages")
    written["pages/index.html"].unlink()
    (written["pages/index.html"].parent / "other").touch()
    rules = written["unit"]
    rules.write_text("unit\n")
    record = json.loads(drift.RECORD.read_text()) | {str(rules): hashlib.sha256(b"unit\n").hexdigest()}
    drift.RECORD.write_text(json.dumps(record))
    rules.write_text("# BEGIN Seedbed, blog\nhost blog\n# END Seedbed, blog\nunit\n")
    assert drift.settings(context).state == OK
    rules.write_text("# BEGIN Seedbed, blog\nhost blog\n# END Seedbed, blog\nunit\nhost all all trust\n")
    assert drift.settings(context).text == f"edited by hand: {rules}"


def test_a_host_without_a_record(context: Context, written: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "files.json").unlink()
    assert drift.settings(context).state == OK


# --- Units, and drop-ins of systemd --------------------------------------------------------------------------------


@pytest.fixture
def units(context: Context, written: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of systemd's units, with those of the live release as a deployment has installed them."""
    folder = tmp_path / "systemd"
    folder.mkdir()
    monkeypatch.setattr(drift, "UNITS", folder)
    monkeypatch.setattr(drift, "DROP_INS", (tmp_path / "systemd.control",))
    context.host.manager = Systemd(context.settings)
    monkeypatch.setattr(Systemd, "definition", lambda self, file, release: tmp_path / "definitions" / file)
    (tmp_path / "definitions").mkdir()
    for unit in services([*context.host.units(OLD), "shop-beat"]):
        (tmp_path / "definitions" / unit).write_text("[Service]\nExecStart=/srv/shop/releases/@RELEASE@/run\n")
        (folder / unit).write_text(f"[Service]\nExecStart=/srv/shop/releases/{OLD}/run\n")
    return folder


def test_a_unit_file_of_the_live_release_that_was_edited(context: Context, units: Path) -> None:
    assert drift.settings(context).state == OK
    file = units / f"shop-worker-default@{OLD}.service"
    file.write_text(f"{file.read_text()}Nice=19\n")
    found = drift.settings(context)
    assert (found.state, found.text) == (WARN, f"edited by hand: {file}")
    command = found.remedy.splitlines()[-1]
    assert command.endswith(f"systemctl daemon-reload; systemctl restart {file.name}")
    # What it says to type installs the file again.
    subprocess.run(["bash", "-c", command.partition(";")[0]], check=True)
    assert drift.settings(context).state == OK


def test_unit_files_are_not_compared_during_a_deployment(context: Context, units: Path) -> None:
    """After the switch, the release is live and beat's unit file is still that of the one before."""
    beat = units / "shop-beat.service"
    beat.write_text(beat.read_text().replace(OLD, NEW))
    assert drift.settings(context).text == f"edited by hand: {beat}"
    record = Record(context.settings)
    record.hold()
    assert drift.settings(context).state == OK
    record.release()
    # One that was killed, until the next one.
    record.begin("deploy", OLD, "anna")
    assert drift.settings(context).state == OK
    record.end(0, "is live")
    assert drift.settings(context).text == f"edited by hand: {beat}"


def test_programs_of_supervisor_that_were_edited(
    context: Context, written: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "PROGRAMS", tmp_path)
    monkeypatch.setattr(drift, "UNITS", tmp_path)
    monkeypatch.setattr(drift, "DROP_INS", ())
    context.host.manager = Supervisor(context.settings)
    monkeypatch.setattr(Supervisor, "definition", lambda self, name, release: tmp_path / name)
    (tmp_path / "release.conf").write_text("[group:shop@@RELEASE@]\n")
    file = tmp_path / f"shop@{OLD}.conf"
    file.write_text(f"[group:shop@{OLD}]\n")
    assert drift.settings(context).state == OK
    file.write_text(f"{file.read_text()}priority=1\n")
    found = drift.settings(context)
    assert (found.state, found.text) == (WARN, f"edited by hand: {file}")
    assert found.remedy.endswith("; supervisorctl update; shopctl verify")


def test_drop_ins_that_are_not_of_ansible(context: Context, units: Path) -> None:
    own = units / "shop.service.d/shop-supervisor.conf"
    other = units / "nginx.service.d/override.conf"
    for path in (own, other):
        path.parent.mkdir()
        path.touch()
    assert drift.settings(context).state == OK
    by_hand = [units / "shop-worker-default@.service.d/override.conf", units / "shop.service.d/limits.conf"]
    by_hand.append(drift.DROP_INS[0] / f"shop-web@{OLD}.service.d/50-CPUQuota.conf")
    for path in by_hand:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = drift.settings(context)
    assert found.state == WARN
    assert found.text.startswith("drop-ins that Ansible did not write: ")
    assert all(str(path) in found.text and str(path) in found.remedy for path in by_hand)
    assert str(own) not in found.text


# --- Whose settings they are ---------------------------------------------------------------------------------------

KEY = "00" * 16
ANNA = {"by": "anna@laptop", "path": "/home/anna/seedbed", "commit": "3fa4c0d12e9b", "committed": True}
BEN = {"by": "ben@desk", "path": "/home/ben/seedbed", "commit": "", "committed": False}
NOON = 1795867200.0


def run_of(clone: dict[str, Any], at: float = NOON, **settings: str) -> dict[str, Any]:
    """Return a run of site.yml as the record has it."""
    keyed = {name: applied.keyed(value, KEY) for name, value in settings.items()}
    return clone | {"playbook": "site.yml", "tags": "", "at": at, "settings": keyed}


@pytest.fixture
def recorded(
    context: Context, written: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    monkeypatch.setattr(applied, "FOLDER", tmp_path)
    context.now = NOON + 3600

    def record(**runs: Any) -> None:
        (tmp_path / "settings-shop.json").write_text(json.dumps({"key": KEY} | runs))

    return record


def test_who_applied_the_settings(context: Context, recorded: Callable[..., None]) -> None:
    recorded(last=run_of(ANNA, app_name="shop"))
    found = drift.settings(context)
    assert found.state == OK
    text = "as Ansible wrote them, last applied 2026-11-28 12:00 UTC by anna@laptop:/home/anna/seedbed"
    assert found.text == f"{text} (site.yml, commit 3fa4c0d12e9b)"


@pytest.mark.parametrize(
    "damage",
    ["{", "[]", "{}", '{"key": "x", "last": {}}', '{"key": "00", "last": {"by": "anna"}}', '{"key": "00", "last": []}'],
)
def test_a_damaged_record_of_the_settings(context: Context, recorded: Callable[..., None], damage: str) -> None:
    (applied.FOLDER / "settings-shop.json").write_text(damage)
    context.clone_settings = BEN | {"settings": {"app_web": "1"}}
    found = drift.settings(context)
    assert (found.state, found.text.startswith("as Ansible wrote them, last changed ")) == (OK, True)


def test_a_damaged_part_of_the_record(context: Context, recorded: Callable[..., None]) -> None:
    for damaged in (
        {"replaced": {"names": []}},
        {"replaced": 1},
        {"begun": {}},
        {"partial": [{"by": 1}]},
        {"partial": 1},
    ):
        recorded(last=run_of(ANNA, app_web="1"), **damaged)
        assert drift.settings(context).state == OK


def test_settings_of_another_clone_that_were_replaced(context: Context, recorded: Callable[..., None]) -> None:
    recorded(last=run_of(BEN, app_web="1"), replaced=ANNA | {"at": NOON - 9000, "names": ["app_web"]})
    found = drift.settings(context)
    assert (found.state, found.alerts) == (WARN, False)
    assert found.text == (
        "ben@desk:/home/ben/seedbed changed app_web at 2026-11-28 12:00 UTC; "
        "anna@laptop:/home/anna/seedbed had other values"
    )
    assert found.remedy.splitlines()[-1] == "ansible-playbook -i INVENTORY site.yml"
    context.now += 7 * DAY
    assert drift.settings(context).state == OK


def test_a_run_that_has_not_ended(context: Context, recorded: Callable[..., None]) -> None:
    last, begun = run_of(ANNA, app_web="1"), run_of(BEN, NOON + 60, app_web="2")
    recorded(last=last, begun=begun)
    found = drift.settings(context)
    assert found.state == WARN
    assert "by ben@desk:/home/ben/seedbed (site.yml) has not ended, and may have changed app_web" in found.text
    record = Record(context.settings)
    record.hold()
    assert drift.settings(context).state == OK
    record.release()
    recorded(begun=begun)
    assert drift.settings(context).text.startswith("no run has ended yet; the last began 2026-11-28 12:01 UTC by ben")
    recorded(last=last, begun=begun)
    # It may still run.
    context.now = NOON + 900
    assert drift.settings(context).state == OK
    for since, status, state in ((NOON, 1, OK), (NOON + 90, 0, OK), (NOON + 90, 1, WARN)):
        began = time.strftime("%FT%TZ", time.gmtime(since))
        Record(context.settings).remember({"action": "deploy", "by": "ben", "since": began, "status": status})
        assert drift.settings(context).state == state, "its deployment has failed"
    history_file(context.settings).unlink()
    context.now = NOON + 3600
    recorded(last=last, begun=run_of(BEN, app_web="1"))
    assert drift.settings(context).state == OK
    recorded(last=last, partial=[begun | {"tags": "--tags nginx"}])
    assert drift.settings(context).state == OK


def test_the_clone_that_asks_is_compared(context: Context, recorded: Callable[..., None]) -> None:
    last = run_of(ANNA, app_web="1", app_name="shop", app_old="x")
    recorded(last=last)
    # A setting that the other's version of Seedbed does not know is not compared.
    context.clone_settings = BEN | {"settings": {"app_web": "1", "app_name": "shop", "app_new": "y"}}
    assert drift.settings(context).state == OK
    context.clone_settings = BEN | {"settings": {"app_web": "2", "app_name": "shop"}}
    found = drift.settings(context)
    assert (found.state, found.alerts) == (WARN, False)
    assert found.text == (
        "other values than in the clone that asks: app_web; those here were applied 2026-11-28 12:00 UTC by "
        "anna@laptop:/home/anna/seedbed (site.yml, commit 3fa4c0d12e9b)"
    )
    assert "git pull" in found.remedy
    context.clone_settings = ANNA | {"settings": {"app_web": "2"}}
    found = drift.settings(context)
    assert found.text == "changed and not applied yet: app_web (last applied 2026-11-28 12:00 UTC by anna@laptop)"
    # Applied with --tags.
    part = run_of(ANNA, app_web="2") | {"tags": "--tags nginx"}
    recorded(last=last, partial=[part])
    assert drift.settings(context).state == OK
    # Another clone has done so since, with settings of its own.
    recorded(last=last, partial=[part, run_of(BEN, app_web="3")])
    assert drift.settings(context).state == OK


def test_the_program_reads_the_settings_of_a_clone(
    context: Context, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "context_of", lambda host: context)
    monkeypatch.setattr(checks, "CHECKS", [Check("settings", lambda context: Finding(OK, str(context.clone_settings)))])
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(BEN)))
    options = argparse.Namespace(json=False, clone_settings=True)
    assert commands.run_doctor(context.host, options) == 0
    assert "ben@desk" in capsys.readouterr().out
