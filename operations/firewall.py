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

    functions = "firewall"

    def question(self, own_rules: str) -> str:
        return f"{_variables(own_rules)}\nif is_confirmed; then echo yes; fi"


def _variables(own_rules: str) -> str:
    values = {
        "new": NEW,
        "own": own_rules,
        "current": FIREWALL.path,
        "unit": FIREWALL.unit,
        "table": FIREWALL.table,
        "undo": UNDO,
    }
    return " ".join(f"{name}={quoted(value)}" for name, value in values.items())


@operation()
def loaded(own_rules: str, sudo: bool) -> Generator[PyinfraCommand, None, None]:
    """The rules are loaded, now and at boot.

    own_rules: the directory with the administrator's own.
    sudo: whether root has to be asked for.
    """
    functions = f"{_variables(own_rules)}\n{shell_file('firewall')}"
    if not ask(Confirmed, own_rules=own_rules):
        yield script(functions, "try_new")
        yield FunctionCommand(_confirm, (functions, sudo), {})
        yield script(functions, "confirmed")
    yield from units.running._inner(unit=FIREWALL.unit, reads=[FIREWALL.path, FIREWALL.drop_in], ready=FIREWALL.works)


def _confirm(state: State, host: Host, functions: str, sudo: bool) -> bool:
    """What a new connection does. If none can be made, the machine says so over the one that there is."""
    reached_again(host, script(functions, "confirm"), sudo)
    return True
