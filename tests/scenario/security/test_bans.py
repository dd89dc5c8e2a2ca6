"""Seen from another host: the ports that the groups name, and bans for failed logins and floods."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from installation import Installation
from probes import Visitor, wait_for
from testinfra.host import Host

PUBLIC = {22, 80, 443}
# The ports that app_firewall_rules allows here, besides those of the groups.
ALLOWED = {4711}
# A second address of `outsider`.
ATTACKER = "10.178.0.53"


@pytest.fixture(scope="module")
def attacker(host: Host, outsider: Host) -> Iterator[str]:
    """An address of its own, so that a ban concerns nothing else; unbanned afterwards."""
    outsider.check_output(f"ip address replace {ATTACKER}/32 dev eth0")
    host.check_output(f"ip route replace {ATTACKER} via {outsider.check_output('hostname -i').split()[0]}")
    host.check_output(f"fail2ban-client unban {ATTACKER}")
    yield ATTACKER
    host.check_output(f"fail2ban-client unban {ATTACKER}")
    host.check_output(f"ip route delete {ATTACKER}")


# The scenario `default` connects to all ports, on both.
@pytest.mark.os("debian13")
def test_only_ports_of_groups_and_settings_answer(app: Installation, outsider: Host) -> None:
    """All TCP ports, with nmap; the others drop packets."""
    scan = f"nmap -Pn -n -sS -p- --min-rate 8000 --max-retries 2 -oG - {app.address}"
    report = outsider.check_output(scan)
    assert {int(port) for port in re.findall(r"(\d+)/open/tcp", report)} == PUBLIC
    assert {int(port) for port in re.findall(r"(\d+)/closed/tcp", report)} == ALLOWED
    assert re.search(r"Ignored State: filtered \(65531\)", report), report


def banned(host: Host, jail: str) -> list[str]:
    return host.check_output(f"fail2ban-client get {jail} banip").split()


def wait_until_accepted(host: Host, outsider: Host, visit: str, status: str) -> None:
    """Unban the attacker until a request is answered with that status."""

    def accepted() -> bool:
        # fail2ban may still read log lines from before the ban.
        host.check_output(f"fail2ban-client unban {ATTACKER}")
        return outsider.run(visit).stdout.strip() == status

    wait_for(accepted, 60, "the address is accepted again")


def test_failed_ssh_logins_lead_to_a_ban(host: Host, app: Installation, outsider: Host, attacker: str) -> None:
    def ssh(source: str) -> str:
        options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o BatchMode=yes -o ConnectTimeout=15"
        # A ban leaves an open connection hanging, and testinfra takes ssh's status 255 for an error of its own.
        return outsider.run(f"timeout 20 ssh -b {source} {options} intruder@{app.address} true || true").stderr

    assert "Permission denied" in ssh(attacker)
    wait_for(lambda: ssh(attacker) and attacker in banned(host, "sshd"), 120, "the address is banned")
    wait_for(lambda: ssh(attacker), 60, "the address is refused", lambda said: "Connection refused" in said)
    # Neither the other address nor the machine that runs the tests.
    assert banned(host, "sshd") == [attacker]
    # More than once: fail2ban may still read log lines from before the ban.
    unban = f"fail2ban-client unban {attacker}"
    accepted = "the address is accepted again"
    wait_for(lambda: host.check_output(unban) and "Permission denied" in ssh(attacker), 90, accepted)


def test_failed_flower_logins_lead_to_a_ban(host: Host, app: Installation, outsider: Host, attacker: str) -> None:
    visit = f"curl -sk -o /dev/null -w '%{{http_code}}' -m 5 --interface {attacker} -u admin:wrong {app.url}/flower/"
    assert outsider.run(visit).stdout == "401"
    wait_for(lambda: outsider.run(visit).rc == 7, 60, "the address is refused")
    assert banned(host, "seedbed-web") == [attacker]
    assert outsider.check_output(f"curl -sk -o /dev/null -w '%{{http_code}}' {app.url}/healthz/") == "200"
    wait_until_accepted(host, outsider, visit, "401")


# The two bans above are tested on both, where fail2ban reads the journal and files in its own way.
@pytest.mark.os("debian13")
def test_guessed_passwords_are_limited_and_lead_to_a_ban(
    host: Host, app: Installation, outsider: Host, attacker: str
) -> None:
    """As fast as one client can, without the form's token, so that Django answers 403."""
    visit = f"curl -sk -o /dev/null -w '%{{http_code}}%header{{retry-after}} ' -m 5 --interface {attacker}"
    guess = f"timeout 60 {visit} -d 'username=admin&password=wrong' '{app.url}/admin/login/?[1-120]'"
    answers = outsider.run(guess).stdout.split()
    assert set(answers) <= {"403", "42910", "000"}, Counter(answers)
    assert "42910" in answers
    # The burst, and one in six seconds.
    assert 15 < answers.count("403") <= 35
    wait_for(lambda: outsider.run(f"{visit} {app.url}/healthz/").rc == 7, 60, "the address is refused")
    assert banned(host, "seedbed-logins") == [attacker]
    assert outsider.check_output(f"curl -sk -o /dev/null -w '%{{http_code}}' {app.url}/healthz/") == "200"
    wait_until_accepted(host, outsider, f"{visit} {app.url}/healthz/", "200")


def test_trusted_addresses_may_mistype(app: Installation, visitor: Visitor) -> None:
    answers = {visitor.request("/admin/login/", b"password=wrong", False, {}).status for _ in range(40)}
    assert answers == {403}


@pytest.mark.os("debian13")
def test_flood_leads_to_a_ban(
    host: Host, app: Installation, outsider: Host, attacker: str, variables: dict[str, Any]
) -> None:
    """More concurrent requests than the limit, so that the site refuses some, however fast it answers."""
    limits = variables["app_rate_limit"]
    refusals = int(host.check_output("fail2ban-client get seedbed-flood maxretry"))
    # As many as ten seconds allow, and enough refusals for a ban.
    count = limits["burst"] + 10 * limits["requests_per_second"] + refusals
    at_once = f"--http1.1 --parallel --parallel-immediate --parallel-max {limits['connections'] + 50}"
    visit = f"curl -sk -o /dev/null -w '%{{http_code}} ' -m 10 --interface {attacker}"
    answers = outsider.run(f"timeout 60 {visit} {at_once} '{app.url}/nothing/?[1-{count}]'").stdout.split()
    # Once the address is banned, requests time out.
    assert {"404", "429"} <= set(answers) <= {"404", "429", "000"}
    wait_for(lambda: outsider.run(f"{visit} {app.url}/healthz/").rc == 7, 60, "the address is refused")
    assert banned(host, "seedbed-flood") == [attacker]
    assert outsider.check_output(f"curl -sk -o /dev/null -w '%{{http_code}}' {app.url}/healthz/") == "200"
    wait_until_accepted(host, outsider, f"{visit} {app.url}/healthz/", "200")
