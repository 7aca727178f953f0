"""coturn: relays calls between users who cannot reach each other directly. It runs as root, and confined."""

from pyinfra import host

from operations import files, units
from operations.files import Copy, Directory, Template
from operations.filters import RELAY
from roles import COTURN, PRESENT_CERTIFICATE
from settings import settings_of
from settings.coturn import Coturn

settings = settings_of(host)
[UNIT] = COTURN.units
coturn = settings.view(Coturn)
[CONFIGURATION] = UNIT.reads
DROP_INS = f"/etc/systemd/system/{UNIT.name}.d"
OVERRIDE = f"{DROP_INS}/override.conf"
ALONE = "/usr/local/sbin/run-alone"

files.present(
    name="Configure coturn",
    entries=[Template(CONFIGURATION, "coturn/turnserver.conf", mode="600", values={"coturn": coturn})],
)
files.present(
    name="Confine coturn",
    entries=[
        Directory(DROP_INS, mode="755"),
        Copy(ALONE, "coturn/run-alone", mode="755"),
        Template(
            OVERRIDE,
            "coturn/override.conf",
            mode="644",
            values={
                "coturn": coturn,
                "configuration": CONFIGURATION,
                "packet_filter": RELAY.path,
                "alone": ALONE,
                "release": settings.machine.release,
            },
        ),
        Template(RELAY.path, "coturn/turnserver.nft", mode="644", values={"coturn": coturn}),
        *RELAY.entries,
    ],
)
units.running(
    name="Run coturn",
    unit=UNIT.name,
    reads=[CONFIGURATION, OVERRIDE, RELAY.path, ALONE],
    ready=UNIT.health,
)
units.running(
    name="Keep the relay from this machine's services",
    unit=RELAY.unit,
    # coturn loads the filter when it starts. This loads it again without a restart, which would end calls.
    reads=[RELAY.path, RELAY.drop_in],
    ready=RELAY.works,
)
values = {"coturn": coturn, "program": PRESENT_CERTIFICATE}
files.present(
    name="Reload coturn on renewal",
    entries=[
        Copy(PRESENT_CERTIFICATE, "certificates/present-certificate", mode="755"),
        *(
            Template(f"/etc/systemd/system/{unit}", f"coturn/{unit}", mode="644", values=values)
            for unit in (f"{coturn.reloader}.service", f"{coturn.reloader}.path")
        ),
    ],
)
units.running(
    name="Watch coturn's certificate",
    unit=f"{coturn.reloader}.path",
    # The service that it starts: systemd has to read its definition again as well.
    reads=[f"/etc/systemd/system/{coturn.reloader}.service"],
)
