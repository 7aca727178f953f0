"""ntfy: phones without Google's services keep a connection to it, by which they hear of new messages (UnifiedPush)."""

from pyinfra import host

from operations import files, units
from operations.files import Directory, Template
from roles import NTFY, SOCKET_GROUP
from settings import settings_of
from settings.ntfy import Ntfy

settings = settings_of(host)
[UNIT] = NTFY.units
ntfy = settings.view(Ntfy)
[CONFIGURATION] = UNIT.reads
DROP_INS = f"/etc/systemd/system/{UNIT.name}.d"
OVERRIDE = f"{DROP_INS}/override.conf"

files.present(
    name="Configure ntfy",
    entries=[Template(CONFIGURATION, "ntfy/server.yml", mode="644", values={"ntfy": ntfy})],
)
files.present(
    name="Confine ntfy",
    entries=[
        Directory(DROP_INS, mode="755"),
        Template(
            OVERRIDE,
            "ntfy/override.conf",
            mode="644",
            values={"unit": UNIT, "socket_group": SOCKET_GROUP, "release": settings.machine.release},
        ),
    ],
)
units.running(name="Run ntfy", unit=UNIT.name, reads=[CONFIGURATION, OVERRIDE], ready=UNIT.health)
