"""A new and an old client of one user, side by side: simplified sliding sync by Synapse, old sliding sync by the proxy."""

import asyncio
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import httpx
import nio
import pytest

from tests.conftest import real_proxy
from tests.e2e.client import TIMEOUT, Account, Outside, expect, expect_json, send_message, sync_until
from tests.e2e.test_messages import NATIVE, OLD

pytestmark = pytest.mark.role("sliding_sync", "synapse")

KINDS = ["new", "old"]
# Few enough for the limit that Synapse has for a user who talks without a pause.
MESSAGES = 5
LISTS = {"all": {"ranges": [[0, 50]], "required_state": [["m.room.name", ""]], "timeline_limit": 5}}


@dataclass
class Client:
    """Waits for news as a client does. kind: "new" or "old". It goes on from where it was, whatever happens to the server."""

    outside: Outside
    account: Account
    kind: str
    rooms: set[str] = field(default_factory=set)
    position: dict[str, str] = field(default_factory=dict)
    connection: str = field(default_factory=lambda: secrets.token_hex(4))

    def poll(self, http: httpx.Client, patience: int = 5) -> list[str]:
        """What was said since; patience: seconds for the server to wait for something to be said."""
        lists: dict[str, Any] = {"all": {**LISTS["all"], **({"sort": ["by_recency"]} if self.kind == "old" else {})}}
        url = self.outside.url("matrix", NATIVE) if self.kind == "new" else self.outside.url("sliding", OLD)
        response = http.post(
            url,
            params={"timeout": patience * 1000, **self.position},
            json={"conn_id": self.connection, "lists": lists},
            headers=self.account.authorization,
        )
        if response.status_code == 400 and response.json().get("errcode") == "M_UNKNOWN_POS":
            # What the specification wants of clients whose server has forgotten them.
            self.position = {}
            return []
        answer = expect_json(response)
        self.position = {"pos": answer["pos"]}
        self.rooms |= set(answer["rooms"])
        events = [event for room in answer["rooms"].values() for event in room.get("timeline", [])]
        return [event["content"]["body"] for event in events if event["type"] == "m.room.message"]

    def hear(self, text: str, *, through_outages: bool = False) -> float:
        """When a message is there. Raises AssertionError."""
        deadline = time.monotonic() + TIMEOUT
        with self.outside.http() as http:
            while time.monotonic() < deadline:
                try:
                    if text in self.poll(http):
                        return time.monotonic()
                except (AssertionError, httpx.TransportError):
                    if not through_outages:
                        raise
                    time.sleep(0.5)
        raise AssertionError(f"the {self.kind} client does not hear {text!r}")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "old" and not real_proxy():
        pytest.skip("the stand-in serves no client: name the real Sliding Sync proxy with SLIDING_SYNC_BINARY")
    return str(request.param)


@pytest.fixture(scope="module")
def room(outside: Outside, alice: Account, bob: Account) -> str:
    """A room of both."""

    async def meet() -> str:
        async with outside.matrix(alice) as hers, outside.matrix(bob) as his:
            made = expect(await hers.room_create(name="Greenhouse", invite=[bob.user_id]), nio.RoomCreateResponse)
            await sync_until(his, lambda sync: made.room_id in sync.rooms.invite, "Bob sees no invitation")
            expect(await his.join(made.room_id), nio.JoinResponse)
            return str(made.room_id)

    return asyncio.run(meet())


def begun(client: Client, room: str) -> None:
    """Synchronise until the room is there and nothing is left to be told."""
    deadline = time.monotonic() + TIMEOUT
    with client.outside.http() as http:
        while room not in client.rooms or client.poll(http, patience=0):
            assert time.monotonic() < deadline, f"the {client.kind} client does not see the room"
            client.poll(http, patience=1)


def test_clients_see_the_same_and_at_once(
    outside: Outside, alice: Account, bob: Account, room: str, pool: ThreadPoolExecutor
) -> None:
    clients = [Client(outside, alice, kind) for kind in KINDS if kind == "new" or real_proxy()]
    for client in clients:
        begun(client, room)
    delays: dict[str, list[float]] = {client.kind: [] for client in clients}
    for number in range(MESSAGES):
        text = f"{number} {secrets.token_hex(4)}"
        waiting = [pool.submit(client.hear, text) for client in clients]
        # They wait already when something is said.
        time.sleep(0.3)
        begin = asyncio.run(_said(outside, bob, room, text))
        for client, heard in zip(clients, waiting, strict=True):
            delays[client.kind].append(heard.result() - begin)
    assert all(median(each) < 1 for each in delays.values()), f"seconds from sending to arrival: {delays}"
    assert len({frozenset(client.rooms) for client in clients}) == 1, [client.rooms for client in clients]


async def _said(outside: Outside, account: Account, room: str, text: str) -> float:
    """Say it on a connection that is there; when that was begun."""
    async with outside.matrix(account) as client:
        await client.whoami()
        begin = time.monotonic()
        await send_message(client, room, text)
        return begin


def test_a_restart_of_the_proxy_does_not_disturb_new_clients(
    outside: Outside, alice: Account, bob: Account, room: str, pool: ThreadPoolExecutor
) -> None:
    client = Client(outside, alice, "new")
    begun(client, room)
    restart = pool.submit(outside.host.run, "systemctl restart sliding-sync")
    for _ in range(2):
        text = secrets.token_hex(4)
        heard = pool.submit(client.hear, text)
        begin = asyncio.run(_said(outside, bob, room, text))
        assert heard.result() - begin < 5
    restart.result()


def test_clients_go_on_after_a_restart_of_the_homeserver(
    outside: Outside, alice: Account, bob: Account, room: str, kind: str
) -> None:
    """The proxy too takes it up again by itself."""
    if not real_proxy():
        pytest.skip("the stand-in ends when the homeserver does: name the real proxy with SLIDING_SYNC_BINARY")
    client = Client(outside, alice, kind)
    begun(client, room)
    # The unit is active when Synapse says that it answers.
    outside.host.run("systemctl restart matrix-synapse", timeout=120)
    text = secrets.token_hex(4)
    asyncio.run(_said(outside, bob, room, text))
    client.hear(text, through_outages=True)
