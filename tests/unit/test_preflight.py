"""Wrong and missing settings stop a run before it reaches a host, and the message says what to edit in which file.

Many installations of one host share one run of the real ansible-playbook, and each has one thing wrong. In place of
ssh there is a program that notes its call, so a run that would have reached a host is seen without any network.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
GROUPS = ("web", "worker", "scheduler", "database", "broker")
APP, INVENTORY, VAULT = "group_vars/all/app.yml", "hosts.yml", "group_vars/all/vault.yml"
WORKER = {"name": "io", "queues": ["io"]}
WEB = {"processes": 2, "threads": 4}
SANDBOX = {"read_write_paths": [], "allow_jit": False, "egress_allow": []}
LIMITS = {"requests_per_second": 50, "burst": 200, "connections": 100}
SECRET = "hunter2-colon"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKMXJ2zGHsrkdF4zIhPEXC/OkkCoL5M7SPKYvbbiIj+f alice@laptop"
PRIVATE = "-----BEGIN OPENSSH PRIVATE KEY-----"
EMAIL = "ada@example.org"


@dataclass(frozen=True)
class Case:
    """An installation: its variables, the groups it is missing from, and what the message must say."""

    says: str
    variables: dict[str, Any] = field(default_factory=dict)
    absent: tuple[str, ...] = ()


def admin(name: str, keys: list[str] | None = None) -> dict[str, Any]:
    return {"name": name, "keys": [KEY] if keys is None else keys}


# Each key is the host; each message must begin with the file, then the variable, then these words.
CASES = {
    "text_is_number": Case("app_git_ref must be text", {"app_git_ref": 1.10, "app_source": "x.git"}),
    "text_is_list": Case("app_source must be text; it is", {"app_source": ["app_src"]}),
    "text_is_empty": Case("app_domain must be text; it is empty", {"app_domain": None}),
    "bool_is_text": Case("app_health_names_release must be true or false", {"app_health_names_release": "no"}),
    "dict_is_text": Case("app_environment must be a list of names", {"app_environment": "DEBUG=1"}),
    "list_is_dict": Case("app_workers must be a list; it is", {"app_workers": {"io": {}}}),
    "inner_type": Case("app_web.processes must be a whole number", {"app_web": {"processes": "two", "threads": 4}}),
    "inner_name": Case("app_web.treads is not a setting", {"app_web": {"processes": 2, "threads": 4, "treads": 1}}),
    "inner_range": Case("app_web.threads must be at least 1", {"app_web": {"processes": 2, "threads": 0}}),
    "undefined": Case("app_domain cannot be worked out: 'my_domain' is undefined", {"app_domain": "{{ my_domain }}"}),
    "misspelt": Case("app_domian is not a setting. Did you mean app_domain?", {"app_domian": "shop.example.org"}),
    "misspelt_role": Case("nginx_bodysize is not a setting", {"nginx_bodysize": 1}),
    "misspelt_secret": Case("secret_database_pasword is not a setting. Did", {"secret_database_pasword": "x"}),
    "name_form": Case("app_name must begin with a small letter", {"app_name": "My-Shop"}),
    "name_length": Case("app_name must begin with a small letter and hold at most 24", {"app_name": "a" * 25}),
    "name_taken": Case('app_name must not be "postgres"', {"app_name": "postgres"}),
    "secret_empty": Case("secret_database_password is empty", {"secret_database_password": ""}),
    "secret_changeme": Case("secret_django_key is still CHANGEME", {"secret_django_key": "changeme-later"}),
    "secret_lines": Case("secret_redis_password must be one line", {"secret_redis_password": "one\ntwo"}),
    "secret_number": Case("secret_admin_password must be text", {"secret_admin_password": 123456}),
    "secret_flower": Case("secret_flower_password must hold no colon", {"secret_flower_password": f"{SECRET}:x"}),
    "secret_flower_ascii": Case("secret_flower_password must hold ASCII", {"secret_flower_password": f"{SECRET}é"}),
    "domain_scheme": Case("app_domain must be a plain name", {"app_domain": "https://shop.example.org"}),
    "domain_path": Case("app_domain must be a plain name", {"app_domain": "shop.example.org/shop"}),
    "domain_port": Case("app_domain must be a plain name", {"app_domain": "shop.example.org:8443"}),
    "more_domains": Case('app_domain_aliases holds "*.example.org"; write', {"app_domain_aliases": ["*.example.org"]}),
    "domain_twice": Case('app_domain_aliases holds "a.example.org", which', {"app_domain_aliases": ["a.example.org"] * 2}),
    "acme_address": Case(
        'app_domain is "192.0.2.7", for which no CA', {"app_domain": "192.0.2.7", "app_certificate_email": EMAIL}
    ),
    "acme_label": Case('app_domain is "shop", for which', {"app_domain": "shop", "app_certificate_email": EMAIL}),
    "acme_email": Case("app_certificate_email must be empty or a mail", {"app_certificate_email": "ada"}),
    "acme_no_email": Case(
        "app_acme_directory_url names a server to ask, but", {"app_acme_directory_url": "https://ca.example.org/dir"}
    ),
    "acme_server": Case("app_acme_directory_url must be a URL", {"app_acme_directory_url": "ca.example.org"}),
    "acme_and_files": Case(
        "app_certificate_files is set, and app_certificate_email too",
        {"app_domain": "a.example.org", "app_certificate_email": EMAIL, "app_certificate_files": {"key": "a"}},
    ),
    "files_part": Case("app_certificate_files.key is missing", {"app_certificate_files": {"certificate": "README.md"}}),
    "files_name": Case("app_certificate_files.cert is not a setting", {"app_certificate_files": {"cert": "a"}}),
    "files_unreadable": Case(
        "app_certificate_files.certificate cannot be read from /nowhere.pem",
        {"app_certificate_files": {"certificate": "/nowhere.pem", "key": "README.md"}},
    ),
    "hsts": Case("app_hsts_seconds must be 0 or more", {"app_hsts_seconds": -1}),
    "no_folder": Case(f"app_source names the folder {ROOT}/nowhere, which does not exist", {"app_source": "nowhere"}),
    "no_manage": Case("app_project_dir must name the folder of manage.py", {"app_project_dir": "shop"}),
    "outside": Case("app_project_dir must be a path inside the project", {"app_project_dir": "../app_src"}),
    "no_requirements": Case("app_requirements names uv.lock, which", {"app_requirements": "uv.lock"}),
    "version_of_folder": Case('app_git_ref is "v1", but app_source is a folder', {"app_git_ref": "v1"}),
    "wsgi": Case("app_wsgi_app must be a module and a callable", {"app_wsgi_app": "core/wsgi.py"}),
    "settings_module": Case("app_settings_module must be a module", {"app_settings_module": "core/settings.py"}),
    "celery": Case("app_celery_app must be a module", {"app_celery_app": "core.celery app"}),
    "python": Case("app_python must be python3 or a version", {"app_python": "python3.12"}),
    "health": Case("app_health_path must be a path", {"app_health_path": "healthz"}),
    "time_zone": Case('app_time_zone must be a time zone such as', {"app_time_zone": "Berlin"}),
    "variable_name": Case("app_environment.MY-KEY cannot name", {"app_environment": {"MY-KEY": "x"}}),
    "variable_lines": Case("app_environment.KEY must be one line", {"app_environment": {"KEY": "a\nb"}}),
    "variable_bool": Case("app_environment.DEBUG must be in quotes", {"app_environment": {"DEBUG": False}}),
    "sandbox_name": Case("app_sandbox.paths is not a setting", {"app_sandbox": SANDBOX | {"paths": []}}),
    "sandbox_path": Case("app_sandbox.read_write_paths holds", {"app_sandbox": SANDBOX | {"read_write_paths": ["exports"]}}),
    "sandbox_manager": Case(
        "app_sandbox.egress_allow is for systemd",
        {"app_sandbox": SANDBOX | {"egress_allow": ["192.0.2.7"]}, "app_process_manager": "supervisor"},
    ),
    "sandbox_address": Case("app_sandbox.egress_allow holds", {"app_sandbox": SANDBOX | {"egress_allow": ["example.org"]}}),
    "web_memory": Case("app_web.memory_mb must be at least 64", {"app_web": WEB | {"memory_mb": 1}}),
    "worker_memory": Case("app_workers.io.memory_mb must be at least 64", {"app_workers": [WORKER | {"memory_mb": 1}]}),
    "upload": Case("app_max_upload must be megabytes", {"app_max_upload": "10 MB"}),
    "limits": Case("app_rate_limit.burst must be at least 0", {"app_rate_limit": LIMITS | {"burst": -1}}),
    "secret_blank": Case("secret_redis_admin_password is empty", {"secret_redis_admin_password": "  "}),
    "release_variable": Case("app_migration_environment.KEY must", {"app_migration_environment": {"KEY": ["a"]}}),
    "email_url": Case("app_email_url must be empty or a URL", {"app_email_url": "mail.example.org"}),
    "email_from": Case("app_email_from must be a mail address", {"app_email_from": "shop"}),
    "no_workers": Case("app_workers must list at least one worker", {"app_workers": []}),
    "no_queues": Case("app_workers.io.queues is empty", {"app_workers": [{"name": "io", "queues": []}]}),
    "queues_missing": Case("app_workers.io.queues is missing", {"app_workers": [{"name": "io"}]}),
    "queue_name": Case('app_workers.io.queues holds "a b"', {"app_workers": [{"name": "io", "queues": ["a b"]}]}),
    "same_name": Case("app_workers has more than one worker called io", {"app_workers": [WORKER, WORKER]}),
    "worker_name": Case("app_workers.My-IO must be called by", {"app_workers": [{**WORKER, "name": "My-IO"}]}),
    "worker_pool": Case('app_workers.io.pool must be one of "prefork"', {"app_workers": [{**WORKER, "pool": "fork"}]}),
    "concurrency": Case("app_workers.io.concurrency must be", {"app_workers": [{**WORKER, "concurrency": 0}]}),
    "manager": Case("app_process_manager must be ", {"app_process_manager": "runit"}),
    "address": Case('app_maintenance_addresses holds "10.0.0"; write', {"app_maintenance_addresses": ["10.0.0"]}),
    "netmask": Case(
        'app_maintenance_addresses holds "10.0.0.0/255.0.0.0"; write',
        {"app_maintenance_addresses": ["::1", "10.0.0.0/255.0.0.0"]},
    ),
    "network": Case(
        'app_maintenance_addresses holds "10.0.0.1/8"; the network is 10.0.0.0/8.',
        {"app_maintenance_addresses": ["10.0.0.1/8", "10.0.0.0/8", "192.0.2.7"]},
    ),
    "admin_name": Case("app_administrators.Alice must be called by", {"app_administrators": [admin("Alice")]}),
    "admin_root": Case("app_administrators.root is a user of the system", {"app_administrators": [admin("root")]}),
    "admin_app": Case("app_administrators.shop is a user of", {"app_administrators": [admin("shop")]}),
    "admin_twice": Case("app_administrators has more than one", {"app_administrators": [admin("al"), admin("al")]}),
    "admin_no_key": Case("app_administrators.al.keys is empty", {"app_administrators": [admin("al", [])]}),
    "admin_private": Case("app_administrators.al.keys holds a", {"app_administrators": [admin("al", [PRIVATE])]}),
    "admin_file": Case("app_administrators.al.keys holds what is", {"app_administrators": [admin("al", ["id.pub"])]}),
    "admin_cut": Case("app_administrators.al.keys holds a key that", {"app_administrators": [admin("al", [KEY[:60]])]}),
    "ssh_port": Case("app_ssh_port must not be 443: nginx listens", {"app_ssh_port": 443}),
    "ssh_port_range": Case("app_ssh_port must be a port", {"app_ssh_port": 0}),
    "trusted": Case('app_trusted_addresses holds "office"; write', {"app_trusted_addresses": ["office"]}),
    "firewall": Case('app_firewall_rules holds "25/tcp"; write a rule of ufw', {"app_firewall_rules": ["limit 26/tcp", "25/tcp"]}),
    "firewall_deny": Case(
        'app_firewall_rules holds "deny from 192.0.2.7"; write a rule of ufw',
        {"app_firewall_rules": ["allow in on br-lan to any port 25", "deny from 192.0.2.7"]},
    ),
    "maintenance_path": Case('app_maintenance_paths holds "up"; write', {"app_maintenance_paths": ["up"]}),
    "port_range": Case("app_https_port must be a port, from 1 to 65535; it is 70000", {"app_https_port": 70000}),
    "keep_none": Case("app_keep_releases must be at least 1", {"app_keep_releases": 0}),
    "hook_name": Case("app_hooks.before_swich is not a setting", {"app_hooks": {"before_swich": []}}),
    "port_type": Case("app_https_port must be a whole number", {"app_https_port": "https"}),
    "memory": Case("app_memory_mb must be at least 256", {"app_memory_mb": 1}),
    "database_url": Case("app_database_url must be", {"app_database_url": "mysql://db/shop"}, ("database",)),
    "owner_alone": Case("app_database_owner_url is set, but", {"app_database_owner_url": "postgresql://db/shop"}),
    "strange_host": Case("app_hosts names elsewhere", {"app_hosts": ["strange_host", "elsewhere"]}),
    "no_database": Case("database must be a group of one host; it has none", absent=("database",)),
    "no_broker": Case("broker must be a group of one host; it has none", absent=("broker",)),
    "broker_half": Case("broker must be a group of one host", {"app_broker_url": "redis://r:6379/0"}, ("broker",)),
    "database_twice": Case("database must be an empty group", {"app_database_url": "postgresql://db/shop"}),
    "no_worker": Case("worker must be a group of at least one host", absent=("worker",)),
    "no_scheduler": Case("scheduler must be a group of exactly one host", absent=("scheduler",)),
    "two_schedulers": Case(
        "scheduler must be a group of exactly one host, since beat must run only once; it has two_schedulers, second",
        {"app_hosts": ["two_schedulers", "second"]},
    ),
}  # fmt: skip

# True, false and nothing carry no place in Ansible.
PLACELESS = {"text_is_empty"}


@dataclass(frozen=True)
class Run:
    """What a run of ansible-playbook came to."""

    status: int
    output: str
    reached: bool

    def messages(self) -> dict[str, str]:
        """The message of every host that failed."""
        assert self.output.startswith("{"), self.output
        plays = json.loads(self.output)["plays"]
        results = [result for play in plays for task in play["tasks"] for result in task["hosts"].items()]
        return {host: result["msg"] for host, result in results if result.get("failed")}


def inventory(hosts: dict[str, Case], ssh: Path) -> str:
    """JSON, which is YAML as well; one line for each host."""
    common = {"ansible_host": "192.0.2.1", "ansible_ssh_executable": str(ssh), "app_memory_mb": 1024}
    entries = {
        name: common | {"app_domain": "shop.example.org", "app_hosts": [name]} | case.variables
        for name, case in hosts.items()
    }
    children = {
        group: {"hosts": {name: {} for name, case in hosts.items() if group not in case.absent}} for group in GROUPS
    }
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(variables)}" for name, variables in entries.items())
    return f'{{"all": {{"children": {json.dumps(children)}, "hosts": {{\n{lines}\n}}}}}}\n'


def play(folder: Path, hosts: dict[str, Case], project: Path = ROOT, playbook: str = "site.yml", *options: str) -> Run:
    """Run a playbook on these installations."""
    folder.mkdir()
    ssh, reached = folder / "ssh", folder / "reached"
    ssh.write_text(f"#!/bin/sh\ntouch '{reached}'\nexit 255\n")
    ssh.chmod(0o755)
    (folder / INVENTORY).write_text(inventory(hosts, ssh))
    command = [Path(sys.executable).parent / "ansible-playbook", "-i", folder / INVENTORY, project / playbook, *options]
    environment = os.environ | {
        "ANSIBLE_CONFIG": str(project / "ansible.cfg"),
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_SSH_RETRIES": "0",
    }
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return Run(done.returncode, done.stdout, reached.exists())


def edited_project(folder: Path) -> Path:
    """This project with mistakes in the very files that people edit."""
    folder.mkdir()
    shutil.copytree(ROOT / "group_vars", folder / "group_vars")
    (folder / "playbooks").mkdir()
    for playbook in (ROOT / "playbooks").glob("*.yml"):
        shutil.copy(playbook, folder / "playbooks")
    (folder / "playbooks/group_vars").symlink_to("../group_vars")
    shutil.copy(ROOT / "ansible.cfg", folder)
    shutil.copytree(ROOT / "roles", folder / "roles")
    for name in ("app_src", "plugins"):
        (folder / name).symlink_to(ROOT / name)
    app = folder / APP
    lines = [line for line in app.read_text().splitlines() if not line.startswith(("app_wsgi_app:", "app_health_path:"))]
    app.write_text("\n".join([*lines, "app_health_path: up", ""]))
    (folder / VAULT).write_text("---\nsecret_django_key: CHANGEME\n")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Every run that the tests look at, side by side."""
    top = tmp_path_factory.mktemp("preflight")
    edited = edited_project(top / "edited")
    second = Case("", {"app_hosts": ["two_schedulers", "second"]}, ("database", "broker"))
    several = Case("", {"app_wsgi_app": "wsgi", "app_https_port": 0, "app_domian": "x", "app_time_zone": "Berlin"})
    with ThreadPoolExecutor(2) as pool:
        started = {
            "wrong": pool.submit(play, top / "wrong", CASES | {"second": second}),
            "right": pool.submit(play, top / "right", {"right": Case("")}),
            "several": pool.submit(play, top / "several", {"several": several}, ROOT, "playbooks/deploy.yml"),
            "edited": pool.submit(play, top / "e", {"edited": Case("")}, edited, "playbooks/provision.yml"),
            "old": pool.submit(play, top / "old", {"old": Case("")}, ROOT, "site.yml", "-e__preflight_ansible=99"),
        }
        return {name: run.result() for name, run in started.items()}


def test_right_settings_lead_to_the_host(runs: dict[str, Run]) -> None:
    """So that the others are known to have stopped for their mistakes, and ssh's stand-in is known to notice."""
    assert [message.splitlines()[0] for message in runs["right"].messages().values()] == ["Cannot log in to right:"]
    assert runs["right"].reached


@pytest.mark.parametrize("name", ["wrong", "several", "edited", "old"])
def test_no_host_is_reached(runs: dict[str, Run], name: str) -> None:
    assert runs[name].status != 0
    assert not runs[name].reached


@pytest.mark.parametrize("host", CASES)
def test_one_mistake_stops_the_run(runs: dict[str, Run], host: str) -> None:
    first, *problems = runs["wrong"].messages()[host].splitlines()
    assert first == "Nothing was changed: one setting needs an edit."
    assert len(problems) == 1
    place, _, sentence = problems[0].strip().partition(": ")
    assert sentence.startswith(CASES[host].says)
    assert "hosts.yml" in place or (host in PLACELESS and place == "inventory, host_vars or -e")


def test_secrets_stay_out_of_messages(runs: dict[str, Run]) -> None:
    assert SECRET not in runs["wrong"].output


def test_every_mistake_is_listed(runs: dict[str, Run]) -> None:
    """Also by a playbook that only rolls out a release."""
    first, *problems = runs["several"].messages()["several"].splitlines()
    assert first == "Nothing was changed: 4 settings need an edit."
    assert [problem.split()[1] for problem in problems] == ["app_domian", "app_wsgi_app", "app_time_zone", "app_https_port"]


def test_the_line_to_edit_is_named(runs: dict[str, Run]) -> None:
    _, *problems = runs["edited"].messages()["edited"].splitlines()
    last_line = len((ROOT / APP).read_text().splitlines()) - 1
    assert [problem.strip() for problem in problems] == [
        f"{APP}: app_wsgi_app is missing. Every setting needs its line there.",
        f'{APP}:{last_line}: app_health_path must be a path such as /healthz/; it is "up".',
        f"{VAULT}:2: secret_django_key is still CHANGEME. Give it a value, or remove the line to have one made.",
    ]


def test_an_old_ansible_is_told_how_to_get_the_right_one(runs: dict[str, Run]) -> None:
    assert "make .venv" in runs["old"].messages()["old"]


def load_preflight() -> ModuleType:
    loader = importlib.util.spec_from_file_location("preflight", ROOT / "plugins/action/preflight.py")
    assert loader
    assert loader.loader
    sys.modules["preflight"] = preflight = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(preflight)
    return preflight


@pytest.mark.parametrize(
    ("hosts", "address", "wrong"),
    [
        (["front", "data"], "10.0.0.12", False),
        (["front", "data"], "data.example.org", True),
        # In a URL it would need brackets.
        (["front", "data"], "2001:db8::12", True),
        (["front"], "front.example.org", False),
    ],
)
def test_hosts_reach_each_other_at_addresses(hosts: list[str], address: str, wrong: bool) -> None:
    preflight = load_preflight()
    here = preflight.Installation({"app_private_address": address}, {}, ROOT, "hosts.yml", {}, hosts)
    assert [problem.name for problem in preflight.check_private_address(here)] == ["app_private_address"] * wrong


def test_no_value_is_too_odd_for_a_sentence() -> None:
    """The checks themselves never fail, whatever a setting holds."""
    preflight = load_preflight()
    spec = yaml.safe_load((ROOT / "roles/preflight/meta/argument_specs.yml").read_text())
    options = spec["argument_specs"]["settings"]["options"]
    right = yaml.safe_load((ROOT / APP).read_text()) | {"app_domain": "shop.example.org", "app_memory_mb": 1024}
    right |= {"app_email_from": "shop@shop.example.org", "app_admin_email": "admin@shop.example.org"}
    groups = {name: ["here"] for name in ("all", *GROUPS)}

    def sentences(values: dict[str, Any]) -> list[str]:
        here = preflight.Installation(values, options, ROOT, "hosts.yml", groups, ["here"])
        return [problem.sentence for problem in preflight.setting_problems(here)]

    assert sentences(right) == []
    odd = [None, True, 0, -1, 1.5, "", " ", "0", "a\nb", "../\0", "é", [], [None], [[]], [{}], {}, {"a": None}, {1: 2}]
    odd += [[{"name": value, "queues": value, "concurrency": value}] for value in odd]
    for name in options:
        for value in odd:
            assert all(sentence.endswith((".", ")")) for sentence in sentences(right | {name: value})), (name, value)
