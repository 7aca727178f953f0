"""PostgreSQL dies, is stopped, cannot start: what happens by itself, what a deploy heals, and what it says."""

import asyncio
import time
from collections.abc import Iterator

import httpx
import nio
import pytest

from tests.conftest import Deployed
from tests.e2e.client import Account, Outside, answered, expect, say
from tests.testbed import Host

VERSIONS = {"trixie": "17", "bookworm": "15"}
# Seconds in which the database serves again.
PAUSE = 10


def query(host: Host, sql: str, database: str = "postgres") -> str:
    """The answer of the deployment's own cluster."""
    version = VERSIONS[host.release]
    return host.run(
        f"cd / && runuser -u postgres -- psql --cluster {version}/main -XAtq -v ON_ERROR_STOP=1 -d {database}",
        stdin=sql,
    ).stdout.strip()


def unit(host: Host) -> str:
    return f"postgresql@{VERSIONS[host.release]}-main.service"


def wait_for(host: Host, state: str, seconds: int = 60) -> None:
    """Wait until systemd sees PostgreSQL in this state."""
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
    """Alice's own, where she may write as fast as she likes."""
    unlimited = f"INSERT INTO ratelimit_override VALUES ('{alice.user_id}', 0, 0)"  # noqa: S608 - a name of ours
    query(outside.host, unlimited, "synapse")

    async def made() -> str:
        async with outside.matrix(alice) as client:
            return str(expect(await client.room_create(name="Notes"), nio.RoomCreateResponse).room_id)

    return asyncio.run(made())


def works_within(outside: Outside, alice: Account, room: str, since: float) -> list[float]:
    """Send until a message is taken: how many seconds after `since` that was, and what is sent after it must be taken too."""
    waited: list[float] = []
    with outside.http() as http:
        while len(waited) < 20:
            url = outside.url("matrix", f"/_matrix/client/v3/rooms/{room}/send/m.room.message/{time.time_ns()}")
            content = {"msgtype": "m.text", "body": "again"}
            try:
                status = http.put(url, json=content, headers=alice.authorization).status_code
            except httpx.HTTPError:
                status = 0
            now = time.monotonic() - since
            assert now < PAUSE, f"{PAUSE} s later a message is answered with {status}"
            if status == 200:
                waited.append(now)
            else:
                waited.clear()
                time.sleep(0.1)
    return waited


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

    async def sent() -> str:
        async with outside.matrix(alice) as client:
            return await say(client, room, f"Before {who} is killed.")

    wait_for(host, "active")
    event = asyncio.run(sent())
    begin = time.monotonic()
    host.run(f"kill -{signal} {victims[who]}")

    works_within(outside, alice, room, begin)

    with outside.http() as http:
        url = outside.url("matrix", f"/_matrix/client/v3/rooms/{room}/event/{event}")
        assert answered(http.get(url, headers=alice.authorization))["content"]["body"] == f"Before {who} is killed."


def test_database_killed_while_it_starts_serves_again(host: Host) -> None:
    data = f"/var/lib/postgresql/{VERSIONS[host.release]}/main"
    for _ in range(2):
        host.run(f"kill -KILL $(head -1 {data}/postmaster.pid)")
        # pg_ctlcluster still watches.
        host.run(
            f"for i in $(seq 50); do [ $(systemctl is-active {unit(host)}) = activating ] && [ -s {data}/postmaster.pid ] "
            "&& exit; sleep 0.1; done; exit 1"
        )
    wait_for(host, "active", PAUSE)
    assert query(host, "SELECT 42") == "42"


@pytest.mark.parametrize(
    "command",
    [
        "systemctl stop postgresql@{}-main",
        "systemctl stop postgresql",
        "pg_ctlcluster {} main stop",
        # Debian's tools know of systemd only when root uses them.
        "runuser -u postgres -- pg_ctlcluster {} main stop",
        "runuser -u postgres -- pg_ctlcluster {} main stop -m immediate",
        "kill -INT $(head -1 /var/lib/postgresql/{}/main/postmaster.pid)",
    ],
)
def test_planned_stop_stays_a_stop(host: Host, command: str) -> None:
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


def test_database_that_cannot_start_is_told_soon_and_in_its_own_words(deployed: Deployed, host: Host) -> None:
    broken = f"/etc/postgresql/{VERSIONS[host.release]}/main/conf.d/zz-mine.conf"
    # Killed by accident with a mistake in its configuration that nobody has noticed yet.
    host.run(f"echo 'nonsense = 1' > {broken} && chmod 644 {broken}")
    try:
        host.run(f"kill -KILL $(systemctl show -p MainPID --value {unit(host)})")
        wait_for(host, "failed", seconds=120)

        begin = time.monotonic()
        run = deployed.deployment.run("-y", check=False)
        assert run.status == 1
        assert 'unrecognized configuration parameter "nonsense"' in run.output, run.output
        assert time.monotonic() - begin < 30

        # It is not tried for ever.
        wait_for(host, "failed", seconds=120)
        time.sleep(3)
        wait_for(host, "failed", seconds=1)
    finally:
        host.run(f"rm -f {broken}")
    assert "Run PostgreSQL" in deployed.deployment.run("-y").changed
    assert query(host, "SELECT 42") == "42"
