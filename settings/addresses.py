"""At which of its addresses a machine is reached by the world: for what clients of a call are told."""

import ipaddress
from typing import NamedTuple

from operations.machine import MachineState
from settings.networks import PRIVATE


class PublicAddress(NamedTuple):
    """An address of the machine at which calls reach it. public: what clients are told instead, behind 1:1 NAT."""

    address: str
    public: str | None = None

    @property
    def told(self) -> str:
        """The address that clients get."""
        return self.public or self.address

    @property
    def network(self) -> str:
        """The address as a network of its own, as CIDR."""
        return f"{self.address}/{128 if ':' in self.address else 32}"


class External(NamedTuple):
    """The addresses that the settings name, and the settings' names."""

    external_ip: str | None
    external_ipv6: str | None


def public_addresses(machine: MachineState, external: External) -> tuple[tuple[PublicAddress, ...], tuple[str, ...]]:
    """An address of each version of IP that the machine has; the settings for those that it has not."""
    found = [_public_address(machine, version, told) for version, told in zip((4, 6), external, strict=True)]
    missing = [name for name, told, each in zip(External._fields, external, found, strict=True) if told and not each]
    return tuple(each for each in found if each), tuple(missing)


def _public_address(machine: MachineState, version: int, external: str | None) -> PublicAddress | None:
    """What calls use of one version of IP. external: the address that the settings name."""
    if external in (*machine.addresses, *(address for _, address in machine.interfaces)):
        return PublicAddress(external)
    found = _outgoing_address(machine, version)
    return PublicAddress(found, external) if found else None


def _outgoing_address(machine: MachineState, version: int) -> str | None:
    """The address at which the world reaches the machine: not one of a bridge for containers, or of a tunnel.

    It is the one with which the machine connects to the world; if that is private, a public one that the machine has as well. In
    a version of IP in which it has no way to the world, it still relays in the networks at the interface that has one.
    """
    lasting = [(interface, address) for interface, address in machine.interfaces if _is(address, version)]
    outgoing = next((each for each in machine.outgoing if _is(each[1], version)), None)
    if outgoing:
        interface, source = outgoing
        beside = [address for name, address in lasting if name == interface]
        # IPv6 may connect with a temporary address.
        first = source if not beside or source in (address for _, address in lasting) else beside[0]
        candidates = [first, *beside, *(address for _, address in lasting)]
        return next((address for address in candidates if not _is_private(address)), first)
    if machine.outgoing:
        return next((address for name, address in lasting if name == machine.outgoing[0][0]), None)
    found = [address for _, address in lasting] or [each for each in machine.addresses if _is(each, version)]
    return found[0] if found else None


def _is(address: str, version: int) -> bool:
    ip = ipaddress.ip_address(address)
    return ip.version == version and not (ip.is_loopback or ip.is_link_local)


def _is_private(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    return any(ip in network for network in PRIVATE)
