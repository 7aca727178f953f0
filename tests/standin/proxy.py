"""A forward proxy, for machines that reach the internet only through one. It asks for a user and a password."""

import base64
import contextlib
import selectors
import socket
import socketserver
import threading
from typing import Self
from urllib.parse import urlsplit

USER, PASSWORD = "machine", "correct-horse"


class _Handler(socketserver.StreamRequestHandler):
    server: "Proxy"

    def handle(self) -> None:
        method, target, version = self.rfile.readline().decode("latin-1").split()
        headers: list[str] = []
        while line := self.rfile.readline().decode("latin-1").strip():
            headers.append(line)
        wanted = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if f"proxy-authorization: basic {wanted}".lower() not in (header.lower() for header in headers):
            self.wfile.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return
        url = urlsplit(f"//{target}" if method == "CONNECT" else target)
        self.server.asked.add(url.hostname or "")
        with socket.create_connection((url.hostname or "", url.port or 80), timeout=30) as there:
            if method == "CONNECT":
                self.wfile.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            else:
                kept = [each for each in headers if not each.lower().startswith(("proxy-", "connection:"))]
                path = (url.path or "/") + (f"?{url.query}" if url.query else "")
                lines = [f"{method} {path} {version}", *kept, "Connection: close", "", ""]
                there.sendall("\r\n".join(lines).encode("latin-1"))
            self._relay(there)

    def _relay(self, there: socket.socket) -> None:
        with selectors.DefaultSelector() as selector, contextlib.suppress(OSError):
            selector.register(self.connection, selectors.EVENT_READ, there)
            selector.register(there, selectors.EVENT_READ, self.connection)
            while ready := selector.select(timeout=60):
                for key, _ in ready:
                    assert isinstance(key.fileobj, socket.socket)
                    if not (received := key.fileobj.recv(65536)):
                        return
                    key.data.sendall(received)


class Proxy(socketserver.ThreadingTCPServer):
    """Listens at an address of this computer until the end of `with`. asked: the names that were asked for."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: str) -> None:
        super().__init__((address, 0), _Handler)
        self.asked: set[str] = set()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"http://{USER}:{PASSWORD}@{self.server_address[0]!s}:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
