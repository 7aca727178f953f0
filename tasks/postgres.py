"""PostgreSQL: Debian's own cluster, reached over the Unix socket by system users of the same name.

Roles on other machines reach it over TLS, with a password that it knows only the verifier of, and nobody else does.
"""

from pyinfra import host

from operations import certificates, databases, files, units
from operations.files import Directory, Template
from roles import POSTGRES
from settings import settings_of
from settings.postgres import Postgres

postgres = settings_of(host).view(Postgres)
CONFIGURATION = f"{postgres.directory}/conf.d/matrix-metal.conf"
ACCESS = f"{postgres.directory}/matrix-metal.hba.conf"
KEY = f"{postgres.directory}/matrix-metal.key"
DROP_INS = f"/etc/systemd/system/{postgres.unit}.d"
DROP_IN = f"{DROP_INS}/matrix-metal.conf"

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
        Template(DROP_IN, "postgres/override.conf", mode="644", values=values),
    ],
)
units.running(
    name="Run PostgreSQL",
    unit=postgres.unit,
    reads=[CONFIGURATION, ACCESS, DROP_IN, *([postgres.certificate, KEY] if postgres.clients else [])],
    ready=POSTGRES.units[0].health,
    enabled=False,
    # pg_ctlcluster watches the cluster for two seconds more.
    slow_to_start=True,
)
databases.exist(name="Create the databases", cluster=postgres.cluster, databases=postgres.databases)
