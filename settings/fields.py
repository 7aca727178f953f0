"""The types of the settings' values."""

import ipaddress
import re
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Literal
from urllib.parse import urlsplit

import idna
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from settings.networks import PRIVATE

_NO_ADDRESS = r"[^@\s<>\"',;:\\]"


class Explained(ValueError):
    """A value that is not allowed; the text says why, for the end of the error message."""


def _domain(value: str) -> str:
    label = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
    if not value.isascii():
        _refuse_unencoded(value)
    if len(value) > 230 or not re.fullmatch(rf"({label}\.)+{label}", value):
        raise ValueError
    # Browsers take it for an IPv4 address: WHATWG URL, "ends in a number".
    if re.search(r"\.([0-9]+|0x[0-9a-f]*)$", value):
        raise ValueError
    # Twisted, so Synapse and Sydent, connects to no name that IDNA 2008 does not allow, in whatever form it is written.
    try:
        idna.encode(value)
    except UnicodeError as error:
        raise Explained(f"IDNA 2008 does not allow this one: {error}") from None
    return value


def _refuse_unencoded(domain: str) -> None:
    """Raises Explained, for a domain name that is not ASCII."""
    try:
        encoded = idna.encode(unicodedata.normalize("NFC", domain.lower())).decode()
    except UnicodeError as error:
        raise Explained(f"IDNA 2008 does not allow this one: {error}") from None
    raise Explained(f"this one is written {encoded}")


def _mail_address(value: str) -> str:
    if not re.fullmatch(rf"{_NO_ADDRESS}+@{_NO_ADDRESS}+\.{_NO_ADDRESS}+", value):
        raise ValueError
    _, _, domain = value.rpartition("@")
    if not domain.isascii():
        _refuse_unencoded(domain)
    if re.search(r"(^|\.)xn--", domain.lower()):
        _domain(domain.lower())
    return value


def _host(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        return _domain(value)


def _https(value: str) -> str:
    url = urlsplit(value)
    if url.scheme != "https" or not url.hostname or re.search(r"\s", value):
        raise ValueError
    return value


def _http(value: str) -> str:
    url = urlsplit(value)
    if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment or re.search(r"\s", value):
        raise ValueError
    return value.rstrip("/")


def _any_network(value: str) -> str:
    return str(ipaddress.ip_network(value))


def _network(value: str) -> str:
    network = ipaddress.ip_network(value)
    # Only private networks: the relay may reach what is named here, which must never be this machine's loopback.
    if not any(network.version == own.version and network.subnet_of(own) for own in PRIVATE):  # type: ignore[arg-type]
        raise ValueError
    return str(network)


def _ipv4(value: str) -> str:
    return _reachable(ipaddress.IPv4Address(value))


def _ipv6(value: str) -> str:
    return _reachable(ipaddress.IPv6Address(value))


def _reachable(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """An address that other machines can have connections with."""
    if address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified:
        raise ValueError
    return str(address)


def _printable(value: str) -> str:
    if not value or not value.isprintable():
        raise ValueError
    return value


def _web_site(value: str) -> str:
    if value == "page" or re.fullmatch(_PATH, value):
        return value
    return _https(value)


Domain = Annotated[str, AfterValidator(_domain)]
Host = Annotated[str, AfterValidator(_host)]
Https = Annotated[str, AfterValidator(_https)]
Http = Annotated[str, AfterValidator(_http)]
Network = Annotated[str, AfterValidator(_network)]
AnyNetwork = Annotated[str, AfterValidator(_any_network)]
IPv4 = Annotated[str, AfterValidator(_ipv4)]
IPv6 = Annotated[str, AfterValidator(_ipv6)]
UserName = Annotated[str, AfterValidator(_printable)]
MailAddress = Annotated[str, AfterValidator(_mail_address)]
Size = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,5}[KMG]$")]
TimeOfDay = Annotated[str, StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]
Days = Annotated[int, Field(ge=1, le=3650)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# Of a file of a release page, by the machine's architecture.
Sha256s = dict[Literal["amd64", "arm64"], Sha256]
# Such paths are written into units, Caddyfiles and shell commands.
_PATH = r"^/[^\s\"'`{}%$;\\]+$"
AbsolutePath = Annotated[str, StringConstraints(pattern=_PATH)]
# What is at the server name in a browser.
WebSite = Annotated[str, AfterValidator(_web_site)]

# What is allowed, as it is worded in error messages.
A_DOMAIN = "a domain name in lower-case letters, such as {example}"
A_TIME = 'a time of day in UTC, such as "{example}"'
A_NUMBER_OF_DAYS = "None or a number of days from 1 to 3650"
SHA256S = '{} or 64 hexadecimal digits per architecture, such as {"amd64": "..."}'


class Chosen(BaseModel):
    """Settings that belong together. Each description says what is allowed, as it is worded in error messages."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)


def size_in_bytes(size: str) -> int:
    """Bytes of a size such as 50M (mebibytes)."""
    return int(size[:-1]) * {"K": 1024, "M": 1024**2, "G": 1024**3}[size[-1]]


def sha256_for(architecture: str, chosen: Mapping[Literal["amd64", "arm64"], str]) -> str | None:
    """The one that was chosen for an architecture; None: none was."""
    return {str(each): sha256 for each, sha256 in chosen.items()}.get(architecture)
