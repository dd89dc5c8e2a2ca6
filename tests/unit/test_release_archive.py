"""The ID of a release, and the content of its archive."""

from __future__ import annotations

import errno
import importlib.util
import os
import subprocess
import tarfile
import tracemalloc
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

SCRIPT = Path(__file__).parents[2] / "plugins/action/release_archive.py"


@pytest.fixture(scope="module")
def archive() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release_archive", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "core").mkdir(parents=True)
    (folder / "manage.py").write_text("manage")
    (folder / "core/settings.py").write_text("settings")
    return folder


def commit(folder: Path, tag: str = "") -> str:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
        ).stdout

    git("init", "--quiet", "--initial-branch=main")
    git("add", "--all")
    git("commit", "--quiet", "--allow-empty", "--message", "a version")
    if tag:
        git("tag", tag)
    return git("rev-parse", "HEAD").strip()


def members(path: Path) -> list[str]:
    with tarfile.open(path) as packed:
        return packed.getnames()


def test_the_same_content_has_the_same_id_at_any_time_and_place(
    archive: ModuleType, project: Path, tmp_path: Path
) -> None:
    name, first = archive.pack("project", "", tmp_path, tmp_path / "one", "0123456789")
    (project / "manage.py").touch()
    again, second = archive.pack(str(project), "", Path("/"), tmp_path / "two", "0123456789")
    assert name == again
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "manage.py").write_text("other"),
        lambda folder: (folder / "manage.py").chmod(0o755),
        lambda folder: (folder / "manage.py").rename(folder / "other.py"),
        lambda folder: (folder / "new.py").write_text(""),
    ],
    ids=["content", "mode", "name", "file"],
)
def test_a_change_gives_another_id(archive: ModuleType, project: Path, tmp_path: Path, change: object) -> None:
    before, _ = archive.pack("project", "", tmp_path, tmp_path / "cache", "0123456789")
    change(project)
    after, _ = archive.pack("project", "", tmp_path, tmp_path / "cache", "0123456789")
    assert before != after


def test_another_configuration_is_another_release_of_the_same_content(
    archive: ModuleType, project: Path, tmp_path: Path
) -> None:
    before, path = archive.pack("project", "", tmp_path, tmp_path / "cache", "aaaaaaaa")
    after, same = archive.pack("project", "", tmp_path, tmp_path / "cache", "bbbbbbbb")
    assert before != after
    assert path == same


def test_secrets_caches_and_ignored_files_are_excluded(archive: ModuleType, project: Path, tmp_path: Path) -> None:
    (project / ".env").write_text("SECRET_KEY=secret")
    (project / "core/__pycache__").mkdir()
    (project / "core/__pycache__/settings.pyc").write_text("")
    (project / "var").mkdir()
    (project / "var/upload").write_text("an upload")
    _, without_git = archive.pack("project", "", tmp_path, tmp_path / "one", "0123456789")
    assert members(without_git) == ["core/settings.py", "manage.py", "var/upload"]
    (project / ".gitignore").write_text("var/\n")
    commit(project)
    (project / "uncommitted.py").write_text("")
    _, with_git = archive.pack("project", "", tmp_path, tmp_path / "two", "0123456789")
    assert members(with_git) == [".gitignore", "core/settings.py", "manage.py", "uncommitted.py"]


def test_a_git_url_is_named_by_its_commit(archive: ModuleType, project: Path, tmp_path: Path) -> None:
    tagged = commit(project, tag="v1")
    name, path = archive.pack(f"file://{project}", "v1", tmp_path, tmp_path / "cache", "0123456789")
    assert name.startswith(tagged[:12] + "-")
    assert sorted(members(path)) == ["core", "core/settings.py", "manage.py"]
    (project / "manage.py").write_text("newer")
    newer = commit(project)
    name, _ = archive.pack(f"file://{project}", "main", tmp_path, tmp_path / "cache", "0123456789")
    assert name.startswith(newer[:12] + "-")


@pytest.fixture
def with_submodule(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project with a submodule that has a submodule."""
    for number, name in enumerate(("GIT_CONFIG_COUNT", "GIT_CONFIG_KEY_0", "GIT_CONFIG_VALUE_0")):
        monkeypatch.setenv(name, ("1", "protocol.file.allow", "always")[number])
    for name, inner in (("inner", ""), ("lib", "inner")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.py").write_text(name)
        commit(tmp_path / name)
        if inner:
            add_submodule(tmp_path / name, tmp_path / inner, inner)
    commit(project)
    add_submodule(project, tmp_path / "lib", "core/lib")
    return project


def add_submodule(folder: Path, source: Path, place: str) -> None:
    subprocess.run(["git", "submodule", "--quiet", "add", f"file://{source}", place], cwd=folder, check=True)
    command = ["git", "submodule", "--quiet", "update", "--init", "--recursive"]
    subprocess.run(command, cwd=folder, check=True)
    commit(folder)


@pytest.mark.parametrize("from_git", [False, True], ids=["folder", "git"])
def test_submodules_are_packed(archive: ModuleType, with_submodule: Path, tmp_path: Path, from_git: bool) -> None:
    source = f"file://{with_submodule}" if from_git else "project"
    _, path = archive.pack(source, "", tmp_path, tmp_path / "cache", "0123456789")
    found = {name for name in members(path) if name.endswith(".py")}
    assert found == {"core/lib/inner/inner.py", "core/lib/lib.py", "core/settings.py", "manage.py"}
    assert not [place for place in (tmp_path / "cache").iterdir() if place.suffix not in {".git", ".gz"}]


def test_a_submodule_without_files_is_named(archive: ModuleType, with_submodule: Path, tmp_path: Path) -> None:
    subprocess.run(["git", "submodule", "--quiet", "deinit", "--force", "core/lib"], cwd=with_submodule, check=True)
    with pytest.raises(archive.SourceError, match=r"core/lib has no files.*git submodule update --init --recursive"):
        archive.pack("project", "", tmp_path, tmp_path / "cache", "0123456789")


@pytest.mark.parametrize("from_git", [False, True], ids=["folder", "git"])
def test_pointers_of_git_lfs_are_not_packed_as_files(
    archive: ModuleType, project: Path, tmp_path: Path, from_git: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "logo.png").write_text("version https://git-lfs.example/spec/v1\noid sha256:0\nsize 5\n")
    (project / ".gitattributes").write_text("*.png filter=lfs diff=lfs merge=lfs -text\n")
    commit(project)
    monkeypatch.setattr(archive.shutil, "which", lambda name: None)
    source, says = (f"file://{project}", "install git-lfs") if from_git else ("project", r"logo.png.*git lfs pull")
    with pytest.raises(archive.SourceError, match=says):
        archive.pack(source, "", tmp_path, tmp_path / "cache", "0123456789")


def test_files_of_git_lfs_are_fetched_by_git_lfs(
    archive: ModuleType, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "logo.png").write_text("version https://git-lfs.example/spec/v1\noid sha256:0\nsize 7\n")
    (project / ".gitattributes").write_text("*.png filter=lfs diff=lfs merge=lfs -text\n")
    commit(project)
    stub = tmp_path / "bin/git-lfs"
    stub.parent.mkdir()
    # In the checkout, whose origin is the repository itself: that is where the files are.
    stub.write_text(
        f"#!/bin/sh\n[ $1 = pull ] || exit 1\ngit remote get-url origin >{tmp_path}/origin\nprintf picture >logo.png\n"
    )
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}:{os.environ['PATH']}")
    _, path = archive.pack(f"file://{project}", "", tmp_path, tmp_path / "cache", "0123456789")
    with tarfile.open(path) as packed:
        (name,) = (name for name in packed.getnames() if name.endswith("logo.png"))
        assert packed.extractfile(name).read() == b"picture"
    assert (tmp_path / "origin").read_text() == f"file://{project}\n"
    stub.write_text("#!/bin/sh\necho 'batch response: denied' >&2\nexit 2\n")
    commit(project)
    with pytest.raises(archive.SourceError, match="batch response: denied"):
        archive.pack(f"file://{project}", "", tmp_path, tmp_path / "cache", "0123456789")


def test_a_tracked_env_file_stays_on_the_control_machine(archive: ModuleType, project: Path, tmp_path: Path) -> None:
    for folder in (project, project / "core"):
        (folder / ".env").write_text("DEBUG=True")
    commit(project)
    for source in ("project", f"file://{project}"):
        _, path = archive.pack(source, "", tmp_path, tmp_path / "cache", "0123456789")
        assert not [name for name in members(path) if name.endswith(".env")]


@pytest.mark.parametrize(
    ("source", "git_ref", "says"),
    [("nothing", "", "app_source"), ("project", "v1", "app_git_ref"), ("file:///nothing.git", "", "git clone")],
)
def test_errors_name_the_setting_to_edit(
    archive: ModuleType, project: Path, tmp_path: Path, source: str, git_ref: str, says: str
) -> None:
    with pytest.raises(archive.SourceError, match=says):
        archive.pack(source, git_ref, tmp_path, tmp_path / "cache", "0123456789")


def test_an_unknown_ref_is_named(archive: ModuleType, project: Path, tmp_path: Path) -> None:
    commit(project)
    with pytest.raises(archive.SourceError, match=r"'v9'.*app_git_ref"):
        archive.pack(f"file://{project}", "v9", tmp_path, tmp_path / "cache", "0123456789")


def test_a_folder_that_git_ignores_is_not_an_empty_release(archive: ModuleType, project: Path, tmp_path: Path) -> None:
    commit(tmp_path)
    (tmp_path / ".gitignore").write_text("/project/\n")
    subprocess.run(["git", "rm", "-r", "--quiet", "--cached", "project"], cwd=tmp_path, check=True)
    with pytest.raises(archive.SourceError, match="has no files, or git ignores all of them"):
        archive.pack("project", "", tmp_path, tmp_path / "cache", "0123456789")


def test_nothing_is_packed_when_git_fails(archive: ModuleType, project: Path, tmp_path: Path) -> None:
    (project / ".git").write_text("gitdir: /nowhere\n")
    with pytest.raises(archive.SourceError, match="git ls-files"):
        archive.pack("project", "", tmp_path, tmp_path / "cache", "0123456789")


@pytest.mark.parametrize("from_git", [False, True], ids=["folder", "git"])
def test_a_large_source_needs_little_memory(archive: ModuleType, project: Path, tmp_path: Path, from_git: bool) -> None:
    size = 60 * 2**20
    with (project / "large").open("wb") as file:
        file.truncate(size)
    if from_git:
        commit(project)
    tracemalloc.start()
    try:
        source = f"file://{project}" if from_git else "project"
        _, path = archive.pack(source, "", tmp_path, tmp_path / "cache", "0123456789")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20
    with tarfile.open(path) as packed:
        assert packed.getmember("large").size == size


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    archive: ModuleType, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if when == "before":
        monkeypatch.setattr(archive.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    else:
        monkeypatch.setattr(archive.gzip, "GzipFile", full)
    with pytest.raises(archive.SourceError, match=r"^the folder \S+ has no room for the archive: \d+ MiB are free"):
        archive.pack("project", "", tmp_path, tmp_path / "cache", "0123456789")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_that_changes_meanwhile_is_noticed(
    archive: ModuleType, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress = archive.compress

    def change_before(*arguments: object) -> None:
        (project / "manage.py").write_text("changed")
        compress(*arguments)

    monkeypatch.setattr(archive, "compress", change_before)
    with pytest.raises(archive.SourceError, match="was changed meanwhile: run the same command again"):
        archive.pack("project", "", tmp_path, tmp_path / "cache", "0123456789")
    assert list((tmp_path / "cache").iterdir()) == []
