"""Networks that nobody may reach through the relay, through URL previews or by the name of a homeserver."""

import ipaddress
from collections.abc import Iterable


def _number(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> tuple[int, int]:
    return network.version, int(network.network_address)


# Those that `private_networks` may name: RFC 1918, RFC 6598 (carrier-grade NAT), RFC 4193.
PRIVATE = tuple(
    map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"))
)
# Local and reserved ones, also as IPv4 addresses embedded in IPv6 (CVE-2026-27624: coturn before 4.9 does not recognise them).
# Source: IANA's special-purpose registries.
_RESERVED = (
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "240.0.0.0/4",
    "::/96",
    "::ffff:0:0/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "2001::/23",
    "2001:db8::/32",
    "2002::/16",
    "fe80::/10",
    "fec0::/10",
)
# By their numbers, those of IPv4 first.
BLOCKED_NETWORKS = tuple(
    sorted((*_RESERVED, *map(str, PRIVATE)), key=lambda network: _number(ipaddress.ip_network(network)))
)
# coturn has a separate setting for these.
MULTICAST = ("224.0.0.0/4", "ff00::/8")
# Of these, Synapse and Sydent connect to IPv4 addresses embedded in IPv6: in a network without IPv4 every name has such a one.
TRANSLATED = ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16")
# What they do not connect to, unless it is in private_networks.
REFUSED = tuple(network for network in BLOCKED_NETWORKS if network not in TRANSLATED)
# The address that Debian's installer gives to the machine's own name in /etc/hosts.
DEBIANS_OWN = "127.0.1.1"


def is_refused(address: str, allowed: Iterable[str] = ()) -> bool:
    """Whether Synapse and Sydent do not connect to an address. allowed: networks that they were told to reach."""
    return _is_in(address, (*BLOCKED_NETWORKS, *MULTICAST)) and not _is_in(address, (*TRANSLATED, *allowed))


def _is_in(address: str, networks: Iterable[str]) -> bool:
    return any(ipaddress.ip_address(address) in ipaddress.ip_network(network) for network in networks)
