"""How far systemd confines units."""

from __future__ import annotations

import re
from collections.abc import Iterable

from testinfra.host import Host


def exposures(host: Host, units: Iterable[str]) -> dict[str, float]:
    """Return what systemd-analyze security says of each unit: 10 is no confinement, 0 the strictest."""
    analyze = 'systemd-analyze security --no-pager "$unit" | tail -n 1'
    lines = host.check_output(f'for unit in {" ".join(units)}; do echo "$unit $({analyze})"; done').splitlines()
    found = {}
    for line in lines:
        match = re.search(r"^(\S+) .*level for .*: ([\d.]+)", line)
        assert match, line
        found[match[1]] = float(match[2])
    return found
