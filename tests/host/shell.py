"""One shell on a machine, which runs the commands of a verification one after another.

To start a process over SSH for each command, with the user's shell, sudo and an environment of its own, takes three times as
long as most commands do.
"""

import os
import secrets
import selectors
import subprocess
import threading
from collections.abc import Sequence
from typing import Any

from testinfra.backend.base import BaseBackend, CommandResult

# It reads commands that end with a zero byte. What it writes behind the output of each, and behind its errors, has the mark.
_LOOP = """\
while IFS= read -r -d '' command; do
  sh -c "$command" </dev/null
  printf '\\n%s %d\\n' {mark} $?
  printf '\\n%s\\n' {mark} >&2
done
"""


# Seconds for the first answer. What a user's profile reads may be what is meant for the shell.
FIRST = 15


class ShellEnded(RuntimeError):
    """The shell has ended, or the connection to it, or it has not begun to answer."""


class Shell:
    """It is started when it is first needed, and again when it has ended: the machine may have been started again.

    backend: testinfra's, whose `get_command` adds sudo and our environment. leading: the words before the command, such as ssh
    with its options.
    """

    def __init__(self, backend: BaseBackend, leading: Sequence[str]) -> None:
        self._backend, self._leading = backend, list(leading)
        # Nobody prints it by accident.
        self._mark = secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def begins(self) -> bool:
        """Start it, and say whether it answers."""
        try:
            self._start()
        except ShellEnded:
            return False
        return True

    def run(self, command: str, *words: str, **_options: Any) -> CommandResult:
        """As testinfra's: `%s` in the command is a word, quoted. Raises ShellEnded if it ends twice in a row."""
        program = self._backend.quote(command, *words)
        with self._lock:
            try:
                return self._run(program)
            except ShellEnded:
                return self._run(program)

    def _run(self, program: str) -> CommandResult:
        if not self._process:
            self._start()
        status, out, err = self._answer(program.encode())
        return self._backend.result(status, program.encode(), out, err)

    def _start(self) -> None:
        command = self._backend.get_command("exec bash -c %s", _LOOP.format(mark=self._mark))
        self._process = subprocess.Popen(
            [*self._leading, command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        # With this answer comes what the user's profile prints.
        self._answer(b":", FIRST)

    def _answer(self, program: bytes, limit: float | None = None) -> tuple[int, bytes, bytes]:
        """Exit status, output and errors. limit: seconds in which something has to come."""
        process = self._process
        assert process and process.stdin and process.stdout and process.stderr
        mark = f"\n{self._mark}".encode()
        out, err = bytearray(), bytearray()
        try:
            process.stdin.write(program + b"\0")
            process.stdin.flush()
            with selectors.DefaultSelector() as open_ones:
                open_ones.register(process.stdout, selectors.EVENT_READ, (out, mark + b" "))
                open_ones.register(process.stderr, selectors.EVENT_READ, (err, mark))
                while open_ones.get_map():
                    if not (readable := open_ones.select(limit)):
                        raise ShellEnded("no answer")
                    for key, _ in readable:
                        written, end = key.data
                        if not (some := os.read(key.fd, 1 << 16)):
                            raise BrokenPipeError
                        written += some
                        if written.endswith(b"\n") and end in written[-len(end) - 8 :]:
                            open_ones.unregister(key.fileobj)
        except ShellEnded:
            self.close()
            raise
        except OSError as error:
            # Why, it may have said before it ended, and that may not have been read yet.
            said = bytes(err + self.close(1)).decode(errors="replace").strip()
            why = "the connection was closed" if isinstance(error, BrokenPipeError) else str(error)
            raise ShellEnded(said or why) from None
        printed, _, status = bytes(out).rpartition(mark)
        return int(status), printed, bytes(err).rpartition(mark)[0]

    def close(self, patience: float = 0) -> bytes:
        """End the shell, unless it ends by itself within these seconds. Returns what has come from it as errors since."""
        process, self._process = self._process, None
        if not process:
            return b""
        try:
            return process.communicate(timeout=patience)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            return process.communicate()[1]
