"""The Matrix Authentication Service (MAS): accounts, log-ins, and sign-in with other providers."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from releases import Archive, Release
from roles import MAS, MAS_ADMIN_SOCKET, MAS_FIGURES_PORT, MAS_INTERNAL_PORT, MAS_PORT, MAS_SOCKET, SYNAPSE
from settings.admin import CLIENT, origins
from settings.deployment import Mail, Settings, View
from settings.fields import SHA256S, Chosen, Https, Sha256s, UserName, sha256_for
from settings.postgres import DatabaseAccess, database_of
from settings.synapse import CAPTCHA_SECRET, PEPPER, Captcha
from settings.synapse import Choices as Homeserver
from vault import Secret, pem

VERSION = "v1.22.0"
# As upstream's release files name them.
_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
# What manage.py is to MAS: a client that logs in with a secret. Clients have a ULID: 26 characters of Crockford's base 32.
ADMIN_CLIENT = "0000000MATR1XMETA1MANAGE00"
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

ProviderId = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,31}$")]


class Provider(BaseModel):
    """An OpenID Connect provider that people can sign in with."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: ProviderId = Field(description="a name of your own, in lower-case letters, digits and hyphens")
    issuer: Https = Field(
        description="the https URL that the provider names as its issuer, with or without / at the end as there"
    )
    client_id: UserName = Field(description="what the provider calls this client")
    name: UserName = Field(description="what people read on the button")
    brand: Literal["apple", "google", "facebook", "github", "gitlab", "twitter"] | None = Field(
        default=None, description='None or "apple", "google", "facebook", "github", "gitlab" or "twitter", for its logo'
    )
    scope: UserName = Field(default="openid profile email", description='such as "openid profile email"')

    @property
    def ulid(self) -> str:
        """What MAS calls it, for ever: its accounts are linked to it."""
        number = int.from_bytes(hashlib.sha256(self.id.encode()).digest()[:16], "big")
        digits = ""
        for _ in range(26):
            number, digit = divmod(number, 32)
            digits = _CROCKFORD[digit] + digits
        return digits

    @property
    def secret(self) -> str:
        """The name of its client secret in the vault."""
        return f"sso_client_secret_{self.id}"


class Choices(Chosen):
    """The settings of MAS."""

    sso: list[Provider] = Field(
        description='a list of providers, such as [{"id": "keycloak", "issuer": "https://id.example.org/realms/main", '
        '"client_id": "matrix", "name": "Example"}]'
    )
    mas_archive: str | None = Field(description="None or the path of a tar.gz on this computer")
    mas_sha256: Sha256s = Field(description=SHA256S)
    mas_releases: Https = Field(description="an https URL")


def release_of(choices: Choices, architecture: str, record: Path) -> Release:
    """The release for a machine of this architecture. record: the file that first downloads are recorded in."""
    file = f"mas-cli-{_ARCHITECTURES.get(architecture, architecture)}-linux.tar.gz"
    return Release(
        name="mas",
        version=VERSION,
        arch=architecture,
        url=f"{choices.mas_releases.rstrip('/')}/{VERSION}/{file}",
        file=Path(choices.mas_archive) if choices.mas_archive else None,
        sha256=sha256_for(architecture, choices.mas_sha256),
        record=record,
        file_setting="mas_archive",
        sha256_setting="mas_sha256",
        licence="AGPL-3.0-only OR LicenseRef-Element-Commercial",
        archive=Archive(programs=("mas-cli",), contains=("share/policy.wasm", "share/manifest.json")),
    )


@dataclass(frozen=True)
class Mas(View):
    """homeserver_url: where it reaches Synapse, on the same machine. sso: each provider with its client secret.

    ketesa, ketesa_redirects: the client that the administrator's pages are, and where they are sent back to; none without them.
    captcha, captcha_secret: as Synapse has them where there is no MAS. figures_port: where it says how it is, to the monitoring.
    bans: log-ins that fail are counted here.
    """

    server_name: str
    domain: str
    socket: str
    port: int
    internal_port: int
    homeserver_url: str
    database: DatabaseAccess
    encryption_secret: Secret
    signing_key: Secret
    synapse_secret: Secret
    admin_client: str
    admin_client_secret: Secret
    password_pepper: Secret | None
    registration: str
    captcha: Captcha | None
    captcha_secret: Secret | None
    mail: Mail
    sso: tuple[tuple[Provider, Secret], ...]
    figures_port: int | None
    release: Release
    admin_socket: str
    ketesa: str
    ketesa_redirects: list[str]
    bans: bool

    @classmethod
    def of(cls, settings: Settings) -> Self:
        choices, homeserver, vault = settings.section(Choices), settings.section(Homeserver), settings.vault
        return cls(
            server_name=settings.server_name,
            domain=settings.domain(MAS),
            socket=MAS_SOCKET,
            port=MAS_PORT,
            internal_port=MAS_INTERNAL_PORT,
            homeserver_url=f"http://127.0.0.1:{SYNAPSE.port}",
            database=database_of(settings, MAS),
            encryption_secret=vault.get("mas_encryption_secret"),
            signing_key=pem(vault.get("mas_signing_key")),
            synapse_secret=vault.get("mas_synapse_secret"),
            admin_client=ADMIN_CLIENT,
            admin_client_secret=vault.get("mas_admin_client_secret"),
            password_pepper=vault.get(PEPPER) if vault.has(PEPPER) else None,
            registration=homeserver.registration,
            captcha=homeserver.captcha,
            captcha_secret=vault.get(CAPTCHA_SECRET) if homeserver.captcha else None,
            mail=settings.mail,
            sso=tuple((provider, vault.get(provider.secret)) for provider in choices.sso),
            figures_port=MAS_FIGURES_PORT if settings.here("monitoring") else None,
            release=release_of(choices, settings.machine.architecture, settings.vault_path.with_suffix(".lock")),
            admin_socket=MAS_ADMIN_SOCKET,
            ketesa=CLIENT,
            ketesa_redirects=[f"{each}/auth-callback/" for each in origins(settings)]
            if settings.exists("admin")
            else [],
            bans=settings.here("bans"),
        )

    @classmethod
    def well_known(cls, settings: Settings) -> Mapping[str, Any]:
        url = f"https://{settings.domain(MAS)}/"
        return {"org.matrix.msc2965.authentication": {"issuer": url, "account": f"{url}account/"}}

    @property
    def minimum_complexity(self) -> int:
        """Of passwords that people choose: from 0, anything, to 4, on the scale of zxcvbn."""
        return 3

    @property
    def public_url(self) -> str:
        return f"https://{self.domain}/"

    @property
    def upstreams(self) -> tuple[str, ...]:
        """Where Caddy reaches it, in the syntax of the Caddyfile."""
        return (f"unix/{self.socket}",)

    @property
    def admin_upstreams(self) -> tuple[str, ...]:
        """Where Caddy reaches its admin API for the administrator's pages."""
        return (f"unix/{self.admin_socket}",)

    @property
    def web_names(self) -> Sequence[str]:
        return (self.domain,)

    @property
    def share(self) -> str:
        """The directory of its pages, translations and policy, in the version in use."""
        return self.release.path("share")

    @property
    def programs(self) -> Sequence[Release]:
        return (self.release,)


VIEW = Mas
