"""What the tests of every scenario share: molecule/shared/tests and the scenario's own.

`@pytest.mark.os("debian13")`: one host is enough where its version makes no difference. Where there is but one host,
the test runs on that.
`@pytest.mark.once`: the test runs in the first `verify` of a scenario only, and not again after a reboot.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host


@pytest.fixture(scope="module")
def variables(host: Host) -> dict[str, Any]:
    """The host's variables as the inventory and group_vars have them; templates stay as written."""
    return host.ansible.get_variables()


@pytest.fixture(scope="module")
def app_name(variables: dict[str, Any]) -> str:
    """The short name of the application, which users, folders and units carry."""
    return variables["app_name"]


@pytest.fixture(scope="module")
def reboot_note(host: Host) -> Path:
    """What shared/leave_work.py writes down before it has this host reboot."""
    folder = Path(os.environ.get("MOLECULE_EPHEMERAL_DIRECTORY", "."))
    return folder / f"before-reboot-{host.backend.get_hostname()}.json"


@pytest.fixture(autouse=True)
def _chosen(request: pytest.FixtureRequest, variables: dict[str, Any], reboot_note: Path) -> None:
    chosen = request.node.get_closest_marker("os")
    several = len(set(variables["groups"]["all"])) > 1
    if chosen and several and variables["testhost_os"] not in chosen.args:
        pytest.skip(f"runs on {', '.join(chosen.args)}")
    if request.node.get_closest_marker("once") and reboot_note.exists():
        pytest.skip("has run before the reboot")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Write results where tests/run.py counts them: a file for each `verify` of a scenario."""
    config.addinivalue_line("markers", "os(name): the test runs on the host with this Debian only")
    config.addinivalue_line("markers", "once: the test does not run again after a reboot")
    if folder := os.environ.get("TEST_RESULTS"):
        config.option.xmlpath = str(Path(folder) / f"verify-{time.time_ns()}.xml")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run without a test proves nothing, and molecule would take it for a success."""
    if session.testscollected == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Add what the host's journal says to the report of a test that failed."""
    report = yield
    host = getattr(item, "funcargs", {}).get("host")
    if report.failed and host is not None:
        report.sections.append((f"journal of {host.backend.hostname}", recent_journal(host)))
    return report


def recent_journal(host: Host) -> str:
    """Failed units, the last lines of journal and logs, and the last rollout; why not, if they cannot be read."""
    try:
        name = host.ansible.get_variables()["app_name"]
        units = f"-u '{name}-*' -u nginx -u 'redis-server@*' -u 'postgresql@*' -u ssh -u fail2ban -u certbot"
        rollout = f"/srv/{name}/deployment.json $(ls -t /srv/{name}/deployments/* | head -n 1)"
        logs = f"/var/log/nginx/error.log /var/log/{name}/*.log {rollout}"
        result = host.run(f"systemctl --failed; journalctl --no-pager -p info -n 80 {units}; tail -n 40 {logs}")
    except Exception as problem:  # the report is about the test, whatever is wrong with the host
        return f"The journal could not be read: {problem}"
    return result.stdout + result.stderr
