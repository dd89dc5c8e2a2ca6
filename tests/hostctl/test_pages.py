"""The health page that is found, wrong answers that stay, and warm-up pages that are broken."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hostctl.deploy import health, pages
from hostctl.host import Host
from hostctl.settings import Settings
from tests.hostctl.fakes import NEW, OLD, Answers, deploy, last_outcome

TRACEBACK = 'Traceback (most recent call last):\n  File "{folder}/notes/views.py", line 14, in index\nValueError: no\n'


class Site(http.server.BaseHTTPRequestHandler):
    """Answers with the status, or the address of a redirect, that its server has for a path; otherwise with 404."""

    def do_GET(self) -> None:
        answer = self.server.pages.get(self.path, 404)
        self.server.seen.append(self.path)
        self.send_response(302 if isinstance(answer, str) else answer)
        if isinstance(answer, str):
            self.send_header("Location", answer)
        self.end_headers()

    def address_string(self) -> str:
        return "socket"

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    servers = []

    def serve(pages: dict[str, Any], path: Path = tmp_path / "web.sock") -> Any:
        path.parent.mkdir(exist_ok=True)
        server = socketserver.ThreadingUnixStreamServer(str(path), Site)
        server.daemon_threads, server.pages, server.seen, server.path = True, pages, [], path
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ({"/healthz/": 200, "/": 200}, "/healthz/"),
        ({"/health": 200, "/": 200}, "/health"),
        ({"/up": 200}, "/up"),
        ({"/": 200, "/admin/login/": 200}, "/"),
        ({"/admin/login/": 200}, "/admin/login/"),
        ({"/": "/accounts/login/?next=/", "/accounts/login/": 200}, "/accounts/login/"),
        ({"/": "https://shop.example.org/en/", "/en/": 200}, "/en/"),
        ({"/": "/en/", "/en/": "/en/start/", "/en/start/": 200}, "/en/start/"),
        ({"/": "/en/", "/en/": "/"}, ""),
        ({"/": "https://elsewhere.example/en/", "/en/": 200}, ""),
    ],
)
def test_the_health_page_is_found(
    settings: Settings, site: Callable[..., Any], answers: dict[str, Any], found: str
) -> None:
    page, problem = health.detect(settings, site(answers).path, ["/admin/login/"])
    assert page == found
    assert bool(problem) is not bool(found)


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({}, "no page answered 200 (/healthz/ 404, /healthz 404, /health/ 404, /health 404, /up 404, /up/ 404, / 404)"),
        ({"/health/": 500, "/": 200}, "/health/: status 500"),
        ({"/healthz/": 400, "/": 400}, "does ALLOWED_HOSTS have shop.example.org?"),
        ({"/": "https://shop.example.org/"}, "does SECURE_PROXY_SSL_HEADER have another value?"),
    ],
)
def test_what_is_wrong_is_said(
    settings: Settings, site: Callable[..., Any], answers: dict[str, Any], words: str
) -> None:
    page, problem = health.detect(settings, site(answers).path, [])
    assert page == ""
    assert words in problem


# --- A deployment


# The fixture `live` replaces it.
PROBLEM = health.problem


def with_pages(live: Host, site: Callable[..., Any], answers: dict[str, Any], release: str = NEW) -> Any:
    live.path(release).mkdir(exist_ok=True)
    return site(answers, live.socket(release))


def use_real_pages(live: Host, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    monkeypatch.setattr(health, "problem", PROBLEM)
    live.settings = replace(live.settings, **{"health_check_timeout": 20, "bake": 0} | settings)


def test_a_page_that_was_found_is_recorded(
    live: Host, site: Callable[..., Any], answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_real_pages(live, monkeypatch, health_path="", health_names_release="auto")
    with_pages(live, site, {"/up": 200, "/": 200})
    assert deploy(live) == 0
    recorded = live.settings.of(NEW)
    assert (recorded.health_path, recorded.health_names_release) == ("/up", False)


def test_a_project_without_any_page_is_healthy_when_django_answers(
    live: Host, site: Callable[..., Any], answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may only run tasks, as Celery's own example does."""
    use_real_pages(live, monkeypatch, health_path="", health_names_release="auto")
    answers.override["check"] = {"versions": {}, "has_pages": False}
    with_pages(live, site, {})
    assert deploy(live) == 0
    assert (live.settings.of(NEW).health_path, live.settings.of(NEW).health_status) == ("/", 404)


@pytest.mark.parametrize("named", [True, False])
def test_a_page_must_name_the_release_as_that_of_the_live_one_does(
    live: Host, site: Callable[..., Any], answers: Answers, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    """Otherwise the page of another release would do."""
    (live.settings.configurations / OLD).mkdir(parents=True, exist_ok=True)
    replace(live.settings, health_path="/up", health_names_release=named).record(OLD)
    use_real_pages(live, monkeypatch, health_path="", health_names_release="auto")
    monkeypatch.setattr(pages, "STEADY_SECONDS", 0.2)
    monkeypatch.setattr(pages, "ANSWERED_PAUSE", 0.1)
    with_pages(live, site, {"/up": 200})
    assert deploy(live) == int(named)
    assert ("does not name release" in last_outcome(live)) is named


def test_a_steady_wrong_answer_is_told_at_once(
    live: Host, site: Callable[..., Any], answers: Answers, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    use_real_pages(live, monkeypatch, health_path="/")
    monkeypatch.setattr(pages, "STEADY_SECONDS", 0.2)
    monkeypatch.setattr(pages, "ANSWERED_PAUSE", 0.1)
    answers.override["exception"] = {"traceback": TRACEBACK.format(folder=live.path(NEW))}
    server = with_pages(live, site, {"/": 500})
    assert deploy(live) == 1
    text = capsys.readouterr().out
    assert "Cause: ValueError: no (notes/views.py, line 14). The health check is app_health_path" in text
    assert len(server.seen) <= 6
    assert "failed at health_check: health check /: status 500 instead of 200. ValueError: no" in last_outcome(live)


def test_an_answer_of_503_is_waited_for(
    live: Host, site: Callable[..., Any], answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_real_pages(live, monkeypatch, health_path="/", health_names_release=False)
    monkeypatch.setattr(pages, "STEADY_SECONDS", 0.2)
    monkeypatch.setattr(pages, "ANSWERED_PAUSE", 0.1)
    server = with_pages(live, site, {"/": 503})
    threading.Timer(1, lambda: server.pages.update({"/": 200})).start()
    assert deploy(live) == 0


@pytest.mark.parametrize(("before", "status"), [(200, 1), (404, 1), (500, 0), (0, 1)])
@pytest.mark.parametrize("action", ["deploy", "rollback"])
def test_a_broken_page_fails_the_release_unless_it_was_broken_before(
    live: Host, site: Callable[..., Any], answers: Answers, monkeypatch: pytest.MonkeyPatch, action: str, before: int,
    status: int, capsys: Any,
) -> None:  # fmt: skip
    live.settings = replace(live.settings, warmup_paths=["/page"])
    with_pages(live, site, {"/page": 500})
    if before:
        with_pages(live, site, {"/page": before}, OLD)
    if action == "rollback":
        (live.path(NEW) / "build.json").write_text(json.dumps({"id": NEW, "workers": {}}))
    assert deploy(live, action=action) == status
    assert live.current_release() == (OLD if status else NEW)
    text = capsys.readouterr().out
    assert "the page /page (app_warmup_paths) answers 500" in text
    assert ("No exception was raised: /page itself answers so." in text) is bool(status)


def test_a_page_that_does_not_answer_is_a_warning(
    live: Host, answers: Answers, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(health, "warm_up", lambda *_: {"/slow": [0, 0], "/": [0, 200]})
    assert deploy(live) == 0
    assert capsys.readouterr().out.count("does not answer within") == 1


def test_a_process_killed_for_memory_is_named(
    live: Host, answers: Answers, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(health, "problem", lambda *_: "no answer (Connection refused)")
    monkeypatch.setattr(
        live.manager, "recent_logs", lambda *_, **__: "A process of this unit has been killed by the OOM killer."
    )
    assert deploy(live) == 1
    assert "Raise app_web.memory_mb" in capsys.readouterr().out
    assert "Raise app_web.memory_mb" in last_outcome(live)
