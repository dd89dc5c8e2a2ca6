"""compat.py: what is installed here is supported; outside the tested range Celery's own worker and beat run."""

from __future__ import annotations

import pytest
from conftest import END_SECONDS, HOST, Broker, Site, wait_until

CHECK = ["check", "sample.celery:app", "sample"]
VARIABLES = {"DJANGO_SETTINGS_MODULE": "sample.settings"}


@pytest.mark.core
def test_installed_versions_are_supported(site: Site, broker: Broker) -> None:
    assert site.ask(CHECK, **VARIABLES)["warnings"] == []


def test_a_missing_private_name_is_reported_and_workers_run_without(site: Site, broker: Broker) -> None:
    site.change("compat", '"_get_message_priority", ', '"_get_message_priority", "_gone", ')
    [warning] = site.ask(CHECK, **VARIABLES)["warnings"]
    assert warning.startswith("Celery lacks kombu.transport.redis:Channel._gone: workers run as plain `celery worker`")
    site.worker()
    site.gate.touch()
    sent = site.send()
    wait_until(lambda: site.lines("END") == [sent])


@pytest.mark.unsupported
def test_check_warns_of_an_unsupported_version(site: Site, broker: Broker) -> None:
    answer = site.ask(CHECK, **VARIABLES)
    assert answer["warnings"][0] == (
        f"celery {answer['versions']['celery']} is outside the tested range 5.4 to 5.7: workers run as plain "
        "`celery worker`, beat as plain `celery beat`; tasks that a worker holds when it stops abruptly return after "
        "visibility_timeout only."
    )


@pytest.mark.unsupported
def test_plain_worker_with_an_unsupported_version(site: Site, broker: Broker) -> None:
    node = f"one.r1@{HOST}"
    worker = site.worker(queues="default,other")
    assert "is outside the tested range" in site.output(worker)
    answers = site.ask(
        ["ping", "sample", 60, node],
        ["smoke_test", "sample", 60, "r1", {}, "default", "other"],
        ["consumers", "sample", "cancel", "default,other", node],
        ["depths", "sample", "default"],
        ["consumers", "sample", "add", "default,other", node],
        ["requeue_unacknowledged", "sample"],
        ["parked", "sample"],
    )
    nothing_silent = {"silent": []}
    assert answers == [
        nothing_silent,
        {"silent": [], "other": {}, "busy": []},
        nothing_silent,
        {"default": 0},
        nothing_silent,
        {"requeued": 0, "known": {}},
        {"tasks": {}, "others": 0},
    ]
    sent = site.send()
    wait_until(lambda: site.lines("START") == [sent])
    worker.terminate()
    site.gate.touch()
    assert worker.wait(END_SECONDS) == 0
    assert site.lines("END") == [sent]


@pytest.mark.unsupported
def test_plain_beat_with_an_unsupported_version(site: Site, broker: Broker) -> None:
    beat = site.beat()
    wait_until(lambda: site.depth("ticks") >= 2)
    assert site.stop(beat) == 0
