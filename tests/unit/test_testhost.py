"""Test hosts: tags of images, and where SSH answers."""

from __future__ import annotations

import subprocess
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

import pytest
import testhost
from testhost import Host, Image, is_fresh, parse, ssh_config_text, ssh_endpoint

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)


@pytest.fixture
def ca_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(testhost, "CA_FOLDER", tmp_path)
    return tmp_path


def test_tag_changes_with_the_certificates(ca_folder: Path) -> None:
    image = Image("debian13", "test-host")
    before = image.tag
    assert image.tag == before
    (ca_folder / "company.crt").write_text("a certificate")
    assert image.tag != before


def test_tag_changes_with_the_recipe(ca_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image("debian13", "test-host")
    before = image.tag
    monkeypatch.setitem(testhost.PACKAGES, "test-host", "systemd")
    assert image.tag != before


def test_tag_is_the_same_with_and_without_a_registry(ca_folder: Path) -> None:
    image = Image("debian12", "test-host")
    assert image.recipe("debian:12") != image.recipe("seedbed:debian12-base")
    assert image.tag.startswith("seedbed:debian12-test-host-")


def test_test_hosts_are_bare() -> None:
    packages = testhost.PACKAGES["test-host"].split()
    assert not {"python3", "sudo"} & set(packages)


@pytest.mark.parametrize(
    ("created", "fresh"),
    [
        ("2026-03-10T11:00:00.123456789Z", True),
        ("2026-03-03T12:00:01Z", True),
        ("2026-03-03T11:59:59Z", False),
    ],
)
def test_image_is_fresh_for_a_week(created: str, fresh: bool) -> None:
    assert is_fresh(created, NOON) is fresh


def test_ssh_answers_on_the_published_port() -> None:
    published = ["127.0.0.1:8443:443", "127.0.0.1:2222:22"]
    assert ssh_endpoint("10.177.0.2", published) == ("127.0.0.1", 2222)


def test_ssh_answers_on_the_hosts_address_without_a_published_port() -> None:
    assert ssh_endpoint("10.177.0.2", ["127.0.0.1:2200:220"]) == ("10.177.0.2", 22)


def test_ssh_configuration_with_a_space_in_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testhost, "KEY", Path("/home/me/my code/id_ed25519"))
    text = ssh_config_text(Host("demo", Path("/unused")), "127.0.0.1", 2222)
    assert '  IdentityFile "/home/me/my code/id_ed25519"\n' in text


def test_up_needs_an_address(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["up", "one"])
    assert "--address" in capsys.readouterr().err


@pytest.mark.parametrize("upgrades", [False, True])
def test_test_hosts_are_not_upgraded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, upgrades: bool) -> None:
    """Also the one that becomes a snapshot, and before site.yml begins."""
    commands: list[list[str]] = []
    monkeypatch.setattr(testhost, "run", lambda command, **options: commands.append(command))
    monkeypatch.setattr(testhost, "interfaces_change", nullcontext)
    for name in ("remove", "ensure_network", "wait_for_boot", "authorize", "wait_for_ssh"):
        monkeypatch.setattr(testhost, name, lambda *arguments: None)
    host = Host("one", tmp_path)
    testhost.boot(["docker"], host, "image", "10.177.0.8", upgrades=upgrades)
    script = ["docker", "exec", "seedbed-one", "sh", "-c", testhost.THROWAWAY]
    assert commands[1:] == ([] if upgrades else [script])


def test_the_runs_of_apt_are_skipped_by_drop_ins_and_dpkg_does_not_wait(tmp_path: Path) -> None:
    script = testhost.THROWAWAY.replace("/etc/", f"{tmp_path}/").replace("systemctl", ":")
    subprocess.run(["sh", "-c", script], check=True)
    files = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*.conf")}
    assert files == {
        f"systemd/system/{unit}.service.d/90-test-host.conf": "[Service]\nExecCondition=/bin/false\n"
        for unit in ("apt-daily", "apt-daily-upgrade")
    }
    assert (tmp_path / "dpkg/dpkg.cfg.d/90-test-host").read_text() == "force-unsafe-io\n"


def test_rules_of_a_removed_bridge_are_stale() -> None:
    rules = "\n".join(
        [
            "-P POSTROUTING ACCEPT",
            "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
            f"-A POSTROUTING -s {testhost.SUBNET} ! -o br-now -j MASQUERADE",
            f"-A POSTROUTING -s {testhost.SUBNET} ! -o br-former -j MASQUERADE",
        ]
    )
    left = f"POSTROUTING -s {testhost.SUBNET} ! -o br-former -j MASQUERADE".split()
    assert testhost.stale_rules(rules, {"docker0", "br-now"}) == [left]
