"""What each role is: one record for each, in the order in which they depend on each other.

Inventory checks, ports, domains, databases, secrets, Debian packages, units, the verification and the tables of the README
are derived from these records, and written nowhere else.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

RoleName = Literal[
    "postgres",
    "caddy",
    "synapse",
    "mas",
    "sydent",
    "sliding_sync",
    "coturn",
    "rtc",
    "element",
    "ntfy",
    "admin",
    "firewall",
    "bans",
    "updates",
    "monitoring",
    "backup",
]
Protocol = Literal["tcp", "udp"]
# Who may reach a port: everybody; other machines of the deployment; what runs on the same machine.
Reach = Literal["everybody", "deployment", "machine"]


class VaultEntry(NamedTuple):
    """A secret. kind: "given" by the administrator; the others are generated. A name ends in * if there may be several.

    keep: why it must not change once it has been used. at: then a file on its machine that is there once it was. rotation: what a
    new one means for people. overlap: hours for which the old one is accepted as well. command: the command of manage.py that
    sets it, if it is not `secrets set`.
    """

    name: str
    kind: Literal["token", "hex", "ed25519", "rsa", "given"]
    meaning: str
    keep: str = ""
    rotation: str = ""
    overlap: int = 0
    command: str = ""
    at: str = ""


# Only root binds the ports below (net.ipv4.ip_unprivileged_port_start).
FIRST_UNPRIVILEGED = 1024


class Port(NamedTuple):
    """A port, or all from `number` to `last`, that a unit listens on.

    unit: the one that listens. when: the setting that has to be True for it; "remote": other machines use the database.
    callers: for a port that only this machine may reach, the roles that connect to it: nobody else may, but root. None: every
    local user may. guests: those that connect as well, if they are there.
    """

    protocol: Protocol
    number: int
    reach: Reach
    unit: str
    last: int | None = None
    when: str | None = None
    callers: tuple[RoleName, ...] | None = None
    guests: tuple[RoleName, ...] = ()

    @property
    def numbers(self) -> range:
        return range(self.number, (self.last or self.number) + 1)

    @property
    def local(self) -> bool:
        """Whether it is a TCP port on which only this machine reaches the unit."""
        return self.protocol == "tcp" and self.reach == "machine"

    @property
    def public(self) -> bool:
        """Whether other machines reach it, any local user could bind it, and the kernel gives it to nobody by itself."""
        return self.reach != "machine" and self.number >= FIRST_UNPRIVILEGED and self.last is None


class Domain(NamedTuple):
    """A domain name. setting: its name in group data; prefix: what is put before the server name by default.

    when: the setting that has to be True for it. apart: a further name of a role that is not below its first. pages: paths at
    which people see something in a browser; the others are for programs.
    """

    setting: str
    prefix: str
    purpose: str
    when: str | None = None
    apart: bool = False
    pages: tuple[str, ...] = ()


class Figure(NamedTuple):
    """A number that `manage.py NAME status` shows. query: SQL that gives it. size: whether it is in bytes.

    meaning: what follows the number. of_one: what follows 1, if that differs.
    """

    name: str
    meaning: str
    query: str
    size: bool = False
    of_one: str = ""


class Database(NamedTuple):
    """A database. owner: the PostgreSQL role that owns it, named like the system user.

    first_filled: tables of which at least one has rows after the first start of the program. figures: numbers in it that an
    administrator wants to see. used_once: tables that must be empty after a restore, because what is in them may have been used
    since. newest, belongs_to: SQL whose answers are a number that only grows, and the server name that the data are of.
    """

    name: str
    owner: str
    first_filled: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    used_once: tuple[str, ...] = ()
    newest: str = ""
    belongs_to: str = ""


class Unit(NamedTuple):
    """A systemd unit. {version} in its texts stands for PostgreSQL's major version.

    title: what it is called, in a role with several. user: the user it runs as.
    groups: those that it runs with besides the user's own. exposure: the highest exposure that
    `systemd-analyze security` may report, from 0 to 10. enabled: its UnitFileState. masked: its
    Debian package would start it at once, with a sample configuration. reads: files and directories with its configuration,
    read when it starts. rereads: those that it also reads when it is reloaded. private: files and directories that other
    users must not read. secrets: files with secrets of the vault, and directories of such files, that the unit reads.
    environment: a file with secrets that systemd reads for it, and that it cannot read itself. errors: a regular expression
    (PCRE) for the lines of its log that report an error. recoveries: one for the lines that report that an earlier error is
    over; its first group is the name that the error was about. health: a shell command, run as root on the machine, that
    succeeds once the unit does its work. own: files and directories with settings of the administrator's. check: a shell
    command, run as root, that fails if the unit would not start again with them, and says why in the last line on stderr.
    anywhere: it connects wherever a client says; a packet filter keeps it out of private networks.
    """

    name: str
    user: str
    health: str
    exposure: float
    title: str = ""
    enabled: str = "enabled"
    masked: bool = False
    reads: tuple[str, ...] = ()
    rereads: tuple[str, ...] = ()
    private: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    environment: str = ""
    errors: str = ""
    recoveries: str = ""
    own: tuple[str, ...] = ()
    check: str = ""
    groups: tuple[str, ...] = ()
    anywhere: bool = False


# The highest exposure of a helper that is a service. What restarts everything after updates has no bound: it does what root does.
HELPER_EXPOSURE = 1.5


class Timer(NamedTuple):
    """What systemd does again and again: NAME.timer starts NAME.service, which ends when it is done.

    user, exposure: as in units. beside: the role that must be on the same machine for it.
    """

    name: str
    title: str
    user: str
    exposure: float
    beside: RoleName | None = None

    @property
    def service(self) -> str:
        return f"{self.name}.service"

    @property
    def timer(self) -> str:
        return f"{self.name}.timer"


class User(NamedTuple):
    """A system user that jobs of timers run as, where no unit of a role has it.

    title: what it is for. home: a directory that belongs to it. unit: a job that runs as the user.
    """

    name: str
    title: str
    home: str
    unit: str


@dataclass(frozen=True)
class Role:
    """A role, which is a group of the inventory.

    purpose, leave_out: for the README: what it is for, and when it is not needed.
    needs: roles that it depends on, on any machine. beside: those that must be on the same machine.
    own_certificate: its unit presents the certificate of its domain itself, as Caddy obtained it.
    routes_on: the role to whose web site it adds routes.
    several: several machines may have it.
    packages: Debian's, {version} as in units; the first has its masked units and makes their users. state: directories with its
    data; the first is its user's home. irreplaceable: that data cannot be had again, so a last copy of it is kept.
    programs: its directories below /opt. helpers: further units that its task defines. files: what else it writes, outside of the
    directories that are named elsewhere here. authority: what its own authority is called in the machine's trust store. tools:
    programs that its helpers run, and perhaps those of other roles. tables: its tables of nftables. package_users: users that its
    packages make, and leave when they are purged. database_roles: roles of PostgreSQL's that it has and that own no database.
    stays: why `manage.py NAME remove` refuses it; "" if it can be removed.
    in_database: its state is backed up as a database and not as files. not_backed_up: what of its state need not be, because it
    can be had again. sqlite: SQLite databases in its state, which are copied while they may be written.
    domain: its name; more_domains: further ones, by default with their prefix before that name, or apart from it.
    timers: what systemd does for it again and again. users: those that only these jobs have.
    debian: the releases of Debian that have its packages.
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
    state: tuple[str, ...] = ()
    irreplaceable: bool = False
    programs: tuple[str, ...] = ()
    helpers: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    authority: str = ""
    tools: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    package_users: tuple[str, ...] = ()
    database_roles: tuple[str, ...] = ()
    stays: str = ""
    in_database: bool = False
    not_backed_up: tuple[str, ...] = ()
    sqlite: tuple[str, ...] = ()
    timers: tuple[Timer, ...] = ()
    users: tuple[User, ...] = ()
    listens: tuple[Port, ...] = ()
    domain: Domain | None = None
    more_domains: tuple[Domain, ...] = ()
    database: Database | None = None
    secrets: tuple[VaultEntry, ...] = ()
    debian: tuple[str, ...] = ("12", "13")

    def title_of(self, unit: Unit) -> str:
        """What one of its units is called: its own title, or that of the role."""
        return unit.title or self.title

    @property
    def domains(self) -> tuple[Domain, ...]:
        """Every name that it has, or may have."""
        return (*((self.domain,) if self.domain else ()), *self.more_domains)

    def prefix_of(self, domain: Domain) -> str:
        """What is put before the server name for one of its names, if nothing else is chosen: such as "stickers.chat"."""
        below = self.domain if domain != self.domain and not domain.apart else None
        return f"{domain.prefix}.{below.prefix}" if below else domain.prefix

    @property
    def local_ports(self) -> tuple[int, ...]:
        """The TCP ports on which it is reached from its own machine, in the order of the record."""
        return tuple(port.number for port in self.listens if port.local)

    @property
    def port(self) -> int:
        """The first of them: the only one of most roles."""
        return self.local_ports[0]

    @property
    def users_file(self) -> str:
        """What systemd-sysusers makes its users from; "" if it has none, or Debian's packages make them."""
        names = [*(unit.user for unit in self.units), *(user.name for user in self.users)]
        return f"/etc/sysusers.d/{names[0]}.conf" if names and not any(unit.masked for unit in self.units) else ""

    @property
    def password(self) -> str:
        """The name of the secret with which it logs in to its database on another machine."""
        return f"postgres_{self.name}_password"

    @cached_property
    def entries(self) -> tuple[VaultEntry, ...]:
        """All its secrets."""
        if self.database is None:
            return self.secrets
        meaning = f"{self.title}'s, where its database is on another machine"
        rotation = f"for some seconds {self.title} opens no new connections to its database, then it restarts"
        return (*self.secrets, VaultEntry(self.password, "hex", meaning, rotation=rotation))


# PostgreSQL reads its files for these views, and does not use them. A setting that takes effect at its next start is no mistake.
_CHECK_POSTGRES = (
    "cd / && wrong=$(PGCLUSTER={version}/main runuser -u postgres -- psql -XAtqc "
    "\"SELECT sourcefile || ' line ' || sourceline || ': ' || coalesce(name || ': ', '') || error FROM pg_file_settings "
    "WHERE error <> '' AND NOT (error = 'setting could not be applied' "
    "AND name IN (SELECT name FROM pg_settings WHERE context = 'postmaster')) UNION ALL "
    "SELECT 'pg_hba.conf line ' || line_number || ': ' || error FROM pg_hba_file_rules WHERE error <> ''\") "
    '&& { [ -z "$wrong" ] || { echo "$wrong" >&2; false; }; }'
)

# In a log: the first and the last line of what Python says of an exception. The last says which.
TRACEBACK = r"^Traceback|^[\w.]+(Error|Exception)(:|$)"

# Unless other clusters came first.
POSTGRES_PORT = 5432
# The start of a shell command that asks a running cluster, $cluster. Debian's own psql reads the configuration of all clusters,
# in Perl, which takes longer than to ask: the process says in its data where it listens. Its files are read as its user.
ASK_CLUSTER = (
    "cd / && setpriv --reuid=postgres --regid=postgres --init-groups "
    'env -i cluster="$cluster" PATH=/usr/bin:/bin LC_ALL=C.UTF-8 sh -c '
    "'read -r pid </run/postgresql/${cluster%/*}-${cluster#*/}.pid && port=$(sed -n 4p /proc/$pid/cwd/postmaster.pid) && "
    '[ "$port" ] && exec env -u cluster PATH=/usr/lib/postgresql/${cluster%/*}/bin:$PATH PGHOST=/run/postgresql '
    'PGPORT="$port" "$@"\' sh'
)
# The same for our cluster, whatever its version: that is main, the newest if there are several.
ASK_POSTGRES = f"cd /etc/postgresql && cluster=$(ls -d */main | sort -V | tail -n 1) && {ASK_CLUSTER}"

POSTGRES = Role(
    name="postgres",
    title="PostgreSQL",
    purpose="the database",
    leave_out="never: Synapse needs it",
    stays="all users, rooms and messages are in its databases",
    packages=("postgresql-{version}", "openssl"),
    units=(
        Unit(
            "postgresql@{version}-main.service",
            user="postgres",
            exposure=2.5,
            health=f"{ASK_POSTGRES} psql -XAtqc 'SELECT 1' | grep -q 1",
            # Debian's generator enables each cluster at every boot.
            enabled="enabled-runtime",
            masked=True,
            private=("/var/lib/postgresql/{version}/main",),
            own=("/etc/postgresql/{version}/main",),
            check=_CHECK_POSTGRES,
        ),
    ),
    state=("/var/lib/postgresql",),
    in_database=True,
    listens=(Port("tcp", POSTGRES_PORT, "deployment", "postgresql@{version}-main.service", when="remote"),),
)

# What uv, which builds virtualenvs, keeps of them.
UV_CACHE = "/root/.cache/uv"

# The program that makes a unit present its renewed certificate.
PRESENT_CERTIFICATE = "/usr/local/sbin/present-certificate"

# Of the Unix sockets behind Caddy, and of the units that connect to them. A client's address is what Caddy says: nobody else may.
SOCKET_GROUP = "matrix-sockets"

# The directory of the page that Caddy serves at the server name.
JOIN_PAGE = "/etc/matrix-metal/page"

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
            groups=(SOCKET_GROUP,),
            health="curl -qs --max-time 5 -o /dev/null http://127.0.0.1:80/",
            exposure=2.0,
            masked=True,
            rereads=("/etc/caddy/Caddyfile",),
            private=("/etc/caddy/Caddyfile", "/var/lib/caddy/.local/share/caddy/certificates"),
            # Only certificates that cannot be obtained. Caddy logs errors also for clients that disconnect, for an attempt to
            # obtain a certificate that a reload interrupts (the reload starts it again), and for a lock that is free already.
            errors=(
                r'"level":"(error|panic|fatal)".*"logger":"(tls|admin|pki)'
                r'(?!.*: context canceled"|.*"msg":"unable to unlock")|^Error: '
            ),
            recoveries=r'"msg":"certificate (?:obtained|renewed) successfully","identifier":"([^"]+)"',
        ),
    ),
    state=("/var/lib/caddy",),
    helpers=("caddy-certificate.path", "caddy-certificate.service"),
    files=("/etc/sysusers.d/matrix-caddy.conf", JOIN_PAGE),
    authority="caddy-internal",
    tools=(PRESENT_CERTIFICATE,),
    not_backed_up=("/var/lib/caddy/.local/share/caddy/locks",),
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

# Ports that more than one line below, or another file, is about.
SYNAPSE_PORT, SYDENT_PORT, FEDERATION_PORT, RELAY_PORT, RELAY_TLS_PORT = 8008, 8090, 8448, 3478, 5349
# Each call has some of these.
RELAYED = Port("udp", 49152, "everybody", "coturn.service", last=65535)

SLIDING_SYNC_SOCKET = "/run/sliding-sync/proxy.sock"
# Where Caddy reaches Synapse, on the same machine. Several, because Synapse sets the backlog of each to 50 connections, and more
# clients may connect at once while Synapse is busy.
SYNAPSE_SOCKETS = tuple(f"/run/matrix-synapse/{number}.sock" for number in range(1, 9))

# To look up a room alias Synapse needs its database. After a restart of PostgreSQL each broken connection fails one request, and
# Synapse keeps ten connections at most.
_LOOK_UP_ALIAS = (
    f"curl -qs --max-time 5 -o /dev/null -w '%{{http_code}}' http://127.0.0.1:{SYNAPSE_PORT}"
    "/_matrix/client/v3/directory/room/%23$(date +%s):"
    r'$(sed -n "s/^server_name: \"\(.*\)\"$/\1/p" /etc/matrix-synapse/homeserver.yaml)'
)

# Synapse logs as errors also what goes wrong at other homeservers.
_ABOUT_OTHERS = r"synapse\.(federation|crypto|media|http\.(matrixfederation)?client|handlers\.federation)"

# Accounts of people in Synapse's table of users. The last condition is about our own: that with which manage.py asks
# Synapse, and that which tells moderators about reports.
PEOPLE = "deactivated = 0 AND appservice_id IS NULL AND name !~ '^@matrix-metal(-[0-9]+|-reports)?:'"
_FIGURES = (
    Figure(
        "accounts",
        "accounts",
        f"SELECT count(*) FROM users WHERE {PEOPLE}",  # noqa: S608 - no input of anybody's
        of_one="account",
    ),
    Figure(
        "active_accounts",
        "active in 30 days",
        "SELECT count(DISTINCT user_id) FROM user_daily_visits WHERE timestamp > 1000 * (extract(epoch FROM now()) - 2592000)",
    ),
    Figure(
        "rooms",
        "rooms",
        "SELECT count(DISTINCT room_id) FROM local_current_membership WHERE membership = 'join'",
        of_one="room",
    ),
    Figure(
        "media",
        "media",
        "SELECT coalesce((SELECT sum(media_length) FROM local_media_repository), 0) + "
        "coalesce((SELECT sum(media_length) FROM remote_media_cache), 0)",
        size=True,
    ),
    Figure("servers", "other servers", "SELECT count(*) FROM destinations", of_one="other server"),
    Figure(
        "failing_servers",
        "servers not reached",
        "SELECT count(*) FROM destinations WHERE failure_ts IS NOT NULL",
        of_one="server not reached",
    ),
)

SYNAPSE_ARGUMENTS = "--no-secrets-in-config -c /etc/matrix-synapse/homeserver.yaml -c /etc/matrix-synapse/conf.d"
# Synapse's own check reads every file as the service will.
CHECK_SYNAPSE = (
    "cd /var/lib/matrix-synapse && umask 077 && "
    f"runuser -u matrix-synapse -- /opt/matrix-synapse/current/bin/python -m synapse.config {SYNAPSE_ARGUMENTS} >/dev/null"
)

# What counts what Synapse has removed by itself, and the file with what it found.
HOUSEKEEPING_PROGRAM = "/usr/local/lib/synapse-housekeeping"
HOUSEKEEPING_REPORT = "/var/lib/matrix-metal-housekeeping/synapse.json"
HOUSEKEEPING = Timer("matrix-metal-housekeeping", "Count what Synapse has removed", "matrix-synapse", 1.5)

SYNAPSE = Role(
    name="synapse",
    title="Synapse",
    purpose="the homeserver; it also has the sliding sync that new clients use",
    leave_out="never",
    stays="it is the homeserver",
    needs=("postgres",),
    packages=("libjemalloc2",),
    programs=("matrix-synapse", "uv"),
    files=(
        UV_CACHE,
        "/usr/local/lib/run-synapse",
        "/usr/local/lib/synapse-reports",
        HOUSEKEEPING_PROGRAM,
        HOUSEKEEPING_REPORT.rpartition("/")[0],
    ),
    timers=(HOUSEKEEPING,),
    units=(
        Unit(
            "matrix-synapse.service",
            user="matrix-synapse",
            groups=(SOCKET_GROUP,),
            # On every listener: a conf.d file of the administrator's may have replaced them. And with its database: /health
            # answers 200 without it.
            health=(
                f"curl -qsf --fail-early --max-time 5 http://127.0.0.1:{SYNAPSE_PORT}/health "
                + " ".join(
                    f"--next -sf --max-time 5 --unix-socket {path} http://localhost/health" for path in SYNAPSE_SOCKETS
                )
                + f' && for attempt in $(seq 12); do [ "$({_LOOK_UP_ALIAS})" != 404 ] || exit 0; done; exit 1'
            ),
            exposure=1.5,
            reads=("/etc/matrix-synapse",),
            private=("/etc/matrix-synapse", "/var/lib/matrix-synapse/signing.key", "/run/matrix-synapse"),
            secrets=("/etc/matrix-synapse/conf.d/email.yaml", "/etc/matrix-synapse/secrets"),
            errors=rf"^(CRITICAL|ERROR (?!{_ABOUT_OTHERS}))",
            own=("/etc/matrix-synapse/conf.d",),
            check=CHECK_SYNAPSE,
        ),
    ),
    state=("/var/lib/matrix-synapse",),
    # Copies of what other servers have.
    not_backed_up=tuple(
        f"/var/lib/matrix-synapse/media/{name}"
        for name in ("remote_content", "remote_thumbnail", "url_cache", "url_cache_thumbnails")
    ),
    listens=(
        # For application services and tools of the administrator's: Caddy connects to the sockets.
        Port("tcp", SYNAPSE_PORT, "machine", "matrix-synapse.service"),
        Port("tcp", FEDERATION_PORT, "everybody", "caddy.service", when="federation_port_8448"),
    ),
    domain=Domain("matrix_domain", "matrix", "Synapse"),
    database=Database(
        "synapse",
        "matrix-synapse",
        first_filled=("schema_version", "users", "events"),
        # A key that is given out a second time makes messages unreadable: https://github.com/element-hq/element-meta/issues/2155
        used_once=("e2e_one_time_keys_json",),
        figures=_FIGURES,
        newest="SELECT last_value FROM events_stream_seq",
        belongs_to="SELECT substr(name, strpos(name, ':') + 1) FROM users WHERE name LIKE '@%:%' LIMIT 1",
    ),
    secrets=(
        VaultEntry(
            "synapse_registration_shared_secret",
            "token",
            "lets an administrator register accounts on Synapse",
            rotation="nobody notices but for the restart of Synapse",
        ),
        VaultEntry(
            "synapse_macaroon_secret_key",
            "token",
            "signs Synapse's short-lived login, guest and SSO tokens",
            rotation="everybody stays logged in but guests; who is just signing in with another provider begins again",
        ),
        VaultEntry(
            "synapse_form_secret",
            "token",
            "protects the forms that Synapse serves",
            rotation="forms that are open in a browser have to be opened again",
        ),
        VaultEntry(
            "synapse_password_pepper",
            "given",
            "without which passwords from a homeserver that was taken over cannot be checked",
        ),
        VaultEntry(
            "synapse_antispam_token", "given", "with which Synapse asks the program of the setting `antispam_url`"
        ),
    ),
)

# Where Synapse asks MAS about tokens; where root asks whether MAS works, and administers accounts.
MAS_PORT, MAS_INTERNAL_PORT = 8080, 8081
# Where Caddy connects: for everybody, and for the administrator's pages.
MAS_SOCKET, MAS_ADMIN_SOCKET = "/run/mas/web.sock", "/run/mas/admin.sock"
MAS_CONFIGURATION = ("/etc/mas/config.yaml", "/etc/mas/local.yaml")
MAS_ARGUMENTS = " ".join(f"--config {path}" for path in MAS_CONFIGURATION)
# What its own check does not notice: a newline at the end of the encryption secret, and a policy that it cannot read.
CHECK_MAS = (
    'cd / && if [ -z "$(tail -c 1 /etc/mas/secrets/encryption)" ]; then '
    'echo "/etc/mas/secrets/encryption must not be empty or end in a newline" >&2; false; fi '
    "&& runuser -u mas -- head -c 1 /opt/mas/current/share/policy.wasm >/dev/null "
    f"&& runuser -u mas -- /opt/mas/current/mas-cli config check {MAS_ARGUMENTS} >/dev/null"
)

MAS = Role(
    name="mas",
    title="the Matrix Authentication Service",
    purpose="accounts in Element X: creating them, logging in on a web page, signing in with another provider",
    leave_out="you create all accounts yourself, and nobody signs in with another provider",
    stays="it has the passwords of all users, and Synapse cannot take them back",
    programs=("mas",),
    needs=("postgres", "synapse"),
    beside=("synapse",),
    routes_on="synapse",
    units=(
        Unit(
            "mas.service",
            user="mas",
            groups=(SOCKET_GROUP,),
            # It answers 500 without its database.
            health=f"curl -qsf --max-time 5 -o /dev/null http://127.0.0.1:{MAS_INTERNAL_PORT}/health",
            exposure=1.5,
            reads=("/etc/mas",),
            private=("/etc/mas", "/run/mas"),
            secrets=("/etc/mas/config.yaml", "/etc/mas/secrets"),
            # For every new account it first asks Synapse about a user whom that does not know yet.
            errors=r"\bERROR\b(?!.*while querying user from Synapse)|panicked at",
            # The administrator's is local.yaml, which need not be there.
            own=("/etc/mas",),
            check=CHECK_MAS,
        ),
    ),
    listens=(
        Port("tcp", MAS_PORT, "machine", "mas.service", callers=("synapse",)),
        Port("tcp", MAS_INTERNAL_PORT, "machine", "mas.service", callers=()),
    ),
    domain=Domain("auth_domain", "auth", "the Matrix Authentication Service"),
    database=Database("mas", "mas"),
    secrets=(
        VaultEntry(
            "mas_encryption_secret",
            "hex",
            "MAS encrypts cookies and keys in its database with it",
            "MAS cannot read what it has encrypted in its database without it",
            at="/etc/mas/secrets/encryption",
        ),
        VaultEntry(
            "mas_signing_key",
            "rsa",
            "MAS signs identity tokens with it",
            "clients and applications pin it",
            at="/etc/mas/secrets/signing.pem",
        ),
        VaultEntry(
            "mas_synapse_secret",
            "token",
            "with which MAS and Synapse recognise each other",
            rotation="everybody stays logged in; requests fail for the seconds between the restarts of MAS and Synapse",
        ),
        VaultEntry(
            "mas_admin_client_secret",
            "token",
            "with which manage.py administers MAS",
            rotation="nobody notices but for the restart of MAS",
        ),
        VaultEntry("sso_client_secret_*", "given", "of MAS at the provider with that ID in the setting `sso`"),
    ),
)

SYDENT = Role(
    name="sydent",
    title="Sydent",
    purpose="finding people by e-mail address and inviting them by it, in Element Web and the classic apps",
    leave_out="you do not miss that: most people do not",
    units=(
        Unit(
            "sydent.service",
            user="sydent",
            health=f"curl -qsf --max-time 5 http://127.0.0.1:{SYDENT_PORT}/_matrix/identity/v2",
            exposure=1.5,
            reads=("/etc/sydent",),
            # Not all of /etc/sydent: the texts of its mails are readable by everybody, in a directory that others cannot enter.
            private=("/etc/sydent/sydent.conf", "/var/lib/sydent/sydent.db"),
            secrets=("/etc/sydent/sydent.conf",),
            errors=rf" - (ERROR|CRITICAL) - |{TRACEBACK}",
        ),
    ),
    state=("/var/lib/sydent",),
    irreplaceable=True,
    programs=("sydent", "uv"),
    sqlite=("/var/lib/sydent/sydent.db",),
    files=(UV_CACHE,),
    # Its old API sends mails for whoever asks: Caddy lets nobody reach that.
    listens=(Port("tcp", SYDENT_PORT, "machine", "sydent.service", callers=("caddy",)),),
    domain=Domain("identity_domain", "identity", "Sydent"),
    secrets=(
        VaultEntry(
            "sydent_signing_key",
            "ed25519",
            "Sydent signs identity associations with it",
            "clients pin it",
            at="/etc/sydent/sydent.conf",
        ),
    ),
)

SLIDING_SYNC = Role(
    name="sliding_sync",
    title="the Sliding Sync proxy",
    purpose="sliding sync for clients from before 2025; the project is archived and gets no more fixes",
    leave_out="all your clients are current; it is left out of the sample for that reason",
    needs=("postgres", "synapse"),
    beside=("synapse",),
    units=(
        Unit(
            "sliding-sync.service",
            user="sliding-sync",
            groups=(SOCKET_GROUP,),
            health=f"curl -qsf --max-time 5 --unix-socket {SLIDING_SYNC_SOCKET} http://localhost/client/server.json",
            exposure=1.5,
            reads=("/etc/sliding-sync",),
            private=("/etc/sliding-sync", "/run/sliding-sync"),
            environment="/etc/sliding-sync/environment",
            errors=r'\b(FTL|PNC)\b|^panic:|"level":"(fatal|panic)"',
        ),
    ),
    programs=("sliding-sync",),
    domain=Domain("sliding_sync_domain", "sliding", "the Sliding Sync proxy, if you want it"),
    database=Database("syncv3", "sliding-sync"),
    secrets=(
        VaultEntry(
            "sliding_sync_secret",
            "hex",
            "encrypts the access tokens in the proxy's database",
            "the proxy's database cannot be read without it",
            at="/etc/sliding-sync/environment",
        ),
    ),
)

COTURN = Role(
    name="coturn",
    title="coturn",
    purpose="calls between people behind NAT, in Element Web and the classic apps",
    leave_out="nobody makes calls with those, and nobody makes calls with LiveKit from networks that let out nothing but TLS, "
    "on port 5349",
    own_certificate=True,
    packages=("coturn", "nftables", "openssl", "python3-seccomp"),
    helpers=("coturn-certificate.path", "coturn-certificate.service", "coturn-filter.service"),
    files=(
        "/etc/systemd/system/nftables.service.d/coturn-filter.conf",
        "/etc/turnserver.nft",
        "/usr/local/sbin/run-alone",
    ),
    tools=(PRESENT_CERTIFICATE,),
    tables=("matrix_metal_relay",),
    units=(
        Unit(
            "coturn.service",
            user="root",
            # Debian's package makes it. The packet filter knows coturn's packets by it.
            groups=("turnserver",),
            # It runs without TLS when it cannot read the certificate; a TLS handshake at the end of the deploy checks that.
            health=f"ss -Hlun sport = :{RELAY_PORT} | grep -q .",
            exposure=2.0,
            masked=True,
            reads=("/etc/turnserver.conf",),
            private=("/etc/turnserver.conf",),
            secrets=("/etc/turnserver.conf",),
        ),
    ),
    listens=(
        *(
            Port(protocol, number, "everybody", "coturn.service")
            for number in (RELAY_PORT, RELAY_TLS_PORT)
            for protocol in ("tcp", "udp")
        ),
        RELAYED,
    ),
    domain=Domain("turn_domain", "turn", "coturn"),
    secrets=(
        VaultEntry(
            "turn_shared_secret",
            "token",
            "Synapse signs TURN credentials with it, coturn checks them",
            rotation="coturn and LiveKit restart, which interrupts the calls through them, and Synapse",
            # Synapse hands out credentials for a day (turn_user_lifetime).
            overlap=48,
        ),
    ),
)

# Ports of LiveKit and lk-jwt-service.
SIGNAL_PORT, MEDIA_TCP_PORT, MEDIA_UDP_PORT, LK_JWT_PORT = 7880, 7881, 7882, 8082

RTC = Role(
    name="rtc",
    title="LiveKit",
    purpose="calls in Element X, and in Element Web those of Element Call: LiveKit and lk-jwt-service",
    leave_out="nobody makes calls with those",
    # lk-jwt-service asks the homeserver as other homeservers do, so it may be on any machine.
    needs=("synapse",),
    packages=("nftables",),
    units=(
        Unit(
            "livekit.service",
            user="livekit",
            health=(
                f"curl -qsf --max-time 5 -o /dev/null http://127.0.0.1:{SIGNAL_PORT}/ "
                f"&& ss -Hlnt sport = :{MEDIA_TCP_PORT} | grep -q . && ss -Hlnu sport = :{MEDIA_UDP_PORT} | grep -q ."
            ),
            exposure=1.5,
            reads=("/etc/livekit",),
            private=("/etc/livekit",),
            secrets=("/etc/livekit/keys.yaml", "/etc/livekit/turn_secret"),
            errors=r"\tERROR\t|^panic:",
        ),
        Unit(
            "lk-jwt.service",
            user="lk-jwt",
            title="lk-jwt-service",
            health=f"curl -qsf --max-time 5 -o /dev/null http://127.0.0.1:{LK_JWT_PORT}/healthz",
            exposure=1.5,
            reads=("/etc/lk-jwt",),
            private=("/etc/lk-jwt",),
            secrets=("/etc/lk-jwt/secret",),
            errors=r"^panic:|[Uu]nable to create room|level=(error|fatal)",
            # A client names the homeserver that knows the user, before anybody knows the client.
            anywhere=True,
        ),
    ),
    listens=(
        Port("tcp", MEDIA_TCP_PORT, "everybody", "livekit.service"),
        Port("udp", MEDIA_UDP_PORT, "everybody", "livekit.service"),
        Port("tcp", SIGNAL_PORT, "machine", "livekit.service", callers=("caddy",)),
        Port("tcp", LK_JWT_PORT, "machine", "lk-jwt.service", callers=("caddy",)),
    ),
    programs=("livekit", "lk-jwt-service"),
    domain=Domain("rtc_domain", "rtc", "LiveKit: calls in Element X"),
    secrets=(
        VaultEntry(
            "livekit_secret",
            "hex",
            "lk-jwt-service signs with it who may join a call, LiveKit checks it",
            rotation="calls in Element X end, and people join them again",
        ),
    ),
)

# The packs of stickers, which `manage.py NAME stickers` writes; the page with which people choose one.
STICKERS, STICKERS_PAGE = "/var/lib/matrix-stickers", "/etc/matrix-metal/stickers"

STICKERS_NAME = Domain(
    "stickers_domain", "stickers", "stickers in Element Web, only with `stickers = True`", when="stickers"
)
CINNY_NAME = Domain("cinny_domain", "cinny", "Cinny, only with `cinny = True`", when="cinny", apart=True)

ELEMENT = Role(
    name="element",
    title="Element Web",
    purpose="a web client at an address of your own: people open it in a browser and talk",
    leave_out="everybody has an app, or uses a web client at another address",
    needs=("synapse",),
    beside=("caddy",),
    units=(),
    programs=("element-web", "cinny"),
    state=(STICKERS,),
    files=("/etc/element-web", "/etc/cinny", STICKERS_PAGE),
    domain=Domain("chat_domain", "chat", "Element Web", pages=("/", "/index.html")),
    more_domains=(CINNY_NAME, STICKERS_NAME),
)

NTFY_SOCKET = "/run/ntfy/ntfy.sock"

NTFY = Role(
    name="ntfy",
    title="ntfy",
    purpose="tells phones without Google's services that there is a new message (UnifiedPush)",
    leave_out="all phones have Google's or Apple's services, or the machine has Debian 12, which lacks it",
    beside=("caddy",),
    needs=("caddy",),
    packages=("ntfy",),
    debian=("13",),
    units=(
        Unit(
            "ntfy.service",
            user="_ntfy",
            groups=(SOCKET_GROUP,),
            health=f"curl -qsf --max-time 5 -o /dev/null --unix-socket {NTFY_SOCKET} http://localhost/v1/health",
            exposure=1.5,
            reads=("/etc/ntfy/server.yml",),
            private=("/var/lib/ntfy", "/run/ntfy"),
            errors=r"\b(ERROR|FATAL)\b|^panic:",
        ),
    ),
    state=("/var/lib/ntfy",),
    # What no phone has asked for yet, for some hours.
    not_backed_up=("/var/lib/ntfy/cache.db",),
    domain=Domain("push_domain", "push", "ntfy, if you want it"),
)

# Where Caddy serves the administrator's pages for an SSH tunnel.
ADMIN_PORT = 8450

ADMIN = Role(
    name="admin",
    title="Ketesa",
    purpose="Ketesa: users, rooms, media, reports and tokens of the homeserver in your browser, for nobody else",
    leave_out="`manage.py` is enough for you",
    needs=("synapse", "caddy"),
    beside=("synapse", "caddy"),
    units=(),
    programs=("ketesa",),
    listens=(Port("tcp", ADMIN_PORT, "machine", "caddy.service"),),
    domain=Domain("admin_domain", "admin", "the administrator's pages, only with `admin_networks`"),
    secrets=(
        VaultEntry(
            "admin_password_hash",
            "given",
            "of the password of the administrator's pages, which is not kept",
            command="admin password",
        ),
        VaultEntry(
            "admin_session_secret",
            "token",
            "by which a browser is known that had the password of the administrator's pages",
            rotation="the administrator's pages ask for the password again",
        ),
        VaultEntry(
            "admin_certificate_*",
            "given",
            "the certificate of a browser for the administrator's pages, without its key",
            command="admin certificate create",
        ),
    ),
)

FIREWALL = Role(
    name="firewall",
    title="the firewall",
    purpose="drops what arrives for other ports than those of the deployment and SSH",
    leave_out="the machine has a firewall of yours, or one in front of it",
    several=True,
    packages=("nftables",),
    units=(),
    helpers=("matrix-metal-firewall.service",),
    # The administrator's own rules.
    state=("/etc/matrix-metal/firewall.d",),
    irreplaceable=True,
    files=(
        "/etc/matrix-metal/firewall.nft",
        "/etc/matrix-metal/firewall.new.nft",
        "/etc/systemd/system/nftables.service.d/matrix-metal-firewall.conf",
    ),
    tables=("matrix_metal_firewall",),
)

# What packet filter the bans are in; where Debian's own fail2ban is kept from starting.
BANS_TABLE = "matrix_metal_bans"
BANS_HOME, BANS_STATE, BANS_RUN = "/etc/matrix-metal/bans", "/var/lib/matrix-bans", "/run/matrix-bans"
BANS_DATABASE, BANS_JAIL = f"{BANS_STATE}/bans.sqlite3", "log-ins"
BANS_DEBIANS_OWN = "/etc/systemd/system/fail2ban.service.d/matrix-metal.conf"

BANS = Role(
    name="bans",
    title="fail2ban",
    purpose="bans addresses from which wrong passwords come again and again",
    leave_out="Synapse's and MAS's own limits are enough for you, or something in front of the machine bans",
    # It counts what Caddy logs of log-ins.
    needs=("caddy", "synapse"),
    beside=("caddy", "synapse"),
    # Not Debian's own unit: it has other jails, that of SSH among them, which needs a file that Debian 12 does not have.
    packages=("fail2ban", "nftables", "python3-systemd"),
    units=(
        Unit(
            "matrix-bans.service",
            user="matrix-bans",
            # The table as it was loaded.
            health=f"nft -s -t list table inet {BANS_TABLE} | cmp -s - {BANS_RUN}/loaded",
            exposure=1.5,
            reads=(BANS_HOME,),
            private=(BANS_STATE, BANS_RUN),
            errors=rf"\b(ERROR|CRITICAL)\b|{TRACEBACK}",
        ),
    ),
    state=(BANS_STATE,),
    # Who was banned elsewhere, or long ago, need not be any more.
    not_backed_up=(BANS_DATABASE,),
    files=("/etc/systemd/system/nftables.service.d/matrix-bans.conf", BANS_DEBIANS_OWN),
    tables=(BANS_TABLE,),
)

# What apt and needrestart read. The second of apt's is read by the unattended runs only.
UPDATES_APT = "/etc/apt/apt.conf.d/60matrix-metal"
UPDATES_OPTIONS = "/etc/matrix-metal/updates.apt.conf"
UPDATES_NEEDRESTART = "/etc/needrestart/conf.d/matrix-metal.conf"
# Debian's: each has a timer of the same name. The first reads the lists of packages, the second installs.
UPDATES_JOBS = ("apt-daily", "apt-daily-upgrade")
# Ours, after the second of them.
UPDATES_RESTARTS = "matrix-metal-updates.service"

UPDATES = Role(
    name="updates",
    title="the updater",
    purpose="installs Debian's security updates by itself, at a set hour, and restarts what still runs replaced files",
    leave_out="you install them yourself, each within a day or two",
    several=True,
    packages=("needrestart", "unattended-upgrades"),
    units=(),
    helpers=(UPDATES_RESTARTS,),
    files=(
        UPDATES_APT,
        UPDATES_OPTIONS,
        UPDATES_NEEDRESTART,
        *(
            f"/etc/systemd/system/{job}.{kind}.d/matrix-metal.conf"
            for job in UPDATES_JOBS
            for kind in ("service", "timer")
        ),
    ),
)

# What is scraped, and where Alertmanager and Prometheus answer: beside their usual ports, where an administrator's own may be.
PROMETHEUS_PORT, ALERTS_PORT, NODE_PORT, BLACKBOX_PORT, POSTGRES_FIGURES_PORT = 19090, 19093, 19100, 19115, 19187
PROCESSES_PORT = 19256
# What Alertmanager is asked, for the alerts that fire and that nobody has silenced.
ALERTS_QUESTION = f"http://127.0.0.1:{ALERTS_PORT}/api/v2/alerts?active=true&silenced=false&inhibited=false"
SYNAPSE_FIGURES_PORT, CADDY_FIGURES_PORT, MAS_FIGURES_PORT, LIVEKIT_FIGURES_PORT = 19008, 19080, 19081, 19780
MONITORING_HOME = "/etc/matrix-metal/monitoring"
# What the timer writes: the units' state and memory, the backup's, what logs say of damage.
FIGURES_PROGRAM, FIGURES = "/usr/local/lib/matrix-metal-figures", "/var/lib/matrix-metal-figures"
FIGURES_TIMER = Timer("matrix-metal-figures", "Collect figures for the monitoring", "matrix-node", 1.5)
# Debian's packages -> where their own units are kept from starting.
MONITORING_DEBIANS_OWN = {
    package: f"/etc/systemd/system/{package}.service.d/matrix-metal.conf"
    for package in (
        "prometheus",
        "prometheus-alertmanager",
        "prometheus-node-exporter",
        "prometheus-blackbox-exporter",
        "prometheus-postgres-exporter",
        "prometheus-process-exporter",
    )
}


def _answers(port: int, path: str, text: str = "") -> str:
    """A shell command that succeeds once a page is there, and has a line."""
    ask = f"curl -qsf --max-time 5 http://127.0.0.1:{port}{path}"
    return f"{ask} | grep -q '{text}'" if text else f"{ask} -o /dev/null"


# The first answer after a restart of PostgreSQL is about the connection that it has ended.
_PG_UP = _answers(POSTGRES_FIGURES_PORT, "/metrics", "^pg_up 1")

MONITORING = Role(
    name="monitoring",
    title="the monitoring",
    purpose="watches the homeserver and its machine, and writes when something is wrong: Prometheus and Alertmanager",
    leave_out="you have a monitoring of your own, or look at `status` yourself",
    needs=("postgres", "synapse"),
    beside=("postgres", "synapse"),
    packages=tuple(MONITORING_DEBIANS_OWN),
    # Not Debian's own units: they listen on all addresses, and share a user.
    units=(
        Unit(
            "matrix-node.service",
            user="matrix-node",
            title="the node exporter",
            health=_answers(NODE_PORT, "/metrics", "^node_time_seconds"),
            exposure=1.5,
        ),
        Unit(
            "matrix-blackbox.service",
            user="matrix-blackbox",
            title="the blackbox exporter",
            health=_answers(BLACKBOX_PORT, "/-/healthy"),
            exposure=1.5,
            reads=(f"{MONITORING_HOME}/blackbox.yaml",),
        ),
        Unit(
            "matrix-pg-figures.service",
            user="matrix-pg-figures",
            title="the PostgreSQL exporter",
            health=f"{_PG_UP} || {{ sleep 0.3; {_PG_UP}; }}",
            exposure=1.5,
        ),
        Unit(
            "matrix-processes.service",
            user="matrix-processes",
            title="the process exporter",
            health=_answers(PROCESSES_PORT, "/metrics", "^namedprocess_scrape_errors"),
            exposure=1.5,
            reads=(f"{MONITORING_HOME}/processes.yaml",),
        ),
        Unit(
            "matrix-alertmanager.service",
            user="matrix-alertmanager",
            title="Alertmanager",
            health=_answers(ALERTS_PORT, "/-/ready"),
            exposure=1.5,
            reads=("/etc/matrix-alertmanager",),
            private=("/etc/matrix-alertmanager",),
            secrets=("/etc/matrix-alertmanager",),
        ),
        Unit(
            "matrix-prometheus.service",
            user="matrix-prometheus",
            title="Prometheus",
            health=_answers(PROMETHEUS_PORT, "/-/ready"),
            exposure=1.5,
            reads=(f"{MONITORING_HOME}/prometheus.yaml", f"{MONITORING_HOME}/rules.yaml"),
            private=("/var/lib/matrix-prometheus/wal",),
        ),
    ),
    timers=(FIGURES_TIMER,),
    listens=(
        # Synapse tells the administrators in a room.
        Port("tcp", ALERTS_PORT, "machine", "matrix-alertmanager.service", callers=("monitoring", "synapse")),
        # The overview asks it, behind the door of the administrator's pages.
        Port(
            "tcp", PROMETHEUS_PORT, "machine", "matrix-prometheus.service", callers=("monitoring",), guests=("admin",)
        ),
        *(
            Port("tcp", number, "machine", unit, callers=("monitoring",))
            for number, unit in (
                (NODE_PORT, "matrix-node.service"),
                (BLACKBOX_PORT, "matrix-blackbox.service"),
                (POSTGRES_FIGURES_PORT, "matrix-pg-figures.service"),
                (PROCESSES_PORT, "matrix-processes.service"),
                # What other roles say of themselves, where they are on the same machine.
                (SYNAPSE_FIGURES_PORT, "matrix-synapse.service"),
                (CADDY_FIGURES_PORT, "caddy.service"),
                (MAS_FIGURES_PORT, "mas.service"),
                (LIVEKIT_FIGURES_PORT, "livekit.service"),
            )
        ),
    ),
    files=(
        MONITORING_HOME,
        FIGURES_PROGRAM,
        FIGURES,
        # What they have written, which need not be backed up.
        "/var/lib/matrix-alertmanager",
        "/var/lib/matrix-prometheus",
        *MONITORING_DEBIANS_OWN.values(),
    ),
    package_users=("prometheus",),
    programs=("uplot",),
    domain=Domain(
        "monitor_domain", "monitor", "the overview of the monitoring, only with `admin` and `admin_networks`"
    ),
    database_roles=("matrix-pg-figures",),
)

# Who backs up files: no root, but may read them all.
BACKUP_USER = "matrix-backup"
BACKUP_FILES, BACKUP_CACHE = "/var/lib/matrix-metal/backup/files", "/var/cache/matrix-metal-backup"

BACKUP = Role(
    name="backup",
    title="the backup",
    purpose="backups of all data, encrypted, to another disk, another machine or S3 storage",
    leave_out="you make backups in another way",
    several=True,
    packages=("restic",),
    units=(),
    timers=(
        Timer("matrix-metal-backup-wal", "Send the database's changes to the backup", "postgres", 1.5, "postgres"),
        Timer("matrix-metal-backup-database", "Back up the database", "postgres", 1.5, "postgres"),
        Timer("matrix-metal-backup-files", "Back up files", BACKUP_USER, 1.5),
        Timer("matrix-metal-backup-check-database", "Check the backup of the database", "postgres", 1.5, "postgres"),
        Timer("matrix-metal-backup-check-files", "Check the backup of files", BACKUP_USER, 1.5),
        Timer("matrix-metal-backup-late", "Write a mail if a backup is late", BACKUP_USER, 1.5),
    ),
    users=(User(BACKUP_USER, "Backs up files", BACKUP_FILES, "matrix-metal-backup-files.service"),),
    helpers=("matrix-metal-backup-failed@.service",),
    files=(
        "/etc/matrix-metal/backup",
        "/usr/local/lib/matrix-metal",
        BACKUP_CACHE,
        "/var/cache/matrix-metal-backup-database",
        "/var/lib/matrix-metal/backup",
        "/var/spool/matrix-metal-backup",
    ),
    secrets=(
        VaultEntry(
            "backup_encryption_key",
            "hex",
            "encrypts the backups",
            "backups that were made with it cannot be read",
            at="/etc/matrix-metal/backup/plan.json",
        ),
        VaultEntry(
            "backup_ssh_key",
            "rsa",
            "with which the backup logs in to another machine (sftp://)",
            rotation="the other machine has to be given the new public key, which `backup key` shows",
        ),
        VaultEntry("backup_s3_access_key", "given", "of the S3 storage for backups: the access key ID"),
        VaultEntry("backup_s3_secret_key", "given", "of the S3 storage for backups: the secret access key"),
    ),
)


def any_version(text: str) -> str:
    """A name or path of a record as a pattern that fits whatever its {names} stand for."""
    return re.sub(r"\{\w+\}", "*", text)


ROLES: Mapping[str, Role] = {
    role.name: role
    for role in (
        POSTGRES,
        CADDY,
        SYNAPSE,
        MAS,
        SYDENT,
        SLIDING_SYNC,
        COTURN,
        RTC,
        ELEMENT,
        NTFY,
        ADMIN,
        FIREWALL,
        BANS,
        UPDATES,
        MONITORING,
        BACKUP,
    )
}

# Debian's packages that every machine needs, whatever its roles.
PACKAGES = ("ca-certificates", "curl", "openssl", "python3-venv")

# Secrets that belong to no single role.
COMMON_SECRETS = (
    VaultEntry("smtp_password", "given", "of the mail account that mails are sent from"),
    VaultEntry("captcha_secret_key", "given", "by which the service of the setting `captcha` knows who asks it"),
)


def entries() -> Iterator[VaultEntry]:
    """Every secret that a vault can have."""
    for role in ROLES.values():
        yield from role.entries
    yield from COMMON_SECRETS
