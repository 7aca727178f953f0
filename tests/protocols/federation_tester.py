"""The checks of the public Federation Tester, also for private names: can other homeservers find this one and trust its keys?

    check("example.org", resolver=..., ca=...)

A finding for each check, good or bad, in the order in which another homeserver proceeds. Source: Matrix's server-server API,
"Server discovery" and "Publishing keys". SRV records are not checked: our deployments have none.
"""

import base64
import binascii
import http.client
import json
import re
import socket
import ssl
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from roles import FEDERATION_PORT

# Seconds to wait for each answer: a homeserver would not wait much longer.
TIMEOUT = 20


@dataclass(frozen=True)
class Finding:
    """The result of one check. problem: None if it passed. detail: what was found, for people."""

    subject: str
    problem: str | None = None
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.subject}: {self.problem or self.detail or 'as it should be'}"


@dataclass(frozen=True)
class _Answer:
    status: int
    content_type: str
    body: bytes
    tls: str


class _CheckFailed(Exception):
    """What is wrong."""


Resolver = Callable[[str], str]


def check(
    server_name: str, resolver: Resolver, ca: Path | None = None, port_8448: bool | None = False
) -> list[Finding]:
    """Check a homeserver as another one would that knows only its server name.

    resolver: returns a name's address, raises any exception if there is none. ca: PEM file of the authority to trust
    instead of the system's. port_8448: whether federation must be served there as well; None: both are right.
    """
    findings: list[Finding] = []
    try:
        name, port = _delegated(server_name, resolver, ca)
        findings.append(Finding("well-known", detail=f"{name}:{port} speaks for {server_name}"))
    except _CheckFailed as error:
        # What the specification says for a missing well-known file.
        name, port = server_name, FEDERATION_PORT
        findings.append(Finding("well-known", str(error)))
    findings += _server(server_name, name, port, resolver, ca)

    if port_8448 is not None and port != FEDERATION_PORT:
        subject = f"port {FEDERATION_PORT}"
        if port_8448:
            there = _server(server_name, server_name, FEDERATION_PORT, resolver, ca)
            findings += [Finding(f"{subject}, {each.subject}", each.problem, each.detail) for each in there]
        else:
            findings += [
                Finding(subject, f"{each} is open, though nobody should need it" if _open(each, resolver) else None)
                for each in dict.fromkeys([server_name, name])
            ]
    return findings


def problems(findings: list[Finding]) -> list[str]:
    """A line for each check that failed."""
    return [str(finding) for finding in findings if finding.problem]


def key_problem(document: Mapping[str, Any], server_name: str, now: float) -> str | None:
    """What is wrong with the keys that a homeserver publishes; None if nothing is. now: seconds since the epoch."""
    if document.get("server_name") != server_name:
        return f"the keys are those of {document.get('server_name')}"
    until = document.get("valid_until_ts")
    if not isinstance(until, int) or until / 1000 <= now:
        return f"the keys are not valid any more: valid_until_ts is {until}"
    keys = document.get("verify_keys") or {}
    if not keys:
        return "no key is published"
    signed = {name: value for name, value in document.items() if name not in ("signatures", "unsigned")}
    signatures = document.get("signatures", {}).get(server_name, {})
    for key_id, entry in keys.items():
        algorithm = key_id.partition(":")[0]
        if algorithm != "ed25519":
            return f"{key_id} has an unknown algorithm"
        try:
            public = Ed25519PublicKey.from_public_bytes(_unpadded(entry["key"]))
            public.verify(_unpadded(signatures[key_id]), canonical(signed))
        except KeyError:
            return f"the answer is not signed with {key_id}"
        except (InvalidSignature, ValueError, TypeError, binascii.Error):
            return f"the signature with {key_id} is not right"
    return None


def canonical(value: Any) -> bytes:
    """Matrix's canonical JSON, over which signatures are made."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _delegated(server_name: str, resolver: Resolver, ca: Path | None) -> tuple[str, int]:
    """The domain name and port that the server name delegates to. Raises _CheckFailed."""
    answer = _get(server_name, 443, "/.well-known/matrix/server", resolver, ca)
    if answer.status != 200:
        raise _CheckFailed(f"https://{server_name}/.well-known/matrix/server answers {answer.status}")
    if answer.content_type.partition(";")[0].strip() != "application/json":
        raise _CheckFailed(f"its content type is {answer.content_type or 'not given'}, not application/json")
    delegated = _json(answer).get("m.server")
    found = re.fullmatch(r"([A-Za-z0-9.-]+)(?::([0-9]{1,5}))?", delegated) if isinstance(delegated, str) else None
    if not found:
        raise _CheckFailed(f"its m.server is {delegated!r}")
    return found[1], int(found[2] or FEDERATION_PORT)


def _server(server_name: str, name: str, port: int, resolver: Resolver, ca: Path | None) -> Iterator[Finding]:
    """The checks of the homeserver at a name, which serves server_name."""
    try:
        yield Finding("address", detail=_resolved(name, resolver))
    except _CheckFailed as error:
        yield Finding("address", str(error))
        return
    try:
        keys = _get(name, port, "/_matrix/key/v2/server", resolver, ca)
    except _CheckFailed as error:
        yield Finding("certificate", str(error))
        return
    yield Finding("certificate", detail=f"valid for {name}")
    yield Finding("TLS", _old_tls(name, port, resolver), detail=keys.tls)
    try:
        yield Finding("keys", key_problem(_json(keys), server_name, time.time()))
    except _CheckFailed as error:
        yield Finding("keys", str(error))
    try:
        version = _json(_get(name, port, "/_matrix/federation/v1/version", resolver, ca)).get("server", {})
        detail = f"{version.get('name')} {version.get('version')}"
        known = all(isinstance(version.get(word), str) for word in ("name", "version"))
        yield Finding("version", None if known else f"it says {version}", detail)
    except _CheckFailed as error:
        yield Finding("version", str(error))


def _get(name: str, port: int, path: str, resolver: Resolver, ca: Path | None) -> _Answer:
    """An HTTPS request, as in the specification: the certificate must be valid for the name. Raises _CheckFailed."""
    context = ssl.create_default_context(cafile=str(ca) if ca else None)
    try:
        with closing(_connected(name, port, resolver, context)) as connected:
            connection = http.client.HTTPConnection(name, port)
            connection.sock = connected
            connection.request("GET", path, headers={"Host": name if port == 443 else f"{name}:{port}"})
            response = connection.getresponse()
            # None of the expected answers is longer than this.
            body = response.read(1 << 20)
            return _Answer(response.status, response.headers.get("content-type", ""), body, connected.version() or "")
    except (OSError, http.client.HTTPException) as error:
        raise _CheckFailed(f"https://{name}:{port} gives no answer: {error}") from None


def _connected(name: str, port: int, resolver: Resolver, context: ssl.SSLContext) -> ssl.SSLSocket:
    plain = socket.create_connection((_resolved(name, resolver), port), timeout=TIMEOUT)
    try:
        return context.wrap_socket(plain, server_hostname=name)
    except BaseException:
        plain.close()
        raise


def _old_tls(name: str, port: int, resolver: Resolver) -> str | None:
    """A problem if the server accepts TLS before 1.2, which RFC 8996 forbids."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    # Otherwise our own OpenSSL would refuse, and the server would not be tested.
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    try:
        with closing(_connected(name, port, resolver, context)) as connected:
            return f"{connected.version()} is accepted"
    except (OSError, _CheckFailed):
        return None


def _open(name: str, resolver: Resolver) -> bool:
    try:
        socket.create_connection((_resolved(name, resolver), FEDERATION_PORT), timeout=TIMEOUT).close()
    except (OSError, _CheckFailed):
        return False
    return True


def _resolved(name: str, resolver: Resolver) -> str:
    try:
        return resolver(name)
    except Exception as error:
        raise _CheckFailed(f"{name} has no address: {error}") from None


def _json(answer: _Answer) -> dict[str, Any]:
    try:
        value = json.loads(answer.body)
    except ValueError:
        raise _CheckFailed(f"the answer ({answer.status}) is no JSON") from None
    if answer.status != 200 or not isinstance(value, dict):
        raise _CheckFailed(f"the answer is {answer.status} {value}")
    return value


def _unpadded(value: str) -> bytes:
    return base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
