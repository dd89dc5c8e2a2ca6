"""What the module says of names that lead elsewhere and of a CA that refuses, and what a run adds to it."""

from __future__ import annotations

import errno
import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

ROLE = Path(__file__).parents[2] / "roles/certificate"
SPEC = importlib.util.spec_from_file_location("certificate_module", Path(__file__).parents[2] / "plugins/modules/certificate.py")
certificate = importlib.util.module_from_spec(SPEC)
sys.modules["certificate_module"] = certificate
SPEC.loader.exec_module(certificate)

TOKEN = "seedbed-token"
V4, V6 = "203.0.113.10", "2001:db8::10"


def keeper(monkeypatch: pytest.MonkeyPatch, *domains: str, have: set[str] | None = None) -> Any:
    """The module for a site of these names, on a host that has a CA's certificate for some of them."""
    params = {"domains": domains, "directory": "/nowhere", "lineage": "shop", "server": "https://ca.example/dir"}
    found = certificate.Certificate(SimpleNamespace(params=params, check_mode=False))
    monkeypatch.setattr(found, "issued", lambda: have or set())
    monkeypatch.setattr(found, "use", lambda: None)
    return found


# --- Where a name leads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ({V4: TOKEN}, ""),
        ({V4: TOKEN, V6: TOKEN}, ""),
        ({V4: TOKEN, V6: errno.ENETUNREACH}, ""),
        # IPv6 switched off by sysctl, and on the kernel's command line.
        ({V4: TOKEN, V6: errno.EADDRNOTAVAIL}, ""),
        ({V4: TOKEN, V6: errno.EAFNOSUPPORT}, ""),
        ({V4: TOKEN, V6: errno.ECONNREFUSED}, V6),
        ({V4: errno.ENETUNREACH}, V4),
        ({V6: errno.EAFNOSUPPORT}, V6),
        ({V4: "status 404"}, f"{V4} ('status 404')"),
        ({}, "has no address"),
    ],
)
def test_where_a_name_leads(monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any], problem: str) -> None:
    def look_up(*_: Any, **__: Any) -> list[Any]:
        if not answers:
            raise OSError
        return [(None, None, None, "", (address, 80)) for address in answers]

    def fetch(address: str, name: str, path: str) -> str:
        if isinstance(answers[address], int):
            raise OSError(answers[address], os.strerror(answers[address]))
        return answers[address]

    monkeypatch.setattr(certificate.socket, "getaddrinfo", look_up)
    monkeypatch.setattr(certificate, "fetch", fetch)
    said = keeper(monkeypatch, "shop.example").absence("shop.example", TOKEN)
    assert (problem in said) if problem else said == ""


# --- What is said ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problems", "advice"),
    [
        ({"shop.example": "shop.example has no address in the DNS yet."}, "dns"),
        ({"": "The CA gave no certificate: too many of them this week."}, "again"),
        ({"www.shop.example": "It does not lead here.", "": "The CA gave no certificate."}, "dns"),
    ],
    ids=["dns", "refused", "both"],
)
def test_only_a_name_that_leads_elsewhere_is_advised_on_the_dns(
    monkeypatch: pytest.MonkeyPatch, problems: dict[str, str], advice: str
) -> None:
    module = keeper(monkeypatch, "shop.example", "www.shop.example")
    monkeypatch.setattr(module, "request", lambda have: problems)
    module.ask()
    assert module.advice == advice
    for sentence in problems.values():
        assert sentence in module.message


def test_nothing_is_advised_where_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    module = keeper(monkeypatch, "shop.example", have={"shop.example"})
    module.ask()
    assert (module.message, module.advice) == ("", "")


def test_an_authority_that_refuses_brings_no_advice_on_the_dns() -> None:
    loader = DataLoader()
    variables = loader.load_from_file(str(ROLE / "vars/main.yml"), trusted_as_template=True)
    given = {"certificate_help_dns": "Give each name its address.", "certificate_help_again": "type: this"}
    said = Templar(loader, variables={**variables, **given}).template(variables["__certificate_advice"])
    assert said["dns"] == ["Give each name its address.", "Then type: this"]
    assert said["again"] == ["When that is put right, type: this"]
    assert said[""] == []


def test_name_servers_without_ipv4_are_left_out() -> None:
    text = "nameserver 192.0.2.53\nnameserver 2001:db8::53\n# nameserver 192.0.2.1\nnameserver 192.0.2.54 # two\n"
    assert certificate.resolvers(text) == ["192.0.2.53", "192.0.2.54"]
