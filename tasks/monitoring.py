"""The monitoring: exporters say how things are, Prometheus judges it, Alertmanager writes to the administrator.

All of them are Debian's programs in units of our own, on 127.0.0.1: Debian's units are not touched.
"""

from typing import Any

from pyinfra import host

from operations import databases, files, releases, units
from operations.files import Copy, Directory, Template, Text
from roles import FIGURES_PROGRAM, FIGURES_TIMER, MONITORING
from settings import settings_of
from settings.monitoring import ALERT_SUBJECT, ALERT_TEXT, PROCESS, Monitoring, presented
from settings.postgres import Postgres

settings = settings_of(host)
monitoring = settings.view(Monitoring)
HOME, UNITS, PLAN = monitoring.home, "/etc/systemd/system", f"{monitoring.home}/figures.json"
ALERTS: Any = {"user": "root", "group": "matrix-alertmanager"}
values = {"monitoring": monitoring, "release": settings.machine.release}
values |= {"process": PROCESS, "subject": ALERT_SUBJECT, "text": ALERT_TEXT, "presented": presented(settings)}
job = {**values, "timer": FIGURES_TIMER, "program": FIGURES_PROGRAM, "plan": PLAN}

library = releases.obtain(monitoring.release, settings.machine.releases)

releases.installed(name="Install the library of the overview's pictures", file=library)
files.present(
    name="Configure the monitoring",
    entries=[
        Directory(HOME, mode="755"),
        Copy(FIGURES_PROGRAM, "monitoring/matrix-metal-figures", mode="755"),
        Directory(monitoring.figures, mode="755", user=FIGURES_TIMER.user, group=FIGURES_TIMER.user),
        Text(PLAN, monitoring.plan, mode="644"),
        Template(f"{HOME}/blackbox.yaml", "monitoring/blackbox.yaml", mode="644", values=values),
        Copy(f"{HOME}/processes.yaml", "monitoring/processes.yaml", mode="644"),
        Template(
            f"{HOME}/rules.yaml", "monitoring/rules.yaml", mode="644", values=values, check="promtool check rules {}"
        ),
        Template(f"{HOME}/prometheus.yaml", "monitoring/prometheus.yaml", mode="644", values=values),
        # Caddy serves it behind the door of the role admin; without that role nobody does.
        Directory(monitoring.page, mode="755"),
        Template(f"{monitoring.page}/index.html", "monitoring/overview/index.html", mode="644", values=values),
        *(
            Copy(f"{monitoring.page}/{name}", f"monitoring/overview/{name}", mode="644")
            for name in ("overview.js", "overview.css")
        ),
        Directory(monitoring.alerts_home, mode="750", **ALERTS),
        Template(
            f"{monitoring.alerts_home}/alertmanager.yaml",
            "monitoring/alertmanager.yaml",
            mode="640",
            values=values,
            check="amtool check-config {}",
            **ALERTS,
        ),
    ],
)
files.present(
    name="Confine the monitoring",
    entries=[
        *(
            Template(
                f"{UNITS}/{unit.name}",
                f"monitoring/{unit.name}",
                mode="644",
                values=values,
            )
            for unit in MONITORING.units
        ),
        Template(f"{UNITS}/{FIGURES_TIMER.service}", "monitoring/figures.service", mode="644", values=job),
        Template(f"{UNITS}/{FIGURES_TIMER.timer}", "monitoring/figures.timer", mode="644", values=job),
    ],
)
databases.watched(
    name="Let the PostgreSQL exporter ask for figures",
    cluster=settings.view(Postgres).cluster,
    roles=MONITORING.database_roles,
)
NODE, BLACKBOX, POSTGRESQL, PROCESSES, ALERTMANAGER, PROMETHEUS = MONITORING.units
units.running(
    name="Run the timer of the figures",
    unit=FIGURES_TIMER.timer,
    # The service that it starts: systemd has to read its definition again as well.
    reads=[f"{UNITS}/{FIGURES_TIMER.service}"],
)
units.running(name="Run the node exporter", unit=NODE.name, reads=[], ready=NODE.health)
units.running(
    name="Run the blackbox exporter",
    unit=BLACKBOX.name,
    reads=[*BLACKBOX.reads, *settings.private_authorities],
    ready=BLACKBOX.health,
)
units.running(name="Run the PostgreSQL exporter", unit=POSTGRESQL.name, reads=[], ready=POSTGRESQL.health)
units.running(name="Run the process exporter", unit=PROCESSES.name, reads=PROCESSES.reads, ready=PROCESSES.health)
units.running(
    name="Run Alertmanager",
    unit=ALERTMANAGER.name,
    reads=[f"{monitoring.alerts_home}/alertmanager.yaml"],
    ready=ALERTMANAGER.health,
)
units.running(name="Run Prometheus", unit=PROMETHEUS.name, reads=PROMETHEUS.reads, ready=PROMETHEUS.health)
