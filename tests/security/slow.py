"""Clients that hold connections and hardly do anything: `slow.py NAME SECONDS`, on a host, with Python's standard library only.

Who is let go comes again. Prints `ready` when all are connected, and at the end a JSON object: of each kind, how many connections
there were, and after how many seconds the server has ended those that it did.
"""

import json
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

PORT, EACH = 443, 75
PATH = "/_matrix/client/versions"

# Who attacks does not care whose certificate it is.
CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
CONTEXT.check_hostname, CONTEXT.verify_mode = False, ssl.CERT_NONE


class Ended(Exception):
    """The server has ended the connection."""


class Connection:
    """One of them. It is held until a time, with one step a second."""

    def __init__(self, name: str, until: float, *, address: str = "", tls: bool = True, buffer: int = 0) -> None:
        self.name, self.until, self.begin = name, until, time.monotonic()
        plain = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if buffer:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        plain.settimeout(30)
        plain.connect((address or name, PORT))
        self.link = CONTEXT.wrap_socket(plain, server_hostname=name) if tls else plain

    def send(self, content: bytes) -> None:
        try:
            self.link.sendall(content)
        except TimeoutError:
            pass  # the server does not read any more
        except OSError:
            raise Ended from None

    def hold(self, step: bytes = b"") -> None:
        while time.monotonic() < self.until:
            time.sleep(1)
            if not self.established or (step and self.answered):
                raise Ended
            if step:
                self.send(step)

    @property
    def established(self) -> bool:
        """Whether the server has not closed it, be there unread answers or not."""
        return self.link.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\1"

    @property
    def answered(self) -> bool:
        self.link.settimeout(0)
        try:
            self.link.recv(1)
        except (ssl.SSLWantReadError, BlockingIOError):
            return False
        except OSError:
            pass
        finally:
            self.link.settimeout(30)
        return True


def slow_headers(connection: Connection) -> None:
    connection.send(f"GET {PATH} HTTP/1.1\r\nHost: {connection.name}\r\nX-A: ".encode())
    connection.hold(b"a")


def slow_bodies(connection: Connection) -> None:
    head = f"POST /_matrix/client/v3/keys/query HTTP/1.1\r\nHost: {connection.name}\r\nContent-Length: 40000\r\n\r\n"
    connection.send(head.encode())
    connection.hold(b" ")


def half_open(connection: Connection) -> None:
    """The begin of a handshake."""
    connection.send(b"\x16\x03\x01\x02\x00\x01")
    connection.hold()


def slow_readers(connection: Connection) -> None:
    """Thousands of requests, of which no answer is read."""
    connection.link.settimeout(3)
    connection.send(f"GET {PATH} HTTP/1.1\r\nHost: {connection.name}\r\n\r\n".encode() * 3000)
    connection.hold()


KINDS: dict[str, tuple[Callable[[Connection], None], dict[str, Any]]] = {
    "slow headers": (slow_headers, {}),
    "slow bodies": (slow_bodies, {}),
    "half-open handshakes": (half_open, {"tls": False}),
    "slow readers": (slow_readers, {"buffer": 2048}),
}


def main() -> None:
    name, seconds = sys.argv[1], float(sys.argv[2])
    until = time.monotonic() + seconds
    begun, connecting = dict.fromkeys(KINDS, 0), threading.Semaphore(8)
    ended: dict[str, list[float]] = {kind: [] for kind in KINDS}

    def run(kind: str) -> None:
        program, options = KINDS[kind]
        while time.monotonic() < until:
            with connecting:
                connection = Connection(name, until, **options)
            begun[kind] += 1
            try:
                program(connection)
            except Ended:
                ended[kind].append(round(time.monotonic() - connection.begin, 1))

    threads = [threading.Thread(target=run, args=(kind,), daemon=True) for _ in range(EACH) for kind in KINDS]
    for thread in threads:
        thread.start()
    while sum(begun.values()) < len(threads) and time.monotonic() < until - seconds / 2:
        time.sleep(0.1)
    print("ready", flush=True)
    for thread in threads:
        thread.join(max(0.0, until + 5 - time.monotonic()))
    print(json.dumps({kind: {"made": begun[kind], "ended": sorted(ended[kind])} for kind in KINDS}), flush=True)
    # Threads may still wait for the server.
    os._exit(0)


if __name__ == "__main__":
    main()
