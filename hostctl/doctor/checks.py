"""The checks, in the order of the screen."""

from __future__ import annotations

from ..watch import alerts, new_release
from . import application, backups, certificate, data, drift, network, queues, system
from .finding import Check

CHECKS: tuple[Check, ...] = (
    Check("site", application.site, seconds=8, pauses=True),
    # Two requests of the health page may take three seconds each.
    Check("release", new_release.look, seconds=8),
    Check("web", application.web, pauses=True),
    Check("workers", application.workers, pauses=True),
    Check("queues", queues.queues, pauses=True),
    Check("beat", application.look_at_beat, pauses=True),
    Check("postgresql", data.postgresql),
    Check("redis", data.redis),
    Check("certificate", certificate.certificate),
    Check("backup", backups.backup),
    Check("offsite", backups.offsite),
    Check("drill", backups.drill),
    Check("disk", system.disk),
    Check("memory", system.memory),
    Check("updates", system.updates),
    Check("reboot", system.reboot),
    Check("libraries", system.libraries, seconds=9, hourly=True),
    Check("ports", network.ports),
    Check("access", network.access, seconds=8),
    Check("policy", network.policy, seconds=9, hourly=True),
    Check("alerts", alerts.look),
    Check("settings", drift.settings),
)
