"""Certificates: whom a machine trusts, and what a server presents."""

import re
import shlex
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from pyinfra.api import StringCommand
from pyinfra.api.host import Host
from pyinfra.context import state

from operations.files import Contents, Paths
from operations.look import ask, operation
from operations.refusal import refusing
from operations.shell import Fact, quoted, script

BUNDLE = "/etc/ssl/certs/ca-certificates.crt"

# Makes a unit present its renewed certificate.
PRESENTER = "/usr/local/sbin/present-certificate"


class Trusted(Fact[bool]):
    """Whether the machine's trust store holds the certificate."""

    def question(self, certificate: str, label: str) -> str:
        copy = f"/usr/local/share/ca-certificates/{label}.crt"
        # The second line of a PEM file says which it is; the bundle is what programs read.
        return (
            f"cmp -s {quoted(certificate, copy)} && "
            f'grep -qF "$(sed -n 2p {shlex.quote(certificate)})" {BUNDLE} && echo yes; true'
        )

    @staticmethod
    def default() -> bool:
        return False

    def answer(self, lines: list[str]) -> bool:
        return lines == ["yes"]


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
    """A certificate that signs itself, for a server whose clients are given exactly this one; made once, for ten years.

    certificate, key: paths of PEM files. address: IP address or domain name it is for. user: who may read the key.
    """
    if ask(CertifiedFor, certificate=certificate) == address and ask(Paths, paths=[key]):
        return
    kind = "IP" if re.fullmatch(r"[0-9.]+|[0-9a-fA-F:]*:[0-9a-fA-F:.]*", address) else "DNS"
    yield script(
        "umask 077",
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 3650 "
        f"-subj {quoted(f'/CN={address}')} -addext {quoted(f'subjectAltName={kind}:{address}')} "
        f"-keyout {quoted(f'{key}.new')} -out {quoted(f'{certificate}.new')} 2>/dev/null",
        f"chown {quoted(user)} {quoted(f'{key}.new')}",
        f"chmod 644 {quoted(f'{certificate}.new')}",
        f"mv -fT {quoted(f'{key}.new', key)}",
        f"mv -fT {quoted(f'{certificate}.new', certificate)}",
    )


class CertifiedFor(Fact[str]):
    """The common name of a certificate file; empty if there is none."""

    def question(self, certificate: str) -> str:
        return f"openssl x509 -in {quoted(certificate)} -noout -subject -nameopt multiline 2>/dev/null; true"

    @staticmethod
    def default() -> str:
        return ""

    def answer(self, lines: list[str]) -> str:
        names = [line.partition("=")[2].strip() for line in lines if "commonName" in line]
        return names[0] if names else ""


@operation()
def copied(source: Host, certificate: str, path: str) -> Generator[StringCommand, None, None]:
    """This machine has another one's certificate, to recognise it by.

    source: the other machine. certificate, path: where it lies there and is to lie here.
    """
    wanted: list[str] = ask(Contents, host=source, path=certificate)
    if not wanted and state.is_executing:
        yield from refusing(f"{source.name} has no certificate {certificate}: deploy to it as well")
    elif not wanted or ask(Contents, path=path) != wanted:
        yield script(
            "umask 022",
            f"cat >{quoted(f'{path}.new')}",
            f"mv -fT {quoted(f'{path}.new', path)}",
            stdin="\n".join(wanted),
        )


# Where Caddy, as its unit confines it, sees nothing of the machine's.
HIDDEN = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")  # noqa: S108


class Unusable(Fact[list[str]]):
    """What is wrong with certificate files that the administrator put on the machine, a line each. Needs root.

    certificate, key: for all the domains; empty if Caddy obtains them. authorities: those by which it knows ACME servers.
    caddy: whether Caddy is to read them; coturn reads everything.
    """

    def question(
        self, certificate: str, key: str, authorities: Sequence[str], domains: Sequence[str], caddy: bool
    ) -> str:
        files = [path for path in (certificate, key, *authorities) if path]
        return "\n".join(
            [
                _LOOK,
                f"caddy={'yes' if caddy else ''} bad=",
                *(f"look {quoted(path)} || bad=yes" for path in files),
                f'[ "$bad" ] || fits {quoted(certificate, key, *domains)}' if certificate else "",
                "true",
            ]
        )

    @staticmethod
    def default() -> list[str]:
        return []

    def answer(self, lines: list[str]) -> list[str]:
        return lines


# look FILE: can it be read by who has to? On a new machine Caddy's user comes later, but the administrator can make its group.
# fits CERTIFICATE KEY DOMAIN...: is it valid now, for all of them, with this key?
_LOOK = (
    r"""
look() {
  if [ ! -f "$1" ]; then
    echo "$1 is not on the machine; put it there"
  elif [ "$caddy" ] && case $1 in """
    + " | ".join(f"{directory}*" for directory in HIDDEN)
    + r""") ;; *) false ;; esac; then
    echo "$1 is where services may not look; move it, to /etc/ssl for example"
  elif [ "$caddy" ] && ! as_caddy test -r "$1"; then
    echo "$1 is not readable by Caddy; on the machine: groupadd -rf caddy; chgrp caddy $1; chmod 640 $1"
  elif ! command -v openssl >/dev/null; then
    echo "$1 cannot be looked at; on the machine: apt install openssl"
  else
    return 0
  fi
  return 1
}
as_caddy() {
  if id caddy >/dev/null 2>&1; then
    runuser -u caddy -- "$@"
  else
    setpriv --reuid=65534 --regid="$(getent group caddy | cut -d: -f3 | grep . || echo 65534)" --clear-groups "$@"
  fi
}
fits() {
  certificate=$1 key=$2
  shift 2
  if ! public=$(openssl x509 -in "$certificate" -noout -pubkey 2>/dev/null); then
    echo "$certificate is no certificate in PEM form"
    return
  fi
  names=$(openssl x509 -in "$certificate" -noout -ext subjectAltName 2>/dev/null | sed -n '2s/ *DNS://gp')
  if ! openssl x509 -in "$certificate" -noout -checkend 0 >/dev/null; then
    echo "$certificate expired on $(openssl x509 -in "$certificate" -noout -enddate -dateopt iso_8601 | cut -d= -f2)"
  fi
  for domain; do
    openssl x509 -in "$certificate" -noout -checkhost "$domain" | grep -q 'does match' ||
      echo "$certificate is not for $domain, but for ${names:-no name at all}"
  done
  if ! private=$(openssl pkey -in "$key" -passin pass: -pubout 2>/dev/null); then
    echo "$key is no private key in PEM form without a passphrase"
  elif [ "$public" != "$private" ]; then
    echo "$key is not the key of $certificate"
  fi
}
"""
)


@dataclass(frozen=True)
class Served:
    """A name that this machine must serve with a certificate for it.

    port: 443, 8448 for federation, or 5349 for the relay. file, unit: for a server that reads the certificate from a file
    itself: where it lies, and the unit that is reloaded when it presents another one.
    """

    domain: str
    port: int
    file: str = "-"
    unit: str = "-"

    @property
    def words(self) -> str:
        return quoted(self.domain, str(self.port), self.file, self.unit)


# proof DOMAIN PORT FILE UNIT: does the server present a certificate that is valid now, for the name, and the one in the file?
# prove: waits for that until $end; why not, in one line.
# last DOMAIN: what Caddy said last of obtaining it.
# waits DOMAIN: has Caddy failed to obtain it, and waits before it tries again?
# lost DOMAIN FILE: has Caddy got it, but not on the disk? Either it could not save it: when it starts, it removes empty folders,
# which may be those that it has just made for certificates. Or somebody deleted the file.
_SHELL = r"""
proof() {
  shown=$(openssl s_client -connect "127.0.0.1:$2" -servername "$1" </dev/null 2>/dev/null) || return 1
  printf '%s' "$shown" | openssl x509 -noout -checkend 0 >/dev/null 2>&1 || return 1
  printf '%s' "$shown" | openssl x509 -noout -checkhost "$1" 2>/dev/null | grep -q 'does match' || return 1
  [ "$3" = - ] || [ "$(printf '%s' "$shown" | openssl x509)" = "$(openssl x509 -in "$3" 2>/dev/null)" ]
}
log() { journalctl -u caddy -o cat --no-pager --since=-6h 2>/dev/null; }
last() {
  log | grep -F -e "\"msg\":\"obtaining certificate\",\"identifier\":\"$1\"" -e "\"msg\":\"will retry\",\"error\":\"[$1] " \
    | tail -n 1
}
waits() { last "$1" | grep -qF '"will retry"'; }
lost() {
  last "$1" | grep -qF "$(unsaved "$1")" || { [ "$2" != - ] && [ ! -e "$2" ] && proof "$1" 443 - -; }
}
unsaved() { echo "\"error\":\"[$1] Obtain: saving assets: "; }
prove() {
  until proof "$@"; do
    if [ "$(date +%s)" -ge "$end" ]; then
      why=$(log | grep -E '"level":"(error|warn)"' | grep -F -e "\"identifier\":\"$1\"" -e "$(unsaved "$1")" \
        | sed -nE 's/.*"error":"(([^"\\]|\\.)*)".*/\1/p' | tail -n 1 | sed 's/\\\(["\\]\)/\1/g; s/\\[nt]/ /g')
      if [ "$why" != "${why#*saving assets: }" ]; then
        advice="(Caddy cannot save it: ${why#*saving assets: }). See journalctl -u caddy"
      elif [ "$why" ] || [ ! -s "$3" ]; then
        advice="(${why:-Caddy got no answer yet}). Does its DNS record lead here, are ports 80 and 443 open?"
      else
        advice="although it is in $3: see journalctl -u $4"
      fi
      echo "$1, port $2: no valid certificate $advice" >&2
      return 1
    fi
    if [ "$4" != - ] && [ -s "$3" ]; then systemctl start "$4" 2>/dev/null || true; fi
    if [ ! "$reloaded" ] && lost "$1" "$3"; then
      systemctl reload caddy
      reloaded=yes
    fi
    sleep 1
  done
}
"""


class Unproven(Fact[list[str]]):
    """Which of the names are not served with their certificate."""

    def question(self, served: Sequence[Served]) -> str:
        return _SHELL + "\n".join(f"proof {each.words} || echo {quoted(each.domain)}" for each in served) + "\ntrue"

    @staticmethod
    def default() -> list[str]:
        return []

    def answer(self, lines: list[str]) -> list[str]:
        return lines


@operation()
def proven(served: Sequence[Served], patience: int = 30) -> Generator[StringCommand, None, None]:
    """Every name is served with a certificate that is valid for it; a line for each that is not, and failure.

    patience: seconds to wait for certificates that are being issued.
    """
    unproven: list[str] = ask(Unproven, served=served)
    missing = [each for each in served if each.domain in unproven]
    if not missing:
        return
    yield script(
        _SHELL,
        # Caddy waits a minute after the first failure, and ever longer then. A later run is a reason to try again at once.
        "age=$(( $(cut -d. -f1 /proc/uptime) - $(systemctl show caddy -p StateChangeTimestampMonotonic --value) / 1000000 ))",
        "failed= reloaded=",
        f"for name in {quoted(*(each.domain for each in missing))}; do",
        f'  if [ "$age" -ge {patience} ] && waits "$name"; then systemctl reload caddy; reloaded=yes; break; fi',
        "done",
        f"end=$(( $(date +%s) + {patience} ))",
        *(f"prove {each.words} || failed=yes" for each in missing),
        'if [ "$failed" ]; then',
        "  echo 'Everything else is in place, and certificates arrive by themselves once they can be issued.' >&2",
        "  exit 1",
        "fi",
    )
