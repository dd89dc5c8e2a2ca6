"""Disk space for a release, and environments that releases share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hostctl.deploy import build, environment
from hostctl.host import Host
from hostctl.settings import ReleaseError
from tests.hostctl.fakes import OLD, make_release


@pytest.mark.parametrize(("facts", "error"), [({"bytes": 2**60}, "MiB are free"), ({"files": 2**60}, "inodes")])
def test_a_full_disk_is_reported_before_the_build(host: Host, facts: dict[str, int], error: str) -> None:
    make_release(host, OLD)
    host.switch(OLD)
    mark = host.path(OLD) / "build.json"
    mark.write_text(json.dumps({"bytes": 1, "files": 1}))
    build.check_disk_space(host)
    mark.write_text(json.dumps({"bytes": 1, "files": 1} | facts))
    with pytest.raises(ReleaseError, match=error):
        build.check_disk_space(host)


def test_an_environment_is_shared_only_with_the_same_requirements(host: Host, tmp_path: Path) -> None:
    make_release(host, OLD)
    (tmp_path / "base.txt").write_text("django==5.2\n")
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("-r base.txt\ncelery==5.6.3\n")
    made_from = environment.fingerprint(host.settings, requirements)
    (host.path(OLD) / environment.MADE_FROM).write_text(made_from)
    assert environment.find_twin(host, made_from) == host.path(OLD) / ".venv"
    (tmp_path / "base.txt").write_text("django==5.3\n")
    assert environment.find_twin(host, environment.fingerprint(host.settings, requirements)) is None


@pytest.mark.parametrize("line", ["-e .", "./vendored", "shop @ file:///srv/shop", 'source = { directory = "libs/a" }'])
def test_an_environment_with_the_projects_own_files_is_not_shared(host: Host, tmp_path: Path, line: str) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(f"{line}\n")
    assert environment.fingerprint(host.settings, requirements) == ""
    assert environment.find_twin(host, "") is None
