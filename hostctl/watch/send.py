"""Send messages by mail, to a webhook, and to a topic of ntfy; and request URLs."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit, urlunsplit

from ..doctor.configuration import Configuration
from ..doctor.finding import BAD, WARN, Context

# Modules for mail and HTTP are imported where they are used: every command of this program would load them otherwise.

OVER, TEST = "over", "test"
# Seconds for each answer of a server, for that of a mail server to a message, whose content it may check, and for all
# channels together.
ANSWER_SECONDS, TAKING_SECONDS, SECONDS = 10, 25, 40
# How often a server gets a message without answering. (It may have taken it each time.)
MOST_UNANSWERED = 3
# Seconds after which a message that another channel has taken is not tried again.
STALE = 3600
# The newest messages that are kept for another attempt.
KEPT = 20
# Bytes of a text that ntfy does not turn into a file.
NTFY_BYTES = 4000
NTFY = {BAD: ("high", "rotating_light"), WARN: ("default", "warning"), OVER: ("default", "white_check_mark")}
TRUE = ("1", "true", "yes", "on", "t", "y")


class SendError(Exception):
    """A channel did not take a message; the text says why, in one line, without a secret."""


class UnansweredError(SendError):
    """A server got the whole message, and did not answer: it may have taken it."""

    def __init__(self, server: str, seconds: float) -> None:
        super().__init__(f"{server}: it got the message, and did not answer in {seconds:g} s")


@dataclass(frozen=True)
class Message:
    """What a person gets. `event` is the worst of what it tells: bad, warn, over, or test."""

    title: str
    text: str
    event: str
    name: str
    host: str
    checks: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Channel:
    """One way to reach a person. `address` shows it, without what may be a password.

    `send` raises SendError unless a person gets the message; it returns what was wrong all the same, or "".
    """

    name: str
    address: str
    # All that decides where messages go, also the secret parts.
    key: str
    send: Callable[[Message], str]

    @property
    def title(self) -> str:
        return f"{self.name} to {self.address}"


@dataclass
class Attempt:
    """What a channel did with messages: the positions of those it took, and what stopped it, or "".

    `unanswered`: the position of the one that it got and did not answer, or none.
    """

    taken: list[int] = field(default_factory=list)
    problem: str = f"no answer in {SECONDS} s"
    unanswered: int | None = None

    def send(self, channel: Channel, waiting: list[dict[str, Any]]) -> None:
        """Send what waits for a channel, until one message fails."""
        problem = ""
        for position, one in enumerate(waiting):
            if channel.name in one["channels"]:
                try:
                    problem = channel.send(Message(**one["message"]))
                except SendError as error:
                    self.problem = str(error)
                    self.unanswered = position if isinstance(error, UnansweredError) else None
                    return
                # Whatever it is: the other channels and the watch continue.
                except Exception as error:
                    self.problem = type(error).__name__
                    return
                self.taken.append(position)
        self.problem = problem


def channels(context: Context) -> list[Channel]:
    """Return the channels that are set."""
    configuration = context.configuration
    secrets, proxies = configuration.secrets(), context.settings.proxy_environment
    found = []
    if configuration.emails:
        url = secrets["MAIL_URL"]
        key = f"{url} {configuration.sender} {configuration.emails}"
        address = ", ".join(configuration.emails)
        found.append(Channel("mail", address, key, partial(send_mail, url, configuration)))
    if url := secrets["WEBHOOK_URL"]:
        found.append(Channel("webhook", site_of(url), url, partial(send_json, url, proxies)))
    if url := secrets["NTFY_URL"]:
        found.append(Channel("ntfy", site_of(url), url, partial(send_ntfy, url, proxies)))
    return found


def deliver(context: Context, active: list[Channel], message: Message | None) -> None:
    """Send a message by each channel, and again those that a channel did not take before.

    What waits is kept in memory["alerts_waiting"], and what each channel did in memory["alerts_sent"].
    """
    waiting = context.memory.get("alerts_waiting", [])
    if message:
        waiting.append(
            {"message": asdict(message), "channels": [channel.name for channel in active], "time": context.now}
        )
    context.memory["alerts_waiting"] = waiting = waiting[-KEPT:]
    due = [channel for channel in active if any(channel.name in one["channels"] for one in waiting)]
    for channel, attempt in zip(due, attempt_all(due, waiting), strict=True):
        events = [waiting[position]["message"]["event"] for position in attempt.taken]
        note(context.memory, channel.name, context.now, attempt.problem, events[-1] if events else "")
        for position in attempt.taken:
            waiting[position]["channels"].remove(channel.name)
            waiting[position]["taken"] = True
        if attempt.unanswered is not None:
            count_unanswered(waiting[attempt.unanswered], channel.name)
    context.memory["alerts_waiting"] = [one for one in waiting if still_waits(one, active, context.now)]


def count_unanswered(one: dict[str, Any], name: str) -> None:
    """Give a message up for a channel that got it again and again without an answer: a person may have it each time."""
    counts = one.setdefault("unanswered", {})
    counts[name] = counts.get(name, 0) + 1
    if counts[name] >= MOST_UNANSWERED:
        one["channels"].remove(name)


def still_waits(one: dict[str, Any], active: list[Channel], now: float) -> bool:
    is_wanted = any(channel.name in one["channels"] for channel in active)
    return is_wanted and (not one.get("taken") or now - one["time"] < STALE)


def attempt_all(active: list[Channel], waiting: list[dict[str, Any]]) -> list[Attempt]:
    """Let each channel send what waits for it, all at the same time."""
    attempts = [Attempt() for _ in active]
    run_together([partial(attempt.send, channel, waiting) for channel, attempt in zip(active, attempts, strict=True)])
    # One that answers after the limit must not change what is recorded.
    return [replace(attempt, taken=list(attempt.taken)) for attempt in attempts]


def run_together(jobs: list[Callable[[], None]], seconds: float = SECONDS) -> None:
    """Run jobs beside each other, for at most so many seconds."""
    # Daemons, so that one that hangs does not keep the program from ending.
    threads = [threading.Thread(target=job, daemon=True) for job in jobs]
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def note(memory: dict[str, Any], name: str, now: float, problem: str, event: str = "") -> None:
    """Remember for the doctor what a channel, or the heartbeat, did."""
    sent = memory.setdefault("alerts_sent", {})
    sent[name] = result(sent.get(name, {}), now, problem, event)


def result(before: dict[str, Any], now: float, problem: str, event: str = "") -> dict[str, Any]:
    """Return what is remembered of a channel: `ok_at`, `event`, and with a `problem` `failed_at`."""
    values = before | {"problem": problem}
    if event:
        values |= {"ok_at": now, "event": event}
    if problem:
        values |= {"failed_at": now}
    return values


# --- Mail


@dataclass(frozen=True)
class MailServer:
    """What a URL of the mail server says, as Django and its packages read it."""

    host: str
    port: int
    user: str
    password: str
    starttls: bool
    tls: bool


def mail_server(url: str) -> MailServer:
    """Read smtp://user:password@host:587/?tls=true. Raises SendError for what names no mail server.

    The rules are those of hostctl/in_app/environment.py, dj-email-url and django-environ: smtps and submission mean
    STARTTLS, smtp+ssl, ?ssl=true and port 465 mean TLS from the beginning.
    """
    parts = urlsplit(url)
    if not parts.scheme.startswith(("smtp", "submission")):
        raise SendError("app_email_url names no mail server: set smtp://user:password@host:587/?tls=true")
    try:
        port = parts.port
    except ValueError:
        raise SendError("app_email_url: the port is not a number") from None
    query = {name.lower(): value.lower() in TRUE for name, value in parse_qsl(parts.query)}
    tls = query.get("ssl", parts.scheme == "smtp+ssl" or port == 465)
    starttls = query.get("tls", parts.scheme in ("smtps", "smtp+tls", "submission")) and not tls
    return MailServer(
        host=unquote(parts.hostname or "localhost"),
        port=port or (465 if tls else 587 if starttls else 25),
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        starttls=starttls,
        tls=tls,
    )


def send_mail(url: str, configuration: Configuration, message: Message) -> str:
    """Send a message to the addresses of the configuration; return which were refused, or "".

    Raises SendError when none gets it.
    """
    import smtplib

    server = mail_server(url)
    place = f"{server.host}:{server.port}"
    try:
        refused = submit(server, configuration, message)
    except smtplib.SMTPRecipientsRefused as error:
        raise SendError(hide(f"{place} refused {refusals(error.recipients)}", secrets_of(url))) from None
    except (OSError, ValueError) as error:
        raise SendError(hide(f"{place}: {describe(error)}", secrets_of(url))) from None
    return hide(f"{place} refused {refusals(refused)}", secrets_of(url)) if refused else ""


def refusals(refused: dict[str, tuple[int, bytes]]) -> str:
    return "; ".join(f"{address}: {code} {decoded(text)}" for address, (code, text) in refused.items())


def submit(server: MailServer, configuration: Configuration, message: Message) -> dict[str, tuple[int, bytes]]:
    """Hand a message to the mail server, and return the addresses that it refused.

    Raises UnansweredError, and OSError or ValueError when the server does not take it.
    """
    import smtplib
    import ssl

    trusted = ssl.create_default_context() if server.tls or server.starttls else None
    # The name of this host would be looked up in the DNS, and often has no domain, which mail servers refuse.
    options: dict[str, Any] = {"timeout": ANSWER_SECONDS, "local_hostname": domain_of(configuration.sender)}
    options |= {"context": trusted} if server.tls else {}
    connect = patient(smtplib.SMTP_SSL if server.tls else smtplib.SMTP, f"{server.host}:{server.port}")
    connection = connect(server.host, server.port, **options)
    try:
        if server.starttls:
            connection.starttls(context=trusted)
        if server.user:
            connection.login(server.user, server.password)
        return connection.send_message(as_mail(configuration, message), to_addrs=configuration.emails)
    finally:
        # The message was taken, or refused, before; how the server says goodbye changes nothing.
        with suppress(OSError):
            connection.quit()


def patient(base: Any, place: str) -> Any:
    """Return a class of connections to a place that wait longer for the answer to a message than for others."""
    import smtplib

    class Connection(base):
        code = 0

        def getreply(self) -> tuple[int, bytes]:
            try:
                self.code, text = super().getreply()
            except smtplib.SMTPServerDisconnected as error:
                # 354 was the answer to DATA, after which the message was sent.
                if self.code == 354 and isinstance(error.__context__, TimeoutError):
                    raise UnansweredError(place, TAKING_SECONDS) from None
                raise
            self.sock.settimeout(TAKING_SECONDS if self.code == 354 else ANSWER_SECONDS)
            return self.code, text

    return Connection


def as_mail(configuration: Configuration, message: Message) -> Any:
    """Return a message as mail."""
    from email.message import EmailMessage
    from email.utils import formatdate, make_msgid

    mail = EmailMessage()
    mail["Subject"] = one_line(message.title)
    mail["From"] = one_line(configuration.sender)
    mail["To"] = ", ".join(configuration.emails)
    mail["Date"] = formatdate()
    mail["Message-ID"] = make_msgid(domain=domain_of(configuration.sender))
    # Asks mail servers for no automatic answer.
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(message.text, cte="quoted-printable")
    return mail


def domain_of(sender: str) -> str:
    """Return the domain of `Shop <shop@example.org>`."""
    return sender.rpartition("@")[2].strip(" >") or "localhost"


# --- HTTP


def send_json(url: str, proxies: Mapping[str, str], message: Message) -> str:
    """POST a message as JSON. Raises SendError."""
    import json

    request(url, proxies, json.dumps(asdict(message)).encode(), {"Content-Type": "application/json"})
    return ""


def send_ntfy(url: str, proxies: Mapping[str, str], message: Message) -> str:
    """Publish a message at a topic of ntfy. Raises SendError."""
    priority, tag = NTFY.get(message.event, ("default", "test_tube"))
    headers = {"Title": header(message.title), "Priority": priority, "Tags": tag}
    text = message.text.encode()
    if len(text) > NTFY_BYTES:
        text = text[:NTFY_BYTES].decode(errors="ignore").encode() + "\n…".encode()
    request(url, proxies, text, headers | {"Content-Type": "text/plain; charset=utf-8"})
    return ""


def request(
    url: str, proxies: Mapping[str, str], data: bytes | None = None, headers: Mapping[str, str] | None = None
) -> None:
    """POST data, or GET without any. Raises SendError unless the answer is a success, UnansweredError without one."""
    import http.client
    import urllib.error
    import urllib.request

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SendError("the URL must begin with https:// and a host")
    more = {"User-Agent": "Seedbed", **(headers or {}), **authorization(parts)}
    plain = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    try:
        asked = urllib.request.Request(plain, data=data, headers=more)
        with opener(parts, proxies, follows=data is None).open(asked, timeout=ANSWER_SECONDS):
            pass
    except urllib.error.HTTPError as error:
        raise SendError(hide(f"{site_of(url)}: {describe_answer(error)}", secrets_of(url))) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        # One while it connects or sends is wrapped in a URLError.
        if data is not None and isinstance(error, TimeoutError):
            raise UnansweredError(site_of(url), ANSWER_SECONDS) from None
        raise SendError(hide(f"{site_of(url)}: {describe(error)}", secrets_of(url))) from None


def opener(parts: SplitResult, proxies: Mapping[str, str], *, follows: bool) -> Any:
    """Return what opens a URL, by the proxy of the host if it has one. `follows`: also where a redirect leads."""
    import urllib.request

    class NoRedirects(urllib.request.HTTPRedirectHandler):
        """A POST that follows a redirect becomes a GET: its message is lost, and the answer is a success."""

        def redirect_request(self, *arguments: Any) -> None:
            return None

    through = {name: proxies[f"{name}_proxy"] for name in ("http", "https") if proxies.get(f"{name}_proxy")}
    if urllib.request.proxy_bypass_environment(parts.netloc.rpartition("@")[2], {"no": proxies.get("no_proxy", "")}):
        through = {}
    handlers = [urllib.request.ProxyHandler(through), *([] if follows else [NoRedirects()])]
    return urllib.request.build_opener(*handlers)


def authorization(parts: SplitResult) -> dict[str, str]:
    """Return the header for https://user:password@host."""
    if parts.username is None and parts.password is None:
        return {}
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def header(text: str) -> str:
    """Return a text as an HTTP header can have it: one line, ASCII."""
    text = one_line(text)
    if text.isascii():
        return text
    return f"=?UTF-8?B?{base64.b64encode(text.encode()).decode()}?="


# --- Texts


def one_line(text: str) -> str:
    return " ".join(text.split())


def site_of(url: str) -> str:
    """Return scheme and host of a URL: the rest may be a password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def secrets_of(url: str) -> list[str]:
    """Return what of a URL must not be shown, longest first."""
    parts = urlsplit(url)
    web = [parts.path.strip("/"), parts.query] if parts.scheme in ("http", "https") else []
    words = [url, parts.password or "", unquote(parts.password or ""), *web]
    return sorted({word for word in words if len(word) > 3}, key=len, reverse=True)


def hide(text: str, secrets: list[str]) -> str:
    """Return a text in one line, of at most 300 characters, without secrets."""
    for secret in secrets:
        text = text.replace(secret, "***").replace(quote(secret), "***")
    return one_line(text)[:300]


def describe(error: Exception) -> str:
    """Return what went wrong, in a few words."""
    import smtplib
    import ssl

    # That of urllib wraps the real one.
    reason = getattr(error, "reason", error)
    reason = reason if isinstance(reason, Exception) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {reason.verify_message}"
    if isinstance(reason, smtplib.SMTPAuthenticationError):
        return f"it refused user and password: {reason.smtp_code} {decoded(reason.smtp_error)}"
    if isinstance(reason, smtplib.SMTPResponseException):
        return f"it answered {reason.smtp_code} {decoded(reason.smtp_error)}"
    if isinstance(reason, UnicodeEncodeError):
        # Its text may have a character of a password.
        return "the URL, the user or the password has characters outside ASCII"
    if isinstance(reason, TimeoutError):
        return f"no answer in {ANSWER_SECONDS} s"
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__


def describe_answer(error: Any) -> str:
    """Return the status of an answer that is no success, and the beginning of its text."""
    location = error.headers.get("Location", "")
    if location:
        return f"status {error.code}, a redirect to {site_of(location)}: set the URL that it leads to"
    with suppress(OSError):
        return f"status {error.code} {error.reason} {error.read(200).decode(errors='replace')}".strip()
    return f"status {error.code} {error.reason}"


def decoded(text: bytes | str) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else text
