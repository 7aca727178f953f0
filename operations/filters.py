"""Packet filters: each is a table of nftables in a file, and a unit that loads it at boot, before the network is up.

An administrator's firewall may take all tables away. Debian's nftables.service does so: a drop-in of ours loads the filter again.
`nft flush ruleset` by hand is noticed by the next run, as is a table that was changed.
"""

import shlex
from dataclasses import dataclass

from operations.files import Directory, Entry, Template

NFTABLES = "/etc/systemd/system/nftables.service.d"


@dataclass(frozen=True)
class Filter:
    """unit: loads the table. path: the file with the table; the operation that puts it there is the task's own."""

    unit: str
    description: str
    path: str
    table: str

    @property
    def loaded(self) -> str:
        """File with the table as the kernel showed it after it was loaded."""
        return f"/run/{self.unit.removesuffix('.service')}/loaded"

    @property
    def drop_in(self) -> str:
        return f"{NFTABLES}/{self.unit.removesuffix('.service')}.conf"

    @property
    def entries(self) -> list[Entry]:
        """The unit, and what loads the table again after nftables.service."""
        values = {
            "unit": self.unit,
            "description": self.description,
            "path": self.path,
            "table": self.table,
            "loaded": self.loaded,
        }
        return [
            Template(f"/etc/systemd/system/{self.unit}", "packet_filter/filter.service", mode="644", values=values),
            Directory(NFTABLES, mode="755"),
            Template(self.drop_in, "packet_filter/nftables.conf", mode="644", values={"path": self.path}),
        ]

    @property
    def works(self) -> str:
        """Shell command that succeeds while the kernel has the table as it was loaded."""
        return f"nft -s -t list table inet {shlex.quote(self.table)} | cmp -s - {shlex.quote(self.loaded)}"


PORTS = Filter(
    "matrix-metal-ports.service",
    "Keep the ports of services for their users",
    "/etc/matrix-metal/ports.nft",
    "matrix_metal_ports",
)
RELAY = Filter(
    "coturn-filter.service",
    "Keep the relay from services of this machine",
    "/etc/turnserver.nft",
    "matrix_metal_relay",
)
FIREWALL = Filter(
    "matrix-metal-firewall.service",
    "Drop what is for no port of the deployment",
    "/etc/matrix-metal/firewall.nft",
    "matrix_metal_firewall",
)
