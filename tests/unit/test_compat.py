"""What is taken for granted of pyinfra, and the words with which a run ends."""

import subprocess
import sys

import pyinfra
import pytest
from paramiko import SSHException, Transport
from pyinfra.api.state import State

import compat
from compat import cause, differences
from operations.ssh import KeepaliveTransport
from tests.deployment import ROOT


def test_this_pyinfra_is_the_one_it_is_written_for() -> None:
    assert not differences(), f"pyinfra {pyinfra.__version__} has changed: adapt compat.py. {differences()}"


def test_its_command_line_is_the_one_it_is_written_for() -> None:
    """In a process of its own: its import changes a whole process to gevent."""
    script = """
import click, pyinfra_cli.cli as cli
from pyinfra_cli.exceptions import CliError
assert isinstance(cli.cli, click.Command) and {"inventory", "operations"} <= {each.name for each in cli.cli.params}
assert issubclass(CliError, click.ClickException)
import compat
assert issubclass(compat.Refused, CliError)
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
    ("told", "why"),
    [
        ([], ""),
        (["WARNING: apt", "", "E: the mirror does not answer.", ""], "E: the mirror does not answer"),
        (
            ["x.service failed to answer within 60 s; the end of its log:", "Started x."],
            "x.service failed to answer within 60 s",
        ),
    ],
)
def test_a_run_ends_with_the_cause(told: list[str], why: str) -> None:
    assert cause(told) == why


def test_what_is_sent_into_a_closed_connection_fails_as_ssh_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload is at work when the machine is given up: pyinfra shows a traceback for anything but SSH's own errors."""

    def send(self: Transport, data: object) -> None:
        raise EOFError

    monkeypatch.setattr(Transport, "_send_user_message", send)
    closed = KeepaliveTransport.__new__(KeepaliveTransport)
    with pytest.raises(SSHException, match="cut"):
        closed._send_user_message(None)
