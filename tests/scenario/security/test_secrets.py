"""Secrets of any characters are passed on exactly, are not readable elsewhere, and are rotated under load."""

from __future__ import annotations

import base64
import json
import random
import re
import shlex
import signal
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from deployments import ROOT, Deployments, Run
from installation import Installation, query, run_python
from probes import Visitor
from testinfra.host import Host

# Every generated secret except the first administrator's password, which the application stores.
ROTATED = (
    "django_key",
    "database_password",
    "database_owner_password",
    "redis_password",
    "redis_monitor_password",
    "redis_admin_password",
    "flower_password",
)
# In each of them. (Flower forbids a colon, a comma and characters beyond ASCII.)
ODD = "'it\"s' $HOME ${x} 100% %h #1 \\ \\n `id` & ; * {{ x }} <>"
ODDER = ODD + " é✓ a:b,c@d/e?f=%2F"

# Searches the journal as root, then every file that an unprivileged user can read.
HUNT = """
import glob, json, os, pwd, subprocess
# They are reversed, or this program would find itself.
canaries = [word[::-1].encode() for word in json.loads('CANARIES')]
# How all of them begin: a file is searched for this alone.
prefix = os.path.commonprefix(canaries)
assert len(prefix) > 5
seen = []
journal = subprocess.run(['journalctl', '--no-pager', '--output=cat', '--all'], stdout=subprocess.PIPE).stdout
seen += [word.decode() + ' in the journal' for word in canaries if word in journal]
for path in glob.glob('/proc/[0-9]*/cmdline'):
    try:
        arguments = open(path, 'rb').read()
    except OSError:
        continue
    seen += [word.decode() + ' in ' + path for word in canaries if word in arguments]
user = pwd.getpwnam('nobody')  # language-lint: allow nobody
os.setgroups([]); os.setgid(user.pw_gid); os.setuid(user.pw_uid)
looked = 0
for place in ('/etc', '/srv', '/opt', '/root', '/home', '/tmp', '/run', '/usr/local', '/var', '/dev/shm', '/proc/1'):
    for folder, _, files in os.walk(place):
        for path in (os.path.join(folder, name) for name in files):
            if not os.path.isfile(path) or path.startswith('/var/lib/apt'):
                continue
            try:
                content = open(path, 'rb').read(8_000_000)
            except OSError:
                continue
            looked += 1
            if prefix in content:
                seen += [word.decode() + ' in ' + path for word in canaries if word in content]
print(json.dumps({'seen': seen, 'looked': looked}))
"""
# Notes which of them appear in the arguments of processes, until it is stopped.
WATCH = """
import glob, json, signal, sys, time
# Reversed, as above.
canaries = {name: word[::-1].encode() for name, word in json.loads('CANARIES').items()}
seen, looked = set(), 0
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
try:
    while True:
        for path in glob.glob('/proc/[0-9]*/cmdline'):
            try:
                arguments = open(path, 'rb').read()
            except OSError:
                continue
            seen |= {name for name, word in canaries.items() if word in arguments}
        looked += 1
        time.sleep(0.1)
finally:
    with open('/run/watch-arguments.json', 'w') as file:
        json.dump({'seen': sorted(seen), 'looked': looked}, file)
"""


@pytest.fixture(scope="module")
def secrets(app: Installation) -> Path:
    return Path(app.secrets)


@pytest.fixture(scope="module")
def canaries(secrets: Path) -> dict[str, str]:
    """A unique word for every secret, and for two of the application's own."""
    assert {file.name for file in secrets.iterdir()} >= {*ROTATED, "admin_password"}
    return {name: f"canary{uuid.uuid4().hex}" for name in (*ROTATED, "admin_password", "PAYMENT_KEY", "mail")}


@contextmanager
def arguments_watched(host: Host, canaries: Mapping[str, str]) -> Iterator[None]:
    """Meanwhile the host searches the arguments of every process for the canaries, ten times a second."""
    script = WATCH.replace("CANARIES", json.dumps({name: word[::-1] for name, word in canaries.items()}))
    host.check_output(f"printf %s {shlex.quote(script)} >/run/watch-arguments.py")
    python = "/usr/bin/python3 /run/watch-arguments.py"
    host.check_output(f"systemd-run --quiet --collect --unit=watch-arguments {python}")
    try:
        yield
    finally:
        host.check_output("systemctl stop watch-arguments")


@pytest.fixture(scope="module")
def settings(
    app: Installation, deployments: Deployments, canaries: dict[str, str], variables: dict[str, Any]
) -> dict[str, Any]:
    """The settings of every run from the verbose one on: a project with a ledger, and secrets of the application."""
    return {
        "app_source": str(deployments.version("odd")),
        # A setting whose difference is shown.
        "app_health_check_timeout": random.randrange(61, 10_000),
        # Replaces the whole dict, so it includes what is in it already.
        "app_environment": variables["app_environment"] | {"PAYMENT_KEY": canaries["PAYMENT_KEY"]},
        # With a password as for a server, but to files, since there is no mail server.
        "app_email_url": f"file://shop:{canaries['mail']}@/srv/{app.name}/shared/mail",
    }


@pytest.fixture(scope="module")
def verbose_run(
    app: Installation,
    deployments: Deployments,
    secrets: Path,
    canaries: dict[str, str],
    settings: dict[str, Any],
    variables: dict[str, Any],
) -> str:
    """The output of site.yml with -vvv --diff when every secret has changed, all of them to odd characters.

    The previous ones are kept beside them, as during a rotation, so that running processes do not fail meanwhile.
    """
    # As with the mark `os`, which would come after a fixture of the module: Debian's version makes no difference.
    if variables["testhost_os"] != "debian12":
        pytest.skip("runs on debian12")
    for name in ROTATED:
        (secrets / f"{name}.previous").write_text((secrets / name).read_text())
        (secrets / name).write_text(f"{canaries[name]}{ODD if name == 'flower_password' else ODDER}\n")
    login = secrets / "database_login"
    second = not login.exists() or login.read_text().strip() == app.name
    login.write_text(f"{app.name}{'_2' if second else ''}\n")
    (secrets / "rotation").touch()
    # Written to the host, but used for nothing: the administrator exists, and keeps the password.
    former = (secrets / "admin_password").read_text()
    (secrets / "admin_password").write_text(f"{canaries['admin_password']}{ODDER}\n")
    try:
        with arguments_watched(deployments.host, canaries):
            # The administrator's password is not part of a rotation.
            run = deployments.playbook("site.yml", "-vvv", "--diff", secrets_replace=True, **settings).wait()
    finally:
        (secrets / "admin_password").write_text(former)
    # The processes use the new ones, so this rotation is complete; the next one is a test of its own.
    (secrets / "rotation").unlink()
    for name in set(ROTATED) - {"django_key"}:
        (secrets / f"{name}.previous").unlink()
    return run.succeeded().output


@pytest.mark.os("debian13")
def test_a_clone_with_another_secret_changes_nothing(deployments: Deployments, folder: Path) -> None:
    clone = folder / "other/secrets"
    clone.mkdir(parents=True)
    (clone / "redis_password").write_text("from another installation\n")
    run = deployments.playbook("site.yml", app_secrets=str(clone)).wait().failed()
    run.says("would replace secrets that").says("The files here are newer.").says("add -e secrets_use=server")
    assert run.changed == 0, run.output
    assert [file.name for file in clone.iterdir()] == ["redis_password"]


def test_no_output_of_a_run_shows_a_secret(
    verbose_run: str, canaries: dict[str, str], settings: dict[str, Any]
) -> None:
    timeout = settings["app_health_check_timeout"]
    assert re.search(rf'^\+ +"health_check_timeout": {timeout},$', verbose_run, re.MULTILINE), "no difference is shown"
    assert "invocation" in verbose_run, "no arguments are shown"
    assert [name for name, word in canaries.items() if word in verbose_run] == []


def test_no_secret_is_readable_on_the_host(host: Host, verbose_run: str, canaries: dict[str, str]) -> None:
    found = json.loads(
        run_python(host, HUNT.replace("CANARIES", json.dumps([word[::-1] for word in canaries.values()])))
    )
    assert found["looked"] > 1000, "this test sees nothing"
    assert found["seen"] == []


def test_no_process_had_a_secret_in_its_arguments(host: Host, verbose_run: str) -> None:
    """Every user may read them."""
    found = json.loads(host.file("/run/watch-arguments.json").content_string)
    assert found["looked"] > 50, "this test sees nothing"
    assert found["seen"] == []


def test_no_secret_is_in_git(verbose_run: str, secrets: Path, canaries: dict[str, str]) -> None:
    """Neither committed, nor in files that the next `git add` would take."""
    for name, word in canaries.items():
        search = ["git", "-C", str(ROOT), "grep", "--quiet", "--untracked", "--fixed-strings", word]
        assert subprocess.run(search).returncode == 1, name
        ignored = ["git", "-C", str(ROOT), "check-ignore", "--quiet", str(secrets / name)]
        assert subprocess.run(ignored).returncode == 0, f"git would take {secrets / name}"


@pytest.mark.parametrize(
    ("file", "rights"),
    {
        "/etc/APP/next/app.env": "640 root APP",
        "/etc/APP/next/migrate.env": "600 root root",
        "/etc/APP/flower.env": "600 root root",
        "/etc/APP/monitoring.env": "600 root root",
        "/etc/nginx/APP-status.htpasswd": "640 root www-data",
        "/etc/redis/users-broker.acl": "640 root redis",
        "/etc/redis/users-cache.acl": "640 root redis",
    }.items(),
)
def test_modes_of_files_with_secrets(host: Host, app: Installation, file: str, rights: str) -> None:
    """Readable by the process's own user, or by systemd only."""
    found = host.check_output(f"stat --format='%a %U %G' {file.replace('APP', app.name)}")
    assert found == rights.replace("APP", app.name)


@pytest.mark.parametrize(("file", "name"), {"app.env": "PAYMENT_KEY", "migrate.env": "admin_password"}.items())
def test_unused_secrets_were_there_to_be_found(
    host: Host, app: Installation, verbose_run: str, canaries: dict[str, str], file: str, name: str
) -> None:
    """No service uses these two, so a run that omitted them would go unnoticed."""
    assert canaries[name] in host.file(f"/etc/{app.name}/next/{file}").content_string


def test_every_character_is_passed_on_exactly(
    host: Host, app: Installation, verbose_run: str, secrets: Path, visitor: Visitor
) -> None:
    """Through the environment to Django, PostgreSQL and Redis, and to Flower by a browser."""
    assert visitor.get("/readyz/").status == 200
    assert visitor.finished_order(visitor.order(), 60)
    script = "import os; print(os.environ['SECRET_KEY'], end='')"
    assert (
        run_python(host, script, environment=[f"/etc/{app.name}/next/app.env"])
        == (secrets / "django_key").read_text().rstrip()
    )
    password = (secrets / "flower_password").read_text().rstrip()
    assert flower_opens(app, visitor, password)
    assert host.run(f"{app.name}ctl watch").rc in (0, 1, 2)
    assert flower_opens(app, visitor, password, "/status/")
    # The owner's, over a connection of its own.
    script = (
        "import os, psycopg; print(psycopg.connect(os.environ['DATABASE_URL']).execute('SELECT user').fetchone()[0])"
    )
    environment = [f"/etc/{app.name}/next/app.env", f"/etc/{app.name}/next/migrate.env"]
    python = f"/srv/{app.name}/current/.venv/bin/python"
    assert run_python(host, script, environment=environment, python=python).strip() == f"{app.name}_owner"
    # That of Redis's administrator, which no process has.
    answer = redis_says(host, app, "operator", (secrets / "redis_admin_password").read_text().rstrip())
    assert "NOPERM" in answer


# --- Rotation ---------------------------------------------------------------------------------------


def flower_opens(app: Installation, visitor: Visitor, password: str, path: str = "/flower/") -> bool:
    """Return whether Flower accepts a password, or the status page, which has the same."""
    word = base64.b64encode(f"{app.flower_user}:{password}".encode()).decode()
    return visitor.get(path, headers={"Authorization": f"Basic {word}"}).status == 200


def redis_says(host: Host, app: Installation, user: str, password: str, port: int = 6379) -> str:
    """Return the answer to a user's PING."""
    words = f"AUTH {user} {json.dumps(password, ensure_ascii=False)}\nPING\n"
    result = host.run(f"printf %s {shlex.quote(words)} | redis-cli -p {port}")
    return result.stdout + result.stderr


def database_opens(host: Host, app: Installation, user: str, password: str) -> bool:
    psql = f"psql --no-password -h 127.0.0.1 -U {user} -d {app.name} -tAc 'SELECT 1'"
    return host.run(f"PGPASSWORD={shlex.quote(password)} {psql}").succeeded


def values(secrets: Path) -> dict[str, str]:
    return {name: (secrets / name).read_text().rstrip("\n") for name in ROTATED}


@pytest.fixture
def customer(visitor: Visitor) -> Visitor:
    """A customer who is signed in."""
    user, word = f"u{uuid.uuid4().hex[:12]}", uuid.uuid4().hex
    fields = {"username": user, "email": f"{user}@example.org", "password1": word, "password2": word}
    visitor.post("/register/", fields)
    assert is_signed_in(visitor)
    return visitor


def is_signed_in(visitor: Visitor) -> bool:
    return "Sign out" in visitor.get("/").body


def login(host: Host, app: Installation) -> str:
    """Return the name with which the application logs in to the database."""
    address = host.check_output(f"grep ^DATABASE_URL= /etc/{app.name}/next/app.env")
    match = re.search(r"postgresql://(\w+):", address)
    assert match, "no DATABASE_URL"
    return match[1]


@pytest.fixture
def deputy(host: Host) -> Iterator[None]:
    """A user with root's key, and sudo."""
    keys = "install -D -m 0600 -o deputy /root/.ssh/authorized_keys /home/deputy/.ssh/authorized_keys"
    sudo = "echo 'deputy ALL=(ALL:ALL) NOPASSWD: ALL' >/etc/sudoers.d/deputy"
    host.check_output(f"useradd --create-home --shell /bin/sh deputy && {keys} && {sudo}")
    yield
    host.check_output("rm /etc/sudoers.d/deputy && pkill -KILL -u deputy; userdel --remove --force deputy")


# The scenario `cluster` rotates them with Debian 13's services.
@pytest.mark.os("debian12")
@pytest.mark.usefixtures("verbose_run", "deputy")
def test_rotation_under_load(
    host: Host,
    app: Installation,
    deployments: Deployments,
    secrets: Path,
    settings: dict[str, Any],
    customer: Visitor,
) -> None:
    """The first run is killed when the new processes start; an administrator's run with sudo completes it."""
    before, old_login, redis = values(secrets), login(host, app), deployments.redis_processes()
    # Few enough for the rate limit, even when they pile up for seconds.
    with deployments.under_load() as traffic:
        traffic.pause(3)
        watch = deployments.watch("health_check")
        # The file with the first administrator's password is again as before the verbose run.
        killed = rotate(deployments, settings, secrets_replace=True)
        watch.result()
        killed.signal(signal.SIGKILL)
        killed.wait()
        between = values(secrets)
        deployments.wait_until_idle()
        rotate(deployments, settings, connection_user="deputy").wait().succeeded()
        traffic.pause(3)
    deployments.assert_zero_downtime(traffic, sorted({sample.release for sample in traffic.samples if sample.release}))

    after, new_login = values(secrets), login(host, app)
    assert all(between[name] != before[name] for name in ROTATED)
    assert deployments.redis_processes() == redis, "Redis must not restart"
    assert after == between, "the second run completes the first, without generating secrets again"
    assert new_login != old_login
    assert is_signed_in(customer), "sessions signed with the previous key stay valid"
    for port in (6379, 6380):
        for user, name in {
            app.name: "redis_password",
            "flower": "redis_monitor_password",
            "operator": "redis_admin_password",
        }.items():
            assert "WRONGPASS" in redis_says(host, app, user, before[name], port), (user, port)
            assert "WRONGPASS" not in redis_says(host, app, user, after[name], port), (user, port)
    assert not database_opens(host, app, old_login, before["database_password"])
    assert database_opens(host, app, new_login, after["database_password"])
    assert not database_opens(host, app, f"{app.name}_owner", before["database_owner_password"])
    assert database_opens(host, app, f"{app.name}_owner", after["database_owner_password"])
    assert not flower_opens(app, customer, before["flower_password"])
    assert flower_opens(app, customer, after["flower_password"])
    # No rotation replaces the passphrases of backups.
    kept = {"admin_password", "backup_key", "backup_files_key", "recovery-kit.txt"}
    left = {file.name for file in secrets.iterdir()} - {*ROTATED, *kept}
    assert left == {"database_login", "django_key.previous"}


# The host on which they were rotated.
@pytest.mark.os("debian12")
def test_second_database_role_has_the_same_privileges(host: Host, app: Installation) -> None:
    settings = (
        "SELECT array_agg(entry ORDER BY entry) FROM pg_db_role_setting, unnest(setconfig) AS entry "
        "WHERE setrole = '{}'::regrole"
    )
    names = [app.name, f"{app.name}_2"]
    assert query(host, app, settings.format(names[0])) == query(host, app, settings.format(names[1])) != ""
    attributes = (
        "SELECT rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls FROM pg_roles WHERE rolname = '{}'"
    )
    assert {query(host, app, attributes.format(name)) for name in names} == {"f|f|f|f|f"}
    assert (
        query(host, app, f"SELECT count(*) FROM pg_roles WHERE rolcanlogin AND rolname IN ('{names[0]}', '{names[1]}')")
        == "1"
    )


@pytest.mark.os("debian12")
def test_another_run_changes_nothing(
    deployments: Deployments, host: Host, app: Installation, settings: dict[str, Any]
) -> None:
    """A rotation leaves the state that the settings describe, in every role that it has changed."""
    source = host.check_output(f"readlink --canonicalize /srv/{app.name}/current")
    tags = "runtime,services,postgresql,redis,flower,nginx,monitoring,backup"
    run = deployments.playbook("playbooks/provision.yml", tags=tags, **settings).wait().succeeded()
    assert run.changed == 0, run.output
    assert host.check_output(f"readlink --canonicalize /srv/{app.name}/current") == source


# After the rotation: without its database role and its previous key, the release would be another one.
@pytest.mark.os("debian12")
def test_a_clone_without_the_secrets_deploys(
    host: Host, deployments: Deployments, secrets: Path, settings: dict[str, Any], visitor: Visitor
) -> None:
    """As in a CI job; the files are those of the machine that rotated them."""
    clone, copy, release = deployments.clone(), "sha256sum /etc/seedbed/secrets-copy.json", deployments.current
    fetched = clone.checkout / secrets.resolve().relative_to(ROOT)
    assert not fetched.exists()
    before = host.check_output(copy)
    run = clone.playbook("playbooks/deploy.yml", **settings).wait()
    run.succeeded().says("Fetched the secrets that were missing here: ")
    assert run.changed == 1, run.output
    # The machine that provisions writes the recovery kit.
    assert {file.name: file.read_text() for file in fetched.iterdir()} == {
        file.name: file.read_text() for file in secrets.iterdir() if file.name != "recovery-kit.txt"
    }
    assert (deployments.current, host.check_output(copy)) == (release, before)
    assert visitor.get("/readyz/").status == 200


def rotate(deployments: Deployments, settings: dict[str, Any], **variables: Any) -> Run:
    return deployments.playbook("playbooks/rotate-secrets.yml", **settings, **variables)
