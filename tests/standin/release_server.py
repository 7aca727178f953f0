"""A release page on this machine, over HTTPS, with faults: for tests of how release binaries are downloaded.

    with ReleaseServer({"owner/project/releases/download/v1/program": Path("program")}) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(server.ca_file))
        ... f"{server.url}/owner/project/releases/download/v1/program" ...
        server.fault = "truncated"

Like GitHub's, it redirects a release asset to another address.
"""

import datetime
import http.server
import ipaddress
import shutil
import ssl
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

# wrong: other content; truncated: the connection ends early; slow: the connection stays open, but stalls; unsized: no
# Content-Length; not-found, unavailable: HTTP 404, 503; insecure: a redirect to http://; dead: nothing listens; chunked:
# chunked encoding, without Content-Length, which is no fault; broken-chunks: the same, and it ends early.
Fault = Literal[
    "wrong", "truncated", "slow", "unsized", "not-found", "unavailable", "insecure", "dead", "chunked", "broken-chunks"
]

_ASSETS = "/release-assets/"


class ReleaseServer:
    """Serves files, each under its path; requests lists every path that was asked for.

    latest: project, such as "owner/name" -> the release that its page calls the latest.
    """

    def __init__(self, files: Mapping[str, bytes | Path]) -> None:
        self.files = {path.strip("/"): content for path, content in files.items()}
        self.latest: dict[str, str] = {}
        self.requests: list[str] = []
        self._fault: Fault | None = None
        self._released = threading.Event()
        self._httpd: http.server.ThreadingHTTPServer | None = None
        self._port = 0

    def __enter__(self) -> Self:
        self._directory = Path(tempfile.mkdtemp(prefix="release-server-"))
        self.ca_file = self._directory / "ca.pem"
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate = _make_certificates(self.ca_file, self._directory / "server.pem")
        self._context.load_cert_chain(certificate)
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        shutil.rmtree(self._directory)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables for a program that downloads from here: the authority to trust, and no proxy."""
        return {"SSL_CERT_FILE": str(self.ca_file), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    @property
    def fault(self) -> Fault | None:
        """What is wrong with it from now on; None for nothing."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault | None) -> None:
        self._fault = fault
        if fault == "dead":
            self._stop()
        else:
            self._start()

    def _start(self) -> None:
        if self._httpd is not None:
            return
        page = self
        self._released.clear()

        class Handler(_Handler):
            server_of = page

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: object, client_address: object) -> None:
                """Do not print errors: clients that hang up or do not trust the certificate are expected."""

        # The same port as before, if it was stopped and is started again.
        self._httpd = Server(("127.0.0.1", self._port), Handler)
        self._port = self._httpd.server_address[1]
        # The handshake is left to each connection's own thread: a client that does not finish it must not block others.
        self._httpd.socket = self._context.wrap_socket(
            self._httpd.socket, server_side=True, do_handshake_on_connect=False
        )
        threading.Thread(target=self._httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def _stop(self) -> None:
        self._released.set()
        if self._httpd is not None:
            self._httpd.shutdown()
            self._httpd.server_close()
            self._httpd = None


class _Handler(http.server.BaseHTTPRequestHandler):
    server_of: ReleaseServer

    def do_GET(self) -> None:
        page, fault = self.server_of, self.server_of.fault
        page.requests.append(self.path)
        path = self.path.removeprefix(_ASSETS).strip("/")
        if fault == "unavailable":
            return self.send_error(503)
        project, is_latest, _ = path.partition("/releases/latest")
        if is_latest and project in page.latest:
            return self._redirect(f"{page.url}/{project}/releases/tag/{page.latest[project]}")
        if fault == "not-found" or path not in page.files:
            return self.send_error(404)
        if not self.path.startswith(_ASSETS):
            base = page.url.replace("https:", "http:") if fault == "insecure" else page.url
            return self._redirect(f"{base}{_ASSETS}{path}")
        content = page.files[path]
        body = content if isinstance(content, bytes) else content.read_bytes()
        if fault == "wrong":
            body = b"#!/bin/sh\necho this is not what was released\n"
        if fault in ("chunked", "broken-chunks"):
            return self._send_pieces(body, whole=fault == "chunked")
        self.send_response(200)
        if fault != "unsized":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault not in ("truncated", "slow"):
            self.wfile.write(body)
            return None
        self.wfile.write(body[: len(body) // 2])
        if fault == "slow":
            page._released.wait()
        return None

    def _redirect(self, url: str) -> None:
        self.send_response(302)
        self.send_header("Location", url)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_pieces(self, body: bytes, whole: bool) -> None:
        self.protocol_version = "HTTP/1.1"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        half = len(body) // 2
        for piece in (body[:half], body[half:], b"") if whole else (body[:half],):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


def _make_certificates(ca_file: Path, server_file: Path) -> Path:
    """A throw-away certificate authority, and a key and certificate for this machine in one file."""
    now = datetime.datetime.now(datetime.UTC)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def builder(
        subject: str, key: ec.EllipticCurvePrivateKey, issuer: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("throw-away CA of a test"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)
        )

    ca_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = (
        builder("throw-away CA of a test", ca_key, ca_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    alternatives = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    server = (
        builder("release page of a test", server_key, ca_key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    ca_file.write_bytes(ca.public_bytes(pem))
    server_file.write_bytes(
        server_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + server.public_bytes(pem)
    )
    return server_file
