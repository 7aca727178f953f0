"""A database on another machine: known by its certificate, so that nobody in between can pretend to be it."""

from pyinfra import host, inventory

from operations import certificates
from settings import DATABASE_AUTHORITY, settings_of

server = inventory.get_host(settings_of(host).database_server or "")
certificates.copied(
    name="Know the database server by its certificate",
    source=server,
    certificate=settings_of(server).postgres.certificate,
    path=DATABASE_AUTHORITY,
)
