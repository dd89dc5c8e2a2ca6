"""The site's configuration: what is limited and for which addresses, what the application is told, and IPv6."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROLE = Path(__file__).parents[2] / "roles/nginx"
SITE = (ROLE / "templates/site.conf.j2").read_text()


def render(**given: Any) -> str:
    """Return the site's configuration with the role's defaults and these variables."""
    loader = DataLoader()
    files = [str(ROLE / name) for name in ("defaults/main.yml", "vars/main.yml")]
    known = [loader.load_from_file(file, trusted_as_template=True) for file in files]
    others = {"ansible_managed": "", "ansible_facts": {"distribution_release": "trixie"}}
    others["nginx_domains"] = ["new.example"]
    templar = Templar(loader, variables={**known[0], **known[1], **others, **given})
    return templar.template(trust_as_template(SITE), escape_backslashes=False)


def patterns(block: str) -> list[str]:
    """Return the regular expressions of a map."""
    found = re.search(rf"^map [^{{]*{block} {{.*?}}", render(), re.M | re.S)
    assert found
    return re.findall(r'"~(.+?)" "', found[0])


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
    assert zones == ["{{ v }}_counted", "{{ v }}_login", "{{ v }}_address"]
    assert SITE.count("$binary_remote_addr") == 1, "only as the default of the map"


def test_every_port_listens_on_ipv6_by_the_macro() -> None:
    assert SITE.count("listen [::]") == 1
    assert len(re.findall(r"^    listen \d", SITE, re.M)) == len(re.findall(r"^\{\{ also_v6\(", SITE, re.M)) == 4


# --- Names of releases that may become live again


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


# --- Logins --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "counts"),
    [
        ("POST /admin/login/", True),
        ("POST /accounts/login", True),
        ("POST /a/b/login/", True),
        ("GET /admin/login/", False),
        ("POST /admin/login/x/", False),
        ("POST /login-history/", False),
    ],
)
def test_attempts_to_log_in(request_: str, counts: bool) -> None:
    assert any(re.search(pattern, request_) for pattern in patterns("_login_mark")) is counts


def test_login_paths_are_whole_paths_or_ends() -> None:
    text = render(nginx_login_paths=["/api/token.x/", "*/enter/"])
    assert '"~^POST /api/token\\.x/?$" " login";' in text
    assert '"~^POST .*/enter/?$" " login";' in text


def test_trusted_addresses_are_not_limited() -> None:
    text = render(nginx_trusted_addresses=["192.0.2.0/24"])
    assert re.search(r"geo \$site_trusted {\s+default 0;\s+192.0.2.0/24 1;", text)
    assert '"0 login" $site_address;' in text


def test_login_limit_of_zero_is_none() -> None:
    limits = {"requests_per_second": 0, "burst": 0, "connections": 0, "logins_per_minute": 0, "login_burst": 0}
    assert "limit_req" not in render(nginx_rate_limit=limits).replace("limit_req_status", "")


# --- The application -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("served", "downloaded"),
    [
        ("/media/a.html text/html", True),
        ("/media/a.svg image/svg+xml", True),
        ("/media/a text/xml; charset=utf-8", True),
        ("/media/a application/xhtml+xml", True),
        ("/media/a.png image/png", False),
        ("/media/a.pdf application/pdf", False),
        ("/media/xml/a.txt text/plain", False),
        ("/_seedbed_error.html text/html", False),
        ("/ text/html", False),
    ],
)
def test_uploaded_pages_are_downloaded(served: str, downloaded: bool) -> None:
    [pattern] = patterns("_disposition")
    assert bool(re.search(pattern, served)) is downloaded


def test_limits_of_time() -> None:
    text = render(nginx_request_timeout=90, nginx_long_requests={"/export/": 600})
    assert re.findall(r"proxy_read_timeout (.+);", text) == ["90s", "600s"]
    long = re.search(r"location /export/ {(.*?)\n    }", text, re.S)
    assert long
    assert "gzip off;" in long[1]
    assert "return 503;" in long[1]


def test_a_path_without_its_slash_is_left_to_the_application() -> None:
    """Without a location of its own, nginx would redirect /export to /export/."""
    found = re.findall(r"location (.*/export.*) {", render(nginx_long_requests={"/export/": 600, "/export2": 600}))
    assert found == ["/export/", "/export2", "= /export"]
    both = render(nginx_long_requests={"/export/": 600, "/export": 700})
    assert re.findall(r"location (.*/export.*) {", both) == ["/export/", "/export"]


def test_schemes_that_gunicorn_compares_are_set_or_dropped() -> None:
    """gunicorn answers 400 when one of its secure_scheme_headers contradicts another."""
    sent = dict(re.findall(r"proxy_set_header (\S+) (.+);", render()))
    assert (sent["X-Forwarded-Proto"], sent["X-Forwarded-Ssl"], sent["X-Forwarded-Protocol"]) == ("https", '""', '""')
