"""Ports that any local user could take: each belongs to the user of its service. Before any service runs.

The kernel refuses the port to others. Where it cannot, and on a boot until it does, what they answer is dropped.
"""

from pyinfra import host

from operations import files, ports, units
from operations.files import Template
from operations.filters import PORTS
from settings import settings_of
from settings.networks import DEBIANS_OWN, REFUSED

settings = settings_of(host)

files.present(
    name="Write the packet filter of the services' ports",
    entries=[
        *PORTS.entries,
        Template(
            PORTS.path,
            "packet_filter/ports.nft",
            mode="644",
            values={
                "ports": settings.local_ports,
                "public": settings.public_ports,
                "kept_out": settings.kept_out,
                "allowed": [f"{DEBIANS_OWN}/32", *settings.choices.private_networks],
                "refused": REFUSED,
            },
            check="nft -cf {}",
        ),
    ],
)
units.running(
    name="Keep the ports for their services",
    unit=PORTS.unit,
    reads=[PORTS.path, PORTS.drop_in],
    ready=PORTS.works,
)

files.present(
    name="Write which ports are reserved",
    entries=[
        *ports.entries(
            [port.number for port in settings.local_ports] + [port.number for port in settings.public_ports]
        ),
        Template(
            ports.PATH,
            "ports/reserved-ports",
            mode="644",
            values={"ports": settings.local_ports, "public": settings.public_ports},
        ),
    ],
)
units.running(
    name="Reserve the ports for their services",
    unit=ports.UNIT,
    reads=[ports.PROGRAM, ports.PATH],
    ready=ports.WORKS,
)
