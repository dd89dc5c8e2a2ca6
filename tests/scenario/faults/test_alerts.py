"""Doctor names each fault with what to type; a person is told once when it is there, and once when it is over.

The timer runs the watch every minute, and tells what it finds; where a test does not wait for it, it runs as soon as it
is of use.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from shlex import quote
from typing import Any

import pytest
from deployments import Deployments
from doctor_on_host import bad, discard_requests, doctor, watch
from installation import query, run_python
from probes import Visitor, wait_for
from sinks import Received

# The runs after which a fault is told, and after which it is over.
RUNS = 2
# The timer's next run is due within a minute, and its checks take some seconds.
TIMER_SECONDS = 150
# A queue is late when its next task has waited for a minute.
LATE_SECONDS = 90
SESSIONS = 49
# Seconds between two runs of the watch during a deployment: many more runs than those of the timer.
WATCH_PAUSE = 3
# Processes that are stopped, and the checks that find it.
STOPPED = {"web": "web", "worker-heavy": "workers", "beat": "beat"}
# Prints the names of the workers in Flower's metrics.
FLOWER = """
import re, urllib.request
text = urllib.request.urlopen("http://127.0.0.1:5555/flower/metrics").read().decode()
print(*set(re.findall('worker="([^"]*)"', text)))
"""

# Runs the watch with a clock that is a day ahead: a container cannot set its own.
WATCH_AHEAD = """
import runpy, sys, time
clock = time.time
time.time = lambda: clock() + 86400
sys.argv = ["NAMEctl", "watch"]
runpy.run_path("/usr/local/sbin/NAMEctl", run_name="__main__")
"""


@dataclass(frozen=True)
class Fault:
    """What is done to the host, how it is undone, and the check that finds it."""

    check: str
    plant: str
    heal: str


def faults(deployments: Deployments) -> list[Fault]:
    app, address, certificates = deployments.app.name, deployments.app.address, deployments.app.certificate_folder
    certificate, redis = f"{certificates}/fullchain.pem", "/etc/redis/redis-broker.conf"
    session = "runuser -u postgres -- psql -qc 'SELECT pg_sleep(600)' >/dev/null 2>&1 </dev/null &"
    name = f"-subj /CN=short -addext subjectAltName=IP:{address}"
    short = f"openssl req -x509 -key {certificates}/privkey.pem -days 5 {name}"
    return [
        *(Fault(name, deployments.manage("stop", name), deployments.manage("start", name)) for name in ("web", "beat")),
        Fault(
            "redis",
            f"cp {redis} /root/ && echo maxmemory 1mb >>{redis} && systemctl restart redis-server@broker",
            f"cat /root/redis-broker.conf >{redis} && systemctl restart redis-server@broker",
        ),
        Fault(
            "certificate",
            f"cp {certificate} /root/ && {short} 2>/dev/null >/root/short.pem && cat /root/short.pem >{certificate} && "
            "systemctl reload nginx",
            f"cat /root/fullchain.pem >{certificate} && systemctl reload nginx",
        ),
        Fault(
            "disk",
            "mount -t tmpfs -o size=4m tmpfs /boot; dd if=/dev/zero of=/boot/filler bs=1M 2>/dev/null || true",
            "umount /boot",
        ),
        Fault(
            "drill",
            f"chmod 000 /var/lib/pgbackrest; {app}ctl backup drill --local || test $? = 1",
            f"chmod 750 /var/lib/pgbackrest; {app}ctl backup drill --local",
        ),
        Fault("access", "ufw --force disable", "ufw --force enable"),
        Fault("reboot", "touch -d '-8 days' /run/reboot-required", "rm /run/reboot-required"),
        # Last, so that it is healed first: a drill needs a connection.
        Fault(
            "postgresql",
            f"cd /; for i in $(seq {SESSIONS}); do {session} done; sleep 2",
            # Not by SQL: no connection is left.
            "pkill -u postgres -f 'postgres [[]local[]] SELECT'",
        ),
    ]


def told(received: Received, event: str, since: int = 0) -> Counter[str]:
    """Return how often each check was told in this state (bad, warn or ok: it is over), from that message on."""
    checks = (check for alert in received.alerts[since:] for check in alert["checks"])
    return Counter(check["name"] for check in checks if check["state"] == event)


def problems(received: Received, since: int = 0) -> Counter[str]:
    """Return how often each check was told to be bad, or a warning."""
    return told(received, "bad", since) + told(received, "warn", since)


def troubled(deployments: Deployments) -> set[str]:
    """Return the checks that are not well."""
    return not_well(doctor(deployments))


def not_well(found: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name, check in found.items() if check["state"] != "ok"}


@dataclass(frozen=True)
class Deployed:
    """Two deployments and a rollback: what was sent meanwhile, and the release before the one that is live now."""

    alerts: list[dict[str, Any]]
    heartbeat: str
    before: str


@pytest.fixture(scope="module")
def deployed(deployments: Deployments, received: Received, _well: None) -> Deployed:
    """The last of them is a release that dies when it is told to."""
    # What was told before the servers listened is over.
    watch(deployments, RUNS + 1)
    before, old = len(received.alerts), deployments.current
    with deployments.under_load():
        for source in (deployments.version("second"), None, deployments.version("mortal", "dies-when-told")):
            run = deployments.begin(source) if source else deployments.control("rollback")
            while run.process.poll() is None:
                watch(deployments)
                time.sleep(WATCH_PAUSE)
            run.wait().succeeded()
            watch(deployments)
        watch(deployments, RUNS)
    return Deployed(received.alerts[before:], received.heartbeats[-1], old)


@pytest.mark.os("debian13")
def test_deployments_and_a_rollback_are_quiet(deployed: Deployed, healthy: None) -> None:
    assert deployed.alerts == []
    assert deployed.heartbeat == "/heartbeat"


@pytest.mark.os("debian13")
def test_release_that_dies_later_is_told_with_the_way_back(
    deployments: Deployments, received: Received, deployed: Deployed, healthy: None
) -> None:
    host, app = deployments.host, deployments.app.name
    dead = deployments.current
    before = len(received.alerts)
    host.check_output(f"touch {deployments.media}/die")
    try:
        wait_for(lambda: bad(deployments), 180, "doctor names the release", lambda found: "release" in found, pause=1)
        watch(deployments, RUNS)
        [message] = [
            check
            for alert in received.alerts[before:]
            for check in alert["checks"]
            if check["name"] == "release" and check["state"] == "bad"
        ]
        assert dead in message["text"]
        assert f"{app}ctl rollback" in message["remedy"]
        assert deployed.before in message["remedy"]
    finally:
        host.check_output(f"rm -f {deployments.media}/die")
    deployments.rollback().succeeded()


# What differs under Supervisor, doctor's view of processes and what to type, is in the next test.
@pytest.mark.os("debian13")
def test_ten_faults_are_named_and_told_once(
    deployments: Deployments, visitor: Visitor, received: Received, healthy: None
) -> None:
    host, app = deployments.host, deployments.app.name
    watch(deployments, RUNS)
    before = troubled(deployments)
    received.requests.clear()
    received.mails.clear()
    planted = faults(deployments)
    names = {fault.check for fault in planted} | {"workers", "queues"}
    done = []
    try:
        host.check_output(deployments.manage("stop", "worker-heavy"))
        visitor.report()
        watch(deployments)
        for fault in planted:
            done.append(fault)
            host.check_output(f"sh -ec {quote(fault.plant)}")
        watch(deployments)
        at_once = names - {"queues"}
        wait_for(lambda: set(problems(received)), TIMER_SECONDS, "the timer tells them", lambda seen: seen >= at_once)
        wait_for(
            lambda: troubled(deployments), LATE_SECONDS, "the queue is late", lambda seen: "queues" in seen, pause=2
        )
        watch(deployments, RUNS)
        found = doctor(deployments)
        assert not_well(found) >= names
        without = [name for name in names if not found[name]["remedy"]]
        assert not without, f"doctor does not say what to type: {without}"
        assert host.run(f"{app}ctl doctor").rc == 2
        watch(deployments, RUNS + 1)
        beginning = problems(received)
        assert {name: beginning[name] for name in names} == dict.fromkeys(names, 1), beginning
        assert received.heartbeats[-1] == "/heartbeat/fail"
    finally:
        for fault in reversed(done):
            host.run(f"sh -c {quote(fault.heal)}")
        host.check_output(deployments.manage("start", "worker-heavy"))
    # Requests that have failed count for five minutes.
    discard_requests(deployments)
    # Without a signal, PostgreSQL tries to archive again after a minute; the timer of the backups runs each minute.
    query(host, deployments.app, "SELECT pg_reload_conf()")
    wait_for(lambda: host.run(f"{app}ctl backup ship").succeeded, 90, "segments are archived again", pause=2)
    wait_for(lambda: troubled(deployments) - before, 240, "all is as before", lambda it: not it, pause=2)
    watch(deployments, RUNS + 1)
    over = told(received, "ok")
    assert {name: over[name] for name in names} == dict.fromkeys(names, 1), over
    assert received.heartbeats[-1] == "/heartbeat"
    # Mail and webhook say the same.
    assert len(received.mails) == len(received.alerts)
    text = "".join(mail.get_content() for mail in received.mails)
    assert all(name in text for name in names)
    assert {mail["To"] for mail in received.mails} == {"operator@example.org"}


def test_remedy_of_doctor_starts_a_stopped_process(deployments: Deployments, healthy: None) -> None:
    """One after another: a remedy may start all that do not run."""
    host = deployments.host
    for process, check in STOPPED.items():
        host.check_output(deployments.manage("stop", process))
        try:
            found = doctor(deployments)
            # The remedy for the process before has helped.
            states = {one: found[one]["state"] for one in STOPPED.values()}
            assert states == dict.fromkeys(STOPPED.values(), "ok") | {check: "bad"}
            host.check_output(found[check]["remedy"])
            assert deployments.unit(process) in deployments.processes()
        finally:
            host.run(deployments.manage("start", process))
    found = doctor(deployments)
    assert {found[check]["state"] for check in STOPPED.values()} == {"ok"}


@pytest.mark.os("debian13")
def test_a_clock_that_goes_a_day_forward_and_back_is_over_soon(
    deployments: Deployments, received: Received, healthy: None
) -> None:
    """What looks old meanwhile, such as the last backup, may be told. Afterwards it is over, and a fault is told."""
    script = WATCH_AHEAD.replace("NAME", deployments.app.name)
    timer = f"{deployments.app.name}-watch.timer"
    # A run of today's clock between them would find that all is well.
    deployments.host.check_output(f"systemctl stop {timer}")
    try:
        watch(deployments, RUNS + 1)
        before = len(received.alerts)
        for _ in range(RUNS):
            assert deployments.host.run(f"python3 - <<'SCRIPT'\n{script}\nSCRIPT").rc in (0, 1, 2)
    finally:
        deployments.host.check_output(f"systemctl start {timer}")
    assert problems(received, before), "the clock makes no difference"
    watch(deployments, RUNS + 1)
    assert not bad(deployments)
    assert set(problems(received, before)) == set(told(received, "ok", before))
    before = len(received.alerts)
    deployments.host.check_output(deployments.manage("stop", "beat"))
    try:
        watch(deployments, RUNS)
        assert problems(received, before) == {"beat": 1}
    finally:
        deployments.host.check_output(deployments.manage("start", "beat"))
    watch(deployments, RUNS)
    assert told(received, "ok", before) == {"beat": 1}
    assert received.heartbeats[-1] == "/heartbeat"


@pytest.mark.os("debian13")
def test_flower_discards_workers_of_former_releases(deployments: Deployments) -> None:
    """As its metrics show: each release has workers of its own names. (The inventory has a shorter time than usual.)"""
    wait_for(
        lambda: set(run_python(deployments.host, FLOWER).split()),
        120,
        "Flower knows the workers of the current release alone",
        lambda names: bool(names) and all(deployments.current in name for name in names),
        pause=2,
    )
