"""pyinfra reads this first: where it lacks a setting for what we need, its own function is replaced."""

import sys

import pyinfra_cli.cli
from pyinfra.api.state import State

from operations.preflight import choices_first


def in_the_order_of_the_code(state: State) -> list[str]:
    """Operations as they stand in deploy.py and the tasks, whatever the machine.

    pyinfra keeps only each machine's own order, so that the homeserver would look for a database that another machine does
    not have yet.
    """
    return sorted(state.op_meta, key=lambda operation: state.op_meta[operation].op_order)


if "deploy.py" in sys.argv:
    # Wrong choices are said before any machine is connected to.
    pyinfra_cli.cli.connect_all = choices_first(pyinfra_cli.cli.connect_all)
    State.get_op_order = in_the_order_of_the_code  # type: ignore[method-assign]
