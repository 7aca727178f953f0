"""Where certificates come from."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import Field

from settings.fields import AbsolutePath, Chosen, Https, MailAddress, UserName
from vault import Secret

# Where Caddy keeps certificates: CertMagic's storage below its home.
STORE = "/var/lib/caddy/.local/share/caddy"


class Acme(Chosen):
    """An issuer of certificates. Source of the names: RFC 8555 and Caddy's documentation."""

    directory: Https = Field(description="the https URL of an ACME directory")
    email: MailAddress | None = Field(None, description="an e-mail address")
    eab_key_id: UserName | None = Field(None, description="the issuer's key identifier")
    eab_hmac_key: UserName | None = Field(None, description="the issuer's key")
    trusted_root: AbsolutePath | None = Field(None, description="the absolute path of a PEM file on the machine")


class TlsFiles(Chosen):
    """Certificates of the administrator's own."""

    certificate: AbsolutePath = Field(description="the absolute path of a PEM file on the machine")
    key: AbsolutePath = Field(description="the absolute path of a PEM file on the machine")


class Certificates(Chosen):
    """The settings about certificates."""

    tls: Literal["acme", "internal", "files"] = Field(description='"acme", "internal" or "files"')
    tls_files: TlsFiles | None = Field(description='{"certificate": "/path", "key": "/path"}')
    acme: Acme = Field(description='a dictionary such as {"directory": "https://..."}')
    turn_acme: Acme | None = Field(description='None or a dictionary such as {"directory": "https://..."}')
    admin_email: MailAddress | None = Field(description="an e-mail address, such as admin@example.org")

    @property
    def private_authority(self) -> bool:
        """Whether certificates may be issued by an authority that is not publicly trusted."""
        return bool(self.tls != "acme" or self.acme.trusted_root or (self.turn_acme and self.turn_acme.trusted_root))


@dataclass(frozen=True)
class Issuer:
    """The issuer of one site's certificate. kind: "acme", "internal" or "files"."""

    kind: str
    directory: str = ""
    email: str = ""
    eab_key_id: str = ""
    eab_hmac_key: Secret | None = None
    trusted_root: str = ""
    certificate: str = ""
    key: str = ""

    @classmethod
    def of(cls, choices: Certificates, secret: Callable[[str], Secret], for_relay: bool) -> Self:
        """The issuer that the settings choose. secret: returns a secret of the vault. Raises VaultError."""
        if choices.tls == "files" and choices.tls_files:
            return cls("files", certificate=choices.tls_files.certificate, key=choices.tls_files.key)
        if choices.tls == "internal":
            return cls("internal")
        own = choices.turn_acme if for_relay else None
        acme, name = (own, "turn_acme_eab_hmac_key") if own else (choices.acme, "acme_eab_hmac_key")
        hmac_key: Secret | None = None
        if acme.eab_key_id:
            hmac_key = Secret(acme.eab_hmac_key) if acme.eab_hmac_key else secret(name)
        return cls(
            "acme",
            directory=acme.directory,
            email=acme.email or choices.admin_email or "",
            eab_key_id=acme.eab_key_id or "",
            eab_hmac_key=hmac_key,
            trusted_root=acme.trusted_root or "",
        )

    def paths(self, domain: str) -> tuple[str, str]:
        """Paths of the certificate chain and the key for the domain: as given, or where Caddy (CertMagic) stores them."""
        if self.kind == "files":
            return self.certificate, self.key
        issuer = "local"
        if self.kind == "acme":
            # CertMagic 0.17: ACMEIssuer.issuerKey and then KeyBuilder.Safe.
            url = urlsplit(self.directory)
            path = re.sub(r"[/\\]", "-", unquote(url.path)).strip("-")
            issuer = f"{url.netloc.rpartition('@')[2]}{'-' if path else ''}{path}".lower()
            for character, replacement in ((" ", "_"), ("+", "_plus_"), ("*", "wildcard_"), (":", "-"), ("..", "")):
                issuer = issuer.replace(character, replacement)
            issuer = re.sub(r"[^\w@.-]", "", issuer, flags=re.ASCII)
        stem = f"{STORE}/certificates/{issuer}/{domain}/{domain}"
        return f"{stem}.crt", f"{stem}.key"
