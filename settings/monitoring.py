"""The monitoring: what is scraped on this machine, what is judged, and who is told."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import Field

from operations.machine import BACKUP_STATE
from releases import Archive, Release
from roles import (
    ALERTS_PORT,
    BLACKBOX_PORT,
    CADDY_FIGURES_PORT,
    FIGURES,
    LIVEKIT_FIGURES_PORT,
    MAS_FIGURES_PORT,
    MONITORING,
    MONITORING_HOME,
    NODE_PORT,
    POSTGRES_FIGURES_PORT,
    PROCESSES_PORT,
    PROMETHEUS_PORT,
    SYNAPSE_FIGURES_PORT,
    SYNAPSE_SOCKETS,
    RoleName,
)
from settings import admin
from settings.backup import LATE_AFTER, Backup, part_of
from settings.deployment import Mail, SettingError, Settings, View
from settings.fields import Chosen, Https, Sha256
from settings.postgres import Postgres, port_on

# The port on which Alertmanager speaks TLS from the beginning, and no other.
SMTPS = 465
DAY = 24 * 60 * 60
# Less than so many seconds left, and the renewal of a certificate must have failed. Those of Caddy's own authority last 12 hours.
_LEFT, _LEFT_OF_OWN = 7 * DAY, 2 * 60 * 60


# For Alertmanager, which fills in the braces.
ALERT_SUBJECT = (
    '{{ if eq .Status "firing" }}{{ (index .Alerts.Firing 0).Annotations.summary }}'
    "{{ if gt (len .Alerts.Firing) 1 }} (and more){{ end }}{{ else }}all is well again{{ end }}"
)
ALERT_TEXT = (
    '{{ range .Alerts.Firing }}{{ .Annotations.summary }}, since {{ .StartsAt.UTC.Format "2006-01-02 15:04" }} UTC.\n'
    "{{ .Annotations.todo }}\n\n{{ end }}"
    "{{ range .Alerts.Resolved }}Over: {{ .Annotations.summary }}.\n{{ end }}"
)


class Choices(Chosen):
    """The settings of the monitoring."""

    monitoring_days: int = Field(ge=1, le=400, description="a number of days from 1 to 400")
    monitoring_disk: int = Field(ge=1, le=100, description="a number of GB from 1 to 100")
    uplot_archive: str | None = Field(description="None or the path of a tgz on this computer")
    uplot_sha256: Sha256 | None = Field(description="None or 64 hexadecimal digits")
    uplot_releases: Https = Field(description="an https URL")


# The library that draws the overview's pictures.
UPLOT_VERSION = "1.6.32"
UPLOT_FILES = ("uPlot.iife.min.js", "uPlot.min.css")


def release_of(choices: Choices, architecture: str, record: Path) -> Release:
    """The library's release, which is the same for every architecture. record: the file that first downloads are recorded in."""
    return Release(
        name="uplot",
        version=UPLOT_VERSION,
        arch="all",
        url=f"{choices.uplot_releases.rstrip('/')}/uplot-{UPLOT_VERSION}.tgz",
        file=Path(choices.uplot_archive) if choices.uplot_archive else None,
        sha256=choices.uplot_sha256,
        record=record,
        file_setting="uplot_archive",
        sha256_setting="uplot_sha256",
        licence="MIT",
        title="uPlot",
        archive=Archive(contains=tuple(f"dist/{name}" for name in UPLOT_FILES), strip=1),
    )


class Target(NamedTuple):
    """What Prometheus asks. keep: a regular expression for the names of the figures that are kept."""

    job: str
    port: int
    keep: str
    path: str = "/metrics"


class Presented(NamedTuple):
    """A name whose certificate is looked at, and the port on which it is presented."""

    name: str
    port: int

    @property
    def module(self) -> str:
        return f"certificate_{self.name}"


# What is read of a process, whatever it is.
PROCESS = "process_(open_fds|max_fds|resident_memory_bytes|start_time_seconds)"
# The roles that say something of themselves: where, and what of it is kept. Each figure that is kept costs memory.
_OTHERS: Mapping[RoleName, tuple[str, int, str]] = {
    "synapse": (
        "synapse",
        SYNAPSE_FIGURES_PORT,
        "synapse_(build_info|event_processing_lag|http_server_responses_total|storage_events_persisted_events_total"
        "|storage_events_persisted_events_sep_total|storage_schedule_time_(sum|count)|federation_transaction_queue_pending_(pdus|destinations)"
        "|http_httppusher_http_pushes_(failed|processed)_total|background_update_status|admin_mau_current)"
        "|python_twisted_reactor_tick_time_(bucket|sum|count)|matrix_metal_users_today",
    ),
    "caddy": (
        "caddy",
        CADDY_FIGURES_PORT,
        "caddy_http_(request_duration_seconds_count|request_errors_total|requests_total)",
    ),
    "mas": (
        "mas",
        MAS_FIGURES_PORT,
        "http_server_duration_milliseconds_count|http_server_request_duration_seconds_count",
    ),
    "rtc": ("livekit", LIVEKIT_FIGURES_PORT, "livekit_(room_total|participant_total|node_messages)"),
}


@dataclass(frozen=True)
class Monitoring(View):
    """days, disk: for how long figures are kept, and how many GB they may take.

    left: seconds that a certificate must have left. units: those of this machine that have to run.
    late_after: seconds after which a part of the backup is late; empty: there is none here. own_files: whether the certificates
    are files of the administrator's, which this machine need not trust. components: title -> Debian's package, or the program's
    directory below /opt. domain, tunnel: where the overview is. overview: whether it is served: its door is that of the role
    admin, so without that role there is none. networks: whether its name is reached, too.
    """

    server_name: str
    homeserver: str
    days: int
    disk: int
    targets: tuple[Target, ...]
    left: int
    units: tuple[str, ...]
    postgres_log: str
    postgres_port: int
    late_after: Mapping[str, int]
    mail: Mail
    to: str | None
    caddy: bool
    own_files: bool
    components: Mapping[str, str]
    release: Release
    domain: str
    tunnel: str
    overview: bool
    networks: bool
    home: str = MONITORING_HOME
    alerts_home: str = "/etc/matrix-alertmanager"
    figures: str = FIGURES
    port: int = PROMETHEUS_PORT
    alerts_port: int = ALERTS_PORT
    node_port: int = NODE_PORT
    blackbox_port: int = BLACKBOX_PORT
    postgres_figures_port: int = POSTGRES_FIGURES_PORT
    processes_port: int = PROCESSES_PORT

    @classmethod
    def of(cls, settings: Settings) -> Self:
        choices, mail = settings.section(Choices), settings.mail
        to = settings.choices.admin_email
        if mail.host and to and (mail.tls == "tls") != (mail.port == SMTPS):
            raise SettingError(
                f"smtp_port = {mail.port}, smtp_tls = {mail.tls!r}: Alertmanager of the role monitoring speaks TLS from the "
                f'beginning ("tls") on port {SMTPS}, and only there'
            )
        return cls(
            server_name=settings.server_name,
            homeserver=SYNAPSE_SOCKETS[0],
            days=choices.monitoring_days,
            disk=choices.monitoring_disk,
            targets=(
                Target("node", NODE_PORT, "node_.*|matrix_metal_.*"),
                Target(
                    "postgresql",
                    POSTGRES_FIGURES_PORT,
                    "pg_(up|stat_archiver_(archived|failed)_count|stat_archiver_last_archive_age|stat_activity_count"
                    "|stat_activity_max_tx_duration|settings_max_connections|database_size_bytes"
                    "|stat_database_(deadlocks|xact_commit|xact_rollback|checksum_failures))",
                ),
                Target(
                    "alertmanager", ALERTS_PORT, "alertmanager_(notifications_failed_total|notifications_total|alerts)"
                ),
                Target("prometheus", PROMETHEUS_PORT, "prometheus_(tsdb_head_series|rule_evaluation_failures_total)"),
                Target("processes", PROCESSES_PORT, "namedprocess_namegroup_(cpu_seconds_total|num_procs)"),
                Target("blackbox", BLACKBOX_PORT, "blackbox_exporter_config_last_reload_successful"),
                *(Target(*each) for role, each in _OTHERS.items() if settings.here(role)),
            ),
            left=_LEFT_OF_OWN if settings.choices.tls == "internal" else _LEFT,
            units=tuple(dict.fromkeys(settings.written(unit.name) for role in settings.played for unit in role.units)),
            postgres_log=f"/var/log/postgresql/postgresql-{settings.view(Postgres).version}-main.log",
            postgres_port=port_on(settings.machine),
            late_after={part_of(timer): LATE_AFTER[part_of(timer)] for timer in settings.view(Backup).jobs}
            if settings.here("backup")
            else {},
            mail=mail,
            to=to,
            caddy=settings.here("caddy"),
            own_files=settings.choices.tls == "files",
            components=_components(settings),
            release=release_of(choices, settings.machine.architecture, settings.vault_path.with_suffix(".lock")),
            domain=settings.domain(MONITORING),
            tunnel=admin.tunnel_name(settings, MONITORING),
            overview=settings.here("admin"),
            networks=settings.here("admin") and bool(settings.section(admin.Choices).admin_networks),
        )

    @property
    def web_names(self) -> Sequence[str]:
        return (self.domain,) if self.networks else ()

    @property
    def programs(self) -> Sequence[Release]:
        return (self.release,)

    @property
    def library(self) -> Sequence[str]:
        """The files of the library that the page loads."""
        return UPLOT_FILES

    @property
    def page(self) -> str:
        """Where the overview is on the machine."""
        return f"{self.home}/overview"

    @property
    def policy(self) -> str:
        """The overview's Content-Security-Policy: it runs its own files only, and asks nobody else."""
        return (
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    @property
    def mails(self) -> bool:
        """Whether alerts are mailed to the administrator."""
        return bool(self.mail.host and self.to)

    @property
    def plan(self) -> str:
        """What the program that collects figures has to know."""
        plan: dict[str, Any] = {
            "units": list(self.units),
            "postgres_log": self.postgres_log,
            "backup": BACKUP_STATE if self.late_after else None,
            "late_after": dict(self.late_after),
            "components": dict(self.components),
        }
        return json.dumps(plan, indent=1) + "\n"

    @property
    def data_source(self) -> str:
        """How the exporter reaches PostgreSQL."""
        return f"user=matrix-pg-figures host=/run/postgresql port={self.postgres_port} dbname=postgres sslmode=disable"


def _components(settings: Settings) -> dict[str, str]:
    """What runs here, by title: a package of Debian's, or a directory below /opt."""
    found: dict[str, str] = {}
    for role in settings.played:
        programs = [each for each in role.programs if each not in ("uv", "uplot", "cinny")]
        title = role.title.removeprefix("the ")
        if programs:
            found |= {title if len(programs) == 1 else each: f"/opt/{each}" for each in programs}
        elif role.units and role.packages:
            found["Prometheus" if role is MONITORING else title] = settings.written(role.packages[0])
    return found


def presented(settings: Settings) -> list[Presented]:
    """What this machine serves over TLS. Not in the view: Caddy's, and by it this, is made of all others."""
    # Over UDP as well, with the same certificate.
    return list(dict.fromkeys(Presented(each.domain, each.port) for each in settings.served))


VIEW = Monitoring
