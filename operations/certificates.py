"""Certificates: the trust store of a machine, and the certificates that its servers present."""

import re
import shlex
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from pyinfra.api import StringCommand
from pyinfra.api.host import Host
from pyinfra.context import state

from operations.files import Contents, Paths, Text, replaced
from operations.look import ask, operation
from operations.refusal import refuse
from operations.shell import Fact, YesOrNo, quoted, script, shell_file

BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


class Trusted(YesOrNo):
    """Whether the machine's trust store has the certificate."""

    def question(self, certificate: str, label: str) -> str:
        copy = f"/usr/local/share/ca-certificates/{label}.crt"
        # The second line of a PEM file identifies the certificate; programs read the bundle.
        return (
            f"cmp -s {quoted(certificate, copy)} && "
            f'grep -qF "$(sed -n 2p {shlex.quote(certificate)})" {BUNDLE} && echo yes; true'
        )


@operation()
def trusted(certificate: str, label: str) -> Generator[StringCommand, None, None]:
    """The machine's programs trust what this authority signs.

    certificate: path on the machine of its PEM certificate. label: what the copy is called in the trust store.
    """
    if ask(Trusted, certificate=certificate, label=label):
        return
    yield script(
        f"i=0; until [ -s {quoted(certificate)} ] || [ $i -ge 100 ]; do i=$((i + 1)); sleep 0.1; done",
        f"install -m 644 {quoted(certificate, f'/usr/local/share/ca-certificates/{label}.crt')}",
        "update-ca-certificates >/dev/null",
    )


@operation()
def self_signed(certificate: str, key: str, address: str, user: str) -> Generator[StringCommand, None, None]:
    """A self-signed certificate, for a server whose clients accept exactly this one; made once, valid for ten years.

    certificate, key: paths of PEM files. address: IP address or domain name it is for. user: who may read the key.
    """
    if ask(NameOfServer, certificate=certificate) == address and ask(Paths, paths=[key]):
        return
    kind = "IP" if re.fullmatch(r"[0-9.]+|[0-9a-fA-F:]*:[0-9a-fA-F:.]*", address) else "DNS"
    yield script(
        "umask 077",
        # Debian's configuration would make it the certificate of an authority, which MAS does not accept from a server.
        "printf '[req]\\ndistinguished_name = name\\n[name]\\n' |",
        "openssl req -config /dev/stdin -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 3650 "
        f"-subj {quoted(f'/CN={address}')} -addext {quoted(f'subjectAltName={kind}:{address}')} "
        "-addext basicConstraints=critical,CA:FALSE "
        f"-keyout {quoted(f'{key}.new')} -out {quoted(f'{certificate}.new')} 2>/dev/null",
        f"chown {quoted(user)} {quoted(f'{key}.new')}",
        f"chmod 644 {quoted(f'{certificate}.new')}",
        f"mv -fT {quoted(f'{key}.new', key)}",
        f"mv -fT {quoted(f'{certificate}.new', certificate)}",
    )


class NameOfServer(Fact[str]):
    """The common name of a certificate file; empty if there is none, or if it is that of an authority."""

    def question(self, certificate: str) -> str:
        shown = "-noout -subject -nameopt multiline -ext basicConstraints"
        return f"openssl x509 -in {quoted(certificate)} {shown} 2>/dev/null; true"

    @staticmethod
    def default() -> str:
        return ""

    def answer(self, lines: list[str]) -> str:
        names = [line.partition("=")[2].strip() for line in lines if "commonName" in line]
        return names[0] if names and not any("CA:TRUE" in line for line in lines) else ""


@operation()
def copied(source: Host, certificate: str, path: str) -> Generator[StringCommand, None, None]:
    """This machine has a copy of another machine's certificate, to authenticate it.

    source: the other machine. certificate, path: the path there, and the path here.
    """
    wanted: list[str] = ask(Contents, host=source, path=certificate)
    if not wanted and state.is_executing:
        yield from refuse(f"{source.name} has no certificate {certificate}: deploy to it as well")
    elif not wanted or ask(Contents, path=path) != wanted:
        yield replaced(Text(path, "\n".join([*wanted, ""]), mode="644"))


# Directories that Caddy's unit hides from Caddy.
HIDDEN = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")  # noqa: S108


class Unusable(Fact[list[str]]):
    """What is wrong with certificate files that the administrator put on the machine, a line each. Needs root.

    certificate, key: for all the domains; empty if Caddy obtains them. authorities: the certificates of private ACME servers'
    authorities. caddy: whether Caddy has to read them; coturn, as root, reads everything.
    """

    def question(
        self, certificate: str, key: str, authorities: Sequence[str], domains: Sequence[str], caddy: bool
    ) -> str:
        files = [path for path in (certificate, key, *authorities) if path]
        return "\n".join(
            [
                f"hidden() {{ case $1 in {' | '.join(f'{directory}*' for directory in HIDDEN)}) ;; *) false ;; esac; }}",
                shell_file("certificate-files"),
                f"caddy={'yes' if caddy else ''} bad=",
                *(f"check_file {quoted(path)} || bad=yes" for path in files),
                f'[ "$bad" ] || check_pair {quoted(certificate, key, *domains)}' if certificate else "",
                "true",
            ]
        )

    @staticmethod
    def default() -> list[str]:
        return []

    def answer(self, lines: list[str]) -> list[str]:
        return lines


@dataclass(frozen=True)
class Served:
    """A name that this machine must serve with a certificate for it.

    port: 443, 8448 for federation, or 5349 for the relay. file, unit: for a server that reads the certificate from a file:
    its path, and the unit that makes the server read it again; otherwise "-".
    """

    domain: str
    port: int
    file: str = "-"
    unit: str = "-"

    @property
    def arguments(self) -> str:
        return quoted(self.domain, str(self.port), self.file, self.unit)


class Unserved(Fact[list[str]]):
    """Which of the names are not served with their certificate."""

    functions = "certificates"

    def question(self, served: Sequence[Served]) -> str:
        asked = (f"{{ presents {each.arguments} || echo {quoted(each.domain)}; }} &" for each in served)
        return "\n".join([*asked, "wait"])

    @staticmethod
    def default() -> list[str]:
        return []

    def answer(self, lines: list[str]) -> list[str]:
        return lines


@operation()
def checked(served: Sequence[Served], patience: int = 30) -> Generator[StringCommand, None, None]:
    """Every name is served with a valid certificate for it. Fails with a line for each name that is not.

    patience: seconds to wait for certificates that are being issued.
    """
    unserved: list[str] = ask(Unserved, served=served)
    missing = [each for each in served if each.domain in unserved]
    if not missing:
        return
    yield script(
        shell_file("certificates"), f"await_certificates {patience} {' '.join(each.arguments for each in missing)}"
    )
