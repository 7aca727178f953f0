"""coturn, the relay for calls."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pydantic import Field

from operations.certificates import Served
from roles import COTURN
from settings.deployment import Settings, View
from settings.fields import Chosen, IPv4
from settings.issuers import Issuer
from settings.networks import BLOCKED_NETWORKS
from vault import Secret

PLAIN, TLS = 3478, 5349


class Choices(Chosen):
    """The settings of the relay."""

    external_ip: IPv4 | None = Field(description="an IPv4 address, such as 198.51.100.7")


@dataclass(frozen=True)
class Coturn(View):
    """issuer: of its domain's certificate. watched: the files that are written last when the certificate is renewed."""

    domain: str
    shared_secret: Secret
    issuer: Issuer
    watched: tuple[str, ...]
    external_ip: str | None
    denied_ranges: tuple[tuple[str, str], ...]
    allowed_ranges: tuple[tuple[str, str], ...]
    plain_port: int = PLAIN
    tls_port: int = TLS
    first_relayed: int = COTURN.listens[-1].numbers[0]
    last_relayed: int = COTURN.listens[-1].numbers[-1]
    reloader: str = "coturn-certificate"

    @classmethod
    def of(cls, settings: Settings) -> Self:
        domain, issuer = settings.domain(COTURN), settings.issuer(for_relay=True)
        certificate, key = issuer.paths(domain)
        external = settings.section(Choices).external_ip
        # Both users of a call may use this relay, so it must be allowed to reach itself, even at a private address.
        own = [external] if external else []
        own += [address for address in settings.machine.addresses if not _only_local(address)]
        return cls(
            domain=domain,
            shared_secret=settings.vault.get("turn_shared_secret"),
            issuer=issuer,
            # Caddy writes the certificate, the key, and then the .json file; an administrator writes files in any order.
            watched=(certificate, key) if issuer.kind == "files" else (f"{certificate.removesuffix('.crt')}.json",),
            external_ip=external,
            denied_ranges=tuple(map(_range, BLOCKED_NETWORKS)),
            allowed_ranges=tuple(map(_range, dict.fromkeys([*own, *settings.choices.private_networks]))),
        )

    @property
    def certificate(self) -> str:
        return self.issuer.paths(self.domain)[0]

    @property
    def key(self) -> str:
        return self.issuer.paths(self.domain)[1]

    @property
    def served(self) -> Sequence[Served]:
        # It runs without TLS when it cannot read its certificate, so a TLS handshake checks it.
        return [Served(self.domain, self.tls_port, self.certificate, self.reloader)]

    @property
    def issuers(self) -> Sequence[Issuer]:
        return (self.issuer,)


def turn_uris(domain: str) -> tuple[str, ...]:
    """The relay's URIs for clients."""
    return (
        f"turn:{domain}:{PLAIN}?transport=udp",
        f"turn:{domain}:{PLAIN}?transport=tcp",
        f"turns:{domain}:{TLS}?transport=tcp",
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


def _only_local(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    return ip.is_loopback or ip.is_link_local


VIEW = Coturn
