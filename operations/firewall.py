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
# What the kernel had before, as long as they are tried; in the directory of the lock.
BEFORE = "/run/matrix-metal/firewall.before"


class Confirmed(YesOrNo):
    """Whether the rules, and the administrator's own, are those that were confirmed last, and the kernel has them."""

    functions = "firewall"

    def question(self, own_rules: str) -> str:
        return f'{_variables(own_rules)}\nif is_confirmed "$(digest)" && {FIREWALL.works}; then echo yes; fi'


def functions(own_rules: str) -> str:
    """The shell functions of operations/sh/firewall.sh and their variables."""
    return f"{_variables(own_rules)}\n{shell_file('firewall')}"


def _variables(own_rules: str) -> str:
    values = {
        "new": NEW,
        "own": own_rules,
        "current": FIREWALL.path,
        "unit": FIREWALL.unit,
        "table": FIREWALL.table,
        "undo": UNDO,
        "before": BEFORE,
    }
    return " ".join(f"{name}={quoted(value)}" for name, value in values.items())


@operation()
def loaded(own_rules: str, sudo: bool) -> Generator[PyinfraCommand, None, None]:
    """The rules are loaded, now and at boot.

    own_rules: the directory with the administrator's own.
    sudo: whether root has to be asked for.
    """
    shell = functions(own_rules)
    if not ask(Confirmed, own_rules=own_rules):
        yield script(shell, "try_new")
        yield FunctionCommand(_confirm, (shell, sudo), {})
        yield script(shell, "confirmed")
    yield from units.running._inner(unit=FIREWALL.unit, reads=[FIREWALL.path, FIREWALL.drop_in], ready=FIREWALL.works)


def _confirm(state: State, host: Host, shell: str, sudo: bool) -> bool:
    """What a new connection does. If none can be made, the machine says so over the one that there is."""
    reached_again(host, script(shell, "confirm"), sudo)
    return True
