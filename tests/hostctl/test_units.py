"""The templates of both managers start the same processes, which get enough time to stop."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jinja2
import pytest

ROOT = Path(__file__).parents[2]
NEW = "new-2"
WEB = f"shop-web@{NEW}"


def render(name: str, **more: Any) -> str:
    folder = ROOT / "roles/services/templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["to_json"] = json.dumps
    variables = {
        "ansible_managed": "", "services_name": "shop", "services_project_dir": "backend",
        "services_celery_app": "core", "services_wsgi_app": "core.wsgi:application",
        "services_web": {"processes": 2, "threads": 4},
        "services_workers": [{"name": "io", "queues": ["io", "mail"], "pool": "gevent", "stop_timeout": 90}],
        "__services_programs": ["web", "worker-io"],
        "services_memory_mb": 400, "services_read_write_paths": ["/srv/exports"], "services_allow_jit": False,
        "services_egress_allow": ["10.0.0.0/8"], "services_request_timeout": 60,
        "services_long_requests": {"/export/": 90}, "__services_longest_request": 90, "__services_web_stop": 100,
    }  # fmt: skip
    return environment.get_template(name).render(**variables | more)


def unit(name: str, **more: Any) -> dict[str, str]:
    text = render(f"systemd/{name}.service.j2", **more).replace("\\\n", "").replace("%i", NEW).replace("@RELEASE@", NEW)
    return dict(re.findall(r"^(ExecStart|WorkingDirectory|TimeoutStopSec)=(.*)$", text, re.M))


def test_a_request_may_take_as_long_as_nginx_waits_for_it() -> None:
    """gunicorn lets it end; systemd and Supervisor wait longer before they kill gunicorn."""
    assert 'proxy_read_timeout: "{{ nginx_request_timeout }}s"' in (ROOT / "roles/nginx/vars/main.yml").read_text()
    [graceful] = re.findall(r"^graceful_timeout = (\d+)$", render("gunicorn.conf.py.j2"), re.M)
    assert 90 <= int(graceful) < int(unit("web")["TimeoutStopSec"])


@pytest.mark.parametrize("kind", ["web", "worker", "beat"])
def test_both_managers_start_the_same_commands(kind: str) -> None:
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";",))
    for name in ("release", "beat"):
        parser.read_string(render(f"supervisor/{name}.conf.j2").replace("@RELEASE@", NEW))
    sections = {"web": f"program:{WEB}", "worker": f"program:shop-worker-io@{NEW}", "beat": "program:shop-beat"}
    program = parser[sections[kind]]
    worker = {"name": "io", "queues": ["io", "mail"], "pool": "gevent", "stop_timeout": 90}
    wanted = unit(kind, __services_worker=worker)
    wrapper, release, *command = shlex.split(program["command"])
    assert command == shlex.split(wanted["ExecStart"])
    assert wrapper == f"/etc/shop/releases/{NEW}/supervisor/run_with_environment"
    assert command[0].startswith(f"{release}/.venv/bin/")
    assert program["directory"] == wanted["WorkingDirectory"]
    assert program["stopwaitsecs"] == wanted["TimeoutStopSec"]
    assert set(parser[f"group:shop@{NEW}"]["programs"].split(",")) == {WEB, f"shop-worker-io@{NEW}"}
