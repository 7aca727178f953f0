"""What an unauthenticated client on another machine can reach, and what it cannot."""

import contextlib
import os
import re
import socket
import ssl
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from roles import RELAY_PORT, RELAY_TLS_PORT, RELAYED, SYNAPSE_PORT
from tests.deployment import EVERYTHING
from tests.e2e.client import Outside, expect_json
from tests.protocols.turn import relay
from tests.security.slow import KINDS, Connection, Ended

pytestmark = pytest.mark.role("caddy")

# What is before the server name in each name of the deployment.
SERVICES = ["", *(role.domain.prefix for role in EVERYTHING.values() if role.domain)]
# What is served for people in a browser.
OWN_PAGES = {"": ("/",)} | {role.domain.prefix: role.domain.pages for role in EVERYTHING.values() if role.domain}
UNREACHABLE_PATHS = [
    "/",
    "/index.html",
    "/health",
    "/metrics",
    "/_synapse/admin/v1/register",
    "/_synapse/admin/v1/server_version",
    "/_synapse/admin/v2/users",
    "/_synapse/metrics",
    "/_synapse/replication/",
    "/_synapse/mas/query_user",
    "//_synapse/admin/v1/register",
    "/_synapse//admin/v1/register",
    "/_matrix/../_synapse/admin/v1/register",
    "/_matrix/%2e%2e/_synapse/admin/v1/register",
    "/_matrix/..%2f_synapse/admin/v1/register",
    "/_synapse/client/../admin/v1/register",
    "/_synapse/client/%2e%2e/admin/v1/register",
    "/.well-known/matrix",
    "/.well-known/matrix/server/x",
    "/client/",
    "/config/",
    "/debug/pprof/",
]
# Paths of Sydent's v1 API, which needs no account: they would send mail from this server, or disclose accounts.
IDENTITY_V1 = [
    "store-invite",
    "lookup",
    "bulk_lookup",
    "3pid/bind",
    "3pid/unbind",
    "3pid/getValidated3pid",
    "validate/email/requestToken",
    "validate/msisdn/requestToken",
    "validate/msisdn/submitToken",
]
# By default, without the ports that a setting opens.
OPEN = [
    port for role in EVERYTHING.values() for port in role.listens if port.reach == "everybody" and port.when is None
]
OPEN_TCP = {22, *(port.number for port in OPEN if port.protocol == "tcp")}
OPEN_UDP = {port.number for port in OPEN if port.protocol == "udp" and port.last is None}
# No HTTP, or what a proxy and the server behind it could understand in two ways; {host} is one of our names.
_POST = "POST /_matrix/client/v3/keys/query HTTP/1.1\r\nHost: {host}\r\n"
MALFORMED = {
    "no HTTP at all": "\x16\x03\x01\x00\x05hello\r\n\r\n",
    "a NUL in a header": "GET /_matrix/client/versions HTTP/1.1\r\nHost: {host}\r\nX-A: \0\r\n\r\n",
    "two host names": "GET /_matrix/client/versions HTTP/1.1\r\nHost: {host}\r\nHost: other.test\r\n\r\n",
    "two lengths of the body": _POST + "Content-Length: 2\r\nContent-Length: 4\r\n\r\n{}",
    "a negative length": _POST + "Content-Length: -2\r\n\r\n{}",
    "an encoding of the body that does not exist": _POST + "Transfer-Encoding: xchunked\r\n\r\n{}",
    "a broken chunk of the body": _POST + "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a body that is no JSON": _POST + "Content-Length: 5\r\n\r\nhello",
}
INTERNAL = {2019: "Caddy's administration"} | {
    port.number: role.title for role in EVERYTHING.values() for port in role.listens if port.reach != "everybody"
}


@pytest.mark.parametrize("service", SERVICES, ids=[service or "apex" for service in SERVICES])
def test_unknown_paths_are_not_found(outside: Outside, service: str) -> None:
    with outside.http() as http:
        paths = [path for path in UNREACHABLE_PATHS if path not in OWN_PAGES.get(service, ())]
        statuses = {path: http.get(outside.url(service, path)).status_code for path in paths}
    assert {path: status for path, status in statuses.items() if status != 404} == {}


@pytest.mark.parametrize(
    ("wanted", "language"),
    [(None, "en"), ("zh-CN,zh;q=0.9,en;q=0.8", "zh"), ("de", "de"), ("FR-ca", "fr"), ("pt-BR,zh", "en")],
)
def test_the_server_name_says_how_to_join_in_the_browsers_language(
    outside: Outside, wanted: str | None, language: str
) -> None:
    with outside.http() as http:
        answer = http.get(outside.url("", "/"), headers={"Accept-Language": wanted} if wanted else {})
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    assert f'<html lang="{language}">' in answer.text and f":{outside.server_name}</code>" in answer.text
    assert f"https://chat.{outside.server_name}/" in answer.text
    assert answer.headers["vary"] == "Accept-Language" and answer.headers["cache-control"] == "no-cache"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; ")


def test_the_admin_api_answers_on_the_machine(outside: Outside) -> None:
    """So that the paths above are refused, and not merely misspelt."""
    answer = outside.host.run(f"curl -s http://127.0.0.1:{SYNAPSE_PORT}/_synapse/admin/v1/register").stdout
    assert "nonce" in answer, answer


@pytest.mark.parametrize("service", [service for service in SERVICES if service != "matrix"])
def test_only_the_homeservers_name_serves_the_homeserver(outside: Outside, service: str) -> None:
    """The Sliding Sync proxy would answer some of these itself, and keep tokens; Sydent has similar paths."""
    with outside.http() as http:
        for path in ("/_matrix/client/versions", "/_matrix/client/v3/sync", "/_matrix/federation/v1/version"):
            response = http.get(outside.url(service, path))
            assert response.status_code == 404, f"{response.url} is answered with {response.status_code}"


@pytest.mark.parametrize("path", IDENTITY_V1)
def test_the_old_identity_api_is_not_served(outside: Outside, path: str) -> None:
    with outside.http() as http:
        url = outside.url("identity", f"/_matrix/identity/api/v1/{path}")
        for response in (http.get(url), http.post(url, json={})):
            assert response.status_code == 404, f"{response.request.method} {path}: {response.status_code}"
        assert expect_json(http.get(outside.url("identity", "/_matrix/identity/v2"))) == {}


@pytest.mark.parametrize("service", SERVICES, ids=[service or "apex" for service in SERVICES])
def test_plain_http_redirects_to_https(outside: Outside, service: str) -> None:
    target = outside.url(service, "/_matrix/client/versions?a=b%20c")
    with outside.http(http2=False) as http:
        response = http.get(target.replace("https:", "http:"))
    assert (response.status_code, response.headers.get("location")) == (308, target)


def test_it_answers_over_ipv6(outside: Outside) -> None:
    with outside.http(ipv6=True) as http:
        assert expect_json(http.get(outside.url("matrix", "/_matrix/client/versions")))["versions"]


@pytest.mark.parametrize(
    "request_line",
    ["GET / HTTP/1.1", "TRACE / HTTP/1.1", "POST /_matrix/client/versions HTTP/1.1", "CONNECT {host}:443 HTTP/1.1"],
    ids=lambda line: line.partition(" ")[0],
)
def test_names_that_are_not_ours_are_refused(outside: Outside, request_line: str) -> None:
    """An empty answer with status 200 would make scanners and caches believe that there is something."""
    ours, wrong = f"matrix.{outside.server_name}", {}
    for host in (f"other.{outside.server_name}", outside.host.address, "localhost:443", ""):
        line = request_line.format(host=host.partition(":")[0] or "other.test")
        for tls, status in ((False, 404), (True, 421)):
            answer = answer_to(outside, f"{line}\r\nHost: {host}\r\n\r\n", tls=tls)
            if answer != status:
                wrong[f"{line} for {host!r}, TLS {tls}"] = answer
    assert not wrong
    assert answer_to(outside, "GET / HTTP/1.0\r\n\r\n", tls=False) == 404
    # Our own names still answer, and are no proxy.
    assert answer_to(outside, f"CONNECT {ours}:443 HTTP/1.1\r\nHost: {ours}:443\r\n\r\n", tls=True) == 404
    assert answer_to(outside, f"GET /_matrix/client/versions HTTP/1.1\r\nHost: {ours}\r\n\r\n", tls=True) == 200


def answer_to(outside: Outside, request: str, *, tls: bool) -> int:
    """The status of the answer to a request, sent as it is on a connection to one of our names."""
    with socket.create_connection((outside.host.address, 443 if tls else 80), timeout=30) as plain:
        name = f"matrix.{outside.server_name}"
        connection = outside.context().wrap_socket(plain, server_hostname=name) if tls else plain
        with connection:
            connection.sendall(request.replace("{host}", name).encode("latin-1"))
            return int(connection.recv(4096).split()[1])


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed_requests_are_refused(outside: Outside, text: str) -> None:
    assert answer_to(outside, MALFORMED[text], tls=True) // 100 in (4, 5)


# It takes its time, and both releases have the same Caddy.
@pytest.mark.parametrize("deployed", ["trixie"], ids=["debian13"], indirect=True)
def test_who_hardly_sends_anything_is_let_go(outside: Outside, pool: ThreadPoolExecutor) -> None:
    """But not who sends a large file over a slow line."""
    name = f"matrix.{outside.server_name}"

    def seconds(kind: str) -> float:
        program, options = KINDS[kind]
        until = time.monotonic() + 24
        connection = Connection(name, until, address=outside.host.address, **options)
        with contextlib.suppress(Ended):
            program(connection)
        return time.monotonic() - connection.begin

    headers, handshake, body = pool.map(seconds, ("slow headers", "half-open handshakes", "slow bodies"))
    assert 18 < headers < 24 and 18 < handshake < 24
    assert body >= 24


def test_pages_are_shown_in_no_frame_and_keep_their_addresses(outside: Outside) -> None:
    """Web clients may read all of it; nothing of a trial is left in a browser."""
    with outside.http() as http:
        for service, path, status in (
            ("", "/.well-known/matrix/client", 200),
            ("matrix", "/_matrix/client/versions", 200),
            ("matrix", "/_matrix/client/v3/auth/m.login.terms/fallback/web", 400),
            ("identity", "/_matrix/identity/v2", 200),
            ("turn", "/", 404),
        ):
            answer = http.get(outside.url(service, path), headers={"Origin": "https://app.example.com"})
            assert answer.status_code == status
            found = answer.headers
            assert found.get_list("X-Content-Type-Options") == ["nosniff"], path
            assert "Strict-Transport-Security" not in found
            if service in ("matrix", "identity"):
                assert "frame-ancestors 'none'" in found["Content-Security-Policy"]
                assert len(found.get_list("Content-Security-Policy")) == 1
                assert found.get_list("Referrer-Policy") == ["same-origin"]
            if status == 200:
                assert found.get_list("Access-Control-Allow-Origin") == ["*"]


@pytest.mark.parametrize("service", ["other", "www"])
def test_no_other_name_has_a_certificate(outside: Outside, service: str) -> None:
    name = f"{service}.{outside.server_name}"
    with (
        socket.create_connection((outside.host.address, 443), timeout=30) as connection,
        pytest.raises(ssl.SSLError),
        outside.context().wrap_socket(connection, server_hostname=name),
    ):
        pass


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1], ids=["tls1.0", "tls1.1"])
@pytest.mark.parametrize(
    ("service", "port", "refusals"),
    # Caddy refuses at once; coturn does not answer, and closes the connection after a minute.
    [("matrix", 443, (ssl.SSLError,)), ("turn", RELAY_TLS_PORT, (TimeoutError, ConnectionResetError))],
    ids=["caddy", "coturn"],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_tls_is_refused(
    outside: Outside, service: str, port: int, refusals: tuple[type[OSError], ...], version: ssl.TLSVersion
) -> None:
    context = outside.context()
    # Otherwise our own OpenSSL would refuse first.
    context.set_ciphers("DEFAULT:@SECLEVEL=0")

    def connect() -> None:
        with (
            socket.create_connection((outside.host.address, port), timeout=3) as connection,
            context.wrap_socket(connection, server_hostname=f"{service}.{outside.server_name}"),
        ):
            pass

    context.minimum_version = context.maximum_version = version
    with pytest.raises(refusals):
        connect()
    # It was refused for its version: the same with a newer one is answered in time.
    context.maximum_version = context.minimum_version = ssl.TLSVersion.TLSv1_2
    connect()


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
def test_no_other_tcp_ports_are_open(outside: Outside, ipv6: bool) -> None:
    address = outside.host.address6 if ipv6 else outside.host.address
    open_ports = _open_ports(address)
    for port, service in INTERNAL.items():
        assert port not in open_ports, f"{service} can be reached from outside on port {port}"
    assert open_ports == OPEN_TCP, f"open are {sorted(open_ports)}, expected {sorted(OPEN_TCP)}"


def test_no_other_udp_ports_are_open(outside: Outside) -> None:
    """Closed UDP ports answer too rarely to be scanned: `ss` lists the bound ports, and the services must answer."""
    bound = outside.host.run("ss --no-header --udp --listening --numeric").stdout
    addresses = [re.sub(r"%\w+", "", line.split()[3]).rpartition(":") for line in bound.splitlines()]
    ports = {int(port) for address, _, port in addresses if not address.startswith(("127.", "[::1]"))}
    assert ports - set(RELAYED.numbers) == OPEN_UDP, f"bound are {sorted(ports)}, expected {sorted(OPEN_UDP)}:\n{bound}"

    own = outside.host.bed.bridge_address
    for port in (RELAY_PORT, RELAY_TLS_PORT):
        with relay(outside.host.address, "udp", port=port) as client:
            assert client.bind()[0] == own, f"STUN on port {port} reports another address than ours"
    assert _speaks_quic(outside.host.address), "HTTP/3 is announced, but UDP port 443 does not answer"


def _open_ports(address: str) -> set[int]:
    # SSH is not probed: the tests use it, and its server penalises clients that connect without logging in.
    found = {22}
    for port in range(1, 65536):
        if port in found:
            continue
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as connection:
            connection.settimeout(10)
            with contextlib.suppress(OSError):
                connection.connect((address, port))
                found.add(port)
    return found


def _speaks_quic(address: str) -> bool:
    """Whether a server refuses a version of QUIC that does not exist (RFC 9000, 6.1)."""
    ours, theirs = os.urandom(8), os.urandom(8)
    hello = struct.pack(">BIB8sB8s", 0xC0, 0x1A2A3A4A, 8, theirs, 8, ours).ljust(1200, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.settimeout(3)
        connection.connect((address, 443))
        for _ in range(5):
            connection.send(hello)
            try:
                answer = connection.recv(2048)
            except TimeoutError:
                continue
            # Version 0 is a version negotiation packet; it has our connection ID as its destination.
            return answer[1:5] == bytes(4) and answer[6:14] == ours
    return False
