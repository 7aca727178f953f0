"""The shell in which a verification runs its commands; here on this computer."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import testinfra

from tests.host.shell import Shell, ShellEnded


@pytest.fixture
def shell() -> Iterator[Shell]:
    shell = Shell(testinfra.get_host("local://").backend, ["sh", "-c"])
    yield shell
    shell.close()


@pytest.mark.parametrize(
    ("program", "status", "out", "err"),
    [
        ("true", 0, b"", b""),
        ("printf a; printf b >&2; exit 3", 3, b"a", b"b"),
        ("echo a; echo; echo b >&2", 0, b"a\n\n", b"b\n"),
        (r"printf 'a\0b\377'", 0, b"a\0b\xff", b""),
        ("head -c 300000 /dev/zero | tee /dev/stderr", 0, bytes(300000), bytes(300000)),
        # What a command leaves behind or does to its shell does not reach the next.
        ("cat; cd /; x=1; trap 'echo end' EXIT", 0, b"end\n", b""),
        ("kill -9 $$", 137, b"", b""),
        ("not-a-program 2>/dev/null", 127, b"", b""),
    ],
)
def test_commands_are_answered_one_after_another(
    shell: Shell, program: str, status: int, out: bytes, err: bytes
) -> None:
    for _ in range(2):
        done = shell.run(program)
        # Its own bash may say that a command was killed.
        assert (done.rc, done.stdout_bytes) == (status, out)
        assert done.stderr_bytes == err or status == 137
    assert shell.run("echo %s", "'\n$x\\").stdout == "'\n$x\\\n"


def test_it_is_started_again_when_it_has_ended(shell: Shell) -> None:
    first = shell.run("echo $PPID").stdout.strip()
    assert shell.run("echo $PPID").stdout.strip() == first
    os.kill(int(first), signal.SIGKILL)
    assert shell.run("echo $PPID").stdout.strip() not in ("", first)


def test_a_profile_that_reads_what_is_meant_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.host.shell.FIRST", 0.5)
    backend: Any = testinfra.get_host("local://").backend
    assert not Shell(backend, ["sh", "-c", "cat >/dev/null"]).begins()
    assert not Shell(backend, ["sh", "-c", "exit 0"]).begins()
    shell = Shell(backend, ["sh", "-c"])
    assert shell.begins() and shell.run("echo here").stdout == "here\n"
    shell.close()


@pytest.mark.parametrize(
    "ends",
    [
        "echo 'Connection refused' >&2; exit 255",
        "exec <&-; sleep 0.3; echo 'Connection refused' >&2; exit 255",
        "exec >&-; sleep 0.3; echo 'Connection refused' >&2; exit 255",
        "head -c 1 >/dev/null; echo 'Connection refused' >&2; exit 255",
    ],
)
def test_a_connection_that_always_ends_is_reported_with_what_was_said(ends: str) -> None:
    backend: Any = testinfra.get_host("local://").backend
    with pytest.raises(ShellEnded, match="Connection refused"):
        Shell(backend, ["sh", "-c", ends]).run("true")


def test_a_connection_that_ends_without_a_word() -> None:
    backend: Any = testinfra.get_host("local://").backend
    with pytest.raises(ShellEnded, match="the connection was closed"):
        Shell(backend, ["sh", "-c", "exit 255"]).run("true")
    shell = Shell(backend, ["sh", "-c"])
    assert shell.begins() and shell._process
    shell._process.kill()
    shell._process.wait()
    with pytest.raises(ShellEnded, match="the connection was closed"):
        shell._run("true")
