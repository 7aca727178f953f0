"""The certificates that a machine presents."""

import re
from dataclasses import dataclass

from cryptography import x509
from testinfra.host import Host


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
