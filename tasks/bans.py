"""The bans: fail2ban counts failed log-ins in Caddy's log, and a packet filter drops what comes from who tries too often.

It is an instance of its own, with a directory, a database and a socket of its own: that of Debian's package is not touched.
"""

from typing import Any

from pyinfra import host

from operations import files, units
from operations.files import Copy, Directory, Template
from operations.filters import NFTABLES
from roles import BANS
from settings import settings_of
from settings.bans import Bans

settings = settings_of(host)
[UNIT] = BANS.units
[HOME], [STATE] = UNIT.reads, BANS.state
DROP_IN = BANS.files[0]
OWNED: Any = {"user": UNIT.user, "group": UNIT.user}
values = {"bans": settings.view(Bans), "unit": UNIT, "release": settings.machine.release}

configuration = [
    *(
        Template(f"{HOME}/{name}", f"bans/{name}", mode="644", values=values)
        for name in ("fail2ban.conf", "jail.conf", "action.d/nftables.conf")
    ),
    Copy(f"{HOME}/filter.d/log-ins.conf", "bans/filter.d/log-ins.conf", mode="644"),
    Template(f"{HOME}/table.nft", "bans/table.nft", mode="644", values=values, check="nft -cf {}"),
]
files.present(
    name="Choose who is banned",
    entries=[
        *(Directory(path, mode="755") for path in (HOME, f"{HOME}/action.d", f"{HOME}/filter.d")),
        Directory(STATE, mode="700", **OWNED),
        *configuration,
    ],
)
files.present(
    name="Confine fail2ban",
    entries=[
        Template(f"/etc/systemd/system/{UNIT.name}", "bans/matrix-bans.service", mode="644", values=values),
        Directory(NFTABLES, mode="755"),
        Template(DROP_IN, "bans/nftables.conf", mode="644", values=values),
    ],
)
units.running(
    name="Run fail2ban",
    unit=UNIT.name,
    reads=[*(entry.path for entry in configuration), DROP_IN],
    ready=UNIT.health,
)
