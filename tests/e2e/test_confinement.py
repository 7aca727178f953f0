"""Confinement: a service that was taken over reaches no other. Tried inside every unit, with its rights and namespaces."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

from roles import SLIDING_SYNC, SLIDING_SYNC_SOCKET, SYNAPSE_SOCKETS
from tests.conftest import Deployed
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
os.open("/dev/shm/" + name, os.O_CREAT, 0o600)
link = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
link.bind("\\0" + name)
terminal = os.openpty()
open(directory + "/ready", "w")
while True:
    time.sleep(600)
"""
# One runs as root, one as our services do: in a user namespace of its own, which belongs to root.
NEIGHBOURS = {"neighbour": "", "confined-neighbour": "-p DynamicUser=yes -p PrivateUsers=yes"}


@dataclass(frozen=True)
class Unit:
    """name: may have a `*` for PostgreSQL's version. may: attempts that may succeed. user: if the unit does not set it."""

    name: str
    may: tuple[str, ...] = ()
    user: str = ""


# What every local user may do: see that processes exist, and connect to sockets that are open to all.
ANYBODY = ("existence of *", "ownership of *", "socket /run/systemd/*", "socket /run/dbus/*", "socket @neighbour")
# Where Caddy passes requests on, with the addresses of the clients: for Caddy and what it passes them to.
PASSED_ON = ("socket /run/matrix-synapse/*", "socket /run/sliding-sync/*")
# Every service that we run; add a new one here.
UNITS = (
    Unit("coturn.service", ("read /etc/turnserver.conf", "read /var/lib/caddy/.local/share/caddy/certificates")),
    Unit("caddy.service", (*ANYBODY, *PASSED_ON, "read /etc/caddy/Caddyfile", "read /var/lib/caddy/*")),
    Unit(
        "matrix-synapse.service",
        (*ANYBODY, *PASSED_ON, "read /etc/matrix-synapse/*", "read /var/lib/matrix-synapse/*"),
    ),
    # systemd reads its secrets for it.
    Unit("sliding-sync.service", (*ANYBODY, *PASSED_ON)),
    Unit("sydent.service", (*ANYBODY, "read /etc/sydent/*", "read /var/lib/sydent/*")),
    # Debian's own unit: its user is its only confinement.
    Unit(
        "postgresql@*-main.service",
        (*ANYBODY, "processes in /proc", "read /var/lib/postgresql/*"),
        user="postgres",
    ),
)
SECRETS = (
    "/etc/shadow",
    "/etc/ssh/ssh_host_*_key",
    "/root",
    "/etc/turnserver.conf",
    "/etc/caddy/Caddyfile",
    "/var/lib/caddy/.local/share/caddy/certificates",
    "/etc/matrix-synapse/homeserver.yaml",
    "/etc/matrix-synapse/secrets",
    "/var/lib/matrix-synapse/signing.key",
    "/etc/sydent/sydent.conf",
    "/var/lib/sydent/sydent.db",
    "/etc/sliding-sync/*",
    "/var/lib/postgresql/*/main",
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
    SYNAPSE_SOCKETS[0],
    SLIDING_SYNC_SOCKET,
)


@dataclass(frozen=True)
class Machine:
    """A host with the neighbour services and the intruder's program. pids: process -> PID of all that are attacked."""

    host: Host
    pids: dict[str, int]

    def write_targets(self, unit: str = "") -> None:
        """Write down what an intruder in this unit tries to reach."""
        targets = {
            "processes": {name: pid for name, pid in self.pids.items() if name != unit},
            "signalled": [self.pids[name] for name in NEIGHBOURS],
            "readable": self.host.run(f"ls -d {' '.join(SECRETS)}").stdout.split(),
            "writable": WRITABLE,
            "sockets": SOCKETS,
        }
        self.host.run(f"cat > {TARGETS}; rm -f {self.signal_files}", stdin=json.dumps(targets))

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


def real_name(host: Host, unit: Unit) -> str:
    return host.run(f"systemctl list-units --plain --no-legend '{unit.name}'").stdout.split()[0]


@pytest.fixture(scope="module")
def machine(deployed: Deployed) -> Iterator[Machine]:
    host = deployed.host
    host.put(INTRUDER, PROGRAM)
    for name, options in NEIGHBOURS.items():
        properties = f"--unit={name} -p RuntimeDirectory={name} {options}"
        host.run(f"systemd-run --quiet --collect {properties} python3 -Ic '{NEIGHBOUR}'")
        host.run(f"until [ -e /run/{name}/ready ]; do sleep 0.05; done")
    pids = {"PID 1": 1, **{name: main_pid(host, name) for name in NEIGHBOURS}}
    yield Machine(host, pids)
    host.run(f"systemctl stop {' '.join(NEIGHBOURS)}; rm -f {PROGRAM} {TARGETS}")
    host.run(f"rm -f {' '.join(f'/dev/shm/{name}' for name in NEIGHBOURS)}")  # noqa: S108
    # The restarts of PostgreSQL closed their database connections; one request would fail for each.
    host.run("systemctl restart matrix-synapse sliding-sync", timeout=180)
    host.run(f"until {SLIDING_SYNC.units[0].health}; do sleep 0.1; done", timeout=120)


@pytest.fixture
def running(machine: Machine) -> Machine:
    """The machine, with the current PIDs of our own services as targets."""
    host = machine.host
    pids = {name: main_pid(host, name) for name in (real_name(host, unit) for unit in UNITS)}
    assert all(pids.values()), pids
    return Machine(host, {**machine.pids, **pids})


def run_inside(host: Host, unit: Unit, name: str) -> str:
    """Run the intruder once in place of the unit's own program. Afterwards the unit runs as before."""
    directory = f"/run/systemd/system/{name}.d"
    started = host.run(f"systemctl show --value -p ExecStart {name}").stdout
    # The wrapper that drops rights before it executes the program.
    wrapper = re.search(r"argv\[\]=(\S+/run-alone) ", started)
    drop_in = [
        "[Service]",
        "Type=oneshot",
        "Restart=no",
        "PIDFile=",
        f"User={unit.user}" if unit.user else "",
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
        host.run(f"systemctl reset-failed {name}; systemctl restart {name}", timeout=120)


def kinds(names: set[str]) -> set[str]:
    """The attempts without the process or path that each is about."""
    return {re.sub(r"<.*>|(?<= of ).*|(?<= to ).*", "", name) for name in names}


def test_unconfined_root_reaches_everything_that_is_tried(running: Machine) -> None:
    """So that the attempts below fail because of the confinement, and not because they never work."""
    running.write_targets()
    tried = set(running.host.run(f"python3 -IB {PROGRAM} {TARGETS} --all").stdout.splitlines())
    tried |= {f"signal to {name}" for name in NEIGHBOURS}
    reached = running.reached(running.host.run(f"systemd-run -q --pipe --wait python3 -IB {PROGRAM} {TARGETS}").stdout)
    # Each kind for at least one process: root on the testbed's hosts lacks a few rights over some.
    assert len(tried) > 100
    assert kinds(reached) == kinds(tried)
    assert {name for name in tried if name.startswith(("read", "write", "socket", "signal"))} <= reached


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name.partition(".")[0].partition("@")[0])
def test_a_service_that_was_taken_over_reaches_no_other(running: Machine, unit: Unit) -> None:
    name = real_name(running.host, unit)
    running.write_targets(name)
    reached = running.reached(run_inside(running.host, unit, name))
    assert reached, "it does not even reach its own files"
    wrong = sorted(each for each in reached if not any(fnmatch(each, allowed) for allowed in unit.may))
    assert not wrong, f"{name} can reach: {wrong}"
