"""hostctl/in_app: which settings of a project are overridden, which are refused, and how URLs become settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from hostctl.in_app import environment, overlay, settings_probe
from hostctl.in_app.overlay import Project

VARIABLES = {
    "SECRET_KEY": "of-the-environment",
    "ALLOWED_HOSTS": "shop.example.org,www.example.org",
    "CSRF_TRUSTED_ORIGINS": "https://shop.example.org",
    "DATABASE_URL": "postgresql://shop:p%40ss%2Fword@127.0.0.1:5432/shop",
    "CELERY_BROKER_URL": "redis://shop:pw@127.0.0.1:6379/0",
    "CACHE_URL": "redis://shop:pw@127.0.0.1:6380/0",
    "EMAIL_URL": "file:///srv/shop/shared/mail",
    "DEFAULT_FROM_EMAIL": "shop@shop.example.org",
    "STATIC_ROOT": "/srv/shop/shared/static",
    "MEDIA_ROOT": "/srv/shop/shared/media",
    "RELEASE_ID": "a-1",
}
DOMAINS = ["shop.example.org", "www.example.org"]
POSTGRESQL = {
    "ENGINE": "django.db.backends.postgresql",
    "NAME": "shop",
    "USER": "shop",
    "PASSWORD": "p@ss/word",
    "HOST": "127.0.0.1",
    "PORT": 5432,
}
# A project that reads everything from the environment: nothing is overridden.
GOOD: dict[str, Any] = {
    "DATABASES": {"default": POSTGRESQL},
    "CACHES": {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
    "SECRET_KEY": "of-the-environment",
    "ALLOWED_HOSTS": ["shop.example.org", "www.example.org"],
    "CSRF_TRUSTED_ORIGINS": ["https://shop.example.org"],
    "SECURE_PROXY_SSL_HEADER": None,
    "STATIC_ROOT": "/srv/shop/shared/static",
    "MEDIA_ROOT": "",
    "DEBUG": False,
    "LOGGING": {},
    "INSTALLED_APPS": ["django.contrib.staticfiles"],
    "DEFAULT_FROM_EMAIL": "webmaster@localhost",
    "EMAIL_BACKEND": "django.core.mail.backends.smtp.EmailBackend",
    "EMAIL_HOST": "localhost",
    "EMAIL_FILE_PATH": None,
    "CELERY_BROKER_URL": "redis://shop:pw@127.0.0.1:6379/0",
    "celery": "",
}
COMPANIONS = {"SECURE_PROXY_SSL_HEADER", "CSRF_TRUSTED_ORIGINS", "EMAIL", "DEFAULT_FROM_EMAIL"}


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CELERY_RESULT_BACKEND", raising=False)
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)


def project(folder: Path, follow: list[str] | None = None, **values: Any) -> Project:
    found = GOOD | values
    return Project("config.settings", DOMAINS, str(folder), found, explicit=sorted(found), follow=follow or [])


def sqlite(**more: Any) -> dict[str, Any]:
    return {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "/x/db.sqlite3"} | more}


def postgresql(**changes: Any) -> dict[str, Any]:
    return {"default": POSTGRESQL | changes}


def following(values: dict[str, Any]) -> list[str]:
    """Return names as settings_probe gives them where each of these values follows the environment."""
    keys = [f"{name}.{key}" for name, value in values.items() if isinstance(value, dict) for key in value]
    return [*values, *keys]


REDIS = "django.core.cache.backends.redis.RedisCache"
LOCAL_REDIS = {"BACKEND": REDIS, "LOCATION": "redis://localhost:6379/2"}
LAYER = "channels_redis.core.RedisChannelLayer"


def layer(*hosts: Any) -> dict[str, Any]:
    """Return a channel layer as the probe does: JSON has lists for tuples."""
    return {"BACKEND": LAYER, "CONFIG": {"hosts": list(hosts), "capacity": 9}}


OVERRIDDEN: dict[str, tuple[dict[str, Any], set[str]]] = {
    "sqlite": ({"DATABASES": sqlite()}, {"DATABASES"}),
    "no database": ({"DATABASES": {"default": {"ENGINE": "django.db.backends.dummy"}}}, {"DATABASES"}),
    "a local PostgreSQL": ({"DATABASES": postgresql(NAME="mysite", USER="me", HOST="localhost")}, {"DATABASES"}),
    "a socket": ({"DATABASES": postgresql(NAME="mysite", HOST="")}, {"DATABASES"}),
    "docker compose": ({"DATABASES": postgresql(HOST="db")}, {"DATABASES"}),
    "the key of startproject": ({"SECRET_KEY": "django-insecure-abc"}, {"SECRET_KEY"}),
    "a key in the code": ({"SECRET_KEY": "my own"}, {"SECRET_KEY"}),
    "no hosts": ({"ALLOWED_HOSTS": []}, {"ALLOWED_HOSTS"}),
    "one of two hosts": ({"ALLOWED_HOSTS": ["shop.example.org"]}, {"ALLOWED_HOSTS"}),
    "debug": ({"DEBUG": True}, {"DEBUG"}),
    "no static folder": ({"STATIC_ROOT": None}, {"STATIC_ROOT"}),
    "static files in a folder of all releases": ({"STATIC_ROOT": "/var/www/static"}, {"STATIC_ROOT"}),
    "media in the release": ({"MEDIA_ROOT": "media"}, {"MEDIA_ROOT"}),
    "media that are lost at a restart": ({"MEDIA_ROOT": "/var/tmp/media"}, {"MEDIA_ROOT"}),
    "a local Redis cache": ({"CACHES": {"default": {"BACKEND": REDIS, "LOCATION": "redis://localhost"}}}, {"CACHES"}),
    "a further cache": ({"CACHES": {"default": {"BACKEND": "x.LocMemCache"}, "sessions": LOCAL_REDIS}}, {"CACHES"}),
    "local replicas": ({"CACHES": {"default": LOCAL_REDIS | {"LOCATION": "redis://a,redis://[::1]/1"}}}, {"CACHES"}),
    "a local broker": ({"CELERY_BROKER_URL": "redis://localhost:6379/0"}, {"CELERY_BROKER_URL"}),
    "another namespace": ({"MYQUEUE_BROKER_URL": "redis://localhost:6379/0"}, {"MYQUEUE_BROKER_URL"}),
    "results": ({"CELERY_RESULT_BACKEND": "redis://redis:6379/1"}, {"CELERY_RESULT_BACKEND"}),
    "results in a file": ({"CELERY_RESULT_BACKEND": "db+sqlite:///results.sqlite"}, {"CELERY_RESULT_BACKEND"}),
    "results in a folder": ({"celery": "file://results"}, {"CELERY_RESULT_BACKEND"}),
    "results in code": ({"celery": "redis://localhost:6379/0"}, {"CELERY_RESULT_BACKEND"}),
    "RedBeat": ({"CELERY_REDBEAT_REDIS_URL": "redis://localhost:6379/1"}, {"CELERY_REDBEAT_REDIS_URL"}),
    "RedBeat by a broker in code": ({"redbeat": "redis://localhost:6379/0", "namespace": "CELERY"},
                                    {"CELERY_REDBEAT_REDIS_URL"}),
    "RedBeat without a namespace": ({"redbeat": "redis://redis/0", "namespace": ""}, {"REDBEAT_REDIS_URL"}),
    "RedBeat by a broker in settings": ({"CELERY_BROKER_URL": "redis://redis", "redbeat": "redis://redis"},
                                        {"CELERY_BROKER_URL"}),
    "channels by host and port": ({"CHANNEL_LAYERS": {"default": layer(["127.0.0.1", 6379])}}, {"CHANNEL_LAYERS"}),
    "channels by URL": ({"CHANNEL_LAYERS": {"default": layer("redis://redis:6379/3")}}, {"CHANNEL_LAYERS"}),
    "channels by options": ({"CHANNEL_LAYERS": {"x": layer({"address": "redis://localhost"})}}, {"CHANNEL_LAYERS"}),
    "channels by default": ({"CHANNEL_LAYERS": {"default": {"BACKEND": LAYER}}}, {"CHANNEL_LAYERS"}),
    "constance": ({"INSTALLED_APPS": ["constance"], "CONSTANCE_REDIS_CONNECTION": {"host": "localhost", "port": 6379}},
                  {"CONSTANCE_REDIS_CONNECTION"}),
    "constance by URL": ({"INSTALLED_APPS": ["constance"], "CONSTANCE_REDIS_CONNECTION": "redis://redis"},
                         {"CONSTANCE_REDIS_CONNECTION"}),
    "compressing at requests": ({"INSTALLED_APPS": ["compressor"]}, {"COMPRESS_OFFLINE"}),
    "a manifest that releases share": ({"manifest": "staticfiles.json", "STORAGES": {}}, {"STORAGES"}),
    "a log file": ({"LOGGING": {"handlers": {"file": {"class": "logging.FileHandler", "filename": "debug.log"}}}},
                   {"LOGGING"}),
}  # fmt: skip
LEFT: dict[str, dict[str, Any]] = {
    "nothing": {},
    "another server": {"DATABASES": postgresql(HOST="db.example.org")},
    "a cache on another server": {"CACHES": {"default": LOCAL_REDIS | {"LOCATION": "redis://cache.example.org/1"}}},
    "a cache at an IPv6 address": {"CACHES": {"a": LOCAL_REDIS | {"LOCATION": ["rediss://[2001:db8::1]"]}}},
    "any host": {"ALLOWED_HOSTS": ["*"]},
    "subdomains": {"ALLOWED_HOSTS": [".example.org"]},
    "static files in the release": {"STATIC_ROOT": "staticfiles"},
    "no static files": {"STATIC_ROOT": None, "INSTALLED_APPS": []},
    "a mail service": {"EMAIL_BACKEND": "anymail.backends.mailgun.EmailBackend"},
    "results in the database": {"CELERY_RESULT_BACKEND": "django-db"},
    "results in a shared file": {"CELERY_RESULT_BACKEND": "db+sqlite:////tmp/results.sqlite"},
    "results of another server": {"CELERY_RESULT_BACKEND": "redis://results.example.org:6379/0"},
    "RedBeat on another server": {
        "CELERY_REDBEAT_REDIS_URL": "redis://r.example.org",
        "redbeat": "redis://r.example.org",
    },
    "channels on another server": {"CHANNEL_LAYERS": {"default": layer(["redis.example.org", 6379])}},
    "channels in memory": {"CHANNEL_LAYERS": {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}},
    "constance in the database": {
        "INSTALLED_APPS": ["constance"],
        "CONSTANCE_BACKEND": "constance.backends.database.X",
    },
    "constance on another server": {
        "INSTALLED_APPS": ["constance"],
        "CONSTANCE_REDIS_CONNECTION": {"host": "r.example.org"},
    },
    "compressing before": {"INSTALLED_APPS": ["compressor"], "COMPRESS_OFFLINE": True},
    "no compressing": {"INSTALLED_APPS": ["compressor"], "COMPRESS_ENABLED": False},
    "compressing to S3": {"INSTALLED_APPS": ["compressor"], "COMPRESS_STORAGE": "storages.backends.s3.S3Storage"},
    "compressing to S3 by alias": {"INSTALLED_APPS": ["compressor"], "STORAGES": {"compressor": {"BACKEND": "x"}}},
    "a manifest of each release": {"manifest": "a-1.json"},
    "logs on stderr": {"LOGGING": {"handlers": {"console": {"class": "logging.StreamHandler"}}}},
}


@pytest.mark.parametrize("case", OVERRIDDEN)
def test_what_is_hard_coded_is_overridden(tmp_path: Path, case: str) -> None:
    values, names = OVERRIDDEN[case]
    lines = overlay.overridden(project(tmp_path, **values))
    assert set(lines) - COMPANIONS == names
    assert set(lines) >= COMPANIONS
    compile(overlay.render(project(tmp_path), lines), "seedbed_settings.py", "exec")


@pytest.mark.parametrize("case", OVERRIDDEN)
def test_what_follows_the_environment_is_left(tmp_path: Path, case: str) -> None:
    """Except debug and log files, which no variable of Seedbed decides."""
    values, names = OVERRIDDEN[case]
    lines = overlay.overridden(project(tmp_path, follow=following(values), **values))
    # No variable gives a project a folder of static files, has its files compressed before, or names a manifest.
    left = {"DEBUG", "LOGGING", "COMPRESS_OFFLINE", "STORAGES"} | (
        {"STATIC_ROOT"} if case == "no static folder" else set()
    )
    assert set(lines) - COMPANIONS == names & left


def test_a_cache_that_follows_the_environment_stays_beside_one_that_does_not(tmp_path: Path) -> None:
    caches = {"default": LOCAL_REDIS | {"LOCATION": VARIABLES["CACHE_URL"]}, "sessions": LOCAL_REDIS}
    here = project(tmp_path, follow=["CACHES", "CACHES.default"], CACHES=caches)
    assert overlay.overridden(here)["CACHES"].endswith(", ['sessions'])")


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("redis://user:p:w@[::1]:6379/0", "::1"),
        ("redis://cache.example.org?db=1", "cache.example.org"),
        ("127.0.0.1:11211", "127.0.0.1"),
        ("unix:///run/redis.sock", ""),
        ("/run/redis.sock", ""),
        ("", ""),
    ],
)
def test_host_of_an_address(address: str, host: str) -> None:
    assert overlay.host_of(address) == host


@pytest.mark.parametrize("case", LEFT)
def test_what_may_be_meant_is_left(tmp_path: Path, case: str) -> None:
    assert overlay.overridden(project(tmp_path, **LEFT[case])) == {}


def test_a_mail_server_of_the_settings_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMAIL_URL", "smtp://mail.example.org")
    assert "EMAIL" in overlay.overridden(project(tmp_path))
    assert overlay.overridden(project(tmp_path, EMAIL_HOST="smtp.example.org")) == {}


def test_always_overrides_what_every_project_has(tmp_path: Path) -> None:
    of_packages = {"CHANNEL_LAYERS", "CONSTANCE_REDIS_CONNECTION", "COMPRESS_OFFLINE"}
    everything = {*overlay.RULES, *overlay.COMPANIONS}
    assert set(overlay.overridden(project(tmp_path), everything=True)) == everything - of_packages
    layers = project(tmp_path, INSTALLED_APPS=["compressor", "constance"], CHANNEL_LAYERS={"a": layer("redis://redis")})
    assert set(overlay.overridden(layers, everything=True)) == everything


def test_another_database_server_is_named(tmp_path: Path) -> None:
    here = project(tmp_path, DATABASES=postgresql(HOST="db.example.org"))
    [warning] = overlay.left_alone(here, {})
    assert "db.example.org" in warning
    assert "app_database_url" in warning
    assert list(overlay.left_alone(project(tmp_path), {})) == []


@pytest.mark.parametrize(
    ("engine", "refused"),
    [
        ("django.db.backends.mysql", True),
        ("django.contrib.gis.db.backends.oracle", True),
        ("mssql", True),
        ("django_cockroachdb", True),
        ("django.db.backends.sqlite3", False),
        ("django.contrib.gis.db.backends.spatialite", False),
        ("django.db.backends.dummy", False),
        ("django_tenants.postgresql_backend", False),
        ("psqlextra.backend", False),
        ("", False),
    ],
)
def test_database_of_another_server_is_refused(tmp_path: Path, engine: str, refused: bool) -> None:
    here = project(tmp_path, DATABASES={"default": {"ENGINE": engine, "HOST": "db.example.org"}})
    found = list(overlay.other_database(here))
    assert len(found) == refused
    assert all("app_settings_overlay: always" in sentence and engine in sentence for sentence in found)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, []),
        ({"DEBUG": True}, ["DEBUG is True in config.settings"]),
        ({"SECRET_KEY": ""}, ["SECRET_KEY is missing or empty"]),
        ({"SECRET_KEY": "django-insecure-abc"}, ["SECRET_KEY is the insecure one"]),
        ({"ALLOWED_HOSTS": ["shop.example.org"]}, ["does not contain www.example.org, so"]),
        ({"DEBUG": True, "ALLOWED_HOSTS": []}, ["DEBUG is True", "does not contain shop.example.org, www"]),
    ],
)
def test_what_must_not_go_live_is_refused(tmp_path: Path, values: dict[str, Any], words: list[str]) -> None:
    here = project(tmp_path, **values)
    found = list(overlay.problems_of(here, {}))
    assert len(found) == len(words)
    assert all(word in sentence for word, sentence in zip(words, found, strict=True))
    assert list(overlay.problems_of(here, overlay.overridden(here))) == []


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("postgresql://shop:p%40ss%2Fword@10.0.0.1:5433/shop?sslmode=require",
         {"NAME": "shop", "USER": "shop", "PASSWORD": "p@ss/word", "HOST": "10.0.0.1", "PORT": 5433,
          "OPTIONS": {"sslmode": "require"}}),
        ("postgres://db.example.org/shop",
         {"NAME": "shop", "USER": "", "PASSWORD": "", "HOST": "db.example.org", "PORT": ""}),
        ("postgresql://shop@[2001:db8::1]/shop",
         {"NAME": "shop", "USER": "shop", "PASSWORD": "", "HOST": "2001:db8::1", "PORT": ""}),
    ],
)  # fmt: skip
def test_database_from_its_url(url: str, found: dict[str, Any]) -> None:
    assert environment.database(url) == {"ENGINE": environment.POSTGRESQL} | found


def test_database_keeps_what_suits_postgresql() -> None:
    own = sqlite(ATOMIC_REQUESTS=True, OPTIONS={"timeout": 20}) | {"other": {"ENGINE": "x"}}
    found = environment.databases(own)
    assert found["other"] == {"ENGINE": "x"}
    assert found["default"]["ATOMIC_REQUESTS"] is True
    assert "OPTIONS" not in found["default"]
    engines = {
        "django.contrib.gis.db.backends.spatialite": environment.POSTGIS,
        "django_prometheus.db.backends.postgresql": "django_prometheus.db.backends.postgresql",
    }
    for engine, wanted in engines.items():
        assert environment.databases({"default": {"ENGINE": engine}})["default"]["ENGINE"] == wanted
    kept = environment.databases(postgresql(OPTIONS={"pool": True}))
    assert kept["default"]["OPTIONS"] == {"pool": True}


def test_caches_keep_their_backend_for_redis() -> None:
    options = {"CLIENT_CLASS": "django_redis.client.DefaultClient", "PASSWORD": "old"}
    own = {"default": {"BACKEND": "django_redis.cache.RedisCache", "KEY_PREFIX": "a", "OPTIONS": options}}
    assert environment.caches(own)["default"] == {
        "BACKEND": "django_redis.cache.RedisCache",
        "KEY_PREFIX": "a",
        "OPTIONS": {"CLIENT_CLASS": "django_redis.client.DefaultClient"},
        "LOCATION": VARIABLES["CACHE_URL"],
    }
    memcached = {"default": {"BACKEND": "django.core.cache.backends.memcached.PyMemcacheCache", "OPTIONS": {"a": 1}}}
    assert environment.caches(memcached)["default"] == {"BACKEND": REDIS, "LOCATION": VARIABLES["CACHE_URL"]}


def test_caches_in_one_redis_have_keys_of_their_own() -> None:
    elsewhere = {"BACKEND": REDIS, "LOCATION": "redis://cache.example.org"}
    own = {
        "default": {"BACKEND": REDIS, "LOCATION": "redis://localhost/1", "KEY_PREFIX": "shop"},
        "again": {"BACKEND": REDIS, "LOCATION": "redis://localhost/1", "KEY_PREFIX": "shop"},
        "sessions": {"BACKEND": REDIS, "LOCATION": "redis://localhost/2", "KEY_PREFIX": "shop", "TIMEOUT": 60},
        "pages": {"BACKEND": REDIS, "LOCATION": "redis://localhost/3", "KEY_PREFIX": "mine"},
        "far": elsewhere,
    }
    found = environment.caches(own, ["default", "again", "sessions", "pages"])
    assert found.pop("far") == elsewhere
    assert {cache["LOCATION"] for cache in found.values()} == {VARIABLES["CACHE_URL"]}
    prefixes = {alias: cache["KEY_PREFIX"] for alias, cache in found.items()}
    assert prefixes == {"default": "shop", "again": "shop", "sessions": "shopsessions", "pages": "mine"}
    assert found["sessions"]["TIMEOUT"] == 60
    own = {"default": {"BACKEND": "x.LocMemCache"}, "sessions": LOCAL_REDIS}
    assert environment.caches(own, ["sessions"])["default"] == own["default"]


def test_channel_layers_keep_their_options_and_have_keys_of_their_own() -> None:
    own = {"default": layer(["127.0.0.1", 6379]), "chat": layer("redis://localhost/2"), "memory": {"BACKEND": "x"}}
    hosts = {"hosts": [VARIABLES["CACHE_URL"]], "capacity": 9}
    assert environment.channel_layers(own, ["default", "chat"]) == {
        "default": {"BACKEND": LAYER, "CONFIG": hosts},
        "chat": {"BACKEND": LAYER, "CONFIG": hosts | {"prefix": "asgi-chat"}},
        "memory": {"BACKEND": "x"},
    }


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("file:///srv/mail", {"EMAIL_FILE_PATH": "/srv/mail"}),
        ("smtp://a%40b:p%2F@host:587/?tls=true",
         {"EMAIL_HOST": "host", "EMAIL_PORT": 587, "EMAIL_HOST_USER": "a@b", "EMAIL_HOST_PASSWORD": "p/",
          "EMAIL_USE_TLS": True, "EMAIL_USE_SSL": False}),
        ("smtp://host", {"EMAIL_PORT": 25, "EMAIL_USE_TLS": False, "EMAIL_USE_SSL": False}),
        ("smtp://host:465", {"EMAIL_PORT": 465, "EMAIL_USE_TLS": False, "EMAIL_USE_SSL": True}),
        ("smtps://host", {"EMAIL_PORT": 587, "EMAIL_USE_TLS": True, "EMAIL_USE_SSL": False}),
    ],
)  # fmt: skip
def test_mail_from_its_url(monkeypatch: pytest.MonkeyPatch, url: str, found: dict[str, Any]) -> None:
    monkeypatch.setenv("EMAIL_URL", url)
    assert environment.email().items() >= found.items()


def test_log_files_become_stderr() -> None:
    handler = {"class": "logging.handlers.RotatingFileHandler", "filename": "x.log", "maxBytes": 1, "level": "INFO"}
    own = {"version": 1, "handlers": {"file": handler, "console": {"class": "logging.StreamHandler"}}}
    found = environment.logging_to_stderr(own, ["file"])
    assert found["handlers"]["file"] == {"class": "logging.StreamHandler", "level": "INFO"}
    assert found["handlers"]["console"] == own["handlers"]["console"]


@pytest.mark.parametrize(
    "value", [*VARIABLES.values(), "1", "some text", "redis://h/3", "https://key@sentry.io/1", "redis://[::1]:6379/0"]
)
def test_a_probe_has_other_values_of_the_same_kind(value: str) -> None:
    other = settings_probe.changed(value)
    assert other != value
    assert urlsplit(other).port == urlsplit(value).port
    if "://" in value and not value.startswith("file"):
        assert other.partition("://")[0] == value.partition("://")[0]
        assert other.rpartition("/")[2].isdigit() == value.rpartition("/")[2].isdigit()


@pytest.mark.parametrize("value", ["", "true", "False", "None"])
def test_a_probe_keeps_what_is_one_of_few(value: str) -> None:
    assert settings_probe.changed(value) == value
