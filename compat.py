"""Everything that depends on the internals of pyinfra 3.10, each with the reason. config.py calls it, before anything else.

Four methods of the run's State are wrapped, because pyinfra's command line offers no other hook: config.py is read before
State.init, which discards callbacks added earlier, and deploy.py is read after every machine has been connected to.
Two functions that pyinfra calls for each operation are replaced by faster ones, and one that it calls for each setting.
`differences` lists what another version of pyinfra has changed; nothing is deployed with such a version.
"""

import inspect
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol

import click
import pyinfra
from paramiko import Channel, ChannelException, SSHException, Transport
from pyinfra.api import Config, StringCommand, util
from pyinfra.api.exceptions import ConnectError, DeployError, PyinfraError
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory
from pyinfra.api.operation import OperationMeta
from pyinfra.api.state import BaseStateCallback, State, StateOperationMeta, StateStage
from pyinfra.connectors.local import LocalConnector
from pyinfra.connectors.ssh import SSHConnector
from pyinfra.connectors.util import make_unix_command_for_host
from pyinfra.context import ctx_config, ctx_inventory, ctx_state

# What a sentence begins with that a machine prints, and that needs no other explanation of a failure.
TOLD = "--> "
RUN_AGAIN = "run the same command again: it goes on where it stopped"

# What pyinfra's command line shows without a traceback. It is imported only in pyinfra's own process: the import patches the
# whole process for gevent, which the tests and the demo do not expect.
if "pyinfra_cli" in sys.modules:
    from pyinfra_cli.exceptions import CliError as CommandLineError
else:
    CommandLineError = click.ClickException


class Refused(DeployError, CommandLineError):  # type: ignore[misc]
    """The run stops. The text is shown as it is, without a traceback; exit status 1."""


class RunLocks(Protocol):
    """What keeps two runs apart (operations/lock.py). take and check raise Refused."""

    def take(self, hosts: list[Host]) -> None: ...

    def check(self) -> None: ...

    def finish(self, hosts: list[Host]) -> None:
        """The run has ended on these machines without a failure."""
        ...


def install(check: Callable[[Inventory], None], locks: RunLocks) -> None:
    """Add our checks and messages to this run of pyinfra, if it deploys.

    check: raises Refused before any connection is made. locks: taken before anything is changed, if the run changes anything.

    It deploys if its arguments end in .py, as pyinfra itself decides. Other commands (exec, fact, debug-inventory) are left
    alone: they are for finding out what is wrong.
    """
    context = click.get_current_context(silent=True)
    operations = context.params["operations"] if context else ()
    if not operations or not all(name.endswith(".py") for name in operations):
        return
    if changed := differences():
        raise Refused(
            f"pyinfra {pyinfra.__version__} is not the version that this is written for: {'; '.join(changed)}. "
            "Install the versions of requirements.lock: make setup"
        )
    given = context.params if context else {}
    # With --json and without -y it only plans, as with --dry.
    executes = not given["dry"] and (given["yes"] or not given["json_output"])
    _Run(_state(), check, locks, executes).begin()
    # For each operation pyinfra reads the source of every function that leads to it, and counts the columns in it, but uses only
    # the numbers of the lines: 3 ms an operation, more than all the rest of preparing it.
    names: Any = util
    names.stack, names.getframeinfo = _frames, _place
    # For each setting in group_data/all.py pyinfra reads that file again, to learn what it imports: a tenth of a second in all.
    inventory: Any = sys.modules.get(INVENTORY)
    if inventory:
        inventory._get_imported_names = cache(inventory._get_imported_names)


class _Place(NamedTuple):
    filename: str
    lineno: int


def _frames() -> list[tuple[FrameType]]:
    """Of inspect.stack() what pyinfra uses: the frames, beginning with the caller's."""
    found, frame = [], inspect.currentframe()
    while frame and (frame := frame.f_back):
        found.append((frame,))
    return found


def _place(frame: FrameType) -> _Place:
    """Of inspect.getframeinfo() what pyinfra uses."""
    return _Place(frame.f_code.co_filename, frame.f_lineno)


def installed() -> bool:
    """Whether `install` has been called for the current run."""
    return any(isinstance(handler, _Run) for handler in _state().callback_handlers)


def executes() -> bool:
    """Whether this run changes machines, after it has asked for confirmation perhaps."""
    return any(isinstance(handler, _Run) and handler.executes for handler in _state().callback_handlers)


def add_final_line(line: str) -> None:
    """Print a line at the end of the run, whether it succeeds or fails."""
    for handler in _state().callback_handlers:
        if isinstance(handler, _Run):
            handler.final_lines.append(line)


def _state() -> State:
    state: State = ctx_state.get()  # type: ignore[no-untyped-call]
    return state


class _Run(BaseStateCallback):
    """One run of a deploy: the checks before it, the order of its operations, and its messages at the end."""

    def __init__(self, state: State, check: Callable[[Inventory], None], locks: RunLocks, executes: bool) -> None:
        self.state, self.check, self.locks, self.executes = state, check, locks, executes
        self.initialise, self.fail, self.enter = state.init, state.fail_hosts, state.set_stage
        # Machine -> the operation that failed there last.
        self.operations: dict[Host, str] = {}
        self.failures: list[str] = []
        self.final_lines: list[str] = []

    def begin(self) -> None:
        self.state.init = self.init  # type: ignore[method-assign]
        self.state.fail_hosts = self.fail_hosts  # type: ignore[method-assign]
        self.state.get_op_order = self.order  # type: ignore[method-assign]
        self.state.set_stage = self.set_stage  # type: ignore[method-assign]

    def init(self, inventory: Inventory, config: Any, initial_limit: list[Host] | None = None) -> None:
        """The machines are known, and none is connected to yet."""
        self.initialise(inventory, config, initial_limit=initial_limit)
        self.state.add_callback_handler(self)  # type: ignore[no-untyped-call]
        self.check(inventory)
        for host in inventory:
            if self.state.is_host_in_limit(host):
                _check_ssh_options(host)

    def order(self) -> list[str]:
        """Operations in the order of deploy.py and the tasks, across all machines.

        pyinfra keeps only the order within each machine: the homeserver would be started before another machine has its
        database.
        """
        return sorted(self.state.op_meta, key=lambda operation: self.state.op_meta[operation].op_order)

    # One run at a time.

    def set_stage(self, stage: StateStage) -> None:
        if stage is StateStage.Execute:
            self.locks.take(list(self.state.inventory.get_active_hosts()))
        if stage is StateStage.Disconnect and self.executes:
            self.locks.finish(list(self.state.inventory.get_active_hosts()))
        self.enter(stage)

    def operation_start(self, state: State, op_hash: str) -> None:  # type: ignore[override]
        self.locks.check()

    # Messages at the end.

    def operation_host_error(self, state: State, host: Host, op_hash: str, *_: int, **__: int) -> None:  # type: ignore[override]
        self.operations[host] = op_hash

    def fail_hosts(self, hosts: set[Host], activated_count: int | None = None) -> None:
        """Replaces pyinfra's "No hosts remaining!". Before anything is touched, pyinfra would go on with the other machines."""
        if not hosts:
            return
        if self.state.current_stage < StateStage.Execute:
            self.state.failed_hosts.update(hosts)
            raise Refused(self._unreachable_message(hosts))
        self.failures += [self._failure_message(host) for host in _by_name(hosts)]
        try:
            self.fail(hosts, activated_count)  # type: ignore[no-untyped-call]
        except Refused:
            raise
        except PyinfraError:
            lines, self.failures = self.failures, []
            raise Refused("\n".join(dict.fromkeys(lines))) from None

    def host_disconnect(self, state: State, host: Host) -> None:  # type: ignore[override]
        """The last thing that pyinfra does: print what failed on some machines while the run went on with the others."""
        lines, self.failures, self.final_lines = [*self.final_lines, *self.failures], [], []
        for line in dict.fromkeys(lines):
            click.echo(f"--> {line}", err=True)

    def _unreachable_message(self, hosts: Iterable[Host]) -> str:
        away = _by_name(hosts)
        names = ", ".join(host.name for host in away)
        if self.state.current_stage > StateStage.Connect:
            why = "; ".join(filter(None, map(connection_error, away))) or "see above"
            return f"{names} could not be checked: {why}; nothing was touched"
        others = [host for host in self.state.inventory if self.state.is_host_in_limit(host) and host not in away]
        without = " ".join(f"--exclude {host.name}" for host in away)
        # pyinfra would go on with the others: a homeserver could be left without its database, or a change half done.
        return f"{names} cannot be reached, see above; nothing was touched" + (
            f" (to go on: {without})" if others else ""
        )

    def _failure_message(self, host: Host) -> str:
        """Which operation failed on this machine, why, and what to do."""
        operation = self.operations.get(host)
        names = sorted(self.state.get_op_meta(operation).names) if operation else []
        what = f"{host.name}: {names[0].rpartition(' | ')[2]}" if names else host.name
        if why := connection_error(host):
            return f"{what}: {why}. When the machine is back, {RUN_AGAIN}"
        meta = self.state.get_op_data_for_host(host, operation).operation_meta if operation else None
        lines = meta.stderr_lines if meta and meta.is_complete() else []
        # The machine explains all of it (operations/sh/program.sh).
        if told := [line.removeprefix(TOLD) for line in lines if line.startswith(TOLD)]:
            return f"{what} failed: {told[-1]}"
        why = cause(lines)
        return f"{what} failed: {why or 'see above'}. When that is fixed, {RUN_AGAIN}"


def _check_ssh_options(host: Host) -> None:
    """Read the key, and ask for its passphrase: with a key that cannot be used, pyinfra ends with gevent's traceback.

    pyinfra takes a missing ssh_config_file for an empty one, and would connect to a host with the alias as its name.
    """
    connector = host.connector
    if not isinstance(connector, SSHConnector):
        return
    configuration = connector.data["ssh_config_file"]
    if configuration and not Path(configuration).is_file():
        raise Refused(
            f"{host.name} cannot be reached: there is no ssh_config_file {configuration}; nothing was touched"
        )
    try:
        connector.make_paramiko_kwargs()
    except PyinfraError as error:
        raise Refused(f"{host.name} cannot be reached: {error}; nothing was touched") from None
    except EOFError:
        raise Refused(
            f"{host.name} cannot be reached: its ssh_key has a passphrase, and there is no terminal to ask for it: "
            "set ssh_key_password, or use an SSH agent; nothing was touched"
        ) from None


# --- without a deploy (manage.py) -----------------------------------------------------------------


def read_inventory(path: Path) -> Inventory:
    """The machines of an inventory with their group data, as pyinfra's command line reads them. None is connected to.

    The current directory must be that of deploy.py. Raises Refused.
    """
    from pyinfra_cli.inventory import make_inventory

    config: Config = Config()  # type: ignore[no-untyped-call]
    state = State()
    ctx_config.set(config)  # type: ignore[no-untyped-call]
    ctx_state.set(state)  # type: ignore[no-untyped-call]
    try:
        machines: Inventory = make_inventory(str(path), cwd=str(Path.cwd()))
    except Exception as error:  # an inventory is a program, which may raise anything
        # pyinfra has wrapped it.
        raised = getattr(error, "exception", error)
        raise Refused(f"{path} cannot be read: {type(raised).__name__}: {raised}") from None
    state.init(machines, config)
    ctx_inventory.set(machines)  # type: ignore[no-untyped-call]
    return machines


def connect(host: Host) -> None:
    """Connect to a machine as a deploy does. Raises Refused."""
    _check_ssh_options(host)
    try:
        host.connect(show_errors=False, raise_exceptions=True)
    except ConnectError as error:
        raise Refused(f"{host.name} cannot be reached: {error.args[0]}") from None


def answer_of(host: Host, command: str, stdin: str) -> tuple[bool, list[str], list[str]]:
    """Run a command on a machine that was connected to: whether it succeeded, and the lines of its output and of its errors.

    stdin: text without control characters but newlines; the place for secrets. Raises Refused if the connection ends.
    """
    try:
        done, output = host.run_shell_command(StringCommand(command), _stdin=[stdin])
    except (EOFError, OSError, SSHException) as error:
        raise Refused(f"{host.name} does not answer: {connection_error(host) or error}") from None
    if why := connection_error(host):
        raise Refused(f"{host.name} does not answer: {why}")
    return done, output.stdout_lines, output.stderr_lines


def channel_to(host: Host, port: int) -> Channel | None:
    """A connection to a port of a machine that was connected to, at its 127.0.0.1; None if it was not connected to by SSH.

    Raises Refused.
    """
    client = getattr(host.connector, "client", None)
    transport: Transport | None = client.get_transport() if client else None
    if transport is None:
        return None
    try:
        return transport.open_channel("direct-tcpip", ("127.0.0.1", port), ("127.0.0.1", 0), timeout=30)
    except ChannelException as error:
        if error.code == 1:
            raise Refused(f"{host.name}: its SSH server allows no tunnels: AllowTcpForwarding in sshd_config") from None
        raise Refused(f"{host.name}: nothing answers there at 127.0.0.1:{port}: deploy first") from None
    except (EOFError, OSError, SSHException) as error:
        raise Refused(f"{host.name} does not answer: {connection_error(host) or error}") from None


def reached_again(host: Host, command: StringCommand, sudo: bool) -> bool:
    """Whether a command succeeds over another connection to the machine, made as that of the run was. sudo: as root."""
    connector = type(host.connector)(host.state, host)
    try:
        connector.connect()
        done, _ = connector.run_shell_command(command, False, False, _sudo=sudo)
    except (ConnectError, EOFError, OSError, SSHException):
        return False
    finally:
        if client := getattr(connector, "client", None):
            client.close()
    return done


class Beside:
    """A program that runs on a machine beside the commands of a run, over the same connection, for as long as that lasts.

    sudo: whether root has to run it. Raises Refused if it cannot be started.
    """

    def __init__(self, host: Host, command: str, sudo: bool) -> None:
        shell = make_unix_command_for_host(host.state, host, StringCommand(command), _sudo=sudo).get_raw_value()
        self._read: Callable[[], bytes]
        self._write: Callable[[bytes], object]
        self._over: Callable[[], bool]
        if isinstance(host.connector, SSHConnector):
            assert host.connector.client is not None
            transport = host.connector.client.get_transport()
            assert transport is not None
            try:
                channel = transport.open_session()
                channel.exec_command(shell)
            except (EOFError, OSError, SSHException) as error:
                why = connection_error(host) or str(error)
                raise Refused(f"{host.name} cannot be locked: {why}; nothing was touched") from None
            self._read, self._write = channel.makefile("rb").readline, channel.sendall
            self._over = lambda: channel.closed or channel.exit_status_ready()
        else:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            process = subprocess.Popen(shell, shell=True, bufsize=0, **pipes)  # noqa: S602
            assert process.stdin is not None and process.stdout is not None
            self._read, self._write = process.stdout.readline, process.stdin.write
            self._over = lambda: process.poll() is not None

    def read_line(self) -> str:
        """The next line of its output; "" when there is no more."""
        try:
            return bytes(self._read()).decode(errors="replace")
        except (EOFError, OSError, SSHException):
            return ""

    def send(self, text: str) -> bool:
        """Send it a text. Returns whether it still runs."""
        try:
            self._write(text.encode())
        except (EOFError, OSError, SSHException):
            return False
        return not self.ended

    @property
    def ended(self) -> bool:
        return self._over()


def _by_name(hosts: Iterable[Host]) -> list[Host]:
    return sorted(hosts, key=lambda host: str(host.name))


def connection_error(host: Host) -> str:
    """Why the connection to the machine has ended; empty if it is still open."""
    client = getattr(host.connector, "client", None)
    transport: Transport | None = client.get_transport() if client else None
    if transport is None or transport.is_active():
        return ""
    return str(getattr(transport, "close_reason", "")) or "the connection was cut"


def cause(stderr: Iterable[str]) -> str:
    """The line that says why a command failed: its last line, or the line above the log that it shows."""
    lines = [line.strip() for line in stderr if line.strip()]
    headings = [line for line in lines if line.endswith("the end of its log:")]
    line = headings[0].removesuffix("the end of its log:").rstrip(" ;:") if headings else "".join(lines[-1:])
    return line.rstrip(".")


# --- what this file relies on ---------------------------------------------------------------------

SIGNATURES: tuple[tuple[Callable[..., Any], tuple[str, ...]], ...] = (
    (State.init, ("self", "inventory", "config", "initial_limit")),
    (State.fail_hosts, ("self", "hosts_to_fail", "activated_count")),
    (State.get_op_order, ("self",)),
    (State.add_callback_handler, ("self", "handler")),
    (State.is_host_in_limit, ("self", "host")),
    (State.get_op_meta, ("self", "op_hash")),
    (State.set_stage, ("self", "stage")),
    (Inventory.get_active_hosts, ("self",)),
    (SSHConnector.connect, ("self",)),
    (make_unix_command_for_host, ("state", "host", "command", "command_arguments")),
    (BaseStateCallback.operation_start, ("state", "op_hash")),
    (State.get_op_data_for_host, ("self", "host", "op_hash")),
    (BaseStateCallback.operation_host_error, ("state", "host", "op_hash", "retry_count", "max_retries")),
    (BaseStateCallback.host_disconnect, ("state", "host")),
    (SSHConnector.make_paramiko_kwargs, ("self",)),
    (SSHConnector.run_shell_command, ("self", "command", "print_output", "print_input", "arguments")),
    (LocalConnector.run_shell_command, ("self", "command", "print_output", "print_input", "arguments")),
    (Host.run_shell_command, ("self", "args", "kwargs")),
    (Host.connect, ("self", "reason", "show_errors", "raise_exceptions")),
    (OperationMeta.is_complete, ("self",)),
    (util.stack, ("context",)),
    (util.getframeinfo, ("frame", "context")),
    # operations/ssh.py
    (Transport.global_request, ("self", "kind", "data", "wait")),
    (Transport._send_user_message, ("self", "data")),  # type: ignore[attr-defined]
    (Transport.close, ("self",)),
)
ATTRIBUTES: tuple[tuple[type, str], ...] = (
    (State, "current_stage"),
    (State, "is_executing"),
    (StateOperationMeta, "op_order"),
    (StateOperationMeta, "names"),
    (SSHConnector, "client"),
    (OperationMeta, "stderr_lines"),
)
# Of its command line, which is not imported everywhere: see above.
INVENTORY = "pyinfra_cli.inventory"
INVENTORY_SIGNATURES: Mapping[str, tuple[str, ...]] = {
    "make_inventory": ("inventory", "override_data", "cwd", "group_data_directories"),
    "_get_imported_names": ("filename",),
}
STAGES = ("Setup", "Connect", "Prepare", "Execute", "Disconnect")


def differences() -> list[str]:
    """How the installed pyinfra differs from what this file relies on."""
    found = []
    signatures = list(SIGNATURES)
    if module := sys.modules.get(INVENTORY):
        for name, parameters in INVENTORY_SIGNATURES.items():
            if function := getattr(module, name, None):
                signatures.append((function, parameters))
            else:
                found.append(f"{INVENTORY}.{name} is missing")
    for function, wanted in signatures:
        now = tuple(inspect.signature(function).parameters)
        if now != wanted:
            found.append(f"{function.__qualname__} takes {', '.join(now)} and not {', '.join(wanted)}")
    for owner, name in ATTRIBUTES:
        if not hasattr(owner, name) and name not in inspect.get_annotations(owner):
            found.append(f"{owner.__name__}.{name} is missing")
    if tuple(stage.name for stage in sorted(StateStage)) != STAGES:
        found.append(f"the stages of a run are {', '.join(stage.name for stage in sorted(StateStage))}")
    return found
