"""A small STUN (RFC 8489) and TURN (RFC 8656) client with long-term credentials, over UDP, TCP and TLS.

It exists because coturn's tools neither report which peer was refused, and why, nor check the relay's certificate.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import ipaddress
import os
import socket
import ssl
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

# Those of the protocol. Not from roles.py: the verification runs this file on machines, where nothing else of ours is.
PORT, TLS_PORT = 3478, 5349
COOKIE = 0x2112A442
BINDING, ALLOCATE, REFRESH, SEND, DATA_INDICATION, PERMIT, BIND_CHANNEL = (
    0x001,
    0x003,
    0x004,
    0x016,
    0x017,
    0x008,
    0x009,
)
SUCCESS, ERROR, CLASSES = 0x100, 0x110, 0x110
USERNAME, INTEGRITY, ERROR_CODE, CHANNEL, LIFETIME, PEER, DATA = 0x0006, 0x0008, 0x0009, 0x000C, 0x000D, 0x0012, 0x0013
REALM, NONCE, RELAYED, FAMILY, TRANSPORT, MAPPED = 0x0014, 0x0015, 0x0016, 0x0017, 0x0019, 0x0020

# A request over UDP is sent again when no answer comes within this time. Seconds.
WAIT, ATTEMPTS = 3.0, 5

Address = tuple[str, int]


class RefusedError(Exception):
    """The relay refused a request. code: as in RFC 8656, such as 401 for credentials or 403 for a peer."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code = code


@dataclass(frozen=True)
class Credentials:
    username: str
    password: str = field(repr=False)

    @classmethod
    def signed(cls, username: str, secret: str) -> Credentials:
        """As Synapse issues them, with the secret shared with the relay. username: "<Unix time of expiry>:<user>"."""
        return cls(username, base64.b64encode(hmac.digest(secret.encode(), username.encode(), "sha1")).decode())


@dataclass(frozen=True)
class Message:
    kind: int
    transaction: bytes
    attributes: Mapping[int, bytes]

    @classmethod
    def read(cls, raw: bytes) -> Message:
        kind, length, cookie, transaction = struct.unpack_from(">HHI12s", raw)
        assert cookie == COOKIE and len(raw) >= 20 + length, f"this is no STUN message: {raw[:40].hex()}"
        attributes: dict[int, bytes] = {}
        at = 20
        while at < 20 + length:
            name, size = struct.unpack_from(">HH", raw, at)
            attributes.setdefault(name, raw[at + 4 : at + 4 + size])
            at += 4 + size + -size % 4
        return cls(kind, transaction, attributes)

    def write(self, key: bytes | None = None) -> bytes:
        """key: signs the message."""
        body = b"".join(_attribute(name, value) for name, value in self.attributes.items())
        length = len(body) + (24 if key else 0)
        raw = struct.pack(">HHI12s", self.kind, length, COOKIE, self.transaction) + body
        if key:
            raw += _attribute(INTEGRITY, hmac.digest(key, raw, "sha1"))
        return raw

    def address(self, name: int) -> Address:
        _, family, port = struct.unpack_from(">BBH", self.attributes[name])
        packed = _masked(self.attributes[name][4:], self.transaction)
        assert family == (1 if len(packed) == 4 else 2)
        return str(ipaddress.ip_address(packed)), port ^ COOKIE >> 16


class Relay:
    """A connection to a relay, and one allocation on it."""

    def __init__(self, connection: socket.socket, credentials: Credentials | None = None) -> None:
        self.connection, self.credentials = connection, credentials
        self.stream = connection.type == socket.SOCK_STREAM
        self.buffer = b""
        self.realm, self.nonce = b"", b""
        self.allocated = False
        connection.settimeout(WAIT * ATTEMPTS if self.stream else WAIT)

    def bind(self) -> Address:
        """The address that the relay sees us at: plain STUN, which needs no credentials."""
        return self._request(BINDING, {}).address(MAPPED)

    def allocate(self, *, ipv6: bool = False, ipv4: bool = False, protocol: int = socket.IPPROTO_UDP) -> Address:
        """Make an allocation; returns its address at the relay.

        ipv6, ipv4: the family to ask for; neither: the relay chooses. protocol: TCP for RFC 6062. Raises RefusedError.
        """
        attributes = {TRANSPORT: struct.pack(">Bxxx", protocol), LIFETIME: struct.pack(">I", 600)}
        if ipv6 or ipv4:
            attributes[FAMILY] = b"\2\0\0\0" if ipv6 else b"\1\0\0\0"
        try:
            answer = self._signed(ALLOCATE, attributes)
        except RefusedError as refused:
            # The relay remembers an allocation of a while ago from the same port: RFC 8656, 7.4 says to take another one.
            if refused.code != 437 or self.stream:
                raise
            used, self.connection = self.connection, socket.socket(self.connection.family, socket.SOCK_DGRAM)
            self.connection.settimeout(WAIT)
            self.connection.connect(used.getpeername())
            used.close()
            answer = self._signed(ALLOCATE, attributes)
        self.allocated = True
        return answer.address(RELAYED)

    def _signed(self, method: int, attributes: object) -> Message:
        try:
            return self._request(method, attributes)
        except RefusedError as refused:
            # The first answer has the realm and the nonce to sign with.
            if refused.code != 401 or not self.credentials:
                raise
            return self._request(method, attributes)

    def permit(self, peer: str) -> None:
        """Create a permission for a peer. Raises RefusedError."""
        self._request(PERMIT, lambda transaction: {PEER: _address((peer, 9), transaction)})

    def bind_channel(self, peer: Address) -> None:
        """Bind a channel to a peer, which also creates a permission. Raises RefusedError."""
        number = struct.pack(">Hxx", 0x4000)
        self._request(BIND_CHANNEL, lambda transaction: {CHANNEL: number, PEER: _address(peer, transaction)})

    def send(self, peer: Address, data: bytes) -> None:
        transaction = os.urandom(12)
        self._write(Message(SEND, transaction, {PEER: _address(peer, transaction), DATA: data}).write())

    def receive(self) -> tuple[Address, bytes]:
        """The next packet from a peer: its address and the data."""
        while True:
            message = self._read()
            if message.kind == DATA_INDICATION:
                return message.address(PEER), message.attributes[DATA]

    def close(self) -> None:
        """End the allocation, which counts against the user's quota, and close the connection."""
        if self.allocated:
            with contextlib.suppress(OSError, RefusedError):
                self._request(REFRESH, {LIFETIME: struct.pack(">I", 0)})
        self.connection.close()

    def _request(self, method: int, attributes: object) -> Message:
        transaction = os.urandom(12)
        wanted = attributes(transaction) if callable(attributes) else attributes
        assert isinstance(wanted, dict)
        key = None
        if self.credentials and self.nonce:
            username, password = self.credentials.username.encode(), self.credentials.password.encode()
            wanted = {**wanted, USERNAME: username, REALM: self.realm, NONCE: self.nonce}
            key = hashlib.md5(b":".join([username, self.realm, password]), usedforsecurity=False).digest()
        raw = Message(method, transaction, wanted).write(key)
        answer = self._exchange(raw, transaction)
        if answer.kind & CLASSES == ERROR:
            self.realm = answer.attributes.get(REALM, self.realm)
            self.nonce = answer.attributes.get(NONCE, self.nonce)
            value = answer.attributes[ERROR_CODE]
            raise RefusedError(value[2] * 100 + value[3], value[4:].decode(errors="replace"))
        assert answer.kind == method | SUCCESS, f"the relay answered {method:#x} with {answer.kind:#x}"
        return answer

    def _exchange(self, raw: bytes, transaction: bytes) -> Message:
        for _ in range(1 if self.stream else ATTEMPTS):
            self._write(raw)
            with contextlib.suppress(TimeoutError):
                while True:
                    message = self._read()
                    if message.transaction == transaction:
                        return message
        raise TimeoutError("the relay does not answer")

    def _write(self, raw: bytes) -> None:
        self.connection.sendall(raw)

    def _read(self) -> Message:
        if not self.stream:
            return Message.read(self.connection.recv(65536))
        # After a timeout in the middle of a message, the next call continues with the same message.
        self._fill(20)
        size = 20 + int(struct.unpack_from(">H", self.buffer, 2)[0])
        self._fill(size)
        message, self.buffer = Message.read(self.buffer[:size]), self.buffer[size:]
        return message

    def _fill(self, size: int) -> None:
        while len(self.buffer) < size:
            received = self.connection.recv(65536)
            if not received:
                raise ConnectionResetError("the relay hung up")
            self.buffer += received


@contextlib.contextmanager
def relay(
    address: str,
    transport: str,
    credentials: Credentials | None = None,
    *,
    port: int | None = None,
    context: ssl.SSLContext | None = None,
    name: str = "",
) -> Iterator[Relay]:
    """A connection to the relay at an address. transport: "udp", "tcp" or "tls", which needs a context and a name."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM)
    try:
        connection.settimeout(WAIT * ATTEMPTS)
        connection.connect((address, port or (TLS_PORT if transport == "tls" else PORT)))
        if transport == "tls":
            assert context and name
            connection = context.wrap_socket(connection, server_hostname=name)
    except BaseException:
        connection.close()
        raise
    client = Relay(connection, credentials)
    try:
        yield client
    finally:
        client.close()


def _attribute(name: int, value: bytes) -> bytes:
    return struct.pack(">HH", name, len(value)) + value + bytes(-len(value) % 4)


def _address(address: Address, transaction: bytes) -> bytes:
    packed = ipaddress.ip_address(address[0]).packed
    family = 1 if len(packed) == 4 else 2
    return struct.pack(">xBH", family, address[1] ^ COOKIE >> 16) + _masked(packed, transaction)


def _masked(packed: bytes, transaction: bytes) -> bytes:
    mask = struct.pack(">I", COOKIE) + transaction
    return bytes(one ^ other for one, other in zip(packed, mask, strict=False))
