"""tools/ansible_lint.py, which replaces internals of ansible-lint, still reports violations."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from project import ROOT

# Two violations of a rule for tasks, and one of a rule for YAML: the space after `all`.
PLAYBOOK = """\
---
- name: Run commands
  hosts: all{space}
  tasks:
    - name: Run a command
      ansible.builtin.command: uptime

    - name: Run a command that changes nothing
      ansible.builtin.command: uptime
      changed_when: false

    - name: Run another command
      ansible.builtin.command: uname
"""


def test_violations_are_found(tmp_path: Path) -> None:
    """With the configuration of this repository."""
    shutil.copy(ROOT / ".ansible-lint", tmp_path)
    (tmp_path / "playbooks").mkdir()
    (tmp_path / "playbooks/commands.yml").write_text(PLAYBOOK.format(space=" "))
    words = ["--nocolor", "--format=pep8", "playbooks/commands.yml"]
    command = [sys.executable, str(ROOT / "tools/ansible_lint.py"), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    found = re.findall(r"playbooks/commands\.yml:[\d:]+ ([^ :]+)", done.stdout)
    assert found.count("no-changed-when") == 2, done.stdout + done.stderr
    assert found.count("yaml[trailing-spaces]") == 1, done.stdout + done.stderr
    assert done.returncode == 2, done.stderr
