"""For `manage.py NAME mas migrate`, before anything is changed: a backup of Synapse's database, and none of MAS's yet."""

from pyinfra import host

from operations import accounts
from roles import MAS, SYNAPSE
from settings import settings_of
from settings.postgres import Postgres

cluster = settings_of(host).view(Postgres).cluster
assert MAS.database and SYNAPSE.database

accounts.backed_up(
    name="Back up Synapse's database",
    cluster=cluster,
    database=SYNAPSE.database.name,
    backup="synapse-before-mas",
)
accounts.emptied(
    name="Empty MAS's database",
    cluster=cluster,
    database=MAS.database.name,
    owner=MAS.database.owner,
)
