"""Requests that clients send while something happens to Synapse, and what becomes of them."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import nio

from tests.e2e.client import Account, Outside, expect
from tests.testbed import Host

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


def room_of(host: Host, outside: Outside, account: Account) -> str:
    """A room of this account, for which there is no rate limit from now on."""
    unlimited = f"INSERT INTO ratelimit_override VALUES ('{account.user_id}', 0, 0) ON CONFLICT DO NOTHING"  # noqa: S608
    host.run("cd / && runuser -u postgres -- psql -XAtq -d synapse -f -", stdin=unlimited)

    async def create() -> str:
        async with outside.matrix(account) as client:
            return str(expect(await client.room_create(name="Load"), nio.RoomCreateResponse).room_id)

    return asyncio.run(create())


def during(outside: Outside, account: Account, room: str, action: Callable[[], object]) -> Load:
    """What clients notice of it."""
    load = Load()

    async def run() -> None:
        async with load.clients(outside, account, room):
            await asyncio.to_thread(action)

    asyncio.run(run())
    if load.failed:
        said = outside.host.run(
            "journalctl -u caddy -o cat --no-pager -n 2000 | grep -F '\"error\"' | tail -n 20; true"
        ).stdout
        print(f"What Caddy said:\n{said}")
    print(f"{load.answered}, longest {load.longest:.2f} s, failed {len(load.failed)}")
    return load
