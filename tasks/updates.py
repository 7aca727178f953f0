"""Security updates: unattended-upgrades installs them at a set hour, and needrestart restarts what still runs replaced files."""

from pyinfra import host

from operations import files, units
from operations.files import Directory, Template
from roles import UPDATES_APT, UPDATES_JOBS, UPDATES_NEEDRESTART, UPDATES_OPTIONS, UPDATES_RESTARTS
from settings import settings_of
from settings.updates import Updates

updates = settings_of(host).view(Updates)
UNITS = "/etc/systemd/system"
values = {"updates": updates, "options": UPDATES_OPTIONS, "restarts": UPDATES_RESTARTS}

files.present(
    name="Choose the updates that are installed",
    entries=[
        Template(UPDATES_APT, "updates/apt.conf", mode="644", values=values),
        Template(UPDATES_OPTIONS, "updates/options.apt.conf", mode="644"),
    ],
)
files.present(
    name="Choose what is restarted after updates",
    entries=[
        Template(UPDATES_NEEDRESTART, "updates/needrestart.conf", mode="644"),
        Template(f"{UNITS}/{UPDATES_RESTARTS}", "updates/restarts.service", mode="644", values=values),
    ],
)
files.present(
    name="Set the hour of the updates",
    entries=[
        entry
        for job in UPDATES_JOBS
        for kind in ("service", "timer")
        for entry in (
            Directory(f"{UNITS}/{job}.{kind}.d", mode="755"),
            Template(
                f"{UNITS}/{job}.{kind}.d/matrix-metal.conf",
                f"updates/job.{kind}",
                mode="644",
                values={**values, "job": job, "installs": job == UPDATES_JOBS[-1]},
            ),
        )
    ],
)
for job in UPDATES_JOBS:
    units.running(
        name="Run the timers of the updates",
        unit=f"{job}.timer",
        # The services as well: systemd has to read their definitions again.
        reads=[f"{UNITS}/{job}.{kind}.d/matrix-metal.conf" for kind in ("service", "timer")]
        + [f"{UNITS}/{UPDATES_RESTARTS}"],
    )
