"""PostgreSQL roles and databases, over the Unix socket as the superuser."""

import base64
import hashlib
import hmac
import os
import shlex
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from pyinfra.api import StringCommand
from pyinfra.context import host

from operations.look import ask, operation
from operations.refusal import refuse
from operations.shell import Fact, YesOrNo, quoted, script, shell_file
from roles import ASK_CLUSTER
from vault import Secret


def as_postgres(cluster: str) -> str:
    """The start of a shell command that runs one of PostgreSQL's programs on this cluster ("17/main"), as its superuser.

    The environment is cleared: there may be other clusters, one of them on the default port, and the machine's environment or
    files may choose one.
    """
    return f"cd / && runuser -u postgres -- env -i PATH=/usr/bin:/bin LC_ALL=C.UTF-8 PGCLUSTER={quoted(cluster)}"


def asked(cluster: str, arguments: str) -> str:
    """A shell command that asks a cluster which runs, as its superuser, with psql and these arguments."""
    return f"( cluster={quoted(cluster)} && {ASK_CLUSTER} psql {arguments} )"


# Where copies of data are kept, readable by root only.
COPIES = "/var/backups/matrix-metal"


def database_functions(cluster: str) -> str:
    """The shell functions of databases.sh and copies.sh, for databases of this cluster ("17/main")."""
    return f"cluster={quoted(cluster)} copies={COPIES}\n{shell_file('databases')}{shell_file('copies')}"


# A condition on pg_database: every role may connect.
OPEN_TO_ALL = (
    "EXISTS (SELECT FROM aclexplode(coalesce(datacl, acldefault('d', datdba))) "
    "WHERE grantee = 0 AND privilege_type = 'CONNECT')"
)


@dataclass(frozen=True)
class Database:
    """A database and the role that owns it, which the system user of the same name may use without a password.

    password: of the role, if it logs in from another machine.
    first_filled: tables that get rows in the first start of the program. When there are tables but none of these ever had a
        row, that start was interrupted (power failure), and the database is created again: Synapse cannot continue with it.
    newest, belongs_to: see the record in roles.py.

    Encoding UTF8, collation and character type C: Synapse requires them, and with any other collation an upgrade of the
    operating system can break indexes.
    """

    name: str
    owner: str
    password: Secret | None = None
    first_filled: tuple[str, ...] = ()
    newest: str = ""
    belongs_to: str = ""


def _incomplete(first_filled: Sequence[str]) -> str:
    """Query whose answer is t if the first start of the database's program was interrupted, see `Database`."""
    # By the size of their files: no rows are counted, no table has to exist, and a table that was emptied by DELETE does not
    # count as one that never had a row.
    never_filled = [f"coalesce(pg_relation_size(to_regclass('public.{table}')), 0) = 0" for table in first_filled]
    return " AND ".join(["EXISTS (SELECT FROM pg_tables WHERE schemaname = 'public')", *never_filled])


def verifier(password: str, salt: bytes, iterations: int = 4096) -> str:
    """What PostgreSQL stores of a password for SCRAM-SHA-256 (RFC 5803): computed here, so that it never gets the password."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    stored, server = hashlib.sha256(client_key).digest(), hmac.digest(salted, b"Server Key", "sha256")
    encoded = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${iterations}:{encoded[0]}${encoded[1]}:{encoded[2]}"


def matches(password: str, found: str) -> bool:
    """Whether a role has this password. found: what `Existing` answers, "iterations:salt sha256-of-the-verifier"."""
    how, _, digest = found.partition(" ")
    iterations, _, salt = how.partition(":")
    if not (iterations.isdigit() and salt):
        return False
    wanted = verifier(password, base64.b64decode(salt), int(iterations))
    return hashlib.sha256(wanted.encode()).hexdigest() == digest


class Cluster(YesOrNo):
    """Whether the cluster exists, running or not."""

    def question(self, cluster: str) -> str:
        return f"[ ! -e {quoted(f'/etc/postgresql/{cluster}/postgresql.conf')} ] || echo yes"


@operation()
def cluster_exists(cluster: str, port: int) -> Generator[StringCommand, None, None]:
    """The cluster ("17/main") exists; it is not started. A new one gets this port.

    Usually Debian's package has created it. It cannot if the configured locale was never generated. If the data directory of
    a new cluster is not empty, this refuses, and never touches it.
    """
    if ask(Cluster, cluster=cluster):
        host.noop(f"the cluster {cluster} exists")
        return
    data, configuration = f"/var/lib/postgresql/{cluster}", f"/etc/postgresql/{cluster}/postgresql.conf"
    left = (
        f"{data} is not empty, and {configuration} is missing: restore it, or move the data away; nothing was touched"
    )
    yield script(
        f"[ ! -e {quoted(configuration)} ] || exit 0",
        f'[ -z "$(ls -A {quoted(data)} 2>/dev/null)" ] || {{ echo {quoted(left)} >&2; exit 1; }}',
        # The cluster's locale does not matter: each of our databases is created with its own.
        "export LC_ALL=C.UTF-8",
        f"cd / && pg_createcluster --port {port} --locale C.UTF-8 --encoding UTF8 {quoted(*cluster.split('/'))} "
        "-- --data-checksums >&2",
    )


class Existing(Fact[dict[str, str]]):
    """What exists: "role NAME" -> see `matches`, "database NAME" -> "owner encoding collation ctype", and "open NAME" of each
    database that every role may connect to; and "used NAME ADDRESS" of each address from which the owner of a database uses it,
    "here" being this machine.

    contents: databases to ask about, each with what `Database` says of it: first_filled, newest, belongs_to; adds
    "incomplete NAME" -> "t", "newest NAME" -> a number and "of NAME" -> a server name, where there are such.

    Empty while PostgreSQL is down.
    """

    def question(self, cluster: str, contents: Sequence[tuple[str, Sequence[str], str, str]] = ()) -> str:
        query = (
            # A fact's answer is printed by -vvv, so this asks for a hash of the verifier, not for the verifier.
            "SELECT 'role ' || rolname, coalesce(split_part(rolpassword, '$', 2) || ' ' || "  # noqa: S608 - a constant
            "encode(sha256(convert_to(rolpassword, 'UTF8')), 'hex'), '') FROM pg_authid UNION ALL "
            "SELECT 'database ' || datname, concat_ws(' ', pg_get_userbyid(datdba), "
            "pg_encoding_to_char(encoding), datcollate, datctype) FROM pg_database UNION ALL "
            f"SELECT 'open ' || datname, '' FROM pg_database WHERE {OPEN_TO_ALL} UNION ALL "
            "SELECT concat_ws(' ', 'used', d.datname, coalesce(host(client_addr), 'here')), '' FROM pg_stat_activity "
            "JOIN pg_database d ON d.oid = datid WHERE usesysid = d.datdba"
        )
        # All in one command, which takes longer to start than to ask. The databases come last, for they may not exist.
        commands = [query]
        for name, tables, newest, belongs_to in contents:
            commands += [f"\\connect {name}", f"SELECT 'incomplete {name}', {_incomplete(tables)}"]
            # psql goes on after an error, of a table that is not there.
            commands += [f"SELECT 'newest {name}', ({newest})"] if newest else []
            commands += [f"SELECT 'of {name}', ({belongs_to})"] if belongs_to else []
        queries = " ".join(f"-c {shlex.quote(command)}" for command in commands)
        return asked(cluster, f"-XAtq -F '\t' {queries}") + " 2>/dev/null; true"

    @staticmethod
    def default() -> dict[str, str]:
        return {}

    def answer(self, lines: list[str]) -> dict[str, str]:
        pairs = (line.partition("\t") for line in lines if line)
        return {name: value for name, _, value in pairs}


class Tables(Fact[int]):
    """How many tables a database has; 0 also while it does not exist or PostgreSQL is down."""

    def question(self, cluster: str, database: str) -> str:
        query = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        return asked(cluster, f"-XAtq -d {quoted(database)} -c {shlex.quote(query)}") + " 2>/dev/null; true"

    @staticmethod
    def default() -> int:
        return 0

    def answer(self, lines: list[str]) -> int:
        return int(lines[0]) if lines and lines[0].isdigit() else 0


class Accounts(Fact[dict[str, int]]):
    """How many accounts of people Synapse and MAS have in their databases; nothing of a database that does not answer.

    Those that Synapse has for MAS's accounts count for both. Deactivated ones, and those of application services, do not count.
    """

    def question(self, cluster: str, databases: Sequence[tuple[str, str]]) -> str:
        lines = ["ask() { " + asked(cluster, '-XAtq -d "$1" -c "$2"') + "; } 2>/dev/null"]
        for database, condition in databases:
            exists = f"SELECT count(*) FROM pg_database WHERE datname = '{database}'"  # noqa: S608 - a record's name
            counted = f"SELECT count(*) AS n FROM users WHERE {condition}"  # noqa: S608 - no input of anybody's
            # A table that does not exist must not be read at all.
            count = (
                "SELECT CASE WHEN to_regclass('public.users') IS NULL THEN '0' ELSE "
                f"(xpath('/row/n/text()', query_to_xml($sql${counted}$sql$, false, true, '')))[1]::text END"
            )
            lines.append(
                f'case "$(ask postgres {quoted(exists)})" in 0) echo "{database} 0";; 1) '
                f'echo "{database} $(ask {database} {quoted(count)})";; esac'
            )
        return "\n".join(lines)

    @staticmethod
    def default() -> dict[str, int]:
        return {}

    def answer(self, lines: list[str]) -> dict[str, int]:
        found = dict(line.split(" ", 1) for line in lines if " " in line)
        return {database: int(count) for database, count in found.items() if count.isdigit()}


@operation()
def exist(cluster: str, databases: Sequence[Database]) -> Generator[StringCommand, None, None]:
    """The databases and the roles that own them exist in the cluster.

    Refuses where a database exists with another owner, encoding or collation: it is never changed.
    """
    existing: dict[str, str] = ask(
        Existing,
        cluster=cluster,
        contents=tuple(
            (each.name, each.first_filled, each.newest, each.belongs_to) for each in databases if each.first_filled
        ),
    )
    as_superuser, functions = as_postgres(cluster), database_functions(cluster)
    for database in databases:
        if f"role {database.owner}" not in existing:
            yield script(
                f"{as_superuser} createuser --no-superuser --no-createdb --no-createrole {quoted(database.owner)}"
            )
        password = database.password.reveal() if database.password else None
        if password is not None and not matches(password, existing.get(f"role {database.owner}", "")):
            statement = f"ALTER ROLE \"{database.owner}\" PASSWORD '{verifier(password, os.urandom(16))}'"
            # Through standard input: a verifier is no password, but should not be shown in a process list either.
            yield script(f"{as_superuser} psql -XAtq -v ON_ERROR_STOP=1 -f -", stdin=statement)
        found = existing.get(f"database {database.name}")
        wanted = f"{database.owner} UTF8 C C"
        names = quoted(database.name, database.owner)
        if found is None:
            yield script(functions, f"create {names}")
        elif found != wanted:
            yield from refuse(
                f"the database {database.name} has owner, encoding, collation and character type {found!r}, "
                f"but needs {wanted!r}; it was not touched"
            )
        elif f"open {database.name}" in existing:
            yield script(functions, f"close {quoted(database.name)}")
        if found == wanted and existing.get(f"incomplete {database.name}") == "t":
            yield script(functions, f"recreate {names} {shlex.quote(_incomplete(database.first_filled))}")


class Watching(Fact[set[str]]):
    """Which of the cluster's roles may ask for all figures of it; none while PostgreSQL is down."""

    def question(self, cluster: str) -> str:
        query = "SELECT rolname FROM pg_roles WHERE pg_has_role(oid, 'pg_monitor', 'member')"
        return asked(cluster, f"-XAtq -c {shlex.quote(query)}") + " 2>/dev/null; true"

    @staticmethod
    def default() -> set[str]:
        return set()

    def answer(self, lines: list[str]) -> set[str]:
        return set(lines)


@operation()
def watched(cluster: str, roles: Sequence[str]) -> Generator[StringCommand, None, None]:
    """Roles exist that see how the cluster is, and no data: our databases let nobody in but their owners."""
    existing: dict[str, str] = ask(Existing, cluster=cluster)
    as_superuser = as_postgres(cluster)
    for role in roles:
        if f"role {role}" not in existing:
            yield script(f"{as_superuser} createuser --no-superuser --no-createdb --no-createrole {quoted(role)}")
        if role not in ask(Watching, cluster=cluster):
            grant = f'GRANT pg_monitor TO "{role}"'
            yield script(f"{as_superuser} psql -XAtqc {shlex.quote(grant)}")
