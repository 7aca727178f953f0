"""The state of a machine, asked once per run, before anything is touched."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from operations.shell import Fact, answer_lines, quoted, shell_file
from roles import POSTGRES_PORT, ROLES

MARKER = "/etc/matrix-metal/deployment.json"
# Synapse's signing key, and the digest (SHA-256) of what it was when a run last saw it.
SIGNING_KEY, KEY_NOTE = "/var/lib/matrix-synapse/signing.key", "/etc/matrix-metal/signing_key"
# What the backup needs to reach its target, and what a restore needs; what the jobs of the backup say about themselves.
BACKUP_HOME, RESTORE_HOME = "/etc/matrix-metal/backup", "/etc/matrix-metal/restore"
BACKUP_STATE = "/var/lib/matrix-metal/backup"
# Programs of VPNs that listen for other machines, by protocol. Those of IPsec only agree on keys: its packets are a protocol.
IPSEC_PROGRAMS = ("charon", "charon-systemd", "pluto", "iked")
VPN_PROGRAMS = {
    "tcp": ("openvpn", "ocserv-main", "tincd"),
    "udp": (
        *("openvpn", "ocserv-main", "tincd", "wireguard-go", "boringtun-cli", "tailscaled", "netbird", "nebula"),
        *("zerotier-one", *IPSEC_PROGRAMS),
    ),
}
# Kinds of interfaces whose packets arrive inside of others, which the firewall sees as well.
TUNNELS = (
    *("wireguard", "amneziawg", "tun", "ovpn", "ovpn-dco", "vti", "vti6", "xfrm"),
    *("gre", "gretap", "ip6gre", "ip6gretap", "ipip", "ip6tnl", "sit", "vxlan", "geneve"),
)
# On a spare machine: what it had before the rehearsal of a restore, and what that has put there.
REHEARSAL_NOTE = "/var/lib/matrix-metal-rehearsal"


@dataclass(frozen=True)
class Listener:
    """A program that listens. protocol: tcp or udp; unit: the systemd unit it belongs to, or "".

    address: as ss prints it, such as "0.0.0.0", "[::1]" or "127.0.0.53%lo".
    """

    protocol: str
    port: int
    program: str
    pid: int
    unit: str
    address: str = "*"

    @property
    def open(self) -> bool:
        """Whether other machines reach it."""
        return not self.address.startswith(("127.", "[::1]", "[::ffff:127."))

    @property
    def is_ssh(self) -> bool:
        """An SSH server, or systemd for one."""
        of_socket = re.fullmatch(r".*(ssh|dropbear).*\.socket", self.unit) is not None
        return self.protocol == "tcp" and (self.program in ("sshd", "dropbear") or of_socket)

    @property
    def is_vpn(self) -> bool:
        return self.open and self.program in VPN_PROGRAMS[self.protocol]


@dataclass(frozen=True)
class InUse:
    """What is in use of a program below /opt: the name of a directory, and what people call that version."""

    directory: str
    version: str


@dataclass(frozen=True)
class Failure:
    """A version of a program below /opt that did not come up: its directory, when it was tried, and why."""

    directory: str
    when: str
    why: str


@dataclass(frozen=True)
class MachineState:
    """What a run finds on a machine.

    root: whether we are root or can become root by sudo without a password.
    processors: how many it has; 0 if unknown.
    programs: what is in use below /opt, by the name of the program's directory; failures: what was tried last, and put back.
    releases: installed files of release pages below /opt, such as "sliding-sync/v0.99.19-0123456789ab".
    memory, disk: MiB in all, and MiB free for /opt and /var.
    postgresql: versions of the clusters called main, such as ["17"].
    clusters: all of PostgreSQL's clusters and their ports, such as [("17/main", 5432)].
    units: units that an earlier run has defined, or added a drop-in to.
    deployment: the content of MARKER, written by an earlier run, or None.
    marker_damaged: whether MARKER exists, but does not name a deployment and a vault; marker_is_file: False if it is something
        else than a file. secrets: digests (SHA-256) of secrets that an earlier run put on the machine, by their names in the
        vault: MAS's encryption secret, and others if MARKER is missing or damaged; server_name: then the name of the homeserver
        there, or "". kept: the names of secrets that must not change, and that were used there. foreign: a file of a Synapse
        that no run has installed, or "".
    delegated: whether an earlier run has told Synapse that the Matrix Authentication Service has the accounts. migrating: whether
        `manage.py NAME mas migrate` has begun to move them, and has not ended.
    upgrading: "15 17 5432" if `manage.py NAME postgres upgrade` has begun to move data from 15 to 17, and has not ended.
    database: the host of Synapse's database, as an earlier run configured it: a directory with a Unix socket, an address, or "".
    database_port: the port of that database.
    names: domain name -> its addresses as the machine's programs get them, from /etc/hosts or DNS; none if it has none there.
    interfaces: each lasting address that is not local, with its interface, such as [("eth0", "192.0.2.7")].
    outgoing: interface and address with which the machine connects to the world, for each family that it does so with.
    restoring: whether `manage.py NAME restore` has begun ("begun"), or has put the data back ("done"), and has not ended; or "".
    other_run: who is changing the machine just now, and since when; "" if nobody is. last_run: when the last run began that
        changed it, or "". sessions: how many sessions sshd allows a connection.
    backed_up_as: what the machine was called in the inventory when its backup was deployed last, or "". data: versions of
        PostgreSQL of which there are data, whether they have a cluster or not; servers: versions that are installed.
    updating: whether it is just installing security updates by itself, or restarting what they have replaced.
    came_to: the machine's port by which the run came; 0 without one. tunnel: the interface of a tunnel through which it came, and
        its kind, such as ("wg0", "wireguard"); None without one. wireguard: interfaces of WireGuard and their ports. own_rules:
        files with rules of the administrator's for the firewall, such as "mine.nft".
    signing_key: "gone" or "another", if Synapse's is not the one that earlier runs saw; "none", if there is none and no run saw
        one. counted: the number of Synapse's newest event and the day when it was last counted, such as "5120 2027-01-31", or "".
    backed_up_as: what the machine was called in the inventory when its backup was deployed last, or "".
    data: versions of PostgreSQL of which there are data, with a cluster or without; servers: versions that are installed.
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
    deployment: dict[str, str] | None = None
    marker_damaged: bool = False
    marker_is_file: bool = True
    secrets: tuple[tuple[str, str], ...] = ()
    kept: frozenset[str] = frozenset()
    server_name: str = ""
    foreign: str = ""
    listeners: tuple[Listener, ...] = field(default=())
    database: str = ""
    processors: int = 0
    releases: frozenset[str] = frozenset()
    clusters: tuple[tuple[str, int], ...] = ()
    units: frozenset[str] = frozenset()
    database_port: int = POSTGRES_PORT
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    interfaces: tuple[tuple[str, str], ...] = ()
    outgoing: tuple[tuple[str, str], ...] = ()
    other_run: str = ""
    last_run: str = ""
    sessions: int = 10
    delegated: bool = False
    migrating: bool = False
    restoring: str = ""
    upgrading: str = ""
    programs: Mapping[str, InUse] = field(default_factory=dict)
    failures: Mapping[str, Failure] = field(default_factory=dict)
    came_to: int = 0
    tunnel: tuple[str, str] | None = None
    wireguard: tuple[tuple[str, int], ...] = ()
    own_rules: tuple[str, ...] = ()
    signing_key: str = ""
    counted: str = ""
    updating: bool = False
    backed_up_as: str = ""
    data: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()


class Machine(Fact[MachineState]):
    """The state of the machine, asked in one command, as any user. names: domain names to look up there."""

    def question(self, names: Iterable[str] = ()) -> str:
        kept = " ".join(f"{entry.name} {entry.at}" for role in ROLES.values() for entry in role.secrets if entry.keep)
        return f"marker={MARKER} names={quoted(' '.join(names))} kept={quoted(kept)}\n{shell_file('machine')}"

    @staticmethod
    def default() -> MachineState:
        return MachineState()

    def process(self, output: list[str]) -> MachineState:
        # Without an answer it is an empty state, for which preflight has a message.
        return self.answer(answer_lines(output) or [])

    def answer(self, lines: list[str]) -> MachineState:
        values: dict[str, str] = {}
        clusters: list[str] = []
        versions: dict[str, list[str]] = {"data": [], "server": []}
        ports: list[tuple[str, int]] = []
        listeners: list[Listener] = []
        releases: list[str] = []
        kept: list[str] = []
        units: list[str] = []
        names: dict[str, tuple[str, ...]] = {}
        on: dict[str, list[tuple[str, str]]] = {"interface": [], "outgoing": []}
        secrets: list[tuple[str, str]] = []
        sessions = 10
        programs: dict[str, InUse] = {}
        failures: dict[str, Failure] = {}
        came_to, client = "0", ""
        wireguard: list[tuple[str, int]] = []
        for line in lines:
            key, _, value = line.partition(" ")
            if key == "postgresql":
                clusters.append(value)
            elif key in versions:
                versions[key] += [value] if value.isdigit() else []
            elif key == "secret":
                name, _, digest = value.partition(" ")
                secrets.append((name, digest))
            elif key == "kept":
                kept.append(value)
            elif key == "program":
                name, directory, version = value.split(" ")
                programs[name] = InUse(directory, version)
            elif key == "failure":
                name, *about = value.split("\t")
                # It may just be written.
                if len(about) == 3:
                    failures[name] = Failure(*about)
            elif key == "sessions":
                sessions = min(sessions, int(value))
            elif key == "unit":
                units.append(value)
            elif key == "installed":
                releases.append(value)
            elif key == "name":
                name, *found = value.split()
                # Link-local addresses have an interface behind them.
                names[name] = tuple(address.partition("%")[0] for address in found)
            elif key in on:
                interface, _, address = value.partition(" ")
                on[key].append((interface, address))
            elif key == "cluster":
                cluster, _, cluster_port = value.partition(" ")
                if cluster_port.isdigit():
                    ports.append((cluster, int(cluster_port)))
            elif key == "listener":
                protocol, address, port, users, pid, unit = [*value.split(" "), "", ""][:6]
                program = users.partition('(("')[2].partition('"')[0]
                if port.isdigit():
                    number = int(pid) if pid.isdigit() else 0
                    listeners.append(Listener(protocol, int(port), program, number, unit, address))
            elif key == "connection":
                client, *_, came_to = value.split()
            elif key == "wireguard":
                name, _, listen_port = value.partition("\t")
                # 0 while the interface is down.
                wireguard += [(name, int(listen_port))] if listen_port.strip("0") else []
            else:
                values[key] = value
        marker = _marker(values["deployment"]) if "deployment" in values else None
        return MachineState(
            user=values.get("user", ""),
            root=values.get("root") == "yes",
            distribution=values.get("distribution", ""),
            release=values.get("release", ""),
            architecture=values.get("architecture", ""),
            releases=frozenset(releases),
            units=frozenset(units),
            processors=int(values.get("processors", 0)),
            memory=int(values.get("memory", 0)),
            disk=int(values.get("disk", 0)),
            addresses=tuple(values.get("addresses", "").split()),
            postgresql=tuple(sorted(clusters, key=int)),
            deployment=marker,
            marker_damaged="deployment" in values and marker is None,
            marker_is_file=values.get("marker") != "other",
            secrets=tuple(secrets),
            kept=frozenset(kept),
            server_name=values.get("server_name", ""),
            foreign=values.get("foreign", ""),
            listeners=tuple(listeners),
            came_to=int(came_to),
            tunnel=_tunnel(client, values.get("came_to", ""), values.get("answers", "")),
            wireguard=tuple(wireguard),
            own_rules=tuple(values.get("own_rules", "").split()),
            signing_key=values.get("signing_key", ""),
            counted=values.get("counted", "").strip(),
            updating=values.get("updating") == "yes",
            backed_up_as=values.get("backed_up_as", ""),
            data=tuple(sorted(versions["data"], key=int)),
            servers=tuple(versions["server"]),
            database=(marker or {}).get("database") or values.get("database", ""),
            clusters=tuple(ports),
            other_run=values.get("other_run", ""),
            last_run=values.get("last_run", ""),
            sessions=sessions,
            database_port=int({**values, **(marker or {})}.get("database_port", str(POSTGRES_PORT))),
            names=names,
            interfaces=tuple(on["interface"]),
            outgoing=tuple(on["outgoing"]),
            delegated=values.get("delegated") == "yes",
            migrating=values.get("migrating") == "yes",
            restoring=values.get("restoring", ""),
            upgrading=values.get("upgrading", ""),
            programs=programs,
            failures=failures,
        )


def _tunnel(client: str, came_to: str, answers: str) -> tuple[str, str] | None:
    """The tunnel that a run came through. came_to: the interface with the address that it came to, and its kind; answers: that
    of the way back. What has a public address may come without it, though a proxy of the machine's takes all that it sends.
    """
    private = client and not ip_address(client.partition("%")[0]).is_global
    for way in (came_to, answers) if private else (came_to,):
        name, _, kind = way.partition(" ")
        if kind in TUNNELS:
            return name, kind
    return None


def _marker(text: str) -> dict[str, str] | None:
    """The content of the marker; None if it is damaged."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        return None
    port = found.get("database_port", str(POSTGRES_PORT))
    return found if {"server_name", "vault"} <= found.keys() and re.fullmatch(r"[0-9]{1,5}", port) else None
