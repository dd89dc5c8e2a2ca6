"""The site's configuration: which addresses share a rate limit, and IPv6."""

from __future__ import annotations

import re
from pathlib import Path

import jinja2
import pytest
import yaml

ROLE = Path(__file__).parents[2] / "roles/nginx"
SITE = (ROLE / "templates/site.conf.j2").read_text()


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


# --- Names of releases that may become live again


def render(**more: object) -> str:
    folder = ROLE / "templates"
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(folder), trim_blocks=True)
    environment.filters["regex_replace"] = lambda text, old, new: re.sub(old, new, str(text))
    environment.filters["flatten"] = lambda lists: [item for one in lists for item in one]
    environment.filters["combine"] = lambda one, other: one | other
    variables = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    variables |= {"__nginx_http2_in_listen": False, "__nginx_settings": {}, "nginx_domains": ["new.example"]} | more
    others = variables["nginx_other_domains"]
    sites = [{"names": variables["nginx_domains"], "certificate": ""}]
    sites += [{"names": [name], "certificate": file} for name, file in others.items()]
    addresses = [name for name in [*variables["nginx_domains"], *others] if re.fullmatch("[0-9.]+|.*:.*", name)]
    return environment.get_template("site.conf.j2").render(
        variables | {"__nginx_sites": sites, "__nginx_addresses": addresses}
    )


def servers(text: str) -> list[str]:
    return re.findall(r"^server \{\n(.*?)^\}", text, re.M | re.S)


def test_a_name_of_another_release_is_accepted_with_its_own_certificate() -> None:
    """A run that changes app_domain and fails must leave the site as it was."""
    text = render(nginx_other_domains={"old.example": "/kept/old.example.conf"})
    sites = [server for server in servers(text) if "proxy_pass" in server]
    assert [re.findall("server_name (.*);", server) for server in sites] == [["new.example"], ["old.example"]]
    assert "ssl_certificate /" in sites[0]
    assert "include /kept/old.example.conf;" in sites[1]
    assert "ssl_certificate /" not in sites[1]
    [plain] = [server for server in servers(text) if "acme-challenge" in server]
    assert "server_name new.example old.example;" in plain
    without = [line for line in sites[1].splitlines() if not re.search("server_name|include|ssl_certificate", line)]
    assert without == [line for line in sites[0].splitlines() if not re.search("server_name|ssl_certificate", line)]


@pytest.mark.parametrize(
    ("domains", "others", "shown"),
    [
        (["new.example"], {}, "ssl_reject_handshake on"),
        (["203.0.113.1"], {}, "ssl_certificate /"),
        (["new.example"], {"203.0.113.1": "/kept/203.0.113.1.conf"}, "include /kept/203.0.113.1.conf"),
    ],
)
def test_clients_without_a_name_get_the_certificate_of_an_address(
    domains: list[str], others: dict[str, str], shown: str
) -> None:
    text = render(nginx_domains=domains, nginx_other_domains=others)
    [refusal] = [server for server in servers(text) if "443 ssl default_server" in server]
    assert shown in refusal


def test_ipv6_addresses_are_in_brackets() -> None:
    assert "server_name a.example [2001:db8::1];" in render(nginx_domains=["a.example", "2001:db8::1"])
