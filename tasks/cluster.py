"""PostgreSQL's cluster main and its configuration, which tasks/postgres.py runs. A restore needs both before it has data."""

from pyinfra import host

from operations import certificates, databases, files
from operations.files import Copy, Directory, Template
from settings import settings_of
from settings.backup import ARCHIVE_TIMEOUT, KEEP_WAL, PROGRAMS, SPOOL, Backup
from settings.postgres import Postgres

settings = settings_of(host)
postgres = settings.view(Postgres)
backup = settings.view(Backup) if settings.here("backup") else None
if backup and backup.rehearsal:
    # What PostgreSQL logs there is nothing to back up.
    backup = None

databases.cluster_exists(name="Create the PostgreSQL cluster", cluster=postgres.cluster, port=postgres.port)
if postgres.clients:
    certificates.self_signed(
        name="Create PostgreSQL's certificate for other machines",
        certificate=postgres.certificate,
        key=postgres.key,
        address=postgres.address,
        user="postgres",
    )
values = {
    "postgres": postgres,
    "backup": backup,
    "keep_wal": KEEP_WAL,
    "spool": SPOOL,
    "archive_timeout": ARCHIVE_TIMEOUT,
}
kept = [
    Directory(PROGRAMS, mode="755"),
    Copy(KEEP_WAL, "backup/keep-for-pgbackrest", mode="755"),
    Directory(SPOOL, mode="700", user="postgres", group="postgres"),
]
files.present(
    name="Configure PostgreSQL",
    entries=[
        *(kept if backup else []),
        Template(postgres.access, "postgres/matrix-metal.hba.conf", mode="640", group="postgres", values=values),
        Template(postgres.configuration, "postgres/matrix-metal.conf", mode="644", values=values),
        Directory(postgres.drop_in.rpartition("/")[0], mode="755"),
        Template(postgres.drop_in, "postgres/override.conf", mode="644", values=values),
    ],
)
