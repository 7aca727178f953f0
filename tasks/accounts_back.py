"""For `manage.py NAME mas migrate`, when it failed: Synapse has its accounts as before, and MAS is stopped."""

from pyinfra import host

from operations import accounts
from roles import MAS
from settings import settings_of
from settings.postgres import Postgres

settings = settings_of(host)
assert MAS.database

accounts.put_back(
    name="Stop the Matrix Authentication Service",
    cluster=settings.view(Postgres).cluster if settings.here("postgres") else None,
    database=MAS.database.name,
    owner=MAS.database.owner,
)
