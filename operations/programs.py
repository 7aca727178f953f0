"""Programs below /opt, and the way back from a version that does not come up.

A task switches to a new version in three steps: `virtualenvs.in_use` or `releases.installed`, `files.present`, `units.running`.
Before the first of them, the machine keeps aside which version has been running, and the files that it runs with. The last one
starts the new version, in a unit that goes on without this computer: if the new version does not come up, the one before is put
back with its files, and started again. `sh/program.sh` does all of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from operations.shell import quoted, shell_file

# What the machine keeps of versions that are not known to come up yet, and a line about each that did not come up.
KEPT = "/var/lib/matrix-metal/upgrades"


class Source(Protocol):
    """Where a program comes from: operations.virtualenvs.Virtualenv, or releases.Release."""

    @property
    def home(self) -> str:
        """Its directory below /opt, which has one for each version, and the link `current`."""

    @property
    def version(self) -> str:
        """The version that is wanted."""

    @property
    def distribution(self) -> str:
        """What it is called among Python's distributions; "" if it is none of those."""


@dataclass(frozen=True)
class Program:
    """A program, and the unit that runs it.

    files: what it runs with, besides the definition of its unit: put back together with the version before.
    compatible: a shell command, to which two versions (names of their directories) are added. It prints whether the second can
        run with the data of the first: "impossible"; "one-way", if the first could not any more afterwards; else anything.
    one_way: the version to which it may be switched although there is no way back.
    """

    title: str
    source: Source
    unit: str
    files: Sequence[str]
    compatible: str = ""
    one_way: str | None = None

    @property
    def kept(self) -> str:
        return f"{KEPT}/{self.source.home.rpartition('/')[2]}"

    @property
    def shell(self) -> str:
        """operations/sh/program.sh, for this one."""
        values = {
            "home": self.source.home,
            "kept": self.kept,
            "title": self.title.removeprefix("the "),
            "unit": self.unit,
            "distribution": self.source.distribution.replace("-", "_"),
            "wanted": self.source.version,
            "one_way": self.one_way or "",
        }
        given = " ".join(f"{name}={quoted(value)}" for name, value in values.items())
        return f'{given}\ncompatible() {{ {self.compatible or "true"} "$@" 2>/dev/null; }}\n{shell_file("program")}'

    def keep(self, directory: str) -> str:
        """Shell that comes before `current` leads to this directory: refuses it, or keeps what is needed for the way back."""
        paths = quoted(*self.files, f"/etc/systemd/system/{self.unit}")
        return f"{self.shell}may_switch {quoted(directory)}\nkeep {paths}"


def read_back(kept: str) -> str:
    """Shell that sets $back to the version to which there is a way back, if there is one. kept: directory, as shell."""
    return f"[ ! -e {kept}/from ] || read -r back <{kept}/from"
