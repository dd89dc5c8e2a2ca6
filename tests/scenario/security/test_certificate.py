"""Certificates from settings: an ACME server's (Pebble), and your own files, valid and invalid.

The tests of a host build on each other, in this order. The host keeps the last certificate until another file runs.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from authority import Authority
from deployments import Deployments
from installation import Installation
from probes import Visitor, wait_for
from testinfra.host import Host

ACME_PORT, MANAGEMENT_PORT, DNS_MANAGEMENT_PORT = 14000, 15000, 8055
PROVISION = "playbooks/provision.yml"
DAY = timedelta(days=1)
RELOAD_SECONDS = 30
# Pebble, which requests challenges on port 80 as every CA does, and its DNS server, whose names the tests set.
# By default it rejects one nonce in twenty; certbot retries once, so that 3 of 100 certificates would fail.
# The tests of both hosts may start it at the same time.
PEBBLE = """
set -e
exec 9>/run/pebble.lock
flock 9
systemctl is-active --quiet pebble && exit
mkdir -p /etc/pebble
cd /etc/pebble
openssl req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 30 -subj /CN=acme -keyout key.pem \
    -addext subjectAltName=IP:{address} -out cert.pem 2>/dev/null
echo '{config}' >config.json
systemd-run --quiet --unit=pebble-dns pebble-challtestsrv -defaultIPv4 "" -defaultIPv6 "" -http01 "" -https01 "" \
    -tlsalpn01 "" -doh "" -dns01 :8053
systemd-run --quiet --unit=pebble --setenv=PEBBLE_VA_NOSLEEP=1 --setenv=PEBBLE_WFE_NONCEREJECT=0 \
    pebble -config /etc/pebble/config.json -dnsserver 127.0.0.1:8053
timeout 60 sh -c 'until curl -sko /dev/null https://127.0.0.1:{port}/dir; do :; done'
"""


@dataclass(frozen=True)
class Acme:
    """The ACME server on `outsider`, and the DNS as this host and the server see it."""

    server: Host
    address: str
    host: Host
    own_address: str
    domain: str
    file: Path

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that a user writes for certificates of this server."""
        return {
            "app_domain": self.domain,
            "app_domain_aliases": [],
            "app_certificate_email": "ada@security.example",
            "app_acme_directory_url": f"https://{self.address}:{ACME_PORT}/dir",
            "base_ca_certificates": [str(self.file)],
        }

    def root(self) -> str:
        return self.server.check_output(f"curl -sk https://127.0.0.1:{MANAGEMENT_PORT}/roots/0")

    def point(self, name: str, address: str) -> None:
        """Set a name's address in the DNS; "" removes it."""
        # The container's file may be written but not replaced.
        keep = f"hosts=$(grep -v ' {name}$' /etc/hosts); echo \"$hosts\" >/etc/hosts"
        self.host.check_output(f"{keep}; [ -z '{address}' ] || echo '{address} {name}' >>/etc/hosts")
        place = f"http://127.0.0.1:{DNS_MANAGEMENT_PORT}"
        forget, record = json.dumps({"host": name}), json.dumps({"host": name, "addresses": [address]})
        self.server.check_output(f"curl -sf -d '{forget}' {place}/clear-a")
        if address:
            self.server.check_output(f"curl -sf -d '{record}' {place}/add-a")

    def served(self, name: str, authority: str) -> str:
        """Return the SHA-256 of the certificate that a visitor who trusts one authority gets.

        Raises ssl.SSLError if that authority has not issued it for this name. Retries for some seconds: after a reload
        nginx's old processes answer until the new ones are up.
        """
        deadline = time.monotonic() + RELOAD_SECONDS
        while True:
            try:
                return self.shown(name, authority)
            except ssl.SSLError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.2)

    def shown(self, name: str, authority: str) -> str:
        """Like `served`, without retries."""
        context = ssl.create_default_context(cadata=authority)
        connection = socket.create_connection((self.own_address, 443), timeout=5)
        with connection, context.wrap_socket(connection, server_hostname=name) as tls:
            return hashlib.sha256(tls.getpeercert(binary_form=True)).hexdigest()


@pytest.fixture(scope="module")
def acme(host: Host, app: Installation, outsider: Host, folder: Path, other_settings: None) -> Iterator[Acme]:
    server = outsider
    address = server.ansible.get_variables()["ansible_host"]
    config = {
        "listenAddress": f"0.0.0.0:{ACME_PORT}",
        "managementListenAddress": f"127.0.0.1:{MANAGEMENT_PORT}",
        "certificate": "/etc/pebble/cert.pem",
        "privateKey": "/etc/pebble/key.pem",
        "httpPort": 80,
        "tlsPort": 443,
        "ocspResponderURL": f"http://{address}:4002",
        "certificateValidityPeriod": 90 * 24 * 3600,
    }
    server.check_output(PEBBLE.format(address=address, config=json.dumps({"pebble": config}), port=ACME_PORT))
    file = folder / "pebble-test.crt"
    file.write_text(server.file("/etc/pebble/cert.pem").content_string)
    domain = host.ansible.get_variables()["app_domain_aliases"][0]
    acme = Acme(server, address, host, app.address, domain, file)
    yield acme
    for name in (domain, f"www.{domain}"):
        acme.point(name, "")


def self_signed(host: Host, app: Installation) -> str:
    return host.file(f"{app.certificate_folder}/fullchain.pem").content_string


def test_site_has_more_domains(host: Host, app: Installation, variables: dict[str, Any]) -> None:
    """With a form, which the application accepts from its own origins only."""
    (domain,) = variables["app_domain_aliases"]
    visitor = Visitor(f"https://{domain}", self_signed(host, app))
    with resolved(domain, app.address):
        assert visitor.get("/").status == 200
        assert visitor.order().startswith("/orders/")


@contextmanager
def resolved(name: str, address: str) -> Iterator[None]:
    """Resolve the name to the address, in this process."""
    real = socket.getaddrinfo
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            socket, "getaddrinfo", lambda host, *rest, **more: real(address if host == name else host, *rest, **more)
        )
        yield


def test_only_root_reads_the_key(host: Host, app: Installation) -> None:
    key = host.file(f"{app.certificate_folder}/privkey.pem")
    assert (key.user, key.group, key.mode) == ("root", "root", 0o600)


def test_hsts_starts_small(visitor: Visitor) -> None:
    for path in ("/", "/nowhere/", "/static/"):
        assert visitor.get(path).headers.get_all("Strict-Transport-Security") == ["max-age=86400"], path


def test_certbot_is_installed_only_if_needed(host: Host) -> None:
    """Not among the packages of the first run; a test below installs it, on a host that may have had it before."""
    first = host.check_output("grep -hE '^Install:.* nginx(:| )' /var/log/apt/history.log")
    assert "certbot" not in first


# --- ACME ------------------------------------------------------------------------------------------------------


# Nothing of it depends on Debian's version.
@pytest.mark.os("debian13")
def test_name_with_another_address(host: Host, app: Installation, deployments: Deployments, acme: Acme) -> None:
    """The run prints what to do and continues with a self-signed certificate; a second run changes nothing."""
    acme.point(acme.domain, acme.address)
    run = deployments.playbook(PROVISION, tags="base,certificate,nginx", **acme.settings).wait().succeeded()
    said = " ".join(run.output.replace("- '", "").split())
    assert f"{acme.domain} does not point to this server" in said
    assert f"A record with the address of this server, {acme.own_address}" in said
    assert "playbooks/provision.yml --tags certificate" in said
    before = acme.served(acme.domain, self_signed(host, app))
    run = deployments.playbook(PROVISION, tags="certificate,nginx", **acme.settings).wait().succeeded()
    assert run.changed == 0, run.output
    assert acme.served(acme.domain, self_signed(host, app)) == before


def test_name_with_this_address_gets_a_certificate(
    deployments: Deployments, acme: Acme, variables: dict[str, Any]
) -> None:
    """On Debian 13 by the command that the first run has printed, on Debian 12 in the first run."""
    acme.point(acme.domain, acme.own_address)
    tags = "certificate" if variables["testhost_os"] == "debian13" else "base,certificate,nginx"
    run = deployments.playbook(PROVISION, tags=tags, **acme.settings).wait().succeeded()
    print(run.output)
    assert "does not point" not in run.output
    acme.served(acme.domain, acme.root())


def test_stapling_is_on_if_the_certificate_names_a_responder(host: Host, app: Installation) -> None:
    assert "ssl_stapling on;" in host.file(f"{app.certificate_folder}/stapling.conf").content_string
    assert "ssl_stapling on;" in host.check_output("nginx -T 2>/dev/null")


def test_only_root_reads_the_acme_key(host: Host, app: Installation) -> None:
    key = host.check_output(f"readlink --canonicalize-existing {app.certificate_folder}/privkey.pem")
    assert key.startswith("/etc/letsencrypt/")
    assert (host.file(key).user, host.file(key).mode) == ("root", 0o600)


@dataclass
class Stream:
    """New connections, one after another, and the result of each."""

    acme: Acme
    authority: str
    failures: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)

    def run(self, stop: threading.Event) -> None:
        context = ssl.create_default_context(cadata=self.authority)
        while not stop.is_set():
            try:
                plain = socket.create_connection((self.acme.own_address, 443), timeout=20)
                with plain, context.wrap_socket(plain, server_hostname=self.acme.domain) as tls:
                    shown = hashlib.sha256(tls.getpeercert(binary_form=True)).hexdigest()
                    connection = http.client.HTTPConnection(self.acme.domain)
                    connection.sock = tls
                    connection.request("GET", "/healthz/")
                    assert connection.getresponse().status == 200
                    self.seen.append(shown)
            except (OSError, AssertionError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
            time.sleep(0.01)


@contextmanager
def stream(acme: Acme) -> Iterator[Stream]:
    connections, stop = Stream(acme, acme.root()), threading.Event()
    thread = threading.Thread(target=connections.run, args=[stop])
    thread.start()
    try:
        yield connections
    finally:
        stop.set()
        thread.join()


def test_renewal_without_a_failed_connection(host: Host, acme: Acme) -> None:
    """As the timer does it, without waiting for it."""
    assert host.service("certbot.timer").is_enabled
    assert host.service("certbot.timer").is_running
    before = acme.served(acme.domain, acme.root())
    with stream(acme) as connections:
        host.check_output("certbot -q renew --force-renewal --no-random-sleep-on-renew")
        shown = wait_for(
            lambda: set(connections.seen), 60, "the new certificate is served", lambda shown: shown > {before}
        )
    assert connections.failures == []
    assert len(shown) == 2


@pytest.mark.os("debian13")
def test_additional_domain_is_in_the_next_certificate(deployments: Deployments, acme: Acme) -> None:
    """One with this host's address at once, one without as soon as it has it."""
    www, later = f"www.{acme.domain}", f"later.{acme.domain}"
    acme.point(www, acme.own_address)
    settings = acme.settings | {"app_domain_aliases": [www, later]}
    run = deployments.playbook(PROVISION, tags="certificate,nginx", **settings).wait().succeeded()
    print(run.output)
    assert f"{later} has no address in the DNS yet" in run.output
    root = acme.root()
    wait_for(
        lambda: acme.served(www, root) == acme.served(acme.domain, root),
        RELOAD_SECONDS,
        "both have the same certificate",
    )
    with pytest.raises(ssl.SSLCertVerificationError):
        acme.shown(later, acme.root())


# --- Your own files ------------------------------------------------------------------------------------------


def own(folder: Path, name: str, chain: str, key: str) -> dict[str, Any]:
    files = {"certificate": folder / f"{name}.pem", "key": folder / f"{name}.key"}
    files["certificate"].write_text(chain)
    files["key"].write_text(key)
    return {"app_certificate_files": {part: str(path) for part, path in files.items()}}


# The control machine refuses it.
@pytest.mark.os("debian12")
def test_an_expired_certificate_stops_the_run_and_the_old_one_stays(
    deployments: Deployments, acme: Acme, folder: Path
) -> None:
    """Before anything is changed, naming the file. tests/unit/test_certificate_files.py has the other faults."""
    before = acme.served(acme.domain, acme.root())
    now = datetime.now(UTC)
    expired = Authority().issue(acme.domain, begins=now - 9 * DAY, ends=now - DAY)
    domain = {"app_domain": acme.domain, "app_domain_aliases": []}
    run = deployments.playbook(PROVISION, **domain, **own(folder, "expired", *expired)).wait().failed()
    said = " ".join(run.output.split())
    assert "No host was contacted" in said
    assert f"{folder}/expired.pem) has expired" in said
    assert run.changed == 0
    assert acme.served(acme.domain, acme.root()) == before


# What it removes is the same on both.
@pytest.mark.os("debian13")
def test_valid_files_are_served_and_acme_is_removed(
    host: Host, deployments: Deployments, acme: Acme, folder: Path
) -> None:
    """Nothing of ACME stays: neither certificates to renew nor the timer."""
    ca = Authority()
    settings = {"app_domain": acme.domain, "app_domain_aliases": [], **own(folder, "good", *ca.issue(acme.domain))}
    run = deployments.playbook(PROVISION, tags="certificate,nginx", **settings).wait().succeeded()
    assert "PRIVATE KEY" not in run.output
    assert "ssl_stapling" not in host.check_output("nginx -T 2>/dev/null")
    acme.served(acme.domain, ca.chain)
    kept = "find /etc/letsencrypt/renewal /etc/letsencrypt/live -name '*.conf' -o -name '*.pem'"
    assert host.check_output(kept) == ""
    assert not host.service("certbot.timer").is_enabled
    assert not host.service("certbot.timer").is_running


@pytest.mark.os("debian13")
def test_without_settings_the_certificate_is_self_signed(
    host: Host, app: Installation, deployments: Deployments, acme: Acme
) -> None:
    """For every name of the site in the inventory; the files before were for one of them."""
    before = host.file(f"{app.certificate_folder}/fullchain.pem").sha256sum
    deployments.playbook(PROVISION, tags="certificate,nginx").wait().succeeded()
    assert host.file(f"{app.certificate_folder}/fullchain.pem").sha256sum != before
    shown = acme.served(acme.domain, self_signed(host, app))
    assert acme.served(app.address, self_signed(host, app)) == shown
