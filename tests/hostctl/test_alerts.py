"""Alerts reach a mail server, a webhook and a topic of ntfy, which are real servers here; and which ones are sent."""

from __future__ import annotations

import base64
import email
import json
import os
import socketserver
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from email.message import EmailMessage
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from authority import Authority

from hostctl import cli
from hostctl.backup.configuration import Configuration as BackupConfiguration
from hostctl.backup.state import State, lock
from hostctl.deploy.record import Record
from hostctl.doctor import checks, commands
from hostctl.doctor.configuration import Configuration
from hostctl.doctor.finding import BAD, OK, WARN, Check, Context, Finding
from hostctl.host import Host
from hostctl.processes.state import ProcessState
from hostctl.settings import ReleaseError, Settings, utc
from hostctl.watch import alerts, heartbeat, new_release, pause, run, send, tasks, textfile, trial
from tests.hostctl.fakes import NEW, OLD, Manager, make_release

ALL_CHECKS = checks.CHECKS
NOON = 1795953600.0
QUEUES = Finding(BAD, "default: the oldest task has waited for 6 min (limit 5 min)", "shopctl logs worker-default")
DISK = Finding(BAD, "/: 93 % used (limit 90 %)", "du -xh / | sort -h | tail")
WELL = Finding(OK, "12 % used")
PENDING = Finding(WARN, "the oldest task has waited for 70 s", "shopctl logs", alert=True)


# --- Servers


class MailServer(socketserver.ThreadingTCPServer):
    """Speaks as much SMTP as a client needs; keeps what it gets. `refuses` has the answer to a command."""

    daemon_threads, allow_reuse_address = True, True

    def __init__(self, certificate: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), MailHandler)
        self.certificate = certificate
        self.mails: list[tuple[list[str], EmailMessage]] = []
        self.logins: list[tuple[str, str]] = []
        self.refuses: dict[str, str] = {}
        # Seconds until the answer to a message.
        self.delay, self.ended = 0.0, threading.Event()

    @property
    def port(self) -> int:
        return self.server_address[1]

    @property
    def subjects(self) -> list[str]:
        return [mail["Subject"] for _, mail in self.mails]


class MailHandler(socketserver.StreamRequestHandler):
    server: MailServer

    def answer(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())

    def handle(self) -> None:
        self.answer("220 sink")
        recipients: list[str] = []
        while line := self.rfile.readline().decode().strip():
            command = line.split()[0].upper()
            refusal = next((text for start, text in self.server.refuses.items() if line.upper().startswith(start)), "")
            if refusal:
                self.answer(refusal)
            elif command == "EHLO":
                self.answer("250-sink\r\n250-STARTTLS\r\n250 AUTH PLAIN" if self.server.certificate else "250 sink")
            elif command == "STARTTLS":
                self.answer("220 begin")
                self.request = self.server.certificate.wrap_socket(self.request, server_side=True)
                self.setup()
            elif command == "AUTH":
                _, user, password = base64.b64decode(line.split()[2]).decode().split("\0")
                self.server.logins.append((user, password))
                self.answer("235 welcome")
            elif command == "DATA":
                self.answer("354 go on")  # language-lint: allow goes on
                lines = []
                while (part := self.rfile.readline()) != b".\r\n":
                    lines.append(part.removeprefix(b".") if part.startswith(b"..") else part)
                mail = email.message_from_bytes(b"".join(lines).replace(b"\r\n", b"\n"), policy=default)
                self.server.mails.append((recipients, mail))
                if self.server.ended.wait(self.server.delay):
                    return
                self.answer("250 taken")
            elif command == "QUIT":
                self.answer("221 bye")
                return
            else:
                recipients += [line] if command == "RCPT" else []
                self.answer("250 ok")


class WebServer(ThreadingHTTPServer):
    """Keeps requests; `status` is that of its answers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), WebHandler)
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.status, self.headers = 200, {}
        # Seconds until an answer.
        self.delay, self.ended = 0.0, threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def paths(self) -> list[str]:
        return [path for _, path, _, _ in self.requests]


class WebHandler(BaseHTTPRequestHandler):
    server: WebServer

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path, dict(self.headers), body))
        self.server.ended.wait(self.server.delay)
        with suppress(OSError):
            self.respond()

    def respond(self) -> None:
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET  # noqa: N815

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def served(server: Any) -> Iterator[Any]:
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.ended.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def mail() -> Iterator[MailServer]:
    yield from served(MailServer())


@pytest.fixture
def secure_mail(authority: Authority, tmp_path: Path) -> Iterator[MailServer]:
    """A mail server with TLS, whose certificate the tests' own authority has issued for 127.0.0.1."""
    pair = authority.issue("127.0.0.1")
    (tmp_path / "server.pem").write_text(pair.chain + pair.key)
    (tmp_path / "root.pem").write_text(authority.chain)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    yield from served(MailServer(context))


@pytest.fixture
def web() -> Iterator[WebServer]:
    yield from served(WebServer())


# --- A host


@pytest.fixture
def configuration(settings: Settings, tmp_path: Path) -> Configuration:
    return Configuration(
        "shop", host="vps1", url="https://shop.example.org/", sender="Shop <shop@shop.example.org>",
        etc=tmp_path / "etc", state=tmp_path / "lib", web=tmp_path / "www",
        run=tmp_path / "run",
    )  # fmt: skip


@pytest.fixture
def context(settings: Settings, configuration: Configuration, monkeypatch: pytest.MonkeyPatch) -> Context:
    """The watch of a host that was started long ago, and has no channel yet."""
    monkeypatch.setattr(pause, "seconds_up", lambda: 1e6)
    monkeypatch.setattr(alerts, "seconds_up", lambda: 1e6)
    monkeypatch.setattr(pause, "POSTGRESQL_UPGRADE", configuration.state / "upgrade.json")
    monkeypatch.setattr(alerts, "UNITS", configuration.etc)
    monkeypatch.setattr(checks, "CHECKS", (Check("web", lambda context: None, pauses=True),))
    return Context(Host(replace(settings, status_path="/ops/status/")), configuration, watches=True, now=NOON)


def set_channels(context: Context, *emails: str, **urls: str) -> None:
    """Set channels as the role monitoring does; the URLs by their names in lowercase."""
    lines = [f'{name.upper()}="{value}"\n' for name, value in urls.items()]
    path = context.configuration.etc / "shop/monitoring.env"
    path.write_text("".join(lines))
    context.configuration = replace(context.configuration, emails=list(emails))


def minute(context: Context, seconds: float = 60, **found: Finding) -> None:
    """The watch runs: with memory as it reads it from its file."""
    context.memory = json.loads(json.dumps(context.memory))
    alerts.process(context, found)
    heartbeat.beat(context)
    context.now += seconds


@pytest.fixture
def mailed(context: Context, mail: MailServer) -> MailServer:
    set_channels(context, "ops@example.org", mail_url=f"smtp://127.0.0.1:{mail.port}")
    return mail


# --- What is told, and when


def test_a_finding_is_told_once_after_two_runs_and_once_when_it_is_over(context: Context, mailed: MailServer) -> None:
    minute(context, queues=QUEUES)
    assert mailed.subjects == []
    for _ in range(4):
        minute(context, queues=QUEUES)
    assert mailed.subjects == ["[shop on vps1] bad: queues"]
    minute(context, queues=WELL)
    assert len(mailed.mails) == 1
    for _ in range(3):
        minute(context, queues=WELL)
    assert mailed.subjects[1:] == ["[shop on vps1] over: queues"]
    assert "It lasted 5 min, from 2026-11-29 12:00 UTC." in mailed.mails[1][1].get_content()
    assert context.memory["alerts"] == {}


def test_a_message_says_what_since_when_and_what_to_do(context: Context, mailed: MailServer) -> None:
    two_lines = replace(QUEUES, remedy="shopctl status\nshopctl logs worker-default")
    minute(context, queues=two_lines)
    minute(context, queues=two_lines)
    recipients, mail = mailed.mails[0]
    assert recipients == ["rcpt TO:<ops@example.org>"]
    assert (mail["From"], mail["To"], mail["Auto-Submitted"]) == (
        "Shop <shop@shop.example.org>", "ops@example.org", "auto-generated",
    )  # fmt: skip
    assert mail.get_content() == (
        "BAD: queues\n"
        "  default: the oldest task has waited for 6 min (limit 5 min)\n"
        "  Since 2026-11-29 12:00 UTC (60 s).\n"
        "  To do: shopctl status\n"
        "         shopctl logs worker-default\n"
        "\n"
        "To look:    ssh vps1, then sudo shopctl doctor\n"
        "To see it:  https://shop.example.org/ops/status/\n"
        "Written:    2026-11-29 12:01 UTC\n"
    )


def test_one_bad_run_and_a_warning_are_not_told(context: Context, mailed: MailServer) -> None:
    for finding in (QUEUES, WELL, QUEUES, WELL, Finding(WARN, "a bit late"), Finding(WARN, "a bit late"), WELL, WELL):
        minute(context, queues=finding)
    assert mailed.subjects == []


def test_a_warning_that_alerts_is_told_again_when_it_becomes_worse(context: Context, mailed: MailServer) -> None:
    for finding in (PENDING, PENDING, PENDING, QUEUES, QUEUES, QUEUES, PENDING, PENDING, QUEUES, QUEUES):
        minute(context, queues=finding)
    assert mailed.subjects == ["[shop on vps1] warn: queues", "[shop on vps1] bad: queues"]


def test_what_stays_is_told_again_after_a_day(context: Context, mailed: MailServer) -> None:
    minute(context, queues=QUEUES)
    minute(context, 24 * 3600 - 60, queues=QUEUES)
    minute(context, queues=QUEUES)
    assert len(mailed.mails) == 1
    minute(context, queues=QUEUES)
    minute(context, queues=QUEUES)
    assert mailed.subjects[1:] == ["[shop on vps1] still bad: queues"]


def test_what_changes_together_is_one_message(context: Context, mailed: MailServer) -> None:
    minute(context, queues=QUEUES, disk=DISK, web=PENDING)
    minute(context, queues=QUEUES, disk=DISK, web=PENDING)
    minute(context, queues=WELL, redis=DISK)
    minute(context, queues=WELL, redis=DISK)
    assert mailed.subjects == [
        "[shop on vps1] bad: queues, disk; warn: web",
        # Those that are no longer found at all are over, too.
        "[shop on vps1] bad: redis; over: queues, disk, web",
    ]
    assert "is no longer checked" in mailed.mails[1][1].get_content()


def test_one_good_run_is_not_the_end(context: Context, mailed: MailServer) -> None:
    for finding in (QUEUES, QUEUES, WELL, QUEUES, WELL, QUEUES):
        minute(context, queues=finding)
    assert len(mailed.mails) == 1


def test_a_milder_finding_is_not_the_end(context: Context, mailed: MailServer) -> None:
    """Also one of which no alert is sent. It is open until all is well, and does not alternate with the bad one."""
    late = Finding(WARN, "44 of 50 connections are in use")
    for finding in (QUEUES, QUEUES, late, late, late, QUEUES, QUEUES, late):
        minute(context, postgresql=finding)
    assert mailed.subjects == ["[shop on vps1] bad: postgresql"]
    # After a while, it is news when it becomes bad again.
    for finding in (late, late, QUEUES, QUEUES):
        minute(context, alerts.MILDER, postgresql=finding)
    assert mailed.subjects[1:] == ["[shop on vps1] bad: postgresql"]
    minute(context, postgresql=WELL)
    minute(context, postgresql=WELL)
    assert mailed.subjects[2:] == ["[shop on vps1] over: postgresql"]


def test_without_a_channel_nothing_counts_as_told(context: Context, mail: MailServer) -> None:
    for _ in range(3):
        minute(context, queues=QUEUES)
    set_channels(context, "ops@example.org", mail_url=f"smtp://127.0.0.1:{mail.port}")
    minute(context, queues=QUEUES)
    minute(context, queues=QUEUES)
    assert mail.subjects == ["[shop on vps1] bad: queues"]


# --- Pauses


def test_what_a_deployment_causes_is_not_told(context: Context, mailed: MailServer) -> None:
    record = Record(context.settings)
    record.hold()
    record.begin("deploy", NEW, "anna")
    for _ in range(3):
        minute(context, web=QUEUES)
    assert mailed.subjects == []
    # What stays is told two runs after its end.
    record.end(0, "deployed")
    record.release()
    minute(context, web=QUEUES)
    assert mailed.subjects == []
    minute(context, web=QUEUES)
    assert mailed.subjects == ["[shop on vps1] bad: web"]


def test_other_checks_are_told_during_a_deployment(context: Context, mailed: MailServer) -> None:
    record = Record(context.settings)
    record.hold()
    minute(context, disk=DISK, web=QUEUES)
    minute(context, disk=DISK, web=QUEUES)
    record.release()
    assert mailed.subjects == ["[shop on vps1] bad: disk"]


def test_a_pause_ends_after_a_quarter_of_an_hour(context: Context, mailed: MailServer) -> None:
    link = context.configuration.web / "shop/maintenance"
    link.parent.mkdir(parents=True)
    link.symlink_to("maintenance-pages")
    for _ in range(16):
        minute(context, web=QUEUES)
    assert mailed.subjects == []
    minute(context, web=QUEUES)
    assert mailed.subjects == ["[shop on vps1] bad: web"]


def test_maintenance_also_explains_a_new_release(context: Context) -> None:
    link = context.configuration.web / "shop/maintenance"
    link.parent.mkdir(parents=True)
    link.symlink_to("maintenance-pages")
    assert pause.quiet_checks(context) == {"web", "release"}


def test_a_killed_deployment_is_no_pause(context: Context, mailed: MailServer) -> None:
    record = Record(context.settings)
    record.hold()
    record.begin("deploy", NEW, "anna")
    record.release()
    minute(context, web=QUEUES)
    minute(context, web=QUEUES)
    assert len(mailed.mails) == 1


def test_a_restore_also_explains_the_database(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = BackupConfiguration("shop", state=context.settings.root)
    monkeypatch.setattr(pause.BackupConfiguration, "load", lambda settings: configuration)
    assert pause.quiet_checks(context) == set()
    # One that was killed explains nothing.
    State(configuration, "restore").write(step="stop")
    assert pause.quiet_checks(context) == set()
    with lock(configuration, "work"):
        assert pause.quiet_checks(context) == {"web", "postgresql", "backup", "offsite", "release"}
    # Another holder of the lock, such as a backup.
    State(configuration, "restore").write(accepted=True)
    with lock(configuration, "work"):
        assert pause.quiet_checks(context) == set()


def test_a_boot_an_upgrade_of_postgresql_and_a_stopped_application_explain_findings(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert pause.quiet_checks(context) == set()
    pause.POSTGRESQL_UPGRADE.parent.mkdir(parents=True)
    pause.POSTGRESQL_UPGRADE.write_text('{"step": "copying"}')
    assert "postgresql" in pause.quiet_checks(context)
    pause.POSTGRESQL_UPGRADE.write_text('{"step": "done"}')
    assert pause.quiet_checks(context) == set()
    monkeypatch.setattr(pause, "seconds_up", lambda: 100)
    assert "redis" in pause.quiet_checks(context)
    monkeypatch.setattr(pause, "seconds_up", lambda: 200)
    program = tmp_path / "bin/systemctl"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\n[ "$2" = shop.service ] && echo inactive\nexit 3\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert pause.quiet_checks(context) == set()
    make_release(context.host, OLD)
    context.host.switch(OLD)
    del context.release
    assert pause.quiet_checks(context) == {"web", "release"}


# --- Channels


def test_a_channel_that_fails_does_not_stop_another_and_gets_the_message_later(
    context: Context, mail: MailServer, web: WebServer
) -> None:
    set_channels(
        context, "ops@example.org", mail_url=f"smtp://127.0.0.1:{mail.port}", webhook_url=f"{web.url}/hook/secret"
    )
    mail.refuses["MAIL"] = "451 4.7.1 greylisted, try again"
    minute(context, queues=QUEUES)
    minute(context, queues=QUEUES)
    minute(context, queues=QUEUES)
    assert (len(mail.mails), web.paths) == (0, ["/hook/secret"])
    sent = context.memory["alerts_sent"]
    assert sent["mail"]["failed_at"] == NOON + 120
    assert sent["mail"]["problem"] == f"127.0.0.1:{mail.port}: it answered 451 4.7.1 greylisted, try again"
    assert sent["webhook"] == {"problem": "", "ok_at": NOON + 60, "event": "bad"}
    # The other channel gets the next message, not the first one again.
    minute(context, queues=WELL)
    minute(context, queues=WELL)
    assert [json.loads(body)["event"] for _, _, _, body in web.requests] == ["bad", "over"]
    mail.refuses.clear()
    minute(context, queues=WELL)
    minute(context, queues=WELL)
    assert mail.subjects == ["[shop on vps1] bad: queues", "[shop on vps1] over: queues"]
    assert len(web.requests) == 2
    assert context.memory["alerts_waiting"] == []


def test_a_webhook_gets_json(context: Context, web: WebServer) -> None:
    set_channels(context, webhook_url=f"{web.url}/hook")
    minute(context, disk=replace(DISK, text='a "quoted"\nGröße'), queues=PENDING)
    minute(context, disk=replace(DISK, text='a "quoted"\nGröße'), queues=PENDING)
    command, path, headers, body = web.requests[0]
    assert (command, path, headers["Content-Type"]) == ("POST", "/hook", "application/json")
    got = json.loads(body)
    assert (got["name"], got["host"], got["event"], got["title"]) == (
        "shop", "vps1", "bad", "[shop on vps1] bad: disk; warn: queues",
    )  # fmt: skip
    assert got["checks"][0] == {
        "name": "disk", "state": "bad", "text": 'a "quoted"\nGröße', "remedy": DISK.remedy, "since": NOON,
    }  # fmt: skip
    assert "To do: du -xh" in got["text"]
    minute(context, queues=PENDING)
    minute(context, queues=PENDING)
    over = json.loads(web.requests[1][3])
    assert (over["event"], over["checks"][0]["state"], over["checks"][0]["lasted"]) == ("over", "ok", 120)


def test_ntfy_gets_text_with_a_title(context: Context, web: WebServer) -> None:
    url = web.url.replace("http://", "http://:tk_token@")
    set_channels(context, ntfy_url=f"{url}/shop")
    context.configuration = replace(context.configuration, host="größe\r\nX-Evil: 1")
    for _ in range(2):
        minute(context, queues=replace(QUEUES, text="ä" * 5000))
    command, path, headers, body = web.requests[0]
    assert (command, path, headers["Priority"], headers["Tags"]) == ("POST", "/shop", "high", "rotating_light")
    title = headers["Title"].removeprefix("=?UTF-8?B?").removesuffix("?=")
    assert base64.b64decode(title).decode() == "[shop on größe X-Evil: 1] bad: queues"
    assert "X-Evil" not in headers
    assert headers["Authorization"] == "Basic " + base64.b64encode(b":tk_token").decode()
    # ntfy makes a file of what is longer than 4096 bytes.
    assert len(body) < 4096
    assert body.decode().endswith("ä\n…")


def test_texts_cannot_add_headers_to_a_mail(context: Context, mailed: MailServer) -> None:
    context.configuration = replace(context.configuration, host="größe\r\nBcc: x@example.org")
    for _ in range(2):
        minute(context, queues=replace(QUEUES, text='Grüße\r\n.\r\n"quoted"\r\nQUIT'))
    recipients, message = mailed.mails[0]
    assert len(recipients) == 1
    assert message["Bcc"] is None
    assert message["Subject"] == "[shop on größe Bcc: x@example.org] bad: queues"
    assert '  Grüße\n  .\n  "quoted"\n  QUIT\n' in message.get_content()


def test_mail_by_starttls_with_a_password(
    context: Context, secure_mail: MailServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "root.pem"))
    user, password = "shop@example.org", "p:a/s?s@w#d%"
    url = f"smtp://{quote(user, safe='')}:{quote(password, safe='')}@127.0.0.1:{secure_mail.port}/?tls=true"
    set_channels(context, "ops@example.org", "on-call@example.org", mail_url=url)
    minute(context, queues=QUEUES)
    minute(context, queues=QUEUES)
    assert secure_mail.logins == [(user, password)]
    assert [len(recipients) for recipients, _ in secure_mail.mails] == [2]


def test_a_certificate_that_is_not_trusted_is_refused(
    context: Context, secure_mail: MailServer, capsys: pytest.CaptureFixture[str]
) -> None:
    set_channels(context, "o@example.org", mail_url=f"smtps://u:hunter2-secret@127.0.0.1:{secure_mail.port}")
    assert trial.run(context, only_changed=False, json_output=False) == 1
    assert "its certificate is not accepted: " in capsys.readouterr().out
    assert secure_mail.logins == []


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("smtp://host", ("host", 25, "", "", False, False)),
        ("smtp://u%40x:p%3Aw@host:587/?tls=true", ("host", 587, "u@x", "p:w", True, False)),
        ("smtp://host:465", ("host", 465, "", "", False, True)),
        ("smtp://host:2465/?ssl=True", ("host", 2465, "", "", False, True)),
        ("smtps://host", ("host", 587, "", "", True, False)),
        ("smtp+ssl://host", ("host", 465, "", "", False, True)),
        ("submission://host", ("host", 587, "", "", True, False)),
    ],
)
def test_the_url_of_the_mail_server_is_read_as_the_application_does(url: str, expected: tuple[Any, ...]) -> None:
    assert tuple(vars(send.mail_server(url)).values()) == expected


@pytest.mark.parametrize("url", ["", "file:///srv/mail", "smtp://host:port"])
def test_what_is_no_mail_server_is_said(url: str) -> None:
    with pytest.raises(send.SendError, match="app_email_url"):
        send.mail_server(url)


def test_an_address_that_is_refused_does_not_keep_the_others_from_getting_it_once(
    context: Context, mail: MailServer
) -> None:
    set_channels(context, "gone@example.org", "ops@example.org", mail_url=f"smtp://127.0.0.1:{mail.port}")
    mail.refuses["RCPT TO:<GONE"] = "550 no such user"
    for _ in range(4):
        minute(context, queues=QUEUES)
    assert len(mail.mails) == 1
    assert "refused gone@example.org: 550 no such user" in context.memory["alerts_sent"]["mail"]["problem"]


def test_a_redirect_of_a_post_is_a_failure(context: Context, web: WebServer) -> None:
    web.status, web.headers = 301, {"Location": "https://elsewhere.example.org/token"}
    set_channels(context, webhook_url=f"{web.url}/hook")
    minute(context, queues=QUEUES)
    minute(context, queues=QUEUES)
    assert len(web.requests) == 1
    assert context.memory["alerts_sent"]["webhook"]["problem"] == (
        f"{web.url}: status 301, a redirect to https://elsewhere.example.org: set the URL that it leads to"
    )


def test_http_goes_through_the_proxy_of_the_host(context: Context, web: WebServer) -> None:
    """But not to what it is not for."""
    proxies = {"http_proxy": web.url, "https_proxy": web.url, "no_proxy": "localhost,.example.net"}
    context.host.settings = replace(context.settings, proxy_environment=proxies)
    set_channels(context, webhook_url="http://hooks.example.org/x", ntfy_url="http://ntfy.example.net:9/shop")
    minute(context, queues=QUEUES)
    minute(context, queues=QUEUES)
    assert web.paths == ["http://hooks.example.org/x"]
    assert context.memory["alerts_sent"]["ntfy"]["problem"].startswith("http://ntfy.example.net:9: ")


def test_no_secret_is_in_what_is_remembered(context: Context, web: WebServer) -> None:
    web.status = 404
    set_channels(
        context, "ops@example.org", mail_url="smtp://u:hunter2-secret@127.0.0.1:1/?tls=true",
        webhook_url=f"{web.url}/hunter2-secret", ntfy_url=f"{web.url}/a b?auth=hunter2-secret",
        heartbeat_url=f"{web.url}/hunter2-secret",
    )  # fmt: skip
    minute(context, queues=QUEUES)
    minute(context, queues=QUEUES)
    sent = context.memory["alerts_sent"]
    assert {name: bool(one["problem"]) for name, one in sent.items()} == dict.fromkeys(
        ("mail", "webhook", "ntfy", "heartbeat"), True
    )
    assert "hunter2" not in json.dumps(sent)


def test_a_server_that_does_not_answer_gets_a_message_a_few_times_only(
    context: Context, mail: MailServer, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the whole message, and may have taken it each time, as with a slow check of its content."""
    monkeypatch.setattr(send, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(send, "TAKING_SECONDS", 0.1)
    set_channels(context, "ops@example.org", mail_url=f"smtp://127.0.0.1:{mail.port}", webhook_url=web.url)
    mail.delay = web.delay = 20
    for _ in range(8):
        minute(context, queues=QUEUES)
    assert (len(mail.mails), len(web.requests)) == (send.MOST_UNANSWERED, send.MOST_UNANSWERED)
    sent = context.memory["alerts_sent"]
    assert sent["mail"]["problem"] == f"127.0.0.1:{mail.port}: it got the message, and did not answer in 0.1 s"
    assert sent["webhook"]["problem"] == f"{web.url}: it got the message, and did not answer in 0.1 s"
    assert context.memory["alerts_waiting"] == []


def test_a_message_that_a_server_does_not_accept_is_tried_until_it_does(context: Context, mail: MailServer) -> None:
    set_channels(context, "ops@example.org", mail_url=f"smtp://127.0.0.1:{mail.port}")
    mail.refuses["DATA"] = "421 later"
    for _ in range(8):
        minute(context, queues=QUEUES)
    assert mail.mails == []
    mail.refuses.clear()
    minute(context, queues=QUEUES)
    assert len(mail.mails) == 1


def test_a_mail_server_may_check_the_content_for_a_while(
    context: Context, mail: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send, "ANSWER_SECONDS", 0.1)
    set_channels(context, "ops@example.org", mail_url=f"smtp://127.0.0.1:{mail.port}")
    mail.delay = 0.3
    for _ in range(3):
        minute(context, queues=QUEUES)
    assert len(mail.mails) == 1
    assert context.memory["alerts_sent"]["mail"]["problem"] == ""


def test_a_run_ends_before_its_time_limit() -> None:
    """TimeoutStartSec of roles/monitoring/templates/watch.service.j2 is 90 s; systemctl and SQLite have 5 s each."""
    slowest_check = max(check.seconds for check in ALL_CHECKS)
    parts = (run.PATIENCE, slowest_check, tasks.SECONDS, 5, 5, 5, send.SECONDS, send.ANSWER_SECONDS)
    assert sum(parts) < 90
    # Greeting, content, and the commands in between.
    assert send.ANSWER_SECONDS + send.TAKING_SECONDS < send.SECONDS


def test_messages_that_no_channel_takes_are_bounded(context: Context) -> None:
    set_channels(context, webhook_url="http://127.0.0.1:1/")
    for _ in range(30):
        minute(context, 3600, queues=QUEUES)
        minute(context, 3600, queues=QUEUES)
        minute(context, 3600, queues=WELL)
        minute(context, 3600, queues=WELL)
    assert len(context.memory["alerts_waiting"]) == send.KEPT
    assert context.memory["alerts_waiting"][-1]["message"]["event"] == "over"


# --- The heartbeat


def test_the_heartbeat_fails_while_something_is_broken(context: Context, web: WebServer) -> None:
    set_channels(context, heartbeat_url=f"{web.url}/ping/uuid?x=1")
    for finding in (WELL, QUEUES, QUEUES, WELL, WELL):
        minute(context, queues=finding)
    well, failing = "/ping/uuid?x=1", "/ping/uuid/fail?x=1"
    assert web.paths == [well, well, failing, failing, well]
    assert [command for command, _, _, _ in web.requests] == ["GET"] * 5


def test_a_heartbeat_that_fails_is_remembered(context: Context, web: WebServer) -> None:
    set_channels(context, heartbeat_url="http://127.0.0.1:1/ping/uuid")
    minute(context, disk=WELL)
    assert context.memory["alerts_sent"]["heartbeat"]["problem"] == "http://127.0.0.1:1: Connection refused"
    set_channels(context, heartbeat_url=f"{web.url}/ping")
    # Bad because of the heartbeat alone: no failure is reported by it.
    for _ in range(3):
        minute(context, alerts=QUEUES)
    assert web.paths == ["/ping"] * 3


def test_the_heartbeat_fails_when_no_channel_takes_messages(context: Context, web: WebServer) -> None:
    set_channels(context, webhook_url="http://127.0.0.1:1/", heartbeat_url=f"{web.url}/ping")
    for finding in (PENDING, PENDING, PENDING, PENDING):
        minute(context, queues=finding)
    assert web.paths == ["/ping", "/ping", "/ping", "/ping/fail"]


# --- The test message


def test_the_test_message_says_what_each_channel_did(
    context: Context, mail: MailServer, capsys: pytest.CaptureFixture[str]
) -> None:
    set_channels(
        context, "ops@example.org", mail_url=f"smtp://127.0.0.1:{mail.port}", webhook_url="http://127.0.0.1:1/token"
    )
    assert trial.run(context, only_changed=False, json_output=False) == 1
    assert capsys.readouterr().out.splitlines() == [
        "mail to ops@example.org: sent",
        "webhook to http://127.0.0.1:1: Connection refused",
    ]
    assert mail.subjects == ["[shop on vps1] test: alerts arrive"]


def test_provisioning_tests_new_and_failed_channels_only(
    context: Context, web: WebServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def provision() -> dict[str, Any]:
        trial.run(context, only_changed=True, json_output=True)
        return json.loads(capsys.readouterr().out)

    assert provision() == {"changed": False, "lines": [], "failed": [], "warning": ""}
    set_channels(context, webhook_url=f"{web.url}/a", ntfy_url="http://127.0.0.1:1/shop")
    first = provision()
    assert first["changed"]
    assert len(first["lines"]) == 2
    assert first["failed"] == ["ntfy to http://127.0.0.1:1: Connection refused"]
    # The other channel gets them.
    assert first["warning"] == "alerts of vps1 do not arrive by ntfy; they do by webhook."
    assert len(provision()["lines"]) == 1
    set_channels(context, webhook_url=f"{web.url}/a", ntfy_url=f"{web.url}/shop")
    assert provision()["failed"] == []
    assert provision() == {"changed": False, "lines": [], "failed": [], "warning": ""}
    set_channels(context, webhook_url=f"{web.url}/b", ntfy_url=f"{web.url}/shop")
    assert provision()["lines"] == [f"webhook to {web.url}: sent"]
    assert web.paths == ["/a", "/shop", "/b"]
    assert json.loads(web.requests[0][3])["event"] == "test"
    assert alerts.test_file(context).stat().st_mode & 0o777 == 0o600
    set_channels(context, ntfy_url="http://127.0.0.1:1/shop")
    assert provision()["warning"] == "no alert of vps1 arrives: ntfy failed."


def test_the_command(
    context: Context, web: WebServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/local/sbin/shopctl"])
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(cli.Settings, "load", lambda path: context.settings)
    places = {"etc": context.configuration.etc, "state": context.configuration.state}
    monkeypatch.setattr(commands.Configuration, "load", lambda settings: Configuration("shop", host="vps1", **places))
    assert cli.main(["alert", "test"]) == 1
    assert "No channel is set: set app_alert_emails, app_alert_webhook" in capsys.readouterr().out
    set_channels(context, webhook_url=f"{web.url}/hook")
    assert cli.main(["alert", "test"]) == 0
    assert capsys.readouterr().out == f"webhook to {web.url}: sent\n"
    assert json.loads(web.requests[0][3])["title"] == "[shop on vps1] test: alerts arrive"
    assert cli.main(["alert"]) == 2


# --- The doctor's line


@pytest.fixture
def timer(context: Context) -> Path:
    """The units of the watch, which ran a minute ago."""
    context.watches, context.now = False, time.time()
    timer = context.configuration.etc / "shop-watch.timer"
    timer.touch()
    return timer


def assert_can_be_typed(finding: Finding) -> None:
    """Each line of a remedy is a command of Seedbed, Ansible or systemd as it is, or a comment of the shell."""
    for line in finding.remedy.splitlines():
        assert line.startswith(("# ", "shopctl ", "ansible-playbook -i INVENTORY ", "systemctl ")), line
        done = subprocess.run(["bash", "-n", "-c", line], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_line_names_channels_and_the_last_message(context: Context, timer: Path, mail: MailServer) -> None:
    found = alerts.look(context)
    assert_can_be_typed(found)
    assert (found.state, found.alerts) == (WARN, False)
    assert "no one is told when something breaks: set app_alert_emails, app_alert_webhook or" in found.text
    set_channels(
        context, "o@example.org", mail_url=f"smtp://127.0.0.1:{mail.port}", heartbeat_url="http://127.0.0.1:1/"
    )
    assert alerts.look(context).text == "mail to o@example.org, nothing sent yet; no heartbeat yet"
    trial.run(context, only_changed=False, json_output=False)
    context.memory["alerts_sent"] = {"heartbeat": {"ok_at": context.now - 40, "problem": ""}}
    found = alerts.look(context)
    moment = time.strftime("%F %H:%M UTC", time.gmtime(context.now))
    assert (found.state, found.text) == (OK, f"mail to o@example.org, last sent {moment} (test); heartbeat 40 s ago")


def test_the_line_says_what_failed_until_it_works(context: Context, timer: Path, mail: MailServer) -> None:
    set_channels(context, "o@example.org", mail_url=f"smtp://127.0.0.1:{mail.port}", webhook_url="http://127.0.0.1:1/")
    context.memory["alerts_sent"] = {"mail": {"failed_at": context.now - 60, "problem": "it refused user and password"}}
    found = alerts.look(context)
    assert (found.state, found.alerts) == (BAD, True)
    assert found.text == "mail failed 60 s ago: it refused user and password"
    assert found.remedy.splitlines()[-1] == "shopctl alert test"
    assert_can_be_typed(found)
    # The only channel cannot tell it.
    set_channels(context, "o@example.org", mail_url=f"smtp://127.0.0.1:{mail.port}")
    assert not alerts.look(context).alerts
    trial.run(context, only_changed=False, json_output=False)
    assert alerts.look(context).state == OK


def test_the_line_says_what_pauses_alerts(context: Context, timer: Path, mailed: MailServer) -> None:
    context.watches = False
    assert "paused" not in alerts.look(context).text
    link = context.configuration.web / "shop/maintenance"
    link.parent.mkdir(parents=True)
    link.symlink_to("pages")
    found, until = alerts.look(context), utc(context.now + 900)
    assert (found.state, found.text.partition("; ")[2]) == (
        OK, f"paused until {until} at most (maintenance mode): release, web",
    )  # fmt: skip
    # As the watch has seen it first.
    context.memory["pauses"] = {pause.maintenance(context).name: context.now - 600}
    assert f"paused until {utc(context.now + 300)} at most (" in alerts.look(context).text
    context.memory["pauses"] = {pause.maintenance(context).name: context.now - 900}
    assert "paused" not in alerts.look(context).text


def test_prometheus_knows_what_pauses_alerts(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def paused() -> set[str]:
        text = textfile.describe(context, {"web": WELL, "disk": WELL}, {})
        return {line for line in text.splitlines() if line.startswith("seedbed_alerts_paused{")}

    metric = 'seedbed_alerts_paused{app="shop",check="'
    assert paused() == {f'{metric}web"}} 0', f'{metric}disk"}} 0'}
    monkeypatch.setattr(pause, "causes", lambda context: [pause.Cause("restore", "a restore runs", pause.OF_DATABASE)])
    assert paused() == {f'{metric}web"}} 1', f'{metric}disk"}} 0'}
    # The watch alone remembers since when.
    assert "pauses" not in context.memory


def test_the_line_is_bad_when_the_watch_does_not_run(context: Context, timer: Path) -> None:
    os.utime(timer, (context.now - 3600,) * 2)
    found = alerts.look(context)
    assert (found.state, found.remedy) == (BAD, "systemctl status shop-watch.timer")
    assert found.text == "the watch has not run for 60 min, so no alert is sent"
    memory = context.configuration.state_folder / "memory.json"
    memory.parent.mkdir(parents=True)
    memory.touch()
    assert alerts.look(context).state == WARN
    # On a full disk the watch keeps its memory in /run.
    os.utime(memory, (context.now - 3600,) * 2)
    assert alerts.look(context).state == BAD
    context.configuration.memory_files[1].parent.mkdir(exist_ok=True)
    context.configuration.memory_files[1].touch()
    assert alerts.look(context).state == WARN
    timer.unlink()
    found = alerts.look(context)
    assert "the watch is off" in found.text
    assert_can_be_typed(found)


# --- A new release


@pytest.fixture
def deployed(context: Context, monkeypatch: pytest.MonkeyPatch) -> Context:
    """NEW was deployed in 30 s, and that ended a minute ago."""
    context.host.manager = Manager()
    make_release(context.host, OLD, age=600)
    make_release(context.host, NEW)
    context.host.switch(NEW)
    context.host.manager.start(context.host.units(NEW))
    remember(context, "deploy", NEW, 90, 30)
    monkeypatch.setattr(new_release.health, "problem", lambda *arguments: "")
    return context


def remember(
    context: Context, action: str, release: str, ago: float, seconds: float, previous: str = OLD
) -> None:  # fmt: skip
    since = time.strftime("%FT%TZ", time.gmtime(context.now - ago))
    state = {"action": action, "release": release, "previous": previous, "by": "anna", "since": since}
    state |= {"seconds": seconds, "status": 0, "outcome": "done", "step": "prune"}
    Record(context.settings).remember(state)


def requests_of(context: Context, before: tuple[int, int], after: tuple[int, int]) -> list[list[float]]:
    return [[context.now - 120 - 60 * at, *before] for at in range(10)] + [[context.now - 1, *after]]


def test_the_message_in_the_documentation(deployed: Context, mailed: MailServer) -> None:
    old, new = "91be02-55aa10", "3fa4c0-938f98"
    deployed.now = NOON + 26 * 3600 + 120
    for release, age in ((old, 900), (new, 0)):
        make_release(deployed.host, release, age=age)
    deployed.host.switch(new)
    deployed.host.manager.start(deployed.host.units(new))
    remember(deployed, "deploy", new, 210, 30, previous=old)
    unit = f"shop-worker-default@{new}"
    deployed.host.manager.state[unit] = ProcessState(unit, "active", 1, int(time.time()) - 3600)
    for _ in range(2):
        minute(deployed, release=new_release.look(deployed))
    [(_, mail)] = mailed.mails
    # Its end depends on the settings.
    text = f"Subject: {mail['Subject']}\n\n{mail.get_content()}".partition("To see it")[0]
    guide = (Path(__file__).parents[2] / "docs/monitoring.md").read_text()
    assert textwrap.indent(text, "    ") in guide, text


def test_a_healthy_new_release_is_named(deployed: Context) -> None:
    assert new_release.look(deployed) == Finding(OK, f"{NEW}, deployed 60 s ago by anna, is watched")
    deployed.now += 600
    assert new_release.look(deployed) == Finding(OK, f"{NEW}, deployed 11 min ago by anna")


def test_what_a_person_has_stopped_is_no_fault_of_the_release(
    deployed: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the first thing to type would be a rollback."""
    [web, worker] = deployed.host.units(NEW)
    deployed.host.manager.state[worker] = ProcessState(worker, "inactive", 0)
    assert new_release.look(deployed).state == OK
    deployed.host.manager.state[web] = ProcessState(web, "inactive", 0)
    monkeypatch.setattr(new_release.health, "problem", lambda *arguments: "no answer (No such file or directory)")
    assert new_release.look(deployed).state == OK
    deployed.host.manager.state[web] = ProcessState(web, "failed", 0)
    assert "web: failed" in new_release.look(deployed).text


def test_a_crash_is_bad_until_the_end_of_the_watch(deployed: Context) -> None:
    unit = deployed.host.web_units(NEW)[0]
    deployed.host.manager.state[unit] = ProcessState(unit, "active", 1, int(time.time()) - 3600)
    found = new_release.look(deployed)
    assert (found.state, found.alerts) == (BAD, True)
    assert found.text == f"{NEW}, deployed 60 s ago by anna: web: restarted 1 time"
    assert found.remedy.splitlines() == ["shopctl rollback", f"# It returns to {OLD}.", "shopctl logs"]
    assert_can_be_typed(found)
    deployed.now += 600
    assert new_release.look(deployed).state == OK
    deployed.host.manager.state[unit] = ProcessState(unit, "failed", 5)
    # Only what the watch has found before.
    assert new_release.look(deployed).state == OK


def test_what_lasts_beyond_the_watch_stays_bad(deployed: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_release.health, "problem", lambda *arguments: "status 500 instead of 200")
    assert "health check /healthz/: status 500 instead of 200" in new_release.look(deployed).text
    deployed.now += 600
    assert new_release.look(deployed).state == BAD
    monkeypatch.setattr(new_release.health, "problem", lambda *arguments: "")
    assert new_release.look(deployed).state == OK


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ((100, 0), (300, 6), "6 answers 5xx of 300 requests (2.0%; before 0.0%)"),
        ((100, 0), (300, 5), ""),
        ((100, 0), (700, 6), ""),
        ((100, 1), (300, 9), ""),
        ((100, 1), (300, 10), "10 answers 5xx of 300 requests (3.3%; before 1.0%)"),
    ],
)
def test_errors_are_compared_with_those_before(
    deployed: Context, before: tuple[int, int], after: tuple[int, int], text: str
) -> None:
    deployed.memory["requests"] = requests_of(deployed, before, after)
    found = new_release.look(deployed)
    assert found.state == (BAD if text else OK)
    assert text in found.text


def test_the_share_before_is_kept(deployed: Context) -> None:
    deployed.memory["requests"] = requests_of(deployed, (100, 10), (100, 10))
    new_release.look(deployed)
    deployed.memory = json.loads(json.dumps(deployed.memory))
    deployed.memory["requests"] = [[deployed.now - 1, 100, 12]]
    assert new_release.look(deployed).state == OK


def test_a_rollback_and_a_running_deployment_are_not_watched(deployed: Context) -> None:
    unit = deployed.host.web_units(OLD)[0]
    deployed.host.switch(OLD)
    deployed.host.manager.state[unit] = ProcessState(unit, "failed", 5)
    assert new_release.look(deployed) == Finding(OK, OLD)
    remember(deployed, "rollback", OLD, 5, 4)
    assert new_release.look(deployed) == Finding(OK, OLD)


def test_several_hosts_roll_back_by_the_playbook(deployed: Context) -> None:
    unit = deployed.host.web_units(NEW)[0]
    deployed.host.settings = replace(deployed.settings, barriers=True)
    deployed.host.manager.state[unit] = ProcessState(unit, "failed", 5)
    found = new_release.look(deployed)
    assert found.remedy.splitlines()[0] == "ansible-playbook -i INVENTORY playbooks/rollback.yml"
    assert_can_be_typed(found)


def test_a_host_without_the_application_has_no_release(context: Context) -> None:
    assert new_release.look(context) is None
    with pytest.raises(ReleaseError, match=r"run site\.yml"):
        commands.context_of(context.host)
