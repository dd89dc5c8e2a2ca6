"""Names of variables: misspelt, renamed, or not for users to set. Ansible itself ignores unknown names silently."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .problems import Problem

RENAMED = {
    "app_more_domains": "app_domain_aliases",
    "app_packages": "app_system_packages",
    "app_visitor_limits": "app_rate_limit",
    "app_snapshot": "app_dump_before_migrate",
    "app_gate_timeout": "app_health_check_timeout",
    "app_warm_paths": "app_warmup_paths",
    "app_version": "app_git_ref",
    "app_directory": "app_project_dir",
    "app_celery": "app_celery_app",
    "app_wsgi": "app_wsgi_app",
    "app_certificate_server": "app_acme_directory_url",
    "app_release_environment": "app_migration_environment",
    "app_firewall": "app_firewall_rules",
    "release_version": "app_git_ref",
    "access_undo_after": "access_revert_after",
}
# Keys of a setting, here of app_sandbox.
RENAMED_PARTS = {"outgoing": "egress_allow", "jit": "allow_jit", "write_paths": "read_write_paths"}
RENAMED_ROLES = {"contact": "connection", "rotation": "secrets", "report": "summary"}

UPGRADE = "is set by playbooks/upgrade-postgresql.yml."
# Set by roles and plays while they run. A user's value would be ignored, or would break the role.
SET_BY_ROLES = {
    "bootstrap_seen": "is set by the role bootstrap. Remove it.",
    "bootstrap_in_use": "is set by the role bootstrap. Remove it.",
    "connection_detected": "is set by the role connection. Remove it.",
    "runtime_hash": "is set by the role runtime. Remove it.",
    "services_hash": "is set by the role services. Remove it.",
    "hostctl_installed": "is set by the role hostctl. Remove it.",
    "hostctl_domains": "is set by the role hostctl. Remove it.",
    "monitoring_record_state": "is set by the playbooks that apply settings. Remove it.",
    "monitoring_outcome": "is set by make doctor. Remove it.",
    "secrets_state": "is set by playbooks/rotate-secrets.yml. Remove it.",
    "release_dump": "is set by playbooks/import-database.yml. Use -e dump=PATH.",
    "release_replace_database": "is set by playbooks/import-database.yml. Use -e import_replace=true.",
    "postgresql_upgrade_others": f"{UPGRADE} Use -e upgrade_other_databases=true.",
    "postgresql_upgrade_replace": f"{UPGRADE} Use -e replace_new_cluster=true.",
    "postgresql_upgrade_maintenance": f"{UPGRADE} Remove it.",
    "postgresql_upgrade_refuse": "is set by playbooks/rotate-secrets.yml. Remove it.",
    "nginx_maintenance_state": "is set by playbooks/maintenance.yml. Use -e maintenance_state=on.",
    "nginx_maintenance_message": "is set by playbooks/maintenance.yml. Use -e maintenance_message=TEXT.",
    "nginx_maintenance_retry": "is set by playbooks/maintenance.yml. Use -e maintenance_retry=SECONDS.",
}


@dataclass
class Known:
    """Every documented name."""

    # Of group_vars/all: settings (app_ and role variables), secrets, and what joins the roles, with its expressions.
    settings: list[str]
    secrets: list[str]
    wiring: Mapping[str, Any]
    # Variables of the roles, by role.
    roles: Mapping[str, list[str]] = field(default_factory=dict)

    def all(self) -> list[str]:
        return [*self.settings, *self.secrets, *self.wiring, *(name for names in self.roles.values() for name in names)]


def unknown_problems(given: Iterable[str], known: Known, in_settings_file: Iterable[str] = ()) -> Iterator[Problem]:
    """Yield renamed and most likely misspelt names.

    Unknown names with a prefix of ours are misspelt; `secret_...` and others in the user's settings files only if they
    are similar to one of ours, since users have variables of their own.
    """
    names = set(known.all()) | set(SET_BY_ROLES)
    own_files = set(in_settings_file)
    for name in given:
        if name in names:
            continue
        if new := renamed(name, names):
            yield Problem(name, f"was renamed to {new}.")
            continue
        prefix, _, rest = name.partition("_")
        if prefix == "app":
            close = closest(name, [name for name in names if name.startswith("app_")], 0.6)
        elif prefix == "secret":
            close = closest(name, known.secrets, 0.9)
        elif prefix in known.roles:
            # Without the prefix, which makes all names of a role look alike.
            found = closest(rest, [name.removeprefix(f"{prefix}_") for name in known.roles[prefix]], 0.6)
            close = found and f"{prefix}_{found}"
        elif name in own_files:
            close = closest(name, names, 0.8)
        else:
            continue
        meant = settings_behind(close, known) if close in known.wiring else [close] if close else []
        if meant:
            yield Problem(name, f"is not a setting. Did you mean {' or '.join(meant)}?")
        elif prefix == "app" or known.roles.get(prefix):
            yield Problem(name, "is not a setting. Is it misspelt?")


def closest(name: str, candidates: Iterable[str], similarity: float) -> str:
    """Return the candidate that is most similar to a name; "" if none is similar enough, from 0 (not at all) to 1."""
    return next(iter(difflib.get_close_matches(name, sorted(candidates), n=1, cutoff=similarity)), "")


def renamed(name: str, names: set[str]) -> str:
    """Return the new name of a renamed variable; "" if it was not renamed."""
    if name in RENAMED:
        return RENAMED[name]
    prefix, _, rest = name.partition("_")
    new = f"{RENAMED_ROLES.get(prefix)}_{rest}"
    return new if new in names else ""


def wiring_problems(given: Mapping[str, Any], known: Known) -> Iterator[Problem]:
    """Yield the names of wiring.yml that have another value, and the settings to use instead."""
    for name, expression in known.wiring.items():
        if name.startswith("ansible_") or name not in given or given[name] == expression:
            continue
        if instead := settings_behind(name, known):
            reason = (
                f"is computed from {' and '.join(instead)}. Set {'that' if len(instead) == 1 else 'those'} instead."
            )
        else:
            reason = "is computed from the inventory and other settings. Remove it."
        yield Problem(name, f"cannot be set: it {reason}")


def settings_behind(name: str, known: Known) -> list[str]:
    """Return the settings to set in place of a variable of the wiring; none where they are too many to name."""
    found = [source for source in sources(name, known) if source != "app_hosts"]
    return found if len(found) <= 4 else []


def sources(name: str, known: Known, seen: frozenset[str] = frozenset()) -> list[str]:
    """Return the settings and secrets that a variable of the wiring is computed from, in the order of their use."""
    words = re.findall(r"[a-z_]+", str(known.wiring[name]))
    found = [word for word in words if word in known.settings or word in known.secrets]
    if not found:
        inner = [word for word in words if word in known.wiring and word not in seen | {name}]
        found = [source for word in inner for source in sources(word, known, seen | {name, *inner})]
    return list(dict.fromkeys(found))
