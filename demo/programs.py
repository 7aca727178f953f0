"""The roles of the demo whose programs come from release pages: a role is left out if its program is not available.

What was found is written down for demo/demo.py and demo/group_data/demo.py, so that later runs use the same choice.
"""

import json
import os
import runpy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from releases import Release, ReleaseError, store
from roles import ADMIN, ELEMENT, MAS, MONITORING, ROLES, RTC, SLIDING_SYNC, Role
from settings import Choices, admin, choices_from, element, mas, monitoring, rtc, sliding_sync

ROOT = Path(__file__).parent.parent
FOUND = ROOT / ".cache" / "demo-programs.json"


@dataclass(frozen=True)
class Program:
    """A program from a release page. variable: an environment variable that names its file; setting: what the deploy calls that.

    without: what people miss without it. title: what it is called, if not as its role.
    """

    role: Role
    variable: str
    setting: str
    release: Callable[[Any, str, Path], Release]
    without: str
    title: str = ""


PROGRAMS = (
    Program(MAS, "MAS_BINARY", "mas_archive", mas.release_of, "to create accounts in Element X"),
    Program(
        RTC, "LIVEKIT_ARCHIVE", "livekit_archive", lambda *given: rtc.releases_of(*given)[0], "for calls in Element X"
    ),
    Program(
        RTC,
        "LK_JWT_BINARY",
        "lk_jwt_binary",
        lambda *given: rtc.releases_of(*given)[1],
        "for calls in Element X",
        "lk-jwt-service",
    ),
    Program(ELEMENT, "ELEMENT_WEB_ARCHIVE", "element_archive", element.release_of, "to write in a browser"),
    Program(ADMIN, "KETESA_ARCHIVE", "ketesa_archive", admin.release_of, "to administer in a browser"),
    Program(MONITORING, "UPLOT_ARCHIVE", "uplot_archive", monitoring.release_of, "for pictures of how the machine is"),
    Program(SLIDING_SYNC, "SLIDING_SYNC_BINARY", "sliding_sync_binary", sliding_sync.release_of, "for old clients"),
)


# A throw-away host has no other disk for backups.
NEVER = {"backup"}


@dataclass(frozen=True)
class Found:
    """given: setting -> the file that was named. missing: setting -> why its program cannot be had."""

    given: Mapping[str, str]
    missing: Mapping[str, str]

    @property
    def played(self) -> list[Role]:
        """The roles that the demo has."""
        without = NEVER | {program.role.name for program in PROGRAMS if program.setting in self.missing}
        return [role for role in ROLES.values() if role.name not in without]

    @property
    def explanation(self) -> str:
        """What was left out, why, and how to add it."""
        lines: list[str] = []
        for program in PROGRAMS:
            if reason := self.missing.get(program.setting):
                title = program.title or program.role.title[0].upper() + program.role.title[1:]
                lines += ["", f"{title}, {program.without}, was left out:", f"    {reason}", "This adds it:"]
                lines += [f"    {program.variable}=/path/to/{_file(program)} make demo"]
        return "\n".join(lines)


def mistakes() -> list[str]:
    """Variables that name a file that is not there, a line for each."""
    return [
        f"{program.variable}={named}: there is no such file; it names {_file(program)} from its release page"
        for program in PROGRAMS
        if (named := os.environ.get(program.variable)) and not Path(named).expanduser().is_file()
    ]


def look_for(say: Callable[[str], None]) -> Found:
    """Find out which programs there are: named now, named earlier, or on the release page."""
    before = found().given
    given: dict[str, str] = {}
    missing: dict[str, str] = {}
    for program in PROGRAMS:
        named = os.environ.get(program.variable) or before.get(program.setting, "")
        if named and Path(named).expanduser().is_file():
            given[program.setting] = str(Path(named).expanduser().resolve())
            continue
        say(f"Looking for {program.role.title} on its release page.")
        try:
            store.resolve(_release(program))
        except ReleaseError as error:
            missing[program.setting] = str(error)
    FOUND.parent.mkdir(exist_ok=True)
    FOUND.write_text(json.dumps({"given": given, "missing": missing}))
    return Found(given, missing)


def found() -> Found:
    """What was found last."""
    try:
        return Found(**json.loads(FOUND.read_text()))
    except FileNotFoundError:
        return Found({}, {})


def _release(program: Program) -> Release:
    """The release that the deploy will need, without connecting to the machine."""
    arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    data = {**runpy.run_path(str(ROOT / "group_data/all.py")), "server_name": "demo.test"}
    chosen = choices_from({name: value for name, value in data.items() if name in Choices.model_fields}, "demo")
    return program.release(chosen, arch, ROOT / "inventories/demo.lock")


def _file(program: Program) -> str:
    return (_release(program).url or "").rpartition("/")[2]
