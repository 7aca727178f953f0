"""Sydent, the identity server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from operations.virtualenvs import Virtualenv
from roles import SYDENT, SYNAPSE
from settings.deployment import SettingError, Settings, View
from vault import Secret


@dataclass(frozen=True)
class Sydent(View):
    """domain: its name for clients. client_domain: the web client that mails link to, for people who have no account."""

    domain: str
    brand: str
    templates_path: str
    database: str
    bind_address: str
    port: int
    virtualenv: Virtualenv
    signing_key: Secret
    mail_from: str
    smtp_host: str
    smtp_port: int
    smtp_username: str | None
    smtp_password: Secret | None
    smtp_tls: str
    ip_allowlist: tuple[str, ...]
    client_domain: str

    @classmethod
    def of(cls, settings: Settings) -> Self:
        mail = settings.mail
        if not f"{mail.username}{mail.password.reveal() if mail.password else ''}".isascii():
            raise SettingError("smtp_username and smtp_password must be ASCII: Sydent cannot log in with anything else")
        return cls(
            domain=settings.domain(SYDENT),
            brand="matrix-metal",
            templates_path=f"{SYDENT.units[0].reads[0]}/templates",
            database=SYDENT.sqlite[0],
            bind_address="127.0.0.1",
            port=SYDENT.port,
            virtualenv=Virtualenv(
                "sydent", "sydent", settings.python, imports="sydent.sydent", source_only=("signedjson",)
            ),
            signing_key=settings.vault.get("sydent_signing_key"),
            mail_from=mail.sender,
            smtp_host=mail.host or "localhost",
            smtp_port=mail.port if mail.host else 25,
            smtp_username=mail.username,
            smtp_password=mail.password,
            smtp_tls=mail.tls if mail.host else "none",
            ip_allowlist=settings.reachable(cls.reaches(settings)),
            client_domain=settings.server_name,
        )

    @classmethod
    def well_known(cls, settings: Settings) -> Mapping[str, Any]:
        return {"m.identity_server": {"base_url": f"https://{settings.domain(SYDENT)}"}}

    @classmethod
    def reaches(cls, settings: Settings) -> Sequence[str]:
        # It asks the homeserver who its users are.
        return (settings.server_name, settings.domain(SYNAPSE)) if settings.exists("synapse") else ()

    @property
    def public_url(self) -> str:
        return f"https://{self.domain}"

    @property
    def upstreams(self) -> tuple[str, ...]:
        """Where Caddy reaches it."""
        return (f"{self.bind_address}:{self.port}",)

    @property
    def web_names(self) -> Sequence[str]:
        return (self.domain,)

    @property
    def virtualenvs(self) -> Sequence[Virtualenv]:
        return (self.virtualenv,)


VIEW = Sydent
