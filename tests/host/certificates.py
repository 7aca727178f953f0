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


def presented(host: Host, port: int, name: str, datagrams: bool = False, authority: str = "") -> Presented:
    """A handshake with this machine, over TLS or (datagrams) DTLS.

    authority: path of a file with the authority of a private issuer, in addition to those that the machine trusts.
    """
    command = "timeout 10 openssl s_client -connect %s -servername %s -verify_hostname %s </dev/null 2>&1"
    words = [f"127.0.0.1:{port}", name, name]
    if authority:
        command, words = command.replace(" </", " -CAfile %s </"), [*words, authority]
    if datagrams:
        command = command.replace("s_client", "s_client -dtls")
    output = str(host.run(command, *words).stdout)
    pem = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", output, re.DOTALL)
    verdict = re.search(r"Verif(?:y return code|ication)[^:]*: (.*)", output)
    certificate = x509.load_pem_x509_certificate(pem[0].encode()) if pem else None
    return Presented(certificate, verdict[1].strip() if verdict else output.strip().splitlines()[-1])


def certificate_problem(certificate: x509.Certificate, name: str) -> str:
    """What is wrong with a certificate for the name; empty if nothing is.

    Caddy renews a certificate when a third of its lifetime is left, whether that is 90 days or 12 hours. With less than a
    quarter left, and less than a week, the renewal must have failed.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        valid_for = names.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        valid_for = []
    if name not in valid_for and f"*.{name.partition('.')[2]}" not in valid_for:
        return f"its certificate is for {', '.join(valid_for) or 'nobody'}"
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    now = datetime.datetime.now(datetime.UTC)
    if now < begin:
        return f"its certificate is valid only from {begin:%Y-%m-%d %H:%M} UTC on"
    if end - now < min(WEEK, (end - begin) / 4):
        return f"its certificate {'expired' if end < now else 'expires'} on {end:%Y-%m-%d at %H:%M} UTC and was not renewed"
    return ""
