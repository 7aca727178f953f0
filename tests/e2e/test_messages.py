"""Two people find the homeserver, log in, talk, and send each other files."""

import asyncio
import io
import os
import secrets
import time
from typing import Any

import httpx
import nio
import pytest

from tests.conftest import real_proxy
from tests.e2e.client import TIMEOUT, Account, Outside, expect, expect_json, receive_message, send_message, sync_until

pytestmark = pytest.mark.role("synapse")

# The default of group_data/all.py, which a complete deployment keeps.
LARGEST = 50 * 1024**2
NATIVE = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
OLD = "/_matrix/client/unstable/org.matrix.msc3575/sync"


def test_clients_find_everything_from_the_server_name(outside: Outside) -> None:
    with outside.http() as http:
        response = http.get(outside.url("", "/.well-known/matrix/client"))
        found = expect_json(response)
        assert response.headers.get("access-control-allow-origin") == "*", "web clients may not read the well-known"
        assert response.headers["content-type"].startswith("application/json")
        assert found["m.homeserver"] == {"base_url": outside.url("matrix")}
        assert found["m.identity_server"] == {"base_url": outside.url("identity")}
        assert found["org.matrix.msc3575.proxy"] == {"url": outside.url("sliding")}

        # What is found must be there.
        assert (
            "v1.11" in expect_json(http.get(f"{found['m.homeserver']['base_url']}/_matrix/client/versions"))["versions"]
        )
        assert expect_json(http.get(f"{found['m.identity_server']['base_url']}/_matrix/identity/v2")) == {}
        assert "version" in expect_json(http.get(f"{found['org.matrix.msc3575.proxy']['url']}/client/server.json"))


def test_homeservers_find_it_from_the_server_name(outside: Outside) -> None:
    with outside.http() as http:
        response = http.get(outside.url("", "/.well-known/matrix/server"))
        assert expect_json(response) == {"m.server": f"matrix.{outside.server_name}:443"}
        assert response.headers.get("access-control-allow-origin") == "*", "federation testers may not read it"
        version = expect_json(http.get(f"https://{response.json()['m.server']}/_matrix/federation/v1/version"))
        assert version["server"]["name"] == "Synapse"
        keys = expect_json(http.get(f"https://{response.json()['m.server']}/_matrix/key/v2/server"))
        assert keys["server_name"] == outside.server_name, "the homeserver signs for another name than its users have"


def test_a_client_library_finds_the_homeserver(outside: Outside) -> None:
    found = asyncio.run(outside.discover())
    assert found.homeserver_url == outside.url("matrix")
    assert found.identity_server_url == outside.url("identity")


def test_two_users_talk(outside: Outside, alice: Account, bob: Account) -> None:
    assert alice.user_id.endswith(f":{outside.server_name}"), "users are called after the server name"

    async def conversation() -> None:
        async with outside.matrix(alice) as hers, outside.matrix(bob) as his:
            room = expect(await hers.room_create(name="Garden"), nio.RoomCreateResponse).room_id
            expect(await hers.room_invite(room, bob.user_id), nio.RoomInviteResponse)
            await sync_until(his, lambda sync: room in sync.rooms.invite, "Bob sees no invitation")
            expect(await his.join(room), nio.JoinResponse)

            await send_message(hers, room, "The beans are up.")
            await receive_message(his, room, alice.user_id, "The beans are up.")
            await send_message(his, room, "Grüße aus dem Gewächshaus 🌱")
            await receive_message(hers, room, bob.user_id, "Grüße aus dem Gewächshaus 🌱")

    asyncio.run(conversation())


def test_media_arrives_unchanged_and_only_for_users(outside: Outside, alice: Account, bob: Account) -> None:
    picture = os.urandom(300_000)

    async def upload() -> str:
        async with outside.matrix(alice) as client:
            answer, _ = await client.upload(
                io.BytesIO(picture), content_type="image/png", filename="beans.png", filesize=len(picture)
            )
            return str(expect(answer, nio.UploadResponse).content_uri)

    uri = asyncio.run(upload())
    assert uri.startswith(f"mxc://{outside.server_name}/")
    media = uri.removeprefix("mxc://")
    with outside.http() as http:
        url = outside.url("matrix", f"/_matrix/client/v1/media/download/{media}")
        response = http.get(url, headers=bob.authorization)
        assert response.status_code == 200, response.text
        assert response.content == picture, "Bob got other bytes than Alice had sent"
        assert expect_json(http.get(url), 401)["errcode"] == "M_MISSING_TOKEN", "strangers may download media"
        old = http.get(outside.url("matrix", f"/_matrix/media/v3/download/{media}"))
        assert old.status_code == 404, f"media can be had without logging in by the old address: {old.status_code}"


@pytest.mark.parametrize("http2", [True, False], ids=["http2", "http1"])
def test_a_file_of_the_largest_size_can_be_sent(outside: Outside, alice: Account, http2: bool) -> None:
    answer = _upload(outside, alice, bytes(LARGEST), http2=http2)
    assert expect_json(answer)["content_uri"].startswith(f"mxc://{outside.server_name}/")


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
@pytest.mark.parametrize("http2", [True, False], ids=["http2", "http1"])
def test_a_larger_file_is_refused_in_words_for_clients(
    outside: Outside, alice: Account, http2: bool, announced: bool
) -> None:
    """Clients show their own text for M_TOO_LARGE; anything else is an unknown error, or is sent again and again."""
    answer = _upload(outside, alice, bytes(LARGEST + 1), http2=http2, announced=announced)
    assert expect_json(answer, 413)["errcode"] == "M_TOO_LARGE"
    assert answer.headers.get("access-control-allow-origin") == "*", "web clients may not read the refusal"
    with outside.http() as http:
        limit = expect_json(
            http.get(outside.url("matrix", "/_matrix/client/v1/media/config"), headers=alice.authorization)
        )
    assert limit == {"m.upload.size": LARGEST}, "clients are told another limit than the one that holds"


def test_native_sliding_sync_lists_rooms(outside: Outside, alice: Account) -> None:
    """What Element X uses."""
    asyncio.run(_create_room(outside, alice, name := f"Room {secrets.token_hex(4)}"))
    wish = {
        "conn_id": secrets.token_hex(4),
        "lists": {"all": {"ranges": [[0, 50]], "required_state": [["m.room.name", ""]], "timeline_limit": 1}},
    }
    with outside.http() as http:
        versions = expect_json(http.get(outside.url("matrix", "/_matrix/client/versions")))
        assert versions["unstable_features"].get("org.matrix.simplified_msc3575"), "Element X refuses this homeserver"
        answer = expect_json(http.post(outside.url("matrix", NATIVE), json=wish, headers=alice.authorization))
    names = [room.get("name") for room in answer["rooms"].values()]
    assert name in names, f"sliding sync lists {names}, but not {name!r}"


def test_old_sliding_sync_lists_rooms(outside: Outside, alice: Account) -> None:
    """What Element X used before 2025, and clients that were never changed."""
    if not real_proxy():
        pytest.skip("the stand-in serves no client: name the real Sliding Sync proxy with SLIDING_SYNC_BINARY")
    asyncio.run(_create_room(outside, alice, name := f"Room {secrets.token_hex(4)}"))
    wish = {
        "lists": {
            "all": {
                "ranges": [[0, 50]],
                "sort": ["by_recency"],
                "required_state": [["m.room.name", ""]],
                "timeline_limit": 1,
            }
        }
    }
    with outside.http() as http:
        stranger = http.post(outside.url("sliding", OLD), json=wish, headers={"Authorization": "Bearer nobody"})
        assert stranger.status_code == 401, f"the proxy let a stranger in: {stranger.status_code} {stranger.text}"
        names: set[str] = set()
        position: dict[str, Any] = {}
        deadline = time.monotonic() + TIMEOUT
        while name not in names and time.monotonic() < deadline:
            answer = expect_json(
                http.post(
                    outside.url("sliding", OLD),
                    params={"timeout": 2000, **position},
                    json=wish,
                    headers=alice.authorization,
                )
            )
            position = {"pos": answer["pos"]}
            names |= {room.get("name", "") for room in answer["rooms"].values()}
    assert name in names, f"the proxy lists {sorted(names)}, but not {name!r}"


@pytest.mark.parametrize("kind", ["user", "guest"])
def test_strangers_make_no_accounts(outside: Outside, kind: str) -> None:
    body = {"username": f"stranger-{secrets.token_hex(3)}", "password": secrets.token_urlsafe(20)}
    with outside.http() as http:
        url = outside.url("matrix", "/_matrix/client/v3/register")
        answer = expect_json(http.post(url, params={"kind": kind}, json=body), 403)
    assert "disabled" in answer["error"], answer


def test_a_wrong_password_is_refused(outside: Outside, alice: Account) -> None:
    wish = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": alice.user_id},
        "password": f"{alice.password}x",
    }
    with outside.http() as http:
        answer = expect_json(http.post(outside.url("matrix", "/_matrix/client/v3/login"), json=wish), 403)
    assert answer["errcode"] == "M_FORBIDDEN", answer


def _upload(
    outside: Outside, account: Account, content: bytes, *, http2: bool, announced: bool = True
) -> httpx.Response:
    """announced: with a Content-Length; without, nobody knows the size before it has arrived."""
    headers = {**account.authorization, "Content-Type": "application/octet-stream"}
    if announced:
        headers["Content-Length"] = str(len(content))
    # In pieces, because the client takes seconds to send this much at once over HTTP/2.
    step = 1 << 16
    pieces = (content[at : at + step] for at in range(0, len(content), step))
    with outside.http(http2=http2) as http:
        return http.post(outside.url("matrix", "/_matrix/media/v3/upload"), content=pieces, headers=headers)


async def _create_room(outside: Outside, account: Account, name: str) -> None:
    async with outside.matrix(account) as client:
        expect(await client.room_create(name=name), nio.RoomCreateResponse)
