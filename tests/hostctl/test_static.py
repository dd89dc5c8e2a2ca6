"""Static files: those of a release, the folders that projects collect into, and the assets that releases share."""

from __future__ import annotations

import dataclasses
import grp
import os
import pwd
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hostctl.deploy import build, static
from hostctl.deploy.context import Context
from hostctl.deploy.static import give
from hostctl.host import Host
from hostctl.in_app import static_files
from hostctl.settings import ReleaseError
from tests.hostctl.fakes import NEW, OLD, Answers, deploy, make_release


@pytest.fixture(autouse=True)
def as_this_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "as_user", lambda settings, command, *rest: subprocess.run(command, check=True))
    monkeypatch.setattr(static, "give", lambda folder, user, group: None)


def context(host: Host, release: str = NEW) -> Context:
    host.path(release).joinpath(".static").mkdir(parents=True)
    return Context(host, release, {})


def make_files(host: Host, release: str, path: str, **files: str) -> Path:
    """Make a release with these collected files, served under a path."""
    folder = host.path(release) / ".static"
    for name, text in files.items():
        file = folder / name.replace("_", "/").replace("X", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    static.link(host.path(release) / ".public" / path, folder, host.path(release))
    return folder


def assets(host: Host) -> dict[str, str]:
    return {name: file.read_text() for name, file in static.files(static.assets(host))}


# --- Folders that projects collect into


@pytest.mark.parametrize(
    "path", ["collected", "src/project/static_collected", ".venv/lib/python3/site-packages/shop/dist"]
)
def test_a_folder_in_the_release_becomes_a_link(host: Host, path: str) -> None:
    release = context(host)
    folder = host.path(NEW) / path
    static.redirect(release, folder)
    (folder / "a.css").write_text("a")
    assert (host.path(NEW) / ".static/a.css").read_text() == "a"
    static.redirect(release, folder)


def test_files_that_a_package_brings_in_that_folder_come_along_also_from_a_copied_environment(host: Host) -> None:
    one, two = context(host, OLD), context(host, NEW)
    folder = host.path(OLD) / ".venv/dist"
    (folder / "js").mkdir(parents=True)
    (folder / "js/a.js").write_text("a")
    static.redirect(one, folder)
    (folder / "collected.css").write_text("old")
    subprocess.run(["cp", "--archive", "--link", host.path(OLD) / ".venv", host.path(NEW) / ".venv"], check=True)
    static.redirect(two, host.path(NEW) / ".venv/dist")
    assert [path.name for path in (host.path(NEW) / ".static").iterdir()] == ["js"]
    assert (host.path(NEW) / ".venv/dist/js/a.js").read_text() == "a"
    assert not (host.path(NEW) / ".static/js/a.js").samefile(host.path(NEW) / ".venv/dist.shipped/js/a.js")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a folder of another user")
def test_a_link_belongs_to_the_owner_of_its_folder(host: Host) -> None:
    """The build user makes hard links to it for the next release, which the kernel allows to owners only."""
    release, place = context(host), host.path(NEW) / ".venv/dist"
    place.parent.mkdir()
    os.chown(place.parent, 65534, 65534)
    static.redirect(release, place)
    assert (place.lstat().st_uid, place.lstat().st_gid) == (65534, 65534)


def test_the_folder_of_the_environment_needs_no_link(host: Host) -> None:
    static.redirect(context(host), host.path(NEW) / ".static")
    assert not (host.path(NEW) / ".static").is_symlink()


@pytest.mark.parametrize("path", ["../../shared/static", ".", "..", ".static/more", "link"])
def test_other_folders_are_refused(host: Host, tmp_path: Path, path: str) -> None:
    release = context(host)
    (host.path(NEW) / "link").symlink_to(tmp_path)
    with pytest.raises(ReleaseError, match="Write this into the settings"):
        static.redirect(release, Path(os.path.normpath(host.path(NEW) / path)))
    assert (host.path(NEW) / ".static").is_dir()


# --- The step


def collecting(live: Host, answers: Answers, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    """Have the project of NEW collect one file, served as /assets/."""

    def ask(question: str, *arguments: Any, seconds: float = 0) -> Any:
        if question == "collect_static":
            (live.path(NEW) / ".static").mkdir(exist_ok=True)
            (live.path(NEW) / ".static/new.css").write_text("new")
            (live.path(NEW) / ".static/new.css").chmod(0o600)
            return {"compressed": False}
        return found(question, *arguments, seconds=seconds)

    found = answers.ask
    monkeypatch.setattr(answers, "ask", ask)
    answers.override["static_files"] = {"missing": "", "path": "assets", "folders": []} | more


def test_files_are_linked_under_their_url(
    live: Host, answers: Answers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    collecting(live, answers, monkeypatch, folders=[str(live.path(NEW) / "collected")])
    assert deploy(live) == 0
    assert (live.settings.current / ".public/assets/new.css").read_text() == "new"
    assert (live.path(NEW) / ".static/new.css").stat().st_mode & 0o777 == 0o644
    assert assets(live) == {"assets/new.css": "new"}
    assert "Static files collected: 1." in capsys.readouterr().out


def test_a_failed_deployment_leaves_nothing(live: Host, answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    make_files(live, OLD, "static", aXcss="old")
    static.publish(live, OLD)
    collecting(live, answers, monkeypatch)
    answers.override["smoke_test"] = ReleaseError("no")
    assert deploy(live) == 1
    assert assets(live) == {"static/a.css": "old"}
    assert [path.name for path in static.assets(live).iterdir()] == ["static"]


def test_problems_of_static_files_are_refused(
    live: Host, answers: Answers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    collecting(live, answers, monkeypatch, problems=["Write COMPRESS_OFFLINE = True."])
    assert deploy(live) == 1
    assert "Write COMPRESS_OFFLINE = True." in capsys.readouterr().out
    assert assets(live) == {}


def test_folders_that_a_release_lacks_are_warned_of(
    live: Host, answers: Answers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    collecting(live, answers, monkeypatch, absent=["/srv/shop/dist"])
    assert deploy(live) == 0
    assert "STATICFILES_DIRS has /srv/shop/dist, which the release does not have" in capsys.readouterr().out


def test_a_project_without_static_files(live: Host, answers: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    assert deploy(live) == 0
    assert "No static files are collected: a test." in capsys.readouterr().out
    assert ("collect_static",) not in answers.asked


# --- Uploads


NOT_WRITABLE = "which the processes cannot write to"


@pytest.mark.parametrize(
    ("manager_name", "folder", "what"),
    [
        ("systemd", "{release}/index", "inside of the release, which its processes cannot write to"),
        ("systemd", "/data/index", NOT_WRITABLE),
        ("systemd", "/run/index", NOT_WRITABLE),
        ("systemd", "{home}/shared/private/index", ""),
        ("systemd", "/tmp/index", ""),
        ("supervisor", "{release}/index", "inside of the release, which its processes cannot write to"),
        ("supervisor", "/home/index", NOT_WRITABLE),
        ("supervisor", "/data/index", ""),
    ],
)
def test_settings_that_write_where_no_process_can_are_named(
    live: Host, manager_name: str, folder: str, what: str
) -> None:
    said: list[str] = []
    settings = dataclasses.replace(live.settings, manager=manager_name)
    deployment = SimpleNamespace(host=live, release=NEW, settings=settings, warn=said.append)
    folder = folder.format(release=live.path(NEW), home=live.settings.home)
    static.check_written(deployment, {"written": {"FILE_UPLOAD_TEMP_DIR": folder}})
    assert len(said) == bool(what)
    if what:
        assert said[0].startswith(f"FILE_UPLOAD_TEMP_DIR is {folder}, {what}")
        assert 'below os.environ["PRIVATE_ROOT"]' in said[0]


def test_such_a_setting_does_not_stop_a_deployment(
    live: Host, answers: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    written = {"FILE_UPLOAD_TEMP_DIR": str(live.path(NEW) / "temp")}
    answers.override["media_files"] = {"path": "media", "folder": "", "written": written}
    assert deploy(live) == 0
    assert "FILE_UPLOAD_TEMP_DIR is" in capsys.readouterr().out


def test_folders_that_settings_have_processes_write_to() -> None:
    settings = {
        "FILE_UPLOAD_TEMP_DIR": None, "EMAIL_BACKEND": "django.core.mail.backends.smtp.EmailBackend",
        "EMAIL_FILE_PATH": "mail", "SESSION_ENGINE": "django.contrib.sessions.backends.db", "SESSION_FILE_PATH": "s",
        "CACHES": {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": "redis://"}},
    }  # fmt: skip
    assert static_files.written_folders(SimpleNamespace(**settings)) == {"FILE_UPLOAD_TEMP_DIR": None}
    settings |= {
        "FILE_UPLOAD_TEMP_DIR": "temp", "EMAIL_BACKEND": "django.core.mail.backends.filebased.EmailBackend",
        "SESSION_ENGINE": "django.contrib.sessions.backends.file",
        "CACHES": {"pages": {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": "cache"}},
        "HAYSTACK_CONNECTIONS": {
            "default": {"ENGINE": "haystack.backends.whoosh_backend.WhooshEngine", "PATH": "whoosh"},
            "memory": {"ENGINE": "haystack.backends.whoosh_backend.WhooshEngine", "PATH": "none", "STORAGE": "ram"},
            "solr": {"ENGINE": "haystack.backends.solr_backend.SolrEngine", "URL": "http://solr"},
        },
    }  # fmt: skip
    assert static_files.written_folders(SimpleNamespace(**settings)) == {
        "FILE_UPLOAD_TEMP_DIR": "temp", "EMAIL_FILE_PATH": "mail", "SESSION_FILE_PATH": "s",
        'CACHES["pages"]["LOCATION"]': "cache", 'HAYSTACK_CONNECTIONS["default"]["PATH"]': "whoosh",
    }  # fmt: skip


def test_folders_of_settings_that_are_not_set() -> None:
    """A project may leave them to the environment."""
    settings = {"FILE_UPLOAD_TEMP_DIR": None, "EMAIL_BACKEND": None, "SESSION_ENGINE": None, "CACHES": {"x": None}}
    assert static_files.written_folders(SimpleNamespace(**settings)) == {"FILE_UPLOAD_TEMP_DIR": None}


def media(answers: Answers, host: Host, path: str, folder: str = "") -> None:
    answers.override["media_files"] = {"path": path, "folder": str(host.settings.home / "shared/media" / folder)}


@pytest.mark.parametrize(("path", "folder"), [("uploads", ""), ("my/uploads", "public"), ("static/media", "")])
def test_uploads_get_a_link_named_after_their_url(live: Host, answers: Answers, path: str, folder: str) -> None:
    media(answers, live, path, folder)
    assert deploy(live) == 0
    assert (live.path(NEW) / ".public-media" / path).resolve() == (
        live.settings.home / "shared/media" / folder
    ).resolve()


@pytest.mark.parametrize(
    ("path", "folder"), [("media", ""), ("", ""), ("uploads", "/data/uploads"), ("uploads", "../private")]
)
def test_uploads_that_need_no_link(live: Host, answers: Answers, path: str, folder: str) -> None:
    media(answers, live, path, folder)
    live.settings = dataclasses.replace(live.settings, read_write_paths=["/data"])
    assert deploy(live) == 0
    assert not (live.path(NEW) / ".public-media").exists()


@pytest.mark.parametrize(
    "path", ["media/files", "flower", "_private/a", "my/.uploads", "ops/status", "ops/status/files"]
)
def test_paths_where_nginx_serves_no_uploads_are_refused(
    live: Host, answers: Answers, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    live.settings = dataclasses.replace(live.settings, status_path="/ops/status/")
    media(answers, live, path)
    assert deploy(live) == 1
    assert f'no uploads at /{path}/, which is MEDIA_URL. Write this into the settings: MEDIA_URL = "/media/"' in (
        capsys.readouterr().out.replace("\n", " ")
    )


# A folder of uploads, in words, and what is wrong with it.
LOSSES = {
    "{release}/media": "inside of the release",
    "/var/tmp/uploads": "lost at a restart",
    "/data/uploads": "which the processes cannot write to",
}


@pytest.mark.parametrize("place", LOSSES)
def test_folder_that_loses_uploads_is_refused(
    live: Host, answers: Answers, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = place.format(release=live.path(NEW))
    answers.override["media_files"] = {"path": "media", "folder": folder}
    assert deploy(live) == 1
    said = capsys.readouterr().out.replace("\n", " ")
    assert f"uploads would get lost: MEDIA_ROOT is {folder}, " in said
    assert LOSSES[place] in said
    assert 'MEDIA_ROOT = os.environ["MEDIA_ROOT"]' in said


def test_folder_that_is_a_link_to_the_shared_one_keeps_uploads(live: Host, answers: Answers) -> None:
    (live.settings.home / "shared/media").mkdir(parents=True, exist_ok=True)
    (live.settings.home / "link").symlink_to(live.settings.home / "shared/media")
    answers.override["media_files"] = {"path": "media", "folder": str(live.settings.home / "link")}
    assert deploy(live) == 0


def test_supervisor_has_no_sandbox_that_keeps_from_a_folder(live: Host, answers: Answers) -> None:
    live.settings = dataclasses.replace(live.settings, manager="supervisor")
    answers.override["media_files"] = {"path": "media", "folder": "/data/uploads"}
    assert deploy(live) == 0


def test_field_that_stores_uploads_in_the_release_is_a_warning(
    live: Host, answers: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {str(live.path(NEW)): "notes.Note.file", str(live.settings.home / "shared/private"): "notes.Note.letter"}
    answers.override["media_files"] = {"path": "", "folder": "", "fields": fields}
    assert deploy(live) == 0
    said = capsys.readouterr().out
    assert "Warning: Uploads of notes.Note.file would get lost" in said
    assert "notes.Note.letter" not in said


# --- Links of the application or of the build user


def test_no_link_leads_root_out_of_the_release(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, secrets = make_files(host, NEW, "static", aXcss="a", b_cXcss="c"), tmp_path / "secrets"
    secrets.mkdir(mode=0o700)
    (secrets / "key").touch(0o600)
    (folder / "key").symlink_to(secrets / "key")
    (folder / "all").symlink_to(secrets)
    (host.path(NEW) / "top").symlink_to(secrets)
    os.mkfifo(folder / "pipe", 0o600)
    changed: list[str] = []
    monkeypatch.setattr(os, "chown", lambda path, *ids, **how: changed.append(str(path)))
    for place in (folder, host.path(NEW) / "top"):
        static.open_to_all(place)
        give(place, pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name)
    assert [path.stat().st_mode & 0o777 for path in (secrets, secrets / "key")] == [0o700, 0o600]
    assert sorted(changed) == ["a.css", "all", "b", "c.css", "key", "pipe"]
    static.publish(host, NEW)
    assert assets(host) == {"static/a.css": "a", "static/b/c.css": "c"}


def test_a_link_in_the_place_of_a_folder_is_refused(host: Host, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    release = host.path(NEW)
    release.mkdir()
    (release / ".public").symlink_to(elsewhere)
    with pytest.raises(ReleaseError, match="without a link"):
        static.link(release / ".public/static", release / ".static", release)
    (release / "run").symlink_to(elsewhere)
    mode = elsewhere.stat().st_mode
    with pytest.raises(ReleaseError, match="without a link"):
        build.make_folder(release / "run", 0o700, "root", "root")
    assert elsewhere.stat().st_mode == mode
    assert list(elsewhere.iterdir()) == []


# --- Assets


@pytest.mark.parametrize("path", ["static", "my/assets", ""])
def test_assets_are_those_of_all_releases(host: Host, path: str) -> None:
    make_files(host, OLD, path, css_aXcss="old", oldXcss="old")
    make_files(host, NEW, path, css_aXcss="new", css_newXcss="new", Xhidden="no")
    static.publish(host, OLD)
    static.publish(host, NEW)
    prefix = f"{path}/" if path else ""
    assert assets(host) == {f"{prefix}css/a.css": "old", f"{prefix}old.css": "old", f"{prefix}css/new.css": "new"}


def test_a_file_where_another_release_has_a_folder_is_left_out(host: Host) -> None:
    make_files(host, OLD, "static", a="old", b_cXcss="old")
    make_files(host, NEW, "static", a_bXcss="new", b="new", cXcss="new")
    static.publish(host, OLD)
    static.publish(host, NEW)
    assert assets(host) == {"static/a": "old", "static/b/c.css": "old", "static/c.css": "new"}


def test_assets_of_removed_releases_stay_for_a_while(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for release in (OLD, NEW):
        make_files(host, release, "static", **{f"{release[:3]}Xcss": release})
        make_release(host, release)
        static.publish(host, release)
    both = {"static/old.css": OLD, "static/new.css": NEW}
    shutil.rmtree(host.path(OLD))
    static.prune(host)
    assert assets(host) == both
    monkeypatch.setattr(static, "KEEP_SECONDS", -1)
    static.prune(host)
    assert assets(host) == {"static/new.css": NEW}


def test_nothing_is_removed_while_a_release_of_an_earlier_version_is_there(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are in shared/static, to which shared/assets/static is a link then."""
    shared = host.settings.home / "shared"
    (shared / "static").mkdir(parents=True)
    (shared / "assets").mkdir()
    (shared / "assets/static").symlink_to("../static")
    (shared / "static/staticfiles.json").write_text("old")
    make_release(host, OLD)
    make_files(host, NEW, "static", aXcss="new", staticfilesXjson="new")
    static.publish(host, NEW)
    monkeypatch.setattr(static, "KEEP_SECONDS", -1)
    static.prune(host)
    assert assets(host) == {"static/staticfiles.json": "old", "static/a.css": "new"}
