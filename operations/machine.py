"""What a machine is, and whether it can play its roles: asked once per run, before anything is touched."""

import json
from dataclasses import dataclass, field
from typing import Any

from pyinfra.api import FactBase

MARKER = "/etc/matrix-metal/deployment.json"


@dataclass(frozen=True)
class Listener:
    """A program that listens. protocol: tcp or udp; unit: the systemd unit it belongs to, or ""."""

    protocol: str
    port: int
    program: str
    pid: int
    unit: str


@dataclass(frozen=True)
class MachineState:
    """A machine as it is.

    root: whether we are root or may become root by sudo without a password.
    processors: how many it has; 0 if unknown.
    memory, disk: MiB in all, and MiB free for /opt and /var.
    postgresql: versions of the clusters called main, such as ["17"].
    clusters: all of PostgreSQL's clusters and their ports, such as [("17/main", 5432)].
    deployment: what an earlier run left in MARKER, or None.
    database: where an earlier run told Synapse to find its database: a directory with a Unix socket, an address, or "".
    database_port: the port there.
    """

    user: str = ""
    root: bool = False
    distribution: str = ""
    release: str = ""
    architecture: str = ""
    memory: int = 0
    disk: int = 0
    addresses: tuple[str, ...] = ()
    postgresql: tuple[str, ...] = ()
    deployment: dict[str, Any] | None = None
    listeners: tuple[Listener, ...] = field(default=())
    database: str = ""
    processors: int = 0
    clusters: tuple[tuple[str, int], ...] = ()
    database_port: int = 5432


class Machine(FactBase[MachineState]):
    """The machine, in one question, as any user."""

    def command(self) -> str:
        return (
            r"""
sudo=; [ "$(id -u)" = 0 ] || sudo="sudo -n"
echo "user $(id -un)"
$sudo true 2>/dev/null && echo "root yes"
( . /etc/os-release; echo "distribution $ID"; echo "release ${VERSION_ID:-unknown}" )
echo "architecture $(dpkg --print-architecture 2>/dev/null || uname -m)"
echo "processors $(nproc)"
awk '/^MemTotal:/ { print "memory", int($2 / 1024) }' /proc/meminfo
df -Pk /opt /var 2>/dev/null | awk 'NR > 1 { if (!n || $4 < n) n = $4 } END { print "disk", int(n / 1024) }'
echo "addresses $(hostname -I 2>/dev/null)"
for cluster in /etc/postgresql/*/main; do
  [ -e "$cluster/postgresql.conf" ] && echo "postgresql $(basename "$(dirname "$cluster")")"
done
command -v pg_lsclusters >/dev/null && $sudo pg_lsclusters -h 2>/dev/null | awk '{ print "cluster", $1 "/" $2, $3 }'
[ -e """
            + MARKER
            + r""" ] && echo "deployment $(tr -d '\n' <"""
            + MARKER
            + r""")"
$sudo sed -n '/^database:/,/^$/ { s/^    host: "\(.*\)"$/database \1/p; s/^    port: \([0-9]*\)$/database_port \1/p }' \
  /etc/matrix-synapse/homeserver.yaml 2>/dev/null
$sudo ss -Hlntup 2>/dev/null | awk '{ print $1, $5, $7 }' | while read -r protocol address users; do
  pid=${users#*pid=}; pid=${pid%%,*}
  unit=$(sed -n 's,^0::.*/\([^/]*\.service\)\(/.*\)*$,\1,p' "/proc/$pid/cgroup" 2>/dev/null)
  echo "listener $protocol ${address##*:} $users ${pid:-0} $unit"
done
true
"""
        )

    @staticmethod
    def default() -> MachineState:
        return MachineState()

    def process(self, output: list[str]) -> MachineState:
        values: dict[str, str] = {}
        clusters: list[str] = []
        ports: list[tuple[str, int]] = []
        listeners: list[Listener] = []
        for line in output:
            key, _, value = line.partition(" ")
            if key == "postgresql":
                clusters.append(value)
            elif key == "cluster":
                cluster, _, cluster_port = value.partition(" ")
                if cluster_port.isdigit():
                    ports.append((cluster, int(cluster_port)))
            elif key == "listener":
                protocol, port, users, pid, unit = [*value.split(" "), "", ""][:5]
                program = users.partition('(("')[2].partition('"')[0]
                if port.isdigit():
                    listeners.append(Listener(protocol, int(port), program, int(pid) if pid.isdigit() else 0, unit))
            else:
                values[key] = value
        return MachineState(
            user=values.get("user", ""),
            root=values.get("root") == "yes",
            distribution=values.get("distribution", ""),
            release=values.get("release", ""),
            architecture=values.get("architecture", ""),
            processors=int(values.get("processors", 0)),
            memory=int(values.get("memory", 0)),
            disk=int(values.get("disk", 0)),
            addresses=tuple(values.get("addresses", "").split()),
            postgresql=tuple(sorted(clusters, key=int)),
            deployment=json.loads(values["deployment"]) if "deployment" in values else None,
            listeners=tuple(listeners),
            database=values.get("database", ""),
            clusters=tuple(ports),
            database_port=int(values.get("database_port", 5432)),
        )
