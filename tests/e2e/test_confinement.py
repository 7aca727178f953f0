"""Whoever takes over one service gets at no other: tried from inside every unit, with its rights and its view of things."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

from roles import SLIDING_SYNC
from tests.conftest import Deployed
from tests.testbed import Host

INTRUDER = Path(__file__).with_name("intruder.py")
PROGRAM, ORDERS = "/usr/local/lib/intruder.py", "/usr/local/lib/intruder.json"
# It says when a signal arrives, and has a terminal, a socket and a file in shared memory.
NEIGHBOUR = """
import os, signal, socket, time
place = os.environ["RUNTIME_DIRECTORY"]
name = os.path.basename(place)
def hear(*_):
    os.close(os.open(place + "/heard", os.O_CREAT))
signal.signal(signal.SIGUSR1, hear)
os.open("/dev/shm/" + name, os.O_CREAT, 0o600)
link = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
link.bind("\\0" + name)
terminal = os.openpty()
open(place + "/ready", "w")
while True:
    time.sleep(600)
"""
# One is root's; one as our services are: in a user namespace of its own, which belongs to root.
NEIGHBOURS = {"neighbour": "", "confined-neighbour": "-p DynamicUser=yes -p PrivateUsers=yes"}


@dataclass(frozen=True)
class Unit:
    """name: may have a `*`, for PostgreSQL's version. may: what it gets at. user: who, if systemd leaves that to it."""

    name: str
    may: tuple[str, ...] = ()
    user: str = ""


# Users see that there are others, and talk to who listens to everybody.
ANYBODY = ("sight of *", "ownership of *", "socket *")
# Every service that we run; a new one belongs here.
UNITS = (
    Unit("coturn.service", ("read /etc/turnserver.conf", "read /var/lib/caddy/.local/share/caddy/certificates")),
    Unit("caddy.service", (*ANYBODY, "read /etc/caddy/Caddyfile", "read /var/lib/caddy/*")),
    Unit("matrix-synapse.service", (*ANYBODY, "read /etc/matrix-synapse/*", "read /var/lib/matrix-synapse/*")),
    # systemd reads its secrets for it.
    Unit("sliding-sync.service", ANYBODY),
    Unit("sydent.service", (*ANYBODY, "read /etc/sydent/*", "read /var/lib/sydent/*")),
    # Debian's own unit: it is not confined, but for its user.
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
SOCKETS = ("/run/systemd/notify", "/run/systemd/private", "/run/dbus/system_bus_socket", "\0neighbour")


@dataclass(frozen=True)
class Machine:
    """A host with neighbours, and the intruder's program. pids: of all that is there to be attacked."""

    host: Host
    pids: dict[str, int]

    def order(self, unit: str = "") -> None:
        """What to try, for somebody inside a unit."""
        orders = {
            "processes": {name: pid for name, pid in self.pids.items() if name != unit},
            "signalled": [self.pids[name] for name in NEIGHBOURS],
            "readable": self.host.run(f"ls -d {' '.join(SECRETS)}").stdout.split(),
            "writable": WRITABLE,
            "sockets": SOCKETS,
        }
        self.host.run(f"cat > {ORDERS}; rm -f {self.heard}", stdin=json.dumps(orders))

    @property
    def heard(self) -> str:
        return " ".join(f"/run/{name}/heard" for name in NEIGHBOURS)

    def reached(self, said: str) -> set[str]:
        """What the intruder says that it got at, and whom its signals reached."""
        reached = set(re.findall("^reached: (.*)$", said, re.MULTILINE))
        assert "the end" in reached, f"not everything was tried: {said}"
        heard = self.host.run(f"ls {self.heard} 2>/dev/null || true").stdout.split()
        return reached - {"the end"} | {f"signal to {Path(place).parent.name}" for place in heard}


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
    host.run(f"systemctl stop {' '.join(NEIGHBOURS)}; rm -f {PROGRAM} {ORDERS}")
    host.run(f"rm -f {' '.join(f'/dev/shm/{name}' for name in NEIGHBOURS)}")  # noqa: S108
    # They have lost their connections to the database, and would notice by a request that fails for each.
    host.run("systemctl restart matrix-synapse sliding-sync", timeout=180)
    host.run(f"until {SLIDING_SYNC.units[0].health}; do sleep 0.1; done", timeout=120)


@pytest.fixture
def running(machine: Machine) -> Machine:
    """With the processes of our own services, as they are now."""
    host = machine.host
    pids = {name: main_pid(host, name) for name in (real_name(host, unit) for unit in UNITS)}
    assert all(pids.values()), pids
    return Machine(host, {**machine.pids, **pids})


def inside(host: Host, unit: Unit, name: str) -> str:
    """Run the intruder as the unit's own program, once. Afterwards the unit runs as before."""
    place = f"/run/systemd/system/{name}.d"
    started = host.run(f"systemctl show --value -p ExecStart {name}").stdout
    # What takes rights away before it becomes the program.
    before = re.search(r"argv\[\]=(\S+/run-alone) ", started)
    drop_in = [
        "[Service]",
        "Type=oneshot",
        "Restart=no",
        "PIDFile=",
        f"User={unit.user}" if unit.user else "",
        "ExecStart=",
        f"ExecStart={before[1] if before else ''} /usr/bin/python3 -IB {PROGRAM} {ORDERS}",
        "ExecStartPost=",
        "ExecStop=",
    ]
    host.run(f"mkdir -p {place}; cat > {place}/zz-intruder.conf", stdin="\n".join(drop_in) + "\n")
    try:
        host.run(f"systemctl daemon-reload; systemctl reset-failed {name}; systemctl restart {name}")
        call = host.run(f"systemctl show --value -p InvocationID {name}").stdout.strip()
        return host.run(f"journalctl --sync; journalctl -q -o cat _SYSTEMD_INVOCATION_ID={call}").stdout
    finally:
        host.run(f"rm {place}/zz-intruder.conf; rmdir {place} || true; systemctl daemon-reload")
        host.run(f"systemctl reset-failed {name}; systemctl restart {name}", timeout=120)


def kinds(names: set[str]) -> set[str]:
    """Without saying of which process."""
    return {re.sub(r"<.*>|(?<= of ).*|(?<= to ).*", "", name) for name in names}


def test_the_intruder_knows_how(running: Machine) -> None:
    """Root, who is not confined, gets at everything that is tried; else that others do not would say nothing."""
    running.order()
    tried = set(running.host.run(f"python3 -IB {PROGRAM} {ORDERS} --all").stdout.splitlines())
    tried |= {f"signal to {name}" for name in NEIGHBOURS}
    reached = running.reached(running.host.run(f"systemd-run -q --pipe --wait python3 -IB {PROGRAM} {ORDERS}").stdout)
    # Somebody's, for each: the hosts of the testbed lack a few of root's rights over others.
    assert len(tried) > 100
    assert kinds(reached) == kinds(tried)
    assert {name for name in tried if name.startswith(("read", "write", "socket", "signal"))} <= reached


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name.partition(".")[0].partition("@")[0])
def test_nobody_else_is_reached(running: Machine, unit: Unit) -> None:
    name = real_name(running.host, unit)
    running.order(name)
    reached = running.reached(inside(running.host, unit, name))
    assert reached, "it reaches not even what is its own"
    wrong = sorted(each for each in reached if not any(fnmatch(each, allowed) for allowed in unit.may))
    assert not wrong, f"from inside {name}: {wrong}"
