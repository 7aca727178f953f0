"""The administrator's pages: who is let in and who is not, and a browser at the end of an SSH tunnel.

Ketesa's release may be a stand-in: what is tested is the door, and what is behind it.
"""

import base64
import contextlib
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ResponseReceived

from roles import ADMIN_PORT, SYNAPSE_PORT
from settings.admin import CERTIFICATE, COOKIE, USER, certificates_in
from tests.conftest import ADMIN_PASSWORD, Deployed
from tests.e2e.call.browser import browsing
from tests.e2e.client import REGISTER, TIMEOUT, Outside
from tests.e2e.test_outside import UNREACHABLE_PATHS, answer_to
from tests.testbed import Host
from vault import Vault

pytestmark = pytest.mark.role("admin")

DOOR = (USER, ADMIN_PASSWORD)
BASIC = f"Authorization: Basic {base64.b64encode(':'.join(DOOR).encode()).decode()}"
# What Ketesa needs, and who asks for it has to be let in.
BEHIND = (
    "/",
    "/index.html",
    "/config.json",
    "/auth-callback/",
    "/_matrix/client/versions",
    "/_synapse/admin/v1/server_version",
    "/_synapse/admin/v2/users",
)
# The same to programs that decode, shorten or cut paths in another way.
TRICKS = (
    "//_synapse/admin/v1/server_version",
    "/_synapse//admin/v1/server_version",
    "/_synapse/./admin/v1/server_version",
    "/%5fsynapse/admin/v1/server_version",
    "/_synapse%2fadmin/v1/server_version",
    "/_matrix/..%2f_synapse/admin/v1/server_version",
    "/_matrix/%2e%2e/_synapse/admin/v1/server_version",
    "/x/../_synapse/admin/v1/server_version",
    "/_SYNAPSE/ADMIN/v1/server_version",
)
# An address that is let in, in all headers that proxies know.
FORGED = {
    name: "127.0.0.1" for name in ("X-Forwarded-For", "X-Real-IP", "X-Client-IP", "True-Client-IP", "CF-Connecting-IP")
} | {"Forwarded": "for=127.0.0.1", "X-Forwarded-Host": "localhost", "Via": "1.1 localhost"}


def asked(
    outside: Outside,
    path: str,
    *,
    inside: bool = False,
    certificate: Path | None = None,
    service: str = "admin",
    **more: Any,
) -> httpx.Response:
    """The answer at the public name. inside: from an address of `admin_networks`. certificate: the browser's."""
    with outside.http(ipv6=inside, certificate=certificate) as http:
        return http.get(outside.url(service, path), **more)


def test_outside_of_the_networks_there_is_nothing(outside: Outside) -> None:
    """Not even a question for the password, and whatever the client says about itself."""
    known = {"Cookie": cookie_of(asked(outside, "/", inside=True, auth=DOOR))}
    wrong = {}
    for path in (*BEHIND, *TRICKS, *UNREACHABLE_PATHS):
        attempts: dict[str, dict[str, Any]] = {
            "nothing": {},
            "the password": {"auth": DOOR},
            "the cookie": {"headers": known},
            "forged headers": {"headers": {**known, **FORGED}},
        }
        for what, more in attempts.items():
            answer = asked(outside, path, **more)
            if (answer.status_code, answer.content) != (404, b"") or "www-authenticate" in answer.headers:
                wrong[f"{path} with {what}"] = answer.status_code
    assert not wrong


def test_no_other_connection_leads_there(outside: Outside) -> None:
    """Not one to another name of ours with the host of the pages in a header, nor plain HTTP."""
    name = f"admin.{outside.server_name}"
    for host in (name, name.upper(), f"{name}:443", f"{name}.", f"{name}.localhost:{ADMIN_PORT}", "127.0.0.1"):
        for path in ("/", "/_synapse/admin/v1/server_version", f"http://{name}/_synapse/admin/v1/server_version"):
            request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-For: ::1\r\n\r\n"
            assert answer_to(outside, request, tls=True) in (404, 421), (host, path)
            assert answer_to(outside, request, tls=False) in (308, 404), (host, path)
    matrix = f"matrix.{outside.server_name}"
    for authority, host in ((matrix, name), (name, matrix), (name, name)):
        assert http2_status(outside, matrix, authority, host) in (404, 421), (authority, host)
    assert http2_status(outside, name, matrix, name, "/_matrix/client/versions") == 200
    assert http2_status(outside, name, name, matrix, "/_matrix/client/versions") == 404


def http2_status(
    outside: Outside,
    sni: str,
    authority: str,
    host: str,
    path: str = BEHIND[-2],
    door: tuple[str, str] | None = None,
    certificate: Path | None = None,
) -> int:
    """The status of the answer to a request that says in several places for which name it is.

    door: from inside, with this name and password.
    """
    context = outside.context()
    if certificate:
        context.load_cert_chain(certificate)
    context.set_alpn_protocols(["h2"])
    address = outside.host.bed.resolve(outside.server_name, ipv6=bool(door))
    with (
        socket.create_connection((address, 443), timeout=TIMEOUT) as plain,
        context.wrap_socket(plain, server_hostname=sni) as connection,
    ):
        h2 = H2Connection(H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False))
        h2.initiate_connection()
        named = [(":method", "GET"), (":scheme", "https"), (":authority", authority), (":path", path), ("host", host)]
        if door:
            named.append(("authorization", BASIC.partition(": ")[2]))
        h2.send_headers(1, named, end_stream=True)
        connection.sendall(h2.data_to_send())
        while received := connection.recv(1 << 16):
            for event in h2.receive_data(received):
                if isinstance(event, ResponseReceived):
                    return int(dict(event.headers)[b":status"])
            connection.sendall(h2.data_to_send())
    raise AssertionError(f"no answer to {authority}, {host}")


def test_inside_the_networks_the_password_is_asked_for(outside: Outside) -> None:
    for path in BEHIND:
        wrong: list[dict[str, Any]] = [
            {},
            {"auth": (USER, "wrong")},
            {"auth": ("root", ADMIN_PASSWORD)},
            {"headers": FORGED},
        ]
        for more in wrong:
            answer = asked(outside, path, inside=True, **more)
            assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Basic "), path
            assert answer.content == b"" and "set-cookie" not in answer.headers
    for value in ("", "0" * 64):
        assert asked(outside, "/", inside=True, headers={"Cookie": f"{COOKIE}={value}"}).status_code == 401
    answer = asked(outside, "/", inside=True, auth=DOOR)
    assert answer.status_code == 200 and "<html" in answer.text
    attributes = answer.headers["set-cookie"].split("; ")[1:]
    assert sorted(attributes) == ["HttpOnly", "Path=/", "SameSite=Lax", "Secure"]


def test_behind_the_door_is_what_ketesa_needs_and_nothing_else(outside: Outside) -> None:
    headers = {"Cookie": cookie_of(asked(outside, "/", inside=True, auth=DOOR))}
    told = asked(outside, "/config.json", inside=True, headers=headers).json()
    assert told == {"restrictBaseUrl": f"https://admin.{outside.server_name}", "wellKnownDiscovery": False}
    assert asked(outside, "/_matrix/client/versions", inside=True, auth=DOOR).json()["versions"]
    assert "server_version" in asked(outside, "/_synapse/admin/v1/server_version", inside=True, headers=headers).json()
    # Synapse asks for its own token, and gets that of Ketesa in spite of the door.
    answer = asked(
        outside, "/_synapse/admin/v2/users", inside=True, headers={**headers, "Authorization": "Bearer wrong"}
    )
    assert answer.json()["errcode"] == "M_UNKNOWN_TOKEN"
    found = {
        path: asked(outside, path, inside=True, headers=headers).status_code
        for path in (
            "/_synapse/admin/v1/register",
            "/_synapse/replication/",
            "/_synapse/metrics",
            "/_synapse/mas/query_user",
            "/_matrix/federation/v1/version",
            "/api/admin/v1/users",
            "/.sum",
            "/assets/",
            "/health",
        )
    }
    assert set(found.values()) == {404}, found


def test_its_pages_run_no_foreign_scripts_and_are_shown_in_no_frame(outside: Outside) -> None:
    headers = asked(outside, "/", inside=True, auth=DOOR).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'" and policy["connect-src"] == "'self'"
    assert "unsafe" not in policy["script-src"] and headers["x-frame-options"] == "DENY"
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    # Nor does what somebody has uploaded.
    assert (
        "sandbox"
        in asked(outside, "/_matrix/media/v3/download/x/y", inside=True, auth=DOOR).headers["content-security-policy"]
    )


@pytest.mark.once("debian13")
def test_an_administrator_opens_them_through_a_tunnel(
    deployed: Deployed, outside: Outside, chromium: Host, tmp_path: Path
) -> None:
    register_admin(deployed.host)
    with tunnel(deployed) as url, at_the_same_port(chromium, url), browsing(chromium) as browser:
        assert re.fullmatch(rf"http://admin\.{re.escape(deployed.server_name)}\.localhost:84\d\d/", url)
        page = browser.page()
        # As a person types it into the browser's question.
        page.open(url.replace("//", f"//{USER}:{ADMIN_PASSWORD.replace(' ', '%20')}@"))
        page.open(url)

        def shown() -> str:
            return str(page.run("document.body ? document.body.innerText : ''"))

        wait_for(shown, "Sign in")
        assert page.run("isSecureContext")
        for name, value in (("username", "boss"), ("password", "a password of hers")):
            page.run(FILL, name, value)
        page.run("document.querySelector('form button:not([type=button])').click()")
        wait_for(shown, f"@boss:{deployed.server_name}")
        page.picture(tmp_path / "desktop.png", 1440, 900)
        page.picture(tmp_path / "phone.png", 390, 844)
    # Pages that let themselves be sent to this machine by their own name find nothing.
    found = deployed.host.run(
        f"curl -s -o /dev/null -w '%{{http_code}}' -u '{USER}:{ADMIN_PASSWORD}' -H 'Host: evil.test:{ADMIN_PORT}' "
        f"http://127.0.0.1:{ADMIN_PORT}/"
    )
    assert found.stdout == "404"


def overview(outside: Outside, path: str, *, inside: bool = True, method: str = "GET", **more: Any) -> httpx.Response:
    """The answer at the public name of the monitoring's overview."""
    with outside.http(ipv6=inside) as http:
        return http.request(method, outside.url("monitor", path), **more)


FIGURES = ("/api/v1/query?query=up", "/api/v1/query_range?query=up&start=1&end=2&step=1", "/api/v1/alerts")
PAGE = ("/", "/overview.js", "/overview.css", "/uPlot.iife.min.js", "/uPlot.min.css")


def test_the_overview_is_behind_the_same_door(outside: Outside) -> None:
    for path in (*PAGE, *FIGURES):
        answer = overview(outside, path, auth=DOOR)
        assert answer.status_code == 200, path
        known = {"Cookie": cookie_of(answer)} if "set-cookie" in answer.headers else {}
        for more in ({}, {"headers": FORGED}, {"auth": (USER, "wrong")}):
            assert overview(outside, path, **more).status_code == 401, path
        for more in ({}, {"auth": DOOR}, {"headers": {**known, **FORGED}}):
            refused = overview(outside, path, inside=False, **more)
            assert (refused.status_code, refused.content) == (404, b""), path
            assert "www-authenticate" not in refused.headers, path


def test_the_overview_only_asks_and_only_itself(outside: Outside) -> None:
    closed = ("targets", "rules", "status/config", "status/flags", "series", "labels", "admin/tsdb/snapshot", "write")
    paths = [*(f"/api/v1/{each}" for each in closed), "/-/reload", "/metrics", "/graph", "/federate", "/index", "/.sum"]
    paths += ["/api/v1/query/../status/config", "/api/v1/query%2f..%2fstatus/config", "//api/v1/status/config"]
    found = {path: overview(outside, path, auth=DOOR).status_code for path in paths}
    assert set(found.values()) == {404}, found
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        for path in ("/", FIGURES[0], "/api/v1/admin/tsdb/delete_series"):
            assert overview(outside, path, method=method, auth=DOOR).status_code == 405, (method, path)
    answer = overview(outside, FIGURES[0], auth=DOOR, headers={"Origin": "https://evil.test"})
    assert answer.json()["status"] == "success"
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    headers = overview(outside, "/", auth=DOOR).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert headers["x-frame-options"] == "DENY" and headers["x-content-type-options"] == "nosniff"


@pytest.mark.once("debian13")
def test_a_certificate_is_needed_besides_the_password(deployed: Deployed, outside: Outside, tmp_path: Path) -> None:
    name = f"admin.{outside.server_name}"
    with with_certificates(deployed, tmp_path) as (anna, bert, others):
        for service in ("admin", "monitor"):
            # Without one: no question for the password, and none of the password's cookies.
            for more in ({}, {"auth": DOOR}, {"headers": FORGED}):
                for path in ("/", "/_synapse/admin/v1/server_version", "/api/v1/query?query=up"):
                    answer = asked(outside, path, inside=True, service=service, **more)
                    assert answer.status_code == 403 and "need a certificate" in answer.text, (service, path)
                    assert not {"www-authenticate", "set-cookie", "alt-svc"} & set(answer.headers)
            # With one: the password as well, and then what is there.
            with_one: dict[str, Any] = {"inside": True, "service": service, "certificate": anna}
            answer = asked(outside, "/", **with_one)
            assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Basic ")
            known = cookie_of(asked(outside, "/", auth=DOOR, **with_one))
            assert asked(outside, "/", headers={"Cookie": known}, **with_one).status_code == 200
            # The cookie is none without the certificate.
            assert asked(outside, "/", inside=True, service=service, headers={"Cookie": known}).status_code == 403
            # With that of somebody else who has written the same name on it, or an old one: no answer at all.
            for what, certificate in others.items():
                with pytest.raises((httpx.TransportError, ssl.SSLError)):
                    asked(outside, "/", inside=True, service=service, certificate=certificate, auth=DOOR)
                    pytest.fail(what)
            # From elsewhere it is of no use.
            answer = asked(outside, "/", service=service, certificate=anna, auth=DOOR)
            assert (answer.status_code, answer.content) == (404, b"")
        # Nor is a connection to another name, whether it has one or not.
        for sni in ("matrix", "chat", "monitor"):
            for given in (None, anna):
                assert http2_status(outside, f"{sni}.{outside.server_name}", name, name, "/", DOOR, given) == 421, sni
        assert http2_status(outside, name, name, name, "/", DOOR, anna) == 200
        assert http2_status(outside, name, name, name, "/", DOOR) == 403
        assert http2_status(outside, name.upper(), name, name, "/", DOOR) in (403, 421)
        for host in (name, name.upper(), f"{name}:443", f"{name}."):
            request = f"GET / HTTP/1.1\r\nHost: {host}\r\n{BASIC}\r\n\r\n"
            assert answer_to(outside, request, tls=True) in (404, 421), host
        # HTTP/3, which browsers are not told of, has no other door. Debian 12's curl does not speak it.
        if deployed.host.release == "trixie":
            asks = (
                f"curl -s -u '{USER}:{ADMIN_PASSWORD}' -o /dev/null -w '%{{http_code}} %{{http_version}}' --http3-only"
            )
            assert deployed.host.run(f"{asks} --resolve {name}:443:127.0.0.1 https://{name}/").stdout == "403 3"
        # Through the tunnel there is no TLS, and none is asked for.
        tunnelled = f"curl -s -o /dev/null -w '%{{http_code}}' -H 'Host: {name}.localhost:{ADMIN_PORT}'"
        for password, wanted in (("", "401"), (f"-u '{USER}:{ADMIN_PASSWORD}'", "200")):
            assert deployed.host.run(f"{tunnelled} {password} http://127.0.0.1:{ADMIN_PORT}/").stdout == wanted
        # One that is taken back opens nothing any more, nor do a connection and a session of TLS from before.
        context = outside.context()
        context.load_cert_chain(bert)
        with connected(outside, context, name) as open_one:
            assert status_on(open_one, name) == 200
            with connected(outside, context, name, open_one.session) as again:
                assert again.session_reused and status_on(again, name) == 200
            assert deployed.deployment.manage("admin", "certificate", "revoke", "bert", "--yes").returncode == 0
            assert deployed.deployment.run("-y").changed == ["Configure Caddy", "Run Caddy"]
            assert status_on(open_one, name) in (None, 403)
            with contextlib.suppress(OSError), connected(outside, context, name, again.session) as late:
                assert status_on(late, name) in (None, 403)
        assert asked(outside, "/", inside=True, certificate=anna, auth=DOOR).status_code == 200
    assert asked(outside, "/", inside=True, auth=DOOR).status_code == 200


@contextlib.contextmanager
def connected(
    outside: Outside, context: ssl.SSLContext, name: str, session: ssl.SSLSession | None = None
) -> Iterator[ssl.SSLSocket]:
    """A connection to a name of ours, from inside. session: of TLS, to be gone on with."""
    address = outside.host.bed.resolve(name, ipv6=True)
    with (
        socket.create_connection((address, 443), timeout=TIMEOUT) as plain,
        context.wrap_socket(plain, server_hostname=name, session=session) as connection,
    ):
        yield connection


def status_on(connection: ssl.SSLSocket, name: str) -> int | None:
    """The status of the answer to a request with the password; None: there is none, as the connection was closed."""
    try:
        connection.sendall(f"GET /auth-callback/ HTTP/1.1\r\nHost: {name}\r\n{BASIC}\r\n\r\n".encode())
        line, *_ = connection.recv(1 << 16).split(b"\r\n")
    except OSError:
        return None
    return int(line.split()[1]) if line else None


@contextlib.contextmanager
def with_certificates(deployed: Deployed, directory: Path) -> Iterator[tuple[Path, Path, dict[str, Path]]]:
    """`admin_certificates = True`. The PEM files of two certificates that are let in, and of some that are not."""
    deployment, before = deployed.deployment, deployed.deployment.settings
    good, subject = [], x509.Name([])
    for name in ("anna", "bert"):
        done = deployment.manage(
            "admin", "certificate", "create", name, "--password-stdin", stdin=f"{ADMIN_PASSWORD}\n"
        )
        assert done.returncode == 0, done.stderr
        file = deployment.directory / f"{name}.p12"
        key, certificate, _ = pkcs12.load_key_and_certificates(file.read_bytes(), ADMIN_PASSWORD.encode())
        file.unlink()
        assert isinstance(key, ec.EllipticCurvePrivateKey) and certificate
        good.append(pem_file(directory / f"{name}.pem", key, certificate))
        subject = certificate.subject
    # Of the same name, but never listed; and one that was, whose time is over.
    mine, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    made = (
        x509.CertificateBuilder(subject, subject, mine.public_key(), 1)
        .not_valid_before(now - timedelta(days=9))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    )
    foreign = made.not_valid_after(now + timedelta(days=9)).sign(mine, hashes.SHA256())
    old = made.not_valid_after(now - timedelta(days=1)).sign(mine, hashes.SHA256())
    vault = Vault.open(deployment.vault)
    vault.set(f"{CERTIFICATE}old", base64.b64encode(old.public_bytes(Encoding.DER)).decode())
    vault.save()
    assert "expired" in deployment.manage("admin", "certificate", "list").stdout
    deployment.choose(**before, admin_certificates=True)
    try:
        changed = deployment.run("-y").changed
        assert changed == ["Configure Caddy", "Run Caddy"], changed
        yield (
            good[0],
            good[1],
            {
                "somebody else's": pem_file(directory / "foreign.pem", mine, foreign),
                "an old one": pem_file(directory / "old.pem", mine, old),
            },
        )
    finally:
        deployment.choose(**before)
        vault = Vault.open(deployment.vault)
        for name in certificates_in(vault):
            vault.remove(f"{CERTIFICATE}{name}")
        vault.save()
        deployment.run("-y")


def pem_file(file: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> Path:
    file.write_bytes(
        certificate.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return file


# React listens for the event.
FILL = """(name, value) => {
  const input = document.querySelector(`input[name=${name}]`);
  Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(input, value);
  input.dispatchEvent(new Event("input", { bubbles: true }));
}"""


def register_admin(host: Host) -> None:
    host.run(
        f"umask 077; file=$(mktemp); cat >$file; {REGISTER} -c /etc/matrix-synapse/homeserver.yaml --user boss "
        f"--password-file $file --admin --exists-ok http://127.0.0.1:{SYNAPSE_PORT}; rm $file",
        stdin="a password of hers",
    )


def cookie_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer
    return str(answer.headers["set-cookie"].partition(";")[0])


def wait_for(shown: Callable[[], str], wanted: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while wanted not in (text := shown()):
        assert time.monotonic() < deadline, text
        time.sleep(0.2)


@contextlib.contextmanager
def tunnel(deployed: Deployed) -> Iterator[str]:
    """`manage.py NAME admin open`; the address that it prints."""
    deployment = deployed.deployment
    command = [sys.executable, "manage.py", str(deployment.inventory), "admin", "open"]
    with subprocess.Popen(command, cwd=deployment.root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().split()[0]
        finally:
            process.send_signal(signal.SIGINT)
        assert process.stdout.read().endswith("The tunnel is closed.\n") and process.wait(TIMEOUT) == 0


@contextlib.contextmanager
def at_the_same_port(host: Host, url: str) -> Iterator[None]:
    """The browser's machine is the administrator's computer: what listens on that one is at the same port there."""
    port = url.rpartition(":")[2].rstrip("/")
    ssh, *arguments = host.ssh("echo ready; exec cat")
    way = ["-o", "ControlPath=none", "-o", "ExitOnForwardFailure=yes", "-R", f"{port}:127.0.0.1:{port}"]
    with subprocess.Popen([ssh, *way, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        yield
        assert process.stdin
        process.stdin.close()
