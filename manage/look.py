"""One look at a machine for `manage.py NAME status`: one command, in which every probe runs beside the others.

What is asked follows from the records of the machine's roles. Here is what the answers are; what is wrong with them is
decided in manage/judgement.py.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID

from manage.output import printable
from operations.certificates import Served
from operations.look import Answers, Question
from operations.machine import BACKUP_STATE, MachineState
from operations.machine import Machine as MachineFact
from operations.shell import Fact, quoted, shell_file
from operations.units import seconds_since_epoch, unrecovered
from releases import Release, ReleaseError, store
from roles import (
    ALERTS_QUESTION,
    ASK_POSTGRES,
    BANS,
    BANS_DATABASE,
    BANS_JAIL,
    FEDERATION_PORT,
    HOUSEKEEPING_REPORT,
    PACKAGES,
    ROLES,
    TRACEBACK,
    UPDATES_APT,
    UPDATES_JOBS,
    Role,
    Unit,
    any_version,
)
from settings import Settings
from settings.synapse import Choices as Homeserver

# Seconds that a probe may take, and hours of the logs that are searched for errors, of which at most so many lines are read.
PATIENCE, HOURS, LINES = 10, 6, 200
LAST_DEPLOY = "/var/lib/matrix-metal/last_deploy.json"
_PROPERTIES = "Id,LoadState,ActiveState,SubState,NRestarts,InvocationID,ExecMainStartTimestamp"
# Milliseconds: a table of a large homeserver takes longer to count than anybody waits.
_QUICKLY = "-c default_transaction_read_only=on -c statement_timeout=2000"


@dataclass(frozen=True)
class UnitSeen:
    """A unit. works: its health command succeeds. since: when it was started. errors: lines of the last hours, newest last."""

    role: str
    name: str
    title: str
    state: str
    works: bool
    since: datetime | None
    restarts: int
    errors: tuple[tuple[datetime, str], ...] = ()


@dataclass(frozen=True)
class ProgramSeen:
    """A program below /opt. installed: the directory in use. running: those that a process of a unit runs from.

    wanted: the directory that a deploy would put to use, or how its name begins. version: what people call the wanted one.
    found: what they call the installed one.
    """

    role: str
    name: str
    version: str
    wanted: str
    installed: str
    found: str
    running: tuple[str, ...] = ()

    @property
    def current(self) -> bool:
        return self.installed.startswith(self.wanted)


@dataclass(frozen=True)
class PackageSeen:
    """A Debian package that a role needs. version: "" if it is not installed."""

    name: str
    version: str


@dataclass(frozen=True)
class CertificateSeen:
    """What is presented for a name on a port; None if nothing is."""

    name: str
    port: int
    certificate: x509.Certificate | None = field(repr=False)

    @property
    def ends(self) -> datetime | None:
        return self.certificate.not_valid_after_utc if self.certificate else None

    @property
    def issuer(self) -> str:
        names = self.certificate.issuer.get_attributes_for_oid(NameOID.COMMON_NAME) if self.certificate else []
        return str(names[0].value) if names else ""


@dataclass(frozen=True)
class DiskSeen:
    """A file system with data. size, free: bytes. inodes_free: percent, for file systems that have a fixed number of them."""

    path: str
    size: int
    free: int
    inodes_free: int | None


@dataclass(frozen=True)
class BackupSeen:
    """A part of the backup, as its job reports it. last_failure: None if it succeeded since. late_after: seconds."""

    part: str
    last_success: datetime | None
    last_failure: datetime | None
    error: str = ""
    late_after: int = 26 * 60 * 60


@dataclass(frozen=True)
class DeploySeen:
    """A deploy. by: who ran it. version, commit: what was deployed, if that is known."""

    at: datetime
    by: str
    version: str = ""
    commit: str = ""


@dataclass(frozen=True)
class DatabaseSeen:
    """A database. size: bytes; figures: those of its record. None: it gave no answer in time."""

    role: str
    name: str
    size: int | None
    figures: Mapping[str, int | None]


@dataclass(frozen=True)
class TableSeen:
    """A table. size: bytes, with its indexes. dead_rows: outdated ones, whose space is not used again yet. Times: the last."""

    name: str
    size: int
    rows: int
    dead_rows: int
    vacuumed: datetime | None
    analyzed: datetime | None


@dataclass(frozen=True)
class HousekeepingSeen:
    """What Synapse has removed by itself. at: the last count; since: the first.

    freed: numbers since the count before (`last`), and of the last 30 days (`month`), by what they count. unused: bytes of other
    homeservers' media that nobody has used for long. empty_rooms: those with nobody of this homeserver. tables: the largest.
    """

    at: datetime | None
    since: datetime | None
    last: Mapping[str, int]
    month: Mapping[str, int]
    unused: int
    empty_rooms: int
    tables: tuple[TableSeen, ...]


@dataclass(frozen=True)
class UpdatesSeen:
    """Security updates. source: whether apt knows where Debian's are. since: when their role came to the machine.

    lists, installed: when the lists of packages were read, and updates were installed, without an error. failed: whether the last
    attempt to install them was. kept_back: packages of which an update was left out. reboot: whether one is due; reboot_for: the
    packages that want it, if they are known.
    """

    source: bool
    since: datetime | None
    lists: datetime | None
    installed: datetime | None
    failed: bool
    kept_back: tuple[str, ...]
    reboot: bool
    reboot_for: tuple[str, ...]

    @classmethod
    def of(cls, lines: Sequence[str]) -> "UpdatesSeen":
        """From the answer to UPDATES_QUESTION."""
        said = {key: value for key, _, value in (line.partition(" ") for line in lines)}
        times = {key: _time(int(value)) for key, value in said.items() if value.isdigit()}
        installed, begun = times.get("installed"), times.get("begun")
        return cls(
            source="source" in said,
            since=times.get("since"),
            lists=times.get("lists"),
            installed=installed,
            failed=begun is not None and "updating" not in said and (installed is None or installed < begun),
            kept_back=tuple(said.get("kept_back", "").split()),
            reboot="reboot" in said,
            reboot_for=tuple(said.get("reboot", "").split()),
        )


# As root.
UPDATES_QUESTION = f"role={UPDATES_APT} job={UPDATES_JOBS[1]}.service\n{shell_file('updates')}\nabout_updates"


@dataclass(frozen=True)
class BanSeen:
    """A ban. address: of IPv6, the /64 that is banned. failures: those that were counted. times: how often it was banned."""

    address: str
    since: datetime
    until: datetime
    failures: int
    times: int

    @classmethod
    def of(cls, lines: Sequence[str]) -> "tuple[BanSeen, ...]":
        """From the answer to BANS_QUESTION, the newest last."""
        found = []
        for line in lines:
            address, since, seconds, times, failures = line.split()
            begin = datetime.fromtimestamp(int(since), UTC)
            shown = f"{address}/64" if ":" in address else address
            found.append(cls(shown, begin, begin + timedelta(seconds=int(seconds)), int(failures), int(times)))
        return tuple(sorted(found, key=lambda ban: ban.since))


_BANNED = """
import json, sqlite3, time
query = "SELECT ip, timeofban, bantime, bancount, data FROM bips WHERE jail = ? AND timeofban + bantime > ?"
for *ban, data in sqlite3.connect("file:DATABASE?mode=ro", uri=True).execute(query, ("JAIL", time.time())):
    print(*ban, json.loads(data)["failures"])
""".replace("DATABASE", BANS_DATABASE).replace("JAIL", BANS_JAIL)
# As root. fail2ban ends all bans when it is stopped, and has them in its database for the next start. Asked as its user: what it
# says there, root need not believe.
AS_BANS = f"cd / && runuser -u {BANS.units[0].user} --"
BANS_QUESTION = (
    f"! systemctl is-active --quiet {BANS.units[0].name} || {{ {AS_BANS} python3 -I -c {quoted(_BANNED)}; }}"
)


@dataclass(frozen=True)
class AlertSeen:
    """An alert that fires. todo: a sentence, what to do, or "". about: its labels, which say what it is about."""

    name: str
    summary: str
    todo: str
    since: datetime | None
    about: Mapping[str, str]


@dataclass(frozen=True)
class JournalSeen:
    """The machine's journal: its size in bytes, when its first entry was written, and how many before that one were removed.

    journald numbers all entries, also across restarts of the machine. Only the system's are looked at: those of people are in
    other files, which stay longer.
    """

    size: int
    since: datetime | None
    removed: int = 0


@dataclass(frozen=True)
class Seen:
    """What was seen of a machine.

    failed: units that have failed, whoever they belong to. began: the last run that has begun, if it is known.
    federation: why other homeservers do not reach this one, "" if they do; None: it was not asked.
    alerts: those of the monitoring; None: Alertmanager does not answer, or is not here.
    """

    settings: Settings
    units: tuple[UnitSeen, ...]
    programs: tuple[ProgramSeen, ...]
    packages: tuple[PackageSeen, ...]
    certificates: tuple[CertificateSeen, ...]
    disks: tuple[DiskSeen, ...]
    backups: tuple[BackupSeen, ...]
    databases: tuple[DatabaseSeen, ...]
    failed: tuple[str, ...]
    deployed: DeploySeen | None
    began: DeploySeen | None
    federation: str | None
    housekeeping: HousekeepingSeen | None = None
    journal: JournalSeen | None = None
    updates: UpdatesSeen | None = None
    bans: tuple[BanSeen, ...] | None = None
    alerts: tuple[AlertSeen, ...] | None = None

    @property
    def state(self) -> MachineState:
        return self.settings.machine


def _units(settings: Settings) -> Iterator[tuple[Role, Unit]]:
    for role in settings.played:
        for unit in role.units:
            yield role, unit


def _served(settings: Settings) -> list[Served]:
    return list({(each.domain, each.port): each for each in settings.served}.values())


def _databases(settings: Settings) -> Iterator[Role]:
    if settings.here("postgres"):
        yield from (role for role in ROLES.values() if role.database and settings.exists(role.name))


# Questions.


def question(settings: Settings) -> str:
    """The one command. settings: before anything is known about the machine."""
    probes = _probes(settings).values()
    return Answers().question([Question(Fact, f"timeout -k 1 {PATIENCE} sh -c {quoted(probe)}") for probe in probes])


def _probes(settings: Settings) -> dict[str, str]:
    """What is asked, by a name for the answer. PostgreSQL's version is not known yet: its unit is asked for by a pattern."""
    names = quoted(*(any_version(unit.name) for _, unit in _units(settings)))
    of_roles = [any_version(package) for role in settings.played for package in role.packages]
    packages = dict.fromkeys([*of_roles, *settings.packages, *PACKAGES])
    states = quoted(*(path for role in settings.played for path in role.state), "/opt", "/var/log")
    probes = {
        "machine": MachineFact().question(),
        "failed": "systemctl --failed --plain --no-legend",
        "units": f"systemctl show --timestamp=us+utc -p {_PROPERTIES} -- {names}",
        "running": (
            f"for pid in $(systemctl show -p MainPID --value -- {names}); do "
            '[ "$pid" = 0 ] || grep -ho "/opt/[^/ ]*/[^/ ]*/" "/proc/$pid/maps"; done | sort -u'
        ),
        "installed": 'for link in /opt/*/current; do [ -L "$link" ] && echo "$link $(readlink "$link")"; done; '
        "ls -d /opt/*/current/lib/python3*/site-packages/*.dist-info",
        "packages": f"dpkg-query --show --showformat '${{db:Status-Status}} ${{Package}} ${{Version}}\\n' {quoted(*packages)}",
        "disks": f"df -B1 --output=size,avail,itotal,iavail,target {states} | tail -n +2 | sort -b -u -k 5",
        "backups": f"for file in {BACKUP_STATE}/*.json {BACKUP_STATE}/*/*.json; do "
        '[ ! -e "$file" ] || { tr -d "\\n" <"$file"; echo; }; done',
        "deployed": f'[ ! -s {LAST_DEPLOY} ] || echo "$(stat -c %Y {LAST_DEPLOY}) $(cat {LAST_DEPLOY})"',
        "began": '[ ! -s /run/matrix-metal/run ] || echo "$(stat -c %Y /run/matrix-metal/run) $(cat /run/matrix-metal/run)"',
    }
    for _, unit in _units(settings):
        probes[f"health {unit.name}"] = f"sh -c {quoted(unit.health)} >/dev/null 2>&1 && echo works"
        if unit.errors:
            pattern = "|".join(filter(None, (unit.errors, unit.recoveries)))
            probes[f"log {unit.name}"] = (
                f"journalctl --no-pager -q -o json --output-fields=MESSAGE,_SYSTEMD_INVOCATION_ID -n {LINES} "
                f"--since=-{HOURS}h --case-sensitive=true --grep={quoted(pattern)} -u {quoted(any_version(unit.name))}"
            )
    for served in _served(settings):
        probes[f"certificate {served.domain}:{served.port}"] = (
            f"openssl s_client -connect 127.0.0.1:{served.port} -servername {quoted(served.domain)} "
            "-no-CAfile -no-CApath -no-CAstore </dev/null | openssl x509"
        )
    for role in _databases(settings):
        assert role.database
        name = role.database.name
        queries = [f"SELECT 'size', pg_database_size('{name}')"]
        queries += [f"SELECT '{each.name}', ({each.query})" for each in role.database.figures]
        asked = " ".join(f"-c {quoted(query)}" for query in queries)
        probes[f"database {role.name}"] = (
            f"{ASK_POSTGRES} PGOPTIONS={quoted(_QUICKLY)} psql -XAtq -F ' ' -d {name} {asked}"
        )
    probes["journal"] = (
        "du -sB1 /var/log/journal /run/log/journal | awk '{ n += $1 } END { print n }'; "
        "journalctl --system -q --no-pager -o json --output-fields=_BOOT_ID | head -n 1"
    )
    if settings.here("updates"):
        probes["updates"] = UPDATES_QUESTION
    if settings.here("bans"):
        probes["bans"] = BANS_QUESTION
    if settings.here("monitoring"):
        probes["alerts"] = f"curl -qsf --noproxy '*' --max-time 2 {quoted(ALERTS_QUESTION)}"
    if settings.here("synapse"):
        probes["housekeeping"] = f"[ ! -s {HOUSEKEEPING_REPORT} ] || tr -d '\\n' <{HOUSEKEEPING_REPORT}"
    if settings.here("synapse") and settings.section(Homeserver).federation:
        probes["federation"] = f"{shell_file('federation')}\nreach {quoted(settings.server_name)} {FEDERATION_PORT}"
    return probes


# Answers.


def machine_state(settings: Settings, lines: Sequence[str]) -> MachineState:
    """The state of the machine, which the other answers are understood with. settings: those of the question."""
    return MachineFact().answer(_answers(settings, lines)["machine"])


def _answers(settings: Settings, lines: Sequence[str]) -> dict[str, list[str]]:
    numbered = Answers().answer(list(lines))
    return {name: numbered.get(number, []) for number, name in enumerate(_probes(settings))}


def seen(asked: Settings, settings: Settings, lines: Sequence[str]) -> Seen:
    """What the answers say. asked: the settings of the question; settings: those with the state of the machine."""
    answers = _answers(asked, lines)
    return Seen(
        settings=settings,
        units=tuple(_units_seen(settings, answers)),
        programs=tuple(_programs_seen(settings, answers)),
        packages=tuple(_packages_seen(settings, answers["packages"])),
        certificates=tuple(
            CertificateSeen(each.domain, each.port, _certificate(answers[f"certificate {each.domain}:{each.port}"]))
            for each in _served(asked)
        ),
        disks=tuple(_disks_seen(answers["disks"])),
        backups=tuple(_backups_seen(answers["backups"])),
        databases=tuple(_database_seen(role, answers[f"database {role.name}"]) for role in _databases(settings)),
        failed=tuple(line.split()[0] for line in answers["failed"]),
        deployed=_deployed(answers["deployed"]),
        began=_began(answers["began"]),
        federation=_federation(settings, answers["federation"]) if "federation" in answers else None,
        housekeeping=_housekeeping(answers.get("housekeeping", [])),
        journal=_journal(answers["journal"]),
        updates=UpdatesSeen.of(answers["updates"]) if "updates" in answers else None,
        bans=BanSeen.of(answers["bans"]) if "bans" in answers else None,
        alerts=_alerts(answers.get("alerts", [])),
    )


def _units_seen(settings: Settings, answers: Mapping[str, list[str]]) -> Iterator[UnitSeen]:
    shown: dict[str, dict[str, str]] = {}
    properties: dict[str, str] = {}
    for line in [*answers["units"], ""]:
        if line:
            key, _, value = line.partition("=")
            properties[key] = value
        elif properties:
            shown[properties.get("Id", "")] = properties
            properties = {}
    for role, unit in _units(settings):
        about = shown.get(settings.written(unit.name), {})
        state = about.get("ActiveState", "inactive") if about.get("LoadState", "") == "loaded" else "missing"
        started = about.get("ExecMainStartTimestamp", "")
        yield UnitSeen(
            role=role.name,
            name=settings.written(unit.name),
            title=role.title_of(unit),
            state=state if about.get("SubState") != "auto-restart" else "failing",
            works=state == "active" and answers[f"health {unit.name}"] == ["works"],
            since=_time(seconds_since_epoch(started)) if state == "active" and started else None,
            restarts=int(about.get("NRestarts") or 0),
            errors=tuple(_errors(unit, answers.get(f"log {unit.name}", []), about.get("InvocationID", ""))),
        )


def _errors(unit: Unit, lines: Sequence[str], invocation: str) -> Iterator[tuple[datetime, str]]:
    entries = [json.loads(line) for line in lines]
    # What it wrote before it was started again is over.
    entries = [entry for entry in entries if entry.get("_SYSTEMD_INVOCATION_ID", invocation) == invocation]
    # Lines that are no text are lists of bytes.
    messages = [printable(text) if isinstance(text := entry.get("MESSAGE"), str) else "?" for entry in entries]
    remaining = unrecovered(messages, unit.recoveries)
    for entry, message, following in zip(entries, messages, [*messages, ""][1:], strict=True):
        # Of an exception, its last line says which.
        if (
            message.startswith("Traceback ")
            and re.match(TRACEBACK, following)
            and not following.startswith("Traceback ")
        ):
            continue
        if message in remaining:
            yield _time(int(entry["__REALTIME_TIMESTAMP"]) / 1e6), message


def _programs_seen(settings: Settings, answers: Mapping[str, list[str]]) -> Iterator[ProgramSeen]:
    current, packages = {}, {}
    for line in answers["installed"]:
        if found := re.fullmatch(r"/opt/([^/]+)/current (\S+)", line):
            current[found[1]] = found[2]
        elif found := re.fullmatch(r"/opt/([^/]+)/current/.*/([^/]+)-([^/-]+)\.dist-info", line):
            packages[found[1], found[2].replace("_", "-").lower()] = found[3]
    used = [line.split("/")[2:4] for line in answers["running"]]
    for role, view in settings.views:
        for virtualenv in view.virtualenvs:
            name = virtualenv.program
            yield ProgramSeen(
                role=role.name,
                name=name,
                version=virtualenv.version,
                wanted=virtualenv.key,
                installed=current.get(name, ""),
                found=packages.get((name, virtualenv.distribution), ""),
                running=tuple(directory for program, directory in used if program == name and directory != "current"),
            )
        for release in view.programs:
            installed = current.get(release.name, "")
            yield ProgramSeen(
                role=role.name,
                name=release.name,
                version=release.version,
                wanted=_wanted_directory(release),
                installed=installed,
                found=installed.rpartition("-")[0],
                running=tuple(
                    directory for program, directory in used if program == release.name and directory != "current"
                ),
            )


def _wanted_directory(release: Release) -> str:
    try:
        return store.wanted_directory(release)
    except ReleaseError:
        # A deploy says it. The file may be on the computer from which others deploy.
        return f"{release.version}-"


def _packages_seen(settings: Settings, lines: Sequence[str]) -> Iterator[PackageSeen]:
    found = {name: version for status, name, version in (line.split(" ", 2) for line in lines) if status == "installed"}
    for name in dict.fromkeys((*settings.packages, *PACKAGES)):
        yield PackageSeen(name, found.get(name, ""))


def _certificate(lines: Sequence[str]) -> x509.Certificate | None:
    try:
        return x509.load_pem_x509_certificate("\n".join(lines).encode())
    except ValueError:
        return None


def _disks_seen(lines: Sequence[str]) -> Iterator[DiskSeen]:
    for line in lines:
        size, free, inodes, inodes_free, path = line.split(None, 4)
        known = inodes.isdigit() and int(inodes)
        yield DiskSeen(path, int(size), int(free), int(inodes_free) * 100 // int(inodes) if known else None)


def _backups_seen(lines: Sequence[str]) -> Iterator[BackupSeen]:
    """What each job of the role `backup` has written down."""
    for line in lines:
        try:
            about: dict[str, Any] = dict(json.loads(line))
        except (TypeError, ValueError):
            about = {"part": "a part", "reason": "its report cannot be read"}
        yield BackupSeen(
            part=str(about.get("part")),
            last_success=_parsed_time(about.get("success")),
            last_failure=_parsed_time(about.get("failure")),
            error=str(about.get("reason") or ""),
            late_after=int(about.get("late_after") or BackupSeen.late_after),
        )


def _database_seen(role: Role, lines: Sequence[str]) -> DatabaseSeen:
    assert role.database
    found = {name: int(value) for name, _, value in (line.partition(" ") for line in lines) if value.isdigit()}
    figures = {each.name: found.get(each.name) for each in role.database.figures}
    return DatabaseSeen(role.name, role.database.name, found.get("size"), figures)


def _deployed(lines: Sequence[str]) -> DeploySeen | None:
    try:
        when, _, text = lines[0].partition(" ")
        about = json.loads(text)
        return DeploySeen(_time(int(when)), about["by"], about["version"], about["commit"])
    except (IndexError, KeyError, TypeError, ValueError):
        return None


def _began(lines: Sequence[str]) -> DeploySeen | None:
    if not lines:
        return None
    when, _, who = lines[0].partition(" ")
    return DeploySeen(_time(int(when)), who.partition(", since ")[0])


def _federation(settings: Settings, lines: Sequence[str]) -> str:
    kind, _, text = printable(" ".join(lines)).partition(" ")
    if kind != "keys":
        return text or f"no answer within {PATIENCE} s"
    try:
        found = json.loads(text)
        name, keys = found["server_name"], found["verify_keys"]
    except (KeyError, TypeError, ValueError):
        return "the answer has no signing keys"
    if name != settings.server_name:
        return f"the keys of {name} are published"
    return "" if keys else "no signing key is published"


def _housekeeping(lines: Sequence[str]) -> HousekeepingSeen | None:
    """What the last count has written down; None: there was none yet."""
    try:
        about = json.loads(lines[0])
        counts = [{name: number for name, number in each.items() if name != "at"} for each in about["counts"]]
        names = dict.fromkeys(name for each in counts for name in each)
        return HousekeepingSeen(
            at=_parsed_time(about["at"]),
            since=_parsed_time(about["since"]),
            last=counts[-1] if counts else {},
            month={name: sum(each.get(name, 0) for each in counts) for name in names},
            unused=int(about["unused_remote_media_bytes"]),
            empty_rooms=int(about["empty_rooms"]),
            tables=tuple(
                TableSeen(
                    *(str(each["name"]), int(each["bytes"]), int(each["rows"]), int(each["dead_rows"])),
                    vacuumed=_parsed_time(each["vacuumed"]),
                    analyzed=_parsed_time(each["analyzed"]),
                )
                for each in about["tables"]
            ),
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None


def _alerts(lines: Sequence[str]) -> tuple[AlertSeen, ...] | None:
    try:
        found = [
            AlertSeen(
                name=each["labels"]["alertname"],
                # The administrator's own need not have these.
                summary=printable(each["annotations"].get("summary") or each["labels"]["alertname"]),
                todo=printable(each["annotations"].get("todo", "")),
                since=_parsed_time(each["startsAt"]),
                about=each["labels"],
            )
            for each in json.loads("".join(lines))
        ]
    except (KeyError, TypeError, ValueError):
        return None
    # In the order in which they began, also where several began at once.
    return tuple(sorted(found, key=lambda each: (str(each.since), each.summary)))


def _journal(lines: Sequence[str]) -> JournalSeen | None:
    if not lines or not lines[0].isdigit():
        return None
    try:
        first = json.loads(lines[1])
        number = re.search(r";i=([0-9a-f]+);", first["__CURSOR"])
        since = _time(int(first["__REALTIME_TIMESTAMP"]) / 1_000_000)
    except (IndexError, KeyError, TypeError, ValueError):
        return JournalSeen(int(lines[0]), None)
    return JournalSeen(int(lines[0]), since, int(number[1], 16) - 1 if number else 0)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _parsed_time(text: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
