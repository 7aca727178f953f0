"""PostgreSQL: Debian's cluster main, reached over the Unix socket, where the system user owns the database.

Roles on other machines reach it over TLS, with a password of which PostgreSQL has only a verifier.
"""

from pyinfra import host

from operations import certificates, databases, files, units
from operations.files import Directory, Template
from roles import POSTGRES
from settings import settings_of
from settings.postgres import Postgres

postgres = settings_of(host).view(Postgres)
[UNIT] = POSTGRES.units
CONFIGURATION = f"{postgres.directory}/conf.d/matrix-metal.conf"
ACCESS = f"{postgres.directory}/matrix-metal.hba.conf"
KEY = f"{postgres.directory}/matrix-metal.key"
DROP_INS = f"/etc/systemd/system/{postgres.unit}.d"
DROP_IN = f"{DROP_INS}/matrix-metal.conf"

databases.cluster_exists(name="Create the PostgreSQL cluster", cluster=postgres.cluster, port=postgres.port)
if postgres.clients:
    certificates.self_signed(
        name="Create PostgreSQL's certificate for other machines",
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
    ready=UNIT.health,
    enabled=False,
    # pg_ctlcluster waits for two seconds after the cluster has started.
    slow_to_start=True,
    own=[path.format(version=postgres.version) for path in UNIT.own],
    own_check=UNIT.check.replace("{version}", postgres.version),
)
databases.exist(name="Create the databases", cluster=postgres.cluster, databases=postgres.databases)
