"""What begins a rollout is sent again when the connection is lost, and the host can tell that it is the same."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure

PATH = Path(__file__).parents[2] / "plugins/action/deployment.py"
SPEC = importlib.util.spec_from_file_location("rollout_action", PATH)
rollout = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(rollout)


@pytest.mark.parametrize("action", ["deploy", "rollback"])
def test_a_lost_call_is_sent_again_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, action: str) -> None:
    (tmp_path / "archive").write_bytes(b"archive")
    args = {"program": "/sbin/shop-release", "action": action, "release": "", "archive": ""}
    args |= {"release": "abcd-1", "archive": tmp_path / "archive"} if action == "deploy" else {}
    sent: list[tuple[str, bytes | None]] = []

    def execute(command: str, sudoable: bool, in_data: bytes | None) -> dict[str, Any]:
        sent.append((command, in_data))
        if len(sent) == 1:
            raise AnsibleConnectionFailure("Broken pipe")
        return {"stdout": '{"running": false, "status": 0, "log": "a.log", "offset": 3}', "stderr": "", "rc": 0}

    module = rollout.ActionModule.__new__(rollout.ActionModule)
    module._task, module.host, module.lines = SimpleNamespace(args=args), "shop", []
    module._low_level_execute_command = execute
    monkeypatch.setattr(rollout.time, "sleep", lambda seconds: None)
    assert module.begin(args)["status"] == 0
    assert sent[0] == sent[1]
    assert "--call " in sent[0][0]
    assert ("--bytes 7" in sent[0][0]) == (action == "deploy")
    module.begin(args)
    assert sent[2] != sent[1]
