"""Fixtures and hooks of all scenario tests. Each folder beside this file belongs to a scenario of molecule/.

Each file brings the host into the state that it needs; FIRST and LAST only save time.
`@pytest.mark.os("debian13")`: one host is enough, since Debian's version makes no difference. With a single host, the
test runs there.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from deployments import Deployments
from installation import Installation, inspect
from probes import Visitor
from testinfra.host import Host
from xdist.scheduler import LoadScopeScheduling

# Modules in their order, before and after all others of a scenario; the others go by their names.
FIRST = (
    "test_after_reboot",  # waits until the services are up
    "test_zero_downtime",
    # The first runs of site.yml in their scenario.
    "test_access",
    "test_secrets",
)
LAST = (
    "test_certificate",  # leaves another certificate, which a file after it would replace first
    "test_settings",  # switches the process manager
    "test_schedules",  # a tick is due every minute, which has mostly passed by then
)


# --- Fixtures ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def variables(host: Host) -> dict[str, Any]:
    """The host's variables from the inventory and group_vars; templates are not resolved."""
    return host.ansible.get_variables()


@pytest.fixture(scope="module")
def app(host: Host) -> Installation:
    return inspect(host)


@pytest.fixture(scope="module")
def release(host: Host, app: Installation) -> str:
    """The current release."""
    return Path(host.check_output(f"readlink --canonicalize-existing /srv/{app.name}/current")).name


@pytest.fixture
def visitor(host: Host, app: Installation) -> Visitor:
    """A new visitor, who trusts the site's present certificate only."""
    return Visitor(app.url, host.file(f"{app.certificate_folder}/fullchain.pem").content_string)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for versions and logs, outside of this repository: git would ignore it there."""
    return tmp_path_factory.mktemp("deployments")


@pytest.fixture(scope="module")
def deployments(host: Host, app: Installation, folder: Path) -> Deployments:
    return Deployments(host, app, folder)


@pytest.fixture(autouse=True)
def _runs_for_each_host(host: Host) -> None:
    """Have testinfra parametrize every test."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that runs on another host, before any fixture of its module is set up for it."""
    chosen = item.get_closest_marker("os")
    if chosen:
        variables = item.callspec.params["_testinfra_host"].ansible.get_variables()
        if len(tested_hosts(variables)) > 1 and variables["testhost_os"] not in chosen.args:
            pytest.skip(f"runs on {', '.join(chosen.args)}")


def tested_hosts(variables: dict[str, Any]) -> set[str]:
    """The hosts that serve the site: others only assist."""
    return set(variables["groups"]["web"])


# --- Order and parallel processes ---------------------------------------------------------


def position(item: pytest.Item) -> tuple[int, str]:
    name = item.path.stem
    if name in FIRST:
        return FIRST.index(name) - len(FIRST), ""
    return (1 + LAST.index(name), "") if name in LAST else (0, name)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=position)


class OneProcessPerHost(LoadScopeScheduling):
    """Runs all tests of a host in one process, in their order."""

    def _split_scope(self, nodeid: str) -> str:
        found = re.search(r"ansible://\w+", nodeid)
        return found[0] if found else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneProcessPerHost:
    return OneProcessPerHost(config, log)


# --- Results ------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Write the results where tests/run.py counts them: one file for each `verify` of a scenario."""
    config.addinivalue_line("markers", "os(name): the test runs only on the host with this Debian")
    if folder := os.environ.get("TEST_RESULTS"):
        config.option.xmlpath = str(Path(folder) / f"verify-{time.time_ns()}.xml")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run without tests: molecule would take it for a success."""
    if session.testscollected == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the figures that tests have recorded with `record_property`."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{report.nodeid}: {name}: {value}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Keep a test's outcome for its fixtures, and add the host's journal to the report of a failed test."""
    report = yield
    if report.when == "call":
        item.failed = report.failed
    host = getattr(item, "funcargs", {}).get("host")
    if report.failed and host is not None:
        report.sections.append((f"journal of {host.backend.hostname}", recent_journal(host)))
    return report


def recent_journal(host: Host) -> str:
    """Return failed units, the end of journal and logs, and the last deployment; or why they cannot be read."""
    try:
        name = host.ansible.get_variables()["app_name"]
        units = f"-u '{name}-*' -u nginx -u 'redis-server@*' -u 'postgresql@*' -u ssh -u fail2ban -u certbot"
        deployment = f"/srv/{name}/deployment.json $(ls -t /srv/{name}/deployments/* | head -n 1)"
        logs = f"/var/log/nginx/error.log /var/log/{name}/*.log {deployment}"
        result = host.run(f"systemctl --failed; journalctl --no-pager -p info -n 80 {units}; tail -n 40 {logs}")
    except Exception as problem:  # the report is about the test, whatever is wrong with the host
        return f"The journal could not be read: {problem}"
    return result.stdout + result.stderr
