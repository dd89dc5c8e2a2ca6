"""make logs: the logs of every server, by a program that replaces ssh."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from project import GROUPS, ROOT

# Answers as each server's sshd and `shopctl logs` do. The address is the last word but one.
SSH = """#!{python}
import json, sys, time
from pathlib import Path

address, command = sys.argv[-2:]
Path(__file__).with_name("calls").open("a").write(json.dumps(sys.argv[1:]) + "\\n")
if "id -u" in command:
    print("1000\\n22")
    sys.exit(0 if "192.0.2.9" not in sys.argv else 255)
if address == "192.0.2.3":
    print(json.dumps({{"error": "There is no process 'worker-heavy'; choose from: web.", "status": 1}}))
    sys.exit(1)
if "--json" in command:
    seconds = {{"192.0.2.1": (1, 3), "192.0.2.2": (2,)}}[address]
    unit = "shop-worker-heavy@a1"
    time = "2026-11-30T14:00:0%d+00:00"
    print(json.dumps([{{"unit": unit, "time": time % second, "message": f"line {{second}}"}} for second in seconds]))
else:
    print("new line", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    ssh = tmp_path / "ssh"
    ssh.write_text(SSH.format(python=sys.executable))
    ssh.chmod(0o755)
    return tmp_path / "hosts.json"


def write(inventory: Path, *numbers: int, **variables: object) -> None:
    known = {"ansible_ssh_executable": str(inventory.with_name("ssh")), "ansible_user": "ada", "ansible_port": 2222}
    known |= {"app_memory_mb": 1024, "app_name": "shop", "ansible_ssh_private_key_file": "/keys/{{ ansible_user }}"}
    hosts = {f"server{number}": {"ansible_host": f"192.0.2.{number}"} | known | variables for number in numbers}
    children = {group: {"hosts": {name: {} for name in hosts}} for group in GROUPS}
    inventory.write_text(json.dumps({"all": {"hosts": hosts, "children": children}}))


def command(inventory: Path, *words: str) -> list[str]:
    return [sys.executable, str(ROOT / "tools/logs.py"), "-i", str(inventory), *words]


ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")} | {
    "ANSIBLE_SSH_RETRIES": "0"
}


def logs(inventory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(inventory, *words), env=ENVIRONMENT, capture_output=True, text=True, check=False)


def test_lines_of_all_servers_are_in_the_order_of_time(inventory: Path) -> None:
    """A server without the process is left out."""
    write(inventory, 1, 2, 3)
    done = logs(inventory, "worker-heavy", "-n", "20")
    assert done.stdout.splitlines() == [
        f"2026-11-30 14:00:0{second}.000 server{server} shop-worker-heavy@a1: line {second}"
        for second, server in ((1, 1), (2, 2), (3, 1))
    ], done.stderr
    assert (done.returncode, done.stderr) == (0, "")
    calls = [json.loads(line) for line in inventory.with_name("calls").read_text().splitlines()]
    [call] = [words for words in calls if words[-2] == "192.0.2.1" and "logs" in words[-1]]
    assert call[-8:] == [
        *("-p", "2222", "-i", "/keys/ada", "-l", "ada", "192.0.2.1"),
        "sudo -n /usr/local/sbin/shopctl logs --json -n 20 worker-heavy",
    ]


def test_a_process_that_no_server_has_is_an_error(inventory: Path) -> None:
    write(inventory, 3)
    done = logs(inventory, "worker-heavy")
    assert (done.returncode, done.stdout) == (1, "")
    assert "server3: There is no process 'worker-heavy'; choose from: web." in done.stderr


def test_servers_that_cannot_be_reached_are_named_and_the_others_shown(inventory: Path) -> None:
    write(inventory, 2, 9)
    done = logs(inventory)
    assert "line 2" in done.stdout
    assert "server9" in done.stderr


def test_new_lines_are_followed_until_ctrl_c(inventory: Path) -> None:
    write(inventory, 1, 2)
    process = subprocess.Popen(
        command(inventory, "-f"), env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    lines = {process.stdout.readline() for _ in range(2)}
    # As a terminal does it: to the program and what it has started.
    os.killpg(process.pid, signal.SIGINT)
    assert lines == {"server1 new line\n", "server2 new line\n"}
    assert process.wait(60) == 0
