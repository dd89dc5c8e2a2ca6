"""A certificate of the operator's own is looked at before any host meets it."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import pytest
from authority import Authority, Pair

ROOT = Path(__file__).parents[2]
NOW = datetime.now(UTC)
DAY = timedelta(days=1)


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


preflight = load("plugins/action/preflight.py")
CA = Authority()
GOOD = CA.issue("shop.example.org", "*.example.net")
OTHER = CA.issue("shop.example.org")


@dataclass(frozen=True)
class Case:
    """Certificate and key, and what is said about them."""

    says: str
    chain: str
    key: str = GOOD.key


CASES = {
    "expired": Case("has expired", *CA.issue("shop.example.org", begins=NOW - 9 * DAY, ends=NOW - DAY)),
    "not_yet": Case("is not valid yet", *CA.issue("shop.example.org", begins=NOW + DAY)),
    "other_name": Case("is for www.example.com, and not for shop.example.org", *CA.issue("www.example.com")),
    "deeper_name": Case("is for *.org, and not for shop.example.org", *CA.issue("*.org")),
    "other_key": Case("is not the certificate of the key", GOOD.chain, OTHER.key),
    "order": Case("after its chain; put it first", CA.chain + GOOD.site),
    "strange_chain": Case("chain in the wrong order", GOOD.site + Authority("Another").chain),
    "no_certificate": Case("holds no certificate", "hello"),
    "no_key": Case("holds no private key", GOOD.chain, "hello"),
    "locked_key": Case("is encrypted by a passphrase", GOOD.chain, GOOD.locked_key),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_wrong_one_is_named(case: Case) -> None:
    found = [sentence for _, sentence in preflight.pem_problems(case.chain, case.key, ["shop.example.org"], NOW)]
    assert len(found) == 1, found
    assert case.says in found[0]


@pytest.mark.parametrize("pair", [GOOD, Pair(GOOD.site, GOOD.key, GOOD.site)], ids=["with_chain", "alone"])
def test_a_good_one_is_accepted(pair: Pair) -> None:
    domains = ["shop.example.org", "www.example.net"]
    assert list(preflight.pem_problems(pair.chain, pair.key, domains, NOW)) == []
