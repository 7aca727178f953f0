"""Confinement: a service that was taken over reaches no other. Tried inside every unit, with its rights and namespaces."""

import json
import re
import shlex
import socket
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

from operations import ports
from operations.filters import PORTS, RELAY
from roles import (
    CADDY,
    FIGURES_TIMER,
    HOUSEKEEPING,
    MAS_ADMIN_SOCKET,
    MAS_SOCKET,
    MONITORING,
    NTFY_SOCKET,
    POSTGRES,
    SLIDING_SYNC,
    SLIDING_SYNC_SOCKET,
    SYDENT_PORT,
    SYNAPSE_PORT,
    SYNAPSE_SOCKETS,
    Role,
    Unit,
)
from settings.issuers import STORE
from tests.conftest import Deployed
from tests.deployment import EVERYTHING
from tests.testbed import Host

INTRUDER = Path(__file__).with_name("intruder.py")
PROGRAM, TARGETS = "/usr/local/lib/intruder.py", "/usr/local/lib/intruder.json"
# A service that records when a signal arrives, and has a terminal, a socket and a file in shared memory.
NEIGHBOUR = """
import os, signal, socket, time
directory = os.environ["RUNTIME_DIRECTORY"]
name = os.path.basename(directory)
def record(*_):
    os.close(os.open(directory + "/signalled", os.O_CREAT))
signal.signal(signal.SIGUSR1, record)
os.write(os.open("/dev/shm/" + name, os.O_CREAT | os.O_WRONLY, 0o600), b"shared")
link = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
link.bind("\\0" + name)
terminal = os.openpty()
open(directory + "/ready", "w")
while True:
    time.sleep(600)
"""
# A web server at an address and a port, as any local user may run one.
PAGE = """
import http.server, socket, sys
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"not the service")
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
Server((sys.argv[1], int(sys.argv[2])), Page).serve_forever()
"""
# For some seconds: a line each time that it can bind one of the ports, such as udp/3478.
BIND_AGAIN = """
import socket, sys, time
end = time.monotonic() + 6
while time.monotonic() < end:
    for place in sys.argv[1:]:
        protocol, port = place.split("/")
        link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM)
        try:
            link.bind(("0.0.0.0", int(port)))
            print(place)
        except OSError:
            pass
        link.close()
"""
# Prints each of the ports, such as udp/3478, that it can bind at any address, also if others may bind it as well.
BIND = """
import socket, sys
for place in sys.argv[1:]:
    protocol, port = place.split("/")
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET, "127.0.0.2"), (socket.AF_INET6, "::")):
        link = socket.socket(family, socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM)
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            link.setsockopt(socket.SOL_SOCKET, option, 1)
        try:
            link.bind((address, int(port)))
            print(place)
        except OSError:
            pass
        link.close()
        # The kernel chooses, from a range of this port only (IP_LOCAL_PORT_RANGE).
        link = socket.socket(family, link.type)
        try:
            link.setsockopt(socket.IPPROTO_IP, 51, int(port) << 16 | int(port))
            link.bind((address, 0))
            if link.getsockname()[1] == int(port):
                print(place)
        except OSError:
            pass
        link.close()
"""
# Answers at every address, on ports such as udp/3478, as any local user may.
ANSWER = """
import socket, sys, threading
def udp(link):
    while True:
        link.sendto(b"not the service", link.recvfrom(2048)[1])
def tcp(link):
    link.listen()
    while True:
        link.accept()[0].sendall(b"not the service")
for place in sys.argv[1:]:
    protocol, _, port = place.partition("/")
    link = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM)
    link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    link.bind(("::", int(port)))
    threading.Thread(target=udp if protocol == "udp" else tcp, args=(link,)).start()
"""
# One runs as root, one as our services do: in a user namespace of its own, which belongs to root.
NEIGHBOURS = {"neighbour": "", "confined-neighbour": "-p DynamicUser=yes -p PrivateUsers=yes"}


# What every local user may do: see that processes exist, and connect to sockets that are open to all.
ANYBODY = ("existence of *", "ownership of *", "socket /run/systemd/*", "socket /run/dbus/*", "socket @neighbour")
# Where Caddy passes requests on, with the addresses of the clients: for Caddy and what it passes them to.
BEHIND_CADDY = (SYNAPSE_SOCKETS[0], SLIDING_SYNC_SOCKET, MAS_SOCKET, NTFY_SOCKET)
PASSED_ON = tuple(
    allowed
    for directory in (Path(path).parent for path in BEHIND_CADDY)
    for allowed in (f"socket {directory}/*", f"read {directory}")
)

# Those by which other services are administered, and those whose they are.
ADMINISTERED = {
    "/run/caddy/admin.sock": "caddy.service",
    "/run/matrix-bans/socket": "matrix-bans.service",
    MAS_ADMIN_SOCKET: "mas.service",
}


@dataclass(frozen=True)
class Service:
    """A unit. name: with a `*` for PostgreSQL's version.

    may: attempts that may succeed, and cannot: one of these that may not.
    """

    name: str
    may: tuple[str, ...]
    cannot: str = ""

    @classmethod
    def of(cls, role: Role, unit: Unit) -> "Service":
        """What the record of the role says: its own files, and what is open to every local user."""
        own = [path.format(version="*") for path in unit.private]
        if role.own_certificate:
            own.append(f"{STORE}/certificates")
        may = [f"read {path}{below}" for path in own for below in ("", "/*")]
        # A service that runs as root must not even see the others.
        may += ANYBODY if unit.user != "root" else ()
        # What it is there for.
        may += ["processes in /proc"] if unit.title == "the process exporter" else []
        may += tuple(f"socket {path}" for path, owner in ADMINISTERED.items() if owner == unit.name)
        may += PASSED_ON if role is CADDY or any(path.startswith("/run/") for path in unit.private) else ()
        return cls(unit.name.format(version="*"), tuple(may), f"read {unit.environment}")

    def allows(self, attempt: str) -> bool:
        return attempt != self.cannot and any(fnmatch(attempt, allowed) for allowed in self.may)


# PostgreSQL is the last: its restarts disturb the others.
SERVICES = [Service.of(role, unit) for role in list(EVERYTHING.values())[::-1] for unit in role.units]


# What a timer starts: it reads what anybody who writes into the journal likes. It has the node exporter's user, and may end that.
def may_end(*units: str) -> list[str]:
    """What a user may do to other processes of its own."""
    return [f"{what} {name}" for name in units for what in ("kill of", "limits of", "pidfd signal to")]


_SAME_USER = [unit.name for unit in MONITORING.units if unit.user == FIGURES_TIMER.user]
JOBS = [
    Service(FIGURES_TIMER.service, (*ANYBODY, *may_end(*_SAME_USER))),
    Service(HOUSEKEEPING.service, (*ANYBODY, *may_end("matrix-synapse.service"))),
]
# What loads packet filters and reserves ports. The third filter is in test_firewall.py, loaded by a unit of the same kind.
LOADERS = [Service(unit, ANYBODY) for unit in (PORTS.unit, RELAY.unit, ports.UNIT)]
# What presents renewed certificates: here Caddy's. Those of the administrator's are in test_certificates.py.
PRESENTERS = [
    Service("coturn-certificate.service", (*ANYBODY, *(f"read {STORE}/certificates{each}" for each in ("", "/*"))))
]
SECRETS = (
    "/etc/shadow",
    "/etc/ssh/ssh_host_*_key",
    "/root",
    *(f"/dev/shm/{name}" for name in NEIGHBOURS),  # noqa: S108
)
WRITABLE = (
    "/etc",
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib",
    "/var/lib",
    "/run/neighbour",
    "/sys/fs/cgroup/system.slice/neighbour.service/cgroup.freeze",
)
SOCKETS = (
    "/run/systemd/notify",
    "/run/systemd/private",
    "/run/dbus/system_bus_socket",
    "\0neighbour",
)


@dataclass(frozen=True)
class Machine:
    """A host with the neighbour services and the intruder's program. pids: process -> PID of all that are attacked.

    roles: what the host has. secrets: files that are no service's, and that its services must not read.
    """

    host: Host
    pids: dict[str, int]
    roles: Collection[Role] = tuple(EVERYTHING.values())
    secrets: Sequence[str] = ()

    @property
    def private(self) -> list[str]:
        """Files and directories that other users must not read."""
        return [path.format(version="*") for role in self.roles for unit in role.units for path in unit.private]

    def write_targets(self, unit: str = "") -> None:
        """Write down what an intruder in this unit tries to reach: of private directories, also what is in them."""
        # An empty directory or file shows nothing.
        entries = rf"find {' '.join(self.private)} -maxdepth 1 ! -empty \( -type f -o -type d \)"
        targets = {
            "processes": {name: pid for name, pid in self.pids.items() if name != unit},
            "signalled": [self.pids[name] for name in NEIGHBOURS],
            "readable": self.host.run(f"ls -d {' '.join((*SECRETS, *self.secrets))}; {entries}").stdout.split(),
            "writable": WRITABLE,
            "sockets": [
                *SOCKETS,
                *(path for path in BEHIND_CADDY if str(Path(path).parent) in self.private),
                *self.host.run(f"ls -d {' '.join(ADMINISTERED)} 2>/dev/null || true").stdout.split(),
            ],
        }
        self.host.run(f"cat > {TARGETS}; rm -f {self.signal_files}", stdin=json.dumps(targets))

    def tried(self) -> set[str]:
        """All that the intruder tries, once the targets are written."""
        names = self.host.run(f"python3 -IB {PROGRAM} {TARGETS} --all").stdout.splitlines()
        return {*names, *(f"signal to {name}" for name in NEIGHBOURS)}

    @property
    def signal_files(self) -> str:
        return " ".join(f"/run/{name}/signalled" for name in NEIGHBOURS)

    def reached(self, output: str) -> set[str]:
        """The intruder's attempts that succeeded, and the processes that received its signals."""
        reached = set(re.findall("^reached: (.*)$", output, re.MULTILINE))
        assert "the end" in reached, f"not everything was tried: {output}"
        signalled = self.host.run(f"ls {self.signal_files} 2>/dev/null || true").stdout.split()
        return reached - {"the end"} | {f"signal to {Path(path).parent.name}" for path in signalled}


def main_pid(host: Host, unit: str) -> int:
    return int(host.run(f"systemctl show --value -p MainPID {unit}").stdout)


def real_name(host: Host, unit: Service) -> str:
    if "*" not in unit.name:
        return unit.name
    return host.run(f"systemctl list-units --plain --no-legend '{unit.name}'").stdout.split()[0]


@contextmanager
def neighbours(host: Host) -> Iterator[dict[str, int]]:
    """The host has the neighbour services and the intruder's program. Yields PIDs that are attacked, by name."""
    host.put(INTRUDER, PROGRAM)
    for name, options in NEIGHBOURS.items():
        properties = f"--unit={name} -p RuntimeDirectory={name} {options}"
        host.run(f"systemd-run --quiet --collect {properties} python3 -Ic '{NEIGHBOUR}'")
        host.run(f"until [ -e /run/{name}/ready ]; do sleep 0.05; done")
    yield {"PID 1": 1, **{name: main_pid(host, name) for name in NEIGHBOURS}}
    host.run(f"systemctl stop {' '.join(NEIGHBOURS)}; rm -f {PROGRAM} {TARGETS}")
    host.run(f"rm -f {' '.join(f'/dev/shm/{name}' for name in NEIGHBOURS)}")  # noqa: S108


@pytest.fixture(scope="module")
def machine(deployed: Deployed) -> Iterator[Machine]:
    host = deployed.host
    with neighbours(host) as pids:
        yield Machine(host, pids)
    # The restarts of PostgreSQL closed their database connections; one request would fail for each.
    host.run("systemctl restart matrix-synapse sliding-sync", timeout=180)
    host.run(f"until {SLIDING_SYNC.units[0].health}; do sleep 0.1; done", timeout=120)


@pytest.fixture
def running(machine: Machine) -> Machine:
    return with_services(machine)


def with_services(machine: Machine) -> Machine:
    """The machine, with the current PIDs of our own services as targets."""
    host = machine.host
    pids = {name: main_pid(host, name) for name in (real_name(host, unit) for unit in SERVICES)}
    assert all(pids.values()), pids
    return Machine(host, {**machine.pids, **pids})


def run_inside(host: Host, unit: Service, name: str) -> str:
    """Run the intruder once in place of the unit's own program. Afterwards the unit runs as before, if it did."""
    directory = f"/run/systemd/system/{name}.d"
    ran = host.run(f"systemctl is-active {name}", check=False).returncode == 0
    started = host.run(f"systemctl show --value -p ExecStart {name}").stdout
    # The wrapper that drops rights before it executes the program.
    wrapper = re.search(r"argv\[\]=(\S+/run-alone) ", started)
    drop_in = [
        "[Service]",
        "Type=oneshot",
        # systemd forgets an instance of a template that is not active.
        "RemainAfterExit=yes",
        "Restart=no",
        "PIDFile=",
        # Of jobs, which leave out what a user need not read.
        "LogLevelMax=debug",
        "SyslogLevel=info",
        "ExecCondition=",
        "ExecStart=",
        f"ExecStart={wrapper[1] if wrapper else ''} /usr/bin/python3 -IB {PROGRAM} {TARGETS}",
        "ExecStartPost=",
        "ExecStop=",
    ]
    host.run(f"mkdir -p {directory}; cat > {directory}/zz-intruder.conf", stdin="\n".join(drop_in) + "\n")
    try:
        host.run(f"systemctl daemon-reload; systemctl reset-failed {name}; systemctl restart {name}")
        invocation = host.run(f"systemctl show --value -p InvocationID {name}").stdout.strip()
        return host.run(f"journalctl --sync; journalctl -q -o cat _SYSTEMD_INVOCATION_ID={invocation}").stdout
    finally:
        host.run(f"rm {directory}/zz-intruder.conf; rmdir {directory} || true; systemctl daemon-reload")
        host.run(f"systemctl reset-failed {name}; systemctl {'restart' if ran else 'stop'} {name}", timeout=120)


def kinds(names: set[str]) -> set[str]:
    """The attempts without the process or path that each is about."""
    return {re.sub(r"<.*>|(?<= of ).*|(?<= to ).*", "", name) for name in names}


def test_unconfined_root_reaches_everything_that_is_tried(running: Machine) -> None:
    """So that the attempts below fail because of the confinement, and not because they never work."""
    running.write_targets()
    tried = running.tried()
    reached = running.reached(running.host.run(f"systemd-run -q --pipe --wait python3 -IB {PROGRAM} {TARGETS}").stdout)
    # Each kind for at least one process: root on the testbed's hosts lacks a few rights over some.
    assert len(tried) > 100
    assert kinds(reached) == kinds(tried)
    assert {name for name in tried if name.startswith(("read", "write", "socket", "signal"))} <= reached


@pytest.mark.parametrize(
    "unit", [*JOBS, *LOADERS, *PRESENTERS, *SERVICES], ids=lambda unit: unit.name.partition(".")[0].partition("@")[0]
)
def test_a_service_that_was_taken_over_reaches_no_other(running: Machine, unit: Service) -> None:
    assert_reaches_no_other(running, unit)


def assert_reaches_no_other(machine: Machine, unit: Service) -> None:
    reached = reached_from(machine, unit)
    assert reached or not unit.may, "it does not even reach its own files"
    wrong = sorted(each for each in reached if not unit.allows(each))
    assert not wrong, f"{unit.name} can reach: {wrong}"


def reached_from(machine: Machine, unit: Service) -> set[str]:
    """The attempts that succeed inside the unit."""
    name = real_name(machine.host, unit)
    machine.write_targets(name)
    return machine.reached(run_inside(machine.host, unit, name))


@pytest.mark.parametrize("unit", [*LOADERS, *PRESENTERS], ids=lambda unit: unit.name)
def test_what_runs_for_a_moment_has_few_rights(deployed: Deployed, unit: Service) -> None:
    rated = deployed.host.run(f"systemd-analyze security --no-pager {unit.name} | tail -n 1").stdout
    found = re.search(r"exposure level for .*: ([0-9.]+)", rated)
    assert found and float(found[1]) <= 1.5, rated


def test_no_local_user_takes_a_services_port(deployed: Deployed) -> None:
    """Neither while the service runs nor while it is stopped, at no address, asked for or by chance. Its own user does."""
    host = deployed.host
    lines = [line.split() for line in host.run(f"grep -v '^#' {ports.PATH}").stdout.splitlines()]
    assert {("tcp", "8090"), ("tcp", "3478"), ("udp", "3478"), ("tcp", "7881"), ("udp", "7882")} <= {
        (protocol, port) for protocol, port, _ in lines
    }
    units = {
        port.unit
        for role in EVERYTHING.values()
        for port in role.listens
        # That of PostgreSQL is for other machines, and needed by most of the rest.
        if role not in (CADDY, POSTGRES) and port.unit in (unit.name for unit in role.units)
    }

    def bound(user: str, before: str = "") -> set[str]:
        place = " ".join(f"{protocol}/{port}" for protocol, port, _ in lines)
        command = f"{before}runuser -u {user} -- /usr/bin/python3 -I - {place} tcp/4711 udp/4711"
        return set(host.run(command, stdin=BIND).stdout.split())

    free, ranged = {"tcp/4711", "udp/4711"}, "/proc/sys/net/ipv4/ip_local_port_range"
    before = host.run(f"cat {ranged}; echo 1024 65535 >{ranged}").stdout
    assert bound("nobody") == free
    host.run(f"systemctl stop {' '.join(units)}", timeout=60)
    try:
        assert bound("nobody") == free
        owned = {f"{protocol}/{port}" for protocol, port, user in lines if user == "sydent"}
        assert bound("sydent") == free | owned
        # It is the machine's ports that are reserved, and not those of a container.
        assert bound("nobody", "unshare -n -- ") >= free | owned
        # Also while what reserves them ends and begins anew.
        ends = f"sleep 0.5; systemctl kill -s KILL {ports.UNIT}; sleep 1; systemctl restart {ports.UNIT}"
        tries = "runuser -u nobody -- /usr/bin/python3 -I - tcp/8090 udp/3478"
        assert host.run(f"exec 3<&0; {tries} <&3 & {ends}; {ends}; wait $!", stdin=BIND_AGAIN).stdout == ""
        kept = host.run(f"systemctl show -p NFileDescriptorStore --value {ports.UNIT}").stdout
        assert (bound("nobody"), kept.strip()) == (free, "2")
    finally:
        host.run(f"cat >{ranged}", stdin=before)
        host.run(f"systemctl start {' '.join(units)}", timeout=180)


@pytest.mark.once("debian13")
def test_a_kernel_that_reserves_no_port_is_reported(deployed: Deployed) -> None:
    """As in a container whose owner does not let it."""
    host, drop_in = deployed.host, f"/run/systemd/system/{ports.UNIT}.d"
    host.run(f"mkdir -p {drop_in}; printf '[Service]\\nCapabilityBoundingSet=\\n' >{drop_in}/refused.conf")
    try:
        host.run(f"systemctl daemon-reload; systemctl restart {ports.UNIT}")
        assert host.run(f"cat {ports.STATE}").stdout.startswith(ports.NOTHING)
        status, report = deployed.deployment.verify("tests/host/test_machine.py")
        said = " ".join(report.split())
        assert status == 0 and f"{ports.NOTHING}, because the kernel does not take the program for it: " in said, report
    finally:
        host.run(f"rm -r {drop_in}; systemctl daemon-reload; systemctl restart {ports.UNIT}")
    assert not host.run(f"cat {ports.STATE}").stdout.startswith(ports.NOTHING)


def test_nobody_hears_a_local_user_on_a_services_port(deployed: Deployed) -> None:
    """Where a user can listen on its port while the service is stopped, neither Caddy nor root gets that user's answer."""
    host = deployed.host
    # Those of the monitoring, which are many, have the same rules: the verification looks at them.
    numbers = {
        port.number: port.unit
        for role in EVERYTHING.values()
        for port in role.listens
        # Caddy and the monitoring are those who ask.
        if (port.protocol, port.reach) == ("tcp", "machine") and port.unit != "caddy.service" and role is not MONITORING
    }
    units, places = " ".join(numbers.values()), [(at, port) for at in ("127.0.0.1", "[::1]") for port in numbers]
    site = f"identity.{host.domain}"
    gets = [
        *(f"{user}curl -sm 2 http://{at}:{port}/" for at, port in places for user in ("", "runuser -u caddy -- ")),
        f"curl -skm 2 --resolve {site}:443:127.0.0.1 https://{site}/_matrix/identity/v2",
    ]
    host.run(f"systemctl stop {units}", timeout=60)
    try:
        host.run(f"systemctl stop {ports.UNIT}")
        for number, (at, port) in enumerate(places):
            page = f"/usr/bin/python3 -Ic '{PAGE}' {at.strip('[]')} {port}"
            host.run(f"systemd-run --quiet --collect --unit=page-{number} -p User=nobody {page}")
            host.run(f"until ss -Hlnt src '{at}' sport = :{port} | grep -q .; do sleep 0.1; done")
        got = host.run(f"for get in {' '.join(map(repr, gets))}; do $get & done; wait; echo the end").stdout
        counted = host.run("nft list table inet matrix_metal_ports", check=False).stdout
    finally:
        host.run("systemctl stop 'page-*'", check=False)
        host.run(f"systemctl start {ports.UNIT}")
        host.run(f"systemctl start {units}; until {SLIDING_SYNC.units[0].health}; do sleep 0.1; done", timeout=180)
    assert got == "the end\n"
    for port in numbers:
        assert re.search(rf"sport {port} counter packets [1-9].* drop", counted), (
            f"nobody answered on {port}: {counted}"
        )


def _answers(address: str, place: str) -> bool:
    """Whether anything answers at this address on a port such as udp/3478."""
    protocol, _, port = place.partition("/")
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as link:
        link.settimeout(3)
        try:
            link.connect((address, int(port)))
            link.send(b"anybody?")
            return link.recv(100) == b"not the service"
        except OSError:
            return False


def test_no_local_user_answers_other_machines_on_a_services_port(deployed: Deployed, pool: ThreadPoolExecutor) -> None:
    """While the service is stopped, a user can listen on its port, but is not heard by those whom the service would answer."""
    host, free = deployed.host, ["tcp/4711", "udp/4711"]
    places = {
        f"{port.protocol}/{port.number}": port.unit
        for role in EVERYTHING.values()
        for port in role.listens
        if port.reach == "everybody" and port.number >= 1024 and (port.last, port.when) == (None, None)
    }
    assert len(places) > 4
    units = " ".join(set(places.values()))
    host.run(f"systemctl stop {units}", timeout=60)
    try:
        host.run(f"systemctl stop {ports.UNIT}")
        program = shlex.join(["/usr/bin/python3", "-Ic", ANSWER, *free, *places])
        host.run(f"systemd-run --quiet --collect --unit=answer -p User=nobody {program}")
        for place in (*free, *places):
            protocol, _, port = place.partition("/")
            host.run(f"until ss -Hln{protocol[0]} sport = :{port} | grep -q .; do sleep 0.1; done", timeout=10)
        asked = [(address, place) for address in (host.address, host.address6) for place in (*free, *places)]
        answered = [at for at, heard in zip(asked, pool.map(_answers, *zip(*asked, strict=True)), strict=True) if heard]
        counted = host.run("nft list table inet matrix_metal_ports", check=False).stdout
    finally:
        host.run("systemctl stop answer", check=False)
        host.run(f"systemctl start {ports.UNIT}")
        host.run(f"systemctl start {units}", timeout=60)
    assert answered == [(address, place) for address in (host.address, host.address6) for place in free]
    for place in places:
        assert re.search(rf"{place.replace('/', ' sport ')} .* counter packets [1-9].* drop", counted), (
            f"nobody answered on {place}: {counted}"
        )


def test_local_users_connect_only_to_what_is_for_them(deployed: Deployed) -> None:
    """Sydent's old API sends mails for whoever reaches it. Synapse is for the administrator's application services as well."""
    urls = (
        f"http://127.0.0.1:{SYNAPSE_PORT}/health",
        f"http://127.0.0.1:{SYDENT_PORT}/_matrix/identity/api/v1",
        f"--unix-socket {SYNAPSE_SOCKETS[0]} http://localhost/health",
    )
    get = "".join(f"curl -sm 5 -o /dev/null -w '%{{http_code}} ' {url}; " for url in urls) + "true"
    assert deployed.host.run(f"runuser -u nobody -- sh -c {shlex.quote(get)}").stdout.split() == ["200", "000", "000"]
    assert deployed.host.run(get).stdout.split() == ["200", "200", "200"]

    # Every port that a record reserves.
    units = {unit.name for role in EVERYTHING.values() for unit in role.units}
    listens = [port for role in EVERYTHING.values() for port in role.listens if port.unit in units]
    numbers = {port.number for port in listens if port.callers is not None}
    assert len(numbers) > 8
    tried = " ".join(map(str, numbers))
    connect = "timeout 5 bash -c '</dev/tcp/127.0.0.1/'$port 2>/dev/null && echo $port"
    connected = f"for port in {tried}; do {connect}; done; true"
    assert deployed.host.run(f"runuser -u nobody -- bash -c {shlex.quote(connected)}").stdout.split() == []
    # So that it is not because nothing listens there.
    as_root = {int(each) for each in deployed.host.run(f"bash -c {shlex.quote(connected)}").stdout.split()}
    assert as_root == numbers


def test_local_users_do_not_escape_the_rate_limits(deployed: Deployed) -> None:
    """Synapse counts attempts to log in by address, and on this port it must not believe what a client says about its own."""
    attempt = (
        "curl -s -o /dev/null -w '%{http_code} ' -H \"X-Forwarded-For: 203.0.113.$number\" "
        '-d "{\\"type\\": \\"m.login.password\\", \\"user\\": \\"nobody-$number\\", \\"password\\": \\"wrong\\"}" '
        f"http://127.0.0.1:{SYNAPSE_PORT}/_matrix/client/v3/login"
    )
    attempts = f"for number in $(seq 7); do {attempt}; done"
    answers = deployed.host.run(f"runuser -u nobody -- sh -c {shlex.quote(attempts)}").stdout.split()
    assert set(answers[:-1]) <= {"403", "429"} and answers[-1] == "429", answers
