"""PostgreSQL is killed, stopped, or cannot start: what systemd does, what a deploy repairs, and what it reports."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import nio
import pytest

from roles import HOUSEKEEPING, HOUSEKEEPING_REPORT, SYNAPSE_PORT
from settings.postgres import OF_DEBIAN
from tests.built import built
from tests.conftest import Deployed, own
from tests.deployment import EVERYTHING, Deployment
from tests.e2e.client import Account, Outside, expect, expect_json, send_message
from tests.testbed import RELEASES, Host, Testbed

pytestmark = pytest.mark.role("postgres")
VERSIONS = {name: OF_DEBIAN[number] for name, number in RELEASES.items()}
# Seconds within which a killed database serves again.
RECOVERY = 10


def query(host: Host, sql: str, database: str = "postgres") -> str:
    """The answer of the deployment's own cluster to a query."""
    version = VERSIONS[host.release]
    return host.run(
        f"cd / && runuser -u postgres -- psql --cluster {version}/main -XAtq -v ON_ERROR_STOP=1 -d {database}",
        stdin=sql,
    ).stdout.strip()


def unit(host: Host) -> str:
    return f"postgresql@{VERSIONS[host.release]}-main.service"


def wait_for(host: Host, state: str, seconds: int = 60) -> None:
    """Wait until PostgreSQL's unit is in this state."""
    host.run(
        f"for i in $(seq {5 * seconds}); do [ $(systemctl is-active {unit(host)}) = {state} ] && exit; sleep 0.2; done; "
        f"systemctl status {unit(host)}; exit 1",
        timeout=seconds + 30,
    )


@pytest.fixture
def host(deployed: Deployed) -> Iterator[Host]:
    """The deployment's host; PostgreSQL runs before and after."""
    yield deployed.host
    deployed.host.run(f"systemctl reset-failed {unit(deployed.host)}; systemctl start {unit(deployed.host)}")


@pytest.fixture(scope="module")
def room(outside: Outside, alice: Account) -> str:
    """A room of Alice's, for whom there is no rate limit."""
    unlimited = f"INSERT INTO ratelimit_override VALUES ('{alice.user_id}', 0, 0)"  # noqa: S608 - a name of ours
    query(outside.host, unlimited, "synapse")

    async def create() -> str:
        async with outside.matrix(alice) as client:
            return str(expect(await client.room_create(name="Notes"), nio.RoomCreateResponse).room_id)

    return asyncio.run(create())


def assert_recovers(outside: Outside, alice: Account, room: str, since: float) -> list[float]:
    """Send until 20 messages in a row are accepted, within RECOVERY s after `since`; returns the seconds of each."""
    accepted: list[float] = []
    with outside.http() as http:
        while len(accepted) < 20:
            url = outside.url("matrix", f"/_matrix/client/v3/rooms/{room}/send/m.room.message/{time.time_ns()}")
            content = {"msgtype": "m.text", "body": "again"}
            try:
                status = http.put(url, json=content, headers=alice.authorization).status_code
            except httpx.HTTPError:
                status = 0
            now = time.monotonic() - since
            assert now < RECOVERY, f"{RECOVERY} s later a message is answered with {status}"
            if status == 200:
                accepted.append(now)
            else:
                accepted.clear()
                time.sleep(0.1)
    return accepted


@pytest.mark.parametrize("signal", ["KILL", "SEGV"])
@pytest.mark.parametrize("who", ["postmaster", "backend", "all"])
def test_killed_database_serves_again(
    host: Host, outside: Outside, alice: Account, room: str, who: str, signal: str
) -> None:
    data = f"/var/lib/postgresql/{VERSIONS[host.release]}/main"
    victims = {
        "postmaster": f"$(head -1 {data}/postmaster.pid)",
        "backend": "$(pgrep -f 'postgres: 1./main: matrix-synapse' | head -1)",
        "all": "$(pgrep -u postgres)",
    }

    async def send() -> str:
        async with outside.matrix(alice) as client:
            return await send_message(client, room, f"Before {who} is killed.")

    wait_for(host, "active")
    event = asyncio.run(send())
    begin = time.monotonic()
    host.run(f"kill -{signal} {victims[who]}")

    assert_recovers(outside, alice, room, begin)

    with outside.http() as http:
        url = outside.url("matrix", f"/_matrix/client/v3/rooms/{room}/event/{event}")
        assert expect_json(http.get(url, headers=alice.authorization))["content"]["body"] == f"Before {who} is killed."


def test_database_killed_while_it_starts_serves_again(host: Host) -> None:
    """Killed repeatedly, at different moments: systemd must not wait for ever for a process that is gone."""
    data = f"/var/lib/postgresql/{VERSIONS[host.release]}/main"
    wait_for(host, "active")
    host.run(f"kill -KILL $(head -1 {data}/postmaster.pid)")
    for delay in (0, 0.1, 0.5, 1):
        # pg_ctlcluster watches the new postmaster for two seconds.
        host.run(
            f"for i in $(seq 100); do [ $(systemctl is-active {unit(host)}) = activating ] && sleep {delay} && "
            f"kill -KILL $(head -1 {data}/postmaster.pid) 2>/dev/null && exit; sleep 0.05; done; exit 1"
        )
    wait_for(host, "active", RECOVERY)
    assert query(host, "SELECT 42") == "42"


def test_what_is_left_of_a_server_that_was_killed_does_not_keep_it_down(host: Host) -> None:
    """A process of PostgreSQL's may go on for a minute, and ignore that it is to end."""
    data = f"/var/lib/postgresql/{VERSIONS[host.release]}/main"
    drop_in = f"/run/systemd/system/{unit(host)}.d/left.conf"
    left = f"ExecStartPre=/bin/sh -c 'cd {data}; (trap \"\" TERM; exec sleep 300) >/dev/null 2>&1 &'"
    wait_for(host, "active")
    host.run(
        f"systemctl stop {unit(host)}; mkdir -p {drop_in.rpartition('/')[0]}; cat >{drop_in}",
        stdin=f"[Service]\n{left}\n",
    )
    host.run(f"mv {data}/global/pg_control {data}/global/away; systemctl daemon-reload")
    try:
        begin = time.monotonic()
        assert host.run(f"systemctl start {unit(host)}", check=False, timeout=55).returncode
        assert time.monotonic() - begin < 20
        assert host.run("pgrep -x sleep -u postgres", check=False).stdout == ""
    finally:
        host.run(f"mv {data}/global/away {data}/global/pg_control; rm {drop_in}; systemctl daemon-reload")
        host.run(f"systemctl reset-failed {unit(host)}; systemctl start {unit(host)}")
    wait_for(host, "active", RECOVERY)


@pytest.mark.parametrize(
    "command",
    [
        "systemctl stop postgresql@{}-main",
        "systemctl stop postgresql",
        "pg_ctlcluster {} main stop",
        # Debian's tools use systemd only when root runs them.
        "runuser -u postgres -- pg_ctlcluster {} main stop",
        "runuser -u postgres -- pg_ctlcluster {} main stop -m immediate",
        "kill -INT $(head -1 /var/lib/postgresql/{}/main/postmaster.pid)",
    ],
)
def test_database_stopped_by_the_administrator_stays_stopped(host: Host, command: str) -> None:
    version = VERSIONS[host.release]
    wait_for(host, "active")
    host.run(f"cd / && {command.format(version)}")
    time.sleep(3)
    state = host.run(f"systemctl is-active {unit(host)}", check=False).stdout.strip()
    assert state in ("inactive", "failed")
    host.run("systemctl start postgresql")
    wait_for(host, "active")


def test_upgrade_of_the_package_restarts_the_database(host: Host) -> None:
    before = host.run(f"systemctl show -p InvocationID {unit(host)}").stdout
    version = VERSIONS[host.release]
    host.run(
        "export DEBIAN_FRONTEND=noninteractive; apt-get install -qq -y --reinstall "
        f"postgresql-{version} postgresql-common >/dev/null 2>&1",
        timeout=300,
    )
    wait_for(host, "active")
    assert host.run(f"systemctl show -p InvocationID {unit(host)}").stdout != before, "the package did not restart it"


@pytest.mark.once("debian12")
def test_database_that_cannot_start_is_reported_soon_with_its_own_error(deployed: Deployed, host: Host) -> None:
    broken = f"/etc/postgresql/{VERSIONS[host.release]}/main/conf.d/zz-mine.conf"
    # Its configuration has a mistake that shows only at the next start.
    host.run(f"echo 'nonsense = 1' > {broken} && chmod 644 {broken}")
    try:
        host.run(f"kill -KILL $(systemctl show -p MainPID --value {unit(host)})")
        wait_for(host, "failed", seconds=120)

        begin = time.monotonic()
        run = deployed.deployment.run("-y", check=False)
        assert run.status == 1
        assert 'unrecognized configuration parameter "nonsense"' in run.output, run.output
        assert time.monotonic() - begin < 30

        # systemd does not try for ever.
        wait_for(host, "failed", seconds=120)
        time.sleep(3)
        wait_for(host, "failed", seconds=1)
    finally:
        host.run(f"rm -f {broken}")
    assert "Run PostgreSQL" in deployed.deployment.run("-y").changed
    assert query(host, "SELECT 42") == "42"


@pytest.mark.once("debian13")
def test_the_daily_count_waits_for_the_database(host: Host) -> None:
    """A restart at the wrong moment does not leave a failed unit until the next day."""
    wait_for(host, "active")
    host.run(f"systemctl stop {HOUSEKEEPING.timer} {HOUSEKEEPING.service}; rm -f {HOUSEKEEPING_REPORT}")
    host.run("systemctl stop postgresql")
    done = host.run(f"systemctl start {HOUSEKEEPING.service}", check=False)
    assert done.returncode != 0
    failed = host.run("systemctl --failed --plain --no-legend").stdout
    host.run(f"systemctl start postgresql {HOUSEKEEPING.timer}")
    assert HOUSEKEEPING.service not in failed
    host.run(f"for i in $(seq 60); do [ -s {HOUSEKEEPING_REPORT} ] && exit; sleep 1; done; exit 1", timeout=90)
    assert HOUSEKEEPING.service not in host.run("systemctl --failed --plain --no-legend").stdout


# --- health means that the database answers -------------------------------------------------------


@pytest.mark.once("debian13")
def test_homeserver_without_its_database_is_reported_and_not_restarted(deployed: Deployed, host: Host) -> None:
    """Its unit is active and it answers requests for its versions, but every message fails."""
    wait_for(host, "active")
    before, synapse = (
        host.run("systemctl show -p InvocationID matrix-synapse").stdout,
        f"http://127.0.0.1:{SYNAPSE_PORT}",
    )
    disconnect = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'matrix-synapse'"
    query(host, f'ALTER ROLE "matrix-synapse" NOLOGIN; {disconnect}')
    try:
        host.run(f"curl -sf {synapse}/health && curl -sf {synapse}/_matrix/client/versions")
        run = deployed.deployment.run("-y", check=False)
        assert run.status == 1
        assert 'role "matrix-synapse" is not permitted to log in' in run.output, run.output
        assert "matrix-synapse.service does not answer, and was not restarted" in run.output, run.output
        status, output = deployed.deployment.verify("tests/host/test_synapse.py")
        assert status == 1 and "Synapse cannot use its database" in output, output
    finally:
        query(host, 'ALTER ROLE "matrix-synapse" LOGIN')
    assert host.run("systemctl show -p InvocationID matrix-synapse").stdout == before
    # Closed connections are no reason to restart it, nor to wait.
    query(host, disconnect)
    assert deployed.deployment.run("-y").changed == []
    assert host.run("systemctl show -p InvocationID matrix-synapse").stdout == before


# --- access to the databases ----------------------------------------------------------------------


def test_roles_reach_their_own_database_only(deployed: Deployed, host: Host) -> None:
    wait_for(host, "active")
    query(host, "GRANT CONNECT ON DATABASE synapse TO PUBLIC")  # as 0.1.0 left it
    host.run("id shop >/dev/null 2>&1 || useradd --system shop")
    query(host, "CREATE ROLE shop LOGIN")
    query(host, "CREATE DATABASE shop OWNER shop")
    owners = {role.database.owner: role.database.name for role in EVERYTHING.values() if role.database}
    databases = [*owners.values(), "shop", "postgres", "template1"]
    try:
        run = deployed.deployment.run("-y")
        reached = {
            (user, database): host.run(
                f"cd / && runuser -u {user} -- psql -XAtqd {database} -c 'SELECT 1' 2>&1", check=False
            ).returncode
            == 0
            for user in (*owners, "shop", "postgres")
            for database in databases
        }
        assert [pair for pair, connected in reached.items() if connected] == [
            *owners.items(),
            # Databases that an administrator adds work as before.
            ("shop", "shop"),
            ("shop", "postgres"),
            ("shop", "template1"),
            *(("postgres", database) for database in databases),
        ]
        assert run.changed == ["Create the databases"]
        assert deployed.deployment.run("-y").changed == []
    finally:
        query(host, "DROP DATABASE shop")
        query(host, "DROP ROLE shop")


# --- other clusters, or none ----------------------------------------------------------------------


@pytest.fixture(params=list(VERSIONS), ids=["debian13", "debian12"])
def fresh(request: pytest.FixtureRequest, testbed: Testbed) -> Iterator[Host]:
    """A host on which no cluster was created."""
    name = own(f"clusters{13 if request.param == 'trixie' else 12}")
    host = testbed.up(name, release=request.param, layers=built(testbed, request.param, "libraries", "programs"))
    yield host
    host.down()


def deployment_of(host: Host, directory: Path, *roles: str) -> Deployment:
    settings = {"server_name": host.domain, "tls": "internal", "admin_email": f"admin@{host.domain}"}
    return Deployment(directory, [host], settings, roles={role: [host.name] for role in roles})


# Everything that may choose another cluster for a client that names none.
OTHER_CLUSTER_DEFAULTS = """
printf 'PGHOST=/nowhere\\nPGPORT=5432\\nPGCLUSTER={0}/shop\\nPGDATABASE=shop\\nPGSERVICE=shop\\nPGUSER=shop\\n' >>/etc/environment
echo '* * {0} shop shop' >>/etc/postgresql-common/user_clusters
echo '{0} shop shop' >/var/lib/postgresql/.postgresqlrc
echo '\\echo welcome' >/var/lib/postgresql/.psqlrc
"""


@pytest.mark.parametrize(
    "main",
    [
        pytest.param("", marks=pytest.mark.once("debian13"), id="alone"),
        pytest.param("pg_createcluster {} main", marks=pytest.mark.once("debian12"), id="beside main"),
    ],
)
def test_other_clusters_are_left_alone(fresh: Host, tmp_path: Path, main: str) -> None:
    """main: how our cluster was made before the deploy, if it was."""
    version = VERSIONS[fresh.release]
    fresh.run(
        "export DEBIAN_FRONTEND=noninteractive; apt-get update -qq; "
        "apt-get install -qq -y --no-install-recommends postgresql-common >/dev/null 2>&1; "
        "sed -i 's/^#*create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf; "
        f"apt-get install -qq -y --no-install-recommends postgresql-{version} >/dev/null 2>&1; "
        f"pg_createcluster {version} shop --start; {main.format(version)}",
        timeout=300,
    )
    fresh.run(OTHER_CLUSTER_DEFAULTS.format(version))
    deployment = deployment_of(fresh, tmp_path, "postgres", "synapse")
    deployment.run("-y")

    databases = "SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database"
    as_postgres = (
        f'cd / && runuser -u postgres -- env -i PATH=/usr/bin:/bin psql -XAtqc "{databases}" --cluster {version}'
    )
    assert fresh.run(f"{as_postgres}/shop").stdout.split() == ["postgres", "template0", "template1"]
    assert fresh.run(f"{as_postgres}/main").stdout.split() == ["postgres", "synapse", "template0", "template1"]
    assert fresh.run("pg_lsclusters -h | awk '{ print $2, $3, $4 }'").stdout.splitlines() == [
        "main 5433 online",
        "shop 5432 online",
    ]
    again = deployment.run("-y")
    assert again.changed == []
    # The other cluster is stopped, and ours is reached as before.
    fresh.run(f"systemctl stop postgresql@{version}-shop")
    assert deployment.run("-y").changed == []


def test_cluster_that_debian_did_not_create_is_created(fresh: Host, tmp_path: Path) -> None:
    version = VERSIONS[fresh.release]
    fresh.run("echo 'LANG=xx_XX.UTF-8' >/etc/default/locale")
    deployment = deployment_of(fresh, tmp_path, "postgres")
    deployment.run("-y")
    assert query(fresh, "SHOW data_checksums") == "on"
    assert query(fresh, "SELECT datcollate FROM pg_database WHERE datname = 'template1'") == "C.UTF-8"
    assert deployment.run("-y").changed == []

    # Its configuration is lost, but not the data.
    data, configuration = f"/var/lib/postgresql/{version}/main", f"/etc/postgresql/{version}/main"
    query(fresh, "CREATE TABLE kept (it int)")
    fresh.run(f"systemctl stop postgresql; mv {configuration} /root/")
    refused = deployment.run("-y", check=False)
    assert refused.status == 1
    assert f"{data} is not empty, and {configuration}/postgresql.conf is missing" in refused.output, refused.output
    assert not fresh.run(f"ls -d {configuration}", check=False).stdout
    fresh.run(f"mv /root/main {configuration}")
    deployment.run("-y")
    assert query(fresh, "SELECT count(*) FROM kept") == "0"

    # The administrator has removed it, and Debian does not create another.
    fresh.run(
        f"pg_dropcluster --stop {version} main; "
        "sed -i 's/^#*create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf"
    )
    deployment.run("-y")
    assert query(fresh, "SELECT 42; SHOW data_checksums").split() == ["42", "on"]
