"""Synapse answers. When it starts for the first time it makes its tables, while other services are configured."""

from pyinfra import host

from operations import deployment, units
from roles import CHECK_SYNAPSE, SYNAPSE
from settings import settings_of
from settings.synapse import Synapse

settings = settings_of(host)
[UNIT] = SYNAPSE.units
database = settings.view(Synapse).database

units.started(name="Wait for Synapse", unit=UNIT.name, check=f"( {CHECK_SYNAPSE} )", ready=UNIT.health, patience=180)
deployment.database_recorded(
    name="Record where Synapse's database is",
    server_name=settings.server_name,
    vault=settings.vault,
    database=(database.host, database.port),
)
deployment.signing_key_recorded(name="Record which signing key Synapse has")
