"""python manage.py NAME status"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import gevent
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from compat import Refused
from manage import look
from manage.judgement import alerts_besides, backed_up, certificate_reason, disk_reason, reasons, size
from manage.look import AlertSeen, CertificateSeen, Seen, TableSeen, UpdatesSeen
from manage.machines import Deployment, Machine
from manage.output import as_json, plain, print_json, print_text, printable
from manage.outside import federation_problem
from roles import ROLES, Figure
from settings.deployment import listed
from settings.synapse import Choices as Homeserver

# Characters of a line of a log that are shown.
LONGEST = 200
# Tables that are shown, and the part of outdated rows from which it is shown: by far more than autovacuum leaves.
TABLES, MANY_DEAD = 3, 0.2
# Bytes of a table that are worth a word about that.
LARGE = 64 * 1024 * 1024
# For how long the report of the housekeeping keeps each count.
MONTH = timedelta(days=30)
# Seconds for one machine, its connection included.
PATIENCE = 25
GOOD, BAD, WEAK = "green", "bold red", "dim"


@dataclass(frozen=True)
class Reason:
    """Why not all is well: a sentence, with what to do. machine: its name."""

    machine: str
    text: str


@dataclass(frozen=True)
class Looked:
    """A machine that was looked at. seen: None if it could not be; reasons: why not all is well there."""

    machine: Machine
    seen: Seen | None
    reasons: tuple[Reason, ...]

    @property
    def alerts(self) -> list[AlertSeen]:
        """Alerts that none of the reasons is about."""
        return alerts_besides(self.seen, [reason.text for reason in self.reasons]) if self.seen else []


@click.command()
@as_json
@click.pass_obj
def status(deployment: Deployment, as_json: bool) -> None:
    """Show how the machines are: services, versions, certificates, disks, accounts.

    One look at each machine; nothing is changed, and the vault is not needed. The exit status is 0 if all is well, and 1
    otherwise: the reasons come last. Alerts of the monitoring are shown, and do not change it. `pytest tests/host` looks at
    more, and takes longer.
    """
    looked = look_at_all(deployment)
    if as_json:
        print_json(as_plain(deployment, looked))
    else:
        print_text(*rendered(looked))
    if any(each.reasons for each in looked):
        sys.exit(1)


def look_at_all(deployment: Deployment) -> list[Looked]:
    """Look at every machine, all at once, and from outside."""
    jobs = [gevent.spawn(_look_at, machine, deployment) for machine in deployment.every_machine()]
    gevent.joinall(jobs)
    return [job.get() for job in jobs]


def _look_at(machine: Machine, deployment: Deployment) -> Looked:
    asked = machine.settings
    outside = gevent.spawn(federation_problem, asked if asked.here("synapse") else None)
    try:
        with gevent.Timeout(PATIENCE, Refused(f"{machine.name} has not answered for {PATIENCE} s")):
            # As an argument it would be too long for a machine with many roles: each level of quotation makes it longer.
            lines = machine.run('sh -c "$(cat)"', look.question(asked))
        state = look.machine_state(asked, lines)
        if not state.user:
            raise Refused(f"{machine.name} is too busy: it has not answered for {look.PATIENCE} s")
        seen = look.seen(asked, deployment.settings_of(machine, state), lines)
        if problem := outside.get():
            seen = replace(seen, federation=seen.federation or f"from this computer, {problem}")
        why = tuple(Reason(machine.name, text) for text in reasons(seen, deployment.command_name))
    except Refused as refused:
        # Its own name comes first already.
        text = str(refused).removeprefix(f"{machine.name}: ").removeprefix(f"{machine.name} ")
        advice = "" if machine.host.connected else ": is it up, and is the network?"
        return Looked(machine, None, (Reason(machine.name, f"{text}{advice}"),))
    except (LookupError, ValueError) as error:
        # Of this machine, which must not hide the others.
        text = f"gives an answer that is not understood ({type(error).__name__}: {error}): is its disk full?"
        return Looked(machine, None, (Reason(machine.name, printable(text)),))
    finally:
        machine.close()
    return Looked(machine, seen, why)


# For programs.


def as_plain(deployment: Deployment, looked: Sequence[Looked]) -> dict[str, Any]:
    """What --json prints. The keys are documented in docs/STATUS.md and stay."""
    why = [reason for each in looked for reason in each.reasons]
    return {
        "deployment": deployment.path.stem,
        "well": not why,
        "reasons": plain(why),
        "machines": [_machine_as_plain(each) for each in looked],
    }


def _machine_as_plain(looked: Looked) -> dict[str, Any]:
    settings, seen = looked.machine.settings, looked.seen
    about: dict[str, Any] = {
        "name": looked.machine.name,
        "server_name": settings.server_name,
        "roles": [role.name for role in settings.played],
        "reached": seen is not None,
        "well": not looked.reasons,
    }
    if seen is None:
        return about
    return about | {
        "debian": seen.state.release,
        "units": [
            plain({**vars(unit), "errors": len(unit.errors), "last_error": unit.errors[-1][1] if unit.errors else None})
            for unit in seen.units
        ],
        "failed_units": list(seen.failed),
        "programs": [plain({**vars(each), "current": each.current}) for each in seen.programs],
        "packages": plain(seen.packages),
        "certificates": [_certificate_as_plain(each) for each in seen.certificates],
        "disks": plain(seen.disks),
        "backup": plain(seen.backups) if backed_up(seen) else None,
        "databases": [plain(each) for each in seen.databases],
        "updates": plain(seen.updates),
        "alerts": plain(seen.alerts),
        "banned": None if seen.bans is None else len(seen.bans),
        "housekeeping": plain(seen.housekeeping),
        "journal": plain(seen.journal),
        "federation": None if seen.federation is None else {"works": not seen.federation, "problem": seen.federation},
        "last_deploy": plain(seen.deployed),
        "deploying": seen.state.other_run or None,
    }


def _certificate_as_plain(seen: CertificateSeen) -> dict[str, Any]:
    days = (seen.ends - datetime.now(UTC)).days if seen.ends else None
    return {**plain(seen), "ends": plain(seen.ends), "days": days, "issuer": seen.issuer}


# For people.


def rendered(looked: Sequence[Looked]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for each in looked:
        roles = ", ".join(role.name for role in each.machine.settings.played)
        parts += [Text.assemble((each.machine.name, "bold"), (f"  {roles}", WEAK))]
        if each.seen is None:
            parts += [Padding(Text("was not reached", BAD), (0, 0, 1, 2))]
            continue
        parts += [Padding(_table_of_units(each.seen), (0, 0, 0, 2))] if each.seen.units else []
        parts += [Padding(_facts(each.seen, each.alerts), (1, 0, 1, 2))]
    why = [reason for each in looked for reason in each.reasons]
    alerts = sum(len(each.alerts) for each in looked)
    if not why and alerts:
        parts.append(
            Text(f"All is well, but for {alerts} alert{'s' if alerts > 1 else ''} of the monitoring.", "yellow")
        )
    elif not why:
        parts.append(Text("All is well.", GOOD))
    else:
        parts.append(Text("Something is wrong:" if len(why) == 1 else f"{len(why)} things are wrong:", BAD))
        listed = Table.grid(padding=(0, 1))
        for number, reason in enumerate(why, 1):
            listed.add_row(Text(f"{number}.", justify="right"), Text(f"{reason.machine}: {reason.text}"))
        parts.append(Padding(listed, (0, 0, 0, 1)))
    return parts


def _table_of_units(seen: Seen) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style=WEAK)
    table.add_column("service")
    table.add_column("state")
    table.add_column("since", no_wrap=True)
    table.add_column("crashes", justify="right", no_wrap=True)
    table.add_column(f"errors, {look.HOURS} h", justify="right", no_wrap=True)
    for unit in seen.units:
        state = "works" if unit.works else "does not work" if unit.state == "active" else unit.state
        table.add_row(
            unit.title.removeprefix("the "),
            Text(state, GOOD if unit.works else BAD),
            ago(unit.since) if unit.since else "-",
            Text(str(unit.restarts), "yellow" if unit.restarts else WEAK),
            Text(str(len(unit.errors)), "yellow" if unit.errors else WEAK),
        )
    return table


def _facts(seen: Seen, alerts: Sequence[AlertSeen]) -> Table:
    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_column(style=WEAK, no_wrap=True)
    table.add_column()
    for label, fact in (*_rows(seen), *_alerts(seen, alerts)):
        table.add_row(label, fact)
    return table


def _rows(seen: Seen) -> Iterator[tuple[str, Text]]:
    versions = Text(f"Debian {seen.state.release}")
    for program in seen.programs:
        versions.append(f", {program.name} ")
        versions.append(program.found or "none", "" if program.current else BAD)
    # Those with a unit of their own, and not the tools.
    with_units = [role.packages[0] for role in seen.settings.played if any(unit.masked for unit in role.units)]
    for package in seen.packages:
        if package.name in map(seen.settings.written, with_units):
            versions.append(
                f", {package.name} {package.version.partition('-')[0] or 'none'}", "" if package.version else BAD
            )
    yield "versions", versions
    wrong = [each for each in seen.certificates if certificate_reason(each)]
    for style, certificates in ((BAD, wrong), ("", [each for each in seen.certificates if each not in wrong])):
        for text, names in _certificates(certificates).items():
            shown = ", ".join(names) if style else _together(names, seen.settings.server_name)
            yield "certificates", Text(f"{text}: {shown}", style)
    for disk in seen.disks:
        part = disk.free / disk.size if disk.size else 0
        text = f"{size(disk.free)} of {size(disk.size)} free on {disk.path} ({part:.0%})"
        yield "disk", Text(text, BAD if disk_reason(disk) else "")
    for database in seen.databases:
        record = ROLES[database.role].database
        figures = record.figures if record else ()
        numbers = [_figure(each, database.figures) for each in figures]
        total = size(database.size) if database.size is not None else "no answer"
        yield "database", Text(", ".join((f"{database.name} {total}", *numbers)))
    if seen.federation is not None:
        works = Text("other homeservers find this one and its keys")
        yield "federation", Text(seen.federation, BAD) if seen.federation else works
    for unit in seen.units:
        if unit.errors:
            when, text = unit.errors[-1]
            yield "last error", Text(f"{unit.title.removeprefix('the ')}, {ago(when)} ago: {text[:LONGEST]}", "yellow")
    if seen.updates:
        yield "updates", _updates(seen.updates)
    if seen.bans is not None:
        yield "bans", Text(f"{len(seen.bans) or 'no'} address{'' if len(seen.bans) == 1 else 'es'} banned")
    yield "backup", _backup(seen)
    if seen.settings.here("synapse"):
        yield "housekeeping", _housekeeping(seen)
    if seen.housekeeping and seen.housekeeping.tables:
        yield "large tables", Text(", ".join(_table(each) for each in seen.housekeeping.tables[:TABLES]))
    if seen.journal:
        since = f", {ago(seen.journal.since)} back" if seen.journal.since else ""
        limit = seen.settings.choices.journal_max_size
        gone = seen.journal.removed
        removed = f", {gone:,} older entr{'y' if gone == 1 else 'ies'} removed" if gone else ""
        yield "journal", Text(f"{size(seen.journal.size)}{f' of at most {limit}' if limit else ''}{since}{removed}")
    yield "deployed", _deployed(seen)


def _alerts(seen: Seen, alerts: Sequence[AlertSeen]) -> Iterator[tuple[str, Text]]:
    """alerts: those that are shown here, as no reason is about them."""
    if seen.settings.here("monitoring") and not alerts:
        yield "alerts", Text("no answer" if seen.alerts is None else "no others" if seen.alerts else "none")
    for alert in alerts:
        since = f" (for {ago(alert.since)})" if alert.since else ""
        yield "alert", Text(f"{alert.summary}{since}{': ' if alert.todo else ''}{alert.todo}", "yellow")


def _figure(figure: Figure, figures: Mapping[str, int | None]) -> str:
    value = figures.get(figure.name)
    meaning = figure.of_one if value == 1 and figure.of_one else figure.meaning
    return f"{'?' if value is None else size(value) if figure.size else value} {meaning}"


def _certificates(certificates: Sequence[CertificateSeen]) -> dict[str, list[str]]:
    """What is shown about certificates -> the names that have it in common."""
    found: dict[str, list[str]] = {}
    for each in certificates:
        place = each.name if each.port == 443 else f"{each.name}:{each.port}"
        text = f"{until(each.ends)} left" if each.ends else "none"
        found.setdefault(text, []).append(place)
    return found


def _together(names: Sequence[str], server_name: str) -> str:
    """The names below the server name without it: they are many."""
    end = re.compile(rf"\.{re.escape(server_name)}(?=:\d+$|$)")
    below = [each for each in names if end.search(each)]
    if len(below) < 3:
        return ", ".join(names)
    short = f"below {server_name}: {', '.join(end.sub('', each) for each in below)}"
    return "; ".join(filter(None, [", ".join(each for each in names if each not in below), short]))


def _backup(seen: Seen) -> Text:
    if not backed_up(seen):
        return Text("no backup", "yellow")
    if not seen.backups:
        return Text("none yet", BAD)
    return Text(
        ", ".join(f"{each.part} {ago(each.last_success) if each.last_success else 'never'}" for each in seen.backups)
    )


def _updates(found: UpdatesSeen) -> Text:
    text = Text(f"security updates {ago(found.installed)} ago" if found.installed else "no security updates yet")
    if found.failed:
        text.append(", the last time failed", BAD)
    if found.kept_back:
        text.append(f", not of {listed(found.kept_back)}", BAD)
    if found.reboot:
        text.append(", a reboot is due", "yellow")
    return text


def _housekeeping(seen: Seen) -> Text:
    found = seen.housekeeping
    if not found or not found.at or not found.since:
        return Text("nothing was counted yet", WEAK)
    freed = ", ".join(freed_words(found.month)) or "nothing"
    if found.at == found.since:
        text = f"first counted {ago(found.at)} ago: what was freed is known after the next count"
    else:
        text = f"freed {freed} in {span(min(found.at - found.since, MONTH))}, counted {ago(found.at)} ago"
    # What could be freed, with the setting that does it, where it is not set.
    homeserver = seen.settings.section(Homeserver)
    if not homeserver.remote_media_days and found.unused:
        text += f"; {size(found.unused)} of other servers' media were not used for 90 days (remote_media_days)"
    if not homeserver.forget_left_rooms and found.empty_rooms:
        rooms = "1 room has" if found.empty_rooms == 1 else f"{found.empty_rooms} rooms have"
        text += f"; {rooms} nobody of this homeserver (forget_left_rooms)"
    return Text(text)


def freed_words(freed: Mapping[str, int]) -> Iterator[str]:
    """What Synapse has removed, for people; nothing that it has removed none of."""
    for kind, words in (("remote_media", "other servers' media"), ("local_media", "own media")):
        if number := freed.get(f"{kind}_files", 0):
            yield f"{size(freed.get(f'{kind}_bytes', 0))} of {words} ({number} file{'s' if number > 1 else ''})"
    for kind, word in (("rooms", "room"), ("devices", "device"), ("events", "event")):
        if number := freed.get(kind, 0):
            yield f"{number} {word}{'s' if number > 1 else ''}"


def _table(table: TableSeen) -> str:
    dead = table.dead_rows / max(1, table.rows + table.dead_rows)
    return f"{table.name} {size(table.size)}{f' ({dead:.0%} outdated)' if dead > MANY_DEAD and table.size >= LARGE else ''}"


def _deployed(seen: Seen) -> Text:
    if seen.state.other_run:
        return Text(f"being deployed now: {seen.state.other_run}")
    if not seen.deployed:
        return Text("not known", WEAK)
    commit = f" ({seen.deployed.commit})" if seen.deployed.commit else ""
    return Text(f"{ago(seen.deployed.at)} ago by {seen.deployed.by}, version {seen.deployed.version}{commit}")


def ago(moment: datetime) -> str:
    """How long ago, in one unit."""
    return span(datetime.now(UTC) - moment)


def until(moment: datetime) -> str:
    """How long until then; "none" if it is over."""
    left = moment - datetime.now(UTC)
    return span(left) if left > timedelta(0) else "nothing"


def span(time: timedelta) -> str:
    seconds = max(0, int(time.total_seconds()))
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length or (unit == "minute" and seconds >= length):
            number = seconds // length
            return f"{number} {unit}{'' if number == 1 else 's'}"
    return f"{seconds} s"
