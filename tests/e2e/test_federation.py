"""Two deployments on two machines: their users talk with each other, in the clear and encrypted, and wait for each other.

Nothing but the server names is known to the other side, which finds the rest by well-known on port 443. Each trusts the
other's private authority, as homeservers of one company would; the rest of the world's is not needed.
"""

import asyncio
import io
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nio
import pytest

from tests.conftest import Deployed
from tests.e2e.client import (
    Account,
    Outside,
    expect,
    expect_json,
    messages,
    new_user,
    receive_message,
    send_message,
    sync_until,
)
from tests.protocols.federation_tester import canonical, check, key_problem, problems
from tests.testbed import Host, Testbed

pytestmark = pytest.mark.role("synapse")

# Seconds until a homeserver that was away has what it missed. The others try again within 21 s (max_long_retry_delay, with
# Synapse's jitter); the rest is for busy machines.
CATCH_UP = 50


@dataclass(frozen=True)
class Side:
    """One homeserver, as its users reach it, and one of them."""

    deployed: Deployed
    outside: Outside
    user: Account

    @property
    def host(self) -> Host:
        return self.deployed.host

    @property
    def server_name(self) -> str:
        return self.deployed.server_name

    def client(self, *, encrypted: bool = False) -> Any:
        """matrix-nio's client of the user."""
        return self.outside.matrix(self.user, encrypted=encrypted)

    def ask(self, method: str, path: str, status: int = 200, **more: Any) -> Any:
        """What its homeserver answers the user; the path is that below `/_matrix/client/`."""
        with self.outside.http() as http:
            url = self.outside.url("matrix", f"/_matrix/client/{path}")
            return expect_json(http.request(method, url, headers=self.user.authorization, **more), status)


@pytest.fixture(scope="module")
def sides(both: tuple[Deployed, Deployed], tmp_path_factory: pytest.TempPathFactory) -> tuple[Side, Side]:
    """Alice on Debian 13 and Bob on Debian 12, whose homeservers trust each other's authority.

    They go on trusting it afterwards: nothing else on the machines minds.
    """
    outsides = [Outside(each.host, tmp_path_factory.mktemp(each.host.name)) for each in both]

    def trust(here: Deployed, other: Outside) -> list[str]:
        here.host.put(other.root, "/usr/local/share/ca-certificates/neighbour.crt")
        here.host.run("update-ca-certificates")
        return here.deployment.run("-y").changed

    with ThreadPoolExecutor() as pool:
        for changed in pool.map(trust, both, reversed(outsides)):
            # They read the trust store when they start, so a deploy after a change of it has to start them.
            assert changed == ["Run Synapse", "Run Sydent"], f"who is trusted has changed; the deploy did {changed}"
    first, second = (
        Side(deployed, outside, new_user(outside, name))
        for deployed, outside, name in zip(both, outsides, ("alice", "bob"), strict=True)
    )
    return first, second


@pytest.fixture(scope="module")
def alice(sides: tuple[Side, Side]) -> Side:
    return sides[0]


@pytest.fixture(scope="module")
def bob(sides: tuple[Side, Side]) -> Side:
    return sides[1]


@pytest.fixture(scope="module")
def room(alice: Side, bob: Side) -> str:
    """A room of Alice's to which she has invited Bob, and which he has joined."""

    async def meet() -> str:
        async with alice.client() as hers, bob.client() as his:
            return await _meet(hers, his)

    return asyncio.run(meet())


# --- as other homeservers see it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1], ids=["alices", "bobs"])
def test_other_homeservers_find_and_believe_it(sides: tuple[Side, Side], testbed: Testbed, which: int) -> None:
    side = sides[which]
    findings = check(side.server_name, testbed.resolve, side.outside.root)
    assert problems(findings) == []
    assert [finding.subject for finding in findings if not finding.subject.startswith("port")] == [
        "well-known",
        "address",
        "certificate",
        "TLS",
        "keys",
        "version",
    ]
    assert findings[0].detail == f"matrix.{side.server_name}:443 speaks for {side.server_name}"


def test_the_tester_notices_who_is_not_what_he_seems(alice: Side, bob: Side, testbed: Testbed) -> None:
    def led_astray(name: str) -> str:
        return testbed.resolve(name.replace(alice.server_name, bob.server_name))

    def found(resolver: Callable[[str], str], ca: Path, port_8448: bool = False) -> str:
        return "\n".join(problems(check(alice.server_name, resolver, ca, port_8448=port_8448)))

    assert "certificate verify failed" in found(testbed.resolve, bob.outside.root), "an unknown authority is trusted"
    assert "gives no answer" in found(led_astray, bob.outside.root), "a name's certificate is not looked at"
    assert "port 8448, certificate" in found(testbed.resolve, alice.outside.root, port_8448=True)
    assert "has no address" in found(lambda name: testbed.resolve(f"{name}.nowhere"), alice.outside.root)

    with alice.outside.http() as http:
        keys = expect_json(http.get(alice.outside.url("matrix", "/_matrix/key/v2/server")))
    now = time.time()
    assert key_problem(keys, alice.server_name, now) is None
    assert "are those of" in (key_problem(keys, bob.server_name, now) or "")
    assert "not valid any more" in (key_problem(keys, alice.server_name, now + 10**9) or "")
    assert "is not right" in (
        key_problem({**keys, "valid_until_ts": keys["valid_until_ts"] + 1}, alice.server_name, now) or ""
    )
    assert "is not signed" in (key_problem({**keys, "signatures": {}}, alice.server_name, now) or "")
    assert canonical({"b": "ü", "a": [1, {"d": None, "c": True}]}) == '{"a":[1,{"c":true,"d":null}],"b":"ü"}'.encode()


# --- as users see it ----------------------------------------------------------------------------------------------


def test_messages_go_both_ways(alice: Side, bob: Side, room: str) -> None:
    async def conversation() -> None:
        async with alice.client() as hers, bob.client() as his:
            await send_message(hers, room, "Come and see the beans.")
            await receive_message(his, room, alice.user.user_id, "Come and see the beans.")
            await send_message(his, room, "Auf dem Weg 🚲")
            await receive_message(hers, room, bob.user.user_id, "Auf dem Weg 🚲")

    asyncio.run(conversation())


def test_profiles_of_users_elsewhere(alice: Side, bob: Side) -> None:
    name = f"Bob {secrets.token_hex(3)}"
    bob.ask("PUT", f"v3/profile/{quote(bob.user.user_id)}/displayname", json={"displayname": name})
    assert alice.ask("GET", f"v3/profile/{quote(bob.user.user_id)}")["displayname"] == name
    nobody = alice.ask("GET", f"v3/profile/{quote(f'@nobody:{bob.server_name}')}", status=404)
    assert nobody["errcode"] == "M_NOT_FOUND", nobody


def test_media_of_users_elsewhere(alice: Side, bob: Side) -> None:
    picture = os.urandom(300_000)

    async def upload() -> str:
        async with alice.client() as client:
            answer, _ = await client.upload(
                io.BytesIO(picture), content_type="image/png", filename="beans.png", filesize=len(picture)
            )
            return str(expect(answer, nio.UploadResponse).content_uri)

    media = asyncio.run(upload()).removeprefix("mxc://")
    assert media.startswith(f"{alice.server_name}/")
    with bob.outside.http() as http:
        url = bob.outside.url("matrix", f"/_matrix/client/v1/media/download/{media}")
        response = http.get(url, headers=bob.user.authorization)
        assert response.status_code == 200, response.text
        assert response.content == picture, "Bob got other bytes than Alice had sent"
        assert expect_json(http.get(url), 401)["errcode"] == "M_MISSING_TOKEN", "strangers may download media"


def test_encrypted_messages(alice: Side, bob: Side) -> None:
    """Device keys, one-time keys and the room's key cross from one homeserver to the other; the text never does."""
    greeting, answer = f"The gate's code is {secrets.token_hex(4)}", f"I am in {secrets.token_hex(4)}"

    async def conversation() -> None:
        async with alice.client(encrypted=True) as hers, bob.client(encrypted=True) as his:
            for client in (hers, his):
                expect(await client.sync(), nio.SyncResponse)
                expect(await client.keys_upload(), nio.KeysUploadResponse)
            unclaimed = expect(await his.sync(), nio.SyncResponse).device_key_count.signed_curve25519
            assert unclaimed

            room = await _meet(hers, his, encrypted=True)
            sent = await send_message(hers, room, greeting)
            heard = await receive_message(his, room, alice.user.user_id, greeting)
            assert heard.decrypted and heard.event_id == sent

            # What Alice's homeserver told her of Bob's device, it has from his.
            asked = alice.ask("POST", "v3/keys/query", json={"device_keys": {bob.user.user_id: []}})
            assert asked["failures"] == {}
            device = asked["device_keys"][bob.user.user_id][bob.user.device_id]
            assert device["keys"] == {
                f"ed25519:{bob.user.device_id}": his.olm.account.identity_keys["ed25519"],
                f"curve25519:{bob.user.device_id}": his.olm.account.identity_keys["curve25519"],
            }
            left = expect(await his.sync(full_state=True), nio.SyncResponse).device_key_count.signed_curve25519
            assert left == unclaimed - 1, "Alice's device has not taken one of the one-time keys of Bob's"

            sent = await send_message(his, room, answer)
            heard = await receive_message(hers, room, bob.user.user_id, answer)
            assert heard.decrypted and heard.event_id == sent

            for side in (alice, bob):
                kept = side.ask("GET", f"v3/rooms/{quote(room)}/event/{quote(sent)}")
                assert kept["type"] == "m.room.encrypted" and kept["content"]["algorithm"] == "m.megolm.v1.aes-sha2"
                assert answer not in json.dumps(kept), f"{side.server_name} knows what Bob said"

    asyncio.run(conversation())


def _stopped(host: Host) -> Callable[[], None]:
    """Stop the homeserver; how to start it again."""
    host.run("systemctl stop matrix-synapse")
    return lambda: _start(host)


def _unplugged(host: Host) -> Callable[[], None]:
    """Cut the machine off from all others; how to connect it again."""
    host.cut_off()
    return host.reconnect


def _start(host: Host) -> None:
    host.run("systemctl start matrix-synapse", timeout=120)


@pytest.mark.parametrize("absent", [_stopped, _unplugged], ids=["stopped", "unplugged"])
def test_who_was_away_catches_up(
    alice: Side, bob: Side, room: str, absent: Callable[[Host], Callable[[], None]]
) -> None:
    """Nobody has to say or do anything for it: Alice's homeserver tries again soon."""
    missed = [f"Message {number} {secrets.token_hex(3)}" for number in range(3)]

    async def write() -> None:
        async with alice.client() as hers:
            for text in missed:
                await send_message(hers, room, text)

    async def read() -> list[str]:
        async with bob.client() as his:
            seen: list[str] = []

            def all_seen(sync: nio.SyncResponse) -> bool:
                seen.extend(message.body for message in messages(sync, room))
                return missed[-1] in seen

            await sync_until(his, all_seen, "Bob does not hear what was said while his homeserver was away", CATCH_UP)
            return seen

    come_back = absent(bob.host)
    try:
        asyncio.run(write())
    finally:
        come_back()
    seen = asyncio.run(read())
    assert [text for text in seen if text in missed] == missed, "something is missing, or not in order"


# --- 8448 ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_port_8448(alice: Side) -> Iterator[None]:
    """Debian 13 with federation_port_8448."""
    deployment = alice.deployed.deployment
    chosen = deployment.directory / "group_data" / f"{deployment.name}.py"
    before = chosen.read_text()
    try:
        chosen.write_text(f"{before}federation_port_8448 = True\n")
        assert deployment.run("-y").changed == ["Configure Caddy", "Run Caddy"]
        yield
    finally:
        chosen.write_text(before)
        deployment.run("-y")


@pytest.mark.usefixtures("with_port_8448")
def test_federation_on_port_8448_for_those_who_want_it(alice: Side, testbed: Testbed) -> None:
    findings = check(alice.server_name, testbed.resolve, alice.outside.root, port_8448=True)
    assert problems(findings) == []
    assert any(finding.subject == "port 8448, keys" for finding in findings)
    with alice.outside.http() as http:
        for name in (alice.outside.url(""), alice.outside.url("matrix")):
            assert expect_json(http.get(f"{name}:8448/_matrix/federation/v1/version"))["server"]["name"] == "Synapse"
            for path in ("/_matrix/client/versions", "/_synapse/admin/v1/server_version", "/"):
                assert http.get(f"{name}:8448{path}").status_code == 404, f"{path} is no business of homeservers"
        for name in (alice.outside.url(""), alice.outside.url("matrix")):
            plain = name.replace("https:", "http:")
            assert http.get(f"{plain}/x").headers["location"] == f"{name}/x", "browsers are led to the wrong port"
    listening = alice.host.run("ss -Hlntup sport = :8448").stdout.split("\n")
    assert [line.split()[0] for line in listening if line] == ["tcp"], "homeservers do not speak HTTP/3"


async def _meet(hers: nio.AsyncClient, his: nio.AsyncClient, *, encrypted: bool = False) -> str:
    """A new room with both in it, invited and joined across the homeservers."""
    state = [nio.EnableEncryptionBuilder().as_dict()] if encrypted else []
    room = str(expect(await hers.room_create(name="Garden", initial_state=state), nio.RoomCreateResponse).room_id)
    expect(await hers.room_invite(room, his.user_id), nio.RoomInviteResponse)
    await sync_until(his, lambda sync: room in sync.rooms.invite, f"{his.user_id} sees no invitation")
    expect(await his.join(room), nio.JoinResponse)
    await sync_until(his, lambda _: room in his.rooms, f"{his.user_id} is not in the room")
    # Only those are told the room's key whom the client knows to be in it.
    await sync_until(hers, lambda _: his.user_id in hers.rooms[room].users, f"{hers.user_id} sees nobody join")
    return room
