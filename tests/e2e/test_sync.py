"""Two clients of one user: a new one with Synapse's simplified sliding sync, and an old one with the Sliding Sync proxy."""

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
# Few enough for the rate limit that Synapse has for messages of a user.
MESSAGES = 5
LISTS = {"all": {"ranges": [[0, 50]], "required_state": [["m.room.name", ""]], "timeline_limit": 5}}


@dataclass
class Client:
    """A sliding sync client. kind: "new" or "old". It keeps its position, also when the server restarts."""

    outside: Outside
    account: Account
    kind: str
    rooms: set[str] = field(default_factory=set)
    position: dict[str, str] = field(default_factory=dict)
    connection: str = field(default_factory=lambda: secrets.token_hex(4))

    def poll(self, http: httpx.Client, timeout: int = 5) -> list[str]:
        """The new messages. timeout: seconds that the server waits for one."""
        lists: dict[str, Any] = {"all": {**LISTS["all"], **({"sort": ["by_recency"]} if self.kind == "old" else {})}}
        url = self.outside.url("matrix", NATIVE) if self.kind == "new" else self.outside.url("sliding", OLD)
        response = http.post(
            url,
            params={"timeout": timeout * 1000, **self.position},
            json={"conn_id": self.connection, "lists": lists},
            headers=self.account.authorization,
        )
        if response.status_code == 400 and response.json().get("errcode") == "M_UNKNOWN_POS":
            # As the specification requires of clients when the server does not know their position.
            self.position = {}
            return []
        answer = expect_json(response)
        self.position = {"pos": answer["pos"]}
        self.rooms |= set(answer["rooms"])
        events = [event for room in answer["rooms"].values() for event in room.get("timeline", [])]
        return [event["content"]["body"] for event in events if event["type"] == "m.room.message"]

    def receive(self, text: str, *, through_outages: bool = False) -> float:
        """Poll until a message arrives; returns when, as time.monotonic(). Raises AssertionError."""
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
        raise AssertionError(f"the {self.kind} client does not receive {text!r}")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "old" and not real_proxy():
        pytest.skip("the stand-in serves no client: set SLIDING_SYNC_BINARY to the real Sliding Sync proxy")
    return str(request.param)


@pytest.fixture(scope="module")
def room(outside: Outside, alice: Account, bob: Account) -> str:
    """A room that both users are in."""

    async def create() -> str:
        async with outside.matrix(alice) as hers, outside.matrix(bob) as his:
            created = expect(await hers.room_create(name="Greenhouse", invite=[bob.user_id]), nio.RoomCreateResponse)
            await sync_until(his, lambda sync: created.room_id in sync.rooms.invite, "Bob sees no invitation")
            expect(await his.join(created.room_id), nio.JoinResponse)
            return str(created.room_id)

    return asyncio.run(create())


def sync_completely(client: Client, room: str) -> None:
    """Poll until the room is listed and no messages are left."""
    deadline = time.monotonic() + TIMEOUT
    with client.outside.http() as http:
        while room not in client.rooms or client.poll(http, timeout=0):
            assert time.monotonic() < deadline, f"the {client.kind} client does not see the room"
            client.poll(http, timeout=1)


def test_old_and_new_clients_see_the_same_rooms_and_messages_within_a_second(
    outside: Outside, alice: Account, bob: Account, room: str, pool: ThreadPoolExecutor
) -> None:
    clients = [Client(outside, alice, kind) for kind in KINDS if kind == "new" or real_proxy()]
    for client in clients:
        sync_completely(client, room)
    delays: dict[str, list[float]] = {client.kind: [] for client in clients}
    for number in range(MESSAGES):
        text = f"{number} {secrets.token_hex(4)}"
        waiting = [pool.submit(client.receive, text) for client in clients]
        # The clients are waiting already when the message is sent.
        time.sleep(0.3)
        begin = asyncio.run(_send_timed(outside, bob, room, text))
        for client, received in zip(clients, waiting, strict=True):
            delays[client.kind].append(received.result() - begin)
    assert all(median(each) < 1 for each in delays.values()), f"seconds from sending to arrival: {delays}"
    assert len({frozenset(client.rooms) for client in clients}) == 1, [client.rooms for client in clients]


async def _send_timed(outside: Outside, account: Account, room: str, text: str) -> float:
    """Send a message on an open connection; returns when sending began, as time.monotonic()."""
    async with outside.matrix(account) as client:
        await client.whoami()
        begin = time.monotonic()
        await send_message(client, room, text)
        return begin


def test_a_restart_of_the_proxy_does_not_affect_new_clients(
    outside: Outside, alice: Account, bob: Account, room: str, pool: ThreadPoolExecutor
) -> None:
    client = Client(outside, alice, "new")
    sync_completely(client, room)
    restart = pool.submit(outside.host.run, "systemctl restart sliding-sync")
    for _ in range(2):
        text = secrets.token_hex(4)
        received = pool.submit(client.receive, text)
        begin = asyncio.run(_send_timed(outside, bob, room, text))
        assert received.result() - begin < 5
    restart.result()


def test_clients_continue_after_a_restart_of_the_homeserver(
    outside: Outside, alice: Account, bob: Account, room: str, kind: str
) -> None:
    """The proxy reconnects by itself."""
    if not real_proxy():
        pytest.skip(
            "the stand-in ends when the homeserver does: set SLIDING_SYNC_BINARY to the real Sliding Sync proxy"
        )
    client = Client(outside, alice, kind)
    sync_completely(client, room)
    # `restart` returns when Synapse has told systemd that it is ready.
    outside.host.run("systemctl restart matrix-synapse", timeout=120)
    text = secrets.token_hex(4)
    asyncio.run(_send_timed(outside, bob, room, text))
    client.receive(text, through_outages=True)
