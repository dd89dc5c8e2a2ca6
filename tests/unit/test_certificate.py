"""The messages of the module certificate: names that point elsewhere, a CA that refuses, and the hints of the role."""

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
SPEC = importlib.util.spec_from_file_location(
    "certificate_module", Path(__file__).parents[2] / "plugins/modules/certificate.py"
)
certificate = importlib.util.module_from_spec(SPEC)
sys.modules["certificate_module"] = certificate
SPEC.loader.exec_module(certificate)

TOKEN = "seedbed-token"
V4, V6 = "203.0.113.10", "2001:db8::10"


def make_certificate(monkeypatch: pytest.MonkeyPatch, *domains: str, issued: set[str] | None = None) -> Any:
    """Return the certificate of a site of these names; the CA has issued one for `issued`."""
    params = {
        "domains": domains,
        "directory": "/nowhere",
        "lineage": "shop",
        "acme_directory_url": "https://ca.example/dir",
    }
    made = certificate.Certificate(SimpleNamespace(params=params, check_mode=False))
    monkeypatch.setattr(made, "issued_names", lambda: issued or set())
    monkeypatch.setattr(made, "use_issued", lambda: None)
    return made


# --- Reachability of names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ({V4: TOKEN}, ""),
        ({V4: TOKEN, V6: TOKEN}, ""),
        ({V4: TOKEN, V6: errno.ENETUNREACH}, ""),
        # IPv6 disabled by sysctl, and by ipv6.disable=1.
        ({V4: TOKEN, V6: errno.EADDRNOTAVAIL}, ""),
        ({V4: TOKEN, V6: errno.EAFNOSUPPORT}, ""),
        ({V4: TOKEN, V6: errno.ECONNREFUSED}, V6),
        ({V4: errno.ENETUNREACH}, V4),
        ({V6: errno.EAFNOSUPPORT}, V6),
        ({V4: "status 404"}, f"{V4} ('status 404')"),
        ({}, "has no address"),
    ],
)
def test_reach_problem(monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any], problem: str) -> None:
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
    found = make_certificate(monkeypatch, "shop.example").reach_problem("shop.example", TOKEN)
    assert (problem in found) if problem else found == ""


# --- Messages and hints ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problems", "hint"),
    [
        ({"shop.example": "shop.example has no address in the DNS yet."}, "dns"),
        ({"": "The CA gave no certificate: too many of them this week."}, "retry"),
        ({"www.shop.example": "It does not point here.", "": "The CA gave no certificate."}, "dns"),
    ],
    ids=["dns", "refused", "both"],
)
def test_dns_hint_only_for_a_problem_of_a_name(
    monkeypatch: pytest.MonkeyPatch, problems: dict[str, str], hint: str
) -> None:
    module = make_certificate(monkeypatch, "shop.example", "www.shop.example")
    monkeypatch.setattr(module, "request", lambda issued: problems)
    module.provide_issued()
    assert module.hint == hint
    for sentence in problems.values():
        assert sentence in module.message


def test_no_message_for_a_complete_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    module = make_certificate(monkeypatch, "shop.example", issued={"shop.example"})
    module.provide_issued()
    assert (module.message, module.hint) == ("", "")


def test_hints_of_the_role() -> None:
    loader = DataLoader()
    variables = loader.load_from_file(str(ROLE / "vars/main.yml"), trusted_as_template=True)
    given = {"certificate_help_dns": "Give each name its address.", "certificate_help_retry": "type: this"}
    hints = Templar(loader, variables={**variables, **given}).template(variables["__certificate_hints"])
    assert hints["dns"] == ["Give each name its address.", "Then type: this"]
    assert hints["retry"] == ["When that is fixed, type: this"]
    assert hints[""] == []


def test_resolvers_are_the_ipv4_name_servers() -> None:
    text = "nameserver 192.0.2.53\nnameserver 2001:db8::53\n# nameserver 192.0.2.1\nnameserver 192.0.2.54 # two\n"
    assert certificate.resolvers(text) == ["192.0.2.53", "192.0.2.54"]
