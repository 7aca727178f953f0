"""Users find the homeserver, log in, and send each other messages and files."""

import asyncio
import io
import json
import os
import secrets
import time
from typing import Any

import httpx
import nio
import pytest

from tests.conftest import real_proxy
from tests.e2e.client import (
    CADDY_ROOT,
    TIMEOUT,
    Account,
    Outside,
    expect,
    expect_json,
    receive_message,
    send_message,
    sync_until,
)

pytestmark = pytest.mark.role("synapse")

# max_upload_size as in group_data/all.py, in bytes.
MAX_UPLOAD = 50 * 1024**2
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

        # The URLs that were found work.
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
        assert keys["server_name"] == outside.server_name, (
            "the homeserver signs for another server name than its users have"
        )


def test_a_client_library_finds_the_homeserver(outside: Outside) -> None:
    found = asyncio.run(outside.discover())
    assert found.homeserver_url == outside.url("matrix")
    assert found.identity_server_url == outside.url("identity")


def test_two_users_exchange_messages(outside: Outside, alice: Account, bob: Account) -> None:
    assert alice.user_id.endswith(f":{outside.server_name}"), "user IDs do not end with the server name"

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


def test_media_is_downloaded_unchanged_and_only_by_users(outside: Outside, alice: Account, bob: Account) -> None:
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
        assert response.content == picture, "Bob got other bytes than Alice uploaded"
        assert expect_json(http.get(url), 401)["errcode"] == "M_MISSING_TOKEN", (
            "unauthenticated clients may download media"
        )
        legacy = http.get(outside.url("matrix", f"/_matrix/media/v3/download/{media}"))
        assert legacy.status_code == 404, f"media can be downloaded without login by the old API: {legacy.status_code}"


@pytest.mark.parametrize("http2", [True, False], ids=["http2", "http1"])
def test_a_file_of_the_maximum_size_can_be_uploaded(outside: Outside, alice: Account, http2: bool) -> None:
    answer = upload(outside, alice, bytes(MAX_UPLOAD), http2=http2)
    assert expect_json(answer)["content_uri"].startswith(f"mxc://{outside.server_name}/")


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
@pytest.mark.parametrize("http2", [True, False], ids=["http2", "http1"])
def test_a_larger_file_is_refused_with_an_error_that_clients_know(
    outside: Outside, alice: Account, http2: bool, announced: bool
) -> None:
    """Clients have a message for M_TOO_LARGE; they report any other error as unknown, or retry the upload."""
    answer = upload(outside, alice, bytes(MAX_UPLOAD + 1), http2=http2, announced=announced)
    assert expect_json(answer, 413)["errcode"] == "M_TOO_LARGE"
    assert answer.headers.get("access-control-allow-origin") == "*", "web clients may not read the error"
    with outside.http() as http:
        limit = expect_json(
            http.get(outside.url("matrix", "/_matrix/client/v1/media/config"), headers=alice.authorization)
        )
    assert limit == {"m.upload.size": MAX_UPLOAD}, "clients are told another limit than the one in force"


def test_native_sliding_sync_lists_rooms(outside: Outside, alice: Account) -> None:
    """What Element X uses."""
    asyncio.run(_create_room(outside, alice, name := f"Room {secrets.token_hex(4)}"))
    body = {
        "conn_id": secrets.token_hex(4),
        "lists": {"all": {"ranges": [[0, 50]], "required_state": [["m.room.name", ""]], "timeline_limit": 1}},
    }
    with outside.http() as http:
        versions = expect_json(http.get(outside.url("matrix", "/_matrix/client/versions")))
        assert versions["unstable_features"].get("org.matrix.simplified_msc3575"), "Element X refuses this homeserver"
        answer = expect_json(http.post(outside.url("matrix", NATIVE), json=body, headers=alice.authorization))
    names = [room.get("name") for room in answer["rooms"].values()]
    assert name in names, f"sliding sync lists {names}, but not {name!r}"


def test_old_sliding_sync_lists_rooms(outside: Outside, alice: Account) -> None:
    """What Element X used before 2025, and some clients still use."""
    if not real_proxy():
        pytest.skip("the stand-in serves no client: set SLIDING_SYNC_BINARY to the real Sliding Sync proxy")
    asyncio.run(_create_room(outside, alice, name := f"Room {secrets.token_hex(4)}"))
    body = {
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
        unauthenticated = http.post(outside.url("sliding", OLD), json=body, headers={"Authorization": "Bearer nobody"})
        assert unauthenticated.status_code == 401, f"{unauthenticated.status_code} {unauthenticated.text}"
        names: set[str] = set()
        position: dict[str, Any] = {}
        deadline = time.monotonic() + TIMEOUT
        while name not in names and time.monotonic() < deadline:
            answer = expect_json(
                http.post(
                    outside.url("sliding", OLD),
                    params={"timeout": 2000, **position},
                    json=body,
                    headers=alice.authorization,
                )
            )
            position = {"pos": answer["pos"]}
            names |= {room.get("name", "") for room in answer["rooms"].values()}
    assert name in names, f"the proxy lists {sorted(names)}, but not {name!r}"


@pytest.mark.parametrize("kind", ["user", "guest"])
def test_registration_is_closed(outside: Outside, kind: str) -> None:
    body = {"username": f"visitor-{secrets.token_hex(3)}", "password": secrets.token_urlsafe(20)}
    with outside.http() as http:
        url = outside.url("matrix", "/_matrix/client/v3/register")
        answer = expect_json(http.post(url, params={"kind": kind}, json=body), 403)
    assert "disabled" in answer["error"], answer


def test_a_wrong_password_is_refused(outside: Outside, alice: Account) -> None:
    body = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": alice.user_id},
        "password": f"{alice.password}x",
    }
    with outside.http() as http:
        answer = expect_json(http.post(outside.url("matrix", "/_matrix/client/v3/login"), json=body), 403)
    assert answer["errcode"] == "M_FORBIDDEN", answer


def test_attempts_to_log_in_are_counted_as_one_homeserver(outside: Outside) -> None:
    """Synapse allows five from an address before it makes it wait (rc_login), and counts them for each of its listeners."""
    url, answers = outside.url("matrix", "/_matrix/client/v3/login"), []
    for number in range(7):
        user = {"type": "m.id.user", "user": f"nobody-{number}"}
        body = json.dumps({"type": "m.login.password", "identifier": user, "password": "wrong"})
        # From an address of its own, so that the other tests are not made to wait.
        options = f"--cacert {CADDY_ROOT} --interface 127.0.0.77 --connect-to ::127.0.0.1:443"
        command = f"curl -sS {options} -o /dev/null -w '%{{http_code}}' -d @- {url}"
        answers.append(outside.host.run(command, stdin=body).stdout)
    assert answers == [*["403"] * 5, "429", "429"]


def upload(
    outside: Outside, account: Account, content: bytes, *, http2: bool, announced: bool = True
) -> httpx.Response:
    """announced: send a Content-Length; without it the size is not known before the end."""
    headers = {**account.authorization, "Content-Type": "application/octet-stream"}
    if announced:
        headers["Content-Length"] = str(len(content))
    # In chunks, because httpx takes seconds to send this much at once over HTTP/2.
    step = 1 << 16
    pieces = (content[at : at + step] for at in range(0, len(content), step))
    with outside.http(http2=http2) as http:
        return http.post(outside.url("matrix", "/_matrix/media/v3/upload"), content=pieces, headers=headers)


async def _create_room(outside: Outside, account: Account, name: str) -> None:
    async with outside.matrix(account) as client:
        expect(await client.room_create(name=name), nio.RoomCreateResponse)
