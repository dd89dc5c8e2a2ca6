"""The templates of both managers start the same processes, which get enough time to stop."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import jinja2
import pytest
import yaml

ROOT = Path(__file__).parents[2]
NEW = "new-2"
WEB = f"shop-web@{NEW}"
WORKER = {"name": "io", "queues": ["io", "mail"], "pool": "gevent", "stop_timeout": 90}
PROCESS = {"name": "bot", "command": "python manage.py bot", "stop_timeout": 7}
CRON = {"name": "night", "command": "python manage.py night", "schedule": "*-*-* 03:30", "timeout": 900}
SERVERS = ["postgresql@17-main.service", "redis-server@broker.service"]


def render(name: str, **more: Any) -> str:
    folder = ROOT / "roles/services/templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["to_json"] = json.dumps
    variables = {
        "ansible_managed": "", "services_name": "shop", "services_project_dir": "backend",
        "services_celery_app": "core", "services_wsgi_app": "core.wsgi:application", "services_asgi_app": "",
        "services_web": {"processes": 2, "threads": 4},
        "services_workers": [WORKER],
        "__services_worker": WORKER, "__services_process": PROCESS, "__services_cron": CRON,
        "__services_programs": ["web", "worker-io", "process-bot"],
        "services_beat_scheduler": "", "services_processes": [PROCESS], "services_database_options": {},
        "services_memory_mb": 400, "services_read_write_paths": ["/srv/exports"], "services_allow_jit": False,
        "services_egress_allow": ["10.0.0.0/8"], "services_after": SERVERS, "services_manager": "systemd",
        "services_start_timeout": 150, "services_request_timeout": 60, "services_long_requests": {"/report/": 90},
        "__services_longest_request": 90, "__services_web_stop": 100, "__services_graceful_timeout": 90,
        "__services_preload": True,
    }  # fmt: skip
    return environment.get_template(name).render(**variables | more)


def unit(name: str, **more: Any) -> dict[str, str]:
    text = render(f"systemd/{name}.service.j2", **more).replace("\\\n", "").replace("%i", NEW).replace("@RELEASE@", NEW)
    return dict(re.findall(r"^(ExecStart|WorkingDirectory|TimeoutStopSec)=(.*)$", text, re.M))


def test_a_request_may_take_as_long_as_the_settings_say() -> None:
    """gunicorn lets it end; systemd and Supervisor wait longer before they kill gunicorn."""
    assert "graceful_timeout = 90\n" in render("gunicorn.conf.py.j2")
    assert unit("web")["TimeoutStopSec"] == "100"
    variables = (ROOT / "roles/services/vars/main.yml").read_text()
    assert "services_web.stop_timeout | default(__services_longest_request)" in variables
    assert '__services_web_stop: "{{ __services_web_patience | int + 10 }}"' in variables
    assert '__services_longest_stop: "{{ ([__services_web_stop | int]' in variables


@pytest.mark.parametrize("kind", ["web", "worker", "process"])
def test_a_process_that_was_killed_at_its_end_leaves_no_failed_unit(kind: str) -> None:
    text = render(f"systemd/{kind}.service.j2")
    assert "\nCollectMode=inactive-or-failed\n" in text[: text.index("[Service]")]


@pytest.mark.parametrize("asgi", ["", "core.asgi:application"], ids=["wsgi", "asgi"])
@pytest.mark.parametrize("kind", ["web", "worker", "process", "beat"])
def test_both_managers_start_the_same_commands(kind: str, asgi: str) -> None:
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";",))
    for name in ("release", "beat"):
        parser.read_string(render(f"supervisor/{name}.conf.j2", services_asgi_app=asgi).replace("@RELEASE@", NEW))
    programs = {"web": WEB, "worker": f"shop-worker-io@{NEW}", "process": f"shop-process-bot@{NEW}"}
    program = parser[f"program:{programs.get(kind, 'shop-beat')}"]
    wanted = unit(kind, services_asgi_app=asgi)
    wrapper, release, *command = shlex.split(program["command"])
    assert command == shlex.split(wanted["ExecStart"])
    assert wrapper == f"/etc/shop/releases/{NEW}/supervisor/run_with_environment"
    assert command[0].startswith((f"{release}/.venv/bin/", f"/etc/shop/releases/{NEW}/commands/"))
    assert program["directory"] == wanted["WorkingDirectory"]
    assert program["stopwaitsecs"] == wanted["TimeoutStopSec"]
    assert set(parser[f"group:shop@{NEW}"]["programs"].split(",")) == set(programs.values())
    if kind == "web":
        assert command[-1] == (asgi or "core.wsgi:application")


@pytest.mark.parametrize(("asgi", "worker"), [("", "gthread"), ("core.asgi:application", "SocketWorker")])
def test_gunicorn_serves_asgi_by_a_worker_for_it(monkeypatch: pytest.MonkeyPatch, asgi: str, worker: str) -> None:
    for name in ("gunicorn", "hostctl.in_app.visitors", "hostctl.in_app.stuck_requests"):
        monkeypatch.setitem(sys.modules, name, MagicMock(version_info=(25,)))
    monkeypatch.setattr(sys, "path", list(sys.path))
    settings: dict[str, Any] = {"__file__": "/etc/shop/releases/new-2/gunicorn.conf.py"}
    exec(render("gunicorn.conf.py.j2", services_asgi_app=asgi), settings)
    assert settings["worker_class"].rpartition(".")[2] == worker
    assert (settings["max_requests"] == 0) is bool(asgi), "an open WebSocket would end"
    assert ("pre_request" in settings) is not bool(asgi)


# --- Commands on a timer: systemd's under both managers -------------------------------------------


def directives(name: str) -> list[str]:
    text = render(f"systemd/{name}.j2").replace("\\\n", "")
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_a_command_on_a_timer_runs_once_with_its_own_limits() -> None:
    lines = directives("cron.service")
    assert "ExecStart=/etc/shop/releases/@RELEASE@/commands/cron-night" in lines
    assert [line for line in lines if line.startswith("Restart=")][-1] == "Restart=no"
    assert {"Type=oneshot", "TimeoutStartSec=900", "EnvironmentFile=/srv/shop/releases/@RELEASE@/release.env"} < set(
        lines
    )
    assert {"OnCalendar=*-*-* 03:30", "Persistent=yes"} < set(directives("cron.timer"))


def test_what_is_due_while_a_command_runs_is_skipped() -> None:
    """From systemd 257 on; the version of Debian 12 ignores it, and makes up for one run."""
    assert "DeferReactivation=yes" in directives("cron.timer")


def test_the_units_of_timers_are_written_under_both_managers() -> None:
    variables = yaml.safe_load((ROOT / "roles/services/vars/main.yml").read_text())
    assert "__services_commands" in variables["__services_common"]
    assert "systemd/cron.timer.j2" in variables["__services_commands"]
    for manager in ("systemd", "supervisor"):
        assert "__services_common" in (ROOT / f"roles/services/tasks/{manager}.yml").read_text()


@pytest.mark.parametrize("kind", ["web", "worker", "beat", "process", "cron"])
def test_limits_of_the_database_are_those_of_the_kind_of_process(kind: str) -> None:
    limits = {name: f"-c statement_timeout={name}" for name in ("web", "worker", "beat", "process", "cron")}
    options = f"PGOPTIONS=-c statement_timeout={kind}"
    for given, expected in ((limits, [options]), ({}, [])):
        text = render(f"systemd/{kind}.service.j2", services_database_options=given)
        assert re.findall(r'^Environment="(PGOPTIONS=.*)"$', text, re.M) == expected
        program = render("supervisor/_process.j2", kind=kind, services_database_options=given)
        pool = ["DATABASE_POOL=true"] if kind == "web" else []
        found = re.findall(r"^environment=(.*)$", program, re.M)
        assert [word.replace('"', "") for line in found for word in line.split(",")] == pool + expected


# --- Order at shutdown: the reverse of After ------------------------------------------------------


def order(name: str) -> tuple[set[str], set[str]]:
    """Return the units after which, and before which, a unit starts."""
    text = render(f"systemd/{name}.j2")
    found = {key: set(value.split()) for key, value in re.findall(r"^(After|Before)=(.*)$", text, re.M)}
    return found.get("After", set()), found.get("Before", set())


@pytest.mark.parametrize("name", ["app", "web", "worker", "beat", "process", "cron"])
def test_processes_stop_before_the_servers(name: str) -> None:
    """Before the cluster itself: postgresql.service, which is inactive until a reboot, would order nothing."""
    after, _ = order(f"{name}.service")
    assert set(SERVERS) < after
    assert "postgresql.service" not in after


def test_workers_stop_before_the_pages() -> None:
    """And neither a worker nor beat waits for the pages at its start."""
    target = "shop-stop-order.target"
    assert order("web.service")[1] == {target}
    assert "nginx.service" in order("stop-order.target")[0]
    for name in ("worker", "process"):
        assert target in order(f"{name}.service")[0]
    assert f"Wants={target}" in render("systemd/app.service.j2")
    for name in ("worker", "beat", "app", "process", "cron"):
        assert not {unit for unit in order(f"{name}.service")[0] if "web" in unit or "nginx" in unit}


def test_the_order_names_every_supported_cluster() -> None:
    wiring = yaml.safe_load((ROOT / "group_vars/all/wiring.yml").read_text())
    versions = yaml.safe_load((ROOT / "roles/postgresql/vars/main.yml").read_text())["__postgresql_versions"]
    assert set(versions) == set(wiring["bootstrap_systems"])
    clusters = {f"postgresql@{version}-main.service" for version in versions.values()}
    assert clusters == {unit for unit in wiring["services_after"] if unit.startswith("postgresql")}


def test_under_supervisor_app_service_has_time_for_workers_and_then_the_pages() -> None:
    text = render("supervisor/app.service.conf.j2", __services_longest_stop=400, __services_web_stop=100)
    assert "After=supervisor.service nginx.service\n" in text
    [seconds] = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.M)
    assert int(seconds) > 400 + int(unit("web")["TimeoutStopSec"])


# --- Start, restart and memory --------------------------------------------------------------------


def test_pages_have_as_long_to_start_as_the_settings_say() -> None:
    wiring = yaml.safe_load((ROOT / "group_vars/all/wiring.yml").read_text())
    expression = jinja2.Environment().from_string(wiring["services_start_timeout"])
    assert int(expression.render(app_health_check_timeout="300")) > 300
    assert "TimeoutStartSec=150\n" in render("systemd/web.service.j2")


@pytest.mark.parametrize("name", ["web", "worker", "beat", "process"])
def test_a_process_is_restarted_without_a_limit(name: str) -> None:
    text = render(f"systemd/{name}.service.j2")
    assert {"Restart=always", "RestartSec=2", "StartLimitIntervalSec=0"} < set(text.splitlines())
    program = render("supervisor/_process.j2", kind=name).splitlines()
    assert {"autorestart=true", "startsecs=0"} < set(program)
    supervisord = render("supervisor/supervisor.service.conf.j2", __services_longest_stop=360)
    assert {"Restart=always", "RestartSec=2", "StartLimitIntervalSec=0"} < set(supervisord.splitlines())


@pytest.mark.parametrize("name", ["web", "worker", "beat", "process", "cron"])
def test_the_memory_limit_ends_a_task_instead_of_freezing_its_worker(name: str) -> None:
    text = render(f"systemd/{name}.service.j2")
    limits = dict(re.findall(r"^(Memory\w+)=(\d+)M$", text, re.M))
    assert limits == {"MemoryMax": "400", "MemorySwapMax": "50"}
    assert "OOMPolicy=continue\n" in text


def test_under_supervisor_a_program_that_fails_again_and_again_pauses(tmp_path: Path) -> None:
    """Supervisor itself restarts it at once, or later and later."""
    (tmp_path / "supervisor").mkdir()
    (tmp_path / "release/run").mkdir(parents=True)
    (tmp_path / "app.env").write_text('SECRET="key"\n')
    (tmp_path / "release/release.env").write_text('RELEASE="new-2"\n')
    (tmp_path / "sleep").write_text(f"#!/bin/sh\necho $1 >>{tmp_path}/slept\n")
    (tmp_path / "sleep").chmod(0o755)
    program = tmp_path / "supervisor/run_with_environment"
    program.write_text(render("supervisor/run_with_environment.j2"))
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SUPERVISOR_PROCESS_NAME": WEB}

    def start() -> str:
        command = ["sh", str(program), str(tmp_path / "release"), "sh", "-c", "echo $SECRET $RELEASE"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert start() == "key new-2\n"
    assert not (tmp_path / "slept").exists()
    assert start() == "key new-2\n"
    assert (tmp_path / "slept").read_text() == "2\n"
    started = tmp_path / f"release/run/{WEB}.started"
    os.utime(started, (started.stat().st_atime, started.stat().st_mtime - 6))
    start()
    assert (tmp_path / "slept").read_text() == "2\n"
