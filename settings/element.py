"""Element Web, and Cinny: web clients, files that Caddy serves."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, StringConstraints

from releases import Archive, Release, Signature
from roles import CINNY_NAME, ELEMENT, MAS, RTC, STICKERS, STICKERS_NAME, STICKERS_PAGE, SYDENT, SYNAPSE
from settings.deployment import Settings, View
from settings.fields import Chosen, Https, Sha256, UserName
from settings.synapse import Choices as Homeserver

VERSION = "v1.12.30"
CINNY_VERSION = "v4.12.1"
# The script in Cinny's page itself. A page with another one is refused before it is installed.
_CINNY_SCRIPT = "sha256-dT6noyex1I8o5CS9Sx/y8UOqwpZYIridpGz92gcObIM="

# Where Google's captcha loads its scripts from, in whatever client.
_CAPTCHA_SCRIPTS = "https://www.gstatic.com/recaptcha/"

CountryCode = Annotated[str, StringConstraints(pattern="^[A-Z]{2}$")]
# Where a page may be shown in a frame: a web site, or an application that has a scheme of its own.
Framing = Annotated[str, StringConstraints(pattern=r"^(https://[a-z0-9.-]+(:[0-9]+)?|[a-z][a-z0-9.+-]*:)$")]
Fingerprint = Annotated[str, StringConstraints(pattern="^[0-9A-F]{40}$")]


class Choices(Chosen):
    """The settings of Element Web."""

    element_brand: UserName = Field(description='a name, such as "Example\'s Chat"')
    element_help: dict[UserName, Https] = Field(
        description='a dictionary of texts and https URLs, such as {"How to begin": "https://example.org/help"}'
    )
    element_country: CountryCode | None = Field(description='None or a country in two capital letters, such as "DE"')
    element_other_servers: bool = Field(description="True or False")
    element_archive: str | None = Field(description="None or the path of a tar.gz on this computer")
    element_sha256: Sha256 | None = Field(description="None or 64 hexadecimal digits")
    element_releases: Https = Field(description="an https URL")
    element_keys: Https = Field(description="an https URL")
    element_signed_by: Fingerprint = Field(description="a fingerprint of 40 hexadecimal digits in capital letters")
    cinny: bool = Field(description="True or False")
    cinny_archive: str | None = Field(description="None or the path of a tar.gz on this computer")
    cinny_sha256: Sha256 | None = Field(description="None or 64 hexadecimal digits")
    cinny_releases: Https = Field(description="an https URL")
    cinny_keys: Https = Field(description="an https URL")
    cinny_signed_by: Fingerprint = Field(description="a fingerprint of 40 hexadecimal digits in capital letters")
    stickers: bool = Field(description="True or False")
    stickers_framed_by: list[Framing] = Field(
        description='a list of web sites without a path, such as ["https://app.element.io"], and of schemes, such as "vector:"'
    )


def release_of(choices: Choices, architecture: str, record: Path) -> Release:
    """The release, which is the same for every architecture. record: the file that first downloads are recorded in."""
    url = f"{choices.element_releases.rstrip('/')}/{VERSION}/element-{VERSION}.tar.gz"
    return Release(
        name="element-web",
        version=VERSION,
        arch="all",
        url=url,
        file=Path(choices.element_archive) if choices.element_archive else None,
        sha256=choices.element_sha256,
        record=record,
        file_setting="element_archive",
        sha256_setting="element_sha256",
        licence="AGPL-3.0-only OR GPL-3.0-only OR LicenseRef-Element-Commercial",
        archive=Archive(contains=("index.html", "version"), strip=1),
        signature=Signature(f"{url}.asc", choices.element_keys, choices.element_signed_by),
    )


def cinny_release_of(choices: Choices, record: Path) -> Release:
    """Cinny's release, which is the same for every architecture, too. record: as in release_of."""
    url = f"{choices.cinny_releases.rstrip('/')}/{CINNY_VERSION}/cinny-{CINNY_VERSION}.tar.gz"
    return Release(
        name="cinny",
        title="Cinny",
        version=CINNY_VERSION,
        arch="all",
        url=url,
        file=Path(choices.cinny_archive) if choices.cinny_archive else None,
        sha256=choices.cinny_sha256,
        record=record,
        file_setting="cinny_archive",
        sha256_setting="cinny_sha256",
        licence="AGPL-3.0-only",
        archive=Archive(contains=("index.html", "sw.js"), strip=1, scripts=(_CINNY_SCRIPT,)),
        signature=Signature(f"{url}.asc", choices.cinny_keys, choices.cinny_signed_by),
    )


def _captcha(settings: Settings) -> bool:
    """Whether its pages show a captcha. MAS shows it in pages of its own."""
    return bool(settings.section(Homeserver).captcha) and not settings.exists("mas")


@dataclass(frozen=True)
class Cinny:
    """config: what is in config.json. homeserver: where media are. servers: what its pages connect to. captcha: they show one."""

    domain: str
    release: Release
    config: dict[str, Any]
    homeserver: str
    servers: tuple[str, ...]
    captcha: bool
    directory: str = "/etc/cinny"

    @classmethod
    def of(cls, settings: Settings, chosen: Choices) -> Self:
        names = [settings.server_name, settings.domain(SYNAPSE)]
        names += [settings.domain(role) for role in (MAS, RTC) if settings.exists(role.name)]
        return cls(
            domain=settings.name_of(ELEMENT, CINNY_NAME),
            release=cinny_release_of(chosen, settings.vault_path.with_suffix(".lock")),
            config={
                "defaultHomeserver": 0,
                "homeserverList": [settings.server_name],
                "allowCustomHomeservers": False,
                # Upstream's own are on servers of others.
                "featuredCommunities": {
                    "openAsDefault": False,
                    "spaces": [],
                    "rooms": [],
                    "servers": [settings.server_name],
                },
                # Its pages are all at /, so that everything else that is not there can be 404.
                "hashRouter": {"enabled": True, "basename": "/"},
            },
            homeserver=f"https://{settings.domain(SYNAPSE)}",
            servers=(
                *(f"https://{name}" for name in names),
                *((f"wss://{settings.domain(RTC)}",) if settings.exists("rtc") else ()),
            ),
            captcha=_captcha(settings),
        )

    @property
    def written(self) -> str:
        """config.json, as it is written."""
        return f"{json.dumps(self.config, indent=2, ensure_ascii=False)}\n"

    @property
    def policy(self) -> str:
        """The Content-Security-Policy of its pages: they run its own scripts, and connect to this deployment only.

        But for a captcha: Cinny has it from www.google.com.
        """
        google, static = (" https://www.google.com/recaptcha/", f" {_CAPTCHA_SCRIPTS}") if self.captcha else ("", "")
        servers = " ".join(self.servers)
        return (
            "default-src 'none'; base-uri 'self'; object-src 'none'; frame-ancestors 'none'; "
            f"script-src 'self' 'wasm-unsafe-eval' '{_CINNY_SCRIPT}'{google}{static}; "
            "style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
            f"img-src 'self' blob: data: {self.homeserver}; media-src 'self' blob: data: {self.homeserver}; "
            f"connect-src 'self' blob: {servers}{google}; "
            f"worker-src 'self' blob:; frame-src 'self' blob:{google}; manifest-src 'self'; form-action 'self'"
        )


@dataclass(frozen=True)
class Element(View):
    """config: what is in config.json. stickers: the name of their page, if there is one. framed_by: who may show it.

    cinny: the other client, if there is one. captcha: its pages show one.
    """

    domain: str
    release: Release
    config: dict[str, Any]
    stickers: str | None
    framed_by: tuple[str, ...]
    cinny: Cinny | None
    captcha: bool
    directory: str = "/etc/element-web"
    stickers_page: str = STICKERS_PAGE
    stickers_state: str = STICKERS

    @classmethod
    def of(cls, settings: Settings) -> Self:
        chosen = settings.section(Choices)
        return cls(
            domain=settings.domain(ELEMENT),
            release=release_of(chosen, settings.machine.architecture, settings.vault_path.with_suffix(".lock")),
            config=_config(settings, chosen),
            stickers=settings.name_of(ELEMENT, STICKERS_NAME) if chosen.stickers else None,
            framed_by=(f"https://{settings.domain(ELEMENT)}", *chosen.stickers_framed_by),
            cinny=Cinny.of(settings, chosen) if chosen.cinny else None,
            captcha=_captcha(settings),
        )

    @property
    def written(self) -> str:
        """config.json, as it is written."""
        return f"{json.dumps(self.config, indent=2, ensure_ascii=False)}\n"

    @property
    def scripts(self) -> str:
        """Whose scripts its pages run, for the Content-Security-Policy."""
        captcha = f" https://www.recaptcha.net/recaptcha/ {_CAPTCHA_SCRIPTS}" if self.captcha else ""
        return f"'self' 'wasm-unsafe-eval'{captcha}"

    @property
    def web_names(self) -> Sequence[str]:
        names = (self.domain, self.cinny and self.cinny.domain, self.stickers)
        return tuple(name for name in names if name)

    @property
    def programs(self) -> Sequence[Release]:
        return (self.release, self.cinny.release) if self.cinny else (self.release,)


def _config(settings: Settings, chosen: Choices) -> dict[str, Any]:
    """See docs/config.md of Element Web. Nothing in it leads to a server of somebody else, unless it was chosen."""
    server: dict[str, Any] = {
        "m.homeserver": {"base_url": f"https://{settings.domain(SYNAPSE)}", "server_name": settings.server_name}
    }
    if settings.exists("sydent"):
        server["m.identity_server"] = {"base_url": f"https://{settings.domain(SYDENT)}"}
    with_mas, registration = settings.exists("mas"), settings.section(Homeserver).registration
    shown = {
        # MAS has pages for these.
        "UIFeature.registration": registration != "closed" and not with_mas,
        "UIFeature.passwordReset": bool(settings.choices.smtp_host) and not with_mas,
        "UIFeature.deactivate": not with_mas,
        "UIFeature.identityServer": settings.exists("sydent"),
        # To Element, the company.
        "UIFeature.feedback": False,
    }
    config: dict[str, Any] = {
        "default_server_config": server,
        "brand": chosen.element_brand,
        "disable_custom_urls": not chosen.element_other_servers,
        "disable_guests": True,
        "room_directory": {"servers": [settings.server_name]},
        # No maintained integration manager can be had on one's own machine.
        "integrations_ui_url": None,
        "integrations_rest_url": None,
        "integrations_widgets_urls": [],
        "bug_report_endpoint_url": None,
        "map_style_url": None,
        "setting_defaults": shown,
        "mobile_guide_toast": True,
    }
    if chosen.element_country:
        config["default_country_code"] = chosen.element_country
    if settings.choices.admin_email:
        config["admin_message_md"] = f"Questions: {settings.choices.admin_email}"
    if chosen.element_help:
        config["branding"] = {
            "auth_footer_links": [{"text": text, "url": url} for text, url in chosen.element_help.items()]
        }
    if with_mas:
        config["embedded_pages"] = {"login_for_welcome": True}
        config["sso_redirect_options"] = {"immediate": False}
    if settings.exists("rtc"):
        config["element_call"] = {"use_exclusively": True}
        config["features"] = {"feature_video_rooms": True, "feature_element_call_video_rooms": True}
    return config


VIEW = Element
