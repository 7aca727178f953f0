"""PostgreSQL: Debian's cluster main, reached over the Unix socket, where the system user owns the database.

Roles on other machines reach it over TLS, with a password of which PostgreSQL has only a verifier.
"""

from pyinfra import host

from operations import databases, units
from roles import POSTGRES
from settings import settings_of
from settings.postgres import Postgres

postgres = settings_of(host).view(Postgres)
[UNIT] = POSTGRES.units

units.running(
    name="Run PostgreSQL",
    unit=postgres.unit,
    reads=postgres.files,
    # Whoever uses the database goes on when a role comes or goes.
    rereads=[postgres.access],
    ready=UNIT.health,
    enabled=False,
    # pg_ctlcluster waits for two seconds after the cluster has started.
    slow_to_start=True,
    own=[path.format(version=postgres.version) for path in UNIT.own],
    own_check=UNIT.check.replace("{version}", postgres.version),
)
databases.exist(name="Create the databases", cluster=postgres.cluster, databases=postgres.databases)
