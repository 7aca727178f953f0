"""The firewall: new rules are confirmed by a new connection to the machine, or the machine takes them back by itself."""

from collections.abc import Generator

from pyinfra.api import FunctionCommand
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.host import Host
from pyinfra.api.state import State

from compat import reached_again
from operations import units
from operations.filters import FIREWALL
from operations.look import ask, operation
from operations.shell import YesOrNo, quoted, script, shell_file

# The rules of this run, until they are confirmed.
NEW = "/etc/matrix-metal/firewall.new.nft"
UNDO = "matrix-metal-firewall-undo"


class Confirmed(YesOrNo):
    """Whether the rules, and the administrator's own, are those that were confirmed last."""

    def question(self, own_rules: str) -> str:
        current = quoted(FIREWALL.path)
        return f'cmp -s {quoted(NEW)} {current} && [ -z "$(find {quoted(own_rules)} -newer {current})" ] && echo yes'


def _shell(came_by: str) -> str:
    values = {
        "new": NEW,
        "current": FIREWALL.path,
        "unit": FIREWALL.unit,
        "table": FIREWALL.table,
        "undo": UNDO,
        "came_by": came_by,
    }
    return " ".join(f"{name}={quoted(value)}" for name, value in values.items()) + "\n" + shell_file("firewall")


@operation()
def loaded(came_by: str, own_rules: str, sudo: bool) -> Generator[PyinfraCommand, None, None]:
    """The rules are loaded, now and at boot.

    came_by: the address that this run's connection comes from, or "". own_rules: the directory with the administrator's own.
    sudo: whether root has to be asked for.
    """
    functions = _shell(came_by)
    if not ask(Confirmed, own_rules=own_rules):
        yield script(functions, "try_new")
        yield FunctionCommand(_confirm, (functions, sudo), {})
        yield script(functions, "confirmed")
    running = list(
        units.running._inner(unit=FIREWALL.unit, reads=[FIREWALL.path, FIREWALL.drop_in], ready=FIREWALL.works)
    )
    if running:
        yield from running
        yield script(functions, "admit")


def _confirm(state: State, host: Host, functions: str, sudo: bool) -> bool:
    """What a new connection does. If none can be made, the machine says so over the one that there is."""
    reached_again(host, script(functions, "confirm"), sudo)
    return True
