"""The commands `doctor`, `watch` and `alert`; each imports its own modules only."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from ..host import Host
from .configuration import Configuration

if TYPE_CHECKING:
    from .finding import Context


def add_commands(commands: Any) -> None:
    doctor = commands.add_parser("doctor", help="is this host well? Exit status: 0 yes, 1 a warning, 2 no")
    doctor.add_argument("--json", action="store_true")
    # playbooks/doctor.yml compares the settings of its clone, whose digests are on stdin, as JSON.
    doctor.add_argument("--clone-settings", action="store_true", help=argparse.SUPPRESS)
    commands.add_parser("watch", help="the same, once a minute by a timer: history, status page, alerts")
    alert = commands.add_parser("alert").add_subparsers(dest="action", required=True, metavar="test")
    test = alert.add_parser("test", help="send a test message by every channel of the alerts")
    # Provisioning sends one to channels that are new or have failed before.
    test.add_argument("--if-changed", action="store_true", help=argparse.SUPPRESS)
    test.add_argument("--json", action="store_true")


def context_of(host: Host, *, watches: bool = False) -> Context:
    """Return what checks read. Raises ReleaseError without a configuration."""
    from .finding import Context

    configuration = Configuration.load(host.settings)
    return Context(host, configuration, memory=read_memory(configuration), watches=watches)


def read_memory(configuration: Configuration) -> dict[str, Any]:
    """Return what the watch has kept from its last run; {} before the first one."""
    files = [path for path in configuration.memory_files if path.exists()]
    for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            return json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            continue
    return {}


def run_alert_test(host: Host, options: argparse.Namespace) -> int:
    from ..watch import trial

    return trial.run(context_of(host), only_changed=options.if_changed, json_output=options.json)


def run_doctor(host: Host, options: argparse.Namespace) -> int:
    from .checks import CHECKS
    from .run import doctor

    context = context_of(host)
    context.clone_settings = json.load(sys.stdin) if options.clone_settings else None
    return doctor(context, CHECKS, json_output=options.json, colors=sys.stdout.isatty())


def run_watch(host: Host, options: argparse.Namespace) -> int:
    """Run the watch once. Raises BusyError while another run has not ended."""
    from ..watch.run import lock, watch
    from .checks import CHECKS

    with lock(Configuration.load(host.settings)):
        return watch(context_of(host, watches=True), CHECKS)
