"""How a run says no."""

import sys
from collections.abc import Generator

import click
from pyinfra.api import StringCommand
from pyinfra.api.exceptions import DeployError
from pyinfra.context import host, state

from operations.shell import quoted, script

# What pyinfra's command line shows without a traceback. Only its own process may import it: it changes a whole process to
# gevent, which tests and the demo are not made for.
if "pyinfra_cli" in sys.modules:
    from pyinfra_cli.exceptions import CliError as Shown
else:
    Shown = click.ClickException


class Refused(DeployError, Shown):  # type: ignore[misc]
    """The run stops before anything is touched. The text is shown as it is, without a traceback; exit status 1."""


def refusing(message: str) -> Generator[StringCommand, None, None]:
    """What an operation yields that must not go on: one line, and this machine's run ends there.

    While pyinfra only looks (without -y, before it asks), the whole run ends, with nothing touched.
    """
    if not state.is_executing:
        raise Refused(f"{host.name}: {message}")
    yield script(f"echo {quoted(message)} >&2", "exit 1")
