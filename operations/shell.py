"""Shell commands on a machine, always in the same environment: its language, time zone and user profiles do not matter."""

import inspect
import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pyinfra.api import FactBase, StringCommand
from pyinfra.api.exceptions import FactProcessError

T = TypeVar("T")

# The environment of every command, in place of that of the machine and the user's profile: we do not want to parse decimal
# commas, translated words and local times. Kept are the connection's addresses, and proxies, but never used for the machine
# itself. Their addresses may contain passwords, so they are not arguments of `env`: the others are removed one by one instead.
_PROXIES = ("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
_NO_PROXY = "localhost,127.0.0.1,::1"
_FIXED = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 TZ=UTC"
_ENVIRONMENT = "\n".join(
    [
        "clean() {",
        f'  if [ "{"".join(f"${{{name}:-}}" for name in _PROXIES)}" ]; then',
        "    for name in $(/usr/bin/env | /usr/bin/cut -d= -f1); do",
        f"      case $name in HOME | no_proxy | NO_PROXY | {' | '.join(_PROXIES)} | SSH_CONNECTION) ;;",
        "      [0-9]* | *[!A-Za-z_0-9]*) ;;",
        '        *) unset "$name" ;; esac',
        "    done",
        f'    export HOME="${{HOME:-/}}" {_FIXED}',
        *(f'    export {name}="{_NO_PROXY}${{{name}:+,${name}}}"' for name in ("no_proxy", "NO_PROXY")),
        '    exec "$@"',
        "  fi",
        f'  exec env -i HOME="${{HOME:-/}}" ${{SSH_CONNECTION:+"SSH_CONNECTION=$SSH_CONNECTION"}} {_FIXED} "$@"',
        "}",
        "clean",
    ]
)
# Printed before an answer: everything above it was printed by the user's profile.
_MARK = "--- matrix-metal ---"


def quoted(*words: str) -> str:
    """The words as one piece of shell, each taken literally."""
    return " ".join(shlex.quote(word) for word in words)


@cache
def shell_file(name: str) -> str:
    """The text of operations/sh/<name>.sh without its comments: shell that is longer than a few lines has a file of its own."""
    lines = (Path(__file__).parent / "sh" / f"{name}.sh").read_text().splitlines(keepends=True)
    return "".join(line for line in lines if not line.lstrip().startswith("#"))


def _command_of(question: Callable[..., str]) -> Callable[..., str]:
    """What pyinfra calls for the command of a fact."""

    def command(self: Fact[Any], *arguments: Any, **named: Any) -> str:
        asked = question(self, *arguments, **named)
        return question_command(f"{shell_file(self.functions)}{asked}" if self.functions else asked)

    # pyinfra inspects the names of its arguments.
    command.__signature__ = inspect.signature(question)  # type: ignore[attr-defined]
    return command


def _run(program: str) -> str:
    return f"{_ENVIRONMENT} sh -c {shlex.quote(program)}"


def script(*lines: str, stdin: str | None = None) -> StringCommand:
    """One command that runs the lines as one script and stops at the first that fails.

    stdin (text without control characters but newlines) is fed to it: the place for secrets, which must not be on a
    command line, where every user of the machine could read them.
    """
    # `exec </dev/null` is not done: without stdin pyinfra closes the channel at once.
    command = _run("\n".join(["set -eu", "umask 022", "cd /", *lines]))
    if stdin is None:
        return StringCommand(command)
    return StringCommand(command, _stdin=[stdin])


class Fact(FactBase[T]):
    """A fact about a machine: `question` is the shell command that asks for it, `answer` parses what it prints.

    functions: the file in operations/sh whose functions the command calls, or "". about_paths: `question` has no argument but
    `paths`, and the answer is a dict by path: so several questions can be asked as one.
    """

    question: Callable[..., str]
    functions = ""
    about_paths = False

    def answer(self, lines: list[str]) -> T:
        """Parse the printed lines. Not called if nothing is printed: then the answer is `default()`."""
        raise NotImplementedError

    def __init_subclass__(cls) -> None:
        # A base class of facts has no question.
        if hasattr(cls, "question"):
            cls.command = _command_of(cls.question)
        super().__init_subclass__()

    def process(self, output: list[str]) -> T:
        """What pyinfra calls with the output. Raises FactProcessError if the command was not run."""
        lines = answer_lines(output)
        if lines is None:
            raise FactProcessError("the user's shell on the machine does not run the commands that it is given")
        return self.answer(lines) if lines else self.default()


class YesOrNo(Fact[bool]):
    """A fact whose `question` prints "yes" or nothing."""

    @staticmethod
    def default() -> bool:
        return False

    def answer(self, lines: list[str]) -> bool:
        return lines == ["yes"]


def question_command(program: str) -> str:
    """The command that runs a shell program in our environment, and marks where its output begins."""
    return _run(f"echo\necho {quoted(_MARK)}\n{program}")


def lasting_command(program: str) -> str:
    """The same for a program that goes on while it gets lines on its standard input; in bash, whose `read` has a time limit."""
    return f"{_ENVIRONMENT} bash -c {shlex.quote(f'echo; echo {quoted(_MARK)}; {program}')}"


def answer_lines(output: list[str]) -> list[str] | None:
    """The lines printed in answer to a question, without what a profile printed before; None if the command was not run."""
    for number, line in enumerate(output, 1):
        if line.rstrip("\n") == _MARK:
            return output[number:]
    return None
