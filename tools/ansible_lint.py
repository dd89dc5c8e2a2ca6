"""Run ansible-lint without its syntax checks: tests/unit/test_specs.py makes them, in one process instead of fifty.

What ansible-lint computes again for each of its rules is computed once here, which takes half of the time.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import MutableMapping
from typing import Any

from ansiblelint import file_utils, utils
from ansiblelint.__main__ import main
from ansiblelint._internal.rules import BaseRule
from ansiblelint.rules import AnsibleLintRule
from ansiblelint.runner import Runner
from wcmatch import _wcparse

Runner._get_ansible_syntax_check_matches = lambda *_, **__: []

# The kind of a file, by its path: patterns with braces, which wcmatch expands for each file.
_wcparse.compile = functools.cache(_wcparse.compile)
file_utils.kind_from_path = functools.cache(file_utils.kind_from_path)

# Tasks in the form that rules read, each with the task of the file that it was made from, which keeps its id() in use.
normalize = utils.normalize_task_v2
normalized: dict[int, tuple[Any, MutableMapping[str, Any]]] = {}


def normalize_once(task: utils.Task) -> MutableMapping[str, Any]:
    """Return a copy of the normalized task: rules add keys."""
    key = id(task.raw_task)
    if key not in normalized:
        normalized[key] = (task.raw_task, normalize(task))
    made = dict(normalized[key][1])
    made["action"] = dict(made["action"])
    return made


utils.normalize_task_v2 = normalize_once

# Skip reading every line for rules that check no lines, at present all of them.
match_lines = AnsibleLintRule.matchlines
AnsibleLintRule.matchlines = lambda rule, file: [] if type(rule).match is BaseRule.match else match_lines(rule, file)

if __name__ == "__main__":
    sys.exit(main(sys.argv))
