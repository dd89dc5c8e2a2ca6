"""The list of steps, and what is derived from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hostctl.deploy import deployment, steps
from hostctl.deploy.steps import BARRIERS, DEPLOY, FINAL, RESUME, ROLLBACK, Step, undo_order
from hostctl.host import Host
from tests.hostctl.fakes import Answers, deploy, failure

ROOT = Path(__file__).parents[2]


def names(plan: tuple[Step, ...] | list[Step]) -> list[str]:
    return [step.name for step in plan]


def test_each_plan_takes_the_steps_in_the_documented_order() -> None:
    assert " ".join(names(DEPLOY)) == (
        "preflight build check snapshot migrate start health_check warm_up stop_consuming switch smoke_test bake "
        "restart_beat drain prune"
    )
    assert " ".join(names(ROLLBACK)) == (
        "preflight start health_check warm_up check_schema switch start_workers stop_consuming smoke_test bake "
        "restart_beat drain prune"
    )
    assert names(RESUME) == [
        name for name in names(DEPLOY) if name not in ("build", "check", "snapshot", "migrate", "switch")
    ]


def test_no_plan_takes_a_step_twice() -> None:
    for plan in (DEPLOY, ROLLBACK, RESUME):
        assert len(set(names(plan))) == len(plan)


def test_barriers_come_before_the_first_final_step() -> None:
    order = names(DEPLOY)
    assert BARRIERS == ("check", "migrate", "health_check", "bake")
    assert FINAL == ("restart_beat", "drain", "prune")
    assert order.index(BARRIERS[-1]) < order.index(FINAL[0])
    assert [step.name for step in steps.STEPS if step.final] == list(FINAL)


@pytest.mark.parametrize(
    ("plan", "order"),
    [
        (DEPLOY, ["switch", "stop_consuming", "start", "check", "build"]),
        (ROLLBACK, ["switch", "stop_consuming", "start"]),
    ],
    ids=["deploy", "rollback"],
)
def test_traffic_moves_back_first_and_the_rest_in_reverse(plan: tuple[Step, ...], order: list[str]) -> None:
    assert names(undo_order(plan)) == order


def test_only_steps_that_were_taken_are_undone(live: Host, answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    undone: list[tuple[str, ...]] = []
    monkeypatch.setattr(deployment, "undo_order", lambda taken: undone.append(tuple(names(taken))) or undo_order(taken))
    answers.override["ping"] = failure("ping")
    assert deploy(live) == 1
    assert undone == [tuple(names(DEPLOY)[: names(DEPLOY).index("health_check") + 1])]


def test_every_undo_is_harmless_when_nothing_was_done(live: Host, answers: Answers) -> None:
    """As for a deployment that was killed in its first step."""
    before = set(live.manager.running), live.current_release()
    context = deployment.Context(live, "other-3", {"previous": live.current_release()})
    for _ in range(2):
        for step in undo_order(steps.STEPS):
            step.undo(context)
    assert (set(live.manager.running), live.current_release()) == before


def test_the_role_waits_at_the_same_barriers() -> None:
    variables = yaml.safe_load((ROOT / "roles/release/vars/main.yml").read_text())
    assert tuple(variables["__release_barriers"]) == BARRIERS
