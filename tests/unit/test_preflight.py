"""Invalid settings stop a run before it contacts a host, and the message says what to edit in which file.

Many installations of one host share a run of ansible-playbook, and each has one invalid setting. A program
that records its call replaces ssh, so that the tests notice a run that would contact a host, without any network.
"""

from __future__ import annotations

import importlib.util
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from plugin_utils.preflight.application import PYTHON
from plugin_utils.preflight.checks import setting_problems
from plugin_utils.preflight.files import environment_of
from plugin_utils.preflight.hosts import check_private_address
from plugin_utils.preflight.names import RENAMED
from plugin_utils.preflight.problems import Installation
from project import GROUPS, ROOT, Run, copy_project, run_playbook, stub_ssh

SPEC = importlib.util.spec_from_file_location("preflight_action", ROOT / "plugins/action/preflight.py")
ACTION = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ACTION)

INVENTORY, DEFAULTS = "hosts.yml", "group_vars/all/defaults.yml"
APP, VAULT = "group_vars/production/app.yml", "group_vars/production/vault.yml"
WORKER = {"name": "io", "queues": ["io"]}
BOT = {"name": "bot", "command": "python manage.py runbot"}
TICK = {"name": "tick", "command": "python manage.py tick", "schedule": "daily"}
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
    "role_dict": Case(
        "redis_broker_settings must be a mapping of names to values; it is text.",
        {"redis_broker_settings": f"requirepass {SECRET}"},
    ),
    "role_undefined": Case(
        "redis_memory_mb cannot be resolved: 'app_memory' is undefined. app_memory is not a setting.",
        {"redis_memory_mb": "{{ app_memory | int }}"},
    ),
    "role_text": Case("nginx_ipv6 must be true or false, without quotes", {"nginx_ipv6": "no"}),
    "role_empty": Case("redis_memory_mb must be a whole number; it is empty", {"redis_memory_mb": None}),
    "role_bool": Case("nginx_ipv6 must be true or false; it is empty", {"nginx_ipv6": None}),
    "role_int": Case("redis_memory_mb must be a whole number", {"redis_memory_mb": "much"}),
    "role_list": Case("nginx_settings must be a mapping of names", {"nginx_settings": ["gzip on"]}),
    "text_is_number": Case("app_git_ref must be text", {"app_git_ref": 1.10, "app_source": "x.git"}),
    "text_is_list": Case("app_source must be text; it is", {"app_source": ["app_src"]}),
    "text_is_empty": Case("app_domain must be text; it is empty", {"app_domain": None}),
    "bool_is_text": Case("app_dump_before_migrate must be true or false", {"app_dump_before_migrate": "no"}),
    "names_release": Case("app_health_names_release must be true, false or auto", {"app_health_names_release": "no"}),
    "dict_is_text": Case("app_environment must be a mapping of names", {"app_environment": "DEBUG=1"}),
    "list_is_dict": Case("app_workers must be a list; it is", {"app_workers": {"io": {}}}),
    "inner_type": Case("app_web.processes must be a whole number", {"app_web": {"processes": "two", "threads": 4}}),
    "inner_name": Case("app_web.treads is not a setting", {"app_web": {"processes": 2, "threads": 4, "treads": 1}}),
    "request_timeout": Case("app_request_timeout must be seconds from 1", {"app_request_timeout": 0}),
    "long_request_path": Case('app_long_requests contains "export"', {"app_long_requests": {"export": 600}}),
    "long_request_root": Case('app_long_requests contains "/"', {"app_long_requests": {"/": 600}}),
    "long_request_media": Case('app_long_requests contains "/media/x"', {"app_long_requests": {"/media/x": 600}}),
    "long_request_status": Case('app_long_requests contains "/status/"', {"app_long_requests": {"/status/": 600}}),
    "long_request_moved": Case(
        'app_long_requests contains "/ops/x"', {"app_status_path": "/ops/", "app_long_requests": {"/ops/x": 600}}
    ),
    "status_path_form": Case("app_status_path must match ^(/[A-Za-z0-9_-]+)+/$", {"app_status_path": "/status"}),
    "status_path_root": Case("app_status_path must match ^(/", {"app_status_path": "/"}),
    "status_path_taken": Case("app_status_path must match ^(/", {"app_status_path": "/flower/status/"}),
    "health_path_status": Case("app_health_path is /status, where nginx", {"app_health_path": "/status"}),
    "long_request_short": Case(
        "app_long_requests./export/ must be seconds from app_request_timeout, 60",
        {"app_long_requests": {"/export/": 5}},
    ),
    "inner_range": Case("app_web.threads must be at least 1", {"app_web": {"processes": 2, "threads": 0}}),
    "undefined": Case(
        "app_domain cannot be resolved: 'my_domain' is undefined. Define my_domain in group_vars/ENV/app.yml, or",
        {"app_domain": "{{ my_domain }}"},
    ),
    "undefined_secret": Case(
        "app_environment cannot be resolved: 'secret_stripe' is undefined. Define secret_stripe in group_vars/ENV/",
        {"app_environment": {"STRIPE_KEY": "{{ secret_stripe }}"}},
    ),
    "undefined_setting": Case(
        "app_environment cannot be resolved: 'app_domian' is undefined. app_domian is not a setting. "
        "Did you mean app_domain?",
        {"app_environment": {"SITE": "{{ app_domian }}"}},
    ),
    "undefined_role": Case(
        "app_environment cannot be resolved: 'nginx_bodysize' is undefined. nginx_bodysize is not a setting.",
        {"app_environment": {"SIZE": "{{ nginx_bodysize }}"}},
    ),
    "undefined_result": Case(
        "app_environment cannot be resolved: 'runtime_hash' is undefined. runtime_hash is set by the role runtime.",
        {"app_environment": {"HASH": "{{ runtime_hash }}"}},
    ),
    "misspelt": Case("app_domian is not a setting. Did you mean app_domain?", {"app_domian": "shop.example.org"}),
    "misspelt_role": Case("nginx_bodysize is not a setting", {"nginx_bodysize": 1}),
    "misspelt_wired": Case(
        "nginx_client_max_body_size is not a setting. Did you mean app_max_upload?", {"nginx_client_max_body_size": 10}
    ),
    "unlike_all": Case("postgresql_version is not a setting. Is it misspelt?", {"postgresql_version": 16}),
    "misspelt_secret": Case("secret_database_pasword is not a setting. Did", {"secret_database_pasword": "x"}),
    "name_form": Case("app_name must match ^[a-z][a-z0-9_]{0,23}$; it is \"My-Shop\".", {"app_name": "My-Shop"}),
    "name_length": Case("app_name must match ^[a-z][a-z0-9_]{0,23}$", {"app_name": "a" * 25}),
    "name_taken": Case('app_name must not be "postgres"', {"app_name": "postgres"}),
    "renamed": Case("app_version was renamed to app_git_ref.", {"app_version": "v1"}),
    "renamed_part": Case(
        "app_sandbox.outgoing was renamed to egress_allow.", {"app_sandbox": SANDBOX | {"outgoing": []}}
    ),
    "renamed_role": Case("contact_port was renamed to connection_port.", {"contact_port": 22}),
    "wired": Case(
        "redis_password cannot be set: it is computed from secret_redis_password. Set that instead.",
        {"redis_password": "x"},
    ),
    "wired_dict": Case(
        "nginx_rate_limit cannot be set: it is computed from app_rate_limit. Set that instead.",
        {"nginx_rate_limit": LIMITS},
    ),
    "wired_path": Case(
        "nginx_socket cannot be set: it is computed from app_name. Set that instead.", {"nginx_socket": "/run/x"}
    ),
    "wired_bool": Case("release_barriers cannot be set", {"release_barriers": True}),
    "set_by_role": Case("bootstrap_seen is set by the role bootstrap", {"bootstrap_seen": {"stdout": "x"}}),
    "set_by_play": Case("nginx_maintenance_state is set by playbooks/maint", {"nginx_maintenance_state": "on"}),
    "packages": Case('app_system_packages contains "libpq dev"', {"app_system_packages": ["libpq dev"]}),
    "packages_renamed": Case("app_packages was renamed to app_system_packages.", {"app_packages": ["gettext"]}),
    "extra": Case('app_extra_requirements contains "-r x.txt"', {"app_extra_requirements": ["-r x.txt"]}),
    "command": Case("app_build_commands contains an empty command", {"app_build_commands": [" "]}),
    "build_name": Case("app_build_environment.A-B must match", {"app_build_environment": {"A-B": "x"}}),
    "ssh_key": Case("app_build_ssh_key names the file /nothing, which", {"app_build_ssh_key": "/nothing"}),
    "ssh_key_public": Case("app_build_ssh_key must name a private SSH key", {"app_build_ssh_key": "LICENSE"}),
    "file_place": Case("app_files.../a must be a relative path", {"app_files": {"../a": {"content": ""}}}),
    "file_taken": Case("app_files.run/a is a name that Seedbed uses", {"app_files": {"run/a": {"content": ""}}}),
    "file_source": Case("app_files.a names the file /nothing, which", {"app_files": {"a": {"src": "/nothing"}}}),
    "file_both": Case("app_files.a must have either src", {"app_files": {"a": {"src": "x", "content": "x"}}}),
    "database_default": Case(
        "app_databases names `default`", {"app_databases": [{"name": "default", "environment": "X_URL"}]}
    ),
    "database_name": Case(
        'app_databases.name must match ^[a-z][a-z0-9_]{0,31}$; it is "A-b".',
        {"app_databases": [{"name": "A-b", "environment": "X_URL"}]},
    ),
    "database_reserved": Case(
        'app_databases.name must not be import or begin with before_, as databases of import-database do: "import".',
        {"app_databases": [{"name": "import", "environment": "X_URL"}]},
    ),
    "database_extension": Case(
        'app_databases.stats.extensions contains "Post GIS"',
        {"app_databases": [{"name": "stats", "environment": "STATS_URL", "extensions": ["Post GIS"]}]},
    ),
    "database_variable": Case(
        "app_databases.stats.environment must be a variable of its own, such as STATS_URL",
        {"app_databases": [{"name": "stats", "environment": "DATABASE_URL"}]},
    ),
    "database_managed": Case(
        "app_databases.stats.url is missing, since app_database_url is set.",
        {
            "app_databases": [{"name": "stats", "environment": "STATS_URL"}],
            "app_database_url": "postgresql://a:b@db.example.org/x",
        },
        ("database",),
    ),
    "extension": Case('app_database_extensions contains "Post GIS"', {"app_database_extensions": ["Post GIS"]}),
    "extension_managed": Case(
        "app_database_extensions cannot be created in a managed database (app_database_url). Run there",
        {"app_database_extensions": ["citext"], "app_database_url": "postgresql://a:b@db.example.org/x"},
        ("database",),
    ),
    "secret_empty": Case("secret_database_password is empty", {"secret_database_password": ""}),
    "secret_changeme": Case("secret_django_key is still CHANGEME", {"secret_django_key": "changeme-later"}),
    "secret_lines": Case("secret_redis_password must be one line", {"secret_redis_password": "one\ntwo"}),
    "secret_number": Case("secret_admin_password must be text", {"secret_admin_password": 123456}),
    "secret_flower": Case("secret_flower_password must not contain a colon", {"secret_flower_password": f"{SECRET}:x"}),
    "secret_flower_ascii": Case("secret_flower_password must contain ASCII", {"secret_flower_password": f"{SECRET}é"}),
    "domain_scheme": Case("app_domain must be a domain", {"app_domain": "https://shop.example.org"}),
    "domain_path": Case("app_domain must be a domain", {"app_domain": "shop.example.org/shop"}),
    "domain_port": Case("app_domain must be a domain", {"app_domain": "shop.example.org:8443"}),
    "more_domains": Case(
        'app_domain_aliases contains "*.example.org"; write', {"app_domain_aliases": ["*.example.org"]}
    ),
    "domain_twice": Case(
        'app_domain_aliases contains "a.example.org", which', {"app_domain_aliases": ["a.example.org"] * 2}
    ),
    "acme_address": Case(
        'app_domain is "192.0.2.7", for which no CA', {"app_domain": "192.0.2.7", "app_certificate_email": EMAIL}
    ),
    "acme_label": Case('app_domain is "shop", for which', {"app_domain": "shop", "app_certificate_email": EMAIL}),
    "acme_email": Case("app_certificate_email must be empty or an email", {"app_certificate_email": "ada"}),
    "acme_no_email": Case(
        "app_acme_directory_url is set, but app_certificate_email is empty", {"app_acme_directory_url": "https://ca.example.org/dir"}
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
    "hsts": Case("app_hsts_seconds must be at least 0", {"app_hsts_seconds": -1}),
    "no_folder": Case(f"app_source names the folder {ROOT}/nowhere, which does not exist", {"app_source": "nowhere"}),
    "no_manage": Case("app_project_dir must be the folder of manage.py", {"app_project_dir": "shop"}),
    "no_project_dir": Case("app_project_dir must be a folder of the project", {"app_project_dir": "shops"}),
    "outside": Case("app_project_dir must be a relative path inside the project", {"app_project_dir": "../app_src"}),
    "no_requirements": Case("app_requirements names uv.lock, which does not exist in", {"app_requirements": "uv.lock"}),
    "version_of_folder": Case('app_git_ref is "v1", but app_source is a folder', {"app_git_ref": "v1"}),
    "wsgi": Case("app_wsgi_app must be MODULE:CALLABLE", {"app_wsgi_app": "core/wsgi.py"}),
    "settings_module": Case("app_settings_module must be a module", {"app_settings_module": "core/settings.py"}),
    "celery": Case("app_celery_app must be a module", {"app_celery_app": "core.celery app"}),
    "python": Case("app_python must be python3, a version", {"app_python": "python3.12"}),
    "health": Case("app_health_path must be empty", {"app_health_path": "healthz"}),
    "time_zone": Case('app_time_zone must be a time zone such as', {"app_time_zone": "Berlin"}),
    "variable_name": Case("app_environment.MY-KEY is not a valid name", {"app_environment": {"MY-KEY": "x"}}),
    "variable_carriage": Case("app_environment.KEY contains '\\r'", {"app_environment": {"KEY": "a\r\nb"}}),
    "gunicorn_reload": Case(
        "app_environment.GUNICORN_CMD_ARGS contains --reload", {"app_environment": {"GUNICORN_CMD_ARGS": "--reload"}}
    ),
    "variable_bool": Case("app_environment.DEBUG must be in quotes", {"app_environment": {"DEBUG": False}}),
    "sandbox_name": Case("app_sandbox.paths is not a setting", {"app_sandbox": SANDBOX | {"paths": []}}),
    "sandbox_path": Case(
        "app_sandbox.read_write_paths contains", {"app_sandbox": SANDBOX | {"read_write_paths": ["exports"]}}
    ),
    "sandbox_manager": Case(
        "app_sandbox.egress_allow needs systemd",
        {"app_sandbox": SANDBOX | {"egress_allow": ["192.0.2.7"]}, "app_process_manager": "supervisor"},
    ),
    "sandbox_address": Case(
        "app_sandbox.egress_allow contains", {"app_sandbox": SANDBOX | {"egress_allow": ["example.org"]}}
    ),
    "web_memory": Case("app_web.memory_mb must be at least 64", {"app_web": WEB | {"memory_mb": 1}}),
    "worker_memory": Case("app_workers.io.memory_mb must be at least 64", {"app_workers": [WORKER | {"memory_mb": 1}]}),
    "upload": Case("app_max_upload must be megabytes", {"app_max_upload": "10 MB"}),
    "limits": Case("app_rate_limit.burst must be at least 0", {"app_rate_limit": LIMITS | {"burst": -1}}),
    "secret_blank": Case("secret_redis_admin_password is empty", {"secret_redis_admin_password": "  "}),
    "release_variable": Case("app_migration_environment.KEY must", {"app_migration_environment": {"KEY": ["a"]}}),
    "email_url": Case("app_email_url must be empty or a URL", {"app_email_url": "mail.example.org"}),
    "alert_address": Case(
        'app_alert_emails contains "ops"; write an email address',
        {"app_alert_emails": ["ops"], "app_email_url": "smtp://mail.example.org"},
    ),
    "alert_mail_server": Case("app_alert_emails needs a mail server: set app_email_url", {"app_alert_emails": [EMAIL]}),
    "alert_mail_file": Case(
        "app_alert_emails needs a mail server", {"app_alert_emails": [EMAIL], "app_email_url": "file:///srv/mail"}
    ),
    "alert_webhook": Case(
        "app_alert_webhook must be empty or a URL that begins with https://", {"app_alert_webhook": "hooks.example.org"}
    ),
    "alert_ntfy": Case("app_alert_ntfy must be empty or a URL", {"app_alert_ntfy": "ftp://ntfy.example.org/shop"}),
    "heartbeat": Case("app_heartbeat_url must be empty or a URL", {"app_heartbeat_url": "https://hc.example.org/a b"}),
    "watch_minutes": Case("app_watch_minutes must be minutes from 0 to 1440", {"app_watch_minutes": 1441}),
    "email_from": Case("app_email_from must be an email address", {"app_email_from": "shop"}),
    "no_workers": Case("app_workers must list at least one worker", {"app_workers": []}),
    "no_queues": Case("app_workers.io.queues is empty", {"app_workers": [{"name": "io", "queues": []}]}),
    "queues_missing": Case(
        "app_workers has 2 workers without queues (io, rest)", {"app_workers": [{"name": "io"}, {"name": "rest"}]}
    ),
    "external_queue": Case(
        'app_external_queues contains "io", which a worker', {"app_workers": [WORKER], "app_external_queues": ["io"]}
    ),
    "beat_scheduler": Case("app_beat_scheduler must be empty or a class", {"app_beat_scheduler": "no class"}),
    "queue_name": Case('app_workers.io.queues contains "a b"', {"app_workers": [{"name": "io", "queues": ["a b"]}]}),
    "same_name": Case("app_workers has more than one worker named io", {"app_workers": [WORKER, WORKER]}),
    "worker_name": Case("app_workers.My-IO is not a valid name", {"app_workers": [{**WORKER, "name": "My-IO"}]}),
    "worker_pool": Case('app_workers.io.pool must be one of "prefork"', {"app_workers": [{**WORKER, "pool": "fork"}]}),
    "asgi_missing": Case("app_web.worker is asgi: set app_asgi_app", {"app_web": {"worker": "asgi"}}),
    "asgi_app": Case("app_asgi_app must be MODULE:CALLABLE", {"app_asgi_app": "config.asgi"}),
    "web_worker": Case('app_web.worker must be one of "auto"', {"app_web": {"worker": "uvicorn"}}),
    "web_stop": Case("app_web.stop_timeout must be at least 0", {"app_web": {"stop_timeout": -1}}),
    "limit_name": Case(
        "app_database_limits.web.work_mem is not a limit", {"app_database_limits": {"web": {"work_mem": "1MB"}}}
    ),
    "limit_value": Case(
        "app_database_limits.web.lock_timeout must be 0 or a time",
        {"app_database_limits": {"web": {"lock_timeout": "forever"}}},
    ),
    "limit_kind": Case("app_database_limits.flower is not a setting", {"app_database_limits": {"flower": {}}}),
    "limit_twice": Case(
        "app_database_limits is passed as PGOPTIONS",
        {"app_database_limits": {"web": {"lock_timeout": 0}}, "app_environment": {"PGOPTIONS": "-c a=b"}},
    ),
    "header_own": Case(
        "app_response_headers.X-Frame-Options is a header that", {"app_response_headers": {"X-Frame-Options": "DENY"}}
    ),
    "header_value": Case("app_response_headers.X-A must be text", {"app_response_headers": {"X-A": "$a"}}),
    "process_name": Case("app_processes.My-Bot is not a valid name", {"app_processes": [BOT | {"name": "My-Bot"}]}),
    "process_taken": Case("app_processes.main has the name of a worker", {"app_processes": [BOT | {"name": "main"}]}),
    "process_twice": Case("app_processes has more than one entry named bot", {"app_processes": [BOT, BOT]}),
    "process_shell": Case(
        "app_processes.bot.command must be one command", {"app_processes": [BOT | {"command": "a && b"}]}
    ),
    "process_quotes": Case("app_processes.bot.command cannot be read", {"app_processes": [BOT | {"command": "a 'b"}]}),
    "process_variable": Case(
        "app_processes.bot.command must begin with a program", {"app_processes": [BOT | {"command": "A=1 b"}]}
    ),
    "process_reload": Case(
        "app_processes.bot.command contains --reload", {"app_processes": [BOT | {"command": "uvicorn a:b --reload"}]}
    ),
    "process_reload_shell": Case(
        "app_processes.bot.command contains --reload",
        {"app_processes": [BOT | {"command": "sh -c 'gunicorn --reload-engine=poll a:b'"}]},
    ),
    "process_group": Case(
        "app_processes.bot.group cannot be set beside single",
        {"app_processes": [BOT | {"single": True, "group": "web"}]},
    ),
    "process_stop": Case("app_processes.bot.stop_timeout must be", {"app_processes": [BOT | {"stop_timeout": -1}]}),
    "cron_name": Case("app_cron.My-Tick is not a valid name", {"app_cron": [TICK | {"name": "My-Tick"}]}),
    "cron_command": Case("app_cron.tick.command must be a command", {"app_cron": [TICK | {"command": " "}]}),
    "cron_schedule": Case("app_cron.tick.schedule must be a time", {"app_cron": [TICK | {"schedule": "daily; x"}]}),
    "cron_timeout": Case("app_cron.tick.timeout must be at least 1", {"app_cron": [TICK | {"timeout": 0}]}),
    "concurrency": Case("app_workers.io.concurrency must be", {"app_workers": [{**WORKER, "concurrency": 0}]}),
    "manager": Case("app_process_manager must be ", {"app_process_manager": "runit"}),
    "address": Case('app_maintenance_addresses contains "10.0.0"; write', {"app_maintenance_addresses": ["10.0.0"]}),
    "netmask": Case(
        'app_maintenance_addresses contains "10.0.0.0/255.0.0.0"; write',
        {"app_maintenance_addresses": ["::1", "10.0.0.0/255.0.0.0"]},
    ),
    "network": Case(
        'app_maintenance_addresses contains "10.0.0.1/8"; the network is 10.0.0.0/8.',
        {"app_maintenance_addresses": ["10.0.0.1/8", "10.0.0.0/8", "192.0.2.7"]},
    ),
    "admin_name": Case("app_administrators.Alice is not a valid user name", {"app_administrators": [admin("Alice")]}),
    "admin_root": Case("app_administrators.root is a user of the system", {"app_administrators": [admin("root")]}),
    "admin_app": Case("app_administrators.shop is a user of", {"app_administrators": [admin("shop")]}),
    "admin_twice": Case("app_administrators has more than one", {"app_administrators": [admin("al"), admin("al")]}),
    "admin_no_key": Case("app_administrators.al.keys is empty", {"app_administrators": [admin("al", [])]}),
    "admin_private": Case(
        "app_administrators.al.keys contains a private key", {"app_administrators": [admin("al", [PRIVATE])]}
    ),
    "admin_file": Case(
        "app_administrators.al.keys contains something else", {"app_administrators": [admin("al", ["id.pub"])]}
    ),
    "admin_cut": Case(
        "app_administrators.al.keys contains an incomplete key", {"app_administrators": [admin("al", [KEY[:60]])]}
    ),
    "ssh_port": Case("app_ssh_port must not be 443: nginx listens", {"app_ssh_port": 443}),
    "ssh_port_range": Case("app_ssh_port must be a port", {"app_ssh_port": 0}),
    "proxy": Case('app_trusted_proxies contains "cdn"; write', {"app_trusted_proxies": ["cdn"]}),
    "every_proxy": Case('app_trusted_proxies contains "0.0.0.0/0", which', {"app_trusted_proxies": ["0.0.0.0/0"]}),
    "trusted": Case('app_trusted_addresses contains "office"; write', {"app_trusted_addresses": ["office"]}),
    "firewall": Case(
        'app_firewall_rules contains "25/tcp"; a rule must match', {"app_firewall_rules": ["limit 26/tcp", "25/tcp"]}
    ),
    "node_exporter": Case(
        'app_node_exporter_address must be an address of the server, such as 10.0.0.5; it is "10.0.0.0/8"',
        {"app_node_exporter_address": "10.0.0.0/8"},
    ),
    "firewall_deny": Case(
        'app_firewall_rules contains "deny from 192.0.2.7"; a rule must match',
        {"app_firewall_rules": ["allow in on br-lan to any port 25", "deny from 192.0.2.7"]},
    ),
    "maintenance_path": Case('app_maintenance_paths contains "up"; write', {"app_maintenance_paths": ["up"]}),
    "port_range": Case("app_https_port must be a port, from 1 to 65535; it is 70000", {"app_https_port": 70000}),
    "keep_none": Case("app_keep_releases must be at least 1", {"app_keep_releases": 0}),
    "hook_name": Case("app_hooks.before_swich is not a setting", {"app_hooks": {"before_swich": []}}),
    "port_type": Case("app_https_port must be a whole number", {"app_https_port": "https"}),
    "memory": Case("app_memory_mb must be at least 256", {"app_memory_mb": 1}),
    "database_url": Case("app_database_url must be", {"app_database_url": "mysql://db/shop"}, ("database",)),
    "owner_alone": Case("app_database_owner_url is set, but", {"app_database_owner_url": "postgresql://db/shop"}),
    "strange_host": Case("app_hosts names elsewhere", {"app_hosts": ["strange_host", "elsewhere"]}),
    "no_database": Case("group database must have one host; it has none", absent=("database",)),
    "no_broker": Case("group broker must have one host; it has none", absent=("broker",)),
    "broker_half": Case("group broker must have one host", {"app_broker_url": "redis://r:6379/0"}, ("broker",)),
    "database_twice": Case("group database must be empty", {"app_database_url": "postgresql://db/shop"}),
    "no_worker": Case("group worker must have at least one host", absent=("worker",)),
    "no_scheduler": Case("group scheduler must have exactly one host", absent=("scheduler",)),
    "two_schedulers": Case(
        "group scheduler must have exactly one host, since beat must run only once; it has two_schedulers, second",
        {"app_hosts": ["two_schedulers", "second"]},
    ),
}  # fmt: skip

# True, false and nothing carry no place in Ansible.
PLACELESS = {"text_is_empty", "wired_bool", "role_empty", "role_bool"}
# Installations of one run.
PART = 40


def inventory(hosts: dict[str, Case], ssh: Path, environment: str = "all") -> str:
    """Return an inventory in JSON, which is YAML as well; one line for each host."""
    common = {"ansible_host": "192.0.2.1", "ansible_ssh_executable": str(ssh), "app_memory_mb": 1024}
    entries = {
        name: common | {"app_domain": "shop.example.org", "app_hosts": [name]} | case.variables
        for name, case in hosts.items()
    }
    children = {
        group: {"hosts": {name: {} for name, case in hosts.items() if group not in case.absent}} for group in GROUPS
    }
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(variables)}" for name, variables in entries.items())
    given = json.dumps({"app_time_zone": "Europe/Berlin"} if environment != "all" else {})
    return f'{{"{environment}": {{"vars": {given}, "children": {json.dumps(children)}, "hosts": {{\n{lines}\n}}}}}}\n'


def play(
    folder: Path,
    hosts: dict[str, Case],
    project: Path = ROOT,
    playbook: str = "site.yml",
    *options: str,
    one_process: bool = False,
) -> Run:
    """Run a playbook on these installations."""
    folder.mkdir()
    ssh, _ = stub_ssh(folder)
    (folder / INVENTORY).write_text(inventory(hosts, ssh, "all" if project == ROOT else "production"))
    config = str(project / "ansible.cfg")
    return run_playbook(
        project / playbook, folder / INVENTORY, *options, one_process=one_process, ANSIBLE_CONFIG=config
    )


# What depends on the host's facts, or on other variables of the role, is not there yet; a number may be text.
RIGHT = Case(
    "",
    {
        "app_memory_mb": "{{ ansible_facts['memtotal_mb'] }}",
        "services_memory_mb": "{{ app_memory_mb | int // 3 }}",
        "postgresql_tls": "{{ postgresql_clients | length > 0 }}",
        "redis_memory_mb": "300",
    },
)


def play_wrong(top: Path) -> Run:
    """Run site.yml on all CASES, in several runs: lists of hosts by group take the most time in a large inventory."""
    second = Case("", {"app_hosts": ["two_schedulers", "second"]}, ("database", "broker"))
    hosts = list((CASES | {"second": second}).items())
    # Hosts of one installation belong together.
    hosts.sort(key=lambda item: "app_hosts" not in item[1].variables)
    parts = [dict(hosts[first : first + PART]) for first in range(0, len(hosts), PART)]
    # The first host would have findings of the project beside its mistake.
    arguments = (ROOT, "site.yml", "-e", '{"preflight_inspect": false}')
    found = [play(top / f"wrong{index}", part, *arguments, one_process=True) for index, part in enumerate(parts)]
    plays = [play for run in found for play in json.loads(run.output)["plays"]]
    status, reached = min(run.status for run in found), any(run.reached for run in found)
    return Run(status, json.dumps({"plays": plays}), reached, found[0].inventory)


EDITED = """---
# A user's settings.
app_health_path: up
app_domian: shop.example.org
nginx_socket: /run/shop.sock
release_barriers: true
admin_user: ada
own_variable: kept
app_admin_email:
"""


def edited_project(folder: Path) -> Path:
    """Return a copy of this project with mistakes in group_vars/production, the inventory and group_vars/all."""
    copy_project(folder)
    (folder / "group_vars/production").mkdir()
    (folder / APP).write_text(EDITED)
    (folder / VAULT).write_text("---\nsecret_django_key: CHANGEME\n")
    (folder / "group_vars/all/app.yml").write_text("---\napp_name: old\n")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """All runs of ansible-playbook, in parallel."""
    top = tmp_path_factory.mktemp("preflight")
    edited = edited_project(top / "edited")
    several = Case("", {"app_wsgi_app": "wsgi", "app_https_port": 0, "app_domian": "x", "app_time_zone": "Berlin"})
    with ThreadPoolExecutor(2) as pool:
        started = {
            "wrong": pool.submit(play_wrong, top),
            "right": pool.submit(play, top / "right", {"right": RIGHT}),
            "several": pool.submit(play, top / "several", {"several": several}, ROOT, "playbooks/deploy.yml"),
            "edited": pool.submit(play, top / "e", {"edited": Case("")}, edited, "playbooks/provision.yml"),
            "old": pool.submit(play, top / "old", {"old": Case("")}, ROOT, "site.yml", "-e__preflight_ansible=99"),
        }
        return {name: run.result() for name, run in started.items()}


def test_valid_settings_reach_the_host(runs: dict[str, Run]) -> None:
    """Proves that the other runs stop because of their mistakes, and that the replaced ssh records calls."""
    assert [message.splitlines()[0] for message in runs["right"].messages().values()] == ["Cannot log in to right:"]
    assert runs["right"].reached


@pytest.mark.parametrize("name", ["wrong", "several", "edited", "old"])
def test_no_host_is_reached(runs: dict[str, Run], name: str) -> None:
    assert runs[name].status != 0
    assert not runs[name].reached


@pytest.mark.parametrize("host", CASES)
def test_one_mistake_stops_the_run(runs: dict[str, Run], host: str) -> None:
    first, *problems = runs["wrong"].messages()[host].splitlines()
    assert first == "Invalid settings (1). No host was contacted."
    assert len(problems) == 1
    place, _, sentence = problems[0].strip().partition(": ")
    assert sentence.startswith(CASES[host].says)
    assert "hosts.yml" in place or (host in PLACELESS and place == "inventory, host_vars or -e")


def test_secrets_stay_out_of_messages(runs: dict[str, Run]) -> None:
    assert SECRET not in runs["wrong"].output


def test_every_mistake_is_listed(runs: dict[str, Run]) -> None:
    """Also by a playbook that only deploys."""
    first, *problems = runs["several"].messages()["several"].splitlines()
    assert first == "Invalid settings (4). No host was contacted."
    assert [problem.split()[1] for problem in problems] == [
        "app_domian",
        "app_wsgi_app",
        "app_time_zone",
        "app_https_port",
    ]


def test_the_line_to_edit_is_named(runs: dict[str, Run]) -> None:
    """Mistakes in group_vars/production, and settings where they have no effect."""
    _, *problems = runs["edited"].messages()["edited"].splitlines()
    assert sorted(problem.strip() for problem in problems) == sorted([
        f"{APP}:7: admin_user is not a setting. Did you mean app_admin_user?",
        f"{APP}:4: app_domian is not a setting. Did you mean app_domain?",
        f"{APP}:5: nginx_socket cannot be set: it is computed from app_name. Set that instead.",
        f"{APP}:6: release_barriers cannot be set: it is computed from the inventory and other settings. Remove it.",
        "group_vars/all/app.yml: this file belongs in group_vars/production/. Type: mkdir -p group_vars/production; "
        "mv group_vars/all/app.yml group_vars/production/app.yml",
        f"{runs['edited'].inventory}: app_time_zone has no effect under `vars:` of an inventory, since group_vars/all "
        f"has precedence. Move it to {APP}.",
        f'{APP}:3: app_health_path must be empty (detected) or a path such as /healthz/; it is "up".',
        f'{APP}:9: app_admin_email must be text; it is empty. (Empty text is "".)',
        f"{VAULT}:2: secret_django_key is still CHANGEME. Set it, or remove the line to have it generated.",
    ])  # fmt: skip


def test_an_old_ansible_is_told_how_to_get_the_right_one(runs: dict[str, Run]) -> None:
    assert "make .venv" in runs["old"].messages()["old"]


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
    here = Installation({"app_private_address": address}, {}, ROOT, "hosts.yml", {}, hosts)
    assert [problem.name for problem in check_private_address(here)] == ["app_private_address"] * wrong


def test_checks_handle_any_value() -> None:
    """No check raises an exception, whatever a setting contains."""
    spec = yaml.safe_load((ROOT / "roles/preflight/meta/argument_specs.yml").read_text())
    options = spec["argument_specs"]["settings"]["options"]
    right = yaml.safe_load((ROOT / DEFAULTS).read_text()) | {"app_domain": "shop.example.org", "app_memory_mb": 1024}
    right |= {"app_email_from": "shop@shop.example.org", "app_admin_email": "admin@shop.example.org"}
    groups = {name: ["here"] for name in ("all", *GROUPS)}

    def sentences(values: dict[str, Any]) -> list[str]:
        here = Installation(values, options, ROOT, "hosts.yml", groups, ["here"])
        return [problem.sentence for problem in setting_problems(here)]

    assert sentences(right) == []
    odd = [None, True, 0, -1, 1.5, "", " ", "0", "a\nb", "../\0", "é", [], [None], [[]], [{}], {}, {"a": None}, {1: 2}]
    odd += [[{"name": value, "queues": value, "concurrency": value}] for value in odd]
    for name in options:
        for value in odd:
            assert all(sentence.endswith((".", ")")) for sentence in sentences(right | {name: value})), (name, value)


@pytest.mark.parametrize(
    ("inventory", "groups", "environment"),
    [
        ("/x/production.yml", {"production": ["a"], "all": ["a"], "web": ["a"]}, "production"),
        ("/x/hosts.yml", {"eu": ["a"], "web": ["a"]}, "eu"),
        ("/x/hosts.yml", {"web": ["a"]}, "ENV"),
        # A group of only a part of the hosts is no environment.
        ("/x/hosts.yml", {"hosts": [], "web": ["a"]}, "ENV"),
    ],
)
def test_the_environment_is_the_group_around_the_hosts(
    inventory: str, groups: dict[str, list[str]], environment: str
) -> None:
    assert environment_of(groups, ["a"], inventory, ROOT) == environment


@pytest.mark.parametrize(
    ("sources", "named", "command"),
    [
        (["inventory/production.yml"], "inventory/production.yml", "make inspect ENV=production"),
        (["inventory"], "inventory", "ansible-playbook -i inventory playbooks/inspect.yml"),
        (
            ["inventory/production.yml", "/srv/my hosts.yml"],
            "inventory/production.yml, /srv/my hosts.yml",
            "ansible-playbook -i inventory/production.yml -i '/srv/my hosts.yml' playbooks/inspect.yml",
        ),
    ],
)
def test_messages_name_the_inventories_as_given(sources: list[str], named: str, command: str) -> None:
    action = ACTION.ActionModule.__new__(ACTION.ActionModule)
    action.project, action.reals, action.environment = ROOT, {}, "production"
    action.inventories = [source if source.startswith("/") else f"{ROOT}/{source}" for source in sources]
    assert ", ".join(action.shown_inventories()) == named
    assert action.again() == command


def test_renamed_settings_have_a_new_name() -> None:
    specs = [
        yaml.safe_load(path.read_text())["argument_specs"] for path in ROOT.glob("roles/*/meta/argument_specs.yml")
    ]
    settings = {name for spec in specs for entry in spec.values() for name in entry.get("options", {})}
    assert set(RENAMED.values()) <= settings
    assert not set(RENAMED) & settings


@pytest.mark.parametrize("python", ["python3", "3.12", "3.12.4", ">=3.12", ">=3.12,<3.14", ">=3.9, !=3.13.*", "~=3.12"])
def test_versions_of_python(python: str) -> None:
    assert re.fullmatch(PYTHON, python)
