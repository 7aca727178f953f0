"""The administrator's pages: Ketesa, files that Caddy serves, and behind the same door what it needs of Synapse and MAS."""

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from releases import Archive, Release
from roles import ADMIN, MAS, Role
from settings.deployment import SettingError, Settings, View
from settings.fields import AnyNetwork, Chosen, Https, Sha256
from vault import Secret, Vault

VERSION = "v1.4.0"
# The name to type beside the password, and the secrets about it.
USER = "admin"
PASSWORD, SESSION = "admin_password_hash", "admin_session_secret"
# A certificate of a browser: before its name.
CERTIFICATE = "admin_certificate_"
COOKIE = "matrix-metal-admin"
# What Ketesa is to MAS: a client in a browser, which has no secret.
CLIENT = "0000000MATR1XMETA1KETESA00"
# Where a tunnel begins on the administrator's computer: the first that is free.
TUNNEL_PORTS = range(ADMIN.port, ADMIN.port + 10)
# This machine: what comes through an SSH tunnel, too.
LOOPBACK = ("127.0.0.0/8", "::1/128")
# The scripts in Ketesa's pages themselves: one by which its page for MAS's answer knows itself, and one that writes its version.
_SCRIPTS = (
    "sha256-E5bBZG3vXDiU1+Vn80xOfmXSEsjTGZgOm5AAXT3HOBs=",
    "sha256-PnKvU0LnnBjJ+mgXLVQBDp9w+sgwT4CSFyhmhVU/io0=",
)


class Choices(Chosen):
    """The settings of the administrator's pages."""

    admin_networks: list[AnyNetwork] = Field(
        description='a list of addresses and networks, such as ["192.0.2.7", "2001:db8::/48"]'
    )
    admin_certificates: bool = Field(description="True or False")
    ketesa_archive: str | None = Field(description="None or the path of a tar.gz on this computer")
    ketesa_sha256: Sha256 | None = Field(description="None or 64 hexadecimal digits")
    ketesa_releases: Https = Field(description="an https URL")


def release_of(choices: Choices, architecture: str, record: Path) -> Release:
    """The release, which is the same for every architecture. record: the file that first downloads are recorded in."""
    return Release(
        name="ketesa",
        version=VERSION,
        arch="all",
        url=f"{choices.ketesa_releases.rstrip('/')}/{VERSION}/ketesa.tar.gz",
        file=Path(choices.ketesa_archive) if choices.ketesa_archive else None,
        sha256=choices.ketesa_sha256,
        record=record,
        file_setting="ketesa_archive",
        sha256_setting="ketesa_sha256",
        licence="Apache-2.0",
        archive=Archive(contains=("index.html", "auth-callback/index.html"), strip=1),
    )


def certificates_in(vault: Vault) -> dict[str, str]:
    """The certificates that browsers may have: name -> DER in base64. They are no secrets: only the browsers have their keys."""
    names = sorted(name for name in vault.names() if name.startswith(CERTIFICATE))
    return {name.removeprefix(CERTIFICATE): vault.get(name).reveal() for name in names}


def tunnel_name(settings: Settings, role: Role = ADMIN) -> str:
    """The name in a browser at the end of an SSH tunnel, of these pages or of those of a role behind the same door.

    Browsers know without asking anybody that names below localhost are their own machine, and trust those pages as they do HTTPS.
    A name of its own keeps cookies and passwords from whatever else is at localhost.
    """
    return f"{settings.domain(role)}.localhost"


def origins(settings: Settings) -> tuple[str, ...]:
    """Where the pages may be in a browser."""
    return f"https://{settings.domain(ADMIN)}", *(f"http://{tunnel_name(settings)}:{port}" for port in TUNNEL_PORTS)


@dataclass(frozen=True)
class Admin(View):
    """networks: from where its name is reached; empty: from nowhere, only through an SSH tunnel.

    password: its hash, as Caddy reads it; None: there is none yet, and nobody is let in. session: what the cookie of who had the
    password says. account_url: where MAS is; None without MAS. certificates: those that browsers may have, in base64, which must
    present one at that name; None: they need none.
    """

    domain: str
    tunnel: str
    port: int
    networks: tuple[str, ...]
    user: str
    cookie: str
    password: Secret | None
    session: Secret
    release: Release
    account_url: str | None
    client: str
    certificates: tuple[str, ...] | None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        chosen, vault = settings.section(Choices), settings.vault
        hashed = vault.get(PASSWORD).reveal() if vault.has(PASSWORD) else ""
        if hashed and not re.fullmatch(r"\$2[aby]\$\d\d\$[./A-Za-z0-9]{53}", hashed):
            raise SettingError(f"{PASSWORD} in {vault.path} is no hash of bcrypt: {vault.command('set', PASSWORD)}")
        secret = vault.get(SESSION).reveal()
        return cls(
            domain=settings.domain(ADMIN),
            tunnel=tunnel_name(settings),
            port=ADMIN.port,
            networks=(*LOOPBACK, *chosen.admin_networks) if chosen.admin_networks else (),
            user=USER,
            cookie=COOKIE,
            # Caddy 2.6 wants the whole of it in base64.
            password=Secret(base64.b64encode(hashed.encode()).decode()) if hashed else None,
            # Another password ends all sessions.
            session=Secret(hmac.new(secret.encode(), hashed.encode(), hashlib.sha256).hexdigest()),
            release=release_of(chosen, settings.machine.architecture, settings.vault_path.with_suffix(".lock")),
            account_url=f"https://{settings.domain(MAS)}/" if settings.exists("mas") else None,
            client=CLIENT,
            certificates=tuple(certificates_in(vault).values()) if chosen.admin_certificates else None,
        )

    @property
    def fingerprints(self) -> Sequence[str]:
        """Of the certificates, as Caddy has them."""
        return [hashlib.sha256(base64.b64decode(each)).hexdigest() for each in self.certificates or ()]

    @property
    def policy(self) -> str:
        """The Content-Security-Policy of its pages: nothing is loaded from elsewhere, nor sent there, but to MAS."""
        connect = f"'self' {self.account_url.rstrip('/')}" if self.account_url else "'self'"
        scripts = " ".join(f"'{each}'" for each in _SCRIPTS)
        return (
            f"default-src 'none'; base-uri 'self'; object-src 'none'; frame-ancestors 'none'; script-src 'self' {scripts}; "
            "style-src 'self' 'unsafe-inline'; img-src 'self' blob: data:; media-src 'self' blob:; font-src 'self'; "
            f"connect-src {connect}; manifest-src 'self'; form-action 'self'"
        )

    def config(self, origin: str) -> str:
        """The content of config.json. origin: where the page is."""
        told: dict[str, Any] = {"restrictBaseUrl": origin, "wellKnownDiscovery": False}
        if self.account_url:
            told["externalAuthProvider"] = True
        return json.dumps(told)

    def metadata(self, origin: str) -> str:
        """What Ketesa is told about MAS. It takes the admin API to be where tokens are, and that is behind the door."""
        return json.dumps(
            {
                "issuer": self.account_url,
                "authorization_endpoint": f"{self.account_url}authorize",
                "token_endpoint": f"{origin}/oauth2/token",
                "registration_endpoint": f"{origin}/oauth2/registration",
                "response_types_supported": ["code"],
                "grant_types_supported": ["authorization_code", "refresh_token"],
                "response_modes_supported": ["query", "fragment"],
                "code_challenge_methods_supported": ["S256"],
            }
        )

    def registration(self, origin: str) -> str:
        """The answer to Ketesa's registration as a client: MAS would not register an address with http://, as in a tunnel."""
        return json.dumps({"client_id": self.client, "redirect_uris": [f"{origin}/auth-callback/"]})

    @property
    def web_names(self) -> Sequence[str]:
        return (self.domain,) if self.networks else ()

    @property
    def programs(self) -> Sequence[Release]:
        return (self.release,)


VIEW = Admin
