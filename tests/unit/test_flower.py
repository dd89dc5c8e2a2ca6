"""Flower's virtual environment, and the workers that it remembers."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

from hostctl.in_app.flower_runner import discard_workers

ROLE = Path(__file__).parents[2] / "roles/flower"


def marker(debian: str, requirements: str = "flower==2.0.1") -> str:
    """Return the file that marks a complete installation."""
    loader = DataLoader()
    known = loader.load_from_file(str(ROLE / "vars/main.yml"), trusted_as_template=True)
    given = {"flower_name": "shop", "ansible_facts": {"distribution_release": debian}}
    variables = known | given | {"__flower_requirements": requirements}
    return Templar(loader, variables=variables).template(known["__flower_installed"])


def test_another_debian_has_another_python() -> None:
    """The interpreter's link still leads somewhere after an upgrade of Debian, to a version without the packages."""
    assert marker("bookworm").startswith("/opt/shop-flower/.installed-bookworm-")
    assert marker("bookworm") == marker("bookworm")
    assert len({marker("bookworm"), marker("trixie"), marker("trixie", "flower==2.0.2")}) == 3
    assert marker("trixie") == marker("trixie").strip()


@dataclass
class Worker:
    """As Celery's: one that was stopped has no heartbeats."""

    heartbeats: list[float] = field(default_factory=list)
    timestamp: float | None = None


@dataclass
class Metrics:
    removed: set[str] = field(default_factory=set)

    def remove_workers(self, names: set[str]) -> None:
        self.removed |= names


def flower(workers: dict[str, Worker]) -> SimpleNamespace:
    """What Flower keeps of workers, in its three places."""
    counter = dict.fromkeys(workers, 1) | {"unknown": 1}
    state = SimpleNamespace(workers=dict(workers), counter=counter, metrics=Metrics())
    inspector = SimpleNamespace(workers={name: {} for name in workers})
    return SimpleNamespace(events=SimpleNamespace(state=state), inspector=inspector)


def test_workers_of_former_releases_are_discarded() -> None:
    now = time.time()
    workers = {
        "stopped": Worker(timestamp=now - 700),
        "silent": Worker([now - 700]),
        "just-stopped": Worker(timestamp=now - 500),
        "quiet": Worker([now - 900, now - 500]),
        "running": Worker([now - 1]),
    }
    found = flower(workers)
    discard_workers(found, 600)
    kept = {"just-stopped", "quiet", "running"}
    assert set(found.events.state.workers) == set(found.events.state.counter) == set(found.inspector.workers) == kept
    assert found.events.state.metrics.removed == {"stopped", "silent", "unknown"}
