"""Unattended upgrades: only Debian's stable release and its security fixes, and no restarts during the day."""

from __future__ import annotations

import re

from testinfra.host import Host

# Prints settings that result from all of needrestart's files.
NEEDRESTART = """
our (%nrconf, $LOGPREF);
eval do { local(@ARGV, $/) = '/etc/needrestart/needrestart.conf'; <> };
die $@ if $@;
print "$nrconf{restart} $nrconf{interpscan}";
"""


def test_upgrades_are_installed_at_night(host: Host) -> None:
    names = "UnitFileState,ActiveState,Persistent,NextElapseUSecRealtime"
    shown = host.check_output(f"systemctl show apt-daily-upgrade.timer --property={names}")
    timer = dict(line.split("=", 1) for line in shown.splitlines())
    assert (timer["UnitFileState"], timer["ActiveState"]) == ("enabled", "active")
    # As in "Sun 2026-11-22 03:47:12 UTC".
    assert "03:30" <= timer["NextElapseUSecRealtime"].split()[2] <= "04:00:59"
    assert timer["Persistent"] == "no", "a missed night would be made up for during the day"
    settings = host.check_output("apt-config dump APT::Periodic; apt-config dump Unattended-Upgrade")
    assert 'APT::Periodic::Update-Package-Lists "1";' in settings
    assert 'APT::Periodic::Unattended-Upgrade "1";' in settings
    assert 'Unattended-Upgrade::Automatic-Reboot "false";' in settings


def test_upgrades_are_of_debians_stable_release_only(host: Host) -> None:
    """No backports, no third-party repositories."""
    settings = host.check_output("apt-config dump Unattended-Upgrade")
    origins = re.findall(r'^Unattended-Upgrade::(?:Origins-Pattern|Allowed-Origins):: "(.*)";$', settings, re.MULTILINE)
    own = "origin=Debian,codename=${distro_codename}"
    security = {f"{own},label=Debian-Security", f"{own}-security,label=Debian-Security"}
    assert security <= set(origins) <= security | {f"{own},label=Debian"}


def test_services_with_old_libraries_restart_at_night_only(host: Host) -> None:
    """needrestart lists them. It looks at libraries, and not at Python files."""
    assert host.check_output(f"perl - <<'SCRIPT'\n{NEEDRESTART}\nSCRIPT") == "l 0"
    night = host.check_output("systemctl show apt-daily-upgrade.service --property=Environment --value")
    assert night == "NEEDRESTART_MODE=a"
