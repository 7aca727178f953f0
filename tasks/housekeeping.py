"""Counts, once a day, what Synapse has removed by itself: its settings say what (templates/synapse/homeserver.yaml.j2)."""

from pyinfra import host

from operations import files, units
from operations.files import Copy, Template
from roles import HOUSEKEEPING, HOUSEKEEPING_PROGRAM, HOUSEKEEPING_REPORT
from settings import settings_of
from settings.synapse import Synapse

synapse = settings_of(host).view(Synapse)
UNITS = "/etc/systemd/system"
values = {
    "synapse": synapse,
    "timer": HOUSEKEEPING,
    "home": "/etc/matrix-synapse",
    "python": f"{synapse.virtualenv.current}/bin/python",
    "program": HOUSEKEEPING_PROGRAM,
    "report": HOUSEKEEPING_REPORT,
}

files.present(
    name="Configure the count of what was removed",
    entries=[
        Copy(HOUSEKEEPING_PROGRAM, "synapse/synapse-housekeeping", mode="644"),
        Template(f"{UNITS}/{HOUSEKEEPING.service}", "synapse/housekeeping.service", mode="644", values=values),
        Template(f"{UNITS}/{HOUSEKEEPING.timer}", "synapse/housekeeping.timer", mode="644", values=values),
    ],
)
units.running(
    name="Run the timer of the count",
    unit=HOUSEKEEPING.timer,
    # The service that it starts: systemd has to read its definition again as well.
    reads=[f"{UNITS}/{HOUSEKEEPING.service}"],
)
