"""Where alerts are sent: what is wrong there shows only when a server breaks, so it is checked before."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .problems import Installation, Problem, quoted

ADDRESS = r"[^\s@,;<>\"]+@[^\s@,;<>\"]+"
# No spaces, and no characters that a request cannot have.
URL = r"https?://[!-~]+"
MAIL_SERVER = r"(smtp|smtps|smtp\+tls|smtp\+ssl|submission)://\S+"
URLS = ("app_alert_webhook", "app_alert_ntfy", "app_heartbeat_url")
# A day.
MOST_MINUTES = 1440


def check_emails(here: Installation) -> Iterator[Problem]:
    emails = here.values["app_alert_emails"]
    for address in emails:
        if not re.fullmatch(ADDRESS, str(address)):
            yield Problem(
                "app_alert_emails", f"contains {quoted(address)}; write an email address such as ops@example.org."
            )
    # The value may have a password.
    if emails and not re.match(MAIL_SERVER, here.values["app_email_url"]):
        yield Problem(
            "app_alert_emails",
            "needs a mail server: set app_email_url to smtp://user:password@host:587/?tls=true.",
        )


def check_urls(here: Installation) -> Iterator[Problem]:
    for name in URLS:
        value = here.values.get(name)
        # The value may be a password. Another type has its own message.
        if isinstance(value, str) and value and not re.fullmatch(URL, value):
            yield Problem(name, "must be empty or a URL that begins with https:// (or http://), without spaces.")


def check_minutes(here: Installation) -> Iterator[Problem]:
    minutes = int(here.values["app_watch_minutes"])
    if not 0 <= minutes <= MOST_MINUTES:
        yield Problem("app_watch_minutes", f"must be minutes from 0 to {MOST_MINUTES}, a day; it is {minutes}.")
