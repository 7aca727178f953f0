"""PostgreSQL, and how each role that has a database reaches it."""

from dataclasses import dataclass
from typing import Self

from operations.databases import Database
from roles import POSTGRES, ROLES, Role
from settings.deployment import POSTGRESQL_PORT, SettingError, Settings, View, postgresql_port
from vault import Secret

# The copy of the database server's certificate on a machine that uses the database of another one.
DATABASE_AUTHORITY = "/etc/ssl/certs/matrix-metal-postgresql.pem"


@dataclass(frozen=True)
class DatabaseAccess:
    """How a role reaches its database.

    On the same machine: host is the Unix socket's directory, and the system user of the role's name needs no password. The
    port is part of the socket's name.
    On another machine: host is its address; password and authority (path of the certificate it must present) are set.
    """

    name: str
    user: str
    host: str = "/run/postgresql"
    password: Secret | None = None
    authority: str | None = None
    port: int = POSTGRESQL_PORT

    @property
    def dsn(self) -> str:
        """The connection string for libpq and lib/pq. It holds the password: for secret files only."""
        words = {"user": self.user, "dbname": self.name, "host": self.host, "sslmode": "disable"}
        if self.port != POSTGRESQL_PORT:
            words["port"] = str(self.port)
        if self.password and self.authority:
            words |= {"sslmode": "verify-full", "sslrootcert": self.authority, "password": self.password.reveal()}
        escaped = {key: value.replace("\\", "\\\\").replace("'", "\\'") for key, value in words.items()}
        return " ".join(f"{key}='{value}'" for key, value in escaped.items())

    @property
    def password_file(self) -> str:
        """A line for libpq's password file."""
        password = self.password.reveal() if self.password else ""
        escaped = password.replace("\\", "\\\\").replace(":", "\\:")
        return f"*:*:*:{self.user}:{escaped}\n"


@dataclass(frozen=True)
class DatabaseClient:
    """A role on another machine that uses a database here, from one of these addresses."""

    database: str
    user: str
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Postgres(View):
    """version: PostgreSQL's major version. Memory sizes are in MiB. address: where other machines reach it."""

    version: str
    port: int
    shared_buffers: int
    effective_cache_size: int
    maintenance_work_mem: int
    work_mem: int
    databases: tuple[Database, ...]
    clients: tuple[DatabaseClient, ...]
    address: str

    @classmethod
    def of(cls, settings: Settings) -> Self:
        # A homeserver on the same machine needs half of the memory.
        memory = settings.machine.memory // (2 if settings.here("synapse") else 1)
        users = [role for role in ROLES.values() if role.database and settings.exists(role.name)]
        remote = [role for role in users if not settings.here(role.name)]
        return cls(
            version=settings.postgresql,
            port=postgresql_port(settings.machine),
            shared_buffers=_between(32, memory // 4, 8192),
            effective_cache_size=_between(128, memory, 65536),
            maintenance_work_mem=_between(16, memory // 16, 1024),
            work_mem=_between(4, memory // 128, 32),
            databases=tuple(
                Database(
                    role.database.name,
                    role.database.owner,
                    password=_password(settings, role) if role in remote else None,
                    first_filled=role.database.first_filled,
                )
                for role in users
                if role.database
            ),
            clients=tuple(
                DatabaseClient(role.database.name, role.database.owner, settings.neighbour(role.name).sources)
                for role in remote
                if role.database
            ),
            address=settings.address,
        )

    @property
    def cluster(self) -> str:
        return f"{self.version}/main"

    @property
    def unit(self) -> str:
        return POSTGRES.units[0].name.format(version=self.version)

    @property
    def directory(self) -> str:
        return f"/etc/postgresql/{self.version}/main"

    @property
    def certificate(self) -> str:
        """The certificate for other machines; the key is beside it."""
        return f"{self.directory}/matrix-metal.crt"


def database_of(settings: Settings, role: Role) -> DatabaseAccess:
    """How a role of this machine reaches its database. Raises ValueError if it has none."""
    if role.database is None:
        raise ValueError(role.name)
    name, user = role.database.name, role.database.owner
    if settings.roles["postgres"] == settings.roles[role.name]:
        return DatabaseAccess(name, user, port=postgresql_port(settings.machine))
    server, password = settings.neighbour("postgres"), _password(settings, role)
    return DatabaseAccess(name, user, server.address, password, DATABASE_AUTHORITY, server.database_port)


def database_server(settings: Settings) -> str | None:
    """Name of the machine with the databases of this one's roles; None if that is this machine, or they have no database."""
    server = settings.roles["postgres"][0] if settings.exists("postgres") else settings.name
    return server if server != settings.name and any(role.database for role in settings.played) else None


def _password(settings: Settings, role: Role) -> Secret:
    password = settings.vault.get(role.password)
    if not password.reveal().isascii():
        # Only some of PostgreSQL's clients normalise other characters as SCRAM requires (RFC 4013).
        raise SettingError(
            f"{role.password} must be ASCII: not every client of PostgreSQL can log in with anything else"
        )
    return password


def _between(least: int, value: int, most: int) -> int:
    return max(least, min(value, most))


VIEW = Postgres
