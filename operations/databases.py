"""PostgreSQL roles and databases, over the Unix socket as the superuser."""

import shlex
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from pyinfra.api import FactBase, OperationError, StringCommand, operation
from pyinfra.context import host

from operations.shell import quoted, script

AS_POSTGRES = "cd / && runuser -u postgres --"


@dataclass(frozen=True)
class Database:
    """A database and the role that owns it, which the system user of the same name may use without a password.

    Encoding UTF8, collation and character type C: what Synapse insists on, and the only ones that an upgrade of the
    operating system cannot change under an index.
    """

    name: str
    owner: str


class Existing(FactBase[dict[str, str]]):
    """What exists: "role NAME" -> "" and "database NAME" -> "owner encoding collation ctype". Empty while PostgreSQL is down."""

    def command(self) -> str:
        query = (
            "SELECT 'role ' || rolname, '' FROM pg_roles UNION ALL "
            "SELECT 'database ' || datname, concat_ws(' ', pg_get_userbyid(datdba), "
            "pg_encoding_to_char(encoding), datcollate, datctype) FROM pg_database"
        )
        return f"{AS_POSTGRES} psql -XAtq -F '\t' -c {shlex.quote(query)} 2>/dev/null; true"

    @staticmethod
    def default() -> dict[str, str]:
        return {}

    def process(self, output: list[str]) -> dict[str, str]:
        pairs = (line.partition("\t") for line in output if line)
        return {name: value for name, _, value in pairs}


@operation()
def exist(databases: Sequence[Database]) -> Generator[StringCommand, None, None]:
    """The databases and the roles that own them exist.

    Raises OperationError where a database exists with another owner, encoding or collation: it is never changed.
    """
    existing: dict[str, str] = host.get_fact(Existing)
    for database in databases:
        if f"role {database.owner}" not in existing:
            yield script(
                f"{AS_POSTGRES} createuser --no-superuser --no-createdb --no-createrole {quoted(database.owner)}"
            )
        found = existing.get(f"database {database.name}")
        wanted = f"{database.owner} UTF8 C C"
        if found is None:
            yield script(
                f"{AS_POSTGRES} createdb --owner={quoted(database.owner)} --encoding=UTF8 --locale=C "
                f"--template=template0 {quoted(database.name)}"
            )
        elif found != wanted:
            raise OperationError(
                f"the database {database.name} has owner, encoding, collation and character type {found!r}, "
                f"but needs {wanted!r}; it was not touched"
            )
