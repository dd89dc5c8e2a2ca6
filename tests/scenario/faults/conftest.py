"""A host that is well before each fault, and well again after it; and the servers that its alerts go to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from deployments import Deployments
from doctor_on_host import wait_until_well
from sinks import Received, sinks


@pytest.fixture(scope="module")
def received(variables: dict[str, Any]) -> Iterator[Received]:
    """What the mail server and the web server get that the host's settings name."""
    mail, web = (urlsplit(variables[name]) for name in ("app_email_url", "app_alert_webhook"))
    with sinks(str(web.hostname), mail.port or 0, web.port or 0) as received:
        yield received


@pytest.fixture(scope="module", autouse=True)
def _alerts_arrive(received: Received, deployments: Deployments) -> None:
    """The servers did not listen yet when the host was provisioned, which doctor would say."""
    deployments.control("alert", "test").wait().succeeded()


@pytest.fixture(scope="module")
def _well(deployments: Deployments) -> None:
    """Doctor finds nothing broken before the first test of a file."""
    wait_until_well(deployments)


@pytest.fixture
def healthy(deployments: Deployments, _well: None) -> Iterator[None]:
    """Doctor finds nothing broken before a test, and soon after it: what it finds after one test is before the next."""
    yield
    wait_until_well(deployments)
