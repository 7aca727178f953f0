"""Stopping a run from within an operation, with one line."""

from collections.abc import Generator

from pyinfra.api import StringCommand
from pyinfra.context import host, state

from compat import Refused
from operations.shell import quoted, script

__all__ = ["Refused", "refuse"]


def refuse(message: str) -> Generator[StringCommand, None, None]:
    """What an operation yields to stop: it prints the message, and the run ends on this machine.

    While pyinfra only plans (a dry run, or before it asks for confirmation), the whole run ends and nothing is touched.
    """
    if not state.is_executing:
        raise Refused(f"{host.name}: {message}")
    yield script(f"echo {quoted(message)} >&2", "exit 1")
