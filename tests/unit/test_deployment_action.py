"""The call that starts a deployment is repeated when the connection is lost, with the same idempotency key."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure

PATH = Path(__file__).parents[2] / "plugins/action/deployment.py"
SPEC = importlib.util.spec_from_file_location("deployment_action", PATH)
deployment = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(deployment)

DEFAULTS = {"program": "/sbin/shopctl", "release": "", "archive": "", "force": False, "barrier": ""}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(deployment.time, "sleep", lambda seconds: None)
    module = deployment.ActionModule.__new__(deployment.ActionModule)
    module.host, module.lines = "shop", []
    return module


@pytest.mark.parametrize("action", ["deploy", "rollback"])
def test_a_lost_call_is_repeated_unchanged(module: Any, tmp_path: Path, action: str) -> None:
    (tmp_path / "archive").write_bytes(b"archive")
    module.arguments = DEFAULTS | {"action": action}
    if action == "deploy":
        module.arguments |= {"release": "abcd-1", "archive": str(tmp_path / "archive")}
    sent: list[tuple[str, bytes | None]] = []

    def execute(command: str, sudoable: bool, in_data: bytes | None) -> dict[str, Any]:
        sent.append((command, in_data))
        if len(sent) == 1:
            raise AnsibleConnectionFailure("Broken pipe")
        return {"stdout": '{"running": false, "status": 0, "log": "a.log", "offset": 3}', "stderr": "", "rc": 0}

    module._low_level_execute_command = execute
    assert module.start()["status"] == 0
    assert sent[0] == sent[1]
    assert "--key " in sent[0][0]
    assert ("--bytes 7" in sent[0][0]) == (action == "deploy")
    module.start()
    assert sent[2] != sent[1]


def test_a_large_archive_travels_in_parts(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "PART", 4)
    content = b"0123456789" + (77).to_bytes(4, "little")
    (tmp_path / "archive").write_bytes(content)
    module.arguments = DEFAULTS | {"action": "deploy", "release": "abcd-1", "archive": str(tmp_path / "archive")}
    sent: list[tuple[list[str], bytes | None]] = []
    answers = {"status": 0}

    def execute(command: str, sudoable: bool, in_data: bytes | None) -> dict[str, Any]:
        sent.append((command.split(), in_data))
        status = answers["status"]
        return {"stdout": f'{{"running": false, "status": {status}, "text": "an answer"}}', "stderr": "", "rc": status}

    module._low_level_execute_command = execute
    assert module.start()["status"] == 0
    offsets = [words[words.index("--offset") + 1] if "--offset" in words else "" for words, _ in sent]
    assert [words[1] for words, _ in sent] == ["receive"] * 4 + ["deploy"]
    assert offsets == ["", "0", "4", "8", "12"]
    assert [data for _, data in sent] == [None, b"0123", b"4567", content[8:12], content[12:]]
    for words, _ in sent:
        assert words[words.index("--bytes") + 1 :][:3] == ["14", "--unpacked", "77"]
    assert len({words[words.index("--key") + 1] for words, _ in sent}) == 1
    # A host without room, or with a running deployment, gets nothing.
    sent.clear()
    answers["status"] = 1
    assert module.start()["status"] == 1
    assert len(sent) == 1


@pytest.mark.parametrize(
    ("stdout", "stderr", "text", "status"),
    [
        ('sudo: message\n{"error": "Another deployment runs", "status": 3}', "", "Another deployment runs", 3),
        ("", "sudo: a password is required", "sudo: a password is required", 1),
        ("", "sh: not found", "/sbin/shopctl is not installed. Run playbooks/provision.yml first.", 127),
    ],
    ids=["json", "no-json", "not-installed"],
)  # fmt: skip
def test_an_error_of_the_program_is_reported(module: Any, stdout: str, stderr: str, text: str, status: int) -> None:
    module.arguments = DEFAULTS
    module._low_level_execute_command = lambda *_, **__: {"stdout": stdout, "stderr": stderr, "rc": status}
    state = module.call(["deploy"])
    assert (state["running"], state["status"]) == (False, status)
    assert module.reason(state) == text


def test_the_reason_names_the_failed_step_and_the_live_release(module: Any) -> None:
    module.lines = [
        "Traffic switched to new-2.",
        "Deployment of new-2 failed at step bake: health check after the switch: status 500.",
        "Traffic switched back to old-1.",
        "Release old-1 is live, as before.",
    ]
    assert module.reason({"status": 1}).splitlines() == [module.lines[1], module.lines[3]]
    assert "killed at step drain. Run the same command again" in module.reason({"step": "drain"})
