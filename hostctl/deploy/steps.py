"""The steps of a deployment as data. Plans and barriers are derived from this one list.

`undo` runs when this step or a later one fails, and when the deployment was killed; see deployment.revert. It looks at
what there is instead of relying on how far its step got, so that it can run at any time and more than once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import build, drain, launch, preflight, schema, static, traffic

DEPLOY_PLAN, ROLLBACK_PLAN, RESUME_PLAN = "deploy", "rollback", "resume"
NEW_RELEASE = frozenset({DEPLOY_PLAN})
OLD_RELEASE = frozenset({ROLLBACK_PLAN})
NOT_RESUMED = frozenset({DEPLOY_PLAN, ROLLBACK_PLAN})
ALL = frozenset({DEPLOY_PLAN, ROLLBACK_PLAN, RESUME_PLAN})


@dataclass(frozen=True)
class Step:
    """One step. `run` takes the Deployment; `undo` takes a Context, which may be that of a killed deployment.

    barrier: several hosts wait here until all have completed the step; before the last barrier a failure on one host
             reverts all of them.
    final:   old processes end, so from here on nothing is undone.
    """

    name: str
    run: Callable[[Any], None]
    undo: Callable[[Any], None] | None = None
    plans: frozenset[str] = ALL
    barrier: bool = False
    final: bool = False


STEPS = (
    Step("preflight", preflight.preflight),
    Step("build", build.build, undo=build.remove_release, plans=NEW_RELEASE),
    Step("check", preflight.check, undo=static.withdraw, plans=NEW_RELEASE, barrier=True),
    Step("snapshot", schema.snapshot, plans=NEW_RELEASE),
    Step("migrate", schema.migrate, plans=NEW_RELEASE, barrier=True),
    Step("start", launch.start, undo=launch.stop_release),
    Step("health_check", launch.health_check, barrier=True),
    Step("warm_up", launch.warm_up),
    Step("stop_consuming", traffic.stop_consuming, undo=traffic.resume_consumers, plans=ALL - OLD_RELEASE),
    # A rollback restores the pages first: its workers start, and the others stop, after the switch.
    Step("check_schema", preflight.check_schema, plans=OLD_RELEASE),
    Step("switch", traffic.switch, undo=traffic.switch_back, plans=NOT_RESUMED),
    Step("start_workers", launch.start_workers, plans=OLD_RELEASE),
    Step("stop_consuming", traffic.stop_consuming, undo=traffic.resume_consumers, plans=OLD_RELEASE),
    Step("smoke_test", traffic.smoke_test),
    Step("bake", traffic.bake, barrier=True),
    Step("restart_beat", drain.restart_beat, final=True),
    Step("drain", drain.drain, final=True),
    Step("prune", drain.prune, final=True),
)


def plan(name: str) -> tuple[Step, ...]:
    return tuple(step for step in STEPS if name in step.plans)


DEPLOY = plan(DEPLOY_PLAN)
ROLLBACK = plan(ROLLBACK_PLAN)
# The release is current already, but its deployment was killed before its end.
RESUME = plan(RESUME_PLAN)

NAMES = tuple(dict.fromkeys(step.name for step in STEPS))
BARRIERS = tuple(step.name for step in DEPLOY if step.barrier)
FINAL = tuple(step.name for step in DEPLOY if step.final)


def undo_order(steps: tuple[Step, ...]) -> list[Step]:
    """Return the steps to undo: the last one first, except that traffic always moves back before anything else."""
    undoable = [step for step in reversed(steps) if step.undo]
    return sorted(undoable, key=lambda step: step.name != "switch")
