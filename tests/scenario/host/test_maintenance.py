"""Maintenance mode: the page for visitors, who bypasses it, and that nginx is not reloaded.

`app_maintenance_addresses` of the inventory names 127.0.0.2, an address that only the host itself can have.
On one Debian, since nginx has the same configuration on both.
"""

from __future__ import annotations

import base64
import http.client
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from installation import Installation, run_python
from probes import Answer, Visitor
from testinfra.host import Host

pytestmark = pytest.mark.os("debian13")

ROOT = Path(__file__).parents[3]
MESSAGE = "Back at noon, with <new> seeds & pots."
PROTECTION = ("X-Content-Type-Options", "X-Frame-Options", "Referrer-Policy", "Strict-Transport-Security")
ALLOWED = "127.0.0.2"

# Prints the status of the home page for a client with this address.
FROM_ADDRESS = """
import http.client, ssl
connection = http.client.HTTPSConnection(
    "127.0.0.1", source_address=("{address}", 0), timeout=15, context=ssl._create_unverified_context()
)
connection.request("GET", "/", headers={{"Host": "{name}"}})
print(connection.getresponse().status)
"""


@dataclass(frozen=True)
class Operator:
    """Runs the playbook for one host, from the scenario's folder."""

    host: str
    inventory: str

    def maintenance(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run it with these extra variables."""
        playbook = [ROOT / "playbooks/maintenance.yml", "--limit", self.host]
        variables = [option for word in words for option in ("-e", word)]
        return subprocess.run(
            [Path(sys.executable).parent / "ansible-playbook", "-i", self.inventory, *playbook, *variables],
            env=os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def must(self, *words: str) -> str:
        """Run it and return its output. Raises AssertionError with the output when it fails."""
        done = self.maintenance(*words)
        assert done.returncode == 0, done.stdout
        return done.stdout


@dataclass(frozen=True)
class Line:
    """A connection that a visitor keeps open."""

    connection: http.client.HTTPSConnection

    @classmethod
    def open(cls, host: Host, app: Installation) -> Line:
        certificate = host.file(f"{app.certificate_folder}/fullchain.pem").content_string
        context = Visitor(app.url, certificate).context
        line = cls(http.client.HTTPSConnection(app.address, timeout=15, context=context))
        line.connection.connect()
        return line

    def status(self, path: str = "/") -> int:
        """Return a page's status. Raises an exception when the connection was closed meanwhile."""
        assert self.connection.sock, "the connection was closed"
        self.connection.request("GET", path)
        answer = self.connection.getresponse()
        answer.read()
        return answer.status

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Send requests meanwhile: nginx closes a connection that is idle for 30 s, and a playbook may take longer."""
        over = threading.Event()
        problems: list[Exception] = []

        def keep() -> None:
            while not problems and not over.wait(5):
                try:
                    # Health checks bypass maintenance.
                    self.status("/healthz/")
                except (OSError, http.client.HTTPException, AssertionError) as error:
                    problems.append(error)

        thread = threading.Thread(target=keep)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        assert problems == [], "the connection was closed while it was in use"


@dataclass(frozen=True)
class Before:
    """What there was before maintenance was switched on: nginx's workers, and a connection that was used."""

    workers: str
    line: Line


def nginx_workers(host: Host) -> str:
    """Return the process IDs of nginx's workers, which a reload replaces."""
    return host.check_output("pgrep --full 'nginx: worker process$'")


@pytest.fixture(scope="module")
def operator(host: Host, request: pytest.FixtureRequest) -> Operator:
    return Operator(host.backend.get_hostname(), request.config.getoption("--ansible-inventory"))


@pytest.fixture(scope="module")
def on(host: Host, app: Installation, operator: Operator) -> Iterator[Before]:
    """Switch maintenance on for the tests that use this."""
    before = Before(nginx_workers(host), Line.open(host, app))
    assert before.line.status() == 200
    try:
        with before.line.in_use():
            operator.must("maintenance_state=on", "maintenance_retry=600", f"maintenance_message='{MESSAGE}'")
        yield before
    finally:
        if host.file(f"/var/www/{app.name}/maintenance").exists:
            operator.must("maintenance_state=off")


@pytest.fixture
def page(on: Before, visitor: Visitor) -> Answer:
    return visitor.get("/")


def test_open_connection_stays_open(on: Before, host: Host) -> None:
    """The first test here, before nginx closes it for being idle. Its processes are the same: it was not reloaded."""
    assert on.line.status() == 503
    assert nginx_workers(host) == on.workers


def test_visitors_get_a_page_and_retry_after(app: Installation, page: Answer) -> None:
    assert (page.status, page.headers.get_all("Retry-After")) == (503, ["600"])
    assert page.headers["Content-Type"].startswith("text/html")
    assert "Back at noon, with &lt;new&gt; seeds &amp; pots." in page.body
    assert "10 minutes" in page.body
    assert app.address in page.body, "the page names the site"


def test_page_is_self_contained(page: Answer) -> None:
    """It suits a phone, and loads nothing else."""
    assert 'name="viewport"' in page.body
    assert re.findall(r"(?:src|href|url|@import)\s*[=(]", page.body) == []


def test_page_has_security_headers(page: Answer) -> None:
    assert {name: len(page.headers.get_all(name, [])) for name in PROTECTION} == dict.fromkeys(PROTECTION, 1)


@pytest.mark.usefixtures("on")
@pytest.mark.parametrize("path", ["/products/tomato/", "/admin/login/", "/media/nothing.svg", "/no/such/page/"])
def test_every_page_is_replaced(visitor: Visitor, path: str) -> None:
    answer = visitor.get(path)
    assert (answer.status, answer.headers["Retry-After"]) == (503, "600")


@pytest.mark.usefixtures("on")
def test_posts_are_answered_too(visitor: Visitor) -> None:
    assert visitor.post_json("/register/", {"name": "x" * 100_000}).status == 503


@pytest.mark.usefixtures("on")
@pytest.mark.parametrize("path", ["/healthz/", "/readyz/"])
def test_health_checks_bypass_it(visitor: Visitor, release: str, path: str) -> None:
    answer = visitor.get(path)
    assert (answer.status, answer.json["release"], answer.headers["Retry-After"]) == (200, release, None)


@pytest.mark.usefixtures("on")
def test_static_files_bypass_it(host: Host, app: Installation, visitor: Visitor) -> None:
    root = f"/srv/{app.name}/current/.static"
    file = host.check_output(f"cd {root} && find . -name '*.css' | head -n 1")
    assert visitor.get(f"/static/{file.removeprefix('./')}").status == 200


@pytest.mark.usefixtures("on")
def test_acme_challenges_bypass_it(host: Host, app: Installation) -> None:
    folder = f"/var/www/{app.name}/acme/.well-known/acme-challenge"
    host.check_output(f"umask 022 && mkdir -p {folder} && echo token >{folder}/seedbed-test")
    connection = http.client.HTTPConnection(app.address, timeout=5)
    connection.request("GET", "/.well-known/acme-challenge/seedbed-test")
    assert connection.getresponse().read() == b"token\n"
    host.check_output(f"rm -r /var/www/{app.name}/acme/.well-known")


@pytest.mark.usefixtures("on")
def test_flower_still_opens_with_its_password(app: Installation, visitor: Visitor) -> None:
    word = base64.b64encode(f"{app.flower_user}:{app.secret('flower_password')}".encode()).decode()
    assert visitor.get("/flower/", headers={"Authorization": f"Basic {word}"}).status == 200
    assert visitor.get("/flower/").status == 401


@pytest.mark.usefixtures("on")
def test_the_status_page_still_opens_with_its_password(host: Host, app: Installation, visitor: Visitor) -> None:
    assert host.run(f"{app.name}ctl watch").rc in (0, 1, 2)
    word = base64.b64encode(f"{app.flower_user}:{app.secret('flower_password')}".encode()).decode()
    answer = visitor.get("/status/", headers={"Authorization": f"Basic {word}"})
    assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-store")
    assert visitor.get("/status/").status == 401


@pytest.mark.usefixtures("on")
@pytest.mark.parametrize(("address", "status"), [(ALLOWED, "200"), ("127.0.0.1", "503")])
def test_chosen_addresses_bypass_it(host: Host, app: Installation, address: str, status: str) -> None:
    assert run_python(host, FROM_ADDRESS.format(address=address, name=app.address)) == status


def test_on_again_changes_nothing(on: Before, host: Host, operator: Operator) -> None:
    output = operator.must("maintenance_state=on", "maintenance_retry=600", f"maintenance_message='{MESSAGE}'")
    assert re.search(r"changed=0 .*failed=0", output), output
    assert nginx_workers(host) == on.workers


def test_a_missing_state_is_refused(host: Host, app: Installation, operator: Operator) -> None:
    """With an instruction, and before anything changes. tests/unit/test_nginx.py has the other invalid variables.

    The status page is not among what is compared: a timer writes it each minute.
    """
    look = f"find /var/www/{app.name} -mindepth 1 -maxdepth 1 ! -name status -printf '%p %C@\\n' | sort"
    before = host.check_output(look)
    done = operator.maintenance()
    said = " ".join(done.stdout.split())
    assert done.returncode != 0
    assert "maintenance_state is missing" in said
    assert "Usage: -e maintenance_state=on or -e maintenance_state=off" in said
    assert host.check_output(look) == before


def test_off_serves_the_site_again(
    on: Before, host: Host, app: Installation, operator: Operator, visitor: Visitor
) -> None:
    """The last test here: an open connection stays open again. Off again changes nothing."""
    line = Line.open(host, app)
    assert line.status() == 503
    with line.in_use():
        operator.must("maintenance_state=off")
    assert line.status() == 200
    assert nginx_workers(host) == on.workers
    answer = visitor.get("/")
    assert (answer.status, answer.headers["Retry-After"]) == (200, None)
    output = operator.must("maintenance_state=off")
    assert re.search(r"changed=0 .*failed=0", output), output
