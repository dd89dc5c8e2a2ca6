"""A host of an earlier Seedbed moves to this one under load, and nothing of the old names stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from deployments import Deployments
from probes import wait_for
from testinfra.host import Host

# What 7e689fa put on a host under names that are gone, and what all releases shared: a shell pattern each.
OLD_FILES = (
    "/usr/local/sbin/{name}-release",
    "/usr/local/sbin/{name}-manage",
    "/usr/local/lib/{name}/release",
    "/usr/local/lib/{name}/*.py",
    "/etc/{name}/release.json",
    "/etc/{name}/release.env",
    "/etc/{name}/app.env",
    "/etc/{name}/settings.json",
    "/etc/systemd/system/{name}-web@.service",
    "/etc/systemd/system/{name}-worker-*@.service",
    "/usr/lib/sysusers.d/{name}.conf",
    "/usr/lib/tmpfiles.d/{name}.conf",
    "/srv/{name}/rollout*",
    "/srv/{name}/releases/*/release.json",
    "/opt/{name}-flower/flower_service.py",
    "/etc/systemd/system/{name}-rollout*",
)


@pytest.fixture(scope="module")
def second(deployments: Deployments) -> Path:
    """The version that is deployed when the host is moved."""
    return deployments.version("second", "column=note")


@pytest.fixture(scope="module")
def earlier(deployments: Deployments, second: Path) -> str:
    """The release that the earlier Seedbed deployed; the host is moved, under load, before any test looks at it."""
    earlier = deployments.current
    assert deployments.host.file(f"/usr/local/sbin/{deployments.app.name}-release").exists, "the host is not of 7e689fa"
    refuse_other_secrets(deployments)
    servers = main_processes(deployments)
    with deployments.under_load() as traffic:
        traffic.pause(3)
        run = deployments.playbook("site.yml", app_source=str(second)).wait().succeeded()
        traffic.pause(3)
    print(run.output)
    assert deployments.current != earlier
    assert main_processes(deployments) == servers, "nginx, PostgreSQL or Redis was restarted"
    deployments.assert_zero_downtime(traffic, [earlier, deployments.current], nginx_reloads=True)
    return earlier


def refuse_other_secrets(deployments: Deployments) -> None:
    """A clone without the secrets changes nothing, although this host has no fingerprints of them yet."""
    other = deployments.folder / "other/secrets"
    run = deployments.playbook("site.yml", app_secrets=str(other)).wait().failed()
    run.says("would replace secrets that").says("has in use: django_key, database_password, database_owner_password, ")
    assert run.changed == 0, run.output
    assert not other.parent.exists()


def main_processes(deployments: Deployments) -> str:
    """Return the main process ID of every server that the application depends on."""
    units = "nginx 'postgresql@*' redis-server@broker redis-server@cache"
    return deployments.host.check_output(f"systemctl show --property=Id,MainPID {units}")


def old_files(deployments: Deployments) -> list[str]:
    patterns = " ".join(OLD_FILES).format(name=deployments.app.name)
    return deployments.host.run(f"ls -d {patterns} 2>/dev/null").stdout.split()


@pytest.mark.usefixtures("earlier")
def test_nothing_of_the_old_names_stays(deployments: Deployments) -> None:
    assert old_files(deployments) == []


@pytest.mark.usefixtures("earlier")
def test_no_process_runs_old_code(host: Host, deployments: Deployments) -> None:
    lines = host.check_output("ps -eo args=").splitlines()
    name = deployments.app.name
    old = ("celery_service.py", "flower_service.py", f"/usr/local/lib/{name}/release")
    assert [line for line in lines if any(word in line for word in old)] == []
    failed = "systemctl list-units --failed --plain --no-legend"
    # A copy of the log that has met a change of the settings is made again within a minute.
    wait_for(lambda: host.check_output(failed), 90, "no unit has failed", lambda units: units == "", pause=2)


@pytest.mark.usefixtures("earlier")
def test_a_second_run_changes_nothing(deployments: Deployments, second: Path) -> None:
    assert deployments.playbook("site.yml", app_source=str(second)).wait().succeeded().changed == 0


def test_the_history_is_kept_and_a_release_of_before_can_be_rolled_back_to(
    deployments: Deployments, earlier: str
) -> None:
    """And the next deployment leaves it again."""
    # Before the rollback: the ID ends with the configuration that the server has, which the earlier release has not.
    third, archive = deployments.pack(deployments.version("third"))
    assert earlier in deployments.host.check_output(f"{deployments.app.name}ctl releases")
    deployments.rollback(earlier, "--force").succeeded()
    assert deployments.current == earlier
    deployments.control("deploy", third, "-", data=archive).wait().succeeded()
    assert deployments.current == third
