"""Caddy: certificates and the web names. The web site of each role is defined with that role."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from operations.certificates import Served
from roles import CADDY, CADDY_FIGURES_PORT, FEDERATION_PORT, ROLES
from settings.deployment import ROOT, Settings, View, view_of
from settings.issuers import Issuer


@dataclass(frozen=True)
class Site:
    """What Caddy serves for a role. view: the values for the templates. site, routes: the role's templates, or None."""

    role: str
    view: View
    routes_on: str | None
    site: str | None
    routes: str | None


@dataclass(frozen=True)
class Caddy(View):
    """processors: how many it uses. federation_port: 8448 if federation uses that port as well. domains: the web names.

    logs_log_ins: whether it logs who tries passwords. figures_port: where it says how it is, to the monitoring.
    """

    issuer: Issuer
    processors: int
    sites: tuple[Site, ...]
    domains: tuple[str, ...]
    federation_port: int | None
    logs_log_ins: bool
    figures_port: int | None
    reloader: str = "caddy-certificate"

    @classmethod
    def of(cls, settings: Settings) -> Self:
        # Not `settings.views`: this view is one of them.
        others = [(role.name, settings.view(view_of(role.name))) for role in settings.played if role is not CADDY]
        return cls(
            issuer=settings.issuer(),
            # Half of them: the others are for the homeserver and its database, which do most of the work.
            processors=max(1, settings.machine.processors // 2),
            sites=_sites(others),
            domains=tuple(name for _, view in others for name in view.web_names),
            federation_port=next(
                (each.port for _, view in others for each in view.served if each.port == FEDERATION_PORT), None
            ),
            logs_log_ins=settings.here("bans"),
            figures_port=CADDY_FIGURES_PORT if settings.here("monitoring") else None,
        )

    @property
    def served(self) -> Sequence[Served]:
        # Caddy does not watch certificate files of the administrator's: it is reloaded if it presents another certificate.
        file, unit = self.issuer.certificate or "-", self.reloader if self.issuer.certificate else "-"
        return [Served(name, 443, file, unit) for name in self.domains]

    @property
    def issuers(self) -> Sequence[Issuer]:
        return (self.issuer,)

    def values(self) -> dict[str, Any]:
        """The values for the Caddyfile: this view, and the view of each role by the role's name."""
        return {"caddy": self, **{site.role: site.view for site in self.sites}}


def _sites(views: Sequence[tuple[str, View]]) -> tuple[Site, ...]:
    """In the order of the records, which is also the order of the sites and routes in the Caddyfile."""
    return tuple(
        Site(role, view, ROLES[role].routes_on, *(_template(role, kind) for kind in ("site", "routes")))
        for role, view in views
    )


def _template(role: str, kind: str) -> str | None:
    template = f"{role}/{kind}.caddy.j2"
    return template if (ROOT / "templates" / template).is_file() else None


def given_files(settings: Settings) -> dict[str, Any] | None:
    """Files that the administrator has to put on this machine, as arguments of `operations.certificates.Unusable`."""
    issuers = [issuer for _, view in settings.views for issuer in view.issuers]
    authorities = list(dict.fromkeys(issuer.trusted_root for issuer in issuers if issuer.trusted_root))
    own = [issuer for issuer in issuers if issuer.kind == "files"]
    if not authorities and not own:
        return None
    return {
        "certificate": own[0].certificate if own else "",
        "key": own[0].key if own else "",
        "authorities": authorities,
        "domains": list(dict.fromkeys(each.domain for each in settings.served)),
        "caddy": settings.here("caddy"),
    }


VIEW = Caddy
