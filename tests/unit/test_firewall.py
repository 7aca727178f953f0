"""Who may reach which port of a machine."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from operations import preflight
from operations.machine import Listener, Machine
from settings import Neighbour, Settings
from settings.firewall import Firewall, Opened
from tests.unit.test_settings import MACHINE, chosen

SSH = Listener("tcp", 2222, "sshd", 1, "ssh.service", "0.0.0.0")  # noqa: S104 - as ss prints it


def settings_with(directory: Path, roles: dict[str, list[str]], *listeners: Listener, **found: Any) -> Settings:
    machine = replace(MACHINE, listeners=listeners, **found)
    near = {"home": Neighbour("10.0.0.3", ("192.0.2.3", "2001:db8::3")), "relay": Neighbour("198.51.100.4")}
    return Settings(chosen(), "prod", {**roles, "firewall": ["one"]}, "one", machine, near, inventories=directory)


def view(directory: Path, roles: dict[str, list[str]], *listeners: Listener, **found: Any) -> Firewall:
    return settings_with(directory, roles, *listeners, **found).view(Firewall)


def test_it_opens_the_ports_of_the_machines_roles(tmp_path: Path) -> None:
    alone = view(tmp_path, {"caddy": ["one"], "coturn": ["one"], "sydent": ["one"]})
    assert [(each.protocol, each.ports, each.sources) for each in alone.opened] == [
        ("tcp", "80", None),
        ("tcp", "443", None),
        ("udp", "443", None),
        *((protocol, str(port), None) for port in (3478, 5349) for protocol in ("tcp", "udp")),
        ("udp", "49152-65535", None),
    ]


def test_the_database_is_open_to_machines_that_use_it(tmp_path: Path) -> None:
    """The relay's addresses were not asked for."""
    database = view(tmp_path, {"postgres": ["one"], "synapse": ["home"], "coturn": ["relay"]})
    assert database.opened == (Opened("tcp", "5432", ("192.0.2.3", "2001:db8::3", "10.0.0.3")),)
    assert view(tmp_path, {"postgres": ["one"], "synapse": ["one"]}).opened == ()


@pytest.mark.parametrize(("came_to", "ports"), [(0, (2222,)), (2222, (2222,)), (22, (22, 2222))])
def test_ssh_stays_open(tmp_path: Path, came_to: int, ports: tuple[int, ...]) -> None:
    """Where sshd listens, and where the run came to, which may be a socket of systemd's."""
    assert view(tmp_path, {}, SSH, came_to=came_to).ssh_ports == ports


def test_what_is_closed_is_named(tmp_path: Path) -> None:
    others = (
        Listener("tcp", 25, "master", 1, "postfix.service", "*"),
        Listener("tcp", 5433, "postgres", 1, "", "127.0.0.1"),
        Listener("udp", 53, "systemd-resolve", 1, "", "127.0.0.53%lo"),
        Listener("tcp", 631, "cupsd", 1, "", "[::1]"),
        Listener("udp", 68, "dhclient", 1, "", "*"),
        Listener("udp", 51820, "", 0, "", "[::]"),
        Listener("tcp", 443, "caddy", 1, "caddy.service", "*"),
    )
    assert view(tmp_path, {"caddy": ["one"]}, SSH, *others).closed == ("25/tcp (master)", "51820/udp (the kernel)")


SOCKET = Listener("tcp", 22, "systemd", 1, "ssh.socket", "*")
VPNS = (
    Listener("udp", 1194, "openvpn", 1, "openvpn@home.service", "*"),
    Listener("tcp", 7505, "openvpn", 1, "openvpn@home.service", "127.0.0.1"),
    Listener("udp", 41641, "tailscaled", 1, "tailscaled.service", "*"),
    Listener("tcp", 35211, "tailscaled", 1, "tailscaled.service", "100.64.0.1"),
    Listener("udp", 5182, "", 0, "", "*"),
)


def test_it_keeps_nobody_from_ssh_and_vpns(tmp_path: Path) -> None:
    """Neither by its rules, nor by what a run says."""
    found = view(tmp_path, {}, SOCKET, *VPNS, came_to=22, wireguard=(("wg0", 5182),))
    assert found.ssh_ports == (22,) and not found.ipsec
    assert found.vpn_ports == (("udp", 1194), ("udp", 5182), ("udp", 41641))
    assert found.closed == ("35211/tcp (tailscaled)",)
    assert view(tmp_path, {}, Listener("udp", 500, "charon", 1, "strongswan.service", "*")).ipsec


def test_without_a_server_for_ssh_it_is_refused(tmp_path: Path) -> None:
    """A run as `@local`, by sudo, says nothing about SSH."""
    other = Listener("tcp", 80, "systemd", 1, "web.socket", "*")
    [line] = preflight._locked_out(settings_with(tmp_path, {}, other))
    assert "the firewall would close SSH" in line and "/etc/matrix-metal/firewall.d/ssh.nft" in line
    for found in ({"came_to": 22}, {"own_rules": ("mine.nft", "ssh.nft")}):
        assert preflight._locked_out(settings_with(tmp_path, {}, other, **found)) == []
    for server in (SSH, SOCKET, Listener("tcp", 2222, "dropbear", 1, "", "*")):
        assert preflight._locked_out(settings_with(tmp_path, {}, server)) == []


@pytest.mark.parametrize(
    ("kind", "listeners", "wireguard", "closed"),
    [
        ("wireguard", (), (("vpn", 5182),), False),
        ("wireguard", (), (("other", 5183),), True),
        ("wireguard", VPNS, (), True),
        ("tun", VPNS, (), False),
        ("tun", (), (), True),
        ("xfrm", VPNS, (), True),
        ("sit", VPNS, (("other", 5183),), True),
    ],
)
def test_a_tunnel_of_which_the_port_is_not_known_is_refused(
    tmp_path: Path, kind: str, listeners: tuple[Listener, ...], wireguard: tuple[tuple[str, int], ...], closed: bool
) -> None:
    """If the run comes by it. The connection that confirms new rules would go on inside of it, until it is idle."""
    found: dict[str, Any] = {"came_to": 22, "wireguard": wireguard, "tunnel": ("vpn", kind)}
    lines = preflight._locked_out(settings_with(tmp_path, {}, SSH, *listeners, **found))
    assert [f"the firewall would close vpn ({kind})" in line for line in lines] == [True] * closed
    own = settings_with(tmp_path, {}, SSH, *listeners, **found, own_rules=("tunnel.nft",))
    assert preflight._locked_out(own) == []


@pytest.mark.parametrize(
    ("client", "came_to", "answers", "tunnel"),
    [
        ("10.9.0.2", "wg0 wireguard", "wg0 wireguard", ("wg0", "wireguard")),
        ("10.9.0.2", "eth0 ", "tun0 tun", ("tun0", "tun")),
        ("fe80::1%eth0", "eth0 ", "eth0 ", None),
        # A proxy of the machine's.
        ("198.51.101.2", "eth0 ", "tun0 tun", None),
        ("198.51.101.2", "eth0 veth", "eth0 veth", None),
        ("2001:470::2", "he-ipv6 sit", "he-ipv6 sit", ("he-ipv6", "sit")),
    ],
)
def test_the_tunnel_that_a_run_comes_by_is_known(
    client: str, came_to: str, answers: str, tunnel: tuple[str, str] | None
) -> None:
    lines = [f"connection {client} 50000 192.0.2.7 22", f"came_to {came_to}", f"answers {answers}"]
    found = Machine().answer([*lines, "wireguard wg0\t5182", "wireguard wg1\t0", "own_rules mine.nft ssh.nft"])
    assert (found.tunnel, found.came_to, found.wireguard) == (tunnel, 22, (("wg0", 5182),))
    assert found.own_rules == ("mine.nft", "ssh.nft")
