"""What ties a machine to its deployment: the vault on this side, a marker on the other."""

import json
from collections.abc import Generator

from pyinfra.api import FunctionCommand
from pyinfra.api.command import PyinfraCommand
from pyinfra.context import host

from operations import files
from operations.files import Text
from operations.look import operation
from operations.machine import MARKER
from vault import Vault


@operation()
def vault_kept(vault: Vault) -> Generator[FunctionCommand, None, None]:
    """Secrets made for this run are in the vault's file, before any machine gets to know them."""
    if not vault.unsaved:
        host.noop("no new secrets")
        return
    yield FunctionCommand(vault.save, (), {})


def marker(server_name: str, vault: Vault, database: tuple[str, int]) -> Text:
    """The file that tells a later run which deployment the machine belongs to.

    database: host and port of Synapse's database, so that it is never given an empty one for it; ("", 0) while it has none.
    """
    host, port = database
    content = {"server_name": server_name, "vault": vault.id}
    if host:
        content |= {"database": host, "database_port": str(port)}
    return Text(MARKER, json.dumps(content) + "\n", mode="644")


@operation()
def database_remembered(
    server_name: str, vault: Vault, database: tuple[str, int]
) -> Generator[PyinfraCommand, None, None]:
    """The marker says where Synapse has its database, once it runs there. It is the marker of `marker`, otherwise."""
    yield from files.present._inner(entries=[marker(server_name, vault, database)])
