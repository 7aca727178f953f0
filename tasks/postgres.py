"""PostgreSQL: Debian's own cluster, reached over the Unix socket by system users of the same name.

Roles on other machines reach it over TLS, with a password that it knows only the verifier of, and nobody else does.
"""

from pyinfra import host

from operations import certificates, databases, files, packages, units
from operations.files import Directory, Template
from settings import settings_of

postgres = settings_of(host).postgres
CONFIGURATION = f"{postgres.directory}/conf.d/matrix-metal.conf"
ACCESS = f"{postgres.directory}/matrix-metal.hba.conf"
KEY = f"{postgres.directory}/matrix-metal.key"
DROP_INS = f"/etc/systemd/system/{postgres.unit}.d"
FENCE = f"{DROP_INS}/matrix-metal.conf"

files.present(
    name="Let new PostgreSQL clusters have data checksums",
    entries=[
        Directory("/etc/postgresql-common", mode="755"),
        Directory("/etc/postgresql-common/createcluster.d", mode="755"),
        Template("/etc/postgresql-common/createcluster.d/matrix-metal.conf", "postgres/createcluster.conf", mode="644"),
    ],
)
packages.installed(
    name="Install PostgreSQL", packages=[f"postgresql-{postgres.version}", "openssl"], held=[postgres.unit]
)
databases.cluster_exists(name="Make the cluster", cluster=postgres.cluster, port=postgres.port)
if postgres.clients:
    certificates.self_signed(
        name="Give PostgreSQL a certificate for other machines",
        certificate=postgres.certificate,
        key=KEY,
        address=postgres.address,
        user="postgres",
    )
values = {"postgres": postgres, "access": ACCESS, "key": KEY}
files.present(
    name="Configure PostgreSQL",
    entries=[
        Template(ACCESS, "postgres/matrix-metal.hba.conf", mode="640", group="postgres", values=values),
        Template(CONFIGURATION, "postgres/matrix-metal.conf", mode="644", values=values),
        Directory(DROP_INS, mode="755"),
        Template(FENCE, "postgres/fence.conf", mode="644", values=values),
    ],
)
units.running(
    name="Run PostgreSQL",
    unit=postgres.unit,
    reads=[CONFIGURATION, ACCESS, FENCE, *([postgres.certificate, KEY] if postgres.clients else [])],
    ready=f"{databases.as_postgres(postgres.cluster)} psql -XAtqc 'SELECT 1'",
    enabled=False,
    # pg_ctlcluster watches the cluster for two seconds more.
    slow_to_start=True,
)
databases.exist(name="Create the databases", cluster=postgres.cluster, databases=postgres.databases)
