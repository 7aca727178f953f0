"""`python -m tests.security [--release NAME] [--only PART...]`: measure complete deployments, and write docs/security.md.

Each Debian release has one host with everything. From a second host it is scanned, held up by slow clients, and its TLS judged.
The exit status is 1 if a figure is not what the page promises.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from operations.filters import FIREWALL, PORTS, RELAY
from operations.ports import UNIT as RESERVED_PORTS
from roles import (
    BACKUP,
    HELPER_EXPOSURE,
    MAS,
    RELAY_TLS_PORT,
    ROLES,
    SYNAPSE,
    Role,
)
from tests.conftest import complete, released
from tests.deployment import AVAILABLE, EVERYTHING, ROOT, Deployment
from tests.e2e import scan
from tests.e2e.client import Account, Outside, new_user
from tests.e2e.load import room_of
from tests.e2e.test_confinement import (
    ANYBODY,
    JOBS,
    LOADERS,
    PRESENTERS,
    PROGRAM,
    SERVICES,
    TARGETS,
    Machine,
    Service,
    neighbours,
    reached_from,
    real_name,
    with_services,
)
from tests.security import slow
from tests.security.report import written
from tests.standin.release_server import ReleaseServer
from tests.testbed import Host, Testbed
from tests.testbed.acme import Acme, Authority

RESULTS = ROOT / ".cache" / "security.json"
REPORT = ROOT / "docs" / "security.md"
TRUSTED_ROOT = "/etc/ssl/private-acme.pem"
# Of normal users, while slow clients hold connections; the seconds within which each must be answered, and how many must be.
REQUESTS, WITHIN, SHARE = 200, 5.0, 0.9
# For how long the slow clients try to hold theirs.
HELD = 55
TESTSSL = "testssl.sh openssl bsdmainutils dnsutils procps python3"


@dataclass
class Target:
    """The machine that is measured, and the host from which that is done. found: the figures, by their part."""

    host: Host
    other: Host
    deployment: Deployment
    directory: Path
    found: dict[str, Any]

    def __post_init__(self) -> None:
        self.outside = Outside(self.host, self.directory)

    def say(self, text: str) -> None:
        print(f"--> {self.host.release}: {text}", flush=True)


# --- units ----------------------------------------------------------------------------------------


def scores(target: Target) -> None:
    """What `systemd-analyze security` says of each unit that a record has, and the bound in the record."""
    target.say("scores of the units")
    bounds: dict[str, float] = {}
    for role in AVAILABLE[target.host.release].values():
        bounds |= {unit.name.format(version="*"): unit.exposure for unit in role.units}
        bounds |= {timer.service: timer.exposure for timer in role.timers}
    # What keeps ports: tests/e2e/test_confinement.py, test_firewall.py.
    bounds |= dict.fromkeys([RESERVED_PORTS, *(each.unit for each in (PORTS, RELAY, FIREWALL))], 1.5)
    # The one that there is with certificates by ACME, and what writes the backup's mails.
    bounds["coturn-certificate.service"] = HELPER_EXPOSURE
    bounds[BACKUP.helpers[0].replace("@", "@files")] = HELPER_EXPOSURE
    found = {}
    for pattern, bound in bounds.items():
        # Services of timers do not run: they are not listed.
        name = real_name(target.host, Service(pattern, ())) if "*" in pattern else pattern
        said = target.host.run(f"systemd-analyze security --no-pager {name}").stdout
        level = re.search(r"exposure level for .*: ([0-9.]+)", said)
        assert level, f"systemd-analyze says nothing about {name}: {said}"
        found[name.removesuffix(".service")] = {"score": float(level[1]), "bound": bound}
    target.found["scores"] = found


def probes(target: Target) -> None:
    """What the intruder tries inside each unit, and as a user of the machine that is no service."""
    found = target.found["probes"] = {}
    with neighbours(target.host) as pids:
        machine = with_services(Machine(target.host, pids))
        for unit in [*JOBS, *LOADERS, *PRESENTERS, *SERVICES]:
            _probe(target, machine, unit)
        machine = with_services(machine)
        machine.write_targets()
        ran = target.host.run(f"runuser -u nobody -- python3 -IB {PROGRAM} {TARGETS}").stdout
        found["nobody"] = _counted(machine.tried(), machine.reached(ran), Service("nobody", ANYBODY_MAY))
    target.host.run("systemctl restart matrix-synapse sliding-sync", timeout=180)


# A user that is no service sees the list of processes, may ask the kernel for what it tells everybody, and may make user
# namespaces, as on every Debian.
ANYBODY_MAY = (*ANYBODY, "processes in /proc", "new user namespace")


def probes_of_others(target: Target) -> None:
    """The same inside the units of the roles that were added."""
    roles = tuple(AVAILABLE[target.host.release].values())
    with neighbours(target.host) as pids:
        machine = replace(with_services(Machine(target.host, pids)), roles=roles)
        added = [(role, unit) for role in roles if role.name not in EVERYTHING for unit in role.units]
        for role, unit in added:
            _probe(target, machine, Service.of(role, unit))
            target.host.run(f"until ( {unit.health} ); do sleep 0.1; done", timeout=120)


def _probe(target: Target, machine: Machine, unit: Service) -> None:
    name = real_name(target.host, unit)
    target.say(f"probes inside {name}")
    reached = reached_from(machine, unit)
    target.found.setdefault("probes", {})[name.removesuffix(".service")] = _counted(machine.tried(), reached, unit)


def _counted(tried: set[str], reached: set[str], unit: Service) -> dict[str, Any]:
    """own: what it reached and may."""
    wrong = sorted(each for each in reached if not unit.allows(each))
    return {
        "tried": len(tried | reached),
        "refused": len(tried - reached),
        "own": len(reached) - len(wrong),
        "wrong": wrong,
    }


# --- ports ----------------------------------------------------------------------------------------


def documented(target: Target, roles: Collection[Role]) -> dict[str, list[int]]:
    """The ports that the README's table has for these roles and settings, without those of single calls."""
    ports = [
        port
        for role in roles
        for port in role.listens
        if port.reach == "everybody" and (port.when is None or target.deployment.settings.get(port.when) is True)
    ]
    return {
        "tcp": sorted({22, *(port.number for port in ports if port.protocol == "tcp")}),
        "udp": sorted({port.number for port in ports if port.protocol == "udp" and port.last is None}),
    }


def ports(target: Target, *, firewall: bool) -> None:
    target.say(f"scan {'with' if firewall else 'without'} the firewall")
    host, program = target.host, "/root/scan.py"
    target.other.put(Path(scan.__file__), program)
    # The scan of a family takes as long as it takes to go through all ports.
    said = target.other.run(f"python3 {program} {host.address} {host.address6}", timeout=600).stdout
    found = json.loads(said)
    roles = [ROLES[name] for name in EVERYTHING]
    wanted = documented(target, [*roles, MAS] if firewall else roles)
    target.found.setdefault("ports", {})["with" if firewall else "without"] = {
        "IPv4": found[host.address],
        "IPv6": found[host.address6],
        "documented": wanted,
    }


# --- slow clients ---------------------------------------------------------------------------------


@contextmanager
def slow_clients(target: Target) -> Iterator[subprocess.Popen[str]]:
    """They hold connections meanwhile, and then say what became of these."""
    program = "/root/slow.py"
    target.other.put(Path(slow.__file__), program)
    command = target.other.ssh(f"timeout {HELD + 30} python3 {program} matrix.{target.host.domain} {HELD}")
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout and running.stdout.readline() == "ready\n"
        yield running


def patience(target: Target) -> None:
    target.say("slow clients")
    account = new_user(target.outside, "anna")
    room = room_of(target.host, target.outside, account)
    target.host.run(
        f"systemctl restart matrix-synapse; until {SYNAPSE.units[0].health}; do sleep 0.1; done", timeout=120
    )
    alone = normal_requests(target, account, room)
    with slow_clients(target) as running:
        count = f"ss -Htn state established sport = :443 dst {target.other.address} | wc -l"
        holding = [int(target.host.run(count).stdout)]
        besides = normal_requests(target, account, room)
        holding.append(int(target.host.run(count).stdout))
        assert running.stdout
        held = json.loads(running.stdout.read())
    target.found["slow"] = {"alone": alone, "besides": besides, "held": held, "holding": min(holding)}


def normal_requests(target: Target, account: Account, room: str) -> dict[str, float]:
    """What normal users get: how many of the requests are answered in time, and the seconds that they take."""
    base = target.outside.url("matrix", "/_matrix/client/")
    kinds: list[Callable[[httpx.Client, int], httpx.Response]] = [
        lambda http, _: http.get(f"{base}versions"),
        lambda http, _: http.get(f"{base}v3/sync?timeout=0", headers=account.authorization),
        lambda http, number: http.put(
            f"{base}v3/rooms/{room}/send/m.room.message/{time.time_ns()}-{number}",
            json={"msgtype": "m.text", "body": "It works."},
            headers=account.authorization,
        ),
    ]

    def some(first: int) -> list[float]:
        taken = []
        # Of each user, so that new connections are made as well.
        with target.outside.http() as http:
            http.timeout = httpx.Timeout(WITHIN)
            for number in range(first, REQUESTS, 10):
                begin = time.monotonic()
                try:
                    answered = kinds[number % len(kinds)](http, number).status_code == 200
                except httpx.HTTPError:
                    answered = False
                seconds = time.monotonic() - begin
                taken.append(seconds if answered and seconds <= WITHIN else float("inf"))
        return taken

    with ThreadPoolExecutor(10) as pool:
        taken = [seconds for each in pool.map(some, range(10)) for seconds in each]
    answered = [seconds for seconds in taken if seconds <= WITHIN]
    return {"answered": len(answered), "median": statistics.median(answered or [0]), "slowest": max(answered or [0])}


# --- requests that are wrong ----------------------------------------------------------------------


def requests(target: Target) -> None:
    target.say("wrong requests")
    # Here and not above: these modules are tests.
    from tests.e2e.test_bad_moments import statuses_of_long_requests
    from tests.e2e.test_messages import MAX_UPLOAD, upload
    from tests.e2e.test_outside import IDENTITY_V1, MALFORMED, OWN_PAGES, SERVICES, UNREACHABLE_PATHS, answer_to

    outside, rows = target.outside, dict[str, list[str]]()
    with outside.http() as http:
        statuses = [
            http.get(outside.url(name, path)).status_code
            for name in SERVICES
            for path in UNREACHABLE_PATHS
            if path not in OWN_PAGES.get(name, ())
        ]
        rows["paths of administration, metrics and the like, at each name, also in disguise"] = _answers(statuses)
        statuses = [
            http.post(outside.url("identity", f"/_matrix/identity/api/v1/{path}"), json={}).status_code
            for path in IDENTITY_V1
        ]
        rows["the identity server's old API, which needs no account"] = _answers(statuses)
    names = [f"other.{outside.server_name}", target.host.address, "localhost", ""]
    for tls in (True, False):
        statuses = [
            answer_to(outside, f"{method} / HTTP/1.1\r\nHost: {name}\r\n\r\n", tls=tls)
            for method in ("GET", "TRACE", "POST")
            for name in names
        ]
        rows[f"names that are not ours, {'port 443' if tls else 'port 80'}"] = _answers(statuses)
    for text, request in MALFORMED.items():
        rows[text] = _answers([answer_to(outside, request, tls=True)])
    url = outside.url("matrix", "/_matrix/client/versions")
    for length in (12_000, 100_000):
        found = statuses_of_long_requests(outside, url, length, "GET", "http1.1")
        rows[f"a URL, and a header, of {length} bytes"] = sorted(found)
    rows["a header of 17000 bytes by HTTP/2"] = sorted(statuses_of_long_requests(outside, url, 17_000, "GET", "http2"))
    account = new_user(outside, "berta")
    statuses = [
        upload(outside, account, bytes(MAX_UPLOAD + 1), http2=http2, announced=announced).status_code
        for http2 in (True, False)
        for announced in (True, False)
    ]
    rows["an upload of one byte more than allowed, its size announced or not, HTTP/1.1 and HTTP/2"] = _answers(statuses)
    target.found["requests"] = rows


def _answers(statuses: list[int]) -> list[str]:
    return sorted({str(status) if status else "000" for status in statuses})


# --- TLS ------------------------------------------------------------------------------------------


def tls(target: Target, acme: Acme) -> None:
    """What testssl.sh says of three ports, at the same time, as it mostly waits."""
    target.say("testssl")
    host, other = target.host, target.other
    other.run("cat > /root/authority.pem", stdin=acme.root("open"))
    places = {
        "clients": f"matrix.{host.domain}:443",
        "homeservers": f"{host.domain}:8448",
        "relay": f"turn.{host.domain}:{RELAY_TLS_PORT}",
    }

    def judge(name: str) -> dict[str, str]:
        report = f"/root/{name}.json"
        other.run(
            "testssl --quiet --color 0 --warnings batch --add-ca /root/authority.pem --ip one --overwrite "
            f"--jsonfile {report} {places[name]} >/root/{name}.log 2>&1",
            check=False,
            timeout=900,
        )
        entries = json.loads(other.run(f"cat {report}").stdout)
        caps = [each["finding"] for each in entries if each["id"].startswith("grade_cap_reason")]
        graded = {each["id"]: each["finding"] for each in entries}
        return {"grade": graded["overall_grade"], "score": graded["final_score"], "reason": "; ".join(caps)}

    with ThreadPoolExecutor(len(places)) as pool:
        target.found["tls"] = dict(zip(places, pool.map(judge, places), strict=True))
    target.found["testssl"] = other.run("dpkg-query -W -f '${Version}' testssl.sh").stdout


# --- all of them ----------------------------------------------------------------------------------


def extend(target: Target, acme: Acme) -> None:
    """The roles that the others do not fit beside, certificates by ACME, and port 8448."""
    target.say("deploy the other roles")
    host, deployment = target.host, target.deployment
    # With accounts of Synapse's a deploy does not add MAS.
    forget = "DELETE FROM users; DELETE FROM profiles; DELETE FROM user_directory"
    host.run("cd / && runuser -u postgres -- psql -XAtq -d synapse -f -", stdin=forget)
    host.run(f"cat >{TRUSTED_ROOT}", stdin=acme.authority.pem)
    host.run("cat >/usr/local/share/ca-certificates/acme.crt && update-ca-certificates", stdin=acme.root("open"))
    host.run("mkdir -p /mnt/backup")
    more = {
        "tls": "acme",
        "acme": {"directory": acme.directory("open"), "trusted_root": TRUSTED_ROOT},
        "federation_port_8448": True,
        "backup_target": "/mnt/backup",
        # One job of the backup writes mails.
        "smtp_host": f"mail.{host.domain}",
        "smtp_port": 25,
        "smtp_tls": "none",
    }
    deployment.choose(**{**deployment.settings, **more})
    deployment.assign({role: [host.name] for role in AVAILABLE[host.release]})
    deployment.run("-y")


def measure(
    release: str,
    acme: Acme,
    page: ReleaseServer,
    parts: Collection[str],
    known: dict[str, Any],
    save: Callable[[], object],
) -> None:
    """Put the figures of these parts where the others are known. Each is saved at once."""
    bed = acme.host.bed
    host = bed.up("security", release=release)
    try:
        with TemporaryDirectory(prefix="security-") as directory:
            deployment = complete(bed, host, Path(directory), page)
            print(f"--> {release}: deploy", flush=True)
            deployment.run("-y")
            target = Target(host, acme.host, deployment, Path(directory), known)
            # Before and after the other roles are added.
            steps: dict[str, list[Callable[[Target], None] | None]] = {
                "slow": [patience],
                "requests": [requests],
                "ports": [partial(ports, firewall=False), partial(ports, firewall=True)],
                "probes": [probes, probes_of_others],
                "scores": [None, scores],
                "tls": [None, partial(tls, acme=acme)],
            }
            for later in (False, True):
                chosen = [of[later] for part, of in steps.items() if part in parts and len(of) > later]
                if later and chosen:
                    extend(target, acme)
                for step in filter(None, chosen):
                    step(target)
                    save()
    finally:
        host.down()


PARTS = ("scores", "probes", "ports", "slow", "requests", "tls")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.security", description="Measure complete deployments.")
    parser.add_argument("--release", choices=("trixie", "bookworm"), help="only on this Debian (default: both)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="only these")
    options = parser.parse_args()
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}

    def save() -> None:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(known, indent=1))

    other = Testbed().up("security-other")
    try:
        acme = Acme(other, Authority("Private ACME server"))
        acme.start()
        other.run(
            f"DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends {TESTSSL}", timeout=300
        )
        with (
            TemporaryDirectory(prefix="released-") as directory,
            ReleaseServer(released(Path(directory))) as page,
        ):
            for release in [options.release] if options.release else ("trixie", "bookworm"):
                measure(release, acme, page, options.only, known.setdefault(release, {}), save)
    finally:
        other.down()
    page_text, wrong = written(REPORT.read_text(), known, f"{datetime.now(UTC):%Y-%m-%d}")
    REPORT.write_text(page_text)
    for each in wrong:
        print(f"wrong: {each}", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
