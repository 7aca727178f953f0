"""Debian packages."""

from collections.abc import Generator, Mapping, Sequence

import click
from pyinfra.api import StringCommand
from pyinfra.api.command import PyinfraCommand
from pyinfra.context import host, state

from operations import files
from operations.files import Copy, Directory, Entry
from operations.look import ask, operation
from operations.shell import Fact, quoted, script, shell_file


class Installed(Fact[set[str]]):
    """Which packages are installed."""

    def question(self) -> str:
        return "dpkg-query --show --showformat '${db:Status-Status} ${Package}\\n'"

    @staticmethod
    def default() -> set[str]:
        return set()

    def answer(self, lines: list[str]) -> set[str]:
        return {line.split()[1] for line in lines if line.startswith("installed ")}


class LockHolders(Fact[list[str]]):
    """Which processes of other package managers hold a lock just now."""

    functions = "apt"

    def question(self) -> str:
        return "lock_holders"

    @staticmethod
    def default() -> list[str]:
        return []

    def answer(self, lines: list[str]) -> list[str]:
        return lines


def say_who_is_waited_for() -> None:
    """Before a command of apt's, which waits for them: pyinfra does not show what it prints meanwhile. For operations."""
    if state.is_executing:
        for other in ask(LockHolders):
            click.echo(f"--> {host.name}: waiting for {other}", err=True)


@operation()
def installed(packages: Sequence[str], masked: Sequence[str] = ()) -> Generator[StringCommand, None, None]:
    """Debian packages are installed, without their recommendations, in one transaction. Which ones is recorded on the machine.

    packages: plain names (no version, no architecture).
    masked: units that a package would start at once with its sample configuration (an open relay, a page on port 80). They
        stay masked while it is installed; `units.running` starts them once they are configured. The mask is in /run, so
        that it does not survive a power failure.
    """
    found = ask(Installed)
    missing = [package for package in packages if package not in found]
    if not missing:
        host.noop("every package is installed")
        return
    say_who_is_waited_for()
    yield script(
        *(shell_file("proxy"), "use_proxy", shell_file("apt")),
        f"masked={quoted(' '.join(masked))}",
        f"install_packages {quoted(*missing)}",
        f"record_packages {quoted(*missing)}",
    )


@operation()
def not_started(drop_ins: Mapping[str, str], source: str) -> Generator[PyinfraCommand, None, None]:
    """The units that packages start do not run, if a deploy installs the packages. Before that.

    drop_ins: package -> the path of a drop-in of its unit that keeps it from starting; source: that in templates/. An
    administrator who has the package already, or who removes the drop-in later, uses the unit.
    """
    installed = ask(Installed)
    entries: list[Entry] = []
    for drop_in in (path for package, path in drop_ins.items() if package not in installed):
        entries += [Directory(drop_in.rpartition("/")[0], mode="755"), Copy(drop_in, source, mode="644")]
    if not entries:
        host.noop(f"{', '.join(drop_ins)} are installed")
        return
    yield from files.present._inner(entries=entries)
