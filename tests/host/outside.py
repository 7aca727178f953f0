"""The deployment as seen from outside: at the addresses that DNS has for its names, from the computer that verifies."""

import contextlib
import errno
import http.client
import ipaddress
import shlex
import socket
import ssl
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cryptography import x509
from testinfra.host import Host

from operations.certificates import BUNDLE
from tests.host.services import ask
from tests.protocols.turn import Credentials

# Seconds to wait for a connection.
TIMEOUT = 10

# Credentials such as Synapse issues for a call, made on the homeserver, so that the secret does not leave it: TURN REST API
# (draft-uberti-behave-turn-rest-00). Valid for two minutes.
ISSUE = """
import base64, hmac, pathlib, time
secret = pathlib.Path("/etc/matrix-synapse/secrets/turn_shared_secret").read_bytes().strip()
username = f"{time.time() + 120:.0f}:verification"
print(username, base64.b64encode(hmac.digest(secret, username.encode(), "sha1")).decode())
"""


# The addresses of a name by DNS, of both families, whether the machine has IPv6 or not. Its /etc/hosts is not used: others do
# not have it. systemd-resolved would answer from it, so that the name servers behind it are asked.
RESOLVE = """
resolve="getent -A -s hosts:dns ahosts"
behind=/run/systemd/resolve/resolv.conf
if grep -qs "^nameserver 127.0.0.5[34]" /etc/resolv.conf && grep -qs ^nameserver "$behind"; then
    resolve="unshare --mount sh -c 'mount --bind $behind /etc/resolv.conf && exec $resolve \\"\\$1\\"' sh"
fi
eval "$resolve %s"
"""


class NoRoute(Exception):
    """This computer has no route to the address: it has no IPv6."""


@dataclass(frozen=True)
class Handshake:
    """certificate: None if none is presented. problem: why a client would refuse the connection; empty if it would not."""

    certificate: x509.Certificate | None
    problem: str = ""


def addresses_of(host: Host, name: str) -> list[str]:
    """The addresses of a name by the machine's name servers, IPv4 first."""
    lines = host.run(RESOLVE, name).stdout.splitlines()
    found = {ipaddress.ip_address(line.split()[0].partition("%")[0]) for line in lines if line.strip()}
    return [str(address) for address in sorted(found, key=lambda address: (address.version, address.packed))]


def address_of(host: Host, name: str) -> str:
    """The first address of a name. Raises LookupError."""
    found = addresses_of(host, name)
    if not found:
        raise LookupError(f"{name} has no DNS record of an address")
    return found[0]


@contextlib.contextmanager
def trusted_by(host: Host) -> Iterator[Path]:
    """A file with the authorities that the machine trusts: Debian's, and those that its administrator added."""
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(ask(host, "cat %s", BUNDLE))
        file.flush()
        yield Path(file.name)


def check_route(address: str) -> None:
    """Raises NoRoute. Without a packet: a router's answer that it has no route is a fault of the address."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        try:
            datagrams.connect((address, 9))
        except OSError as error:
            if error.errno in (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise NoRoute(address) from None


@cache
def connection_problem(address: str, port: int) -> str:
    """Why a client gets no TCP connection; empty if it gets one. Asked once: several names have the same address.

    Raises NoRoute.
    """
    check_route(address)
    try:
        socket.create_connection((address, port), timeout=TIMEOUT).close()
    except OSError as error:
        return f"this computer gets no connection: {error.strerror or error}"
    return ""


def is_refused_over_udp(address: str, port: int) -> bool:
    """Whether a packet is answered by a message that nobody listens there, or may be reached. Raises NoRoute."""
    check_route(address)
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(1)
        datagrams.connect((address, port))
        try:
            datagrams.send(bytes(20))
            datagrams.recv(1)
        except TimeoutError:
            return False
        except OSError:
            return True
    return False


def http_problem(address: str, name: str) -> str:
    """Why a client gets no answer to an HTTP request without TLS for the name; empty if it gets one. Raises NoRoute."""
    if problem := connection_problem(address, 80):
        return problem
    connection = http.client.HTTPConnection(address, 80, timeout=TIMEOUT)
    try:
        connection.request("GET", "/", headers={"Host": name})
        connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        return f"no answer to an HTTP request: {error or type(error).__name__}"
    finally:
        connection.close()
    return ""


@cache
def _context(authorities: Path | None) -> ssl.SSLContext:
    """Made once for each file: to read all authorities takes a twentieth of a second."""
    if authorities:
        return ssl.create_default_context(cafile=str(authorities))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def handshake(address: str, port: int, name: str, authorities: Path | None) -> Handshake:
    """A client's TLS handshake. authorities: file of the authorities to trust; None: accept any. Raises NoRoute."""
    if problem := connection_problem(address, port):
        return Handshake(None, problem)
    context = _context(authorities)
    try:
        with (
            socket.create_connection((address, port), timeout=TIMEOUT) as plain,
            context.wrap_socket(plain, server_hostname=name) as connected,
        ):
            raw = connected.getpeercert(binary_form=True)
            return Handshake(x509.load_der_x509_certificate(raw) if raw else None)
    except ssl.SSLCertVerificationError as error:
        return Handshake(handshake(address, port, name, None).certificate, f"clients refuse it: {error.verify_message}")
    except ssl.SSLError as error:
        return Handshake(None, f"no TLS: {(error.reason or str(error)).lower().replace('_', ' ')}")
    except OSError as error:
        return Handshake(None, f"this computer gets no connection: {error.strerror or error}")


def is_same_machine(host: Host, address: str, name: str, port: int) -> bool:
    """Whether an address that the machine does not have leads to it: the same certificate is presented there."""
    command = "openssl s_client -connect %s -servername %s </dev/null 2>/dev/null | openssl x509"
    done = host.run(command, f"127.0.0.1:{port}", name)
    if done.rc:
        return False
    try:
        there = handshake(address, port, name, None).certificate
    except NoRoute:
        return False
    return there == x509.load_pem_x509_certificate(str(done.stdout).encode())


def issued_credentials(host: Host) -> Credentials:
    """Credentials for the relay, as Synapse issues them. host: the homeserver's machine."""
    username, password = ask(host, f"python3 -Ic {shlex.quote(ISSUE)}").split()
    return Credentials(username, password)
