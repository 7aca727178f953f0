"""What ties a machine to its deployment: the vault on this side, a marker on the other."""

from collections.abc import Generator

from pyinfra.api import FunctionCommand
from pyinfra.context import host

from operations.look import operation
from vault import Vault


@operation()
def vault_kept(vault: Vault) -> Generator[FunctionCommand, None, None]:
    """Secrets made for this run are in the vault's file, before any machine gets to know them."""
    if not vault.unsaved:
        host.noop("no new secrets")
        return
    yield FunctionCommand(vault.save, (), {})
