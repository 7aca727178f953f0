"""Ports that only this machine may reach: each belongs to the user of its service. Before any service runs."""

from pyinfra import host

from operations import files, units
from operations.files import Directory, Template
from operations.filters import PORTS
from operations.templating import TEMPLATES
from roles import SOCKET_GROUP
from settings import settings_of

settings = settings_of(host)

files.present(
    name="Create the users of the services",
    entries=[
        Directory("/etc/sysusers.d", mode="755"),
        *(
            Template(
                f"/etc/sysusers.d/{unit.user}.conf",
                f"{role.name}/sysusers.conf",
                mode="644",
                values={"user": unit.user, "socket_group": SOCKET_GROUP},
                check="systemd-sysusers {}",
            )
            for role in settings.played
            for unit in role.units
            # Debian's packages make the users of theirs.
            if (TEMPLATES / role.name / "sysusers.conf.j2").exists() and not unit.masked
        ),
    ],
)
files.present(
    name="Write the packet filter of the local ports",
    entries=[
        *PORTS.entries,
        Template(
            PORTS.path,
            "packet_filter/ports.nft",
            mode="644",
            values={"ports": settings.local_ports},
            check="nft -cf {}",
        ),
    ],
)
units.running(
    name="Keep the local ports for their services",
    unit=PORTS.unit,
    reads=[PORTS.path, PORTS.drop_in],
    ready=PORTS.works,
)
