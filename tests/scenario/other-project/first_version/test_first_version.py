"""Another project, with other names, folders and needs, runs like the shop of this repository."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml
from installation import Installation, query, run_python
from probes import Visitor, wait_for
from testinfra.host import Host

SECONDS = 60
SCENARIO = Path(__file__).parents[4] / "molecule/other-project"

# Run on the host, with the application's environment.
PASSWORDS = """
import json, os
from urllib.parse import unquote, urlsplit
print(json.dumps([unquote(urlsplit(os.environ[name]).password) for name in ("PG_URL", "QUEUE_URL")]))
"""


def test_site_is_served(visitor: Visitor) -> None:
    answer = visitor.get("/")
    assert (answer.status, answer.body) == (200, "<h1>Notes, version 1</h1>")


def test_release_is_the_tagged_commit(release: str, commits: dict[str, str]) -> None:
    assert release.startswith(commits["v1"][:12] + "-")


def test_the_proxy_was_the_only_way_out(host: Host) -> None:
    """apt, uv, the build and Flower's environment all used the proxy."""
    assert host.check_output("ip route show default") == ""
    # An address of the internet, which documentation uses and no host has.
    assert "unreachable" in host.run("ip route get 198.51.100.1").stderr


def test_interrupted_installation_was_completed(host: Host) -> None:
    assert host.check_output("dpkg --audit; ls /var/lib/dpkg/updates") == ""
    assert host.package("blog").is_installed


def test_services_use_the_passwords_from_vault(host: Host, app: Installation) -> None:
    """Odd characters included."""
    typed = yaml.safe_load((SCENARIO / "vars/passwords.yml").read_text())
    encrypted = (SCENARIO / "inventory/host_vars/other-project/vault.yml").read_text()
    assert encrypted.startswith("$ANSIBLE_VAULT;")
    found = json.loads(run_python(host, PASSWORDS, environment=[f"/etc/{app.name}/next/app.env"]))
    assert found == [typed["secret_database_password"], typed["secret_redis_password"]]


def test_sandbox_allows_what_the_settings_name(host: Host, app: Installation, release: str) -> None:
    for unit in app.units(release):
        names = "-p MainPID -p MemoryDenyWriteExecute -p IPAddressAllow -p IPAddressDeny"
        shown = dict(line.split("=", 1) for line in host.check_output(f"systemctl show {names} {unit}").splitlines())
        assert shown["MemoryDenyWriteExecute"] == "no"
        assert {"127.0.0.0/8", "192.0.2.0/24"} <= set(shown["IPAddressAllow"].split())
        assert "0.0.0.0/0" in shown["IPAddressDeny"]
        mounts = host.file(f"/proc/{shown['MainPID']}/mountinfo").content_string
        assert re.search(r"^\d+ \d+ \S+ \S+ /var/lib/misc rw[, ]", mounts, re.MULTILINE), mounts
        assert re.search(r"^\d+ \d+ \S+ \S+ / ro[, ]", mounts, re.MULTILINE), mounts


def test_what_others_run_stays(host: Host, app: Installation) -> None:
    """Their site, the login of their user to their database, and their Redis (prepare.yml)."""
    for name in ("blog.example", "unknown.example"):
        request = f"Request('http://{app.address}/', headers={{'Host': '{name}'}})"
        script = f"from urllib.request import Request, urlopen\nprint(urlopen({request}).read().decode())"
        assert run_python(host, script).strip() == "blog"
    assert host.check_output("cd / && runuser -u blog -- psql -tAc 'SELECT current_user'") == "blog"
    assert host.check_output("redis-cli -p 6400 get blog") == "kept"


def test_its_health_page_names_no_release(visitor: Visitor, release: str) -> None:
    """With app_health_names_release: true no release of it would pass its health check."""
    answer = visitor.get("/up")
    assert (answer.status, answer.body) == (200, "up")
    assert release not in str(answer.headers)


def test_note_is_processed_by_the_worker(app: Installation, visitor: Visitor, release: str) -> None:
    """Through Celery's default queue, `celery`."""
    accepted = visitor.post_json("/notes/", {"text": "four words, no more"})
    assert accepted.status == 201
    note = wait_for(lambda: counted(visitor, accepted.json["url"]), SECONDS, "the words are counted")
    assert note == {"text": "four words, no more", "words": 4, "worker": f"main.{release}@{app.hostname}"}


def counted(visitor: Visitor, url: str) -> dict | None:
    note = visitor.get(url).json
    return note if note["words"] is not None else None


def test_beat_ticks_from_a_file(host: Host, app: Installation, visitor: Visitor) -> None:
    before = visitor.get("/ticks/").json["ticks"]
    wait_for(lambda: visitor.get("/ticks/").json["ticks"] > before + 1, SECONDS, "two more ticks")
    assert host.check_output(f"ls /srv/{app.name}/shared/beat/schedule*")
    assert "django_celery_beat" not in query(host, app, "SELECT string_agg(tablename, ' ') FROM pg_tables")


def test_migrations_ran_as_the_owner_of_the_tables(host: Host, app: Installation) -> None:
    assert query(host, app, "SELECT tableowner FROM pg_tables WHERE tablename = 'notes_note'") == "notes_owner"
    assert query(host, app, "SELECT has_schema_privilege('notes', 'public', 'CREATE')") == "f"


def test_there_is_no_administrator(host: Host, app: Installation) -> None:
    assert "SUPERUSER" not in host.check_output(f"cat /etc/{app.name}/next/migrate.env /etc/{app.name}/next/app.env")
    assert query(host, app, "SELECT count(*) FROM pg_tables WHERE tablename = 'auth_user'") == "0"


def test_only_its_own_processes_run(host: Host, app: Installation, release: str) -> None:
    units = host.check_output("systemctl list-units --plain --no-legend --state=active 'notes-*.service'")
    expected = [*app.units(release), "notes-beat.service", "notes-flower.service"]
    assert sorted(line.split()[0] for line in units.splitlines()) == sorted(expected)
    assert host.check_output("systemctl --failed --no-legend --plain") == ""


def test_manage_works_for_administrators(host: Host) -> None:
    """The shell reads its environment file, whatever characters are in it."""
    assert "0001_initial" in host.check_output("notesctl manage showmigrations notes")
    script = "import os; print(ascii(os.environ['MOTTO']))"
    by_sh = run_python(host, script, environment=["/etc/notes/next/app.env"])
    web = host.check_output("systemctl show --property MainPID --value 'notes-web@*'")
    read = f"variables = dict(line.split('=', 1) for line in open('/proc/{web}/environ').read().split(chr(0)) if line)"
    assert by_sh == run_python(host, f"{read}\nprint(ascii(variables['MOTTO']))")
