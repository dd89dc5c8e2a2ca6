"""Certificate files of the user are checked before any host is contacted."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from authority import Authority, Pair
from plugin_utils.preflight.certificate import pem_problems

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


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
    "other_key": Case("does not belong to the key", GOOD.chain, OTHER.key),
    "order": Case("after its chain. Put it first", CA.chain + GOOD.site),
    "strange_chain": Case("chain in the wrong order", GOOD.site + Authority("Another").chain),
    "no_certificate": Case("contains no PEM certificate", "hello"),
    "no_key": Case("contains no PEM private key", GOOD.chain, "hello"),
    "locked_key": Case("is encrypted with a passphrase", GOOD.chain, GOOD.locked_key),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_wrong_one_is_named(case: Case) -> None:
    found = [sentence for _, sentence in pem_problems(case.chain, case.key, ["shop.example.org"], NOW)]
    assert len(found) == 1, found
    assert case.says in found[0]


@pytest.mark.parametrize("pair", [GOOD, Pair(GOOD.site, GOOD.key, GOOD.site)], ids=["with_chain", "alone"])
def test_a_good_one_is_accepted(pair: Pair) -> None:
    domains = ["shop.example.org", "www.example.net"]
    assert list(pem_problems(pair.chain, pair.key, domains, NOW)) == []
