"""Files that site.yml wrote to this host, and that were edited or deleted since."""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path

from ..deploy.record import history
from .finding import OK, WARN, Context, Finding

# The SHA-256 of each file as Ansible wrote it (plugins/host/write_files.py).
RECORD = Path("/var/lib/seedbed/files.json")
# What another application that shares PostgreSQL has added to a file (roles/postgresql).
ADDED = re.compile(rb"^# BEGIN Seedbed, (\S+)\n.*?^# END Seedbed, \1\n", re.MULTILINE | re.DOTALL)
# How many files a line names.
NAMED = 4


def settings(context: Context) -> Finding | None:
    """Return which files are not as site.yml wrote them; what is edited by hand is lost with its next run."""
    try:
        record = json.loads(RECORD.read_text())
        written = RECORD.stat().st_mtime
    except (OSError, ValueError):
        return Finding(OK, "not known yet: the next site.yml notes what it writes")
    states = {name: state_of(Path(name), digest) for name, digest in sorted(record.items())}
    edited = [name for name, state in states.items() if state == "edited"]
    # The program removes its modules of earlier versions.
    library = f"{context.settings.library}/"
    deleted = [name for name, state in states.items() if state == "deleted" and not name.startswith(library)]
    if not edited and not deleted:
        return Finding(OK, f"as Ansible wrote them, last changed on {day(written)}{last_deployment(context)}")
    parts = [f"edited by hand: {some(edited)}"] if edited else []
    parts += [f"deleted: {some(deleted)}"] if deleted else []
    remedy = "# put what you need into group_vars/ENV/app.yml; this writes them again:\n"
    remedy += "ansible-playbook -i INVENTORY site.yml"
    if deleted:
        remedy += "\n# what it does not write any more stays deleted; this begins a new list, with the next site.yml:"
        remedy += f"\nrm {RECORD}"
    return Finding(WARN, "; ".join(parts), remedy)


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


def some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def day(seconds: float) -> str:
    return time.strftime("%d %b %Y", time.gmtime(seconds))


def last_deployment(context: Context) -> str:
    """Return when and by which user was deployed last, as the end of a sentence."""
    entries = history(context.settings)
    return f"; last deployment {entries[-1]['since']} by {entries[-1]['by']}" if entries else ""
