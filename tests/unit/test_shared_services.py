"""What the roles write where nginx and PostgreSQL also serve others (app_take_over)."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from project import ROOT


def render(role: str, template: str, **given: Any) -> str:
    """Return a template of a role as Ansible renders it, with the role's own variables."""
    loader, folder = DataLoader(), ROOT / "roles" / role
    files = (folder / "defaults/main.yml", folder / "vars/main.yml")
    known = {k: v for file in files for k, v in loader.load_from_file(str(file), trusted_as_template=True).items()}
    facts = {"memtotal_mb": 1024, "distribution_release": "trixie"}
    templar = Templar(loader, variables={**known, "ansible_managed": "ours", "ansible_facts": facts, **given})
    text = trust_as_template((folder / "templates" / template).read_text())
    return templar.template(text, overrides={"trim_blocks": True})


@pytest.mark.parametrize("elsewhere", [[], [80], [443], [80, 443]])
@pytest.mark.parametrize("domains", [["shop.example"], []])
def test_a_port_has_one_default_server(elsewhere: list[int], domains: list[str]) -> None:
    """nginx does not start with two."""
    site = render("nginx", "site.conf.j2", nginx_domains=domains, nginx_default_elsewhere=elsewhere)
    for port in (80, 443):
        pattern = rf"listen {port}( ssl)? default_server;"
        assert len(re.findall(pattern, site)) == (0 if port in elsewhere else 1)
    assert site.count("server_name shop.example;") == (2 if domains else 0)


def test_shared_services_get_no_sandbox() -> None:
    for role, template in {"nginx": "sandbox.conf.j2", "postgresql": "service.conf.j2"}.items():
        assert "ProtectSystem=strict" in render(role, template)
        shared = render(role, template, **{f"{role}_shared": True})
        assert "[Service]" in shared
        assert not re.search("^(Protect|Private|User|System)", shared, re.MULTILINE)


def test_access_rules_of_a_shared_database_server_are_for_one_database() -> None:
    """The first rule that matches counts: one for all databases would refuse the logins of others."""
    rules = render("postgresql", "pg_hba.conf.j2", postgresql_shared=True, postgresql_peers=["10.0.0.2"])
    lines = [line.split() for line in rules.splitlines() if line and not line.startswith("#")]
    assert len(lines) == 4
    assert {words[2] for words in lines} == {'"site_owner","site","site_2"'}
    # On this host also the one that an import restores into.
    assert [words[1] for words in lines] == ['"site","site_import"'] * 3 + ['"site"']
    assert "local   all          all       scram-sha-256" in render("postgresql", "pg_hba.conf.j2")


def test_a_shared_database_server_keeps_its_settings() -> None:
    own = {"work_mem": "8MB"}
    alone = render("postgresql", "settings.conf.j2", postgresql_settings=own)
    assert "hba_file = " in alone
    assert "max_connections = '50'" in alone
    shared = render("postgresql", "settings.conf.j2", postgresql_settings=own, postgresql_shared=True)
    assert shared.splitlines() == ["# ours", "work_mem = '8MB'"]
    given = {"postgresql_listen_addresses": ["127.0.0.1", "10.0.0.1"], "postgresql_peers": ["10.0.0.2"]}
    shared = render("postgresql", "settings.conf.j2", postgresql_shared=True, **given)
    assert shared.splitlines()[1:] == ["listen_addresses = '127.0.0.1, 10.0.0.1'", "ssl = 'on'"]
