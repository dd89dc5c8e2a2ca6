"""Files that other programs read while they are replaced."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def replace_file(path: Path, text: str, mode: int) -> None:
    """Replace a file atomically; its folder is created. Raises OSError."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    new = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        new.chmod(mode)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def replace_json(path: Path, values: Any) -> None:
    """Replace a file with these values, for root only."""
    replace_file(path, json.dumps(values, separators=(",", ":")) + "\n", 0o600)
