"""Write docs/settings.md from the specs of the settings, their defaults and the specs of the roles.

python3 tools/settings_docs.py            write docs/settings.md (`make docs`)
python3 tools/settings_docs.py --check    exit with status 1 when docs/settings.md is not current
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "plugins"))
from plugin_utils.preflight import names  # noqa: E402

PAGE = ROOT / "docs/settings.md"
SPEC = ROOT / "roles/preflight/meta/argument_specs.yml"
DEFAULTS = ROOT / "group_vars/all/defaults.yml"
WIRING = ROOT / "group_vars/all/wiring.yml"
SECRETS = ROOT / "group_vars/all/secrets.yml"

INTRODUCTION = """\
<!-- Written by `make docs` from group_vars/all/defaults.yml and roles/*/meta/argument_specs.yml: edit those. -->

# Settings: what can be set, and where?

Write your settings into `group_vars/ENV/app.yml`, where `ENV` is the group that your inventory wraps around its
hosts, such as `production`. Only what differs from the defaults below needs a line; keys of `app_web`, `app_sandbox`
and `app_rate_limit` that you leave out keep their default, too. The files in `group_vars/all/` are
shipped with Seedbed: do not edit them, so that `git pull` never conflicts. Secrets go into `group_vars/ENV/vault.yml`,
encrypted by ansible-vault ([secrets.md](secrets.md)).

- Values for one host: the inventory or `inventory/host_vars/HOST.yml`. Values for one group: `group_vars/GROUP.yml`.
- Settings are validated before any host is contacted: the error names the file, the line and the pattern.
- A setting takes effect with the next run of `site.yml`. The settings of the application's processes are part of the
  release ID: changing one is a deployment, and no process is restarted in place.
- A variable of a role (at the end of this page) may be written in the same file. Those that
  `group_vars/all/wiring.yml` computes are rejected, with the setting to use instead.
"""
ENVIRONMENT = """\
## Environment variables of the application

The processes of your application get these; `app_environment` adds to them or replaces them:

| variable | content |
|---|---|
| `DJANGO_SETTINGS_MODULE` | `app_settings_module` |
| `SECRET_KEY`, `SECRET_KEY_FALLBACK` | Django's key; the previous one after a rotation |
| `ALLOWED_HOSTS`, `CSRF_TRUSTED_ORIGINS` | domains and origins, comma-separated |
| `DATABASE_URL` | PostgreSQL; migrations get the URL of the tables' owner under the same name |
| `CELERY_BROKER_URL`, `CACHE_URL` | Redis |
| `EMAIL_URL`, `DEFAULT_FROM_EMAIL` | outgoing mail; without `app_email_url`, files in `/srv/NAME/shared/mail` |
| `STATIC_ROOT` | the release's own folder for static files; no setting of yours replaces it |
| `STATIC_MANIFEST_ROOT` | another folder of the release |
| `MEDIA_ROOT` | the folder of uploaded files |
| `PRIVATE_ROOT` | a folder of files that are not served, except by `X-Accel-Redirect: /_private/PATH` |
| `SECURE_HSTS_SECONDS`, `TIME_ZONE` | `app_hsts_seconds`, `app_time_zone` |
| `RELEASE_ID` | the release; the health check can print it |

A project that uses other names maps them in `app_environment`, for example `PG_URL: "{{ app_database_url_runtime }}"`,
and gives its migrations the owner's URL in `app_migration_environment`: `PG_URL: "{{ app_database_url_owner }}"`.
"""
ROLES_INTRODUCTION = """\
## Role variables

What the settings above do not cover. Each role's `defaults/main.yml` has examples, and more variables: those that
`group_vars/all/wiring.yml` computes from settings, and so cannot be set. (Set `app_domain`, not `nginx_domains`.)
"""
TYPES = {"str": "text", "int": "integer", "bool": "boolean", "path": "path", "float": "number", "dict": "dictionary"}
TYPES |= {"raw": "text or boolean"}


@dataclass(frozen=True)
class Block:
    """Variables of a file without a blank line between them: their section, the comment above them, their lines."""

    section: str
    comment: str
    names: tuple[str, ...]
    lines: tuple[str, ...]


def read_blocks(text: str) -> Iterator[Block]:
    """Yield the blocks of variables in a file, whose sections begin with `## `."""
    section = ""
    for block in re.split(r"\n\s*\n", text):
        lines = [line for line in block.splitlines() if line != "---"]
        if lines and lines[0].startswith("## "):
            section = lines.pop(0)[3:]
        first = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
        names = tuple(match[1] for line in lines[first:] if (match := re.match(r"(\w+):", line)))
        if names:
            comment = " ".join(line.removeprefix("#").strip() for line in lines[:first])
            yield Block(section, comment, names, tuple(lines[first:]))


def type_name(option: dict[str, Any]) -> str:
    """Return an option's type in words; its choices, where it has some."""
    if option.get("choices"):
        choices = " or ".join(f"`{choice if choice != '' else repr(choice)}`" for choice in option["choices"])
        return f"list of {choices}" if option["type"] == "list" else choices
    if option["type"] == "list":
        elements = {"str": "texts", "dict": "dictionaries", "int": "integers"}
        return f"list of {elements.get(option.get('elements', 'str'), 'values')}"
    return TYPES.get(option["type"], option["type"])


def description(option: dict[str, Any]) -> str:
    """Return an option's description as one paragraph."""
    text = option.get("description", "")
    return " ".join(text if isinstance(text, list) else [text]).strip()


def cell(text: str) -> str:
    """Return text that fits into a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def suboptions(option: dict[str, Any]) -> list[str]:
    """Return the table of the keys of a dictionary, or of the dictionaries in a list; empty where it has none."""
    if not option.get("options"):
        return []
    rows = [
        f"| `{name}` | {type_name(inner)} | {cell(description(inner))} |" for name, inner in option["options"].items()
    ]
    return ["", "| key | type | |", "|---|---|---|", *rows]


def setting(block: Block, spec: dict[str, Any]) -> Iterator[str]:
    """Yield the lines about a block of settings, with the options in `spec`."""
    options = {name: spec[name] for name in block.names}
    types = ", ".join(dict.fromkeys(type_name(option) for option in options.values()))
    yield from (f"### {', '.join(block.names)}", "")
    yield from (f"{block.comment or description(options[block.names[0]])} *({types})*", "")
    yield from ("```yaml", *block.lines, "```")
    for option in options.values():
        yield from suboptions(option)
    yield ""


def known_options() -> dict[str, Any]:
    """Return the specs of the settings and, since defaults.yml has some of them too, of all roles' variables."""
    options: dict[str, Any] = {}
    for path in ROOT.glob("roles/*/meta/argument_specs.yml"):
        options |= yaml.safe_load(path.read_text())["argument_specs"]["main"].get("options") or {}
    return options | yaml.safe_load(SPEC.read_text())["argument_specs"]["settings"]["options"]


def settings(spec: dict[str, Any], blocks: list[Block]) -> Iterator[str]:
    """Yield the lines about all settings, by section; those without a default come last."""
    section = ""
    for block in blocks:
        if block.section != section:
            section = block.section
            yield from (f"## {section}", "")
        yield from setting(block, spec)
    listed = {name for block in blocks for name in block.names}
    left = {name: option for name, option in spec.items() if name.startswith("app_") and name not in listed}
    if left:
        yield from ("## Other settings", "", "| setting | type | |", "|---|---|---|")
        for name, option in left.items():
            yield f"| `{name}` | {type_name(option)} | {cell(description(option))} |"
        yield ""


def secrets(blocks: list[Block]) -> Iterator[str]:
    """Yield the list of secrets that may be chosen."""
    names = [name for block in blocks for name in block.names if name.startswith("secret_")]
    yield from ("## Secrets", "")
    yield "Generated on first use unless `group_vars/ENV/vault.yml` sets them ([secrets.md](secrets.md)):"
    yield from (", ".join(f"`{name}`" for name in names) + ".", "")


def roles(root: Path) -> Iterator[str]:
    """Yield a table for each role that has further variables which users may set."""
    elsewhere = {name for path in (WIRING, DEFAULTS) for name in yaml.safe_load(path.read_text())}
    elsewhere |= {*names.SET_BY_ROLES, "preflight_project"}
    yield from (ROLES_INTRODUCTION,)
    for path in sorted(root.glob("roles/*/meta/argument_specs.yml")):
        spec = yaml.safe_load(path.read_text())["argument_specs"]["main"]
        options = {name: option for name, option in (spec.get("options") or {}).items() if name not in elsewhere}
        if not options:
            continue
        yield from (f"### {path.parent.parent.name}", "", f"{spec['short_description'].rstrip('.')}.", "")
        yield from ("| variable | type | default | |", "|---|---|---|---|")
        for name, option in options.items():
            yield f"| `{name}` | {type_name(option)} | {default(option)} | {cell(description(option))} |"
        yield ""


def default(option: dict[str, Any]) -> str:
    """Return an option's default as a cell."""
    if "default" not in option:
        return "required" if option.get("required") else ""
    value = option["default"]
    text = (
        value
        if isinstance(value, str) and value
        else yaml.safe_dump(value, default_flow_style=True, width=1000, sort_keys=False)
    )
    return f"`{cell(text.removesuffix('...' + chr(10)))}`"


def page() -> str:
    """Return the text of docs/settings.md."""
    lines = [
        INTRODUCTION,
        *settings(known_options(), list(read_blocks(DEFAULTS.read_text()))),
        *secrets(list(read_blocks(SECRETS.read_text()))),
        ENVIRONMENT,
        *roles(ROOT),
    ]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Write the page, or compare it. Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only")
    text = page()
    if not parser.parse_args().check:
        PAGE.write_text(text)
    elif not PAGE.exists() or PAGE.read_text() != text:
        print(f"{PAGE.relative_to(ROOT)} is not current: run make docs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
