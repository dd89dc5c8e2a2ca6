"""The database is on a host of its own: the playbook stops the application on the others, restores, and starts it."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from backups import Backups
from cluster import Cluster
from probes import Visitor
from testinfra.host import Host


def sql(host: Host, database: str, statement: str) -> str:
    return host.check_output(f'cd / && runuser -u postgres -- psql -qAt {database} -c "{statement}"')


def test_a_moment_is_restored_on_all_hosts(cluster: Cluster, visitor: Visitor) -> None:
    data, name = cluster.database, cluster.app.name
    sql(data, name, "CREATE TABLE public.moments (at timestamptz); INSERT INTO moments VALUES (now())")
    # A point in time is one between two commits.
    time.sleep(1)
    moment = datetime.now(UTC).isoformat()
    time.sleep(1)
    sql(data, name, "INSERT INTO moments VALUES (now())")
    Backups(data, cluster.app, data, cluster).run("ship").succeeded()
    before = cluster.everywhere()

    cluster.playbook("playbooks/restore.yml", restore_yes=True, restore_at=moment).wait(600).succeeded()

    assert sql(data, name, "SELECT count(*) FROM moments") == "1"
    for host, (status, processes) in cluster.everywhere().items():
        assert status["current"] == before[host][0]["current"]
        assert status["problems"] == []
        assert set(processes) == set(before[host][1])
    visitor.finished_order(visitor.order(), 60)
    sql(data, name, "DROP TABLE moments")
    folder = data.check_output("ls -d /var/lib/postgresql/*/main.before-*")
    data.check_output(f"rm -r {folder}")
