"""Runs of this project's commands in a process that has imported already what they need.

A command of `manage.py` works for half a second after a second of imports, and the tests give thousands of commands. So a
process of its own, which does nothing but import, divides itself for each of them: what runs then is the same script from its
first line, with its own arguments, environment, directory, standard input and output. What is different is seen in the list
of processes only; tests that look there, kill a command or give it a terminal start it themselves.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).parent.parent
PYINFRA = str(Path(sys.executable).parent / "pyinfra")
MANAGE = str(ROOT / "manage.py")
# What libraries read while they are imported.
READ_EARLY = (
    "PYTHON",
    "LC_",
    "LANG",
    "LD_",
    "COLUMNS",
    "LINES",
    "TERM",
    "NO_COLOR",
    "FORCE_COLOR",
    "GEVENT",
    "OPENSSL",
)

_lock = threading.Lock()
_connection: list[socket.socket] = []
_early: dict[str, str] = {}


def _read_early(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(READ_EARLY)}


def can_run(command: Sequence[str], root: Path, environment: Mapping[str, str]) -> bool:
    """Whether `run` does what a new process would, of the checkout `root`. Not outside of tests: what is timed is a process."""
    ours = command[0] == PYINFRA or list(command[:2]) == [sys.executable, MANAGE]
    here = root == ROOT and "PYTEST_VERSION" in os.environ
    return here and ours and _read_early(environment) == (_early if _connection else _read_early(os.environ))


def run(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdin: str | None = None, timeout: float
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run with captured output. stdin: None: there is none. Raises TimeoutExpired, and ends the command then."""
    with contextlib.ExitStack() as stack:
        given, out, err = (stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(3))
        given.write(stdin or "")
        given.seek(0)
        reading, writing = os.pipe()
        status = stack.enter_context(os.fdopen(reading, "rb", buffering=0))
        words = list(command[1:]) if command[0] == sys.executable else list(command)
        request = json.dumps([words, str(cwd), dict(env)])
        files = [given.fileno(), out.fileno(), err.fileno(), writing]
        try:
            with _lock:
                _send(request.encode(), files)
        finally:
            os.close(writing)
        code = _result(status, command, timeout)
        return subprocess.CompletedProcess(list(command), code, _text(out), _text(err))


def _text(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _result(status: IO[bytes], command: Sequence[str], timeout: float) -> int:
    """The exit status, as subprocess gives it."""
    deadline = time.monotonic() + timeout
    process = int(status.readline() or sys.exit("what runs the tests' commands has ended"))
    if not select.select([status], [], [], max(0, deadline - time.monotonic()))[0]:
        os.kill(process, signal.SIGKILL)
        raise subprocess.TimeoutExpired(list(command), timeout)
    return int(status.readline())


def _send(request: bytes, files: Sequence[int]) -> None:
    if not _connection:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # It ends with this process, which alone has the other end.
        subprocess.Popen(
            [sys.executable, "-m", "tests.prepared", str(there.fileno())],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[there.fileno()],
        )
        there.close()
        _connection.append(here)
        _early.update(_read_early(os.environ))
    socket.send_fds(_connection[0], [request], list(files))


def _serve(connection: socket.socket) -> None:
    """Divide this process for each request, until nobody can send one any more."""
    divide = os.fork  # pyinfra's command line replaces it
    # What manage.py, deploy.py and the files that it includes import; the first must be the first.
    operations = sorted(f"operations.{path.stem}" for path in (ROOT / "operations").glob("[a-z]*.py"))
    for module in ("pyinfra_cli.main", "manage.commands", *operations):
        importlib.import_module(module)
    # What is there already need not be looked through again, in each of them.
    gc.collect()
    gc.freeze()
    # Nobody waits for what is divided first; it waits for what runs.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        request, files, _, _ = socket.recv_fds(connection, 1 << 20, 4)
        if not request:
            return
        if divide():
            for number in files:
                os.close(number)
            continue
        connection.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        status = files.pop()
        process = divide()
        if process:
            os.write(status, f"{process}\n".encode())
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            os.write(status, f"{code}\n".encode())
            os._exit(0)
        os.close(status)
        words, cwd, environment = json.loads(request)
        _become(words, cwd, environment, files)


def _become(words: list[str], cwd: str, environment: dict[str, str], files: Sequence[int]) -> NoReturn:
    """Run the script, with its arguments, in this process."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = (open(n, mode, closefd=False) for n, mode in enumerate(("r", "w", "w")))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(cwd)
    sys.argv = words
    sys.path[0] = str(Path(words[0]).parent)
    runpy.run_path(words[0], run_name="__main__")
    sys.exit(0)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
