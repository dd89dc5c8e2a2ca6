"""The machine: disk, memory, updates and reboots."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..backup.notes import seconds_up
from ..backup.tools import ToolError, call
from ..settings import ReleaseError
from .finding import BAD, OK, STATES, WARN, Context, Finding, duration, plural

# --- Disk ----------------------------------------------------------------------------------------------------------

FOLDERS = ("/", "/srv", "/var", "/var/lib/postgresql", "/var/lib/redis", "/var/lib/pgbackrest", "/var/log", "/boot")
# Shares of the space, and of the inodes.
DISK_WARN, DISK_BAD = 0.8, 0.9
# Seconds within which a disk will be full at its present pace, and from how much on that is looked at; how often its
# use is noted, for how long, and how much of that a prediction takes.
SOON, SOON_FROM, NOTE_EVERY, NOTE_FOR, PREDICT_FROM = 48 * 3600, 0.6, 900, 86400, 6 * 3600


def disk(context: Context) -> Finding:
    """Return how full each file system is that the application and its data are on; the values are of the fullest."""
    systems = file_systems(FOLDERS)
    values, fullest = {}, -1.0
    shown, problems, states = [], [], []
    for folder, status in systems.items():
        free = status.f_bavail * status.f_frsize
        used = (status.f_blocks - status.f_bfree) * status.f_frsize
        inodes = 1 - status.f_favail / status.f_files if status.f_files else 0.0
        share = used / (used + free)
        if share > fullest:
            fullest = share
            values |= {"disk_used": float(used), "disk_total": float(used + free)}
        values["inodes_used"] = max(round(inodes, 4), values.get("inodes_used", 0.0))
        text = f"{folder} {used / 1e9:.1f} of {(used + free) / 1e9:.1f} GB, inodes {inodes * 100:.0f} %"
        shown.append(text)
        left = seconds_left(context, folder, used, free)
        worse = max(share, inodes)
        if worse >= DISK_WARN:
            states.append(BAD if worse >= DISK_BAD else WARN)
            problems.append(
                f"{text}: {worse * 100:.0f} % used (limit {(DISK_BAD if worse >= DISK_BAD else DISK_WARN) * 100:.0f} %)"
            )
        elif left is not None and share >= SOON_FROM and left < SOON:
            states.append(WARN)
            problems.append(f"{text}: full in {duration(left)} at the pace of the last hours")
    if not problems:
        return Finding(OK, "; ".join(shown), values=values)
    remedy = "du -xh --max-depth=3 / | sort -h | tail -20; journalctl --vacuum-size=200M; apt-get clean"
    return Finding(max(states, key=STATES.index), "; ".join(problems), remedy, values, alert=True)


def file_systems(folders: tuple[str, ...]) -> dict[str, os.statvfs_result]:
    """Return the file systems of these folders, each once, by its first folder."""
    found: dict[int, tuple[str, os.statvfs_result]] = {}
    for folder in folders:
        try:
            device, status = Path(folder).stat().st_dev, os.statvfs(folder)
        except OSError:
            continue
        if status.f_blocks:
            found.setdefault(device, (folder, status))
    return dict(found.values())


def seconds_left(context: Context, folder: str, used: int, free: int) -> float | None:
    """Return when a disk is full if it fills as it did for the last hours; None when it does not, or is not known."""
    notes = [one for one in context.memory.get("disk", {}).get(folder, []) if one[0] > context.now - NOTE_FOR]
    if context.watches and (not notes or notes[-1][0] <= context.now - NOTE_EVERY):
        context.memory.setdefault("disk", {})[folder] = [*notes, [context.now, used]]
    if not notes or context.now - notes[0][0] < PREDICT_FROM or used <= notes[0][1]:
        return None
    return free * (context.now - notes[0][0]) / (used - notes[0][1])


# --- Memory --------------------------------------------------------------------------------------------------------

PROC = Path("/proc")
# Percent of the last five minutes in which every process has waited for memory.
PRESSURE = 10.0
# Seconds for which a killed process is reported.
KILL_SECONDS = 600


def memory(context: Context) -> Finding:
    """Return how much memory is used, how long processes have waited for it, and whether the kernel has killed any."""
    known = {name: int(words.split()[0]) * 1024 for name, words in fields(PROC / "meminfo", ":")}
    total, used = known["MemTotal"], known["MemTotal"] - known["MemAvailable"]
    swap, swap_used = known["SwapTotal"], known["SwapTotal"] - known["SwapFree"]
    values = {"memory_used": float(used), "memory_total": float(total), "swap_used": float(swap_used)}
    text = f"{used / 2**20:,.0f} of {total / 2**20:,.0f} MiB, swap {swap_used / 2**20:,.0f} of {swap / 2**20:,.0f}"
    remedy = f"journalctl -k -g 'Killed process' -n 10; {context.program} status"
    remedy += "\n# lower app_web.processes or the concurrency in app_workers, or give the host more memory"
    killed = new_kills(context)
    if killed:
        return Finding(BAD, f"out of memory: the kernel has killed {', '.join(killed)}; {text}", remedy, values)
    pressure = full_pressure()
    if pressure > PRESSURE:
        stalled = f"all processes wait for memory {pressure:.0f} % of the time (limit {PRESSURE:.0f} %); {text}"
        return Finding(WARN, stalled, f"ps -eo rss,cmd --sort=-rss | head; {remedy}", values, alert=True)
    last = context.memory.get("oom", {}).get("at")
    text += f"; last OOM kill {duration(context.now - last)} ago" if last else ", no OOM kill"
    return Finding(OK, text, values=values)


def new_kills(context: Context) -> list[str]:
    """Return what the kernel has killed for memory in the last minutes, as the watch has seen it."""
    memory = context.memory.get("oom", {})
    known = memory.get("counts", {})
    total = {"a process": int(dict(fields(PROC / "vmstat", " ")).get("oom_kill", 0))}
    try:
        units = {context.host.process_name(unit): state.memory_kills for unit, state in context.processes.items()}
        counts = units | total
    except ReleaseError:
        # What keeps the process manager from answering is told by the lines of the processes.
        counts = known | total
    # A new counter, as after a boot or of a new release, counts from 0, and the very first look only notes them.
    new = [name for name, count in counts.items() if known and count > known.get(name, 0)]
    # The kernel's counter has the others, too.
    new = [name for name in new if name != "a process"] or new
    at = context.now if new else memory.get("at")
    names = new or memory.get("names", [])
    if context.watches:
        context.memory["oom"] = {"counts": counts, "at": at, "names": names}
    return names if at and context.now - at < KILL_SECONDS else []


def full_pressure() -> float:
    """Return the percentage of the last five minutes in which all processes have waited for memory; 0 if unknown."""
    try:
        found = re.search(r"^full .*avg300=([\d.]+)", (PROC / "pressure/memory").read_text(), re.MULTILINE)
    except OSError:
        return 0.0
    return float(found[1]) if found else 0.0


def fields(path: Path, separator: str) -> list[tuple[str, str]]:
    """Return the names and values of a file of the kernel."""
    lines = [line.partition(separator) for line in path.read_text().splitlines()]
    return [(name, value.strip()) for name, found, value in lines if found]


# --- Updates -------------------------------------------------------------------------------------------------------

APT = Path("/var/lib/apt/periodic")
# Written by roles/base: before it, the host may have had no updates.
APT_SETTINGS = Path("/etc/apt/apt.conf.d/52seedbed")
UPGRADE_LOG = Path("/var/log/unattended-upgrades/unattended-upgrades.log")
# How many services a line names, and a remedy restarts one by one.
NAMED = 6
# The packages that it could not install, separated by blanks.
KEPT_BACK = Path("/var/lib/unattended-upgrades/kept-back")
REBOOT = Path("/run/reboot-required")
# Seconds without an upgrade that succeeded, and for which a reboot may wait.
UPDATES_WARN, UPDATES_BAD, REBOOT_SECONDS = 3 * 86400, 7 * 86400, 7 * 86400
# Seconds after a boot within which a nightly run has ended (roles/base: 03:30 at the earliest, not made up for).
NIGHT = 25 * 3600


def updates(context: Context) -> Finding | None:
    """Return how the nightly run of unattended-upgrades ended, by what it has left."""
    if not APT_SETTINGS.exists():
        return None
    remedy = "journalctl -u apt-daily-upgrade -n 30; unattended-upgrade --dry-run -v"
    stamps = [
        path.stat().st_mtime for name in ("unattended-upgrades-stamp", "upgrade-stamp") if (path := APT / name).exists()
    ]
    last = max(stamps, default=0.0)
    age = context.now - (last or APT_SETTINGS.stat().st_mtime)
    if age >= UPDATES_WARN:
        text = f"security updates were last installed {duration(age)} ago" if last else "none were installed yet"
        text += f" (limit {duration(UPDATES_BAD if age >= UPDATES_BAD else UPDATES_WARN)})"
        # A server that was off for days is up to date after its first night.
        had_night = seconds_up() >= NIGHT
        state = BAD if age >= UPDATES_BAD and had_night else WARN
        return Finding(state, text, f"systemctl status apt-daily-upgrade.timer; {remedy}", alert=had_night)
    if not last:
        return Finding(OK, "the first nightly run is due")
    kept = kept_back(context)
    if errors := errors_of_upgrade():
        return Finding(WARN, f"the run {duration(age)} ago failed: {errors[-1]}", remedy)
    if kept:
        names = list(kept)[:5]
        text = f"{plural(len(kept), 'update')} not installed automatically: {', '.join(names)}"
        waits = context.now - min(kept.values()) >= UPDATES_WARN
        return Finding(WARN, text, f"apt-get install --only-upgrade {' '.join(names)}; {remedy}", alert=waits)
    return Finding(OK, f"the last nightly run was {duration(age)} ago")


def kept_back(context: Context) -> dict[str, float]:
    """Return the packages that the last run could not upgrade, and since when, as the watch remembers."""
    known = context.memory.get("kept_back", {})
    names = sorted(KEPT_BACK.read_text().split()) if KEPT_BACK.exists() else []
    found = {name: known.get(name, context.now) for name in names}
    if context.watches:
        context.memory.pop("kept_back", None)
        context.memory |= {"kept_back": found} if found else {}
    return found


def errors_of_upgrade() -> list[str]:
    """Return the errors that the last run has logged."""
    try:
        lines = UPGRADE_LOG.read_text(errors="replace").splitlines()
    except OSError:
        return []
    starts = [number for number, line in enumerate(lines) if "Starting unattended upgrades script" in line]
    run = lines[starts[-1] :] if starts else lines
    return [line.partition(" ERROR ")[2] for line in run if " ERROR " in line]


def reboot(context: Context) -> Finding:
    """Return whether an upgrade, as of the kernel, waits for a reboot."""
    try:
        age = context.now - REBOOT.stat().st_mtime
    except FileNotFoundError:
        return Finding(OK, "not needed")
    packages = REBOOT.with_name("reboot-required.pkgs")
    names = ", ".join(sorted(set(packages.read_text().split()))[:5]) if packages.exists() else ""
    text = f"needed for {duration(max(0.0, age))}" + (f": {names}" if names else "")
    return Finding(WARN, text, "systemctl reboot", alert=age >= REBOOT_SECONDS)


def libraries(context: Context) -> Finding | None:
    """Return the services that still use a library from before its upgrade."""
    command = "needrestart -b -r l"
    try:
        output = call(command.split(), seconds=8)
    except ToolError as error:
        return (
            None if error.status is None and "is not on this host" in str(error) else Finding(WARN, str(error), command)
        )
    services = [line.partition(":")[2].strip() for line in output.splitlines() if line.startswith("NEEDRESTART-SVC:")]
    if not services:
        return Finding(OK, "no service runs on old ones")
    names = list(dict.fromkeys(service.removesuffix(".service").partition("@")[0] for service in services))
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    text = f"{plural(len(services), 'service')} with libraries from before an upgrade: {', '.join(names[:NAMED])}{more}"
    command = f"systemctl restart {' '.join(services)}" if len(services) <= NAMED else "systemctl reboot"
    return Finding(WARN, text, f"{command}\n# At a quiet moment; the nightly upgrade restarts them, too.")
