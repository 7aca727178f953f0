"""Who may reach which port of a machine."""

from dataclasses import replace
from pathlib import Path

import pytest

from operations.machine import Listener
from settings import Neighbour, Settings
from settings.firewall import Firewall, Opened
from tests.unit.test_settings import MACHINE, chosen

SSH = Listener("tcp", 2222, "sshd", 1, "ssh.service", "0.0.0.0")  # noqa: S104 - as ss prints it


def view(directory: Path, roles: dict[str, list[str]], *listeners: Listener, came_to: int = 0) -> Firewall:
    machine = replace(MACHINE, listeners=listeners, came_to=came_to)
    near = {"home": Neighbour("10.0.0.3", ("192.0.2.3", "2001:db8::3")), "relay": Neighbour("198.51.100.4")}
    made = Settings(chosen(), "prod", {**roles, "firewall": ["one"]}, "one", machine, near, inventories=directory)
    return made.view(Firewall)


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
