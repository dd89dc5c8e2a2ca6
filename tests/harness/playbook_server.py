"""Run ansible-playbook as often as asked, having imported Ansible once.

Each line of the input is a run, in JSON: the arguments, the folder, the files for its output, and whether its tasks run
in one process (see one_process.py). Each line of the output is the status of a run. A run is a fork of this process, so
it has the environment and the configuration of Ansible that this process was started with.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import one_process
from ansible import cli, constants
from ansible.plugins.loader import init_plugin_loader


def run(request: dict[str, Any]) -> None:
    """Become ansible-playbook."""
    for descriptor, path in ((0, os.devnull), (1, request["output"]), (2, request["errors"])):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    os.chdir(request["cwd"])
    if request["one_process"]:
        one_process.prepare()
    # A folder of each run, which has in it what the run has generated.
    shared, constants.DEFAULT_LOCAL_TMP = constants.DEFAULT_LOCAL_TMP, tempfile.mkdtemp(dir=constants.DEFAULT_LOCAL_TMP)
    # Share the cache of packed modules: they are the same in every run, and packing one takes half a second.
    Path(constants.DEFAULT_LOCAL_TMP, "ansiballz_cache").symlink_to(Path(shared, "ansiballz_cache"))
    sys.argv = ["ansible-playbook", *request["arguments"]]
    status: Any = 1
    try:
        one_process.main()
    except SystemExit as end:
        status = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    # Without what is registered for the end of a process: it would remove the folder that all runs share.
    os._exit(status or 0)


# Their lists of renamed modules are large.
init_plugin_loader()
for collection in ("builtin", "posix"):
    importlib.import_module(f"ansible_collections.ansible.{collection}")
cli.init_plugin_loader = lambda _: None  # done
# Every run imports all of these kinds.
for kind in ("become", "callback", "connection", "inventory", "shell", "strategy", "vars"):
    package = importlib.import_module(f"ansible.plugins.{kind}")
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
Path(constants.DEFAULT_LOCAL_TMP, "ansiballz_cache").mkdir()
# The collector of garbage does not look at what was imported, so that the forks keep sharing it.
gc.freeze()
for line in sys.stdin:
    if (pid := os.fork()) == 0:
        run(json.loads(line))
    _, ended = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(ended), flush=True)
