"""`python -m tests.faults [--release NAME] [--only PART...]`: break a throw-away homeserver, and write docs/reliability.md.

A fault begins while clients write. It counts from then on (or from the moment when its cause is gone, such as a full disk) until
messages are accepted again, and nobody does anything meanwhile. The exit status is 1 if a bound is missed or a message lost.
"""

import argparse
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.trial import every_role
from roles import ROLES
from tests.conftest import real_proxy, real_rtc
from tests.deployment import AVAILABLE, EVERYTHING, ROOT, Deployment, Run
from tests.e2e.client import Account, Outside, new_user, new_user_of_mas
from tests.e2e.load import room_of
from tests.faults.report import RELEASES, written
from tests.faults.writers import Writers
from tests.security.report import this_version
from tests.standin.archives import mas_archive
from tests.testbed import Host, Testbed

PLAYED = ("postgres", "synapse", "caddy", "sydent", "coturn")
# Seconds within which a daemon, and a machine, must serve again.
DAEMON, MACHINE = 10.0, 60.0
KILLED = "{} is killed (kill -9)"
PARTS = ("daemons", "machine", "names", "disks", "memory", "others", "accounts", "deploys")
RESULTS = ROOT / ".cache" / "faults.json"
REPORT = ROOT / "docs" / "reliability.md"
# When it begins: something may be committed meanwhile.
VERSION = this_version()
# Roles whose program is a stand-in, unless a variable names the real one (CONTRIBUTING.md). The stand-in for MAS has accounts
# without their passwords, so it is used in any case.
STAND_IN = "a stand-in for the program"
REAL = {"sliding_sync": lambda: bool(real_proxy()), "rtc": real_rtc}


@dataclass(frozen=True)
class Result:
    """What a fault did. seconds: until messages were accepted again; None: that is not measured. failed: why it is no success."""

    fault: str
    release: str
    seconds: float | None = None
    bound: float | None = None
    accepted: int = 0
    lost: int = 0
    remark: str = ""
    failed: str = ""
    date: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%d}")
    version: str = VERSION

    @property
    def wrong(self) -> bool:
        late = self.seconds is not None and self.bound is not None and self.seconds > self.bound
        return bool(self.failed or self.lost or late)


@dataclass
class Homeserver:
    """The machine that is broken."""

    host: Host
    deployment: Deployment
    outside: Outside
    writers: Callable[[], Writers]
    results: list[Result] = field(default_factory=list)

    def broken(
        self,
        fault: str,
        action: Callable[[], object],
        bound: float = DAEMON,
        *,
        remark: str = "",
        healthy: tuple[str, ...] = (),
    ) -> None:
        """Do it while clients write. action: may return the moment from which it counts. healthy: units that must be, too."""
        print(f"--> {self.host.release}: {fault}", flush=True)
        seconds, failed, lost, accepted = None, "", 0, 0
        try:
            with self.writers() as writers:
                begin = time.monotonic()
                moment = action()
                since = moment if isinstance(moment, float) else begin
                seconds = writers.serves_again(since, max(120, 3 * bound))
                for unit in healthy:
                    seconds = max(seconds, self.healthy(unit) - since)
            accepted, lost = len(writers.accepted), writers.lost()
            if units := self.host.run("systemctl --failed --plain --no-legend").stdout.split():
                failed = f"{units[0]} has failed"
        except Exception as error:
            traceback.print_exc()
            failed = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        result = Result(fault, self.host.release, seconds, bound, accepted, lost, remark, failed)
        print(f"    {result}", flush=True)
        self.results.append(result)

    def healthy(self, name: str) -> float:
        """Wait until a unit works; the moment since when."""
        [unit] = [unit for role in ROLES.values() for unit in role.units if unit.name == f"{name}.service"]
        self.host.run(f"until ( {unit.health or f'systemctl is-active -q {name}'} ); do sleep 0.1; done", timeout=120)
        return time.monotonic()


# --- faults ---------------------------------------------------------------------------------------


def daemons(server: Homeserver) -> None:
    """Each is killed, as a bug or the kernel would do it."""
    host = server.host
    for title, unit in (("Synapse", "matrix-synapse"), ("Caddy", "caddy"), ("Sydent", "sydent"), ("coturn", "coturn")):
        kill = f"systemctl kill -s KILL {unit}"
        server.broken(f"{title} is killed (kill -9)", partial(host.run, kill), healthy=(unit,))
    server.broken("the journal's daemon is killed", partial(host.run, "systemctl kill -s KILL systemd-journald"))
    main = "kill -9 $(head -1 /var/lib/postgresql/*/main/postmaster.pid)"
    server.broken("PostgreSQL's main process is killed", lambda: host.run(main))
    server.broken("all of PostgreSQL is killed", lambda: host.run("kill -9 $(pgrep -u postgres)"))


def machine(server: Homeserver) -> None:
    host = server.host

    def killed() -> float:
        host.kill()
        begin = time.monotonic()
        host.start()
        return begin

    server.broken(
        "all processes of the machine are killed at once", killed, MACHINE, remark="counted from when it boots again"
    )
    server.broken("the machine is rebooted", host.reboot, MACHINE)


NAMELESS = """\
[Unit]
Before=network-pre.target
DefaultDependencies=no

[Service]
Type=oneshot
ExecStart=/usr/sbin/nft -f /etc/faults.nft

[Install]
WantedBy=sysinit.target
"""


def blocked(rules: str) -> str:
    """A table of nftables with these rules for what leaves the machine."""
    return f"table inet faults {{ chain output {{ type filter hook output priority 0; {rules}; }}; }}\n"


def names(server: Homeserver) -> None:
    """No name server answers while it boots, nor later; it is deployed to then."""
    host, results = server.host, server.results
    # For the boot itself: nftables loads it before the network is there.
    host.run("cat >/etc/faults.nft", stdin=blocked("udp dport 53 drop; tcp dport 53 drop"))
    host.run("cat >/etc/systemd/system/faults.service", stdin=NAMELESS)
    host.run("systemctl enable --quiet faults")
    server.broken("no name server answers when the machine boots, and later", host.reboot, MACHINE)
    run = server.deployment.run("-y", check=False)
    failed = "" if run.status == 0 and run.changed == [] else run.refusal or f"it changed {run.changed}"
    remark = "a run without changes succeeds"
    results.append(Result("a deploy while no name server answers", host.release, remark=remark, failed=failed))
    host.run("systemctl disable --quiet faults; rm /etc/systemd/system/faults.service; nft delete table inet faults")


@contextmanager
def small_disk(host: Host, path: str, units: str, free: str) -> Iterator[None]:
    """A disk of its own for a directory, with so much space left."""
    host.run(
        f"systemctl stop {units}; size=$(du -sm {path} | cut -f 1); mv {path} {path}.kept && mkdir {path} && "
        f"mount -t tmpfs -o size=$((size + {free}))m,mode=$(stat -c %a {path}.kept) tmpfs {path} && "
        f"cp -a {path}.kept/. {path}/ && chown --reference={path}.kept {path}; systemctl start {units}",
        timeout=120,
    )
    try:
        yield
    finally:
        host.run(
            f"systemctl stop {units}; rm -rf {path}.kept; mkdir {path}.kept; cp -a {path}/. {path}.kept/; "
            f"chmod --reference={path} {path}.kept; chown --reference={path} {path}.kept; "
            f"umount {path} && rmdir {path} && mv {path}.kept {path}; systemctl start {units}",
            timeout=120,
        )


@contextmanager
def small_disk_of_the_journal(host: Host, free: int) -> Iterator[None]:
    """The same. Its daemon is not stopped: what services write into would be closed with it."""
    path, restart = "/var/log/journal", "systemctl restart systemd-journald"
    host.run(
        f"cp -a {path} /root/journal; mount -t tmpfs -o size=$(( $(du -sm {path} | cut -f 1) + {free} ))m tmpfs {path}; "
        f"cp -a /root/journal/. {path}/; rm -r /root/journal; {restart}",
        timeout=120,
    )
    try:
        yield
    finally:
        host.run(f"umount -l {path}; {restart}")


def disks(server: Homeserver) -> None:
    """Each is full for 20 seconds."""
    host = server.host

    def full(path: str) -> float:
        host.run(f"dd if=/dev/zero of={path}/filler bs=1M status=none; sync", check=False)
        time.sleep(20)
        host.run(f"rm {path}/filler")
        return time.monotonic()

    remark = "counted from when it has space again"
    version = host.run("ls /var/lib/postgresql").stdout.split()[0]
    places = {
        "database": ("/var/lib/postgresql", f"postgresql@{version}-main matrix-synapse", "40"),
        "media": ("/var/lib/matrix-synapse/media", "matrix-synapse", "10"),
    }
    for title, (path, units, free) in places.items():
        with small_disk(host, path, units, free):
            server.healthy("matrix-synapse")
            server.broken(f"the disk of the {title} is full", partial(full, path), remark=remark)
    server.healthy("matrix-synapse")
    with small_disk_of_the_journal(host, 30):
        server.broken("the disk of the journal is full", partial(full, "/var/log/journal"), remark=remark)


# Where control groups limit memory, on a computer with those of version 1 as well.
GROUPS = Path("/sys/fs/cgroup/memory")


def memory(server: Homeserver) -> None:
    """A program of another user's takes all that there is."""
    host, group = server.host, GROUPS / "matrix-metal-faults"
    if not GROUPS.is_dir():
        print("    memory cannot be limited here: there are no control groups of version 1")
        return
    group.mkdir(exist_ok=True)
    (group / "memory.limit_in_bytes").write_text(str(2**30))
    host.stop()
    # The machine is in the group of what starts it.
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        host.start()
    finally:
        (GROUPS / "cgroup.procs").write_text(str(os.getpid()))
    server.healthy("matrix-synapse")
    hog = "import time; kept = [bytearray(2**24) for _ in range(99)]; time.sleep(60)"

    def starved() -> float:
        host.run(
            f"systemd-run --quiet --collect --unit=hog -p User=nobody python3 -c '{hog}'; "
            "timeout 50 sh -c 'while systemctl is-active -q hog; do sleep 0.1; done'",
            check=False,
        )
        return time.monotonic()

    remark = "counted from when the kernel has killed it"
    server.broken("a program takes all memory of a machine with 1 GiB", starved, remark=remark)
    host.reboot()
    host.stop()
    group.rmdir()
    host.start()
    server.healthy("matrix-synapse")


def others(server: Homeserver) -> None:
    """The daemons of the roles that come on top, which are deployed now. Messages go on meanwhile."""
    host, deployment = server.host, server.deployment
    wanted = [*EVERYTHING, "bans", "ntfy"]
    played = [role for role in wanted if role in AVAILABLE[host.release]]
    for role in (ROLES[name] for name in wanted if name not in played):
        remark = f"Debian {RELEASES[host.release]} does not have {role.title}"
        server.results.append(Result(KILLED.format(role.title), host.release, remark=remark))
    with every_role(host) as everything:
        deployment.choose(**everything.settings)
        deployment.assign({role: [host.name] for role in played})
        deployment.run("-y")
        for role in (ROLES[name] for name in played if name not in PLAYED):
            remark = STAND_IN if role.name in REAL and not REAL[role.name]() else ""
            for unit in role.units:
                name, title = unit.name.removesuffix(".service"), unit.title or role.title
                kill = partial(host.run, f"systemctl kill -s KILL {name}")
                server.broken(KILLED.format(title), kill, remark=remark, healthy=(name,))


def accounts(release: str, results: list[Result]) -> None:
    """What Synapse asks about the tokens of clients is killed, on a machine that has it from the beginning."""
    host = Testbed().up("faults-mas", release=release)
    try:
        with TemporaryDirectory(prefix="faults-") as directory:
            deployment = deployment_on(host, Path(directory), "mas")
            deployment.choose(**deployment.settings, mas_archive=str(mas_archive(Path(directory))))
            deployment.run("-y")
            server = with_writers(deployment, host, new_user_of_mas, results)
            kill = partial(host.run, "systemctl kill -s KILL mas")
            server.broken(KILLED.format(ROLES["mas"].title), kill, remark=STAND_IN, healthy=("mas",))
    finally:
        host.down()


# What goes away in the middle of a first deploy: the operation that has begun, what happens on the machine then, the rules.
MIDWAY = {
    "no name server answers from the first operation of a first deploy on": (
        "Starting operation",
        "true",
        "udp dport 53 drop; tcp dport 53 drop",
    ),
    "the package mirror goes away while a first deploy downloads": (
        "Install the Debian packages",
        "ls /var/cache/apt/archives/partial/*.deb >/dev/null 2>&1",
        "tcp dport { 80, 443 } reject with tcp reset",
    ),
}


def deploys(release: str, results: list[Result]) -> None:
    """First deploys to a new machine: what they need is away, somebody else begins one, they are cut."""
    host = Testbed().up("faults-new", release=release)
    print(f"--> {release}: deploys", flush=True)
    try:
        with TemporaryDirectory(prefix="faults-") as directory:
            deployment = deployment_on(host, Path(directory))
            host.run("apt-get update -qq; apt-get install -qq -y nftables", timeout=300)
            host.run("nft -f -", stdin=blocked("tcp dport { 80, 443 } reject"))
            away = deployment.run("-y", check=False)
            host.run("nft delete table inet faults")
            results.append(ended("the package mirror is away from the beginning of a first deploy", release, away))
            results += [
                ended(fault, release, cut_off(deployment, host, *how), "the next run goes on")
                for fault, how in MIDWAY.items()
            ]
            results.append(second_administrator(deployment, host))
            cuts, operation = 0, 10
            while cut_at(deployment, operation):
                cuts, operation = cuts + 1, operation + 10
            again = deployment.run("-y", check=False)
            status, output = deployment.verify()
            failed = "" if again.status == 0 and status == 0 else (again.refusal or output)[-200:]
            results.append(
                Result(
                    "the connection of a first deploy ends at every tenth operation",
                    release,
                    remark=f"{cuts} cuts; the next run goes on each time, the verification finds nothing wrong",
                    failed=failed,
                )
            )
    finally:
        host.down()


def ended(fault: str, release: str, run: Run, more: str = "") -> Result:
    """A run has to fail, and to say why."""
    said = run.refusal.splitlines()[-1].partition(": http")[0] if run.refusal else ""
    remark = "; ".join(filter(None, (f"the run says: {said}", more)))
    result = Result(fault, release, remark=remark, failed="" if run.status == 1 and said else "no reason")
    print(f"    {result}", flush=True)
    return result


def cut_off(deployment: Deployment, host: Host, line: str, until: str, rules: str) -> Run:
    """Let some packets out no more once a run has written the line, and a command succeeds on the machine."""
    process, output = deployment.start("-y"), ""
    assert process.stdout
    for each in process.stdout:
        output += each
        if line in each:
            break
    host.run(f"until {until}; do sleep 0.05; done", timeout=120)
    host.run("nft -f -", stdin=blocked(rules))
    try:
        output += process.communicate(timeout=900)[0]
    finally:
        process.kill()
        host.run("nft delete table inet faults")
    return Run(process.returncode, output, {})


def second_administrator(deployment: Deployment, host: Host) -> Result:
    """With the same vault, at another computer, while the first is at work."""
    first = deployment.start("-y")
    with TemporaryDirectory(prefix="faults-") as directory:
        elsewhere = Path(shutil.copytree(deployment.directory, Path(directory) / "elsewhere"))
        other = Deployment(elsewhere, [host], deployment.settings, roles={role: [host.name] for role in PLAYED})
        host.run("until [ -e /run/matrix-metal/run ] && ! flock -n -s /run/matrix-metal/run true; do sleep 0.05; done")
        second = other.run("-y", check=False)
    first.kill()
    first.communicate()
    told = "another run is at work: " in second.refusal and ", since " in second.refusal
    remark = "the second run says who is at work, and since when; nothing was touched"
    failed = "" if second.status == 1 and told else second.refusal[-200:] or "it is not refused"
    return Result("a second administrator deploys at the same time", host.release, remark=remark, failed=failed)


def cut_at(deployment: Deployment, number: int) -> bool:
    """Kill a run when it begins its operation of this number. Whether it came so far."""
    process = deployment.start("-y")
    seen = 0
    assert process.stdout
    for line in process.stdout:
        seen += "Starting operation" in line
        if seen == number:
            process.kill()
            process.wait()
            return True
    process.wait()
    return False


# --- all of them ----------------------------------------------------------------------------------


def deployment_on(host: Host, directory: Path, *more: str) -> Deployment:
    settings = {
        "server_name": host.domain,
        "tls": "internal",
        "admin_email": f"admin@{host.domain}",
        "private_networks": [str(host.bed.network.subnet), str(host.bed.network.subnet6)],
    }
    return Deployment(directory, [host], settings, roles={role: [host.name] for role in (*PLAYED, *more)})


def with_writers(
    deployment: Deployment, host: Host, account_of: Callable[[Outside, str], Account], results: list[Result]
) -> Homeserver:
    """The deployed homeserver, and clients that write. account_of: makes their account, whose name begins so."""
    outside = Outside(host, deployment.directory)
    account = account_of(outside, "anna")
    room = room_of(host, outside, account)
    host.run("systemctl restart matrix-synapse")
    server = Homeserver(host, deployment, outside, lambda: Writers(outside, account, room), results)
    server.healthy("matrix-synapse")
    return server


def run(release: str, parts: Collection[str]) -> list[Result]:
    results: list[Result] = []
    if {*parts} - {accounts.__name__, deploys.__name__}:
        broken_while_it_runs(release, parts, results)
    for part in (accounts, deploys):
        if part.__name__ in parts:
            part(release, results)
    return results


def broken_while_it_runs(release: str, parts: Collection[str], results: list[Result]) -> None:
    host = Testbed().up("faults", release=release)
    try:
        with TemporaryDirectory(prefix="faults-") as directory:
            deployment = deployment_on(host, Path(directory))
            deployment.run("-y")
            server = with_writers(deployment, host, new_user, results)
            for part in (daemons, machine, names, disks, memory):
                if part.__name__ in parts:
                    part(server)
            again = deployment.run("-y", check=False)
            if again.changed or again.status:
                changed = f"a deploy changed {again.changed}"
                results.append(Result("after all of that", release, failed=again.refusal or changed))
            if others.__name__ in parts:
                others(server)
    finally:
        host.down()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Break a throw-away homeserver.")
    parser.add_argument("--release", choices=("trixie", "bookworm"), help="only on this Debian (default: both)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="only these")
    options = parser.parse_args()
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for release in [options.release] if options.release else ("trixie", "bookworm"):
        for result in run(release, options.only):
            known[f"{release} {result.fault}"] = {**asdict(result), "wrong": result.wrong}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(known, indent=1))
    REPORT.write_text(written(list(known.values())))
    wrong = [each for each in known.values() if each["wrong"]]
    for each in wrong:
        print(f"wrong: {each['fault']} ({each['release']}): {each['failed'] or each['seconds']}", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
