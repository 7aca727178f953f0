"""The firewall: who may reach which port of a machine. The rules follow from the records of its roles and from the inventory."""

from dataclasses import dataclass
from typing import Self

from operations.machine import IPSEC_PROGRAMS, MachineState
from roles import Port
from settings.deployment import Settings, View

# Where the administrator's own rules are.
OWN_RULES = "/etc/matrix-metal/firewall.d"
# Ports at which the machine gets its own address: they stay open to a server for that.
DHCP = (68, 546)


@dataclass(frozen=True)
class Opened:
    """A port, or a range of ports as nft writes it. sources: the addresses that may reach it; None: everybody may."""

    protocol: str
    ports: str
    sources: tuple[str, ...] | None


@dataclass(frozen=True)
class Firewall(View):
    """ssh_ports: those on which SSH servers listen, and the one by which this run came.

    vpn_ports: those of VPNs that run, such as ("udp", 51820). ipsec: whether one of them is IPsec, which has a protocol besides.
    closed_tunnel: that by which the run came, and its kind, if it is not known what has to be open for it.

    closed: what listens for other machines, and that they do not reach any more, such as "25/tcp (master)".
    """

    opened: tuple[Opened, ...]
    ssh_ports: tuple[int, ...]
    vpn_ports: tuple[tuple[str, int], ...]
    ipsec: bool
    closed_tunnel: tuple[str, str] | None
    closed: tuple[str, ...]
    own_rules: str = OWN_RULES

    @classmethod
    def of(cls, settings: Settings) -> Self:
        machine = settings.machine
        listened = [port for role in settings.played for port in settings.listens(role)]
        opened = [_opened(settings, port) for port in listened if port.reach != "machine"]
        ssh_ports = {listener.port for listener in machine.listeners if listener.is_ssh}
        if machine.came_to:
            ssh_ports.add(machine.came_to)
        vpns = {("udp", port) for _, port in machine.wireguard}
        vpns |= {(each.protocol, each.port) for each in machine.listeners if each.is_vpn}
        ours = {(port.protocol, number) for port in listened for number in port.numbers}
        known = ours | vpns | {("tcp", port) for port in ssh_ports}
        closed = [
            f"{listener.port}/{listener.protocol} ({listener.program or 'the kernel'})"
            for listener in sorted(machine.listeners, key=lambda listener: listener.port)
            if listener.open and (listener.protocol, listener.port) not in known and listener.port not in DHCP
        ]
        return cls(
            tuple(opened),
            tuple(sorted(ssh_ports)),
            tuple(sorted(vpns - ours)),
            any(listener.program in IPSEC_PROGRAMS for listener in machine.listeners),
            None if _stays_open(machine) else machine.tunnel,
            tuple(dict.fromkeys(closed)),
        )


def _stays_open(machine: MachineState) -> bool:
    """Whether it is known what the tunnel by which the run came needs."""
    name, kind = machine.tunnel or ("", "")
    programs = [listener.program for listener in machine.listeners if listener.is_vpn]
    if kind == "wireguard" or name in dict(machine.wireguard):
        return name in dict(machine.wireguard)
    if kind in ("tun", "ovpn", "ovpn-dco"):
        return programs != []
    return kind in ("vti", "vti6", "xfrm") and not set(programs).isdisjoint(IPSEC_PROGRAMS)


def _opened(settings: Settings, port: Port) -> Opened:
    sources = None
    if port.reach == "deployment":
        sources = tuple(
            # The others use no database here: their addresses were not asked for.
            dict.fromkeys(
                each for neighbour in settings.neighbours.values() if neighbour.addresses for each in neighbour.sources
            )
        )
    return Opened(port.protocol, f"{port.number}-{port.last}" if port.last else str(port.number), sources)


VIEW = Firewall
