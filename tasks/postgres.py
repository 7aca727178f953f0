"""PostgreSQL: Debian's own cluster, reached over the Unix socket by system users of the same name."""

from pyinfra import host

from operations import databases, files, packages, units
from operations.databases import Database
from operations.files import Directory, Template
from settings import settings_of

postgres = settings_of(host).postgres
CONFIGURATION = f"{postgres.directory}/conf.d/matrix-metal.conf"

files.present(
    name="Let new PostgreSQL clusters have data checksums",
    entries=[
        Directory("/etc/postgresql-common", mode="755"),
        Directory("/etc/postgresql-common/createcluster.d", mode="755"),
        Template("/etc/postgresql-common/createcluster.d/matrix-metal.conf", "postgres/createcluster.conf", mode="644"),
    ],
)
packages.installed(name="Install PostgreSQL", packages=[f"postgresql-{postgres.version}"], held=[postgres.unit])
files.present(
    name="Configure PostgreSQL",
    entries=[Template(CONFIGURATION, "postgres/matrix-metal.conf", mode="644", values={"postgres": postgres})],
)
units.running(
    name="Run PostgreSQL",
    unit=postgres.unit,
    reads=[CONFIGURATION],
    ready=f"{databases.AS_POSTGRES} psql -XAtqc 'SELECT 1'",
    enabled=False,
)
databases.exist(
    name="Create the databases",
    databases=[Database(name, owner) for name, owner in postgres.databases],
)
