"""A database on another machine: its certificate is copied here, so that nobody on the network can impersonate it."""

from pyinfra import host, inventory

from operations import certificates
from settings import settings_of
from settings.postgres import DATABASE_AUTHORITY, Postgres, database_server

server = inventory.get_host(database_server(settings_of(host)) or "")
certificates.copied(
    name="Trust the database server's certificate",
    source=server,
    certificate=settings_of(server).view(Postgres).certificate,
    path=DATABASE_AUTHORITY,
)
