"""The machines of a deployment, for commands that deploy nothing: inventory, settings, vault and connection are the deploy's."""

import difflib
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory

from compat import Refused, answer_of, cause, connect, read_inventory
from operations.machine import Machine as LookedAt
from operations.machine import MachineState
from operations.preflight import check_choices
from operations.shell import Fact, answer_lines, question_command, quoted
from roles import RoleName
from settings import Settings, chosen_for
from vault import WithoutSecrets

ROOT = Path(__file__).parent.parent
T = TypeVar("T")
# What a command prints on a machine where we cannot become root.
NOT_ROOT = "not root:"


def inventory_path(name: str, root: Path = ROOT) -> Path:
    """The inventory of a deployment: `prod` is inventories/prod.py; a path is taken as it is. Raises Refused."""
    if "/" in name or name.endswith(".py"):
        path = Path(name).expanduser().resolve()
        if not path.is_file():
            raise Refused(f"there is no inventory {name}")
        return path
    path = root / "inventories" / f"{name}.py"
    if not path.is_file():
        there = sorted(file.stem for file in path.parent.glob("*.py"))
        near = difflib.get_close_matches(name, there, n=1)
        hint = f"did you mean {near[0]}? There" if near else "there"
        raise Refused(f"there is no inventories/{name}.py: {hint} are: {', '.join(there)}; or give a path")
    return path


class Deployment:
    """A deployment by its inventory. Nothing is read before it is needed, and no machine connected to."""

    def __init__(self, name: str) -> None:
        self.path = inventory_path(name)
        # How it is called on the command line, and where: paths there are relative to it.
        self.name, self.called_in = name, Path.cwd()

    @cached_property
    def machines(self) -> Inventory:
        """The machines with their group data, which was not checked."""
        return read_inventory(self.path)

    @property
    def vault_path(self) -> Path:
        """Where its secrets are. The other settings may be wrong."""
        chosen = {str(host.data.vault) for host in self.machines if host.data.vault}
        return Path(chosen.pop()).expanduser() if chosen else ROOT / "inventories" / f"{self.path.stem}.vault"

    def machine(self, role: RoleName) -> "Machine":
        """The machine that plays a role, which only one does. Raises Refused, also for mistakes in the settings."""
        return self.machines_with(role)[0]

    def machines_with(self, role: RoleName) -> list["Machine"]:
        """The machines that play a role, one at least. Raises Refused, also for mistakes in the settings."""
        check_choices(self.machines)
        settings = {host: chosen_for(host, MachineState()) for host in self.machines}
        if found := [Machine(host, each) for host, each in settings.items() if each.here(role)]:
            return found
        raise Refused(f"{self.path.name} gives no machine the role {role}, which this needs")

    @property
    def command_name(self) -> str:
        """The inventory as it is given to pyinfra in the directory of deploy.py."""
        return str(self.path.relative_to(ROOT)) if self.path.is_relative_to(ROOT) else str(self.path)

    def every_machine(self) -> list["Machine"]:
        """All machines, for a look that needs no secret. Raises Refused for mistakes in the settings."""
        check_choices(self.machines)
        # Names, ports and units are the same whatever the machine is.
        unknown = MachineState(release="13", architecture="amd64")
        machines = [Machine(host, chosen_for(host, unknown)) for host in self.machines]
        for machine in machines:
            machine.settings.vault = WithoutSecrets()
        return machines

    def settings_of(self, machine: "Machine", state: MachineState) -> Settings:
        """The settings of a machine with its state, without secrets."""
        settings = chosen_for(machine.host, state)
        settings.vault = WithoutSecrets()
        return settings

    def known_machines(self) -> "list[Machine]":
        """All machines, with the state that each says it has. Raises Refused, also for mistakes in the settings."""
        check_choices(self.machines)
        machines = [Machine(host, chosen_for(host, MachineState())) for host in self.machines]
        for machine in machines:
            machine.settings = chosen_for(machine.host, machine.ask(LookedAt))
        return machines


class Machine:
    """A machine of a deployment. The connection is made when it is first needed, as in a deploy."""

    def __init__(self, host: Host, settings: Settings) -> None:
        self.host, self.settings = host, settings
        self.name = str(host.name)

    def run(self, program: str, stdin: str = "") -> list[str]:
        """Run a shell program as root, in the environment of a deploy's commands; returns the lines that it prints.

        stdin is the place for secrets: every user of the machine can read command lines. Raises Refused if it fails.
        """
        if not self.host.connected:
            connect(self.host)
        as_root = (
            f'[ "$(id -u)" = 0 ] && exec sh -c {quoted(program)}\n'
            f'sudo -n true 2>/dev/null || {{ echo "{NOT_ROOT} $(id -un)"; exit 1; }}\n'
            f"exec sudo -n sh -c {quoted(program)}"
        )
        done, printed, errors = answer_of(self.host, question_command(as_root), stdin)
        lines = answer_lines(printed)
        if lines is None:
            raise Refused(f"{self.name}: the user's shell there does not run the commands that it is given")
        if not done and lines and lines[-1].startswith(NOT_ROOT):
            user = lines[-1].removeprefix(NOT_ROOT).strip()
            raise Refused(f"{self.name}: connected as {user}, who is not root and has no sudo without a password")
        if not done:
            raise Refused(f"{self.name}: {cause(errors) or 'a command failed there'}")
        return lines

    def ask(self, fact: type[Fact[T]], **arguments: Any) -> T:
        """The answer of the machine to a question of a deploy's operations. Raises Refused."""
        lines = self.run(fact().question(**arguments))
        answer: T = fact().answer(lines) if lines else fact.default()
        return answer

    def close(self) -> None:
        if self.host.connected:
            self.host.disconnect()
