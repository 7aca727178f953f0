"""How an operation refuses to go on."""

from collections.abc import Generator

from pyinfra.api import StringCommand
from pyinfra.context import host, state

from compat import Refused
from operations.shell import quoted, script

__all__ = ["Refused", "refusing"]


def refusing(message: str) -> Generator[StringCommand, None, None]:
    """What an operation yields that must not go on: one line, and this machine's run ends there.

    While pyinfra only looks (without -y, before it asks), the whole run ends, with nothing touched.
    """
    if not state.is_executing:
        raise Refused(f"{host.name}: {message}")
    yield script(f"echo {quoted(message)} >&2", "exit 1")
