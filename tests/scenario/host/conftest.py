"""Fixtures of the tests that every scenario shares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from installation import Installation, look_at
from probes import Visitor
from testinfra.host import Host


@pytest.fixture(scope="module")
def app(host: Host) -> Installation:
    return look_at(host)


@pytest.fixture(scope="module")
def release(host: Host, app: Installation) -> str:
    """The release that is current: the one switch."""
    target = host.check_output(f"readlink --canonicalize-existing /srv/{app.name}/current")
    return Path(target).name


@pytest.fixture
def visitor(app: Installation) -> Visitor:
    """Somebody who has never been here before."""
    return Visitor(app.url, app.certificate)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Let fixtures know, when they clean up, how the test itself went."""
    report = yield
    if report.when == "call":
        item.failed = report.failed
    return report
