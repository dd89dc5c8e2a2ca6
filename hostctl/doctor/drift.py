"""What differs from what Ansible has written: files that were edited since, drop-ins of systemd, another's settings."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from pathlib import Path

from ..deploy.record import Record, began_at, history
from ..processes.state import PLACEHOLDER
from ..processes.supervisor import PROGRAMS, Supervisor
from ..processes.systemd import UNITS, Systemd, services
from ..settings import utc
from . import applied
from .applied import Problem, some
from .finding import OK, WARN, Context, Finding

# The SHA-256 of each file as Ansible wrote it (plugins/host/write_files.py).
RECORD = Path("/var/lib/seedbed/files.json")
# What another application that shares PostgreSQL has added to a file (roles/postgresql).
ADDED = re.compile(rb"^# BEGIN Seedbed, (\S+)\n.*?^# END Seedbed, \1\n", re.MULTILINE | re.DOTALL)
# Where else systemd reads drop-ins: those of `systemctl set-property`, and those that a reboot removes.
DROP_INS = tuple(map(Path, ("/etc/systemd/system.control", "/run/systemd/system", "/run/systemd/system.control")))


def settings(context: Context) -> Finding | None:
    """Return which files are not as site.yml wrote them, and whose settings they are.

    What is edited by hand is lost with the next site.yml, or with the next release.
    """
    try:
        record = json.loads(RECORD.read_text())
        written = RECORD.stat().st_mtime
    except (OSError, ValueError):
        return Finding(OK, "not known yet: the next site.yml notes what it writes")
    problems = [*of_files(context, record), *of_drop_ins(context, record), *applied.problems(context)]
    if problems:
        remedies = dict.fromkeys(problem.remedy for problem in problems)
        return Finding(WARN, "; ".join(problem.text for problem in problems), "\n".join(remedies))
    when = applied.last_run(context) or f"last changed {utc(written)}"
    return Finding(OK, f"as Ansible wrote them, {when}{last_deployment(context)}")


def of_files(context: Context, record: dict[str, str]) -> list[Problem]:
    """Return what was edited or deleted, of the files of site.yml and of the unit files of the live release."""
    states = {name: state_of(Path(name), digest) for name, digest in sorted(record.items())}
    edited = [name for name, state in states.items() if state == "edited"]
    units = edited_units(context)
    # The program removes its modules of earlier versions.
    library = f"{context.settings.library}/"
    deleted = [name for name, state in states.items() if state == "deleted" and not name.startswith(library)]
    found = []
    if edited or deleted:
        parts = [f"edited by hand: {some(edited)}"] if edited else []
        parts += [f"deleted: {some(deleted)}"] if deleted else []
        remedy = f"# put what you need into group_vars/ENV/app.yml; this writes them again:\n{applied.APPLY}"
        if deleted:
            remedy += (
                f"\n# if one is still deleted then, Ansible does not write it any more: rm {RECORD}, and again site.yml"
            )
        found.append(Problem("; ".join(parts), remedy))
    if units:
        remedy = "# put what you need into group_vars/ENV/app.yml; these restart the processes as in the release:\n"
        found.append(Problem(f"edited by hand: {some(list(units))}", remedy + "\n".join(units.values())))
    return found


def edited_units(context: Context) -> dict[str, str]:
    """Return files of the live release's processes that are not as the deployment installed them, each with a remedy.

    A new release has files of its own. During a deployment nothing is compared: beat's are replaced some steps after
    the release is live.
    """
    release, found = context.release, {}
    record = Record(context.settings)
    if not release or record.held() or record.unfinished():
        return {}
    for target, source, restart in process_files(context):
        with suppress(OSError):
            if target.read_text(errors="replace") != source.read_text().replace(PLACEHOLDER, release):
                found[str(target)] = f"sed s/{PLACEHOLDER}/{release}/g {source} > {target}; {restart}"
    return found


def process_files(context: Context) -> list[tuple[Path, Path, str]]:
    """Return each file of the process manager, the definition that it is installed from, and how to use it again."""
    manager, release, name = context.host.manager, context.release, context.configuration.name
    beat = [f"{name}-beat"] if context.settings.beat else []
    if isinstance(manager, Systemd):
        return [
            (UNITS / file, manager.definition(file, release), f"systemctl daemon-reload; systemctl restart {file}")
            for file in services([*context.host.units(release), *beat])
        ]
    if isinstance(manager, Supervisor):
        groups = {f"{name}@{release}": "release.conf"} | dict.fromkeys(beat, "beat.conf")
        restart = f"supervisorctl update; {context.program} verify"
        return [
            (PROGRAMS / f"{group}.conf", manager.definition(file, release), restart) for group, file in groups.items()
        ]
    return []


def of_drop_ins(context: Context, record: dict[str, str]) -> list[Problem]:
    """Return drop-ins that others have added to the application's units, as by `systemctl edit`."""
    name = context.configuration.name
    own = {*record, *(str(UNITS / f"{unit}.service.d" / f"{name}-supervisor.conf") for unit in (name, "supervisor"))}
    found = [
        str(path)
        for folder in (UNITS, *DROP_INS)
        for pattern in (f"{name}.service.d/*.conf", f"{name}-*.d/*.conf")
        for path in sorted(folder.glob(pattern))
        if str(path) not in own
    ]
    if not found:
        return []
    remedy = "# put what you need into group_vars/ENV/app.yml, then:\n"
    return [
        Problem(
            f"drop-ins that Ansible did not write: {some(found)}",
            f"{remedy}rm {' '.join(found)}; systemctl daemon-reload",
        )
    ]


def state_of(path: Path, digest: str) -> str:
    """Return edited, deleted, or "" for a file as it was written. One whose folder was removed with it is not told."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return "deleted" if path.parent.is_dir() else ""
    except OSError:
        return "edited"
    return "" if digest in (digest_of(text), digest_of(ADDED.sub(b"", text))) else "edited"


def digest_of(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def last_deployment(context: Context) -> str:
    """Return when and by which user was deployed last, as the end of a sentence."""
    entries = history(context.settings)
    if not entries:
        return ""
    began = began_at(entries[-1])
    return f"; last deployment {utc(began)} by {entries[-1]['by']}"
