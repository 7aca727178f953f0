"""LiveKit and lk-jwt-service: calls in Element X and Element Web."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import Field

from releases import Archive, Release
from roles import (
    COTURN,
    LIVEKIT_FIGURES_PORT,
    LK_JWT_PORT,
    MEDIA_TCP_PORT,
    MEDIA_UDP_PORT,
    RELAY_PORT,
    RELAY_TLS_PORT,
    RTC,
    SIGNAL_PORT,
    SYNAPSE,
)
from settings.addresses import PublicAddress, public_addresses
from settings.coturn import Choices as Relay
from settings.deployment import Settings, View
from settings.fields import A_DOMAIN, SHA256S, Chosen, Domain, Https, Sha256s, sha256_for
from vault import Secret

LIVEKIT_VERSION, LK_JWT_VERSION = "v1.13.5", "v0.4.4"
# The name of the secret that both share. Every client gets it to see.
KEY = "lk-jwt"


class Choices(Chosen):
    """The settings of both."""

    rtc_full_access_servers: list[Domain] = Field(
        description=f"a list of server names, each {A_DOMAIN.format(example='example.net')}"
    )
    livekit_archive: str | None = Field(description="None or the path of a tar.gz archive on this computer")
    livekit_sha256: Sha256s = Field(description=SHA256S)
    livekit_releases: Https = Field(description="an https URL")
    lk_jwt_binary: str | None = Field(description="None or the path of a program on this computer")
    lk_jwt_sha256: Sha256s = Field(description=SHA256S)
    lk_jwt_releases: Https = Field(description="an https URL")


class Releases(NamedTuple):
    """The programs for a machine."""

    livekit: Release
    lk_jwt: Release


def releases_of(choices: Choices, architecture: str, record: Path) -> Releases:
    """The releases for a machine of this architecture. record: the file that first downloads are recorded in."""
    livekit = f"{choices.livekit_releases.rstrip('/')}/{LIVEKIT_VERSION}"
    number = LIVEKIT_VERSION.removeprefix("v")
    return Releases(
        Release(
            name="livekit",
            version=LIVEKIT_VERSION,
            arch=architecture,
            url=f"{livekit}/livekit_{number}_linux_{architecture}.tar.gz",
            file=Path(choices.livekit_archive) if choices.livekit_archive else None,
            sha256=sha256_for(architecture, choices.livekit_sha256),
            record=record,
            file_setting="livekit_archive",
            sha256_setting="livekit_sha256",
            licence="Apache-2.0",
            archive=Archive(programs=("livekit-server",)),
            checksums=f"{livekit}/checksums.txt",
        ),
        Release(
            name="lk-jwt-service",
            version=LK_JWT_VERSION,
            arch=architecture,
            url=f"{choices.lk_jwt_releases.rstrip('/')}/{LK_JWT_VERSION}/lk-jwt-service_linux_{architecture}",
            file=Path(choices.lk_jwt_binary) if choices.lk_jwt_binary else None,
            sha256=sha256_for(architecture, choices.lk_jwt_sha256),
            record=record,
            file_setting="lk_jwt_binary",
            sha256_setting="lk_jwt_sha256",
            licence="AGPL-3.0-only OR LicenseRef-Element-Commercial",
        ),
    )


def transports(settings: Settings) -> list[dict[str, str]]:
    """Where clients ask for a place in a call, as well-known and Synapse say it."""
    return [{"type": "livekit", "livekit_service_url": f"https://{settings.domain(RTC)}/livekit/jwt"}]


@dataclass(frozen=True)
class Rtc(View):
    """addresses: one of each family at which media reaches LiveKit. full_access: servers whose users may start calls.

    relay: the name of our relay, which clients use that reach LiveKit by no other way; None: there is none.
    figures_port: where LiveKit says how it is, to the monitoring.
    """

    domain: str
    releases: Releases
    secret: Secret
    addresses: tuple[PublicAddress, ...]
    full_access: tuple[str, ...]
    relay: str | None
    relay_secret: Secret | None
    figures_port: int | None
    key: str = KEY
    signal_port: int = SIGNAL_PORT
    tcp_port: int = MEDIA_TCP_PORT
    udp_port: int = MEDIA_UDP_PORT
    lk_jwt_port: int = LK_JWT_PORT
    relay_port: int = RELAY_PORT
    relay_tls_port: int = RELAY_TLS_PORT

    @classmethod
    def of(cls, settings: Settings) -> Self:
        chosen = settings.section(Choices)
        addresses, _ = public_addresses(settings.machine, settings.section(Relay).external)
        with_relay = settings.exists("coturn")
        return cls(
            domain=settings.domain(RTC),
            releases=releases_of(chosen, settings.machine.architecture, settings.vault_path.with_suffix(".lock")),
            secret=settings.vault.get("livekit_secret"),
            addresses=addresses,
            full_access=tuple(dict.fromkeys([settings.server_name, *chosen.rtc_full_access_servers])),
            relay=settings.domain(COTURN) if with_relay else None,
            relay_secret=settings.vault.get("turn_shared_secret") if with_relay else None,
            figures_port=LIVEKIT_FIGURES_PORT if settings.here("monitoring") else None,
        )

    @classmethod
    def well_known(cls, settings: Settings) -> Mapping[str, Any]:
        return {"org.matrix.msc4143.rtc_foci": transports(settings)}

    @classmethod
    def reaches(cls, settings: Settings) -> Sequence[str]:
        # lk-jwt-service asks the homeserver who a user is, and creates rooms where clients connect to LiveKit.
        return (settings.server_name, settings.domain(SYNAPSE), settings.domain(RTC))

    @property
    def url(self) -> str:
        """Where clients connect to LiveKit, and lk-jwt-service creates rooms."""
        return f"wss://{self.domain}/livekit/sfu"

    @property
    def livekit_upstreams(self) -> tuple[str, ...]:
        """Where Caddy reaches LiveKit."""
        return (f"127.0.0.1:{self.signal_port}",)

    @property
    def lk_jwt_upstreams(self) -> tuple[str, ...]:
        """Where Caddy reaches lk-jwt-service."""
        return (f"127.0.0.1:{self.lk_jwt_port}",)

    @property
    def web_names(self) -> Sequence[str]:
        return (self.domain,)

    @property
    def programs(self) -> Sequence[Release]:
        return self.releases


VIEW = Rtc
