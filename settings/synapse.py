"""Synapse, the homeserver."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from operations.certificates import Served
from operations.virtualenvs import Virtualenv
from roles import (
    ALERTS_QUESTION,
    COTURN,
    FEDERATION_PORT,
    JOIN_PAGE,
    MAS,
    MAS_PORT,
    NTFY,
    SYDENT,
    SYNAPSE,
    SYNAPSE_FIGURES_PORT,
    SYNAPSE_SOCKETS,
)
from settings.coturn import turn_uris
from settings.deployment import Mail, Settings, View
from settings.fields import A_NUMBER_OF_DAYS, Chosen, Days, Http, Https, MailAddress, Size, WebSite, size_in_bytes
from settings.join_page import LANGUAGES
from settings.postgres import DatabaseAccess, database_of
from settings.rtc import transports
from vault import Secret

# Only passwords of a homeserver that was taken over may need it.
PEPPER = "synapse_password_pepper"
ANTISPAM_TOKEN = "synapse_antispam_token"  # noqa: S105
CAPTCHA_SECRET = "captcha_secret_key"  # noqa: S105


UserId = Annotated[str, StringConstraints(pattern=r"^@[\x21-\x39\x3b-\x7e]+:[A-Za-z0-9.-]+$", max_length=255)]


# What the antispam module can ask about.
Question = Literal[
    "user_may_invite",
    "user_may_join_room",
    "accept_make_join",
    "federated_user_may_invite",
    "user_may_send_3pid_invite",
    "user_may_create_room",
    "user_may_create_room_alias",
    "user_may_publish_room",
    "check_username_for_spam",
    "check_login_for_spam",
    "check_event_for_spam",
]
_LIMIT = 'None or a limit such as {"per_second": 0.3, "burst_count": 10}'


# It is written into pages and configurations as it is.
SiteKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,255}$")]


class RateLimit(BaseModel):
    """How often something may be done: burst_count times at once, and per_second after that."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    per_second: float = Field(description="a number above 0, such as 0.3", gt=0, le=1000)
    burst_count: int = Field(description="a number from 1 to 10000", ge=1, le=10_000)


class Captcha(BaseModel):
    """What somebody who makes an account has to solve. The names of the services are those of MAS."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    service: Literal["recaptcha_v2", "cloudflare_turnstile", "hcaptcha"] = Field(
        description='"recaptcha_v2", "cloudflare_turnstile" or "hcaptcha"'
    )
    site_key: SiteKey = Field(description="the site key that the service has given you")


class Choices(Chosen):
    """The settings of the homeserver."""

    registration: Literal["closed", "token", "open"] = Field(description='"closed", "token" or "open"')
    captcha: Captcha | None = Field(
        description='None or a dictionary such as {"service": "hcaptcha", "site_key": "..."}'
    )
    registration_unprotected: bool = Field(description="True or False")
    federation: bool = Field(description="True or False")
    federation_port_8448: bool = Field(description="True or False")
    max_upload_size: Size = Field(description='a size such as "50M" or "1G"')
    remote_media_days: Days | None = Field(description=A_NUMBER_OF_DAYS)
    local_media_days: Days | None = Field(description=A_NUMBER_OF_DAYS)
    message_days: Days | None = Field(description=A_NUMBER_OF_DAYS)
    forgotten_room_days: Days | None = Field(description=A_NUMBER_OF_DAYS)
    forget_left_rooms: bool = Field(description="True or False")
    reports_to: list[UserId] | None = Field(description='None or a list of accounts, such as ["@anna:example.org"]')
    block_non_admin_invites: bool = Field(description="True or False")
    rc_invites_per_issuer: RateLimit | None = Field(description=_LIMIT)
    rc_invites_per_user: RateLimit | None = Field(description=_LIMIT)
    rc_invites_per_room: RateLimit | None = Field(description=_LIMIT)
    antispam_url: Http | None = Field(description='None or a URL, such as "http://127.0.0.1:8083/api/1/spam_check"')
    antispam_questions: list[Question] = Field(
        description=f"a list of some of {', '.join(get_args(Question))}", min_length=1
    )
    alerts_to: list[UserId] = Field(description='a list of accounts, such as ["@anna:example.org"]')
    server_name_site: WebSite | None = Field(
        description='"page", None, an https URL or the absolute path of a directory on the machine'
    )
    support_email: MailAddress | None = Field(description="an e-mail address, such as abuse@example.org")
    support_page: Https | None = Field(description="None or an https URL")
    # Who is on holiday stays logged in.
    stale_device_days: int | None = Field(description="None or a number of days from 30 to 3650", ge=30, le=3650)


@dataclass(frozen=True)
class Synapse(View):
    """well_known_client: content of /.well-known/matrix/client. federation_port: 8448 if federation uses that port as well.

    ..._days: after how many days Synapse removes what nobody has used, or what is so old; None: never.
    support: content of /.well-known/matrix/support; empty if there is none.
    invite_limits: how many invitations there may be, where Synapse's own limits are not meant.
    antispam_url: the program that is asked whether something is spam, and about what; None: no program is.
    site: what is at https://<server_name>/: "page", ours; a URL, that of a site elsewhere; a directory; None: nothing.
    page: the directory of our page. figures_port: where it says how it is, to the monitoring.
    captcha, captcha_secret: what somebody who makes an account has to solve, and the secret by which the solution is checked.
    mas_url, mas_secret: where the Matrix Authentication Service is, which then has the accounts, and the secret that they share.
    mas_domain: the name at which people find it.
    """

    server_name: str
    domain: str
    address: str
    port: int
    sockets: tuple[str, ...]
    virtualenv: Virtualenv
    database: DatabaseAccess
    identity_server_url: str | None
    turn_uris: tuple[str, ...]
    turn_shared_secret: Secret | None
    rtc_transports: list[dict[str, str]]
    registration_shared_secret: Secret
    macaroon_secret_key: Secret
    form_secret: Secret
    password_pepper: Secret | None
    mas_url: str | None
    mas_secret: Secret | None
    mas_domain: str | None
    registration: str
    captcha: Captcha | None
    captcha_secret: Secret | None
    federation: bool
    federation_port: int | None
    max_upload_size: str
    remote_media_days: int | None
    local_media_days: int | None
    message_days: int | None
    forgotten_room_days: int | None
    forget_left_rooms: bool
    stale_device_days: int | None
    reports_to: tuple[str, ...] | Literal["admins"]
    block_non_admin_invites: bool
    invite_limits: Mapping[str, Mapping[str, float]]
    alerts_to: tuple[str, ...]
    private_networks: tuple[str, ...]
    mail: Mail
    admin_email: str | None
    well_known_client: Mapping[str, Any]
    support: Mapping[str, Any]
    antispam_url: str | None
    antispam_questions: tuple[str, ...]
    antispam_token: Secret | None
    site: str | None
    caddy_here: bool
    figures_port: int | None
    page: str = JOIN_PAGE
    languages: tuple[str, ...] = tuple(LANGUAGES)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        choices, vault = settings.section(Choices), settings.vault
        with_relay = settings.exists("coturn")
        return cls(
            server_name=settings.server_name,
            domain=settings.domain(SYNAPSE),
            address="127.0.0.1",
            port=SYNAPSE.port,
            sockets=SYNAPSE_SOCKETS,
            virtualenv=Virtualenv(
                "matrix-synapse",
                "synapse",
                settings.python,
                imports="synapse.app.homeserver",
                more=("antispam",) if choices.antispam_url else (),
            ),
            database=database_of(settings, SYNAPSE),
            identity_server_url=f"https://{settings.domain(SYDENT)}" if settings.exists("sydent") else None,
            turn_uris=turn_uris(settings.domain(COTURN)) if with_relay else (),
            turn_shared_secret=vault.get("turn_shared_secret") if with_relay else None,
            rtc_transports=transports(settings) if settings.exists("rtc") else [],
            registration_shared_secret=vault.get("synapse_registration_shared_secret"),
            macaroon_secret_key=vault.get("synapse_macaroon_secret_key"),
            form_secret=vault.get("synapse_form_secret"),
            password_pepper=vault.get(PEPPER) if vault.has(PEPPER) else None,
            mas_url=f"http://127.0.0.1:{MAS_PORT}/" if settings.exists("mas") else None,
            mas_secret=vault.get("mas_synapse_secret") if settings.exists("mas") else None,
            mas_domain=settings.domain(MAS) if settings.exists("mas") else None,
            registration=choices.registration,
            captcha=None if settings.exists("mas") else choices.captcha,
            captcha_secret=vault.get(CAPTCHA_SECRET) if choices.captcha and not settings.exists("mas") else None,
            federation=choices.federation,
            federation_port=FEDERATION_PORT if choices.federation_port_8448 else None,
            max_upload_size=choices.max_upload_size,
            remote_media_days=choices.remote_media_days,
            local_media_days=choices.local_media_days,
            message_days=choices.message_days,
            forgotten_room_days=choices.forgotten_room_days,
            forget_left_rooms=choices.forget_left_rooms,
            stale_device_days=choices.stale_device_days,
            reports_to=_reports_to(choices, settings.exists("mas")),
            block_non_admin_invites=choices.block_non_admin_invites,
            invite_limits=_invite_limits(choices),
            alerts_to=tuple(choices.alerts_to) if settings.here("monitoring") else (),
            private_networks=settings.reachable(cls.reaches(settings)),
            mail=settings.mail,
            admin_email=settings.choices.admin_email,
            well_known_client=settings.well_known,
            support=_support(choices),
            antispam_url=choices.antispam_url,
            antispam_questions=tuple(choices.antispam_questions),
            antispam_token=vault.get(ANTISPAM_TOKEN) if choices.antispam_url else None,
            site=choices.server_name_site,
            caddy_here=settings.here("caddy"),
            figures_port=SYNAPSE_FIGURES_PORT if settings.here("monitoring") else None,
        )

    @classmethod
    def well_known(cls, settings: Settings) -> Mapping[str, Any]:
        return {"m.homeserver": {"base_url": f"https://{settings.domain(SYNAPSE)}"}}

    @classmethod
    def reaches(cls, settings: Settings) -> Sequence[str]:
        # It asks the identity server for its users, and ntfy to notify their phones.
        return tuple(settings.domain(role) for role in (SYDENT, NTFY) if settings.exists(role.name))

    @property
    def minimum_password(self) -> int | None:
        """Characters of a password that somebody chooses; None: there is MAS, which has a rule of its own."""
        return None if self.mas_url else 8

    @property
    def public_url(self) -> str:
        return f"https://{self.domain}/"

    @property
    def well_known_server(self) -> Mapping[str, Any] | None:
        # Without federation as well, lk-jwt-service and Sydent ask who a user is, as another homeserver would.
        asked = self.federation or self.rtc_transports or self.identity_server_url
        return {"m.server": f"{self.domain}:443"} if asked else None

    @property
    def moderators(self) -> str:
        """The content of the file that names who reads reports; empty if there is nobody."""
        return f"{json.dumps(self.reports_to)}\n" if self.reports_to else ""

    @property
    def administrators(self) -> str:
        """The content of the file that names who reads alerts, and where they are; empty if there is nobody."""
        return f"{json.dumps([ALERTS_QUESTION, self.alerts_to])}\n" if self.alerts_to else ""

    @property
    def max_upload_bytes(self) -> int:
        return size_in_bytes(self.max_upload_size)

    @property
    def upstream_that_counts(self) -> tuple[str, ...]:
        """Where Caddy sends all requests that each listener counts for itself, in the syntax of the Caddyfile."""
        return (f"unix/{self.sockets[0]}",)

    @property
    def upstream_of_sync(self) -> tuple[str, ...]:
        """Where Caddy sends all requests of /sync."""
        return (f"unix/{self.sockets[1]}",)

    @property
    def upstreams(self) -> tuple[str, ...]:
        """Where Caddy sends all others. Not to that of /sync, which has to accept many connections at once after a restart."""
        return tuple(f"unix/{path}" for path in self.sockets if f"unix/{path}" not in self.upstream_of_sync)

    @property
    def web_names(self) -> Sequence[str]:
        return (self.server_name, self.domain)

    @property
    def served(self) -> Sequence[Served]:
        if not (self.federation_port and self.caddy_here):
            return ()
        return [Served(name, self.federation_port) for name in self.web_names]

    @property
    def virtualenvs(self) -> Sequence[Virtualenv]:
        return (self.virtualenv,)


def _reports_to(choices: Choices, mas: bool) -> tuple[str, ...] | Literal["admins"]:
    """Who is told of reports. Synapse does not know who administers it where MAS has the accounts."""
    if choices.reports_to is None:
        return () if mas else "admins"
    return tuple(choices.reports_to)


def _invite_limits(choices: Choices) -> Mapping[str, Mapping[str, float]]:
    """Those that are not Synapse's own, as Synapse calls them."""
    chosen = {
        "per_issuer": choices.rc_invites_per_issuer,
        "per_user": choices.rc_invites_per_user,
        "per_room": choices.rc_invites_per_room,
    }
    return {name: limit.model_dump() for name, limit in chosen.items() if limit}


def _support(choices: Choices) -> Mapping[str, Any]:
    """Where people report abuse, for the administrators of other homeservers (client-server API, /.well-known/matrix/support)."""
    found: dict[str, Any] = {}
    if choices.support_email:
        found["contacts"] = [{"email_address": choices.support_email, "role": "m.role.admin"}]
    if choices.support_page:
        found["support_page"] = choices.support_page
    return found


VIEW = Synapse
