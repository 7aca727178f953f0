"""Small pieces of POSIX shell that several operations share."""

import shlex

from pyinfra.api import StringCommand


def quoted(*words: str) -> str:
    """The words as one piece of shell, each taken literally."""
    return " ".join(shlex.quote(word) for word in words)


def script(*lines: str, stdin: str | None = None) -> StringCommand:
    """One command that runs the lines as one script and stops at the first that fails.

    stdin (text without control characters but newlines) is fed to it: the place for secrets, which must not be on a
    command line, where every user of the machine could read them.
    """
    # `exec </dev/null` is not done: without stdin pyinfra closes the channel at once.
    command = "sh -c " + shlex.quote("set -eu\n" + "\n".join(lines))
    if stdin is None:
        return StringCommand(command)
    return StringCommand(command, _stdin=[stdin])
