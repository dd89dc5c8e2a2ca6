"""Stand-ins for PostgreSQL, pgBackRest, rclone and restic, whose state is files: it outlives a process that is killed.

The database is one file of rows. Each segment of the write-ahead log has the rows of its end, and a recovery takes them
from there. All writes go through `Path`, so that a test that counts those finds every one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import signal
import stat
import time
from contextlib import suppress
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hostctl.backup.configuration import Configuration
from hostctl.backup.server import Canary
from hostctl.backup.tools import ToolError
from hostctl.settings import ReleaseError

SEGMENT_BYTES = 2**24
WHOLE = "stanza: shop\nstatus: ok\n"


class World:
    """A host with its backups, and their target. `seconds` is by how much its clock differs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.configuration = Configuration(
            "shop", version="17", data=str(root / "main"), database="shop", owner="shop_owner", roles=["shop"],
            folders=[str(root / "media")], target="keeper@storage:shop", folder="shop",
            repository=root / "repository", state=root, config=root / "etc",
        )  # fmt: skip
        self.data, self.repository, self.target = root / "main", root / "repository", root / "target"
        self.postgresql, self.application = root / "postgresql", root / "application"
        self.at_boot = root / "at_boot"

    def create(self) -> None:
        for folder in (self.data / "pg_wal", self.target, self.root / "media"):
            folder.mkdir(parents=True)
        for part in ("archive", "backup"):
            folder = self.repository / part / "shop"
            folder.mkdir(parents=True)
            for name in (f"{part}.info", f"{part}.info.copy"):
                (folder / name).write_text("[]")
        # The target has no copy of it.
        (self.repository / "own").touch()
        (self.root / "media/upload").write_text("upload")
        (self.data / "PG_VERSION").write_text("17")
        self.write_state(self.data, {"rows": [], "timeline": 1, "segment": 1, "canary": 0})
        for file, text in ((self.postgresql, "runs"), (self.application, "runs"), (self.at_boot, "enable")):
            file.write_text(text)

    def switch(self, service: Path, state: str) -> None:
        """Start, stop, enable or disable, as systemd does: as a whole."""
        new = service.with_suffix(".new")
        new.write_text(state)
        new.rename(service)

    # -- PostgreSQL

    def read_state(self, data: Path | None = None) -> dict[str, Any]:
        return json.loads(((data or self.data) / "state").read_text())

    def write_state(self, data: Path, values: dict[str, Any]) -> None:
        # As PostgreSQL, which recovers from a kill.
        (data / "state.new").write_text(json.dumps(values))
        (data / "state.new").rename(data / "state")

    @property
    def rows(self) -> list[str]:
        return self.read_state()["rows"]

    def insert(self, row: str) -> None:
        self.write_state(self.data, self.read_state() | {"rows": [*self.rows, row]})

    def require_running(self) -> None:
        if self.postgresql.read_text() != "runs":
            raise ReleaseError("PostgreSQL does not answer.")

    def write_canary(self) -> Canary:
        self.require_running()
        now = time.time()
        state = self.read_state() | {"canary": now}
        segment = segment_name(state)
        self.archive(segment, state)
        self.write_state(self.data, state | {"segment": state["segment"] + 1})
        return Canary(datetime.fromtimestamp(now).isoformat(), now, lsn(state), segment, "7")

    def archive(self, segment: str, state: dict[str, Any]) -> None:
        text = json.dumps(state)
        folder = self.repository / "archive/shop/17-1" / segment[:16]
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / f"{segment}.tmp"
        new.write_text(text)
        new.rename(folder / f"{segment}-{hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()}.zst")

    def recover(self, data: Path) -> None:
        """Take the rows of the target from the log."""
        wanted = json.loads((data / "restore").read_text())
        last = None
        for path in sorted(Path(wanted["repository"]).rglob("archive/shop/17-1/*/*.zst"), key=lambda path: path.name):
            state = json.loads(path.read_text())
            if wanted["timeline"] != state["timeline"]:
                continue
            if wanted["lsn"] == lsn(state) or (wanted["until"] and state["canary"] <= wanted["until"]):
                last = state
        if last is None:
            raise ReleaseError("PostgreSQL did not recover to the target.")
        self.write_state(data, last)

    def start(self) -> None:
        if not (self.data / "PG_VERSION").exists():
            raise ToolError("There is no database.", 1)
        self.read_state()
        if (self.data / "recovery.signal").exists():
            # At the end of a recovery it begins a timeline.
            state = self.read_state()
            former = self.data / f"pg_wal/{state['timeline']:08X}.history"
            text = former.read_text() if former.exists() else ""
            used = [int(path.name[:8], 16) for path in (self.repository / "archive/shop").glob("17-1/*")]
            new = max([*used, state["timeline"]]) + 1
            (self.data / "pg_wal").mkdir(exist_ok=True)
            (self.data / f"pg_wal/{new:08X}.history").write_text(f"{text}{state['timeline']}\t{lsn(state)}\tx\n")
            self.write_state(self.data, state | {"timeline": new})
            (self.data / "recovery.signal").unlink()
        self.switch(self.postgresql, "runs")

    def answer(self, script: str) -> str:
        self.require_running()
        answers = {"pg_is_in_recovery": "f", "archive_mode": "on", "server_version_num": "170000", "sum(": "1000"}
        return next((answer for word, answer in answers.items() if word in script), "")

    def system(self, command: list[str], **_: Any) -> str:
        """systemctl and pg_controldata."""
        words = [word for word in command if not word.startswith("-")]
        if words[:2] == ["systemctl", "stop"]:
            self.switch(self.postgresql, "stopped")
        elif words[:2] == ["systemctl", "start"]:
            self.start()
        elif words[:2] == ["systemctl", "show"]:
            return f"ActiveState={'active' if self.postgresql.read_text() == 'runs' else 'failed'}\nNRestarts=0\n"
        elif words[-1] == "shop.service":
            self.switch(self.at_boot, words[1])
        elif words[0].endswith("pg_controldata") and not (Path(words[1]) / "PG_VERSION").exists():
            raise ToolError("no database", 1)
        return ""

    # -- pgBackRest

    def pgbackrest(self, repository: Path, command: str, *words: str) -> str:
        options = dict(word.removeprefix("--").partition("=")[::2] for word in words)
        if command == "info":
            info = {
                "name": "shop", "status": {"code": 0}, "db": [{"id": 1, "system-id": 7, "version": "17"}],
                "backup": backups_of(repository),
            }  # fmt: skip
            return json.dumps([info])
        if command == "backup":
            self.make_backup(options["type"])
        elif command == "restore":
            data, source = Path(options["pg1-path"]), repository / "backup/shop" / options["set"]
            (data / "pg_wal").mkdir(parents=True, exist_ok=True)
            (data / "state").write_text((source / "state").read_text())
            (data / "recovery.signal").touch()
            (data / "postgresql.auto.conf").write_text("")
            until = datetime.fromisoformat(options["target"]).timestamp() if options["type"] == "time" else 0
            wanted = {
                "repository": str(repository), "timeline": int(options["target-timeline"]), "until": until,
                "lsn": options["target"],
            }  # fmt: skip
            (data / "restore").write_text(json.dumps(wanted))
            (data / "PG_VERSION").write_text("17")
        return self.verify() if command == "verify" else ""

    def verify(self) -> str:
        """Every base backup must have its file."""
        lost = [one["label"] for one in backups_of(self.repository) if not self.base(one["label"]).exists()]
        lines = [f"P01  ERROR: [028]: file missing '{label}/state'\n" for label in lost]
        return "".join([*lines, "stanza: shop\nstatus: error\n"]) if lost else WHOLE

    def base(self, label: str) -> Path:
        return self.repository / "backup/shop" / label / "state"

    def make_backup(self, kind: str) -> None:
        state = self.read_state()
        first, now = segment_name(state), math.ceil(time.time())
        label = f"{now}-{len(list((self.repository / 'backup/shop').iterdir()))}"
        folder = self.repository / "backup/shop" / label
        folder.mkdir()
        (folder / "state").write_text(json.dumps(state))
        self.archive(first, state)
        self.write_state(self.data, state | {"segment": state["segment"] + 1})
        manifest = {
            "label": label, "type": kind, "timestamp": {"start": now, "stop": now}, "lsn": {"stop": lsn(state)},
            "archive": {"start": first}, "info": {"size": 1000}, "database": {"id": 1},
        }  # fmt: skip
        (folder / "manifest").write_text(json.dumps(manifest))
        found = [*backups_of(self.repository), manifest]
        for name in ("backup.info", "backup.info.copy"):
            (self.repository / "backup/shop" / name).write_text(json.dumps(found))

    # -- rclone

    def rclone(self, command: str, *words: str, stdin: str = "", **_: Any) -> str:
        places = [self.place(word) for word in words if not word.startswith("-")]
        listed = [name for name in stdin.split("\n") if name] if "--files-from-raw=-" in words else None
        if command == "cat":
            if not places[0].exists():
                raise ToolError("object not found", 4)
            return places[0].read_text()
        if command == "rcat":
            places[0].write_text(stdin)
        elif command in ("copy", "sync"):
            source, target = places
            patterns = [word.removeprefix("--include=") for word in words if word.startswith("--include=")] or ["*"]
            names = [name for name in files_of(source) if any(fnmatchcase(f"/{name}", one) for one in patterns)]
            for name in names if listed is None else listed:
                if command == "copy" or not (target / name).exists():
                    (target / name).parent.mkdir(parents=True, exist_ok=True)
                    (target / name).write_text((source / name).read_text())
            for name in files_of(target) if command == "sync" else []:
                if not (source / name).exists():
                    (target / name).unlink()
        elif command == "check":
            source, target = places
            wrong = [
                name for name in listed or []
                if not (target / name).exists() or (target / name).read_text() != (source / name).read_text()
            ]  # fmt: skip
            if wrong:
                raise ToolError("differences found", 1, "".join(f"* {name}\n" for name in wrong))
        elif command == "size":
            return json.dumps({"bytes": 1000})
        return ""

    def place(self, word: str) -> Path:
        prefix, remote = self.configuration.remote, word.split("/", 1)
        return (self.target / remote[1] if remote[1:] else self.target) if remote[0] == prefix else Path(word)

    # -- restic

    def restic(self, *words: str, **_: Any) -> str:
        folder, command = self.target / "files", words[0]
        snapshots = sorted(folder.glob("snapshot-*.json")) if folder.exists() else []
        if command == "cat" and not (folder / "config").exists():
            raise ToolError("unable to open config file", 1)
        if command == "init":
            folder.mkdir(exist_ok=True)
            (folder / "config.new").write_text("config")
            (folder / "config.new").rename(folder / "config")
        elif command == "backup":
            paths = [Path(word) for word in words if word.startswith("/")]
            content = {str(path / name): (path / name).read_text() for path in paths for name in files_of(path)}
            name = f"snapshot-{len(snapshots):03d}"
            found = {"id": name, "time": datetime.now().astimezone().isoformat(), "paths": list(map(str, paths))}
            (folder / f"{name}.new").write_text(json.dumps(found | {"content": content}))
            (folder / f"{name}.new").rename(folder / f"{name}.json")
            done = {"message_type": "summary", "snapshot_id": name, "total_files_processed": len(content)}
            return json.dumps(done | {"total_bytes_processed": 1})
        elif command == "snapshots":
            return json.dumps([json.loads(path.read_text()) for path in snapshots])
        elif command in ("ls", "restore"):
            found = json.loads((folder / f"{words[1 if command == 'restore' else 2]}.json").read_text())
            if command == "ls":
                entries = [
                    {"type": "file", "size": 1, "path": path, "mtime": found["time"]} for path in found["content"]
                ]
                return "\n".join(map(json.dumps, entries))
            target = next(word for word in words if word.startswith("--target=")).partition("=")[2]
            for path, text in found["content"].items():
                place = Path(target) / path.lstrip("/")
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(text)
        return ""


def backups_of(repository: Path) -> list[dict[str, Any]]:
    """Return the manifests of the base backups, from the first of the two files with their names that is whole."""
    for name in ("backup.info", "backup.info.copy"):
        with suppress(json.JSONDecodeError, FileNotFoundError):
            return json.loads((repository / "backup/shop" / name).read_text())
    raise ToolError("unable to load info file", 56)


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def segment_name(state: dict[str, Any]) -> str:
    return f"{state['timeline']:08X}{0:08X}{state['segment']:08X}"


def lsn(state: dict[str, Any]) -> str:
    return f"0/{state['segment']:X}000028"


# The files below a folder: the mode of each, the time of its change, and its content; of a link its target.
Tree = dict[Path, tuple[int, int, bytes | Path | None]]


def read_tree(root: Path) -> Tree:
    found: Tree = {}
    for path in root.iterdir():
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            found |= {path: (status.st_mode, 0, None)} | read_tree(path)
        else:
            content = path.readlink() if stat.S_ISLNK(status.st_mode) else path.read_bytes()
            found[path] = (status.st_mode, status.st_mtime_ns, content)
    return found


def write_tree(root: Path, files: Tree) -> None:
    """Make the files below a folder those of a tree: write what differs, and remove the rest."""
    present = read_tree(root)
    for path in sorted(present, reverse=True):
        kept = files.get(path)
        if present[path][2] is None:
            if kept is None or kept[2] is not None:
                path.rmdir()
        elif present[path] != kept:
            path.unlink()
    for path in sorted(files):
        mode, changed_at, content = files[path]
        if present.get(path) == files[path]:
            continue
        if isinstance(content, Path):
            path.symlink_to(content)
            continue
        if content is None:
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(content)
            os.utime(path, ns=(changed_at, changed_at))
        path.chmod(stat.S_IMODE(mode))


class Steps:
    """Stop this process before each change of a file; the process that has started it has it continue."""

    def __init__(self, log: Path) -> None:
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)

    def step(self, what: str) -> None:
        os.write(self.log, f"{what}\n".encode())
        os.kill(os.getpid(), signal.SIGSTOP)

    def watch(self, monkeypatch: Any) -> None:
        """Have every change of a file be a step: before it and, of a write, in its middle."""
        for place, name in ((Path, "rename"), (Path, "unlink"), (Path, "touch"), (shutil, "rmtree"), (shutil, "copy2")):
            monkeypatch.setattr(place, name, self.counted(name, getattr(place, name)))
        write = Path.write_text

        def write_text(path: Path, text: str, *arguments: Any, **options: Any) -> int:
            # What is renamed when it is whole has one step: that.
            if path.suffix not in (".new", ".tmp"):
                self.step(f"write {path}")
                write(path, text[: len(text) // 2])
                self.step(f"write the second half of {path}")
            return write(path, text, *arguments, **options)

        monkeypatch.setattr(Path, "write_text", write_text)

    def counted(self, name: str, original: Any) -> Any:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            self.step(f"{name} {path}")
            return original(path, *arguments, **options)

        return call
