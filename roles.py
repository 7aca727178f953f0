"""What each role is: one record for each, in the order in which they depend on each other.

Whatever follows from a record is derived from it and nowhere written again: inventory checks, ports, domains, databases,
secrets, Debian packages, units, what is verified, the tables of the README.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

RoleName = Literal["postgres", "caddy", "synapse", "sydent", "sliding_sync", "coturn"]
Protocol = Literal["tcp", "udp"]
# Who may reach a port: everybody; other machines of the deployment; what runs on the same machine.
Reach = Literal["everybody", "deployment", "machine"]


class VaultEntry(NamedTuple):
    """A secret. kind: "given" by the administrator; the others are generated.

    keep: why it must stay what it is once it has been used.
    """

    name: str
    kind: Literal["token", "hex", "ed25519", "given"]
    meaning: str
    keep: str = ""


class Port(NamedTuple):
    """A port, or all from `number` to `last`, that a unit listens on.

    unit: the one that holds it. when: the setting that has to be True for it; "remote": other machines use the database.
    """

    protocol: Protocol
    number: int
    reach: Reach
    unit: str
    last: int | None = None
    when: str | None = None

    @property
    def numbers(self) -> range:
        return range(self.number, (self.last or self.number) + 1)


class Domain(NamedTuple):
    """A domain name. setting: what it is called in group data; prefix: what stands before the server name by default."""

    setting: str
    prefix: str
    purpose: str


class Database(NamedTuple):
    """A database. owner: the role of PostgreSQL that it belongs to, called like the system user.

    first_filled: tables of which at least one has rows once the first start of its program is through.
    """

    name: str
    owner: str
    first_filled: tuple[str, ...] = ()


class Unit(NamedTuple):
    """A systemd unit. {version} in its texts stands for PostgreSQL's major version.

    user: who runs it. exposure: what `systemd-analyze security` may say at most, from 0 to 10; None: not ours to confine.
    enabled: what systemd says of its start at boot. masked: its Debian package would start it at once, with a sample
    configuration. reads, rereads: files and directories with its configuration, which it reads when it starts, and also when
    it is reloaded. private: files and directories that are nobody else's business. troubles: a regular expression (PCRE) for
    the lines of its log that mean trouble. recoveries: one for those that mean that earlier trouble is over; its first group
    is the name which that trouble names. health: a shell command, run as root on the machine, that succeeds once it does its
    work.
    """

    name: str
    user: str
    health: str
    exposure: float | None = None
    enabled: str = "enabled"
    masked: bool = False
    reads: tuple[str, ...] = ()
    rereads: tuple[str, ...] = ()
    private: tuple[str, ...] = ()
    troubles: str = ""
    recoveries: str = ""


@dataclass(frozen=True)
class Role:
    """A role, which is a group of the inventory.

    purpose, leave_out: for the README: what it is for, and when it is not needed.
    needs: roles that some machine has to play for it. beside: those that its own machine has to play.
    own_certificate: its unit presents the certificate of its domain itself, as Caddy obtained it.
    routes_on: the role to whose web site it adds routes.
    several: several machines may play it.
    packages: Debian's, {version} as in units. programs: names below /opt. state: directories with what must not be lost.
    """

    name: RoleName
    title: str
    purpose: str
    leave_out: str
    units: tuple[Unit, ...]
    needs: tuple[RoleName, ...] = ()
    beside: tuple[RoleName, ...] = ()
    own_certificate: bool = False
    routes_on: RoleName | None = None
    several: bool = False
    packages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    listens: tuple[Port, ...] = ()
    domain: Domain | None = None
    database: Database | None = None
    secrets: tuple[VaultEntry, ...] = ()

    @property
    def port(self) -> int:
        """The TCP port on which it is reached from its own machine."""
        [found] = [port.number for port in self.listens if port.protocol == "tcp" and port.reach == "machine"]
        return found

    @property
    def password(self) -> str:
        """The secret by which it reaches its database on another machine."""
        return f"postgres_{self.name}_password"

    @cached_property
    def entries(self) -> tuple[VaultEntry, ...]:
        """All its secrets."""
        if self.database is None:
            return self.secrets
        meaning = f"{self.title}'s, where its database is on another machine"
        return (*self.secrets, VaultEntry(self.password, "hex", meaning))


POSTGRES = Role(
    name="postgres",
    title="PostgreSQL",
    purpose="the database",
    leave_out="never: Synapse needs it",
    packages=("postgresql-{version}", "openssl"),
    units=(
        Unit(
            "postgresql@{version}-main.service",
            user="postgres",
            # Ours is the cluster main, on whatever port; the newest, if there are several.
            health=(
                "cd /etc/postgresql && PGCLUSTER=$(ls -d */main | sort -V | tail -n 1) && cd / && runuser -u postgres -- "
                "env -i PATH=/usr/bin:/bin LC_ALL=C.UTF-8 PGCLUSTER=$PGCLUSTER psql -XAtqc 'SELECT 1' | grep -q 1"
            ),
            # Debian's generator enables each cluster anew at every boot.
            enabled="enabled-runtime",
            masked=True,
            private=("/var/lib/postgresql/{version}/main",),
        ),
    ),
    state=("/var/lib/postgresql",),
    listens=(Port("tcp", 5432, "deployment", "postgresql@{version}-main.service", when="remote"),),
)

CADDY = Role(
    name="caddy",
    title="Caddy",
    purpose="TLS, certificates, the web names",
    leave_out='you have a reverse proxy of your own (and `tls = "files"` for coturn)',
    several=True,
    packages=("caddy", "curl"),
    units=(
        Unit(
            "caddy.service",
            user="caddy",
            health="curl -qs --max-time 5 -o /dev/null http://127.0.0.1:80/",
            exposure=2.0,
            masked=True,
            rereads=("/etc/caddy/Caddyfile",),
            private=("/etc/caddy/Caddyfile", "/var/lib/caddy/.local/share/caddy/certificates"),
            # Certificates that cannot be had. That a visitor went away is an error to Caddy as well, and so is every attempt
            # that was cut off by a reload, which begins it anew.
            troubles=r'"level":"(error|panic|fatal)".*"logger":"(tls|admin|pki)(?!.*: context canceled")|^Error: ',
            recoveries=r'"msg":"certificate (?:obtained|renewed) successfully","identifier":"([^"]+)"',
        ),
    ),
    state=("/var/lib/caddy",),
    listens=(
        Port("tcp", 80, "everybody", "caddy.service"),
        Port("tcp", 443, "everybody", "caddy.service"),
        Port("udp", 443, "everybody", "caddy.service"),
    ),
    secrets=(
        VaultEntry("acme_eab_hmac_key", "given", "external account binding at the issuer of the web certificates"),
        VaultEntry("turn_acme_eab_hmac_key", "given", "external account binding at the issuer of the TURN certificate"),
    ),
)

# Where Caddy reaches Synapse, on the same machine. Each lets 50 connections wait to be accepted, as Synapse fixes it, and a crowd
# of clients may come within the moment that Synapse takes for something else.
SYNAPSE_SOCKETS = tuple(f"/run/matrix-synapse/{number}.sock" for number in range(1, 9))

# Whether there is a room of this name Synapse can only say with its database. A connection that was cut, when PostgreSQL
# restarted, costs one request, and Synapse keeps ten of them at most.
_LOOKED_UP = (
    "curl -qs --max-time 5 -o /dev/null -w '%{http_code}' http://127.0.0.1:8008/_matrix/client/v3/directory/room/%23$(date +%s):"
    r'$(sed -n "s/^server_name: \"\(.*\)\"$/\1/p" /etc/matrix-synapse/homeserver.yaml)'
)

# What goes wrong at other homeservers is logged as an error as well, and is nobody's business here.
_OTHERS = r"synapse\.(federation|crypto|media|http\.(matrixfederation)?client|handlers\.federation)"

SYNAPSE = Role(
    name="synapse",
    title="Synapse",
    purpose="the homeserver; it also has the sliding sync that new clients use",
    leave_out="never",
    needs=("postgres",),
    packages=("libjemalloc2",),
    programs=("matrix-synapse",),
    units=(
        Unit(
            "matrix-synapse.service",
            user="matrix-synapse",
            # On every way to it: a conf.d file of the administrator's may have replaced the listeners. And with its database,
            # without which it calls itself healthy.
            health=(
                "curl -qsf --fail-early --max-time 5 http://127.0.0.1:8008/health "
                + " ".join(
                    f"--next -sf --max-time 5 --unix-socket {path} http://localhost/health" for path in SYNAPSE_SOCKETS
                )
                + f' && for attempt in $(seq 12); do [ "$({_LOOKED_UP})" != 404 ] || exit 0; done; exit 1'
            ),
            exposure=1.5,
            reads=("/etc/matrix-synapse",),
            private=("/etc/matrix-synapse", "/var/lib/matrix-synapse/signing.key"),
            troubles=rf"^(CRITICAL|ERROR (?!{_OTHERS}))",
        ),
    ),
    state=("/var/lib/matrix-synapse",),
    listens=(
        Port("tcp", 8008, "machine", "matrix-synapse.service"),
        Port("tcp", 8448, "everybody", "caddy.service", when="federation_port_8448"),
    ),
    domain=Domain("matrix_domain", "matrix", "Synapse"),
    database=Database("synapse", "matrix-synapse", first_filled=("schema_version", "users", "events")),
    secrets=(
        VaultEntry("synapse_registration_shared_secret", "token", "lets an administrator register accounts on Synapse"),
        VaultEntry("synapse_macaroon_secret_key", "token", "signs Synapse's short-lived login, guest and SSO tokens"),
        VaultEntry("synapse_form_secret", "token", "protects the forms that Synapse serves"),
    ),
)

SYDENT = Role(
    name="sydent",
    title="Sydent",
    purpose="finding people by e-mail address and inviting them by it, in Element Web and the classic apps",
    leave_out="you do not miss that: most people do not",
    programs=("sydent",),
    units=(
        Unit(
            "sydent.service",
            user="sydent",
            health="curl -qsf --max-time 5 http://127.0.0.1:8090/_matrix/identity/v2",
            exposure=1.5,
            reads=("/etc/sydent",),
            # The texts of its mails are no secret, but lie behind a directory that others cannot enter.
            private=("/etc/sydent/sydent.conf", "/var/lib/sydent/sydent.db"),
            troubles=r" - (ERROR|CRITICAL) - |^Traceback",
        ),
    ),
    state=("/var/lib/sydent",),
    listens=(Port("tcp", 8090, "machine", "sydent.service"),),
    domain=Domain("identity_domain", "identity", "Sydent"),
    secrets=(
        VaultEntry("sydent_signing_key", "ed25519", "Sydent signs identity associations with it", "clients pin it"),
    ),
)

SLIDING_SYNC = Role(
    name="sliding_sync",
    title="the Sliding Sync proxy",
    purpose="sliding sync for clients from before 2025; the project is archived and gets no more fixes",
    leave_out="all your clients are current; it is left out of the sample for that reason",
    needs=("postgres", "synapse"),
    beside=("synapse",),
    programs=("sliding-sync",),
    units=(
        Unit(
            "sliding-sync.service",
            user="sliding-sync",
            health="curl -qsf --max-time 5 http://127.0.0.1:8009/client/server.json",
            exposure=1.5,
            reads=("/etc/sliding-sync",),
            private=("/etc/sliding-sync",),
            troubles=r'\b(FTL|PNC)\b|^panic:|"level":"(fatal|panic)"',
        ),
    ),
    listens=(Port("tcp", 8009, "machine", "sliding-sync.service"),),
    domain=Domain("sliding_sync_domain", "sliding", "the Sliding Sync proxy, if you want it"),
    database=Database("syncv3", "sliding-sync"),
    secrets=(
        VaultEntry(
            "sliding_sync_secret",
            "hex",
            "encrypts the access tokens in the proxy's database",
            "the proxy's database cannot be read without it",
        ),
    ),
)

COTURN = Role(
    name="coturn",
    title="coturn",
    purpose="calls between people behind NAT, in Element Web and the classic apps",
    leave_out="nobody makes calls with those; Element X and Element Call use LiveKit instead",
    own_certificate=True,
    packages=("coturn", "nftables", "openssl", "python3-seccomp"),
    units=(
        Unit(
            "coturn.service",
            user="root",
            # It goes on without TLS when it cannot read the certificate: only a handshake shows that it has it.
            health="ss -Hlun sport = :3478 | grep -q .",
            exposure=2.0,
            masked=True,
            reads=("/etc/turnserver.conf",),
            private=("/etc/turnserver.conf",),
        ),
    ),
    listens=(
        *(
            Port(protocol, number, "everybody", "coturn.service")
            for number in (3478, 5349)
            for protocol in ("tcp", "udp")
        ),
        Port("udp", 49152, "everybody", "coturn.service", last=65535),
    ),
    domain=Domain("turn_domain", "turn", "coturn"),
    secrets=(VaultEntry("turn_shared_secret", "token", "Synapse signs TURN credentials with it, coturn checks them"),),
)

ROLES: Mapping[str, Role] = {role.name: role for role in (POSTGRES, CADDY, SYNAPSE, SYDENT, SLIDING_SYNC, COTURN)}

# What is no role's own.
COMMON_SECRETS = (VaultEntry("smtp_password", "given", "of the mail account that mails are sent from"),)


def entries() -> Iterator[VaultEntry]:
    """Every secret that there can be."""
    for role in ROLES.values():
        yield from role.entries
    yield from COMMON_SECRETS
