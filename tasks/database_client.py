"""A database on another machine: known by its certificate, so that nobody in between can pretend to be it."""

from pyinfra import host, inventory

from operations import certificates
from settings import settings_of
from settings.postgres import DATABASE_AUTHORITY, Postgres, database_server

server = inventory.get_host(database_server(settings_of(host)) or "")
certificates.copied(
    name="Know the database server by its certificate",
    source=server,
    certificate=settings_of(server).view(Postgres).certificate,
    path=DATABASE_AUTHORITY,
)
