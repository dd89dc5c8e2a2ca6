"""A deployment that was killed at any step is completed or reverted by the next one."""

from __future__ import annotations

import pytest

from hostctl.deploy import builder, deployment, record, recovery, steps
from hostctl.deploy.steps import Step
from hostctl.host import Host
from hostctl.status import table
from tests.hostctl.fakes import NEW, OLD, Answers, Killed, Manager, deploy, last_outcome, make_release, unfinished

DEPLOY_STEPS = [step.name for step in steps.DEPLOY]
ROLLBACK_STEPS = [step.name for step in steps.ROLLBACK]


def kill_at(host: Host, name: str, monkeypatch: pytest.MonkeyPatch, release: str = NEW, action: str = "deploy") -> None:
    """Deploy, and end without any clean-up when the step has begun."""
    take = deployment.Deployment.take

    def take_or_die(self: deployment.Deployment, step: Step) -> None:
        if step.name == name:
            self.record.step(step.name)
            raise Killed
        take(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(deployment.Deployment, "take", take_or_die)
        with pytest.raises(Killed):
            deploy(host, release, action)


@pytest.mark.parametrize("step", DEPLOY_STEPS)
def test_the_next_run_completes_it(
    live: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    kill_at(live, step, monkeypatch)
    assert unfinished(live)["step"] == step
    assert deploy(live) == 0
    assert live.current_release() == NEW
    assert manager.running == set(live.units(NEW))
    assert not unfinished(live)


@pytest.mark.parametrize("step", DEPLOY_STEPS)
def test_another_release_reverts_it(
    live: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    kill_at(live, step, monkeypatch)
    assert deploy(live, "other-3") == 0
    assert live.current_release() == "other-3"
    assert manager.running == set(live.units("other-3"))


@pytest.mark.parametrize("step", ROLLBACK_STEPS)
def test_the_next_run_completes_a_rollback(
    live: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    deploy(live)
    kill_at(live, step, monkeypatch, OLD, "rollback")
    assert deploy(live, OLD, "rollback") == 0
    assert live.current_release() == OLD
    assert manager.running == set(live.units(OLD))


@pytest.mark.parametrize("step", ROLLBACK_STEPS)
def test_another_release_reverts_a_rollback(
    live: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    deploy(live)
    kill_at(live, step, monkeypatch, OLD, "rollback")
    assert deploy(live, "other-3") == 0
    assert live.current_release() == "other-3"
    assert manager.running == set(live.units("other-3"))


@pytest.mark.parametrize("step", [name for name in DEPLOY_STEPS if name not in steps.FINAL])
def test_the_next_run_reverts_it_when_it_fails_itself(
    live: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    kill_at(live, step, monkeypatch)
    answers.override["smoke_test"] = {"silent": ["default"]}
    assert deploy(live) == 1
    assert live.current_release() == OLD
    assert manager.running == set(live.units(OLD))
    assert not unfinished(live)


def test_a_run_that_fails_in_preflight_stops_what_the_killed_one_started(
    live: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_at(live, "warm_up", monkeypatch)
    monkeypatch.setattr("hostctl.deploy.preflight.beat_processes", lambda user: ["12", "34"])
    assert deploy(live) == 1
    assert manager.running == set(live.units(OLD))


def test_the_history_names_it(live: Host, answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_at(live, "health_check", monkeypatch)
    deploy(live)
    entries = record.history(live.settings)
    assert [entry["outcome"] for entry in entries] == ["interrupted at health_check", "succeeded"]
    assert "interrupted at health_check" in table(entries)


def test_old_workers_consume_again_when_the_completing_run_fails(
    live: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_at(live, "smoke_test", monkeypatch)
    answers.override["smoke_test"] = {"silent": ["default"]}
    assert deploy(live) == 1
    assert live.current_release() == OLD
    assert manager.running == set(live.units(OLD))
    assert answers.resumed(OLD)


def test_traffic_stays_when_the_old_pages_have_ended(
    live: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_at(live, "drain", monkeypatch)
    manager.stop(live.web_units(OLD))
    answers.override["smoke_test"] = {"silent": ["default"]}
    assert deploy(live) == 1
    assert live.current_release() == NEW
    assert set(live.units(NEW)) <= manager.running


def test_a_rollback_after_a_kill_resumes_the_old_workers(
    live: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They still run and were told to stop consuming."""
    kill_at(live, "smoke_test", monkeypatch)
    assert deploy(live, OLD, "rollback") == 0
    assert answers.resumed(OLD)
    assert manager.running == set(live.units(OLD))


def test_the_current_release_stays_when_reverting_a_killed_one_fails_later(
    live: Host, manager: Manager, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_at(live, "health_check", monkeypatch)
    answers.override["smoke_test"] = {"silent": ["default"]}
    assert deploy(live, OLD) == 1
    assert live.current_release() == OLD
    assert manager.running == set(live.units(OLD))


def test_what_workers_were_told_is_known_after_a_second_kill(
    live: Host, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(_: object) -> None:
        raise Killed

    kill_at(live, "switch", monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(recovery, "recover", die)
        with pytest.raises(Killed):
            deploy(live)
    assert not answers.resumed(OLD)
    assert deploy(live, "other-3") == 0
    assert answers.resumed(OLD)


def test_a_release_that_was_built_before_a_killed_rollback_stays(
    live: Host, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(live)
    kill_at(live, "switch", monkeypatch, OLD, "rollback")
    live.settings.__dict__["keep_releases"] = 5
    assert deploy(live, "other-3") == 0
    assert live.path(OLD).exists()
    assert last_outcome(live) == "succeeded"


def test_an_unfinished_build_is_removed(live: Host, answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_at(live, "check", monkeypatch)
    assert live.path(NEW).exists()
    make_release(live, "other-3")
    assert deploy(live, "other-3") == 0
    assert not live.path(NEW).exists()


@pytest.mark.parametrize("action", ["deploy", "rollback"])
def test_the_next_run_removes_the_key_of_a_killed_build(
    live: Host, answers: Answers, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    deploy(live)
    left = builder.key_folder(live), live.settings.home / "build-key"
    for folder in left:
        folder.mkdir()
        (folder / "key").touch()
    assert deploy(live, OLD, action) == 0
    assert [folder for folder in left if folder.exists()] == []


def test_the_key_of_a_build_is_kept_in_memory_and_removed(live: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "install_git", lambda: None)
    monkeypatch.setattr(builder.shutil, "chown", lambda *words: None)
    (live.settings.next_configuration / builder.SSH_KEY).write_text("key")
    with builder.credentials(live) as variables:
        copy = builder.key_folder(live) / "key"
        assert copy.read_text() == "key\n"
        assert str(copy) in variables["GIT_SSH_COMMAND"]
        assert copy.is_relative_to(builder.RUN)
    assert not copy.parent.exists()
