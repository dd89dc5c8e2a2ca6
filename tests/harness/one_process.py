"""ansible-playbook in one process, for runs of many hosts or tasks that mostly render templates.

Ansible forks a process for each task on each host, which compiles every template again. Here the tasks run one after
another in the process of the play, templates are compiled once, and texts are not copied with the variables that have
them.
"""

from __future__ import annotations

import copy
from typing import Any

from ansible._internal import _task
from ansible._internal._templating._jinja_bits import AnsibleEnvironment, _TemplateCompileContext
from ansible.cli.playbook import main
from ansible.executor.process.worker import WorkerProcess
from ansible.executor.task_executor import TaskExecutor
from ansible.executor.task_result import _RawTaskResult
from ansible.module_utils._internal._datatag import AnsibleTaggedObject

__all__ = ["main", "prepare"]

# What the compiled form of a template depends on, beside its text.
SYNTAX = ("block_start_string", "block_end_string", "variable_start_string", "variable_end_string")
SYNTAX += ("comment_start_string", "comment_end_string", "line_statement_prefix", "line_comment_prefix")
SYNTAX += ("trim_blocks", "lstrip_blocks", "newline_sequence", "keep_trailing_newline")


def run_task(worker: WorkerProcess) -> None:
    """Do what a worker does: run its task, and send the result to the play."""
    # Running a task changes it, and the next host needs it as it was.
    task = worker._task.copy(exclude_tasks=True)
    with _task.TaskContext(task):
        result = TaskExecutor(
            worker._host,
            task,
            worker._task_vars,
            worker._play_context,
            worker._loader,
            worker._shared_loader_obj,
            worker._final_q,
            worker._variable_manager,
        ).run()
    fields = task.dump_attrs()
    worker._final_q.send_task_result(
        _RawTaskResult(host=worker._host, task=task, return_data=result, task_fields=fields)
    )


def run_tasks_here() -> None:
    """Replace the start of a worker's process by its work."""
    WorkerProcess.start = run_task
    WorkerProcess.is_alive = lambda _: False
    WorkerProcess.close = lambda _: None
    WorkerProcess.exitcode = 0


def compile_templates_once() -> None:
    compiled: dict[tuple[Any, ...], Any] = {}
    compile_template = AnsibleEnvironment.compile

    def compile_once(environment: AnsibleEnvironment, source: Any, *args: Any, **options: Any) -> Any:
        if not isinstance(source, str):
            return compile_template(environment, source, *args, **options)
        context = _TemplateCompileContext.current(optional=True)
        syntax = tuple(getattr(environment, name) for name in SYNTAX)
        key = (str(source), args, tuple(options.items()), syntax, context and context.escape_backslashes)
        if key not in compiled:
            compiled[key] = compile_template(environment, source, *args, **options)
        return compiled[key]

    AnsibleEnvironment.compile = compile_once


def share_texts() -> None:
    """Have copies of variables share texts and numbers, which never change. (They are of types of Ansible's.)"""
    for kind in AnsibleTaggedObject._tagged_type_map.values():
        if issubclass(kind, (str, bytes, int, float)):
            copy._deepcopy_dispatch[kind] = copy._deepcopy_atomic


def prepare() -> None:
    """Change Ansible as the docstring of this module says."""
    run_tasks_here()
    compile_templates_once()
    share_texts()
