"""The kernel settings, in a network of its own: the host's settings cannot be written in a container."""

from __future__ import annotations

from testinfra.host import Host

# `early` exists before the settings are loaded; `late` appears afterwards, and udev loads them for it.
SCRIPT = """
set -eu
mount -t proc proc /proc
ip link add early type veth peer name other
grep -H . /proc/sys/net/ipv?/conf/early/accept_redirects
grep '^net[.]ipv[46][.]conf' /etc/sysctl.d/60-seedbed.conf >/run/sysctl.of_a_test
/usr/lib/systemd/systemd-sysctl /run/sysctl.of_a_test
ip link add late type veth peer name another
/usr/lib/systemd/systemd-sysctl --prefix=/net/ipv4/conf/late --prefix=/net/ipv6/conf/late /run/sysctl.of_a_test
echo loaded
grep -H . /proc/sys/net/ipv?/conf/*/*_redirects /proc/sys/net/ipv?/conf/*/accept_source_route
"""


def test_no_interface_accepts_redirects_or_source_routes(host: Host) -> None:
    output = host.check_output(f"unshare --net --mount sh -c \"$(cat <<'SCRIPT'\n{SCRIPT}\nSCRIPT\n)\"")
    host.run("rm -f /run/sysctl.of_a_test")
    before, after = (dict(line.split(":") for line in part.splitlines()) for part in output.split("\nloaded\n"))
    assert set(before.values()) == {"1"}
    folder = "/proc/sys/net/ipv"
    for interface in ("all", "default", "lo", "early", "late"):
        assert {f"{folder}{version}/conf/{interface}/accept_redirects" for version in (4, 6)} < set(after)
    assert {name: value for name, value in after.items() if value != "0"} == {}
