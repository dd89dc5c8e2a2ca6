"""Who counts as one visitor where requests are limited."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SITE = (Path(__file__).parents[2] / "roles/nginx/templates/site.conf.j2").read_text()


def visitor(address: str) -> str:
    """What the map makes of an address, as nginx writes it; the address itself where no line fits."""
    block = re.search(r"^map \$remote_addr .*?^}", SITE, re.M | re.S)
    assert block
    patterns = re.findall(r'"~(.+)" \$1;', block[0])
    assert patterns
    found = (re.search(pattern, address) for pattern in patterns)
    return next((match[1] for match in found if match), address)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("203.0.113.1", "203.0.113.2", False),
        ("2a01:4f8:1:2::1", "2a01:4f8:1:2:9:8:7:6", True),
        ("2a01:4f8:1:2::1", "2a01:4f8:1:3::1", False),
        # The network ends in zeros, which are left out.
        ("2a01:4f8::1", "2a01:4f8::1:2:3", True),
        ("2a01:4f8::1", "2a01:4f9::1", False),
        ("::1", "::2", False),
    ],
)
def test_one_visitor(one: str, other: str, same: bool) -> None:
    assert (visitor(one) == visitor(other)) is same


def test_what_is_limited_is_a_visitor() -> None:
    zones = re.findall(r"^limit_\w+_zone (.+?) zone", SITE, re.M)
    assert zones == ["{{ v }}_counted", "{{ v }}_address"]
    assert SITE.count("$binary_remote_addr") == 1, "only where the map has no better key"


def test_every_port_is_open_to_ipv6_too() -> None:
    """Where the host has it: one macro says so."""
    assert SITE.count("listen [::]") == 1
    assert len(re.findall(r"^    listen \d", SITE, re.M)) == len(re.findall(r"^\{\{ also_v6\(", SITE, re.M)) == 4
