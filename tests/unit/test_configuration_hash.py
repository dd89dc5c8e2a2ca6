"""The hash of the configuration, part of every release ID: changes that processes must get are a new release."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from project import run_playbook

from hostctl.settings import OF_RELEASE

ROOT = Path(__file__).parents[2]
WORKERS = [
    {"name": "default", "queues": ["default"], "pool": "prefork", "concurrency": 1, "stop_timeout": 360},
    {"name": "io", "queues": ["io"], "pool": "threads", "concurrency": 8, "stop_timeout": 360},
]
SANDBOX = {"read_write_paths": [], "allow_jit": False, "egress_allow": []}
CLOSED = {"app_sandbox": SANDBOX | {"egress_allow": ["10.0.0.0/8"]}}
SECRET = "a password from a vault"

SETTINGS: dict[str, Any] = {
    "app_name": "shop",
    "app_domain": "shop.example.org",
    "app_admin_user": "",
    "app_memory_mb": 1024,
    "app_environment": {"ALPHA": "1", "BETA": "2"},
    "app_web": {"processes": 2, "threads": 4},
    "app_workers": WORKERS,
    "app_sandbox": SANDBOX,
    "secret_django_key": "key",
    "secret_database_password": "password",
    "secret_redis_password": "password",
}
# One installation each, of one host, with these settings in place of those above.
CHANGES: dict[str, dict[str, Any]] = {
    "same": {},
    "environment": {"app_environment": {"ALPHA": "1", "BETA": "3"}},
    "environment_name": {"app_environment": {"ALPHA": "1", "GAMMA": "2"}},
    "memory": {"app_memory_mb": 2048},
    "services_memory": {"services_memory_mb": 300},
    "web": {"app_web": {"processes": 3, "threads": 4}},
    "web_worker": {"app_web": {"worker": "asgi"}, "app_asgi_app": "config.asgi:application"},
    "web_preload": {"app_web": {"preload": False}},
    "web_stop": {"app_web": {"stop_timeout": 333}},
    "web_memory": {"app_web": {"processes": 2, "threads": 4, "memory_mb": 300}},
    "queues": {"app_workers": [WORKERS[0], WORKERS[1] | {"queues": ["io", "mail"]}]},
    "workers": {"app_workers": WORKERS[:1]},
    "worker_memory": {"app_workers": [WORKERS[0] | {"memory_mb": 300}, WORKERS[1]]},
    "jit": {"app_sandbox": SANDBOX | {"allow_jit": True}},
    "write_paths": {"app_sandbox": SANDBOX | {"read_write_paths": ["/srv/exports"]}},
    "egress": CLOSED,
    "secret": {"secret_database_password": SECRET},
    "manager": {"app_process_manager": "supervisor"},
    # Not what processes are started with.
    "keep_releases": {"app_keep_releases": 3},
    "migration_environment": {"app_migration_environment": {"PG_URL": "postgresql://owner"}},
    # Keys that are left out have their default.
    "partial": {"app_web": {"threads": 4}, "app_sandbox": {"allow_jit": False}},
    "order": {
        "app_environment": {"BETA": "2", "ALPHA": "1"},
        "app_web": {"threads": 4, "processes": 2},
        "app_workers": [dict(reversed(worker.items())) for worker in WORKERS],
    },
}
# Every setting and its class, with another value. A setting of the release takes effect with a new release. It is part
# of the hash; or it is recorded with a release (OF_RELEASE in hostctl/settings.py), since its processes are not started
# from it; or it says where its code is. A setting of the server takes effect when it is written.
STARTED: dict[str, Any] = {
    "app_domain": "other.example.org",
    "app_domain_aliases": ["www.example.org"],
    "app_project_dir": "backend",
    "app_settings_module": "other.settings",
    "app_wsgi_app": "other.wsgi:application",
    "app_celery_app": "other",
    "app_asgi_app": "config.asgi:application",
    "app_settings_overlay": "never",
    "app_requirements": "uv.lock",
    "app_python": "3.12",
    "app_hooks": {"after_switch": ["true"]},
    "app_extra_requirements": ["gunicorn"],
    "app_build_commands": ["npm ci"],
    "app_build_environment": {"TOKEN": "secret"},
    # Relative to the top folder of the repository.
    "app_build_ssh_key": "deploy_key",
    "app_files": {"local.py": {"content": "a = 1"}},
    "app_environment": {"GAMMA": "1"},
    "app_time_zone": "Europe/Vienna",
    "app_email_url": "smtp://mail.example.org",
    "app_email_from": "other@example.org",
    "app_process_manager": "supervisor",
    "app_web": {"processes": 5},
    "app_health_check_timeout": 77,
    "app_request_timeout": 99,
    "app_long_requests": {"/export/": 300},
    "app_workers": WORKERS[1:],
    "app_external_queues": ["billing"],
    "app_beat": False,
    "app_beat_scheduler": "redbeat.RedBeatScheduler",
    "app_processes": [{"name": "bot", "command": "python manage.py runbot"}],
    "app_database_limits": {"worker": {"statement_timeout": 0}},
    "app_cron": [{"name": "daily", "command": "python manage.py daily", "schedule": "daily"}],
    "app_sandbox": SANDBOX | {"allow_jit": True},
    "app_database_url": "postgresql://other/shop",
    "app_databases": [{"name": "stats", "environment": "STATS_URL"}],
    "app_broker_url": "redis://other/0",
    "app_cache_url": "redis://other/1",
    "app_hsts_seconds": 77,
    "app_https_port": 8443,
    # What one service of the application may use depends on it.
    "app_memory_mb": 4096,
    "services_memory_mb": 333,
}
RECORDED: dict[str, Any] = {
    "app_health_path": "/up/",
    "app_health_names_release": False,
    "app_warmup_paths": ["/other/"],
    # In migrate.env.
    "app_migration_environment": {"PG_URL": "postgresql://other"},
    "app_database_owner_url": "postgresql://owner@other/shop",
    "app_admin_user": "other",
    "app_admin_email": "other@example.org",
}
CODE: dict[str, Any] = {"app_source": "https://example.org/other.git", "app_git_ref": "v2"}
SERVER: dict[str, Any] = {
    "app_system_packages": ["gettext"],
    "app_database_extensions": ["citext"],
    "app_keep_releases": 9,
    "app_bake_seconds": 9,
    "app_public_check": False,
    "app_backup": False,
    "app_backup_target": {"type": "s3", "endpoint": "https://s3", "bucket": "b", "access_key": "k", "secret_key": "s"},
    "app_dump_before_migrate": False,
    "app_migration_block_seconds": 9,
    "app_max_upload": "99m",
    "app_nginx_locations": "location = /a { return 204; }",
    "app_response_headers": {"Permissions-Policy": "camera=()"},
    "app_rate_limit": {"connections": 9},
    "app_login_paths": ["/enter/"],
    "app_maintenance_addresses": ["192.0.2.7"],
    "app_maintenance_paths": ["/other/"],
    "flower_user": "other",
    "flower_memory_mb": 222,
    "postgresql_memory_mb": 222,
    "redis_memory_mb": 222,
    "app_private_address": "10.9.9.9",
    "app_http_proxy": "http://10.0.0.5:3128",
    "app_no_proxy": [".example.org"],
    "app_administrators": [{"name": "alice", "keys": []}],
    "app_ssh_port": 2222,
    "app_trusted_addresses": ["192.0.2.7"],
    "app_trusted_proxies": ["192.0.2.7"],
    "app_firewall_rules": ["allow 25/tcp"],
    "app_take_over": ["docker"],
    "nginx_ipv6": False,
    "app_monitoring": False,
    "app_status_path": "/other/",
    "app_alert_emails": ["ada@example.org"],
    "app_alert_webhook": "https://example.org/hook",
    "app_alert_ntfy": "https://example.org/topic",
    "app_heartbeat_url": "https://example.org/beat",
    "app_watch_minutes": 9,
    "app_node_exporter": True,
    "app_node_exporter_address": "10.9.9.9",
    "app_certificate_email": "ada@example.org",
    "app_acme_directory_url": "https://example.org/dir",
    "app_certificate_files": {"certificate": "/a.pem", "key": "/a.key"},
}
# It says which installation this is.
IDENTITY = {"app_name"}
ALONE = {name for change in CHANGES.values() if len(change) == 1 for name in change}
CHANGES |= {f"only_{name}": {name: value} for name, value in STARTED.items() if name not in ALONE}
# All of a class in one installation: if its hash is the same, none of them changes it.
CHANGES |= {"recorded": RECORDED, "code": CODE, "server": SERVER}
UNCHANGED = {"same", "keep_releases", "migration_environment", "partial", "order", "recorded", "code", "server"}
# Installations of two hosts, and the settings of both.
CLUSTERS: dict[str, dict[str, Any]] = {
    "near": CLOSED | {"addresses": ["10.0.0.1", "10.0.0.2"]},
    "far": CLOSED | {"addresses": ["10.0.0.1", "10.0.0.3"]},
    "uneven": CLOSED | {"addresses": ["10.0.0.1", "10.0.0.2"], "second": {"app_memory_mb": 4096}},
}
BY_ANSIBLE = ("same", "secret")
PLAYBOOK = [
    {
        "name": "Compute the hashes",
        "hosts": "all",
        "gather_facts": False,
        "tasks": [
            *(
                {"name": f"Import {role}", "ansible.builtin.import_role": {"name": role, "tasks_from": "configuration"}}
                for role in ("runtime", "services")
            ),
            {"name": "Print", "ansible.builtin.debug": {"msg": "{{ app_configuration }}"}},
        ],
    }
]


def inventory(installations: Sequence[str]) -> dict[str, Any]:
    """Return an inventory of these installations; hosts of clusters are named NAME_1 and NAME_2."""
    hosts = {name: SETTINGS | CHANGES[name] | {"app_hosts": [name]} for name in installations if name not in CLUSTERS}
    for name in installations:
        if name not in CLUSTERS:
            continue
        cluster = CLUSTERS[name]
        names = [f"{name}_1", f"{name}_2"]
        for host, address in zip(names, cluster["addresses"], strict=True):
            own = {"app_hosts": names, "app_private_address": address, "app_sandbox": cluster["app_sandbox"]}
            hosts[host] = SETTINGS | own | (cluster.get("second", {}) if host == names[1] else {})
    groups = ("web", "worker", "scheduler", "database", "broker")
    children = {group: {"hosts": {host: {} for host in hosts}} for group in groups}
    # Beat and the services of a cluster are on its first host.
    for group in ("scheduler", "database", "broker"):
        children[group] = {"hosts": {host: {} for host in hosts if not host.endswith("_2")}}
    return {"all": {"hosts": {host: own | {"ansible_connection": "local"} for host, own in hosts.items()},
                    "children": children}}  # fmt: skip


def run(
    folder: Path, project: Path, installations: Sequence[str], one_process: bool = True
) -> tuple[dict[str, str], str]:
    """Run the playbook with the roles of a project. Returns the hash on each host, and all output."""
    folder.mkdir()
    (folder / "hosts.json").write_text(json.dumps(inventory(installations)))
    (folder / "play.json").write_text(json.dumps(PLAYBOOK))
    (folder / "group_vars").mkdir()
    (folder / "group_vars/all").symlink_to(ROOT / "group_vars/all")
    done = run_playbook(
        folder / "play.json",
        folder / "hosts.json",
        "-vv",
        one_process=one_process,
        ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"),
        ANSIBLE_ROLES_PATH=str(project / "roles"),
    )
    assert done.status == 0, done.output
    last = json.loads(done.output[done.output.index("\n{") :])["plays"][0]["tasks"][-1]
    return {host: result["msg"] for host, result in last["hosts"].items()}, done.output


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the hash reads, to change."""
    copy = tmp_path_factory.mktemp("project")
    for part in ("roles/runtime", "roles/services", "hostctl/in_app"):
        shutil.copytree(ROOT / part, copy / part)
    (copy / "deploy_key").write_text("a key\n")
    return copy


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, project: Path) -> tuple[dict[str, str], str]:
    """The hash on each host, and all output; of BY_ANSIBLE by ansible-playbook itself."""
    folder = tmp_path_factory.mktemp("run")
    hashes, output = run(folder / "by_ansible", project, BY_ANSIBLE, one_process=False)
    names = [name for name in (*CHANGES, *CLUSTERS) if name not in BY_ANSIBLE]
    # In a large inventory, the lists of hosts by group take the most time.
    for first in range(0, len(names), 8):
        more_hashes, more_output = run(folder / str(first), project, names[first : first + 8])
        hashes |= more_hashes
        output += more_output
    return hashes, output


@pytest.fixture(scope="module")
def hashes(result: tuple[dict[str, str], str]) -> dict[str, str]:
    return result[0]


@pytest.mark.parametrize("name", [name for name in CHANGES if name not in UNCHANGED])
def test_a_change_of_what_processes_are_started_with_changes_the_hash(hashes: dict[str, str], name: str) -> None:
    assert hashes[name] != hashes["same"]


@pytest.mark.parametrize("name", sorted(UNCHANGED))
def test_nothing_else_changes_the_hash(hashes: dict[str, str], name: str) -> None:
    assert hashes[name] == hashes["same"]


def test_every_setting_has_a_class() -> None:
    """A new one must be put into one of the tables: what does a failed run leave as it was?"""
    settings = yaml.safe_load((ROOT / "group_vars/all/defaults.yml").read_text())
    tables = (STARTED, RECORDED, CODE, SERVER)
    assert set(settings) - IDENTITY == set().union(*tables)
    assert sum(map(len, tables)) == len(settings) - len(IDENTITY), "one class each"


def test_recorded_settings_are_recorded() -> None:
    """A setting that the program has for the next release must not be used for another one."""
    wiring = (ROOT / "group_vars/all/wiring.yml").read_text()
    [block] = re.findall(r"^hostctl_settings:\n((?:  .*\n)+)", wiring, re.M)
    used = {name: re.findall(r"\bapp_\w+", value) for name, value in re.findall(r"^  (\w+): (.*)$", block, re.M)}
    assert used
    of_release = {setting for name in OF_RELEASE for setting in used.get(name, [])}
    of_server = {setting for name, settings in used.items() if name not in OF_RELEASE for setting in settings}
    known = set(STARTED | RECORDED | CODE | SERVER)
    assert of_release & known <= set(STARTED | RECORDED)
    assert of_server & known <= set(SERVER) | {"app_admin_user"}


def test_every_change_has_a_hash_of_its_own(hashes: dict[str, str]) -> None:
    left_out = ("only_", *UNCHANGED)
    changed = [hashes[name] for name in hashes if not name.startswith(left_out) and not name.endswith("_2")]
    assert len(set(changed)) == len(changed)


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_hosts_of_an_installation_have_the_same_hash(hashes: dict[str, str], cluster: str) -> None:
    assert hashes[f"{cluster}_1"] == hashes[f"{cluster}_2"]


def test_peers_and_the_memory_of_another_host_change_the_hash(hashes: dict[str, str]) -> None:
    assert len({hashes[f"{cluster}_1"] for cluster in CLUSTERS}) == 3


def test_the_hash_does_not_reveal_secrets(result: tuple[dict[str, str], str]) -> None:
    hashes, output = result
    assert all(len(value) == 64 and int(value, 16) >= 0 for value in hashes.values())
    assert SECRET not in output


COMMENTED = {
    "roles/services/templates/systemd/_process.j2": "\n  # A comment.\n",
    "roles/services/templates/gunicorn.conf.py.j2": "\n# A comment.\n",
    "hostctl/in_app/celery_runner.py": "\n# A comment.\n",
}


@pytest.mark.parametrize(
    ("added", "differ"),
    [
        ({"roles/services/templates/systemd/_process.j2": "Nice=5\n"}, {"same", "near_1"}),
        ({"roles/services/templates/supervisor/_process.j2": "numprocs=1\n"}, {"manager"}),
        ({"hostctl/in_app/celery_runner.py": "import changed\n"}, {"same", "near_1", "manager"}),
        (COMMENTED, set()),
    ],
    ids=["systemd", "supervisor", "program", "comments"],
)
def test_a_changed_program_or_template_changes_the_hash(
    hashes: dict[str, str], project: Path, tmp_path: Path, added: dict[str, str], differ: set[str]
) -> None:
    """Templates of the other process manager do not count, nor do comments and blank lines."""
    before = {file: (project / file).read_text() for file in added}
    for file, text in added.items():
        (project / file).write_text(before[file] + text)
    changed, _ = run(tmp_path / "run", project, ["same", "manager", "near"])
    for file, text in before.items():
        (project / file).write_text(text)
    assert {host for host in ("same", "manager", "near_1") if changed[host] != hashes[host]} == differ
