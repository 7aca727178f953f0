"""PostgreSQL, and how each role that has a database reaches it."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from pydantic import Field

from operations.databases import Database
from operations.machine import MachineState
from operations.users import Account
from roles import POSTGRES, POSTGRES_PORT, ROLES, Port, Role, Unit
from settings.deployment import SettingError, Settings, View
from settings.fields import Chosen
from vault import Secret

# Debian release -> the version of PostgreSQL that it has.
OF_DEBIAN = {"12": "15", "13": "17"}

# The copy of the database server's certificate on a machine that uses the database of another one.
DATABASE_AUTHORITY = "/etc/ssl/certs/matrix-metal-postgresql.pem"


class Choices(Chosen):
    """The settings of PostgreSQL.

    statistics_percent: its statistics of a table are renewed when so many percent of the rows have changed.
    """

    statistics_percent: int = Field(description="a number of percent from 1 to 50", ge=1, le=50)


def version_on(machine: MachineState) -> str:
    """The version of the existing cluster: an upgrade of Debian installs a newer PostgreSQL, but leaves the data in the old."""
    return machine.postgresql[-1] if machine.postgresql else OF_DEBIAN.get(machine.release, max(OF_DEBIAN.values()))


def port_on(machine: MachineState) -> int:
    """The port of our cluster; if there is none yet, the port that Debian gives to a new one: the first that is free."""
    clusters = dict(machine.clusters)
    taken = {*clusters.values(), *(each.port for each in machine.listeners if each.protocol == "tcp")}
    free = next(port for port in itertools.count(POSTGRES_PORT) if port not in taken)
    return clusters.get(f"{version_on(machine)}/main", POSTGRES_PORT if machine.postgresql else free)


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
    port: int = POSTGRES_PORT

    @property
    def other_port(self) -> int | None:
        """The port, if it is not PostgreSQL's usual one."""
        return self.port if self.port != POSTGRES_PORT else None

    @property
    def dsn(self) -> str:
        """The connection string for libpq and lib/pq. It contains the password: for secret files only."""
        words = {"user": self.user, "dbname": self.name, "host": self.host, "sslmode": "disable"}
        if self.other_port:
            words["port"] = str(self.other_port)
        if self.password and self.authority:
            words |= {"sslmode": "verify-full", "sslrootcert": self.authority, "password": self.password.reveal()}
        escaped = {key: value.replace("\\", "\\\\").replace("'", "\\'") for key, value in words.items()}
        return " ".join(f"{key}='{value}'" for key, value in escaped.items())

    def keywords(self, password_file: str) -> dict[str, str | int]:
        """The arguments of a connection for psycopg2. password_file: the path of the file with `password_file`."""
        words: dict[str, str | int] = {"user": self.user, "dbname": self.name, "host": self.host, "port": self.port}
        if self.password and self.authority:
            words |= {"passfile": password_file, "sslmode": "verify-full", "sslrootcert": self.authority}
        return words

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
    statistics_percent: int
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
            version=version_on(settings.machine),
            port=port_on(settings.machine),
            shared_buffers=_between(32, memory // 4, 8192),
            effective_cache_size=_between(128, memory, 65536),
            maintenance_work_mem=_between(16, memory // 16, 1024),
            work_mem=_between(4, memory // 128, 32),
            statistics_percent=settings.section(Choices).statistics_percent,
            databases=tuple(
                Database(
                    role.database.name,
                    role.database.owner,
                    password=_password(settings, role) if role in remote else None,
                    first_filled=role.database.first_filled,
                    newest=role.database.newest,
                    belongs_to=role.database.belongs_to,
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

    @classmethod
    def placeholders(cls, machine: MachineState) -> Mapping[str, str]:
        return {"version": version_on(machine)}

    @classmethod
    def port_of(cls, port: Port, machine: MachineState) -> Port:
        return port._replace(number=port_on(machine))

    @classmethod
    def account(cls, role: Role, unit: Unit, name: str) -> Account:
        # As postgresql-common has it. The group reads the key of the certificate that Debian's configuration names.
        paths = ("/etc/postgresql", "/var/log/postgresql", "/run/postgresql")
        return replace(super().account(role, unit, name), shell="/bin/bash", group="ssl-cert", paths=paths)  # noqa: S604

    @property
    def client_addresses(self) -> list[str]:
        """Those of all machines that use it. Each is there once: it is restarted for a new machine, and not for another role."""
        return list(dict.fromkeys(address for client in self.clients for address in client.addresses))

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
    def configuration(self) -> str:
        return f"{self.directory}/conf.d/matrix-metal.conf"

    @property
    def access(self) -> str:
        """The file that says who may connect."""
        return f"{self.directory}/matrix-metal.hba.conf"

    @property
    def key(self) -> str:
        return f"{self.directory}/matrix-metal.key"

    @property
    def drop_in(self) -> str:
        return f"/etc/systemd/system/{self.unit}.d/matrix-metal.conf"

    @property
    def files(self) -> list[str]:
        """The files of ours that it reads when it starts."""
        return [self.configuration, self.drop_in, *([self.certificate, self.key] if self.clients else [])]

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
        return DatabaseAccess(name, user, port=port_on(settings.machine))
    server, password = settings.neighbour("postgres"), _password(settings, role)
    return DatabaseAccess(
        name, user, server.address, password, DATABASE_AUTHORITY, server.database_port or POSTGRES_PORT
    )


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
