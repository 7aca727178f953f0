"""Federation of two deployments on two machines: messages with and without encryption, media, profiles, outages.

Each knows only the other's server name and finds the rest by well-known on port 443. Each trusts the other's private
authority, as homeservers of one company would.
"""

import asyncio
import io
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import nio
import pytest

from roles import FEDERATION_PORT
from tests.conftest import Deployed
from tests.e2e.alerts import labels_of_alerts, shortened
from tests.e2e.client import (
    Side,
    create_shared_room,
    expect,
    expect_json,
    messages,
    receive_message,
    send_message,
    sync_until,
)
from tests.protocols.federation_tester import canonical, check, key_problem, problems
from tests.testbed import Host, Testbed
from vault import SECRETS, Vault

pytestmark = pytest.mark.role("synapse")

# Seconds within which a homeserver has what it missed during an outage. The others retry within 21 s (max_long_retry_delay,
# with Synapse's jitter); the rest is for busy machines.
CATCH_UP = 50


def secrets_of(deployed: Deployed) -> set[str]:
    """What a deployment has generated, on the controller and on the machine."""
    vault = Vault.open(deployed.deployment.vault)
    generated = {
        vault.get(name).reveal() for name, known in SECRETS.items() if known.kind != "given" and vault.has(name)
    }
    signing_key = deployed.host.run("cat /var/lib/matrix-synapse/signing.key").stdout
    assert signing_key.startswith("ed25519 ") and len(generated) > 4
    return {*generated, signing_key.split()[-1], vault.id}


def test_deployments_share_no_secret(both: tuple[Deployed, Deployed]) -> None:
    one, other = map(secrets_of, both)
    # Secrets are not compared by `assert`, which would print them.
    shared = len(one & other)
    assert shared == 0


@pytest.fixture(scope="module")
def alice(sides: tuple[Side, Side]) -> Side:
    return sides[0]


@pytest.fixture(scope="module")
def bob(sides: tuple[Side, Side]) -> Side:
    return sides[1]


@pytest.fixture(scope="module")
def room(alice: Side, bob: Side) -> str:
    """A room of Alice's that Bob was invited to and has joined."""

    async def create() -> str:
        async with alice.client() as hers, bob.client() as his:
            return await create_shared_room(hers, his)

    return asyncio.run(create())


# --- as other homeservers see it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1], ids=["alices", "bobs"])
def test_other_homeservers_find_it_and_accept_its_keys(sides: tuple[Side, Side], testbed: Testbed, which: int) -> None:
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


def test_the_federation_tester_reports_wrong_certificates_and_keys(alice: Side, bob: Side, testbed: Testbed) -> None:
    def wrong_address(name: str) -> str:
        return testbed.resolve(name.replace(alice.server_name, bob.server_name))

    def found(resolver: Callable[[str], str], ca: Path, port_8448: bool = False) -> str:
        return "\n".join(problems(check(alice.server_name, resolver, ca, port_8448=port_8448)))

    assert "certificate verify failed" in found(testbed.resolve, bob.outside.root), "an unknown authority is trusted"
    assert "gives no answer" in found(wrong_address, bob.outside.root), "the name in the certificate is not checked"
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


def test_messages_arrive_in_both_directions(alice: Side, bob: Side, room: str) -> None:
    async def conversation() -> None:
        async with alice.client() as hers, bob.client() as his:
            await send_message(hers, room, "Come and see the beans.")
            await receive_message(his, room, alice.user.user_id, "Come and see the beans.")
            await send_message(his, room, "Auf dem Weg 🚲")
            await receive_message(hers, room, bob.user.user_id, "Auf dem Weg 🚲")

    asyncio.run(conversation())


def test_profiles_of_remote_users(alice: Side, bob: Side) -> None:
    name = f"Bob {secrets.token_hex(3)}"
    bob.request("PUT", f"v3/profile/{quote(bob.user.user_id)}/displayname", json={"displayname": name})
    assert alice.request("GET", f"v3/profile/{quote(bob.user.user_id)}")["displayname"] == name
    unknown = alice.request("GET", f"v3/profile/{quote(f'@nobody:{bob.server_name}')}", status=404)
    assert unknown["errcode"] == "M_NOT_FOUND", unknown


def test_media_of_remote_users(alice: Side, bob: Side) -> None:
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
        assert response.content == picture, "Bob got other bytes than Alice uploaded"
        assert expect_json(http.get(url), 401)["errcode"] == "M_MISSING_TOKEN", (
            "unauthenticated clients may download media"
        )


def test_encrypted_messages_between_homeservers(alice: Side, bob: Side) -> None:
    """Device keys, one-time keys and room keys go from one homeserver to the other; the homeservers never see the text."""
    greeting, answer = f"The gate's code is {secrets.token_hex(4)}", f"I am in {secrets.token_hex(4)}"

    async def conversation() -> None:
        async with alice.client(encrypted=True) as hers, bob.client(encrypted=True) as his:
            for client in (hers, his):
                expect(await client.sync(), nio.SyncResponse)
                expect(await client.keys_upload(), nio.KeysUploadResponse)
            unclaimed = expect(await his.sync(), nio.SyncResponse).device_key_count.signed_curve25519
            assert unclaimed

            room = await create_shared_room(hers, his, encrypted=True)
            sent = await send_message(hers, room, greeting)
            received = await receive_message(his, room, alice.user.user_id, greeting)
            assert received.decrypted and received.event_id == sent

            # Alice's homeserver has the keys of Bob's device from his homeserver.
            queried = alice.request("POST", "v3/keys/query", json={"device_keys": {bob.user.user_id: []}})
            assert queried["failures"] == {}
            device = queried["device_keys"][bob.user.user_id][bob.user.device_id]
            assert device["keys"] == {
                f"ed25519:{bob.user.device_id}": his.olm.account.identity_keys["ed25519"],
                f"curve25519:{bob.user.device_id}": his.olm.account.identity_keys["curve25519"],
            }
            left = expect(await his.sync(full_state=True), nio.SyncResponse).device_key_count.signed_curve25519
            assert left == unclaimed - 1, "Alice's device has not claimed exactly one one-time key of Bob's"

            sent = await send_message(his, room, answer)
            received = await receive_message(hers, room, bob.user.user_id, answer)
            assert received.decrypted and received.event_id == sent

            for side in (alice, bob):
                event = side.request("GET", f"v3/rooms/{quote(room)}/event/{quote(sent)}")
                assert event["type"] == "m.room.encrypted" and event["content"]["algorithm"] == "m.megolm.v1.aes-sha2"
                assert answer not in json.dumps(event), f"{side.server_name} has Bob's message in plain text"

    asyncio.run(conversation())


@pytest.mark.role("monitoring")
def test_what_waits_for_another_homeserver_is_noticed(alice: Side, bob: Side, room: str) -> None:
    """Bob's takes the connection, and does not answer. Meanwhile Alice writes."""

    async def write(count: int) -> None:
        async with alice.client() as hers:
            for number in range(count):
                await send_message(hers, room, f"{number} of {count}")

    deadline = time.monotonic() + 60
    with shortened(alice.host, {"FederationQueue": {"> 2000": "> 3"}}):
        bob.host.run("systemctl kill -s STOP caddy")
        try:
            asyncio.run(write(8))
            while not any(each["alertname"] == "FederationQueue" for each in labels_of_alerts(alice.host)):
                assert time.monotonic() < deadline, "what waits is not noticed"
                time.sleep(1)
        finally:
            bob.host.run("systemctl kill -s CONT caddy")


def _stop_synapse(host: Host) -> Callable[[], None]:
    """Stop the homeserver; returns a function that starts it again."""
    host.run("systemctl stop matrix-synapse")
    return lambda: _start(host)


def _unplug(host: Host) -> Callable[[], None]:
    """Disconnect the machine from all others; returns a function that connects it again."""
    host.cut_off()
    return host.reconnect


def _start(host: Host) -> None:
    host.run("systemctl start matrix-synapse", timeout=120)


@pytest.mark.parametrize("interrupt", [_stop_synapse, _unplug], ids=["stopped", "unplugged"])
def test_messages_sent_during_an_outage_arrive_after_it(
    alice: Side, bob: Side, room: str, interrupt: Callable[[Host], Callable[[], None]]
) -> None:
    """Nobody has to do anything for it: Alice's homeserver retries soon."""
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

            await sync_until(
                his, all_seen, "Bob does not receive what was sent during the outage of his homeserver", CATCH_UP
            )
            return seen

    recover = interrupt(bob.host)
    try:
        asyncio.run(write())
    finally:
        recover()
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
        assert deployment.run("-y").changed == [
            "Write the packet filter of the services' ports",
            "Keep the ports for their services",
            "Write which ports are reserved",
            "Reserve the ports for their services",
            "Configure Caddy",
            "Run Caddy",
            "Configure the monitoring",
            "Run Prometheus",
        ]
        yield
    finally:
        chosen.write_text(before)
        deployment.run("-y")


@pytest.mark.usefixtures("with_port_8448")
def test_federation_on_port_8448_if_chosen(alice: Side, testbed: Testbed) -> None:
    findings = check(alice.server_name, testbed.resolve, alice.outside.root, port_8448=True)
    assert problems(findings) == []
    assert any(finding.subject == "port 8448, keys" for finding in findings)
    with alice.outside.http() as http:
        for name in (alice.outside.url(""), alice.outside.url("matrix")):
            assert (
                expect_json(http.get(f"{name}:{FEDERATION_PORT}/_matrix/federation/v1/version"))["server"]["name"]
                == "Synapse"
            )
            for path in ("/_matrix/client/versions", "/_synapse/admin/v1/server_version", "/"):
                assert http.get(f"{name}:{FEDERATION_PORT}{path}").status_code == 404, (
                    f"{path} is served on the federation port"
                )
        for name in (alice.outside.url(""), alice.outside.url("matrix")):
            plain = name.replace("https:", "http:")
            assert http.get(f"{plain}/x").headers["location"] == f"{name}/x", "HTTP is redirected to the wrong port"
    listening = alice.host.run(f"ss -Hlntup sport = :{FEDERATION_PORT}").stdout.split("\n")
    assert [line.split()[0] for line in listening if line] == ["tcp"], (
        "only TCP is expected: homeservers do not use HTTP/3"
    )
