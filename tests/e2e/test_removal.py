"""`manage.py NAME remove ROLE`: the machine is as if it had never had the role.

One host gets four roles after the other, and loses one by one in the opposite order: after four it must be as it was before them.
"""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from operations.databases import COPIES
from roles import ROLES, RoleName
from settings.issuers import STORE
from tests.built import built
from tests.conftest import complete, own
from tests.deployment import AVAILABLE, Deployment
from tests.e2e.alerts import labels_of_alerts, shortened
from tests.e2e.banned import ATTEMPTS, assert_bans
from tests.e2e.client import CADDY_ROOT, register
from tests.e2e.picture import difference, picture
from tests.e2e.pushed import assert_notified
from tests.standin.release_server import ReleaseServer
from tests.testbed import Host, Testbed

pytestmark = pytest.mark.once("debian13")

STAYING = ("postgres", "synapse")
REMOVABLE: list[RoleName] = [role.name for role in ROLES.values() if not role.stays]
TARGET = "/mnt/backup"
AWAY = f"""
mv {TARGET} {TARGET}.away
chmod 0 /var/spool/matrix-metal-backup
! systemctl start matrix-metal-backup-files
systemctl start matrix-metal-figures
cd / && runuser -u postgres -- psql -Xqc 'CREATE TABLE written (at int)' -c 'DROP TABLE written' -c 'SELECT pg_switch_wal()'
"""
BACK = f"""
chmod 700 /var/spool/matrix-metal-backup
mv {TARGET}.away {TARGET}
systemctl start matrix-metal-backup-files matrix-metal-figures
"""
POSTGRES_STARTED = "systemctl show -p InvocationID --value 'postgresql@*-main.service' | grep ."
# Of the administrator's own, before the first deploy: coturn needs it as well.
OWN_PACKAGE = "python3-seccomp"


@dataclass
class Machine:
    """before: what the host had before it got a role; for every fourth, and with --both for all. chosen: with --role, that one.

    What is said beforehand and afterwards is the administrator's computer's, and looked at for these only.
    """

    host: Host
    deployment: Deployment
    before: dict[str, set[str]]
    chosen: RoleName | None = None

    @property
    def removable(self) -> list[RoleName]:
        # Caddy: to be reached.
        wanted = [self.chosen, "caddy", *ROLES[self.chosen].needs] if self.chosen else REMOVABLE
        return [role for role in REMOVABLE if role in wanted and role in AVAILABLE[self.host.release]]

    def assign(self, roles: list[str]) -> None:
        self.deployment.assign({role: [self.host.name] for role in roles})


@pytest.fixture(scope="module", params=["trixie", "bookworm"], ids=["debian13", "debian12"])
def machine(
    request: pytest.FixtureRequest,
    testbed: Testbed,
    release_page: ReleaseServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Machine]:
    layers = built(testbed, request.param, "programs")
    host = testbed.up(own(f"bare{request.param[0]}"), release=request.param, layers=layers)
    host.run(
        f"apt-get update -qq && apt-get install -qq -y --no-install-recommends {OWN_PACKAGE} >/dev/null", timeout=300
    )
    host.run("rm -rf /opt/sydent")  # of the layer
    directory = tmp_path_factory.mktemp("removal")
    deployment = complete(testbed, host, directory, release_page)
    host.run(f"mkdir {TARGET}")
    with (directory / "group_data" / f"{deployment.name}.py").open("a") as group_data:
        group_data.write(f"backup_target = {TARGET!r}\n")
        group_data.write(f"bans_attempts = {ATTEMPTS}\n")
        # Not during this test.
        group_data.write(f"updates_time = '{datetime.now(UTC) + timedelta(hours=12):%H:%M}'\n")
    # As on any Debian but those of the testbed.
    host.run("systemctl enable apt-daily.timer apt-daily-upgrade.timer")
    machine = Machine(host, deployment, {}, chosen=request.config.getoption("--role"))
    roles = [*STAYING]
    every = machine.chosen or request.config.getoption("--both")
    looked_at = machine.removable if every else machine.removable[::4]
    for role in machine.removable:
        if role in looked_at:
            machine.assign(roles)
            deployment.run("-y")
            machine.before[role] = picture(host)
        roles.append(role)
    roles = [*STAYING, *machine.removable]
    machine.assign(roles)
    deployment.run("-y")
    # Everything is used.
    status, output = deployment.verify()
    assert status == 0, output[-3000:]
    register(host, "anna", "secret")
    yield machine
    host.down()


@contextmanager
def client(host: Host) -> Iterator[Counter[str]]:
    """Somebody asks the homeserver by its public name. After the block: HTTP status or curl's error -> number of answers.

    When Caddy takes over a new configuration it tells connections of HTTP/2 to end (GOAWAY), and soon closes those that have no
    request; one that is just then on its way is lost. As HTTP clients do (RFC 9110, 9.2.2), this one asks again then, once.
    """
    found: Counter[str] = Counter()
    url = f"https://matrix.{host.domain}/_matrix/client/versions"
    ask = f"curl -s -o /dev/null --max-time 60 --cacert {CADDY_ROOT} -w '%{{http_code}} %{{errormsg}}\\n' {url}"
    ask = f"answer=$({ask}); case $answer in '000 '*reset*) {ask} ;; *) echo \"$answer\" ;; esac"
    host.run("rm -f /run/asked-enough")
    with ThreadPoolExecutor() as pool:
        asking = pool.submit(
            host.run, f"until [ -e /run/asked-enough ]; do {{ {ask}; }} || true; sleep 0.05; done", timeout=300
        )
        try:
            yield found
        finally:
            host.run("touch /run/asked-enough")
            found += Counter(line.strip() for line in asking.result().stdout.splitlines())
            host.run("rm /run/asked-enough")


def test_what_cannot_be_removed_is_refused(machine: Machine) -> None:
    for role, why in {
        "postgres": "postgres cannot be removed: all users, rooms and messages",
        "mas": "mas cannot be removed: it has the passwords of all users",
        "coturn": f"trial.py still gives {machine.host.name} the role coturn: take it out there first",
        "cotrun": "there is no role cotrun: did you mean coturn?",
    }.items():
        done = machine.deployment.manage("remove", role, "--yes")
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert why in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.role("bans")
def test_whoever_tries_passwords_is_banned(machine: Machine) -> None:
    """While the machine has every role, and people who log in to Synapse."""
    assert_bans(machine.host, machine.deployment)


@pytest.mark.role("monitoring")
def test_a_backup_that_fails_is_noticed(machine: Machine) -> None:
    """Its job, whose target is away and which is late soon, and PostgreSQL, which cannot leave its log for it."""
    host = machine.host
    host.run(AWAY)
    wanted: list[dict[str, str]] = [{"alertname": "ArchivingFails"}]
    wanted += [{"alertname": alert, "part": "files"} for alert in ("BackupFails", "BackupLate")]
    deadline = time.monotonic() + 120
    try:
        with shortened(host, {"BackupLate": {"matrix_metal_backup_late_seconds": "30"}}):
            while wanted:
                assert time.monotonic() < deadline, wanted
                time.sleep(1)
                noticed = labels_of_alerts(host)
                wanted = [each for each in wanted if not any(each.items() <= found.items() for found in noticed)]
    finally:
        host.run(BACK)


@pytest.mark.role("ntfy")
def test_a_phone_is_notified(machine: Machine, tmp_path: Path) -> None:
    if "ntfy" not in machine.removable:
        pytest.skip("Debian 12 does not have ntfy")
    assert_notified(machine.host, tmp_path)


@pytest.mark.parametrize("role", REMOVABLE[::-1])
def test_a_machine_is_as_if_it_had_never_had_the_role(machine: Machine, role: RoleName) -> None:
    host, deployment = machine.host, machine.deployment
    if role not in machine.removable:
        pytest.skip(f"Debian 12 does not have {role}")
    staying = [*STAYING, *machine.removable[: machine.removable.index(role)]]
    machine.assign(staying)
    database = host.run(POSTGRES_STARTED).stdout
    if role in machine.before:
        assert_only_announced(machine, role)
    if ROLES[role].database:
        kill_midway(machine, role)

    with client(host) as answers:
        done = deployment.manage("remove", role, "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    # The backup's settings are those that it reads when it starts.
    assert host.run(POSTGRES_STARTED).stdout == database or role == "backup", "PostgreSQL was restarted"
    assert role == "caddy" or set(answers) == {"200"}, answers
    if role in machine.before:
        assert difference(machine.before[role], picture(host)) == []
    copies = host.run(f"ls {COPIES}/{role}-removed-* 2>/dev/null || true").stdout.split()
    assert bool(copies) == bool(ROLES[role].database or ROLES[role].irreplaceable)
    for copy in copies:
        assert copy in done.stdout
        assert host.run(f"stat -c '%a %U' {COPIES} {copy}").stdout.split() == ["700", "root", "600", "root"]
        read = "pg_restore --list" if copy.endswith(".dump") else "tar -t -f"
        assert host.run(f"{read} {copy} | wc -l").stdout.strip() != "0"

    # Nothing is left, for a deploy and for the command.
    if role not in machine.before and role != REMOVABLE[0]:
        return
    again = deployment.run("-y")
    assert again.changed == [] and "still has" not in again.output
    if role not in machine.before:
        return
    nothing = deployment.manage("remove", role, "--yes")
    assert (nothing.returncode, nothing.stdout) == (0, f"Nothing is left of {ROLES[role].title}.\n")


def assert_only_announced(machine: Machine, role: RoleName) -> None:
    """Deploys say how the role is removed, and nothing is removed without a yes."""
    host, deployment = machine.host, machine.deployment
    assert f"manage.py trial remove {role}" in deployment.run("--dry").output
    with_role = picture(host)
    listed = deployment.manage("remove", role, "--dry")
    assert listed.returncode == 0 and listed.stdout.endswith("Nothing was removed.\n"), listed.stderr
    for unit in ROLES[role].units:
        assert unit.name in listed.stdout
    # The jobs of the backup go on by themselves.
    jobs = "backup" if role == "backup" else None
    assert [line for line in difference(with_role, picture(host)) if not jobs or jobs not in line] == []
    unasked = deployment.manage("remove", role)
    assert unasked.returncode == 1 and "There is no terminal to ask: give --yes" in unasked.stderr


def kill_midway(machine: Machine, role: RoleName) -> None:
    """The removal is killed as soon as the role's units do not run any more."""
    deployment, [unit, *_] = machine.deployment, ROLES[role].units
    process = subprocess.Popen(
        [sys.executable, str(deployment.root / "manage.py"), str(deployment.inventory), "remove", role, "--yes"],
        cwd=deployment.directory,
        env={**os.environ, **deployment.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while machine.host.run(f"systemctl is-active --quiet {unit.name}", check=False).returncode == 0:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_what_nobody_needs_any_more_goes_with_the_last_role(
    testbed: Testbed, release_page: ReleaseServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """On a machine without a homeserver: the packet filter of the local ports, nftables, uv."""
    host = testbed.up(own("bare-relay"))
    machine = Machine(host, complete(testbed, host, tmp_path_factory.mktemp("relay"), release_page), {})
    try:
        machine.assign(["caddy"])
        machine.deployment.run("-y")
        before = picture(host)
        machine.assign(["caddy", "sydent", "coturn"])
        machine.deployment.run("-y")
        machine.assign(["caddy"])
        # At once, so that the deploy has two roles less than the machine.
        for role in ("sydent", "coturn"):
            done = machine.deployment.manage("remove", role, "--yes")
            assert done.returncode == 0, done.stdout + done.stderr
        # Caddy makes these for its first certificate, and removes empty directories itself when it starts.
        empty = {f"+ file {STORE}/certificates{each} d 700 caddy:caddy " for each in ("", "/local")}
        assert set(difference(before, picture(host))) <= empty
    finally:
        host.down()
