"""results.py: tasks while the result backend does not answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ADDRESS, HOST, Broker, Site, acl, free_port, wait_until

PLACES = 4
POOLS = ["prefork", "threads"]


# --- Result backends -----------------------------------------------------------------------------------------------


@dataclass
class Database:
    """A PostgreSQL of its own, with the tables of django-celery-results."""

    folder: Path
    port: int

    @property
    def url(self) -> str:
        return f"postgres://shop@{ADDRESS}:{self.port}/postgres"

    @property
    def variables(self) -> dict[str, str]:
        return {"BACKEND": "django-db", "DATABASE_URL": self.url}

    def run(self, program: str, *words: str, **options: bool) -> None:
        folder = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
        subprocess.run([folder / program, "--pgdata", self.folder, *words], stdout=subprocess.DEVNULL, **options)

    def create(self) -> None:
        self.run("initdb", "--username", "shop", "--auth", "trust", "--no-sync", check=True)

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses={ADDRESS} -c unix_socket_directories= -c fsync=off"
        self.run("pg_ctl", "start", "--wait", "--log", f"{self.folder}.log", "--options", options, check=True)

    def stop(self) -> None:
        self.run("pg_ctl", "stop", "--wait", "--mode", "fast")

    def kill(self) -> None:
        server = (self.folder / "postmaster.pid").read_text().split()[0]
        processes = [server, *Path(f"/proc/{server}/task/{server}/children").read_text().split()]
        os.kill(int(server), signal.SIGKILL)
        # Only when all of its processes are gone can it start again.
        wait_until(lambda: not any(Path("/proc", process).exists() for process in processes))

    def outcomes(self, site: Site) -> dict[str, str]:
        """Return the recorded state of each task by its ID."""
        code = "import django, json; django.setup(); from django_celery_results.models import TaskResult as R; "
        code += "print(json.dumps(dict(R.objects.values_list('task_id', 'status'))))"
        return json.loads(site.django("-c", code, **self.variables))

    def states(self, site: Site) -> dict[str, int]:
        """Count the recorded tasks by their state."""
        return dict(Counter(self.outcomes(site).values()))

    def wait_for_outcomes(self, site: Site, expected: dict[str, str]) -> None:
        """Wait until these tasks, and possibly others, are recorded."""
        seen: list[dict[str, str]] = []

        def recorded() -> bool:
            seen.append(self.outcomes(site))
            return expected.items() <= seen[-1].items()

        try:
            wait_until(recorded)
        except AssertionError:
            pytest.fail(f"recorded are {seen[-1]}, not {expected}")


@pytest.fixture
def database(site: Site, tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "postgresql", free_port())
    made.create()
    made.start()
    site.django("-m", "django", "migrate", "django_celery_results", "--verbosity", "0", **made.variables)
    yield made
    made.stop()


@pytest.fixture
def other_redis(tmp_path: Path) -> Iterator[Broker]:
    folder = tmp_path / "other-redis"
    folder.mkdir()
    (folder / "users.acl").write_text(acl())
    server = Broker(folder, free_port())
    server.start()
    yield server
    server.stop()


# --- Tasks ---------------------------------------------------------------------------------------------------------


def publish_while(
    site: Site, take_away: Callable[[], None], bring_back: Callable[[], None], seconds: float
) -> list[str]:
    """Publish tasks; return their IDs when all have ended."""
    sent = [site.send("sample.brief") for _ in range(2 * PLACES)]
    wait_until(lambda: site.lines("START"))
    take_away()
    for _ in range(10):
        sent.append(site.send("sample.brief"))
        time.sleep(seconds / 10)
    bring_back()
    wait_until(lambda: set(site.lines("END")) == set(sent))
    return sent


def assert_every_place_is_free(site: Site) -> None:
    wait_until(lambda: not site.broker.admin.keys("unacked:*"))
    before = len(site.lines("START"))
    held = [site.send() for _ in range(PLACES)]
    wait_until(lambda: sorted(site.lines("START")[before:]) == sorted(held))
    site.gate.touch()
    wait_until(lambda: set(held) <= set(site.lines("END")))
    wait_until(lambda: not site.broker.admin.keys("unacked:*"))


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("fault", [pytest.param("stop", marks=pytest.mark.core), "kill"])
def test_tasks_wait_for_postgresql(site: Site, broker: Broker, database: Database, pool: str, fault: str) -> None:
    worker = site.worker(pool=pool, concurrency=PLACES, **database.variables)
    sent = publish_while(site, getattr(database, fault), database.start, 1)
    assert sorted(site.lines("START")) == sorted(sent)
    assert_every_place_is_free(site)
    assert database.states(site) == {"SUCCESS": len(sent) + PLACES}
    assert worker.poll() is None


@pytest.mark.core
@pytest.mark.parametrize("pool", POOLS)
def test_tasks_are_requeued_when_postgresql_stays_away(
    site: Site, broker: Broker, database: Database, pool: str
) -> None:
    site.change("results", "START_SECONDS = 30", "START_SECONDS = 1")
    worker = site.worker(pool=pool, concurrency=PLACES, DEDUPLICATE="1", **database.variables)
    database.stop()
    sent = [site.send("sample.brief") for _ in range(2 * PLACES)]
    wait_until(lambda: site.output(worker).count("is requeued: cannot record the start") >= PLACES)
    wait_until(lambda: "is requeued: cannot read an earlier outcome" in site.output(worker))
    assert site.lines("START") == []
    database.start()
    wait_until(lambda: sorted(site.lines("END")) == sorted(sent))
    assert sorted(site.lines("START")) == sorted(sent)
    assert_every_place_is_free(site)
    assert database.states(site) == {"SUCCESS": len(sent) + PLACES}


@pytest.mark.parametrize(("pool", "backend"), [("prefork", "redis"), ("threads", "redis"), ("threads", "django-cache")])
def test_tasks_wait_for_other_backends(
    site: Site, broker: Broker, other_redis: Broker, pool: str, backend: str
) -> None:
    variables = {"BACKEND": other_redis.url if backend == "redis" else backend, "CACHE_URL": other_redis.url}
    worker = site.worker(pool=pool, concurrency=PLACES, **variables)
    sent = publish_while(site, other_redis.stop, other_redis.start, 2)
    assert sorted(site.lines("START")) == sorted(sent)
    assert_every_place_is_free(site)
    assert len(other_redis.admin.keys("*celery-task-meta-*")) == len(sent) + PLACES
    assert worker.poll() is None


@pytest.mark.parametrize("pool", POOLS)
def test_tasks_that_are_acknowledged_early_run_without_a_record(
    site: Site, broker: Broker, database: Database, pool: str
) -> None:
    for name in ("START", "OUTCOME"):
        value = {"START": 30, "OUTCOME": 300}[name]
        site.change("results", f"{name}_SECONDS = {value}", f"{name}_SECONDS = 1")
    site.worker(pool=pool, concurrency=PLACES, EARLY="1", **database.variables)
    database.stop()
    sent = [site.send("sample.brief") for _ in range(PLACES)]
    wait_until(lambda: sorted(site.lines("END")) == sorted(sent))
    database.start()
    assert_every_place_is_free(site)
    assert sorted(site.lines("START")[:PLACES]) == sorted(sent)


@pytest.mark.parametrize("pool", [*POOLS, "solo"])
def test_task_whose_outcome_is_not_recorded_runs_again_when_the_database_is_back(
    site: Site, broker: Broker, database: Database, pool: str
) -> None:
    """Also without a record of its start, and no more often than that."""
    site.change("results", "START_SECONDS = 30", "START_SECONDS = 1")
    site.change("results", "OUTCOME_SECONDS = 300", "OUTCOME_SECONDS = 1")
    worker = site.worker(pool=pool, concurrency=1, UNTRACKED="1", **database.variables)
    sent = site.send()
    wait_until(lambda: site.lines("START") == [sent])
    database.stop()
    site.gate.touch()
    wait_until(lambda: site.output(worker).count("cannot read an earlier outcome") >= 2)
    assert site.lines("END") == [sent]
    database.start()
    wait_until(lambda: site.lines("END") == [sent, sent])
    wait_until(lambda: not broker.admin.keys("unacked:*"))
    assert database.states(site) == {"SUCCESS": 1}


@pytest.mark.parametrize("pool", POOLS)
def test_a_task_that_waits_does_not_delay_the_stop(site: Site, broker: Broker, database: Database, pool: str) -> None:
    worker = site.worker(pool=pool, concurrency=2, **database.variables)
    first = site.send()
    wait_until(lambda: site.lines("START") == [first])
    database.stop()
    second = site.send()
    wait_until(lambda: "cannot record the start" in site.output(worker))
    site.gate.touch()
    wait_until(lambda: "cannot record the outcome" in site.output(worker))
    assert site.stop(worker) == 0
    assert site.depth() == 2
    database.start()
    site.worker(pool=pool, concurrency=2, **database.variables)
    wait_until(lambda: sorted(site.lines("END")) == sorted([first, first, second]))


@pytest.mark.core
def test_outcomes_of_the_main_process_are_recorded_later(site: Site, broker: Broker, database: Database) -> None:
    """A time limit, a revoked task, a killed child: their errors would end the worker, or leave a place occupied."""
    worker = site.worker(concurrency=2, **database.variables)
    revoked = site.send(countdown=3600)
    wait_until(lambda: f"[{revoked}] received" in site.output(worker))
    site.client.control.revoke(revoked)
    wait_until(lambda: f"flagged as revoked: {revoked}" in site.output(worker))
    # Without the database before the limit is over.
    limited = site.send(time_limit=4)
    wait_until(lambda: site.lines("START") == [limited])
    database.stop()
    expired = site.send(expires=0.001)
    wait_until(lambda: f"Cannot record the outcome of sample.hold[{expired}]" in site.output(worker))
    wait_until(lambda: f"Cannot record the outcome of sample.hold[{limited}]" in site.output(worker))
    database.start()
    # Some versions of Celery record the other revoked task when it is revoked, some when it would run.
    database.wait_for_outcomes(site, {limited: "FAILURE", expired: "REVOKED"})
    wait_until(lambda: broker.admin.hlen(f"unacked:one.r1@{HOST}") == 1)
    assert worker.poll() is None
    before = len(site.lines("START"))
    held = [site.send() for _ in range(2)]
    wait_until(lambda: sorted(site.lines("START")[before:]) == sorted(held))


@pytest.mark.parametrize("pool", POOLS)
def test_a_task_that_the_database_cannot_store_runs_once(
    site: Site, broker: Broker, database: Database, pool: str
) -> None:
    """Its ID is too long, which waiting does not change."""
    worker = site.worker(pool=pool, concurrency=PLACES, **database.variables)
    sent = [site.send("sample.brief", task_id=f"{number:0300}") for number in range(PLACES)]
    wait_until(lambda: sorted(site.lines("END")) == sorted(sent))
    assert "continues: cannot record the start" in site.output(worker)
    assert_every_place_is_free(site)
    assert sorted(site.lines("START")[:PLACES]) == sorted(sent)
