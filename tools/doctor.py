#!/usr/bin/env python3
"""Ask every server of the inventory whether it is well (playbooks/doctor.yml), and say at the end which ones are not.

    make doctor ENV=production

Exit status: 0 when no server is broken, 2 when one is, otherwise that of ansible-playbook.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from machine import ROOT

BROKEN = 2


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--inventory", action="append", required=True, help="may be given several times")
    inventories = parser.parse_args(words).inventory
    playbook = Path(sys.executable).parent / "ansible-playbook"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outcome.json"
        options = [
            *(word for inventory in inventories for word in ("-i", inventory)),
            str(ROOT / "playbooks/doctor.yml"),
            "-e",
            json.dumps({"monitoring_outcome": str(file)}),
        ]
        environment = {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")} | os.environ
        status = subprocess.run([playbook, *options], env=environment, check=False).returncode
        outcome = json.loads(file.read_text()) if file.exists() else None
    if outcome is None:
        print("No server was checked: see above.")
        return status or 1
    print("\n".join(describe(outcome["broken"], outcome["silent"])))
    return BROKEN if outcome["broken"] else status


def describe(broken: list[str], silent: list[str]) -> list[str]:
    """Return the last lines: which servers are broken, and which did not answer."""
    lines = [f"Not checked: {', '.join(silent)}. The reason is above."] if silent else []
    if broken:
        return [*lines, f"Broken: {', '.join(broken)}. Below each line with x, above, is what to type there."]
    return [*lines, "Broken: none of those that were checked." if silent else "Broken: none."]


if __name__ == "__main__":
    sys.exit(main())
