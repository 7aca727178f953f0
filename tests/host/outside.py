"""The deployment as strangers meet it: by what DNS says about its names, asked from the computer that verifies."""

import contextlib
import errno
import ipaddress
import shlex
import socket
import ssl
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from testinfra.host import Host

from operations.certificates import BUNDLE
from tests.host.services import ask
from tests.protocols.turn import Credentials

# Seconds to wait for a connection.
PATIENCE = 10

# Like those that Synapse hands out at the beginning of a call, made where the secret is, so that it does not leave the machine:
# TURN REST API (draft-uberti-behave-turn-rest-00). Good for two minutes.
ISSUE = """
import base64, hmac, pathlib, time
secret = pathlib.Path("/etc/matrix-synapse/secrets/turn_shared_secret").read_bytes().strip()
username = f"{time.time() + 120:.0f}:verification"
print(username, base64.b64encode(hmac.digest(secret, username.encode(), "sha1")).decode())
"""


class NoWay(Exception):
    """This computer cannot ask there, for a reason of its own: it has no IPv6."""


@dataclass(frozen=True)
class Shown:
    """certificate: None where none is presented. problem: why a client would hang up; empty if it would not."""

    certificate: x509.Certificate | None
    problem: str = ""


def addresses_of(host: Host, name: str) -> list[str]:
    """What the machine's name servers say about a name, IPv4 first; /etc/hosts, which only this machine has, is not asked."""
    lines = host.run("getent -s hosts:dns ahosts %s", name).stdout.splitlines()
    found = {ipaddress.ip_address(line.split()[0].partition("%")[0]) for line in lines if line.strip()}
    return [str(address) for address in sorted(found, key=lambda address: (address.version, address.packed))]


def address_of(host: Host, name: str) -> str:
    """One of them. Raises LookupError."""
    found = addresses_of(host, name)
    if not found:
        raise LookupError(f"no DNS record leads from {name} to an address")
    return found[0]


@contextlib.contextmanager
def trusted_by(host: Host) -> Iterator[Path]:
    """A file with the authorities that the machine trusts: Debian's, and those that its administrator added."""
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(ask(host, "cat %s", BUNDLE))
        file.flush()
        yield Path(file.name)


def handshake(address: str, port: int, name: str, authorities: Path | None) -> Shown:
    """Greet a server by TLS as a client does. authorities: whom to trust; None: whoever it is. Raises NoWay."""
    context = ssl.create_default_context(cafile=str(authorities) if authorities else None)
    if not authorities:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((address, port), timeout=PATIENCE) as plain,
            context.wrap_socket(plain, server_hostname=name) as connected,
        ):
            raw = connected.getpeercert(binary_form=True)
            return Shown(x509.load_der_x509_certificate(raw) if raw else None)
    except ssl.SSLCertVerificationError as error:
        return Shown(handshake(address, port, name, None).certificate, f"clients refuse it: {error.verify_message}")
    except ssl.SSLError as error:
        return Shown(None, f"no TLS: {(error.reason or str(error)).lower().replace('_', ' ')}")
    except OSError as error:
        if error.errno in (errno.ENETUNREACH, errno.EADDRNOTAVAIL):
            raise NoWay(address) from None
        return Shown(None, f"this computer gets no connection: {error.strerror or error}")


def is_the_same(host: Host, address: str, name: str, port: int) -> bool:
    """Whether this computer meets the machine at an address that is not the machine's own: by its certificate."""
    command = "openssl s_client -connect %s -servername %s </dev/null 2>/dev/null | openssl x509"
    done = host.run(command, f"127.0.0.1:{port}", name)
    if done.rc:
        return False
    try:
        there = handshake(address, port, name, None).certificate
    except NoWay:
        return False
    return there == x509.load_pem_x509_certificate(str(done.stdout).encode())


def issued_credentials(host: Host) -> Credentials:
    """Credentials for the relay, as a client gets them. host: the homeserver's machine."""
    username, password = ask(host, f"python3 -Ic {shlex.quote(ISSUE)}").split()
    return Credentials(username, password)
