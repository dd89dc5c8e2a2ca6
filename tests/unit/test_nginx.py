"""The site's configuration: what is limited and for which addresses, what the application is told, and IPv6."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.splitter import parse_kv
from ansible.template import Templar, trust_as_template

ROLE = Path(__file__).parents[2] / "roles/nginx"
SITE = (ROLE / "templates/site.conf.j2").read_text()


@cache
def role_variables() -> list[dict[str, Any]]:
    files = [str(ROLE / name) for name in ("defaults/main.yml", "vars/main.yml")]
    return [DataLoader().load_from_file(file, trusted_as_template=True) for file in files]


def render(template: str = SITE, **given: Any) -> str:
    """Return a template, by default the site's configuration, with the role's defaults and these variables."""
    known = role_variables()
    others = {"ansible_managed": "", "ansible_facts": {"distribution_release": "trixie"}}
    others["nginx_domains"] = ["new.example"]
    templar = Templar(DataLoader(), variables={**known[0], **known[1], **others, **given})
    return templar.template(trust_as_template(template), escape_backslashes=False)


def test_websockets_reach_an_asgi_application_only() -> None:
    """And without the time limit of requests; an error page of a location would hide those of the site."""
    without, given = render(), render(nginx_websockets=True)
    assert "@websocket" not in without
    assert '"~^/flower/.* ." "upgrade"' in without
    assert '"~^.* ." "upgrade"' in given
    place = given[given.index("location @websocket") :]
    assert "proxy_read_timeout 1h" in place[: place.index("}")]
    maintenance, upgrade = (given.index(text) for text in ("return 503;", "return 418;"))
    assert maintenance < upgrade


def test_directives_and_headers_of_the_user_are_in_the_server_block() -> None:
    given = render(nginx_locations="location = /a {\n    return 204;\n}\n", nginx_response_headers={"X-A-B": "c"})
    server = given[given.rindex("server {") :]
    assert "    location = /a {\n        return 204;\n    }\n" in server
    assert 'map "$site_private:$upstream_http_x_a_b" $site_header_1 { "~^\\w+:$" "c";' in given
    assert "add_header X-A-B $site_header_1 always;" in server


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


# --- Static files


ROOTS = ["/srv/a/current/.public", "/srv/a/shared/assets"]


def location(text: str, name: str) -> str:
    """Return the content of a location; not of port 80."""
    found = re.search(
        rf"^    location {re.escape(name)} {{\n(.*?)^    }}", text.partition("proxy_redirect off;")[2], re.M | re.S
    )
    assert found, name
    return found[1]


def test_static_files_are_tried_in_every_root_before_the_application() -> None:
    text = render(nginx_static_roots=ROOTS)
    for name, root, then in (("/", ROOTS[0], "@static_1"), ("@static_1", ROOTS[1], "@application")):
        assert location(text, name).split(";\n        ") == [f"        root {root}", f"try_files $site_file {then};\n"]
    assert "proxy_pass" in location(text, "@application")
    assert "proxy_pass" in location(render(), "/")
    assert "try_files $site_file" not in render()


def test_static_files_and_uploads_have_no_limits() -> None:
    text = render(nginx_static_roots=ROOTS, nginx_media_root="/srv/a/media", nginx_flower="127.0.0.1:5555")
    for name in ("/", "@static_1", "/media/"):
        assert "limit_req" not in location(text, name)
    for name in ("@application", "/flower/"):
        assert location(text, name).count("limit_req zone=") == 2
    assert not re.search("^    limit_req zone", text, re.M)


@pytest.mark.parametrize(
    ("file", "header"),
    [
        ("/srv/a/current/.public/static/a.0123456789ab.css", "immutable"),
        ("/srv/a/shared/assets/my/assets/a.0123456789ab.css.gz", "immutable"),
        ("/srv/a/current/.public/static/a.css", "max-age=3600"),
        ("/srv/a/media/a.0123456789ab.css", "max-age=3600"),
        ("/etc/nginx/html/static/a.0123456789ab.css", ""),
        ("/srv/a/currentX.public/a.css", ""),
    ],
)
def test_only_hashed_names_of_static_files_are_immutable(file: str, header: str) -> None:
    text = render(nginx_static_roots=ROOTS, nginx_media_root="/srv/a/media")
    block = re.search(r"map \$document_root\$uri \$site_cache {(.*?)^}", text, re.M | re.S)
    assert block
    rules = re.findall(r'"~(.+?)" "(.+?)";', block[1])
    answer = next((value for pattern, value in rules if re.search(pattern, file)), "")
    assert header in answer
    assert bool(header) == bool(answer)


# --- The status page -----------------------------------------------------------------------------------------------

READER = {"nginx_status_users": {"admin": "pass:word"}}


def test_the_status_page_needs_the_password_also_during_maintenance() -> None:
    text = render(**READER)
    page = location(text, "/status/")
    assert "auth_basic_user_file /etc/nginx/site-status.htpasswd;" in page
    assert "alias /var/www/site/status/;" in page
    assert "maintenance" not in page
    assert page.count("limit_req zone=") == 2
    assert '"~^/var/www/site/status/" "no-store";' in text


def test_the_status_page_has_the_path_that_is_set() -> None:
    text = render(**READER, nginx_status_path="/ops/status/")
    assert "alias /var/www/site/status/;" in location(text, "/ops/status/")
    assert location(text, "= /ops/status") == "        return 301 /ops/status/;\n"
    assert '"~^no /ops/status/" "default-src' in text
    assert " /status" not in text


def test_without_users_the_path_is_the_applications() -> None:
    assert "status/" not in render()
    assert "'absent': True" in str(render("{{ __nginx_status_file }}"))


def test_its_password_file_has_a_salted_hash_that_stays_the_same() -> None:
    template = (ROLE / "templates/status.htpasswd.j2").read_text()
    line = render(template, **READER)
    assert line == render(template, **READER)
    user, _, stored = line.strip().partition(":")
    found = base64.b64decode(stored.removeprefix("{SSHA}"))
    assert user == "admin"
    assert found[:20] == hashlib.sha1(b"pass:word" + found[20:]).digest()
    assert len(found) == 36


# --- The application -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("served", "downloaded"),
    [
        ("yes text/html", True),
        ("yes image/svg+xml", True),
        ("yes text/xml; charset=utf-8", True),
        ("yes application/xhtml+xml", True),
        ("yes image/png", False),
        ("yes application/pdf", False),
        ("yes text/plain; x=html", False),
        ("no text/html", False),
    ],
)
def test_uploaded_pages_are_downloaded(served: str, downloaded: bool) -> None:
    [pattern] = patterns("_disposition")
    assert bool(re.search(pattern, served)) is downloaded


LINKS = "/srv/a/current/.public-media"


@pytest.mark.parametrize(
    ("served", "is_upload"),
    [
        ("/srv/a/shared/media/ /media/a.html", True),
        ("/etc/nginx/html /media/a.html", True),
        (f"{LINKS} /uploads/a.html", True),
        (f"{LINKS}X /uploads/a.html", False),
        ("/srv/a/current/.public /uploads/a.html", False),
        ("/etc/nginx/html /a b /media/a.html", False),
    ],
)
def test_uploads_are_known_by_their_folder_or_path(served: str, is_upload: bool) -> None:
    text = render(nginx_static_roots=ROOTS, nginx_media_root="/srv/a/shared/media", nginx_media_links=LINKS)
    block = re.search(r'map "\$document_root \$uri" \$site_upload {(.*?)^}', text, re.M | re.S)
    assert block
    assert any(re.search(pattern, served) for pattern in re.findall('"~(.+?)" yes;', block[1])) is is_upload
    for header in ("csp", "disposition"):
        assert 'map "$site_upload ' in re.search(rf"^map .* \$site_{header} ", text, re.M)[0]


def test_uploads_at_another_url_are_tried_before_the_application() -> None:
    text = render(nginx_static_roots=ROOTS, nginx_media_root="/srv/a/media", nginx_media_links=LINKS)
    assert "try_files $site_file @media;" in location(text, "@static_1")
    found = location(text, "@media")
    assert f"root {LINKS};" in found
    assert "try_files $site_file @application;" in found
    assert "return 503;" in found
    assert "limit_req" not in found
    assert "@media" not in render(nginx_media_links=LINKS)


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


# --- Proxies in front of the site


def test_a_proxy_is_believed_in_every_server_of_the_site() -> None:
    text = render(
        nginx_trusted_proxies=["198.51.100.0/24", "2001:db8::/32"], nginx_other_domains={"old.example": "/a.conf"}
    )
    own = [server for server in servers(text) if "location" in server]
    assert len(own) == 3
    for server in own:
        assert "set_real_ip_from 198.51.100.0/24;\n    set_real_ip_from 2001:db8::/32;" in server
        assert "real_ip_recursive on;" in server
    assert "real_ip" not in render()


# --- Maintenance


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "maintenance_state is missing, but must be on or off"),
        ("maintenance_state=maybe", 'maintenance_state is "maybe", but must be on or off'),
        ("maintenance_state=on maintenance_retry=soon", 'maintenance_retry is "soon", but must be seconds'),
        ("maintenance_state=on maintenance_retry=0", 'maintenance_retry is "0", but must be seconds'),
        ("maintenance_state=on maintenance_message=Back at noon", 'unexpected words "at noon"'),
    ],
)
def test_invalid_variables_of_maintenance(words: str, says: str) -> None:
    """As the words after -e, which Ansible splits."""
    given = {name if name == "_raw_params" else f"nginx_{name}": value for name, value in parse_kv(words).items()}
    message = render("{{ __nginx_maintenance_help }}", **{"nginx_maintenance_state": "", **given})
    assert message.startswith(f"Nothing was changed: {says}")
    assert "Usage: -e maintenance_state=on or -e maintenance_state=off" in message


@pytest.mark.parametrize("words", ["state=off", "state=on retry=600 message='Back at noon'"])
def test_valid_variables_of_maintenance(words: str) -> None:
    given = {f"nginx_maintenance_{name}": value for name, value in parse_kv(words).items()}
    assert render("{{ __nginx_maintenance_problem }}", **given) == ""
