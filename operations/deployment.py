"""The vault on this computer, and the marker on each machine that names its deployment."""

import json
from collections.abc import Generator

from pyinfra.api import FunctionCommand
from pyinfra.api.command import PyinfraCommand
from pyinfra.context import host

from operations import files
from operations.files import Text
from operations.look import ask, operation
from operations.machine import KEY_NOTE, MARKER, SIGNING_KEY
from operations.refusal import refuse
from operations.shell import YesOrNo, script
from vault import Vault, VaultError


@operation()
def vault_saved(vault: Vault) -> Generator[PyinfraCommand, None, None]:
    """Secrets generated in this run are saved in the vault, before any machine gets them."""
    if not vault.unsaved:
        host.noop("no new secrets")
        return
    problems: list[str] = []
    yield FunctionCommand(_save, (vault, problems), {})
    if problems:
        yield from refuse(problems[0])


def _save(vault: Vault, problems: list[str]) -> None:
    try:
        vault.save()
    except VaultError as error:
        problems.append(str(error))


def marker(server_name: str, vault: Vault, database: tuple[str, int]) -> Text:
    """The file that tells a later run which deployment the machine belongs to.

    database: host and port of Synapse's database, so that a later run never gives it an empty one instead; ("", 0) for none.
    """
    host, port = database
    content = {"server_name": server_name, "vault": vault.id}
    if host:
        content |= {"database": host, "database_port": str(port)}
    return Text(MARKER, json.dumps(content) + "\n", mode="644")


@operation()
def database_recorded(
    server_name: str, vault: Vault, database: tuple[str, int]
) -> Generator[PyinfraCommand, None, None]:
    """The marker names Synapse's database; done once Synapse runs with it."""
    yield from files.present._inner(entries=[marker(server_name, vault, database)])


class KeyRecorded(YesOrNo):
    """Whether the digest of Synapse's signing key is recorded."""

    def question(self) -> str:
        return f"[ ! -s {KEY_NOTE} ] || echo yes"


@operation()
def signing_key_recorded() -> Generator[PyinfraCommand, None, None]:
    """A later run notices if the signing key is lost or replaced."""
    if ask(KeyRecorded):
        host.noop("the signing key is recorded")
        return
    yield script(f"sha256sum <{SIGNING_KEY} >{KEY_NOTE}.new", f"mv -f {KEY_NOTE}.new {KEY_NOTE}")
