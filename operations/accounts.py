"""Accounts that move from Synapse to the Matrix Authentication Service, for `manage.py NAME mas migrate`."""

from collections.abc import Generator, Sequence
from urllib.parse import quote

from pyinfra.api.command import PyinfraCommand

from operations.databases import as_postgres, database_functions
from operations.look import operation
from operations.shell import quoted, script, shell_file

# On Synapse's machine from the beginning of a migration to its end: without it nothing is put back.
MIGRATION = "/etc/matrix-metal/migration"


@operation()
def begun() -> Generator[PyinfraCommand, None, None]:
    """The machine has the mark that a migration has begun. What an interrupted one has left running is ended."""
    yield script(shell_file("migration"), "end_earlier", f"touch {MIGRATION}")


@operation()
def backed_up(cluster: str, database: str, backup: str) -> Generator[PyinfraCommand, None, None]:
    """The database is dumped to a file of this name in COPIES, for pg_restore. Refuses if it does not fit there."""
    yield script(database_functions(cluster), f"dump {quoted(database, f'{backup}.dump')}")


@operation()
def emptied(cluster: str, database: str, owner: str) -> Generator[PyinfraCommand, None, None]:
    """The database is empty: what an interrupted migration has left is removed."""
    yield script(
        database_functions(cluster),
        "systemctl stop mas.service 2>/dev/null || true",
        # The program of an interrupted migration may still be connected to it.
        f"as_superuser dropdb --if-exists --force {quoted(database)}",
        f"create {quoted(database, owner)}",
    )


@operation()
def moved(
    configuration: Sequence[str],
    host: str,
    port: int,
    database: str,
    owner: str,
    cluster: str | None,
    passwords: str | None,
    authority: str | None,
) -> Generator[PyinfraCommand, None, None]:
    """MAS has Synapse's accounts, sessions and passwords; Synapse is stopped. If that fails, Synapse goes on with them.

    Synapse is started at the latest when the run is over, even if this computer is gone.

    configuration: MAS's configuration files. host, port, database, owner: of Synapse's database; cluster:
    where it is, on this machine. If it is on another: passwords, a password file; authority, the certificate it must present.
    """
    user, where = ("mas", quote(host, safe="")) if cluster else (owner, host)
    options = "" if cluster else f"?sslmode=verify-full&sslrootcert={authority}"
    lines = (
        "set -eu",
        f"configuration={quoted(':'.join(configuration))} passwords={quoted(passwords or '')}",
        f"borrowed={quoted(owner if cluster else '')}",
        f"uri={quoted(f'postgresql://{user}@{where}:{port}/{database}{options}')}",
        database_functions(cluster or ""),
        shell_file("accounts"),
        "move",
    )
    program = "\n".join(lines)
    yield script(shell_file("migration"), f"run_guarded {quoted(program)}")


@operation()
def put_back(cluster: str | None, database: str, owner: str) -> Generator[PyinfraCommand, None, None]:
    """MAS does not run, and has no database. cluster: where that is, on this machine."""
    yield script(
        shell_file("migration"),
        "end_earlier",
        "systemctl disable --now --quiet mas.service 2>/dev/null || true",
        "rm -f /etc/systemd/system/mas.service /etc/matrix-synapse/secrets/mas",
        "systemctl daemon-reload",
        # On another machine, MAS may be about to stop.
        *([f"{as_postgres(cluster)} dropdb --if-exists --force {quoted(database)}"] if cluster else []),
        *([f"{as_postgres(cluster)} dropuser --if-exists {quoted(owner)}"] if cluster else []),
        f"rm -f {MIGRATION}",
    )
