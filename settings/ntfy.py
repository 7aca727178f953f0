"""ntfy, the push server for phones without Google's services."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from roles import NTFY, NTFY_SOCKET
from settings.deployment import Settings, View

# A phone has one connection for all its apps, and many phones may have one address. ntfy allows 30 connections and 60 requests.
CONNECTIONS, REQUESTS = 200, 300


@dataclass(frozen=True)
class Ntfy(View):
    """exempt: the addresses and networks from which our homeserver's notifications may come. kept: for phones that are off."""

    domain: str
    exempt: tuple[str, ...]
    socket: str = NTFY_SOCKET
    cache: str = f"{NTFY.state[0]}/cache.db"
    kept: str = "24h"
    connections: int = CONNECTIONS
    requests: int = REQUESTS

    @classmethod
    def of(cls, settings: Settings) -> Self:
        elsewhere = settings.exists("synapse") and not settings.here("synapse")
        own = settings.neighbour("synapse").sources if elsewhere else settings.machine.addresses
        networks = ["127.0.0.0/8", "::1/128", *settings.choices.private_networks, *filter(None, map(_network, own))]
        return cls(domain=settings.domain(NTFY), exempt=tuple(sorted(dict.fromkeys(networks))))

    @property
    def public_url(self) -> str:
        return f"https://{self.domain}"

    @property
    def upstreams(self) -> tuple[str, ...]:
        """Where Caddy reaches it, in the syntax of the Caddyfile."""
        return (f"unix/{self.socket}",)

    @property
    def web_names(self) -> Sequence[str]:
        return (self.domain,)


def _network(address: str) -> str:
    """That of an address: an address of IPv6 may be another tomorrow, in the same /64. "" for a name."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return ""
    return str(ipaddress.ip_network(f"{found}/{32 if found.version == 4 else 64}", strict=False))


VIEW = Ntfy
