"""Owners and modes of files, and that no secret is readable where it should not be."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from installation import Installation, run_python
from testinfra.host import Host

# APP and ID are the application's name and its current release.
EXPECTED = {
    "/etc/APP": "751 root APP",
    "/etc/APP/next/app.env": "640 root APP",
    "/etc/APP/next/migrate.env": "600 root root",
    "/etc/APP/flower.env": "600 root root",
    "/etc/APP/next/gunicorn.conf.py": "644 root root",
    "/etc/APP/releases/ID": "750 root APP",
    "/etc/APP/releases/ID/app.env": "640 root APP",
    "/etc/APP/releases/ID/migrate.env": "600 root root",
    "/etc/APP/releases/ID/gunicorn.conf.py": "644 root root",
    "/srv/APP": "755 root root",
    "/srv/APP/releases": "751 APP-build APP",
    "/srv/APP/releases/ID": "751 APP-build APP",
    "/srv/APP/releases/ID/run": "2750 APP www-data",
    "/srv/APP/shared": "751 root APP",
    "/srv/APP/releases/ID/.static": "755 APP-build APP",
    "/srv/APP/shared/assets": "755 root root",
    "/srv/APP/shared/media": "2750 APP www-data",
    "/srv/APP/shared/private": "2750 APP www-data",
    "/srv/APP/shared/mail": "750 APP APP",
    "/srv/APP/shared/beat": "750 APP APP",
    "/etc/ssl/APP/privkey.pem": "600 root root",
    "/etc/ssl/APP/fullchain.pem": "644 root root",
    "/etc/nginx/APP-status.htpasswd": "640 root www-data",
    "/etc/redis/redis-broker.conf": "640 root redis",
    "/etc/redis/redis-cache.conf": "640 root redis",
    "/etc/redis/users-broker.acl": "640 root redis",
    "/etc/redis/users-cache.acl": "640 root redis",
    "/etc/postgresql/*/main/pg_hba.seedbed.conf": "640 root postgres",
}


# Prints the modules below FOLDERS that this Python and user would compile at each start, and folders without modules.
UNCOMPILED = """
from importlib.util import cache_from_source
from pathlib import Path

def is_compiled(module):
    try:
        header = Path(cache_from_source(str(module))).read_bytes()[:12]
    except OSError:
        return False
    return int.from_bytes(header[8:], "little") == int(module.stat().st_mtime)

for folder in map(Path, FOLDERS):
    modules = [*folder.rglob("*.py")]
    print(*([module for module in modules if not is_compiled(module)] if modules else [folder]))
"""


def test_owners_and_modes(host: Host, app: Installation, release: str) -> None:
    places = {path: path.replace("APP", app.name).replace("ID", release) for path in EXPECTED}
    # One command for all: each is a connection.
    look = "; ".join(f"stat --format='{path}: %a %U %G' {place}" for path, place in places.items())
    found = dict(line.split(": ") for line in host.run(look).stdout.splitlines())
    assert found == {path: rights.replace("APP", app.name) for path, rights in EXPECTED.items()}


def test_the_hosts_programs_are_compiled(host: Host, app: Installation, release: str) -> None:
    """Their processes cannot write there, and start often. Read as the application: logins have another umask."""
    folders = [f"/usr/local/lib/{app.name}/hostctl", f"/etc/{app.name}/releases/{release}/lib/hostctl"]
    script = f"FOLDERS = {folders}\n{UNCOMPILED}"
    assert run_python(host, script, python=f"runuser -u {app.name} -- python3").split() == []


def test_application_cannot_write_its_own_code(host: Host, app: Installation) -> None:
    """It may write to the folders for its data, and to nothing else of the installation."""
    places = f"/srv/{app.name} /etc/{app.name} /etc/ssl/{app.name} /opt /usr/local /var/www /var/cache/{app.name}"
    # uv makes its empty lock files writable by all users.
    find = f"find {places} -writable -not -type l -not \\( -name '*.lock' -empty \\) -printf '%p\\n'"
    writable = host.run(f"runuser -u {app.name} -- {find} 2>/dev/null").stdout.split()
    data = [f"/srv/{app.name}/shared/{name}" for name in ("media", "private", "mail", "beat")]
    allowed = [
        *map(Path, data),
        *(Path(folder) for folder in host.check_output(f"ls -d /srv/{app.name}/releases/*/run").split()),
    ]
    assert set(data) <= set(writable), "this test sees nothing: it should find the folders for data"
    assert [path for path in writable if not any(Path(path).is_relative_to(folder) for folder in allowed)] == []


@pytest.mark.parametrize("file", ["next/migrate.env", "releases/ID/migrate.env", "flower.env"])
def test_application_cannot_read_other_secrets(host: Host, app: Installation, release: str, file: str) -> None:
    path = f"/etc/{app.name}/{file.replace('ID', release)}"
    assert host.file(path).exists
    assert host.run(f"runuser -u {app.name} -- cat {path}").rc == 1


# Runs on the host, so that no secret leaves it: finds the values in the files that hold them, identifies them by their
# hashes, and prints names only. Then searches every file that an unprivileged user can read.
HUNT = r"""
import glob, hashlib, json, os, pwd, re, subprocess, sys

wanted = json.loads('HASHES')
values = {}
for file in glob.glob('/etc/APP/*.env') + glob.glob('/etc/APP/next/*.env') + ['/etc/seedbed/secrets-copy.json']:
    for word in re.findall(r'[A-Za-z0-9]{12,}', open(file).read()):
        name = wanted.get(hashlib.sha256(word.encode()).hexdigest())
        if name:
            values[name] = word.encode()
found = {'known': sorted(values), 'seen': []}
journal = subprocess.run(['journalctl', '--no-pager', '--output=cat'], stdout=subprocess.PIPE).stdout
found['seen'] += ['%s in the journal' % name for name, value in values.items() if value in journal]

def look(path):
    try:
        with open(path, 'rb') as file:
            content = file.read(4_000_000)
    except OSError:
        return
    found['seen'] += ['%s in %s' % (name, path) for name, value in values.items() if value in content]

user = pwd.getpwnam('nobody')  # language-lint: allow nobody
os.setgroups([]); os.setgid(user.pw_gid); os.setuid(user.pw_uid)
for path in glob.glob('/proc/[0-9]*/cmdline') + glob.glob('/proc/[0-9]*/environ'):
    look(path)
for place in ('/etc', '/srv', '/opt', '/root', '/home', '/tmp', '/run', '/usr/local', '/var'):
    for folder, _, files in os.walk(place):
        for path in (os.path.join(folder, name) for name in files):
            if os.path.isfile(path) and not path.startswith('/var/lib/apt'):
                look(path)
print(json.dumps(found))
"""


# The scenario `security` has the same on Debian 12, with secrets of odd characters.
@pytest.mark.os("debian13")
def test_no_secret_is_readable(host: Host, app: Installation) -> None:
    """Not in a world-readable file, in a process's arguments, or in the journal."""
    names = {file.name for file in Path(app.secrets).iterdir()} - {"recovery-kit.txt"}
    secrets = {name: app.secret(name) for name in names}
    hashes = {hashlib.sha256(value.encode()).hexdigest(): name for name, value in secrets.items()}
    script = HUNT.replace("HASHES", json.dumps(hashes)).replace("APP", app.name)
    found = json.loads(run_python(host, script))
    assert found["known"] == sorted(secrets), "this test must know every secret that was generated"
    assert found["seen"] == []
