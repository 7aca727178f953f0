"""How far back `manage.py NAME restore --to TIME` reaches, and up to when."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from compat import Refused
from manage.machines import Machine
from operations.backups import Prepared
from operations.machine import BACKUP_HOME
from roles import BACKUP_USER
from settings.backup import Access, Choices, Target

# Seconds that the target has to answer.
PATIENCE = 20
# Its messages are no part of the answer.
ASK = (
    f"cd / && timeout {PATIENCE} runuser -u postgres -- pgbackrest --config={BACKUP_HOME}/pgbackrest.conf --stanza=main "
    "--output=json info 2>/dev/null || true"
)


@dataclass(frozen=True)
class Reach:
    """The earliest moments, in seconds since the epoch.

    exact: as of which any can be restored; None: none yet. first: as of which anything can. older: the version of PostgreSQL
    before `exact`, from which only a dump of each day can be restored; None: there is nothing before.
    """

    exact: int | None
    first: int
    older: str | None = None

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> "Reach | None":
        """By what pgBackRest knows; None: there is no backup."""
        versions = {each["id"]: str(each["version"]) for each in info["db"]}
        # The first second after the backup has ended, as `restore` has it.
        ends = [(versions[each["database"]["id"]], int(each["timestamp"]["stop"]) + 1) for each in info["backup"]]
        if not ends:
            return None
        version = str(info["db"][-1]["version"])
        same = [end for each, end in ends if each == version]
        older = ends[0][0] if ends[0][0] != version else None
        return cls(same[0] if same else None, ends[0][1], older)


def reach_of(machine: Machine) -> Reach | None:
    """What the machine's target says now; None: there is no backup of the database. Raises Refused if it does not say."""
    answer = "\n".join(machine.run(ASK))
    try:
        [found] = json.loads(answer, strict=False)
    except ValueError:
        raise Refused(f"{machine.name}: the target does not say how far back it reaches") from None
    if found["status"]["code"] not in (0, 2):
        message = " ".join(re.sub(r"[^ -~]", " ", str(found["status"]["message"])).split())
        raise Refused(f"{machine.name}: the target does not say how far back it reaches ({message[:200]})")
    return Reach.of(found)


def check_reach(machine: Machine, to: float | None) -> None:
    """Raises Refused if the target of the settings has nothing from before `to`.

    Only a machine that makes backups there can ask. With any other, the restore itself looks before it replaces anything.
    """
    target = machine.settings.section(Choices).backup_target
    if to is None or not target or not machine.settings.here("postgres"):
        return
    access = Access.of(machine.settings, BACKUP_HOME, Target.parse(target), machine.name)
    try:
        repository = f"{access.repository('')} {access.target.kind} {BACKUP_USER}"
        if not machine.ask(Prepared, repository=repository):
            return
        reach = reach_of(machine)
    except Refused:
        return
    finally:
        machine.close()
    if reach and to < reach.first:
        raise Refused(
            f"{machine.name}: there is no backup of the database from before {shown(to)} UTC: --to reaches back to "
            f"{shown(reach.first)} UTC. Nothing was touched"
        )


def line_of(reach: Reach | None, parts: Sequence[Mapping[str, Any]], with_database: bool) -> str:
    """A line for people. parts: what the jobs on the machine say."""
    known = {part["part"]: part for part in parts}
    files = (known.get("files") or {}).get("success")
    newest = f"the newest is of {shown(moment(files))} UTC" if files else "there is none yet"
    media = f"media and other files are those of the first backup of files after that moment ({newest})"
    if not with_database:
        return f"`restore --to` takes the first backup of files after that moment ({newest})"
    if not reach:
        return "`restore --to` reaches nothing yet: there is no backup of the database"
    end = (known.get("wal") or {}).get("restore_to")
    until = f"{shown(max(moment(end), reach.exact or 0))} UTC" if end else "the end of the database's log at the target"
    dumps = f"the daily dumps of PostgreSQL {reach.older}, none of which is from before {shown(reach.first)} UTC"
    if reach.exact is None:
        return f"`restore --to` has only {dumps}; {media}"
    before = f" (before that, only {dumps})" if reach.older else ""
    return f"`restore --to` reaches from {shown(reach.exact)} UTC{before} to {until}; {media}"


def shown(when: float) -> str:
    """In UTC, as `--to` takes it."""
    return f"{datetime.fromtimestamp(when, UTC):%Y-%m-%d %H:%M:%S}"


def at(when: float) -> str:
    """As in a job's file."""
    return f"{datetime.fromtimestamp(when, UTC):%Y-%m-%dT%H:%M:%SZ}"


def moment(text: str) -> float:
    """A time of a job's file."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
