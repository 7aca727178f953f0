"""Certificates: whom a machine trusts, and what a server presents."""

import shlex
from collections.abc import Generator

from pyinfra.api import FactBase, StringCommand, operation
from pyinfra.context import host

from operations.shell import quoted, script

BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


class Trusted(FactBase[bool]):
    """Whether the machine's trust store holds the certificate."""

    def command(self, certificate: str, label: str) -> str:
        copy = f"/usr/local/share/ca-certificates/{label}.crt"
        # The second line of a PEM file says which it is; the bundle is what programs read.
        return (
            f"cmp -s {quoted(certificate, copy)} && "
            f'grep -qF "$(sed -n 2p {shlex.quote(certificate)})" {BUNDLE} && echo yes; true'
        )

    @staticmethod
    def default() -> bool:
        return False

    def process(self, output: list[str]) -> bool:
        return output == ["yes"]


@operation()
def trusted(certificate: str, label: str) -> Generator[StringCommand, None, None]:
    """The machine's programs trust what this authority signs.

    certificate: path on the machine of its PEM certificate. label: what the copy is called in the trust store.
    """
    if host.get_fact(Trusted, certificate=certificate, label=label):
        return
    yield script(
        f"i=0; until [ -s {quoted(certificate)} ] || [ $i -ge 100 ]; do i=$((i + 1)); sleep 0.1; done",
        f"install -m 644 {quoted(certificate, f'/usr/local/share/ca-certificates/{label}.crt')}",
        "update-ca-certificates >/dev/null",
    )


def presented(address: str, port: int, domain: str, certificate: str) -> str:
    """Shell command that succeeds if the TLS server at address and port presents the certificate file for the domain."""
    fingerprint = "openssl x509 -noout -fingerprint -sha256"
    return (
        f'wanted=$({fingerprint} -in {quoted(certificate)}) && [ -n "$wanted" ] && '
        f'[ "$wanted" = "$(openssl s_client -connect {address}:{port} -servername {quoted(domain)} </dev/null 2>/dev/null '
        f'| {fingerprint} 2>/dev/null)" ]'
    )
