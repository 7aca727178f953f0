"""Certificate authorities for tests, among them Debian's pebble, an ACME server that really validates domains.

Two ACME servers run on one host: `open` for everybody, and `bound` for clients with external account binding, as ZeroSSL
and Google Trust Services require it.
"""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from .bed import Host

# The account at the second server, and the key that both sides share: base64url of 32 bytes.
KEY_ID, HMAC_KEY = "kid-testbed", "dGVzdGJlZCBrZXkgb2YgdGhlIGJvdW5kIHNlcnZlciE"
API, MANAGEMENT = {"open": 14000, "bound": 14001}, {"open": 15000, "bound": 15001}
HOME = "/etc/pebble"


class Authority:
    """A certificate authority that signs whatever a test needs."""

    def __init__(self, name: str) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(self.subject, self.subject, self.key.public_key(), days=30)
        self.certificate = builder.add_extension(x509.BasicConstraints(True, None), critical=True).sign(
            self.key, hashes.SHA256()
        )

    @property
    def pem(self) -> str:
        return _pem(self.certificate)

    def issue(self, *names: str, days: int = 30) -> tuple[str, str]:
        """Certificate and private key for the names, in PEM. days: until it expires; negative: it has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        builder = _builder(subject, self.subject, key.public_key(), days)
        alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        certificate = builder.add_extension(alternatives, critical=False).sign(self.key, hashes.SHA256())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return _pem(certificate), private.decode()


@dataclass(frozen=True)
class Acme:
    """The two servers on a host. authority: signs only the servers' own certificates."""

    host: Host
    authority: Authority

    def start(self) -> None:
        """Install and start both."""
        self.host.run(
            "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends pebble curl",
            timeout=300,
        )
        certificate, key = self.authority.issue(self.host.domain, f"*.{self.host.domain}")
        self.host.run(f"mkdir -p {HOME}")
        self._write("authority.pem", self.authority.pem)
        self._write("api.pem", certificate)
        self._write("api.key", key)
        for name in API:
            settings = {
                "listenAddress": f":{API[name]}",
                "managementListenAddress": f":{MANAGEMENT[name]}",
                "certificate": f"{HOME}/api.pem",
                "privateKey": f"{HOME}/api.key",
                "httpPort": 80,
                "tlsPort": 443,
                "ocspResponderURL": "",
                "externalAccountBindingRequired": name == "bound",
                "externalAccountMACKeys": {KEY_ID: HMAC_KEY},
            }
            self._write(f"{name}.json", json.dumps({"pebble": settings}))
            self._start(name)

    def _start(self, name: str) -> None:
        """Start a server, and wait until it answers. Its root is a new one each time."""
        self.host.run(
            f"systemd-run --quiet --collect --unit=pebble-{name} -E PEBBLE_VA_NOSLEEP=1 -E PEBBLE_WFE_NONCEREJECT=0 "
            f"pebble -config {HOME}/{name}.json && "
            f"until ss -Hltn sport = :{API[name]} | grep -q .; do sleep 0.05; done"
        )

    def directory(self, name: str) -> str:
        return f"https://{self.host.domain}:{API[name]}/dir"

    def root(self, name: str) -> str:
        """The server's root certificate since it was started, in PEM."""
        return self.host.run(
            f"curl -sf --cacert {HOME}/authority.pem https://{self.host.domain}:{MANAGEMENT[name]}/roots/0"
        ).stdout

    def _write(self, name: str, content: str) -> None:
        self.host.run(f"cat > {HOME}/{name}", stdin=content)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=60))
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
