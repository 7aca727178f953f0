"""coturn, the relay for calls."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pydantic import Field

from operations.certificates import Served
from roles import COTURN, MEDIA_UDP_PORT, RELAY_PORT, RELAY_TLS_PORT
from settings.addresses import External, PublicAddress, public_addresses
from settings.deployment import Settings, View
from settings.fields import Chosen, IPv4, IPv6
from settings.issuers import Issuer
from settings.networks import BLOCKED_NETWORKS
from vault import Secret

# coturn cuts a longer realm, which is the relay's name: then no credentials are accepted.
LONGEST_NAME = 127


class Choices(Chosen):
    """The settings of the relay."""

    external_ip: IPv4 | None = Field(description="an IPv4 address, such as 198.51.100.7")
    external_ipv6: IPv6 | None = Field(description="an IPv6 address, such as 2001:db8::7")

    @property
    def external(self) -> External:
        return External(self.external_ip, self.external_ipv6)


@dataclass(frozen=True)
class Coturn(View):
    """issuer: of its domain's certificate. watched: the files that are written last when the certificate is renewed.

    previous_secrets: those that were replaced a short while ago. relayed: an address for each family that it relays.
    media_port: the UDP port of LiveKit, if that is on this machine.
    """

    domain: str
    shared_secret: Secret
    previous_secrets: tuple[Secret, ...]
    issuer: Issuer
    watched: tuple[str, ...]
    relayed: tuple[PublicAddress, ...]
    denied_ranges: tuple[tuple[str, str], ...]
    allowed_ranges: tuple[tuple[str, str], ...]
    media_port: int | None
    plain_port: int = RELAY_PORT
    tls_port: int = RELAY_TLS_PORT
    first_relayed: int = COTURN.listens[-1].numbers[0]
    last_relayed: int = COTURN.listens[-1].numbers[-1]
    reloader: str = "coturn-certificate"

    @classmethod
    def of(cls, settings: Settings) -> Self:
        domain, issuer = settings.domain(COTURN), settings.issuer(for_relay=True)
        certificate, key = issuer.paths(domain)
        relayed, _ = public_addresses(settings.machine, settings.section(Choices).external)
        # Both users of a call may use this relay, so it must be allowed to reach itself, even at a private address.
        own = [address for each in relayed for address in (each.public, each.address) if address]
        return cls(
            domain=domain,
            shared_secret=settings.vault.get("turn_shared_secret"),
            previous_secrets=settings.vault.previous("turn_shared_secret"),
            issuer=issuer,
            # Caddy writes the certificate, the key, and then the .json file; an administrator writes files in any order.
            watched=(certificate, key) if issuer.kind == "files" else (f"{certificate.removesuffix('.crt')}.json",),
            relayed=relayed,
            denied_ranges=tuple(map(_range, BLOCKED_NETWORKS)),
            allowed_ranges=tuple(map(_range, dict.fromkeys([*own, *settings.choices.private_networks]))),
            media_port=MEDIA_UDP_PORT if settings.here("rtc") else None,
        )

    @property
    def certificate(self) -> str:
        return self.issuer.paths(self.domain)[0]

    @property
    def key(self) -> str:
        return self.issuer.paths(self.domain)[1]

    @property
    def served(self) -> Sequence[Served]:
        return [Served(self.domain, self.tls_port, self.certificate, self.reloader)]

    @property
    def issuers(self) -> Sequence[Issuer]:
        return (self.issuer,)


def turn_uris(domain: str) -> tuple[str, ...]:
    """The relay's URIs for clients."""
    return (
        f"turn:{domain}:{RELAY_PORT}?transport=udp",
        f"turn:{domain}:{RELAY_PORT}?transport=tcp",
        f"turns:{domain}:{RELAY_TLS_PORT}?transport=tcp",
    )


def _range(network: str) -> tuple[str, str]:
    """First and last address, as coturn takes ranges."""
    addresses = ipaddress.ip_network(network)
    return _as_text(addresses[0]), _as_text(addresses[-1])


def _as_text(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """The same text in every version of Python: since 3.13 str() writes IPv4-mapped addresses with dots."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        number = int(address.ipv4_mapped)
        return f"::ffff:{number >> 16:x}:{number & 0xFFFF:x}"
    return str(address)


VIEW = Coturn
