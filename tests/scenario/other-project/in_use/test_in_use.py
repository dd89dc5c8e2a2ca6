"""A server that others use already (prepare.yml) is not taken over without the setting."""

from __future__ import annotations

from pathlib import Path

from deployments import Deployments
from testinfra.host import Host


def state(host: Host) -> str:
    """Return the processes of the others, their files, and whether a package of Seedbed's is installed."""
    units = "nginx postgresql@17-main redis-server"
    files = "/etc/nginx/sites-enabled/default /etc/postgresql/17/main/*.conf /etc/redis/redis.conf"
    return host.check_output(
        f"systemctl show -p Id -p MainPID {units}; sha256sum {files}; ls /usr/sbin/ufw /etc/seedbed; true"
    )


def test_it_is_refused_by_default(host: Host, folder: Path) -> None:
    before, other = state(host), folder / "other/secrets"
    given = {"app_take_over": [], "app_secrets": str(other)}
    run = Deployments(host, None, folder).playbook("site.yml", **given).wait().failed()
    run.says("is in use by others (2).")
    run.says("nginx: nginx serves /etc/nginx/sites-enabled/default").says("has the databases blog:")
    run.says("app_take_over: [nginx, postgresql]")
    assert run.changed == 1, "Python alone, without which the host cannot be looked at"
    assert state(host) == before
    assert not other.exists()
