"""A provisioned host in check mode. (The scenario has run the playbook in check mode on the bare hosts, too.)"""

from __future__ import annotations

import pytest
from deployments import Deployments

# Everything that a run could restart.
PATTERNS = "'{name}*.service' 'postgresql@*' 'redis-server@*' nginx.service fail2ban.service ssh.service"


# Tasks that would change something are found on both hosts, by the scenario's step `idempotence`.
@pytest.mark.os("debian13")
def test_check_mode_changes_nothing(deployments: Deployments) -> None:
    host, patterns = deployments.host, PATTERNS.format(name=deployments.app.name)
    # Services of timers are not active while they run, but activating.
    units = f"systemctl list-units --plain --no-legend --type=service --state=active {patterns} | cut -d' ' -f1"
    look = f"systemctl show --property=Id,MainPID,ExecMainStartTimestamp {' '.join(host.check_output(units).split())}"
    before = host.check_output(look)
    assert before.count("MainPID=") > 10, before
    run = deployments.playbook_as_molecule("site.yml", "--check").wait().succeeded()
    assert run.changed == 0, run.output
    assert host.check_output(look) == before
