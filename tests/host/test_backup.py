"""The backup: every part of it succeeds, and in time."""

import json
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pytest
from testinfra.host import Host

from manage.judgement import CLOCKS
from operations.databases import as_postgres
from operations.machine import BACKUP_HOME, BACKUP_STATE
from roles import BACKUP
from settings import Settings
from settings.backup import LATE_AFTER, SPOOL, Backup, part_of
from tests.host.report import Note
from tests.host.services import DEPLOY, ask

Parts = Mapping[str, dict[str, Any]]


@pytest.fixture(scope="module")
def backup(settings: Settings) -> Backup:
    return settings.view(Backup)


@pytest.fixture(scope="module")
def parts(host: Host, backup: Backup) -> Parts:
    """What each job of the backup says about itself; nothing of one that never ended."""
    found = {}
    for timer in backup.jobs:
        directory = f"{BACKUP_STATE}/{'database' if timer.user == 'postgres' else 'files'}"
        shown = host.run("cat %s", f"{directory}/{part_of(timer)}.json")
        if shown.rc == 0:
            found[part_of(timer)] = json.loads(shown.stdout)
    return found


def age(when: str | None) -> float:
    """Seconds since a time of a job's file."""
    return time.time() - datetime.fromisoformat(when.replace("Z", "+00:00")).timestamp() if when else float("inf")


def test_its_timers_run(host: Host, backup: Backup) -> None:
    for timer in backup.timers:
        shown = ask(host, "systemctl show -p ActiveState -p UnitFileState %s", timer.timer)
        assert "ActiveState=active" in shown and "UnitFileState=enabled" in shown, (
            f"{timer.timer} is not active and enabled: {DEPLOY}"
        )


def test_no_part_has_failed(parts: Parts) -> None:
    for name, part in parts.items():
        assert not part["failure"], (
            f"the backup fails ({name}): {part['reason']}. Its last success: {part['success'] or 'none so far'}; "
            f"journalctl -u matrix-metal-backup-{name}, docs/BACKUP.md"
        )


def test_no_part_is_late(host: Host, backup: Backup, parts: Parts, note: Note) -> None:
    for timer in backup.jobs:
        name = part_of(timer)
        part = parts.get(name, {"success": None, "failure": None})
        if part["success"]:
            note("backup", f"{name}: {part['success']}")
        if part["failure"]:
            continue  # the test above says so
        if not part["success"]:
            # The first is due at its time, after a deploy has chosen this target, or a restore has begun anew.
            since = float(ask(host, f"stat -c %Y {BACKUP_STATE}/prepared 2>/dev/null || echo 0"))
            assert time.time() - since < LATE_AFTER[name], f"nothing was backed up so far ({name}): {DEPLOY}"
            continue
        assert age(part["success"]) > -CLOCKS.total_seconds(), (
            f"the last backup ({name}) is from {part['success']}, which is in the future: is the machine's clock right "
            "(timedatectl)? If it is, make a new one: manage.py NAME backup now"
        )
        assert age(part["success"]) < LATE_AFTER[name], (
            f"the last backup ({name}) is {age(part['success']) / 3600:.1f} h old: systemctl status {timer.timer} {timer.service}"
        )


def test_its_jobs_are_confined(host: Host, backup: Backup) -> None:
    bounds = {timer.service: timer.exposure for timer in backup.timers}
    # It is there if there is somebody to write to.
    [failed] = BACKUP.helpers
    if host.file(f"/etc/systemd/system/{failed}").exists:
        bounds[failed.replace("@", "@files")] = 1.5
    for service, bound in bounds.items():
        done = host.run("systemd-analyze security --no-pager --threshold=%s %s", str(int(bound * 10)), service)
        assert done.rc == 0, f"{service} may do more than it needs: {DEPLOY}"


def test_it_keeps_its_secrets(host: Host) -> None:
    command = f"find {BACKUP_HOME} -ignore_readdir_race ! -type d -perm /o=rwx ! -name plan.json ! -name known_hosts"
    exposed = ask(host, command).split()
    assert not exposed, f"every user of the machine may read {', '.join(exposed)}: {DEPLOY}"


def test_the_changes_of_the_database_leave_the_machine(host: Host, backup: Backup, note: Note) -> None:
    """At most five minutes are lost."""
    if not backup.cluster:
        return
    failed = "coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false)"
    query = f"SELECT current_setting('archive_mode'), {failed} FROM pg_stat_archiver"  # noqa: S608 - a constant
    shown = ask(host, f"{as_postgres(backup.cluster)} psql -XAtqc %s", query).strip()
    assert shown == "on|f", f"PostgreSQL does not give its log to the backup ({shown}): {DEPLOY}; see its log"
    assert host.run("test -e %s", f"{SPOOL}/gap").rc, (
        "the target did not take the database's log for too long: what happened since can be restored only once it does, and "
        "a new backup was made"
    )
    waiting = ask(host, f"find {SPOOL} -ignore_readdir_race -type f -cmin +5").split()
    assert not waiting, (
        f"{len(waiting)} files of the database's log wait for more than five minutes: journalctl -u matrix-metal-backup-wal"
    )
