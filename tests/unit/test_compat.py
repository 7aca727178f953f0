"""What compat.py relies on in pyinfra, and the messages at the end of a run."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pyinfra
import pytest
from paramiko import SSHException, Transport
from pyinfra.api import util
from pyinfra.api.config import Config
from pyinfra.api.connect import connect_all, disconnect_all
from pyinfra.api.inventory import Inventory
from pyinfra.api.state import State, StateStage

import compat
from compat import Beside, cause, differences
from operations import lock
from operations.shell import answer_lines, lasting_command
from operations.ssh import KeepaliveTransport
from tests.deployment import ROOT


def test_operations_keep_the_order_that_pyinfra_gives_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours are faster, and find the same lines of the same files."""
    state: Any = SimpleNamespace(current_deploy_filename=__file__)
    found = []
    replacements: list[dict[str, Any]] = [{}, {"stack": compat._frames, "getframeinfo": compat._place}]
    for replaced in replacements:
        for name, function in replaced.items():
            monkeypatch.setattr(util, name, function)
        found.append(util.get_operation_order_from_stack(state))
    assert found[0] == found[1] and len(found[0]) > 0


def test_pyinfra_is_the_version_that_compat_is_written_for() -> None:
    assert not differences(), f"pyinfra {pyinfra.__version__} has changed: adapt compat.py. {differences()}"


def test_its_command_line_is_the_one_that_compat_is_written_for() -> None:
    """In a separate process, because its import patches the process for gevent."""
    script = """
import click, pyinfra_cli.cli as cli, pyinfra_cli.inventory
from pyinfra_cli.exceptions import CliError
assert isinstance(cli.cli, click.Command) and {"inventory", "operations"} <= {each.name for each in cli.cli.params}
assert issubclass(CliError, click.ClickException)
import compat
assert issubclass(compat.Refused, CliError)
assert not compat.differences(), compat.differences()
pyinfra_cli.inventory.make_inventory = lambda inventory, directory: None
del pyinfra_cli.inventory._get_imported_names
[changed, missing] = sorted(compat.differences())
assert "takes inventory, directory and not inventory, override_data, cwd" in changed, changed
assert missing == "pyinfra_cli.inventory._get_imported_names is missing", missing
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"pyinfra {pyinfra.__version__} has changed: adapt compat.py. {done.stderr}"


def test_another_pyinfra_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_hosts(self: State, hosts: set[str]) -> None: ...

    monkeypatch.setattr(
        compat, "SIGNATURES", ((fail_hosts, ("self", "hosts_to_fail", "activated_count")), *compat.SIGNATURES[1:])
    )
    monkeypatch.setattr(compat, "ATTRIBUTES", ((State, "nothing_of_this_name"),))
    [signature, attribute] = differences()
    assert "fail_hosts takes self, hosts and not self, hosts_to_fail, activated_count" in signature
    assert attribute == "State.nothing_of_this_name is missing"


@pytest.mark.parametrize(
    ("stderr", "why"),
    [
        ([], ""),
        (["WARNING: apt", "", "E: the mirror does not answer.", ""], "E: the mirror does not answer"),
        (
            ["x.service failed to answer within 60 s; the end of its log:", "Started x."],
            "x.service failed to answer within 60 s",
        ),
    ],
)
def test_cause_of_a_failure(stderr: list[str], why: str) -> None:
    assert cause(stderr) == why


def test_sending_on_a_closed_connection_raises_an_ssh_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection may be closed during an upload: pyinfra shows a traceback for anything but SSH errors."""

    def send(self: Transport, data: object) -> None:
        raise EOFError

    monkeypatch.setattr(Transport, "_send_user_message", send)
    closed = KeepaliveTransport.__new__(KeepaliveTransport)
    with pytest.raises(SSHException, match="cut"):
        closed._send_user_message(None)


def test_a_program_beside_the_run_lasts_until_its_input_ends() -> None:
    """With @local, on this computer. In bash, behind what a profile prints, and with the environment of all commands."""
    state = State(Inventory((["@local"], {})), Config())  # type: ignore[no-untyped-call]
    state.current_stage = StateStage.Prepare
    connect_all(state)
    command = lasting_command('echo "held $LC_ALL"; while read -r -t 5 line; do echo "got $line"; done')
    program = Beside(next(iter(state.inventory)), f"echo Welcome; {command}", sudo=False)
    lines: list[str] = []
    while not answer_lines(lines):
        lines.append(program.read_line())
    assert answer_lines(lines) == ["held C.UTF-8\n"]
    assert program.send("alive\n") and program.read_line() == "got alive\n" and not program.ended
    disconnect_all(state)


def test_who_is_one_printable_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "an\nna\x1b[31m")
    monkeypatch.setattr("socket.gethostname", lambda: "laptop")
    assert lock.who() == "anna[31m@laptop"
