"""All checks of the settings' values, and the settings that each reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from . import access, alerts, application, backups, builds, commands, domains, hosts, processes
from .application import DOTTED, PYTHON, check_environment, matches
from .certificate import check_certificate_files
from .problems import Installation, Problem
from .types import type_problems

CHECKS: dict[Callable[[Installation], Iterator[Problem]], tuple[str, ...]] = {
    application.check_name: ("app_name",),
    matches(
        "app_domain",
        domains.DOMAIN,
        "a domain such as shop.example.org, or an address, without https://, port and path",
    ): ("app_domain",),
    application.check_source: ("app_source", "app_git_ref", "app_project_dir", "app_requirements"),
    builds.check_packages: ("app_system_packages",),
    builds.check_requirements: ("app_extra_requirements",),
    builds.check_commands: ("app_build_commands",),
    builds.check_build_environment: ("app_build_environment",),
    builds.check_ssh_key: ("app_build_ssh_key",),
    builds.check_files: ("app_files",),
    builds.check_databases: ("app_databases", "app_database_url"),
    builds.check_extensions: ("app_database_extensions", "app_database_url"),
    matches("app_settings_module", DOTTED, "a module such as core.settings"): ("app_settings_module",),
    matches("app_wsgi_app", rf"{DOTTED}:{DOTTED}", "MODULE:CALLABLE, such as core.wsgi:application"): ("app_wsgi_app",),
    matches("app_celery_app", rf"{DOTTED}(:{DOTTED})?", "a module, such as core or core.celery:app"): (
        "app_celery_app",
    ),
    matches("app_python", PYTHON, 'python3, a version such as "3.12", or a range such as ">=3.12,<3.14"'): (
        "app_python",
    ),
    matches("app_health_path", r"(/[^\s\"'\\]*)?", "empty (detected) or a path such as /healthz/"): (
        "app_health_path",
    ),
    application.check_health_names_release: ("app_health_names_release",),
    matches("app_admin_user", r"[\w.@+-]{0,150}", r"empty or a user name that matches ^[\w.@+-]{1,150}$"): (
        "app_admin_user",
    ),
    application.check_time_zone: ("app_time_zone",),
    check_environment("app_environment"): ("app_environment",),
    application.check_gunicorn: ("app_environment",),
    check_environment("app_migration_environment"): ("app_migration_environment",),
    application.check_mail: ("app_domain", "app_email_url", "app_email_from", "app_admin_user", "app_admin_email"),
    application.check_numbers: (
        *("app_https_port", "app_keep_releases", "app_health_check_timeout", "app_bake_seconds"),
        *("app_migration_block_seconds", "app_hsts_seconds"),
    ),
    processes.check_web: ("app_web", "app_asgi_app"),
    processes.check_requests: (
        *("app_request_timeout", "app_long_requests"),
        *("app_monitoring", "app_status_path"),
    ),
    processes.check_health_path: ("app_health_path", "app_monitoring", "app_status_path"),
    processes.check_status_path: ("app_status_path",),
    processes.check_memory: (processes.NEEDS_FACTS,),
    processes.check_workers: ("app_workers",),
    processes.check_external_queues: ("app_workers", "app_external_queues"),
    matches(
        "app_beat_scheduler", rf"({DOTTED}([:.]{DOTTED})?)?", "empty or a class such as redbeat.RedBeatScheduler"
    ): ("app_beat_scheduler",),
    commands.check_processes: ("app_processes", "app_workers"),
    commands.check_cron: ("app_cron",),
    processes.check_database_limits: ("app_database_limits", "app_environment"),
    processes.check_sandbox: ("app_sandbox", "app_process_manager"),
    matches("app_max_upload", r"[1-9]\d*[mg]", 'megabytes or gigabytes, such as "10m" or "2g"'): ("app_max_upload",),
    access.check_rate_limit: ("app_rate_limit",),
    access.check_login_paths: ("app_login_paths",),
    access.check_headers: ("app_response_headers",),
    access.check_maintenance: ("app_maintenance_addresses", "app_maintenance_paths"),
    access.check_administrators: ("app_administrators", "app_name"),
    access.check_ssh_port: ("app_ssh_port",),
    access.check_trusted: ("app_trusted_addresses",),
    access.check_proxies: ("app_trusted_proxies",),
    access.check_firewall: ("app_firewall_rules",),
    access.check_node_exporter: ("app_node_exporter_address",),
    domains.check_aliases: ("app_domain", "app_domain_aliases"),
    domains.check_acme: ("app_domain", "app_domain_aliases", "app_certificate_email", "app_acme_directory_url"),
    backups.check_target: ("app_backup", "app_backup_target"),
    alerts.check_emails: ("app_alert_emails", "app_email_url"),
    alerts.check_urls: (),
    alerts.check_minutes: ("app_watch_minutes",),
    check_certificate_files: (*("app_domain", "app_domain_aliases", "app_certificate_email", "app_certificate_files"),),
    hosts.check_urls: ("app_database_url", "app_database_owner_url", "app_broker_url", "app_cache_url"),
    hosts.check_groups: ("app_database_url", "app_broker_url", "app_cache_url"),
    hosts.check_private_address: (),
    hosts.check_proxy: ("app_http_proxy", "app_no_proxy"),
}


def setting_problems(here: Installation) -> Iterator[Problem]:
    """Yield every problem of the settings. A check runs only if the settings that it reads have the right types."""
    broken = set()
    for name, spec in here.spec.items():
        if name not in here.values:
            broken.add(name)
            continue
        for part, sentence in type_problems(here.values[name], spec):
            broken.add(name)
            yield Problem(name, sentence, part=part)
    for check, needs in CHECKS.items():
        if not broken & set(needs):
            yield from check(here)
