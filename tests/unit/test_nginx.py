"""The site's configuration: which addresses share a rate limit, and IPv6."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SITE = (Path(__file__).parents[2] / "roles/nginx/templates/site.conf.j2").read_text()


def rate_limit_key(address: str) -> str:
    """Return the key that the map gives an address in nginx's notation; the address itself if no pattern matches."""
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
        # Trailing zeros of the network are left out.
        ("2a01:4f8::1", "2a01:4f8::1:2:3", True),
        ("2a01:4f8::1", "2a01:4f9::1", False),
        ("::1", "::2", False),
    ],
)
def test_addresses_that_share_a_limit(one: str, other: str, same: bool) -> None:
    assert (rate_limit_key(one) == rate_limit_key(other)) is same


def test_limits_use_the_map() -> None:
    zones = re.findall(r"^limit_\w+_zone (.+?) zone", SITE, re.M)
    assert zones == ["{{ v }}_counted", "{{ v }}_address"]
    assert SITE.count("$binary_remote_addr") == 1, "only as the default of the map"


def test_every_port_listens_on_ipv6_by_the_macro() -> None:
    assert SITE.count("listen [::]") == 1
    assert len(re.findall(r"^    listen \d", SITE, re.M)) == len(re.findall(r"^\{\{ also_v6\(", SITE, re.M)) == 4
