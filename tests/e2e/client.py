"""Matrix and HTTP clients as users have them: they know only the public names, and trust only the deployment's authority.

The testbed's name server resolves the names for them; the controller itself does not use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import secrets
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import nio
from aiohttp.abc import AbstractResolver, ResolveResult
from nio.store import SqliteMemoryStore, SqliteStore

from roles import SYNAPSE_PORT
from tests.conftest import Deployed
from tests.e2e.database import query
from tests.testbed import Host, Testbed

CADDY_ROOT = "/var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt"
REGISTER = "/opt/matrix-synapse/current/bin/register_new_matrix_user"

# What that program does, without its imports: the shared secret is the right to register.
# https://element-hq.github.io/synapse/latest/admin_api/register_api.html
REGISTER_BY_API = f"""
import hmac, json, pathlib, sys, urllib.request
url = "http://127.0.0.1:{SYNAPSE_PORT}/_synapse/admin/v1/register"
secret = pathlib.Path("/etc/matrix-synapse/secrets/registration_shared_secret").read_bytes().strip()
user, password = json.load(sys.stdin)
nonce = json.load(urllib.request.urlopen(url))["nonce"]
mac = hmac.new(secret, "\\0".join((nonce, user, password, "notadmin")).encode(), "sha1").hexdigest()
content = {{"nonce": nonce, "username": user, "password": password, "admin": False, "mac": mac}}
try:
    urllib.request.urlopen(urllib.request.Request(url, json.dumps(content).encode()))
except urllib.error.HTTPError as error:
    sys.exit(error.read().decode())
"""

# Seconds. Generous, because the machine may be busy with other hosts.
TIMEOUT = 60


@dataclass(frozen=True)
class Account:
    """A user who has logged in."""

    user_id: str
    password: str = field(repr=False)
    device_id: str
    access_token: str = field(repr=False)

    @property
    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.access_token}"}


class _Transport(httpx.BaseTransport):
    """Connects to the address that the testbed has for a name; the certificate must still be valid for that name."""

    def __init__(self, bed: Testbed, context: ssl.SSLContext, *, http2: bool, ipv6: bool) -> None:
        self.bed, self.context, self.http2, self.ipv6 = bed, context, http2, ipv6
        # One per name: several names have the same address, and a connection is for one of them.
        self.transports: dict[str, httpx.HTTPTransport] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        name = request.url.host
        if name not in self.transports:
            self.transports[name] = httpx.HTTPTransport(verify=self.context, http2=self.http2, trust_env=False)
        by_address = httpx.Request(
            request.method,
            request.url.copy_with(host=self.bed.resolve(name, ipv6=self.ipv6)),
            headers=request.headers,
            stream=request.stream,
            extensions={**request.extensions, "sni_hostname": name},
        )
        return self.transports[name].handle_request(by_address)

    def close(self) -> None:
        for transport in self.transports.values():
            transport.close()


class _Resolver(AbstractResolver):
    def __init__(self, bed: Testbed) -> None:
        self.bed = bed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        address = await asyncio.to_thread(self.bed.resolve, host)
        return [
            ResolveResult(
                hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=socket.AI_NUMERICHOST
            )
        ]

    async def close(self) -> None:
        pass


class Outside:
    """Clients on another machine, which reach a deployment from outside.

    directory: where to save Caddy's root certificate, which its administrator would give to clients.
    """

    def __init__(self, host: Host, directory: Path) -> None:
        self.host, self.server_name = host, host.domain
        self.root = directory / "caddy-root.crt"
        host.get(CADDY_ROOT, self.root)

    def context(self) -> ssl.SSLContext:
        """Trusts only the deployment's authority. A new context each time, because HTTP clients change the one they get."""
        return ssl.create_default_context(cafile=str(self.root))

    def http(self, *, http2: bool = True, ipv6: bool = False, certificate: Path | None = None) -> httpx.Client:
        """An HTTP client that follows no redirects. certificate: a PEM file with its own, and the key."""
        context = self.context()
        if certificate:
            context.load_cert_chain(certificate)
        transport = _Transport(self.host.bed, context, http2=http2, ipv6=ipv6)
        return httpx.Client(transport=transport, trust_env=False, timeout=TIMEOUT)

    def url(self, service: str, path: str = "") -> str:
        """The URL of one of the deployment's services, such as "matrix"; "" is the server name itself."""
        return f"https://{f'{service}.' if service else ''}{self.server_name}{path}"

    @contextlib.asynccontextmanager
    async def matrix(
        self, account: Account | None = None, homeserver: str = "", *, encrypted: bool = False, keys: Path | None = None
    ) -> AsyncIterator[nio.AsyncClient]:
        """A client of matrix-nio, logged in as the account if there is one.

        encrypted: with encryption keys in memory, which are lost at the end; keys: a directory that keeps them instead.
        """
        context = self.context()
        config = nio.AsyncClientConfig(store=SqliteStore if keys else SqliteMemoryStore) if encrypted or keys else None
        url = homeserver or self.url("matrix")
        client = nio.AsyncClient(url, ssl=context, config=config, store_path=str(keys or ""))
        if account:
            client.restore_login(account.user_id, account.device_id, account.access_token)
        connector = aiohttp.TCPConnector(resolver=_Resolver(self.host.bed), ssl=context)
        client.client_session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=TIMEOUT))
        try:
            yield client
        finally:
            await client.close()

    async def discover(self) -> nio.DiscoveryInfoResponse:
        """What a client finds by well-known from the server name."""
        async with self.matrix(homeserver=self.url("")) as client:
            return expect(await client.discovery_info(), nio.DiscoveryInfoResponse)

    async def log_in(self, user: str, password: str) -> Account:
        """Find the homeserver by its server name and log in there with a password."""
        found = await self.discover()
        async with self.matrix(homeserver=found.homeserver_url) as client:
            client.user = f"@{user}:{self.server_name}"
            answer = expect(await client.login(password, device_name="matrix-metal's tests"), nio.LoginResponse)
            return Account(answer.user_id, password, answer.device_id, answer.access_token)


@dataclass(frozen=True)
class Side:
    """One homeserver, its clients, and one of its users."""

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
        """A client of matrix-nio, logged in as the user."""
        return self.outside.matrix(self.user, encrypted=encrypted)

    def request(self, method: str, path: str, status: int = 200, **more: Any) -> Any:
        """Send a request of the user to their homeserver; the path is below `/_matrix/client/`. Returns the JSON."""
        with self.outside.http() as http:
            url = self.outside.url("matrix", f"/_matrix/client/{path}")
            return expect_json(http.request(method, url, headers=self.user.authorization, **more), status)


async def create_shared_room(hers: nio.AsyncClient, his: nio.AsyncClient, *, encrypted: bool = False) -> str:
    """Create a room and invite and join the user of the other homeserver; returns the room ID."""
    state = [nio.EnableEncryptionBuilder().as_dict()] if encrypted else []
    room = str(expect(await hers.room_create(name="Garden", initial_state=state), nio.RoomCreateResponse).room_id)
    expect(await hers.room_invite(room, his.user_id), nio.RoomInviteResponse)
    await sync_until(his, lambda sync: room in sync.rooms.invite, f"{his.user_id} sees no invitation")
    expect(await his.join(room), nio.JoinResponse)
    await sync_until(his, lambda _: room in his.rooms, f"{his.user_id} is not in the room")
    # The client sends the room key only to members that it knows of.
    await sync_until(
        hers, lambda _: his.user_id in hers.rooms[room].users, f"{hers.user_id} does not see {his.user_id} join"
    )
    return room


async def send_message(client: nio.AsyncClient, room: str, text: str) -> str:
    """Send a text message, encrypted if the room is; returns its event ID."""
    content = {"msgtype": "m.text", "body": text}
    answer = await client.room_send(room, "m.room.message", content, ignore_unverified_devices=True)
    return str(expect(answer, nio.RoomSendResponse).event_id)


async def receive_message(client: nio.AsyncClient, room: str, sender: str, text: str) -> nio.RoomMessageText:
    """Sync until a message arrives; returns it, decrypted if it was encrypted. Raises AssertionError."""
    found: list[nio.RoomMessageText] = []

    def arrived(sync: nio.SyncResponse) -> bool:
        found.extend(message for message in messages(sync, room) if (message.sender, message.body) == (sender, text))
        return bool(found)

    await sync_until(client, arrived, f"{client.user_id} does not receive {text!r}")
    return found[0]


def messages(sync: nio.SyncResponse, room: str) -> list[nio.RoomMessageText]:
    """The readable messages of a room in a sync response, in order."""
    events = sync.rooms.join[room].timeline.events if room in sync.rooms.join else []
    return [event for event in events if isinstance(event, nio.RoomMessageText)]


async def sync_until(
    client: nio.AsyncClient, condition: Callable[[nio.SyncResponse], bool], problem: str, timeout: float = TIMEOUT
) -> None:
    """Sync until a condition is true. Raises AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        answer = await client.sync(timeout=3000, sync_filter={"room": {"timeline": {"limit": 100}}})
        if condition(expect(answer, nio.SyncResponse)):
            return
    raise AssertionError(f"{problem} after {timeout} s")


def register(host: Host, user: str, password: str) -> None:
    """Create an account, on the machine."""
    # The password goes through standard input: every user of the machine can read command lines.
    host.run(f"python3 -Ic '{REGISTER_BY_API}'", stdin=json.dumps([user, password]))


def new_user(outside: Outside, name: str) -> Account:
    """Create a user whose name begins with this one, and log in."""
    user, password = f"{name}-{secrets.token_hex(3)}", secrets.token_urlsafe(20)
    register(outside.host, user, password)
    return asyncio.run(outside.log_in(user, password))


def new_user_of_mas(outside: Outside, name: str) -> Account:
    """The same with the stand-in for MAS, which logs nobody in. Synapse is told as MAS does it."""
    host, user, token = outside.host, f"{name}-{secrets.token_hex(3)}", secrets.token_urlsafe(20)
    # matrix-nio sends no key to a device whose name its own has, whoever has that.
    device = secrets.token_hex(5).upper()
    secret = host.run("cat /etc/mas/secrets/encryption").stdout
    sealed = hmac.new(secret.encode(), token.encode(), "sha256").hexdigest()
    query(
        host,
        f"INSERT INTO users (username, created_at) VALUES ('{user}', now());"  # noqa: S608
        f"INSERT INTO stand_in_tokens VALUES ('{sealed}', '{user}', '{device}')",
        "mas",
    )
    for resource, body in (("provision_user", {}), ("upsert_device", {"device_id": device})):
        host.run(
            'curl -sSf -H "Authorization: Bearer $(cat /etc/mas/secrets/synapse)" --json @- '
            f"http://127.0.0.1:{SYNAPSE_PORT}/_synapse/mas/{resource}",
            stdin=json.dumps({"localpart": user, **body}),
        )
    return Account(f"@{user}:{outside.server_name}", "", device, token)


def expect(answer: Any, kind: type[Any]) -> Any:
    """Check the type of matrix-nio's answer, since it returns errors instead of raising them."""
    assert isinstance(answer, kind), f"the homeserver answered {answer}, not {kind.__name__}"
    return answer


def expect_json(response: httpx.Response, status: int = 200) -> Any:
    """The JSON of a response. Raises AssertionError if it has another status."""
    assert response.status_code == status, (
        f"{response.request.method} {response.request.url} was answered with {response.status_code} "
        f"instead of {status}: {response.text[:500]}"
    )
    return response.json()
