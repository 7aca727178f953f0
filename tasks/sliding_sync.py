"""The Sliding Sync proxy, archived upstream: only old clients need it. Synapse serves the new ones by itself."""

from pyinfra import host

from operations import files, releases, units
from operations.files import Directory, Template
from operations.programs import Program
from roles import SLIDING_SYNC, SOCKET_GROUP
from settings import settings_of
from settings.sliding_sync import SlidingSync

settings = settings_of(host)
[UNIT] = SLIDING_SYNC.units
sliding_sync = settings.view(SlidingSync)
ENVIRONMENT, [HOME] = UNIT.environment, UNIT.reads

program = Program(SLIDING_SYNC.title, sliding_sync.release, UNIT.name, files=[ENVIRONMENT])
releases.installed(
    name="Install the Sliding Sync proxy",
    file=releases.obtain(sliding_sync.release, settings.machine.releases),
    program=program,
)
files.present(
    name="Configure the Sliding Sync proxy",
    entries=[
        Directory(HOME, mode="750"),
        Template(ENVIRONMENT, "sliding_sync/environment", mode="600", values={"sliding_sync": sliding_sync}),
    ],
)
files.present(
    name="Confine the Sliding Sync proxy",
    entries=[
        Template(
            f"/etc/systemd/system/{UNIT.name}",
            "sliding_sync/sliding-sync.service",
            mode="644",
            values={
                "environment": ENVIRONMENT,
                "program": sliding_sync.release.executable,
                "socket_group": SOCKET_GROUP,
                "release": settings.machine.release,
            },
        )
    ],
)
units.running(
    name="Run the Sliding Sync proxy",
    unit=UNIT.name,
    reads=[ENVIRONMENT, "/opt/sliding-sync/current", sliding_sync.release.executable],
    ready=UNIT.health,
    program=program,
)
