"""What is wrong with a machine, as far as one look shows it: a sentence each, with what to do.

`pytest tests/host` looks at far more. What both judge they judge by the same functions and records.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from manage.look import AlertSeen, BackupSeen, CertificateSeen, DiskSeen, ProgramSeen, Seen, UnitSeen, UpdatesSeen
from operations.machine import MARKER
from operations.preflight import HALF_RESTORED, LATER_DISK, left_over
from operations.validity import certificate_problem
from roles import ROLES
from settings.deployment import listed
from settings.updates import Choices as Updates

# A unit that crashed longer ago than this is left in peace, as is an error that is older.
CRASHES, ERRORS, AFTER_RESTART = timedelta(days=1), timedelta(minutes=15), timedelta(minutes=5)
# Security updates are installed every day, and may have to wait for a deploy or a backup.
UPDATES_LATE = timedelta(days=2)
# By as much the clocks of this computer and of a machine may differ.
CLOCKS = timedelta(minutes=10)
DEPLOY = "deploy again"
# What is in a reason that is about the same as an alert: for an alert of this name, or else with this label.
_SAME = {
    "RebootDue": "a reboot is due",
    "unit": "{unit} ",
    "port": "{name}, port {port}: ",
    "part": "the backup of {part} ",
    "mountpoint": " on {mountpoint}: ",
}


def reasons(seen: Seen, inventory: str) -> Iterator[str]:
    """Why not all is well on the machine. inventory: what pyinfra is run with."""
    if seen.state.restoring == "begun":
        # Nothing runs, and a deploy would be refused.
        yield f"{HALF_RESTORED}: python manage.py {seen.settings.deployment} restore"
        return
    if not seen.state.deployment:
        yield f"nothing was deployed here: pyinfra {inventory} deploy.py"
        return
    name = seen.state.deployment["server_name"]
    if name != seen.settings.server_name:
        yield f"this machine serves {name} ({MARKER}), and not {seen.settings.server_name}: is it the right inventory?"
        return
    if seen.began and seen.deployed and seen.began.at > seen.deployed.at and not seen.state.other_run:
        yield f"the last deploy, by {seen.began.by} at {seen.began.at:%Y-%m-%d %H:%M} UTC, failed or was ended: {DEPLOY}"
    for unit in seen.units:
        if reason := _of_unit(unit, seen):
            yield reason
    own = {unit.name for unit in seen.units}
    if others := [unit for unit in seen.failed if unit not in own]:
        yield f"{', '.join(others)} failed: `systemctl status {others[0]}` there says why"
    if missing := [each.name for each in seen.packages if not each.version]:
        yield f"Debian's {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed: {DEPLOY}"
    for program in seen.programs:
        if reason := _of_program(program, seen):
            yield reason
    for certificate in seen.certificates:
        if reason := certificate_reason(certificate):
            yield reason
    yield from (reason for disk in seen.disks if (reason := disk_reason(disk)))
    if seen.updates:
        yield from updates_reasons(seen.updates, seen.settings.section(Updates).updates_reboot)
    yield from _of_backups(seen)
    for role, units in seen.settings.left_over:
        # No deploy gives it a newer version, and nothing here looks at it.
        yield f"it {left_over(seen.settings, role, units)}"
    works = {unit.role for unit in seen.units if unit.works}
    if dumb := [each.name for each in seen.databases if each.size is None and "postgres" in works]:
        yield f"the database {', '.join(dumb)} does not say how large it is: {DEPLOY}, or see `journalctl -u 'postgresql@*'`"
    if seen.federation:
        yield (
            f"other homeservers do not reach {seen.settings.server_name}: {seen.federation}; "
            "`pytest tests/host` looks closer"
        )


def alerts_besides(seen: Seen, found: Sequence[str]) -> list[AlertSeen]:
    """The alerts that are about something else than the reasons that were found."""
    return [each for each in seen.alerts or () if not any(_same(each, reason) for reason in found)]


def _same(alert: AlertSeen, reason: str) -> bool:
    known = [words for kind, words in _SAME.items() if kind == alert.name or kind in alert.about]
    return any(words.format_map(alert.about) in reason for words in known)


def _of_unit(unit: UnitSeen, seen: Seen) -> str:
    why = f"`journalctl -u {unit.name}` there says why"
    if unit.state == "missing":
        return f"{unit.name} is not there: {DEPLOY}"
    if unit.state != "active":
        state = {"failed": "has failed", "failing": "fails again and again"}.get(unit.state, f"is {unit.state}")
        return f"{unit.name} {state}: {why}, and a deploy or `systemctl restart {unit.name}` starts it"
    if not unit.works:
        return f"{unit.name} runs, but does not do its work: {why}; {DEPLOY}"
    age = datetime.now(UTC) - unit.since if unit.since else CRASHES
    if unit.restarts and age < CRASHES:
        return f"{unit.name} has crashed and was restarted {times(unit.restarts)}: {why}"
    recent = recent_errors(unit, seen)
    if recent:
        return (
            f"{unit.name} has logged {len(recent)} error{'s' if len(recent) > 1 else ''} in the last "
            f"{ERRORS.seconds // 60} minutes: {why}"
        )
    return ""


def times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def recent_errors(unit: UnitSeen, seen: Seen) -> list[str]:
    """Errors that count: recent ones, and not those from a restart of a unit that it depends on."""
    needed = seen.settings.depends_on(ROLES[unit.role])
    restarts = [each.since + AFTER_RESTART for each in seen.units if each.name in needed and each.since]
    since = max([datetime.now(UTC) - ERRORS, *restarts])
    return [text for when, text in unit.errors if when >= since]


def _of_program(program: ProgramSeen, seen: Seen) -> str:
    if not program.installed:
        return f"{program.name} {program.version} is not installed: {DEPLOY}"
    if not program.current:
        failure = seen.state.failures.get(program.name)
        if failure and failure.directory.startswith(program.wanted):
            before = program.found if program.found != program.version else f"The {program.found} of before"
            return (
                f"{program.name} {program.version} was tried on {failure.when} and did not come up: {failure.why}. "
                f"{before} serves: docs/UPGRADE.md"
            )
        if program.found == program.version:
            # A file of a release page is known by its version and checksum, a virtualenv by its packages'.
            of_release = program.wanted.startswith(f"{program.version}-")
            how = "from another file than is wanted" if of_release else "with other packages than requirements/ has"
            return f"{program.name} {program.version} is installed {how}: {DEPLOY}"
        return (
            f"{program.name} {program.found or program.installed} is installed, and {program.version} wanted: {DEPLOY}"
        )
    if any(directory != program.installed for directory in program.running):
        units = [unit.name for unit in seen.units if unit.role == program.role]
        return f"{program.name} still runs from an earlier version than is installed: `systemctl restart {' '.join(units)}`"
    return ""


def certificate_reason(seen: CertificateSeen) -> str:
    """What is wrong with a certificate; empty if nothing is."""
    shown = seen.certificate
    problem = "no certificate is presented" if shown is None else certificate_problem(shown, seen.name)
    advice = "do its DNS records lead here, are ports 80 and 443 open? `journalctl -u caddy` there says more"
    return f"{seen.name}, port {seen.port}: {problem}; {advice}" if problem else ""


def disk_reason(disk: DiskSeen) -> str:
    """What is wrong with a file system; empty if nothing is."""
    if disk.free < max(LATER_DISK << 20, disk.size // 20) and disk.size:
        return (
            f"only {size(disk.free)} of {size(disk.size)} are free on {disk.path}: remove something, or enlarge it; "
            "services stop when it is full"
        )
    if disk.inodes_free is not None and disk.inodes_free < 5:
        return f"{disk.path} has space for few more files ({disk.inodes_free} % of its inodes are free): remove some"
    return ""


def updates_reasons(seen: UpdatesSeen, reboots: bool) -> Iterator[str]:
    """What is wrong with security updates. reboots: whether the machine reboots by itself when it has to."""
    logs = "`journalctl -u apt-daily-upgrade` and /var/log/unattended-upgrades there say why"
    if not seen.source:
        yield (
            "apt does not know where Debian's security updates are: add them to /etc/apt/sources.list "
            "(https://www.debian.org/security/), then `apt-get update`"
        )
    if reason := _late("the lists of packages were not read", seen.lists, seen.since):
        yield f"{reason}: `apt-get update` there says why"
    if seen.failed:
        yield f"the last installation of security updates failed: {logs}"
    elif reason := _late("no security updates were looked for", seen.installed, seen.since):
        yield f"{reason}: {logs}"
    if seen.kept_back:
        yield (
            f"updates of {listed(seen.kept_back)} are not installed by themselves: `apt-get dist-upgrade` there says why, "
            "and installs them"
        )
    if seen.reboot and not reboots:
        wanted = f" for {listed(seen.reboot_for)}" if seen.reboot_for else " for a newer kernel"
        yield f"a reboot is due{wanted}: reboot the machine when it suits"


def _late(what: str, last: datetime | None, since: datetime | None) -> str:
    """That something was not done for too long. last: when it was; since: from when on it should have been."""
    known = max((each for each in (last, since) if each), default=None)
    if known and datetime.now(UTC) - known <= UPDATES_LATE:
        return ""
    return f"{what} since {last:%Y-%m-%d %H:%M} UTC" if last else f"{what} so far"


def _of_backups(seen: Seen) -> Iterator[str]:
    if not backed_up(seen):
        return
    if not seen.backups:
        yield f"nothing was backed up yet: {DEPLOY}, or see `systemctl list-timers` there"
    for each in seen.backups:
        if reason := _of_backup(each):
            yield f"the backup of {each.part} {reason}: see `systemctl --failed` and `systemctl list-timers` there"


def backed_up(seen: Seen) -> bool:
    """Whether the inventory has the role `backup`."""
    return bool(seen.settings.roles.get("backup"))


def _of_backup(seen: BackupSeen) -> str:
    why = f" ({seen.error})" if seen.error else ""
    if not seen.last_success:
        return f"has never succeeded{why}"
    if seen.last_failure:
        return f"has failed{why}; the last good one is from {seen.last_success:%Y-%m-%d %H:%M} UTC"
    if seen.last_success - datetime.now(UTC) > CLOCKS:
        return (
            f"succeeded at {seen.last_success:%Y-%m-%d %H:%M} UTC, which is in the future: is the machine's clock right "
            "(timedatectl)? If it is, make a new one (`backup now`)"
        )
    if datetime.now(UTC) - seen.last_success > timedelta(seconds=seen.late_after):
        return f"is late, the last is from {seen.last_success:%Y-%m-%d %H:%M} UTC"
    return ""


def size(number: float) -> str:
    """Bytes for people, such as 3.4 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"
