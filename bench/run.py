#!/usr/bin/env python3
"""Measure the figures of the documentation: `make bench`, or `make bench FIGURES="again memory"` for some of them.

fresh    seconds from a bare host to the first page, by site.yml and by the plain script bench/plain.sh, and their ratio
again    seconds of site.yml with nothing to change
release  seconds from playbooks/deploy.yml with changed code to the first page with it, by step, and against a playbook
         that copies, links, installs and restarts (bench/plain_deploy.yml)
rollback seconds from playbooks/rollback.yml to the first page of the previous release
latency  the 99th percentile of requests during a deployment against that before it
far      release and again, with 30 ms to the host's SSH port and back
backup   seconds, CPU seconds and peak memory of a copy of the log, a base backup, a drill and a restore of a database
         with BACKUP_MB (200) MB of rows, on the host alone, and the size of the repository
flower   MiB of memory of Flower (PSS) after 30 releases of three workers that appear and go, and the ratio to that
         after ten: where it discards them, and where it keeps them (one run)
memory   MiB of memory that all processes of the host use (PSS), idle, and at most during a deployment

Each figure is a median; what is compared runs alternately on one machine. RUNS=1 makes it quicker and rougher.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import ssl
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from demo import inventory_text
from machine import ROOT, SetupError, exit_with_instructions, say
from relay import relay
from testhost import Host, ca_files, down, up
from traffic import Traffic, verdict

HOST = Host("bench", ROOT / ".bench")
ADDRESS = "10.177.0.3"
PORTS = {"https": 8453, "http": 8090, "ssh": 2232}
SITE = f"https://127.0.0.1:{PORTS['https']}/"
INVENTORY = HOST.folder / "bench.yml"
LOG = HOST.folder / "log"
RUNS = int(os.environ.get("RUNS", "3"))
# Made once: it costs more than the request, and would take CPU time from what is measured.
ANY_CERTIFICATE = ssl._create_unverified_context()
OS = os.environ.get("OS", "debian13")

# Seconds to a far server and back, and where the relay to it listens.
ROUND_TRIP = 0.030
FAR_PORT = 2233

# Idle memory is measured some time after the last work: unused connections are closed after a minute.
SETTLE_SECONDS = 120
# For so long, the mean counts: what a timer runs every minute, or every 15 s, has its part in it.
MEAN_SECONDS = 120
# A line for each process: its control group, which systemd names after the service, and its share of memory in KiB.
# Logins by SSH are this measurement's own and Ansible's, as is the process that reads this.
PSS = """
import os, pathlib
for process in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        if (process / "cmdline").read_text().startswith(("sshd: root", "sshd-session:", "python3 -\\0")):
            continue
        group = (process / "cgroup").read_text().splitlines()[-1]
        kib = sum(int(line.split()[1]) for line in (process / "smaps_rollup").open() if line.startswith("Pss:"))
        print(os.path.basename(group), kib)
    except OSError:
        pass  # It has ended.
"""
# What Debian runs without site.yml.
DEBIANS_OWN = ("init.scope", "systemd-journald", "systemd-logind", "dbus", "ssh")


def bare_host() -> None:
    """Create a bare host."""
    up(
        HOST,
        OS,
        ADDRESS,
        [f"127.0.0.1:{PORTS[name]}:{inner}" for name, inner in {"https": 443, "http": 80, "ssh": 22}.items()],
    )
    INVENTORY.write_text(inventory_text(PORTS, ca_files()))


def ssh(command: str, stdin: bytes = b"") -> str:
    """Run a command on the host and return its output."""
    done = subprocess.run(
        ["ssh", "-F", str(HOST.ssh_config), HOST.name, command], input=stdin, capture_output=True, check=True
    )
    return done.stdout.decode()


def answers() -> bool:
    """Return whether the site answers with 200."""
    try:
        with urllib.request.urlopen(SITE, context=ANY_CERTIFICATE, timeout=2) as answer:
            return answer.status == 200
    except (OSError, urllib.error.URLError):
        return False


def seconds_until(done: Callable[[], bool], command: list[str], limit: float = 600) -> float:
    """Seconds from the start of a command until `done`, and at the latest until the command has ended.

    Raises SetupError when the command fails or takes longer than `limit` seconds.
    """
    began = time.monotonic()
    with LOG.open("a") as log, subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) as process:
        took = 0.0
        while not took:
            if time.monotonic() - began > limit:
                process.terminate()
                raise SetupError(f"No result within {limit:.0f} s; see {LOG}")
            if process.poll() not in (None, 0):
                raise SetupError(f"{command[0]} failed; see {LOG}")
            if done():
                took = time.monotonic() - began
            time.sleep(0.1)
    if process.returncode != 0:
        raise SetupError(f"{command[0]} failed; see {LOG}")
    return took


def playbook(*arguments: str) -> list[str]:
    return ["ansible-playbook", "-i", str(INVENTORY), "site.yml", *arguments]


def seconds_of(command: list[str]) -> float:
    """Seconds that a command takes, to its end."""
    began = time.monotonic()
    with LOG.open("a") as log:
        subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=True)
    return time.monotonic() - began


def by_site() -> float:
    return seconds_until(answers, playbook())


def by_plain_script() -> float:
    """Only the script is timed: the application's source is on the host before it begins."""
    files = {"plain.sh": "bench/plain.sh", "requirements-uv.txt": "roles/runtime/files/requirements-uv.txt"}
    files["requirements-flower.txt"] = "roles/flower/files/requirements.txt"
    for name, file in files.items():
        ssh(f"cat >/root/{name}", (ROOT / file).read_bytes())
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "app_src"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    tar = subprocess.run(["tar", "-c", "-T", "-"], cwd=ROOT, input=names, capture_output=True, check=True).stdout
    ssh("mkdir /root/app && tar -x -C /root/app --strip-components=1", tar)
    return seconds_until(answers, ["ssh", "-F", str(HOST.ssh_config), HOST.name, "sh /root/plain.sh 127.0.0.1"])


def fresh() -> None:
    took: dict[str, list[float]] = {"site.yml": [], "plain script": []}
    for turn in range(RUNS):
        for name, provision in {"plain script": by_plain_script, "site.yml": by_site}.items():
            bare_host()
            took[name].append(provision())
            say(f"Turn {turn + 1} of {RUNS}, {name}: the first page after {took[name][-1]:.1f} s.")
    ours, plain = (statistics.median(took[name]) for name in ("site.yml", "plain script"))
    say(f"fresh    site.yml {ours:.1f} s, plain script {plain:.1f} s, ratio {ours / plain:.2f} (at most 1.6)")


def provisioned() -> None:
    """A host with everything on it; the one that stands, if it answers."""
    if not (INVENTORY.exists() and answers()):
        bare_host()
    seconds_of(playbook())


def again() -> None:
    provisioned()
    took = [seconds_of(playbook()) for _ in range(RUNS)]
    say(f"again    site.yml with nothing to change {statistics.median(took):.1f} s (at most 20)")


def services() -> dict[str, float]:
    """MiB of memory by service, as PSS: a page that processes share is counted once."""
    used: dict[str, float] = {}
    for line in ssh("python3 -", PSS.encode()).splitlines():
        unit, kib = line.rsplit(maxsplit=1)
        # shop-web@ID.service is shop-web, of whichever release.
        name = unit.partition("@")[0].removesuffix(".service")
        used[name] = used.get(name, 0) + int(kib) / 1024
    return used


def memory() -> None:
    provisioned()
    say(f"Letting the host rest for {SETTLE_SECONDS} s ...")
    time.sleep(SETTLE_SECONDS)
    used, end = [], time.monotonic() + MEAN_SECONDS
    while time.monotonic() < end:
        used.append(services())
        time.sleep(0.2)
    names = {name for each in used for name in each}
    mean = {name: statistics.mean(each.get(name, 0) for each in used) for name in names}
    say(", ".join(f"{name} {mib:.1f}" for name, mib in sorted(mean.items(), key=lambda item: -item[1])) + " MiB")
    everything = sum(mean.values())
    debians = sum(mean.get(name, 0) for name in DEBIANS_OWN)
    # Another value in the environment is another release.
    release = json.dumps({"app_environment": {"BENCH": str(time.time())}})
    samples = []
    command = playbook("--extra-vars", release)
    with LOG.open("a") as log, subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) as process:
        while process.poll() is None:
            samples.append(sum(services().values()))
    say(
        f"memory   idle {everything - debians:.0f} MiB by what site.yml put there (at most 450), {everything:.0f} MiB"
        f" with Debian's own, at most {max(samples):.0f} MiB during a deployment"
    )


# --- a release


def shown() -> str:
    """What the site's first page says, or "" while it does not answer."""
    try:
        with urllib.request.urlopen(SITE, context=ANY_CERTIFICATE, timeout=2) as answer:
            return answer.read().decode()
    except (OSError, urllib.error.URLError):
        return ""


def changed_project(mark: str) -> Path:
    """The application with another word on its first page: a release that changes only code."""
    folder = HOST.folder / "project"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "app_src", folder, ignore=shutil.ignore_patterns("__pycache__", "var", ".env", ".venv"))
    # Git ignores the folder above it, and would leave nothing to pack.
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    page = folder / "shop/templates/shop/base.html"
    page.write_text(page.read_text().replace("</body>", f"<!-- {mark} --></body>"))
    return folder


def release_seconds() -> float:
    """Seconds from the command to the first page of the new release."""
    mark = f"bench {time.time_ns()}"
    extra = json.dumps({"app_source": str(changed_project(mark))})
    command = ["ansible-playbook", "-i", str(INVENTORY), "playbooks/deploy.yml", "--extra-vars", extra]
    return seconds_until(lambda: mark in shown(), command)


def plain_seconds() -> float:
    """The same by bench/plain_deploy.yml."""
    mark = f"bench {time.time_ns()}"
    archive = HOST.folder / "project.tar.gz"
    subprocess.run(["tar", "-czf", archive, "-C", HOST.folder, changed_project(mark).name], check=True)
    command = [
        "ansible-playbook",
        "-i",
        str(INVENTORY),
        "bench/plain_deploy.yml",
        "--extra-vars",
        f"plain_archive={archive} plain_stamp={time.time_ns()}",
    ]
    return seconds_until(lambda: mark in shown(), command)


def steps() -> str:
    """The seconds of the last deployment, by step."""
    state = json.loads(ssh("cat /srv/shop/deployment.json"))
    return ", ".join(f"{step} {seconds}" for step, seconds in state["steps"].items() if seconds >= 0.05)


def release() -> None:
    bare_host()
    by_plain_script()
    # From here on its code is behind a link, and its packages are installed by pip, as such roles have them.
    ssh("mkdir /srv/shop/releases && mv /srv/shop/app /srv/shop/releases/first && ln -s releases/first /srv/shop/app")
    ssh("sed -i 's#/srv/shop/venv/#/srv/shop/packages/#' /etc/systemd/system/*.service && systemctl daemon-reload")
    # What Ansible's module for pip needs on the server.
    ssh("apt-get -qq install python3-packaging >/dev/null")
    plain_seconds()
    plain = [plain_seconds() for _ in range(RUNS)]
    bare_host()
    seconds_of(playbook())
    took = []
    for _ in range(RUNS):
        took.append(release_seconds())
        say(f"A release after {took[-1]:.1f} s, on the host: {steps()}.")
    ours, theirs = statistics.median(took), statistics.median(plain)
    say(f"release  {ours:.1f} s (at most 12), copy-link-install-restart {theirs:.1f} s, ratio {ours / theirs:.2f}")


def rollback() -> None:
    provisioned()
    took = []
    for _ in range(RUNS):
        release_seconds()
        before = shown()
        command = ["ansible-playbook", "-i", str(INVENTORY), "playbooks/rollback.yml"]
        took.append(seconds_until(lambda page=before: shown() not in ("", page), command))
    say(f"rollback {statistics.median(took):.1f} s (at most 5)")


def latency() -> None:
    """Load through a deployment, as `python -m traffic` makes it."""
    provisioned()
    ratios = []
    for _ in range(RUNS):
        with Traffic(SITE.rstrip("/"), overlay=False) as traffic:
            before = traffic.pause(20)
            began = time.time()
            release_seconds()
            during = (began, time.time())
        usual, then = (
            verdict.percentile(verdict.latencies(traffic.samples, span), 99) * 1000 for span in (before, during)
        )
        failed = sum(1 for sample in traffic.samples if sample.failed)
        ratios.append(then / usual)
        counted = f"{len(traffic.samples)} requests, {failed} failed"
        say(f"{counted}; p99 {usual:.0f} ms before, {then:.0f} ms during a deployment.")
    say(f"latency  p99 during a deployment {statistics.median(ratios):.1f} times that before it (at most 2)")


def far() -> None:
    provisioned()
    # In the same file, since the passwords go by its name.
    INVENTORY.write_text(inventory_text(PORTS | {"ssh": FAR_PORT}, ca_files()))
    try:
        with relay(FAR_PORT, PORTS["ssh"], ROUND_TRIP / 2):
            took = [release_seconds() for _ in range(RUNS)]
            say(f"far      a release {statistics.median(took):.1f} s (at most 20)")
            seconds_of(playbook())
            took = [seconds_of(playbook()) for _ in range(RUNS)]
            say(f"far      site.yml with nothing to change {statistics.median(took):.1f} s (at most 45)")
    finally:
        INVENTORY.write_text(inventory_text(PORTS, ca_files()))


# --- backups


# Runs a command; prints its seconds, its CPU seconds and the largest memory of one of its processes, in MiB.
USED = """
import json, resource, subprocess, sys, time
began = time.monotonic()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""
BACKUP_MB = int(os.environ.get("BACKUP_MB", "200"))


def used_by(words: str) -> list[float]:
    return json.loads(ssh(f"python3 - {words}", USED.encode()))


def backup() -> None:
    provisioned()
    rows = "CREATE TABLE IF NOT EXISTS bench AS SELECT md5(n::text) || md5((-n)::text) AS text FROM generate_series"
    ssh(f'cd / && runuser -u postgres -- psql -q shop -c "{rows}(1, {BACKUP_MB} * 10000) AS n"')
    ssh("shopctl backup --full")
    commands = {
        "copy of the log": "shopctl backup ship",
        "full backup": "shopctl backup --full",
        "daily backup": "shopctl backup",
        "drill": "shopctl backup drill",
        "restore": "shopctl backup restore --yes",
    }
    for name, words in commands.items():
        took = [used_by(words) for _ in range(RUNS)]
        seconds, cpu, mib = (statistics.median(one[index] for one in took) for index in range(3))
        say(f"backup   {name}: {seconds:.1f} s, {cpu:.1f} s of CPU, at most {mib:.0f} MiB in one process")
    sizes = ssh("du -sm /var/lib/pgbackrest /var/lib/postgresql/*/main | cut -f1").split()
    say(f"backup   the repository has {sizes[0]} MB, the database {sizes[1]} MB")


# --- Flower

FLOWER_RELEASES = 30


def flower() -> None:
    """On the host, with a Redis of its own: see flower_releases.py."""
    provisioned()
    folder = "/usr/local/lib/shop/hostctl/in_app"
    script = (ROOT / "bench/flower_releases.py").read_bytes()
    found = json.loads(ssh(f"/opt/shop-flower/bin/python - {FLOWER_RELEASES} {folder}", script))
    for name, kib in found["KiB"].items():
        first, last = kib["10"], kib[str(FLOWER_RELEASES)]
        say(
            f"flower   {name} workers that are gone: {last / 1024:.1f} MiB after {FLOWER_RELEASES} releases, "
            f"{last / first:.2f} times that after ten; its metrics name {found['workers'][name]} workers"
        )


def main() -> None:
    figures = {
        "fresh": fresh,
        "again": again,
        "release": release,
        "rollback": rollback,
        "latency": latency,
        "far": far,
        "backup": backup,
        "flower": flower,
        "memory": memory,
    }
    chosen = sys.argv[1:] or list(figures)
    if unknown := set(chosen) - set(figures):
        raise SetupError(f"No figure is called {', '.join(unknown)}; there are {', '.join(figures)}.")
    HOST.folder.mkdir(exist_ok=True)
    LOG.unlink(missing_ok=True)
    say(
        f"{time.strftime('%F')}, {OS} on {os.cpu_count()} cores, Python {platform.python_version()}, medians of {RUNS}."
    )
    for name in chosen:
        figures[name]()
    down(HOST)


if __name__ == "__main__":
    exit_with_instructions(main)
