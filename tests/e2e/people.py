"""Two users of a homeserver, before and after something is done with its machine."""

import asyncio
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nio

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
from tests.e2e.identity import MAIL_SERVER, bind, identity_login, receive_mail, request_validation, validation_link

# Messages of Alice, Bob and Alice; Bob has not received the last.
PLAIN = ["The beans are up.", "Grüße aus dem Gewächshaus 🌱", "Who waters them?"]
ENCRYPTED = ["The gate's code is 4711.", "I am in.", "Change it tomorrow."]


@dataclass(frozen=True)
class UserData:
    """What two users have on their homeserver.

    keys: directory of their clients' encryption keys. since: Bob's sync token. identity: the headers of their logins at the
    identity server, where the address is bound to Alice.
    """

    alice: Account
    bob: Account
    keys: Path
    plain: str
    encrypted: str
    since: str
    media: str
    picture: bytes = field(repr=False)
    address: str
    identity: tuple[dict[str, str], dict[str, str]] = field(repr=False)


async def use_everything(
    outside: Outside, directory: Path, user: Callable[[Outside, str], Account] = new_user
) -> UserData:
    """Two users send messages with and without encryption, upload media, and bind an address. user: makes each of them."""
    host, mailbox = outside.host, "gardener"
    host.run("sh -s", stdin=MAIL_SERVER.format(domain=host.domain, user=mailbox), timeout=300)
    alice, bob = [await asyncio.to_thread(user, outside, name) for name in ("alice", "bob")]
    picture, address, keys = os.urandom(300_000), f"{mailbox}@{host.domain}", directory / "keys"
    keys.mkdir()
    async with outside.matrix(alice, keys=keys) as hers, outside.matrix(bob, keys=keys) as his:
        for client in (hers, his):
            expect(await client.sync(), nio.SyncResponse)
            expect(await client.keys_upload(), nio.KeysUploadResponse)
        plain, encrypted = (
            await create_shared_room(hers, his),
            await create_shared_room(hers, his, nio.EnableEncryptionBuilder().as_dict()),
        )
        rooms = {plain: PLAIN, encrypted: ENCRYPTED}
        for room, written in rooms.items():
            await send_message(hers, room, written[0])
            await receive_message(his, room, alice.user_id, written[0])
            await send_message(his, room, written[1])
            await receive_message(hers, room, bob.user_id, written[1])
        since = expect(await his.sync(), nio.SyncResponse).next_batch
        for room, written in rooms.items():
            await send_message(hers, room, written[2])
        answer, _ = await hers.upload(io.BytesIO(picture), content_type="image/png", filesize=len(picture))
        media = expect(answer, nio.UploadResponse).content_uri.removeprefix("mxc://")
    with outside.http() as http:
        identity = identity_login(outside, http, alice), identity_login(outside, http, bob)
        session = request_validation(outside, http, identity[0], address)
        http.get(validation_link(receive_mail(outside, mailbox, address, directory)))
        expect_json(bind(outside, http, alice, identity[0], session))
    return UserData(alice, bob, keys, plain, encrypted, since, media, picture, address, identity)


async def create_shared_room(hers: nio.AsyncClient, his: nio.AsyncClient, *state: dict[str, Any]) -> str:
    """Create a room that both users are in; returns its ID."""
    created = await hers.room_create(invite=[his.user_id], initial_state=state)
    room = str(expect(created, nio.RoomCreateResponse).room_id)
    expect(await his.join(room), nio.JoinResponse)
    for client in (hers, his):
        await sync_until(client, lambda sync: room in sync.rooms.join, f"{client.user_id} is not in the room")
    await sync_until(hers, lambda _: len(hers.rooms[room].users) == 2, "Alice does not see Bob")
    return room


def bodies(sync: nio.SyncResponse, room: str) -> list[str]:
    return [message.body for message in messages(sync, room)]


def exchange(outside: Outside, users: UserData, text: str) -> None:
    """Alice sends Bob a message in each room, with the sessions and keys that they had before."""

    async def conversation() -> None:
        async with (
            outside.matrix(users.alice, keys=users.keys) as hers,
            outside.matrix(users.bob, keys=users.keys) as his,
        ):
            for each in (hers, his):
                expect(await each.sync(full_state=True), nio.SyncResponse)
            for room in (users.plain, users.encrypted):
                await send_message(hers, room, text)
                received = await receive_message(his, room, users.alice.user_id, text)
                assert received.decrypted == (room == users.encrypted)

    asyncio.run(conversation())


def continue_as_before(outside: Outside, users: UserData) -> None:
    """Bob gets exactly the messages that he has not received, both can read all of them, and they write more."""
    rooms = {users.plain: PLAIN, users.encrypted: ENCRYPTED}

    async def read() -> None:
        async with (
            outside.matrix(users.alice, keys=users.keys) as hers,
            outside.matrix(users.bob, keys=users.keys) as his,
        ):
            unread = expect(await his.sync(since=users.since), nio.SyncResponse)
            his.next_batch = ""  # then a full sync
            whole = {"room": {"timeline": {"limit": 100}}}
            read = [expect(await each.sync(sync_filter=whole), nio.SyncResponse) for each in (hers, his)]
            for room, written in rooms.items():
                assert bodies(unread, room) == written[2:], (
                    "Bob does not receive exactly the message that he had not received before"
                )
                for sync in read:
                    assert bodies(sync, room) == written

    asyncio.run(read())
    exchange(outside, users, "They grow on.")


def assert_media_are_kept(outside: Outside, users: UserData) -> None:
    """Bob gets the picture that Alice has uploaded."""
    with outside.http() as http:
        url = outside.url("matrix", f"/_matrix/client/v1/media/download/{users.media}")
        assert http.get(url, headers=users.bob.authorization).content == users.picture, "Bob gets other bytes"
