"""The shop in a browser (Debian's Chromium): any error on the console or the page is a failure.

On one Debian, since the pages are the same; the other tests of this folder request them on both.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from installation import Installation, query
from machine import ROOT, ensure_browser, only_one
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, expect, sync_playwright
from playwright.sync_api import Error as BrowserError
from probes import wait_for
from testinfra.host import Host

ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
# Of which nothing is used unless this machine is very busy.
MILLISECONDS = 60_000
NETWORK_CHANGED = "ERR_NETWORK_CHANGED"

expect.set_options(timeout=MILLISECONDS)
pytestmark = pytest.mark.os("debian12")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    ensure_browser()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS, headless=True)
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def _no_interface_changes() -> Iterator[None]:
    """Keep other scenarios from creating or removing hosts: Chromium would abort its requests."""
    with only_one("interfaces"):
        yield


class Person:
    """A user with a separate browser. Keeps a screenshot of every step, and every error of the browser."""

    def __init__(self, context: BrowserContext) -> None:
        self.errors: list[str] = []
        self.expects = ""
        self.pictures: list[tuple[str, bytes]] = []
        self.page = context.new_page()
        self.page.set_default_timeout(MILLISECONDS)
        self.page.goto = self.patient(self.page.goto)
        self.page.on("console", self.note)
        self.page.on("pageerror", lambda error: self.errors.append(f"error on {self.page.url}: {error}"))

    def note(self, message: ConsoleMessage) -> None:
        expected = (self.expects and self.expects in message.text) or NETWORK_CHANGED in message.text
        if message.type in ("error", "warning") and not expected:
            self.errors.append(f"{message.text} ({message.location['url']}, on {self.page.url})")

    def patient(self, goto: Callable[..., Any]) -> Callable[..., Any]:
        """Repeat a request that Chromium aborts because this machine got or lost a network interface."""

        def go(*arguments: Any, **options: Any) -> Any:
            for _ in range(3):
                try:
                    return goto(*arguments, **options)
                except BrowserError as error:
                    if NETWORK_CHANGED not in str(error):
                        raise
            return goto(*arguments, **options)

        return go

    def step(self, name: str) -> None:
        """Take a screenshot, and assert that the page is not wider than the window."""
        self.pictures.append((name, self.page.screenshot(full_page=True)))
        width = self.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert width[0] <= width[1], f"{name}: the page is {width[0]} px wide, the window {width[1]} px"

    def leave_pictures(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.pictures.append(("end", self.page.screenshot(full_page=True)))
        for number, (step, picture) in enumerate(self.pictures, 1):
            (folder / f"{name}-{number}-{step}.png").write_bytes(picture)


@pytest.fixture
def invite(request: pytest.FixtureRequest, browser: Browser, app: Installation) -> Iterator[Callable[..., Person]]:
    """Open a browser for a user; fail the test if any error occurred in it."""
    people: list[tuple[Person, BrowserContext]] = []

    def open_one(**options: object) -> Person:
        context = browser.new_context(base_url=app.url, ignore_https_errors=True, **{"viewport": DESKTOP, **options})
        people.append((Person(context), context))
        return people[-1][0]

    yield open_one
    errors = [error for person, _ in people for error in person.errors]
    if errors or getattr(request.node, "failed", True):
        folder = Path(os.environ.get("TEST_RESULTS", ROOT / ".test-results")) / "browser"
        for person, _ in people:
            person.leave_pictures(folder, re.sub(r"\W+", "-", request.node.name).strip("-"))
    for _, context in people:
        context.close()
    assert errors == []


@contextmanager
def paused(host: Host, app: Installation, release: str, worker: str) -> Iterator[None]:
    """Stop a worker's processes for a moment."""
    unit = f"{app.name}-worker-{worker}@{release}.service"
    host.check_output(f"systemctl kill --signal=STOP {unit}")
    try:
        yield
    finally:
        host.check_output(f"systemctl kill --signal=CONT {unit}")


def order(person: Person, product: str) -> None:
    """Go from the home page to the page of a new order."""
    page = person.page
    page.goto("/")
    person.step("home")
    page.get_by_role("link").filter(has=page.get_by_role("heading", name=product)).click()
    page.get_by_label("packets").fill("2")
    page.get_by_label("your name").fill("Grace Hopper")
    page.get_by_label("email address").fill("grace@example.org")
    page.get_by_label("delivery address").fill("2 Harbour Road\nArlington")
    person.step("product")
    page.get_by_role("button", name="Place the order").click()
    expect(page.get_by_role("heading", name="Thank you, Grace Hopper")).to_be_visible()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_order_page_updates_without_a_reload(
    host: Host, app: Installation, release: str, invite: Callable[..., Person], size: dict[str, int]
) -> None:
    """The worker of the emails is stopped, so that the page is shown before they are sent."""
    person = invite(viewport=size)
    page = person.page
    with paused(host, app, release, app.queues["io"]):
        order(person, "Tomato")
        page.evaluate("window.unchanged = true")
        expect(page.locator("[data-kind=label]")).to_have_attribute("data-state", "done")
        expect(page.locator("[data-kind=invoice]")).to_contain_text("Waiting")
        expect(page.get_by_text("All done.")).to_be_hidden()
        person.step("waiting")
    for kind in ("charge", "invoice", "warehouse", "label"):
        expect(page.locator(f"[data-kind={kind}]")).to_have_attribute("data-state", "done")
    expect(page.locator("[data-kind=invoice]")).to_contain_text("Sent to grace@example.org")
    expect(page.get_by_text("All done.")).to_be_visible()
    assert page.evaluate("window.unchanged"), "the page was reloaded"
    person.step("done")


def test_report_fills_its_progress_bar(invite: Callable[..., Person]) -> None:
    person = invite(viewport=PHONE)
    page = person.page
    page.goto("/report/")
    page.get_by_role("button", name="Make the report").click()
    bar = page.get_by_role("progressbar")
    page.evaluate("window.unchanged = true")
    page.wait_for_function("bar => bar.value > 0 && bar.value < bar.max", arg=bar.element_handle())
    person.step("halfway")
    page.wait_for_function("bar => bar.value === bar.max", arg=bar.element_handle())
    expect(page.get_by_text("The report is ready.")).to_be_visible()
    assert page.evaluate("window.unchanged"), "the page was reloaded"
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the report").click()
    assert download.value.path().read_text().startswith("day,orders,packets,sales")
    person.step("ready")


def test_customer_registers_and_signs_in_again(host: Host, app: Installation, invite: Callable[..., Person]) -> None:
    person = invite(viewport=PHONE)
    page = person.page
    user, secret = f"b{uuid.uuid4().hex[:12]}", uuid.uuid4().hex
    page.goto("/register/")
    person.step("register")
    page.get_by_label("Username").fill(user)
    page.get_by_label("Email").fill(f"{user}@example.org")
    page.get_by_label("Password", exact=True).fill(secret)
    page.get_by_label("Password confirmation").fill(secret)
    page.get_by_role("button", name="Create the account").click()
    expect(page.get_by_text(f"Welcome, {user}")).to_be_visible()
    person.step("welcome")
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("link", name="Sign in").click()
    person.step("sign-in")
    page.get_by_label("Username").fill(user)
    page.get_by_label("Password").fill(secret)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()
    assert query(host, app, f"SELECT is_staff FROM auth_user WHERE username = '{user}'") == "f"
    mail = f"grep -lr '^To: {user}@example.org' /srv/{app.name}/shared/mail"
    wait_for(lambda: host.run(mail).succeeded, 60, f"a welcome email to {user}")


def test_flower_opens_with_its_password_only(app: Installation, release: str, invite: Callable[..., Person]) -> None:
    stranger = invite()
    stranger.expects = "the server responded with a status of 401"
    with pytest.raises(BrowserError, match="INVALID_AUTH_CREDENTIALS"):
        stranger.page.goto("/flower/")

    password = {"username": app.flower_user, "password": app.secret("flower_password")}
    person = invite(http_credentials=password)
    assert person.page.goto("/flower/").status == 200
    for worker in app.workers:
        row = person.page.get_by_role("row").filter(has_text=f"{worker['name']}.{release}@{app.hostname}")
        expect(row).to_contain_text("Online")
    person.step("workers")


@pytest.mark.parametrize("window", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_status_page_shows_checks_and_graphs(
    host: Host, app: Installation, release: str, invite: Callable[..., Person], window: dict[str, int]
) -> None:
    """The second run is the first one with values of a minute."""
    for _ in range(2):
        assert host.run(f"{app.name}ctl watch").rc in (0, 1, 2)
    stranger = invite()
    stranger.expects = "the server responded with a status of 401"
    with pytest.raises(BrowserError, match="INVALID_AUTH_CREDENTIALS"):
        stranger.page.goto("/status/")

    password = {"username": app.flower_user, "password": app.secret("flower_password")}
    person = invite(http_credentials=password, viewport=window)
    assert person.page.goto("/status").status == 200
    expect(person.page.locator("header").get_by_text(release)).to_be_visible()
    expect(person.page.get_by_text("This page is old")).to_have_count(0)
    for title in ("Requests", "Processor", "Memory by service"):
        expect(person.page.get_by_role("img", name=title).first).to_be_visible()
    person.step("status")


def test_administrator_sees_schedules_and_results(
    app: Installation, release: str, invite: Callable[..., Person]
) -> None:
    person = invite()
    page = person.page
    page.goto("/admin/")
    page.get_by_label("Username").fill(app.admin)
    page.get_by_label("Password").fill(app.secret("admin_password"))
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("link", name="Periodic tasks", exact=True).first.click()
    for queue in app.queues:
        expect(page.get_by_role("link", name=f"heartbeat-{queue}")).to_be_visible()
    person.step("schedules")
    page.goto("/admin/django_celery_results/taskresult/")
    expect(page.get_by_role("row").filter(has_text="SUCCESS").first).to_be_visible()
    person.step("results")
    page.goto("/admin/shop/order/")
    expect(page.locator("#result_list tbody tr").first).to_be_visible()
    person.step("orders")
