"""The host is lost: a bare one takes its place, and what a user types restores everything but the last minute."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest
from backups import Backups, Orders
from deployments import ROOT
from installation import Installation
from probes import Visitor, wait_for

# The promise: seconds before the loss from which rows may be missing.
RPO = 60


def host_tool(*words: str) -> None:
    command = [sys.executable, str(ROOT / "tools/testhost.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# On the other host, the same is restored in place: see test_restore.py.
@pytest.mark.os("debian13")
def test_a_lost_host_is_restored(
    backups: Backups,
    app: Installation,
    visitor: Visitor,
    variables: dict[str, Any],
    record_property: pytest.RecordProperty,
) -> None:
    name = f"backup-{backups.host.backend.host}"
    steps = visitor.finished_order(visitor.order(), 60)["steps"]
    upload = next(step["url"] for step in steps if step["url"].startswith("/media/"))
    content = visitor.get(upload).body
    backups.run("files").succeeded()
    with Orders(backups, visitor) as orders:
        began = time.time()
        # Several orders are off the host, and others are not.
        backups.wait_shipped(began + 5, 90)
        wait_for(lambda: orders.accepted[-1][0] > backups.shipped()["seconds"] + 1, 30, "a later order", bool)
        host_tool("down", name)
        lost_at = time.time()
    host_tool("up", name, f"--os={variables['testhost_os']}", f"--address={app.address}")

    backups.deployments.playbook("site.yml").wait(900).succeeded()
    before = backups.shipped()
    assert before["seconds"] < lost_at, "the new database must not be copied over that of the lost host"
    assert "has the backups of another database" in backups.notes(), backups.notes()
    backups.run("ship").failed().says("has the backups of another database")
    backups.run().failed().says("has the backups of another database")
    assert backups.shipped() == before

    backups.deployments.playbook("playbooks/restore.yml", restore_yes=True).wait(900).succeeded()
    new = Visitor(app.url, backups.host.check_output(f"cat {app.certificate_folder}/fullchain.pem"))
    found = [new.get(path).status == 200 for _, path in orders.accepted]
    restored = found.count(True)
    missing = [lost_at - at for at, _ in orders.accepted[restored:]]
    record_property("orders accepted", len(found))
    record_property("seconds of orders that were lost", round(max(missing, default=0), 1))
    assert found == [True] * restored + [False] * len(missing), "an order is missing before the last that was restored"
    assert restored > 0
    assert max(missing, default=0) < RPO
    assert new.get(upload).body == content

    new.post("/admin/login/", {"username": app.admin, "password": app.secret("admin_password")})
    assert new.get("/admin/").status == 200
    assert new.get("/admin/").url.endswith("/admin/"), "the administrator cannot log in"
    # New orders are handled, and copied to the same target.
    assert new.finished_order(new.order(), 60)
    backups.wait_shipped(time.time())
    assert backups.shipped()["system_id"] == before["system_id"]
    backups.run("drill", "--offsite").succeeded()
