"""Synapse is restarted and upgraded while clients use it: no request of theirs fails, whether it has a body or not."""

import asyncio
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nio
import pytest

from tests.conftest import Deployed
from tests.deployment import ROOT
from tests.e2e.client import Account, Outside, expect, expect_json
from tests.testbed import Host

pytestmark = pytest.mark.role("synapse")

OLDER = "1.160.0"
# Clients of each kind, and how long each pauses between two requests, in seconds.
CLIENTS, PAUSE = 2, 0.02
# For how long a client that asks for news waits, in milliseconds.
WAIT = 20_000
SLIDING_SYNC = "unstable/org.matrix.simplified_msc3575/sync"


@dataclass
class Load:
    """Requests of clients. failed: what was not answered with 200. longest: the seconds of the slowest, without /sync."""

    answered: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    longest: float = 0

    @asynccontextmanager
    async def clients(self, outside: Outside, account: Account, room: str) -> AsyncIterator[None]:
        """They send requests meanwhile."""
        async with outside.matrix(account) as client:
            assert client.client_session
            self.session, self.url, self.user = client.client_session, outside.url("matrix", "/_matrix/"), account
            over = asyncio.Event()
            kinds = (self.ask, self.send, self.upload, self.query, self.wait, self.wait_sliding)
            tasks = [asyncio.create_task(kind(over, room)) for kind in kinds for _ in range(CLIENTS)]
            http2 = asyncio.create_task(asyncio.to_thread(self.query_by_http2, outside, over))
            await asyncio.sleep(1)
            try:
                yield
                await asyncio.sleep(1)
            finally:
                over.set()
                await http2
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def request(self, kind: str, method: str, path: str, *, waits: bool = False, **options: Any) -> Any:
        begin = time.monotonic()
        try:
            async with self.session.request(
                method, f"{self.url}{path}", headers=self.user.authorization, **options
            ) as answer:
                status, text = answer.status, await answer.text()
        except Exception as error:
            status, text = 0, repr(error)
        self.note(kind, status, text, 0 if waits else time.monotonic() - begin)
        return await answer.json() if status == 200 else {}

    def note(self, kind: str, status: int, text: str, seconds: float) -> None:
        self.answered[kind] += 1
        self.longest = max(self.longest, seconds)
        if status != 200:
            self.failed.append(f"{kind}: {status} after {seconds:.2f} s: {text[:200]}")

    async def ask(self, over: asyncio.Event, _: str) -> None:
        while not over.is_set():
            await self.request("GET", "GET", "client/v3/account/whoami")
            await asyncio.sleep(PAUSE)

    async def send(self, over: asyncio.Event, room: str) -> None:
        while not over.is_set():
            path = f"client/v3/rooms/{room}/send/m.room.message/{time.time_ns()}"
            await self.request("PUT", "PUT", path, json={"msgtype": "m.text", "body": "It works."})
            await asyncio.sleep(PAUSE)

    async def upload(self, over: asyncio.Event, _: str) -> None:
        content = os.urandom(200_000)
        while not over.is_set():
            await self.request("upload", "POST", "media/v3/upload", data=content)
            await asyncio.sleep(10 * PAUSE)

    async def query(self, over: asyncio.Event, _: str) -> None:
        while not over.is_set():
            await self.request("POST", "POST", "client/v3/keys/query", json={"device_keys": {self.user.user_id: []}})
            await asyncio.sleep(PAUSE)

    def query_by_http2(self, outside: Outside, over: asyncio.Event) -> None:
        with outside.http(http2=True) as http:
            while not over.is_set():
                begin = time.monotonic()
                answer = http.post(
                    f"{self.url}client/v3/keys/query", json={"device_keys": {}}, headers=self.user.authorization
                )
                self.note("POST by HTTP/2", answer.status_code, answer.text, time.monotonic() - begin)
                time.sleep(PAUSE)

    async def wait(self, over: asyncio.Event, room: str) -> None:
        """For news of no room, so that it takes long."""
        nothing = f'{{"room": {{"not_rooms": ["{room}"]}}}}'
        since: dict[str, str] = {}
        while not over.is_set():
            query = {"timeout": str(WAIT), "filter": nothing, **since}
            answer = await self.request("GET /sync", "GET", "client/v3/sync", waits=True, params=query)
            since = {"since": answer["next_batch"]} if "next_batch" in answer else since

    async def wait_sliding(self, over: asyncio.Event, _: str) -> None:
        position: dict[str, str] = {}
        while not over.is_set():
            query = {"timeout": str(WAIT), **position}
            answer = await self.request(
                "POST /sync", "POST", f"client/{SLIDING_SYNC}", waits=True, params=query, json={"conn_id": "load"}
            )
            position = {"pos": answer["pos"]} if "pos" in answer else {}


@pytest.fixture(scope="module")
def room(deployed: Deployed, outside: Outside, alice: Account) -> str:
    """A room of Alice's, for whom there is no rate limit."""
    unlimited = f"INSERT INTO ratelimit_override VALUES ('{alice.user_id}', 0, 0) ON CONFLICT DO NOTHING"  # noqa: S608
    deployed.host.run("cd / && runuser -u postgres -- psql -XAtq -d synapse -f -", stdin=unlimited)

    async def create() -> str:
        async with outside.matrix(alice) as client:
            return str(expect(await client.room_create(name="Load"), nio.RoomCreateResponse).room_id)

    return asyncio.run(create())


def during(outside: Outside, account: Account, room: str, action: Callable[[], object]) -> Load:
    """What clients notice of it."""
    load = Load()

    async def run() -> None:
        async with load.clients(outside, account, room):
            await asyncio.to_thread(action)

    asyncio.run(run())
    print(f"{load.answered}, longest {load.longest:.2f} s, failed {len(load.failed)}")
    return load


def version(outside: Outside) -> str:
    with outside.http() as http:
        server = expect_json(http.get(outside.url("matrix", "/_matrix/federation/v1/version")))["server"]
    return str(server["version"])


def restart(host: Host) -> None:
    for _ in range(2):
        host.run("systemctl restart matrix-synapse", timeout=120)
        time.sleep(3)  # whoever waited has an answer


def test_a_restart_of_synapse_fails_no_request(deployed: Deployed, outside: Outside, alice: Account, room: str) -> None:
    load = during(outside, alice, room, lambda: restart(deployed.host))
    assert load.failed == [] and load.longest < 20 and len(load.answered) == 7, load


# Who connects sends the request only when the next process is there.
SENT_LATE = """import socket, subprocess
link = socket.socket(socket.AF_UNIX)
link.connect("/run/matrix-synapse/1.sock")
subprocess.run(["systemctl", "restart", "matrix-synapse"], check=True)
link.settimeout(30)
link.sendall(b"GET /_matrix/client/versions HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
print(link.recv(15).decode())"""


def test_connections_are_handed_over(deployed: Deployed) -> None:
    """Caddy may be slow between connecting and sending, for lack of time."""
    answer = deployed.host.run("python3 -", stdin=SENT_LATE, timeout=120).stdout
    assert answer == "HTTP/1.1 200 OK\n"
    kept = deployed.host.run("systemctl show -P NFileDescriptorStore matrix-synapse").stdout.strip()
    assert kept == deployed.host.run("ls /run/matrix-synapse/*.sock | wc -l").stdout.strip()


def test_a_request_that_is_under_way_is_answered(deployed: Deployed, outside: Outside, alice: Account) -> None:
    """Its client sends the rest when Synapse was told to stop."""
    body = b'{"device_keys": {}}'

    def slowly() -> Iterator[bytes]:
        yield body[:5]
        time.sleep(0.5)
        deployed.host.run("systemctl restart --no-block matrix-synapse")
        time.sleep(1)
        yield body[5:]

    headers = {**alice.authorization, "Content-Length": str(len(body))}
    with outside.http() as http:
        answer = http.post(outside.url("matrix", "/_matrix/client/v3/keys/query"), content=slowly(), headers=headers)
    assert answer.status_code == 200, answer.text
    deployed.host.run("systemctl start matrix-synapse", timeout=120)  # waits until it is up


def test_an_upgrade_of_synapse_fails_no_request(
    deployed: Deployed, outside: Outside, alice: Account, room: str, tmp_path: Path
) -> None:
    deployment, older = deployed.deployment, tmp_path / "older"
    shutil.copytree(ROOT, older, ignore=shutil.ignore_patterns(".git", ".venv", ".cache", "__pycache__"))
    lock = older / "requirements" / "synapse"
    wanted = lock.with_suffix(".in").read_text().splitlines()
    lock.with_suffix(".in").write_text(
        "".join(f"{line.partition('==')[0]}=={OLDER}\n" if "matrix-synapse" in line else f"{line}\n" for line in wanted)
    )
    command = "uv pip compile -q --universal --generate-hashes --python-version 3.11 --only-binary :all: synapse.in"
    subprocess.run([ROOT / ".venv/bin/uv", *command.split()[1:], "-o", "synapse.txt"], cwd=lock.parent, check=True)
    current = version(outside)
    deployment.root = older
    try:
        deployment.run("-y")
        assert version(outside) == OLDER != current
        deployment.root = ROOT
        load = during(outside, alice, room, lambda: deployment.run("-y"))
    finally:
        deployment.root = ROOT
        deployment.run("-y")
    assert version(outside) == current
    assert load.failed == [] and load.longest < 20 and len(load.answered) == 7, load
