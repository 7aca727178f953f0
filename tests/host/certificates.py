"""The certificates that a machine presents."""

import datetime
import re
from dataclasses import dataclass

from cryptography import x509
from testinfra.host import Host

WEEK = datetime.timedelta(days=7)


@dataclass(frozen=True)
class Presented:
    """What a server presents. certificate: None if it presents none. verdict: OpenSSL's result for the chain."""

    certificate: x509.Certificate | None
    verdict: str


def presented(
    host: Host, port: int, name: str, datagrams: bool = False, authority: str = "", address: str = "127.0.0.1"
) -> Presented:
    """A handshake from this machine with an address, its own by default, over TLS or (datagrams) DTLS.

    authority: path of a file with the authority of a private issuer, in addition to those that the machine trusts.
    """
    command = "timeout 10 openssl s_client -connect %s -servername %s -verify_hostname %s </dev/null 2>&1"
    words = [f"[{address}]:{port}" if ":" in address else f"{address}:{port}", name, name]
    if authority:
        command, words = command.replace(" </", " -CAfile %s </"), [*words, authority]
    if datagrams:
        command = command.replace("s_client", "s_client -dtls")
    output = str(host.run(command, *words).stdout)
    refused = re.search(r"BIO_connect:([^:]+):", output)
    last = (output.strip().splitlines() or ["no answer within 10 s"])[-1]
    pem = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", output, re.DOTALL)
    verdict = re.search(r"Verif(?:y return code|ication)[^:]*: (.*)", output)
    certificate = x509.load_pem_x509_certificate(pem[0].encode()) if pem else None
    return Presented(certificate, verdict[1].strip() if verdict else refused[1].lower() if refused else last)


def valid_names(certificate: x509.Certificate) -> list[str]:
    """The names that a certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName)


def is_for(certificate: x509.Certificate, name: str) -> bool:
    """Whether a certificate is for the name."""
    return bool({name, f"*.{name.partition('.')[2]}"} & set(valid_names(certificate)))


def certificate_problem(certificate: x509.Certificate, name: str) -> str:
    """What is wrong with a certificate for the name; empty if nothing is.

    Caddy renews a certificate when a third of its lifetime is left, whether that is 90 days or 12 hours. With less than a
    quarter left, and less than a week, the renewal must have failed.
    """
    if not is_for(certificate, name):
        return f"its certificate is for {', '.join(valid_names(certificate)) or 'nobody'}"
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    now = datetime.datetime.now(datetime.UTC)
    if now < begin:
        return f"its certificate is valid only from {begin:%Y-%m-%d %H:%M} UTC on"
    if end - now < min(WEEK, (end - begin) / 4):
        return f"its certificate {'expired' if end < now else 'expires'} on {end:%Y-%m-%d at %H:%M} UTC and was not renewed"
    return ""
