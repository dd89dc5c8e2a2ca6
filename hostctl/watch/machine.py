"""Processor and memory of this host, from /proc."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from ..doctor.finding import Context

PROC = Path("/proc")
MEMORY = re.compile(r"^(MemTotal|MemAvailable|SwapTotal|SwapFree):\s+(\d+) kB", re.MULTILINE)
# The line of systemd: `0::` with cgroup v2, `name=systemd` with v1 and in between.
UNIT = re.compile(r"^(?:0:|\d+:name=systemd):[^\n]*?/([^/\n]+)\.service(?:/|$)", re.MULTILINE)
ANONYMOUS = re.compile(r"^RssAnon:\s+(\d+) kB", re.MULTILINE)
PROGRAM = re.compile(rb"(?:^|\0)SUPERVISOR_PROCESS_NAME=([^\0]+)")
OTHERS = "others"


def measure(context: Context) -> dict[str, float]:
    """Return cpu (0 to 1, since the last run), and memory in bytes: of the host, of swap, and by service."""
    found = {name: int(kilobytes) * 1024 for name, kilobytes in MEMORY.findall((PROC / "meminfo").read_text())}
    values = cpu(context) | {
        "memory_used": found["MemTotal"] - found["MemAvailable"],
        "memory_total": found["MemTotal"],
        "swap_used": found["SwapTotal"] - found["SwapFree"],
    }
    return values | {
        f"memory:{service}": size for service, size in memory_by_service(context.configuration.name).items()
    }


def cpu(context: Context) -> dict[str, float]:
    """Return the share of time in which the processors worked; {} on the first run, also of a boot."""
    # user, nice, system, idle, iowait, irq, softirq, steal. (Guests are part of user.)
    ticks = [int(word) for word in (PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]]
    now = {"total": sum(ticks), "idle": ticks[3] + ticks[4]}
    last = context.memory.get("cpu", {})
    context.memory["cpu"] = now
    total = now["total"] - last.get("total", now["total"])
    if total <= 0:
        return {}
    return {"cpu": min(1.0, max(0.0, 1 - (now["idle"] - last["idle"]) / total))}


def memory_by_service(name: str) -> dict[str, float]:
    """Return the anonymous memory of the processes of each service, in bytes.

    A page that processes share since a fork is counted in each of them; shared memory (PostgreSQL's) in none.
    """
    sizes: dict[str, float] = defaultdict(float)
    for folder in PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            size = ANONYMOUS.search((folder / "status").read_text())
            # A thread of the kernel has none.
            if size and size[1] != "0":
                sizes[service(folder, name)] += int(size[1]) * 1024
        except (FileNotFoundError, ProcessLookupError):
            # It has ended meanwhile.
            continue
    return sizes


def service(process: Path, name: str) -> str:
    """Return the service of a process: those of all releases are one, and a program of Supervisor is one, too."""
    unit = unit_of(process)
    return short_name(unit, name) if unit else OTHERS


def unit_of(process: Path) -> str:
    """Return the unit of systemd or the program of Supervisor that a process is in; "" for one of a login."""
    unit = UNIT.search((process / "cgroup").read_text())
    if not unit or unit[1] != "supervisor":
        return unit[1] if unit else ""
    program = PROGRAM.search((process / "environ").read_bytes())
    return program[1].decode(errors="replace") if program else "supervisor"


def short_name(unit: str, name: str) -> str:
    """Return the name of a service for graphs."""
    kind, _, instance = unit.partition("@")
    if kind == f"{name}-flower":
        return "flower"
    if kind == "redis-server":
        return f"redis-{instance}" if instance else "redis"
    if kind in ("postgresql", "nginx", "supervisor"):
        return kind
    # The watch itself is there for a moment only.
    return kind if kind.startswith(f"{name}-") and kind != f"{name}-watch" else OTHERS
