"""The backup without a machine: targets, what is backed up, and what its program makes of messages."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from email.message import EmailMessage
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import click
import pytest

from compat import Refused
from manage import restoring
from manage.backup import Moment
from manage.reach import Reach, check_reach, line_of, reach_of
from manage.rehearsal import check_versions
from operations import preflight
from operations.machine import MachineState
from operations.templating import TEMPLATES
from roles import ROLES
from settings import SettingError, Settings, mistakes
from settings.backup import ARCHIVE_TIMEOUT, Backup, Target, public_key
from tests.unit.test_settings import chosen, refusal
from vault import Vault

HOST_KEY = f"ssh-ed25519 {'A' * 68}"


def settings(directory: Path, release: str = "13", **choices: Any) -> Settings:
    machine = MachineState("root", True, "debian", release, "amd64", 4096, 40960, ("192.0.2.1",))
    return Settings(chosen(**choices), "prod", {role: ["one"] for role in ROLES}, "one", machine, inventories=directory)


# --- another name in the inventory ----------------------------------------------------------------


@pytest.mark.parametrize(("before", "refused"), [("", False), ("one", False), ("on_e", False), ("old", True)])
def test_a_machine_with_another_name_does_not_begin_new_backups(tmp_path: Path, before: str, refused: bool) -> None:
    made = settings(tmp_path, backup_target="/mnt/backup")
    made.machine = replace(made.machine, backed_up_as=before)
    lines = preflight._backed_up_under_another_name(made)
    assert len(lines) == refused
    assert all(
        "was called old in inventories/prod.py" in line and "the folder old of /mnt/backup" in line for line in lines
    )


@pytest.mark.parametrize(
    ("roles", "line"),
    [
        ({}, "nothing is backed up: no machine has the role backup, see docs/BACKUP.md"),
        ({"backup": ["one"]}, None),
        ({"backup": ["other"]}, "one is not backed up: it does not have the role backup"),
        ({"backup": ["other"], "postgres": ["other"], "synapse": ["other"]}, None),
    ],
    ids=["no backup", "a backup", "of another machine", "nothing to back up here"],
)
def test_a_run_ends_with_what_is_not_backed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, roles: dict[str, list[str]], line: str | None
) -> None:
    lines = list[str]()
    monkeypatch.setattr(preflight, "add_final_line", lines.append)
    all_roles = {role: ["one"] for role in ("postgres", "synapse", "caddy", "coturn")} | roles
    made = Settings(chosen(), "prod", all_roles, "one", MachineState(), inventories=tmp_path)
    preflight._say_what_is_not_backed_up(SimpleNamespace(name="one"), made)  # type: ignore[arg-type]
    assert lines == ([line] if line else [])


# --- a restore ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runs", "printed", "refused"), [(True, ["new"], True), (True, [], False), (False, ["new"], False)]
)
def test_a_restore_beside_the_original_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: bool, printed: list[str], refused: bool
) -> None:
    """Not when it is run again, and the homeserver that answers is the restored one."""
    monkeypatch.setattr(restoring, "homeserver_runs", lambda name: runs and name == "matrix.x.test")
    machine = MagicMock(settings=settings(tmp_path))
    machine.run.return_value = printed
    with pytest.raises(Refused, match=r"a homeserver runs at https://matrix\.x\.test") if refused else nullcontext():
        restoring.check_original(machine)


def test_what_a_package_puts_into_a_home_is_no_data(tmp_path: Path) -> None:
    """As after a restore that was interrupted while packages were installed, which is run again."""
    home = tmp_path / "caddy"
    shutil.copytree("/etc/skel", home)
    role = SimpleNamespace(state=(str(home), str(tmp_path / "none")), in_database=False)
    machine = MagicMock(settings=SimpleNamespace(played=[role]))
    machine.run = lambda command: subprocess.run(
        ["sh", "-ec", command], capture_output=True, check=True, text=True
    ).stdout.splitlines()
    assert restoring.data_of(machine) == ""
    (home / ".local").mkdir()
    assert restoring.data_of(machine) == str(home)


# --- targets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("/mnt/backup", Target("directory", "/mnt/backup")),
        ("sftp://me@there.x.test/srv/b", Target("sftp", "/srv/b", "there.x.test", 22, "me")),
        ("sftp://me@192.0.2.1:2222/b", Target("sftp", "/b", "192.0.2.1", 2222, "me")),
        ("s3://s3.x.test/bucket", Target("s3", "", "s3.x.test", 443, bucket="bucket")),
        ("s3://s3.x.test:9000/bucket/a/b", Target("s3", "/a/b", "s3.x.test", 9000, bucket="bucket")),
    ],
)
def test_targets(text: str, target: Target) -> None:
    assert Target.parse(text) == target
    chosen(backup_target=text)


@pytest.mark.parametrize(
    "text",
    [
        "mnt/backup",
        "/",
        "/mnt/../etc",
        "/mnt/a b",
        "sftp://there.x.test/srv",
        "sftp://me:secret@there.x.test/srv",
        "sftp://me@there.x.test",
        "s3://s3.x.test",
        "s3://s3.x.test/UPPER",
        "http://s3.x.test/bucket",
        "s3://s3.x.test/bucket?x=1",
    ],
)
def test_what_is_no_target_is_refused(text: str) -> None:
    line = refusal(backup_target=text)
    assert "backup_target = " in line and "is not allowed: it must be a directory of another disk" in line


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("/home/backup", "/home is no place for backups"),
        ("/var/lib/matrix-synapse/backup", "/var/lib/matrix-synapse is what is backed up"),
        ("/var/lib/postgresql", "/var/lib/postgresql is what is backed up"),
    ],
)
def test_a_target_in_a_wrong_place_is_refused(text: str, why: str) -> None:
    assert why in refusal(backup_target=text)


def test_the_role_needs_a_target_and_sftp_a_host_key(tmp_path: Path) -> None:
    assert "backup_target is missing" in "".join(mistakes(settings(tmp_path, backup_target=None)))
    sftp = {"backup_target": "sftp://me@there.x.test/srv"}
    assert "backup_sftp_host_key is missing" in "".join(mistakes(settings(tmp_path, **sftp)))
    assert mistakes(settings(tmp_path, **sftp, backup_sftp_host_key=HOST_KEY)) == []


def test_two_machines_do_not_share_a_folder(tmp_path: Path) -> None:
    made = settings(tmp_path)
    made.roles["backup"] = ("db_1", "db1")
    [line] = mistakes(made)
    assert "db_1 and db1 would have the same folder at the target of the backup, db1" in line
    made.roles["backup"] = ("db-1", "db1")
    assert mistakes(made) == []


def test_the_database_on_debian_12_is_not_sent_by_sftp(tmp_path: Path) -> None:
    sftp = {"backup_target": "sftp://me@there.x.test/srv", "backup_sftp_host_key": HOST_KEY}
    with pytest.raises(SettingError, match="pgBackRest of Debian 12 knows no sftp"):
        settings(tmp_path, "12", **sftp).view(Backup)
    assert "openssh-client" in settings(tmp_path, **sftp).packages


def test_the_public_key_is_one_of_ssh(tmp_path: Path) -> None:
    line = public_key(Vault.open(tmp_path / "x.vault").get("backup_ssh_key"))
    checked = subprocess.run(["ssh-keygen", "-l", "-f", "-"], input=line, capture_output=True, text=True)
    assert checked.returncode == 0 and checked.stdout.startswith("2048 "), checked.stderr


# --- what is backed up ----------------------------------------------------------------------------


def test_the_state_of_every_role_is_backed_up(tmp_path: Path) -> None:
    backup = settings(tmp_path).view(Backup)
    for role in ROLES.values():
        for path in role.state:
            own = any(path == each or path.startswith(f"{each}/") for each in backup.own)
            assert role.in_database or path in backup.state or own, f"{path} of {role.name}"
        for path in (*role.sqlite, *role.not_backed_up):
            assert any(path.startswith(f"{each}/") for each in role.state), f"{path} of {role.name}"
        if role.database:
            assert role.database.name in backup.databases
    assert {"/etc/matrix-synapse/conf.d", "/etc/mas", "/etc/postgresql/17/main"} <= set(backup.own)
    plan: Mapping[str, Any] = json.loads(backup.plan)
    assert backup.access.key.reveal() not in backup.plan and plan["mail"] is None


# --- the program on the machine -------------------------------------------------------------------


def program(name: str) -> ModuleType:
    """One of the programs, as a module."""
    loader = SourceFileLoader(f"backup_{name}", str(TEMPLATES / "backup" / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def backup() -> ModuleType:
    return program("backup")


@pytest.fixture(scope="module")
def restore() -> ModuleType:
    return program("restore")


@pytest.mark.parametrize(("ended", "told"), [(0, 0), (1, 1), (50, 255), (103, 255), (255, 255)])
def test_a_target_that_is_away_is_not_the_end_of_the_log(
    restore: ModuleType, tmp_path: Path, ended: int, told: int
) -> None:
    """PostgreSQL takes each status from 1 to 125 for the end, and gives up with a higher one."""
    fake = tmp_path / "pgbackrest"
    fake.write_text(f'#!/bin/sh\n[ "$4" = 00000001 ] && [ "$5" = "pg wal" ] || exit 2\nexit {ended}\n')
    fake.chmod(0o755)
    command = restore.recovery(SimpleNamespace(home="/x")).replace("%f", "00000001").replace("%p", "pg wal")
    done = subprocess.run(["sh", "-c", command], env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert done.returncode == told


def test_an_older_postgresql_than_the_backup_is_refused(restore: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"db": [{"id": 1, "version": "17"}], "backup": [{"timestamp": {"stop": 1}, "database": {"id": 1}}]}
    replaced = {"info": lambda _: found, "progress": lambda *_: None}
    for name, function in replaced.items():
        monkeypatch.setitem(restore.backups_of_database.__globals__, name, function)
    with pytest.raises(Exception, match="the backup is of PostgreSQL 17, and this machine has PostgreSQL 15"):
        restore.backups_of_database(SimpleNamespace(cluster="15/main"), None)


def test_a_wrong_key_is_named(restore: ModuleType) -> None:
    output = "P00  ERROR: [029]: unable to load info file: FormatError: key/value found outside of section at line 1: x"
    assert "is backup_encryption_key in the vault the one" in restore.why_pgbackrest(output)
    wrong = '{"message_type":"exit_error","message":"Fatal: wrong password"}'
    assert "is not the key that this backup was made with" in restore.why_restic(12, wrong)


def test_a_wrong_key_is_named_though_the_answer_has_what_was_decrypted(
    restore: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = (
        "[FormatError] unable to load info file '/x/backup.info':\\nkey/value found outside of section at line 1: \x01M"
    )
    answer = f'[{{"repo": [{{"status": {{"code": 99, "message": "{message}"}}}}], "status": {{"code": 99, "message": "other"}}}}]'
    monkeypatch.setitem(restore.info.__globals__, "pgbackrest", lambda *_: answer)
    with pytest.raises(Exception, match=r"outside of section \(is backup_encryption_key in the vault the one"):
        restore.info(None)


def test_a_damaged_repository_is_named(restore: ModuleType) -> None:
    output = "P00  ERROR: [095]: raised from local-2 protocol: unable to flush\n     [CryptoError] on 2 retries: unable to flush"
    assert "(is backup_encryption_key in the vault" in restore.why_pgbackrest(output)
    assert "is damaged" in restore.why_pgbackrest(output, key_is_right=True)
    error = {"error": {"message": "ReadFull(<data/3cd71c7040>): file is too short"}, "item": "/var/lib/x"}
    lines = [
        error,
        {"error": {"message": "lchown /var/lib/x: no such file or directory"}},
        {"message": "Fatal: 2 errors"},
    ]
    reason = restore.why_restic(1, "\n".join(map(json.dumps, lines)))
    assert (
        reason.startswith("restic: /var/lib/x: ReadFull(<data/3cd71c7040>): file is too short (")
        and "damaged" in reason
    )


def test_five_minutes_are_lost_at_most(tmp_path: Path) -> None:
    """The log of the database is given away after a time, and sent at the next minute; files are looked for again and again."""
    backup = settings(tmp_path).view(Backup)
    when = {timer.service: backup.when(timer) for timer in backup.timers}
    assert when["matrix-metal-backup-wal.service"] == "minutely"
    every = re.fullmatch(r"\*:0/(\d+)", when["matrix-metal-backup-files.service"])
    unit = (TEMPLATES / "backup" / "job.timer.j2").read_text()
    late = re.search(r"^AccuracySec=(\d+)s$", unit, re.MULTILINE)
    assert every and late
    # What is left of five minutes is for the sending.
    assert ARCHIVE_TIMEOUT + 60 + int(late[1]) <= 240
    assert 60 * int(every[1]) + int(late[1]) <= 250


def test_files_that_come_and_go_are_no_failure(tmp_path: Path) -> None:
    def error(path: Path) -> str:
        return json.dumps({"message_type": "error", "error": {"message": "lstat"}, "item": str(path)})

    only_vanished = program("repositories.py").only_vanished
    assert only_vanished(error(tmp_path / "gone"))
    assert not only_vanished(f"{error(tmp_path / 'gone')}\n{error(tmp_path)}")
    assert not only_vanished("Fatal: something else")


def test_times_of_restic_have_nanoseconds(restore: ModuleType) -> None:
    assert restore.moment("2027-01-31T17:05:00.123456789+00:00") == pytest.approx(1801415100.123456)
    assert restore.moment("2027-01-31T17:05:00Z") == 1801415100


# --- a clock that was wrong by a day --------------------------------------------------------------

A_DAY = 24 * 60 * 60


def test_what_is_dated_in_the_future_is_not_the_newest(restore: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    known = [{"id": days, "time": restore.at(time.time() + days * A_DAY)} for days in (1, -1, 0)]
    monkeypatch.setattr(restore, "restic", lambda *_: json.dumps(known))
    assert [each["id"] for each in restore.snapshots(None, "files")] == [-1, 0]
    del known[1:]
    assert [each["id"] for each in restore.snapshots(None, "files")] == [1], "nothing else is there"


def test_the_age_of_a_file_from_the_future_is_negative(backup: ModuleType, tmp_path: Path) -> None:
    """So that changes since are looked for, and old backups are removed."""
    file = tmp_path / "stamp"
    assert backup.age(file) < 0
    file.touch()
    assert 0 <= backup.age(file) < 60
    os.utime(file, (time.time() + A_DAY,) * 2)
    assert backup.age(file) < 0


@pytest.mark.parametrize(
    ("mailed", "success", "mails"),
    [
        (None, -2 * A_DAY, True),
        (-60, -2 * A_DAY, False),
        (-A_DAY - 60, -2 * A_DAY, True),
        # It had succeeded since.
        (-600, -60, True),
        # The clock was ahead when it last succeeded, or when the last mail was written.
        (-60, A_DAY, False),
        (A_DAY, -2 * A_DAY, True),
    ],
)
def test_a_mail_about_a_failure_comes_once_a_day(
    backup: ModuleType,
    tmp_path: Path,
    mailbox: list[EmailMessage],
    mailed: float | None,
    success: float,
    mails: bool,
) -> None:
    plan = machine_with_mail(tmp_path)
    (tmp_path / "files.json").write_text(json.dumps({"success": backup.at(time.time() + success)}))
    if mailed is not None:
        (tmp_path / "mail/files").touch()
        os.utime(tmp_path / "mail/files", (time.time() + mailed,) * 2)
    backup.mail_about(plan, "matrix-metal-backup-files.service", "failed")
    assert bool(mailbox) == mails


def test_a_mail_about_a_backup_after_a_gap_is_about_that(
    backup: ModuleType, tmp_path: Path, mailbox: list[EmailMessage]
) -> None:
    """The log was sent a moment ago, and is every minute: it has not failed."""
    now = backup.at(time.time())
    (tmp_path / "wal.json").write_text(json.dumps({"success": now, "reason": ""}))
    (tmp_path / "database.json").write_text(json.dumps({"success": None, "failure": now, "reason": "no space"}))
    plan = machine_with_mail(tmp_path)
    for _ in range(2):
        backup.mail_about(plan, "matrix-metal-backup-wal.service", "failed")
    [mail] = mailbox
    assert "a job of the backup failed: database.\n\nWhy: no space\n" in mail.get_content()


def machine_with_mail(directory: Path) -> SimpleNamespace:
    (directory / "mail").mkdir()
    mail = {"from": "a@x.test", "to": "b@x.test", "host": "x", "port": 25, "tls": "none", "username": None}
    return SimpleNamespace(
        directory=directory,
        of=lambda _: directory,
        mail=mail,
        server_name="x.test",
        machine="one",
        late_after={"wal": 300},
    )


@pytest.fixture
def mailbox(backup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[EmailMessage]:
    """What is sent."""
    sent: list[EmailMessage] = []
    monkeypatch.setattr(backup.smtplib, "SMTP", MagicMock())
    backup.smtplib.SMTP.return_value.send_message = sent.append
    return sent


@pytest.mark.parametrize(
    ("prepared", "success", "mails"),
    [
        (-900, -600, True),
        (-900, None, True),
        (-900, -60, False),
        # The first is due.
        (-60, None, False),
        # Of a restore, after which the deploy has not ended.
        (None, None, False),
        # The clock was ahead when it succeeded.
        (-900, 600, False),
    ],
)
def test_a_mail_comes_if_a_job_is_late(
    backup: ModuleType,
    tmp_path: Path,
    mailbox: list[EmailMessage],
    prepared: float | None,
    success: float | None,
    mails: bool,
) -> None:
    """It may hang, or not be started."""
    plan = machine_with_mail(tmp_path)
    if prepared is not None:
        (tmp_path / "prepared").touch()
        os.utime(tmp_path / "prepared", (time.time() + prepared,) * 2)
    state = {"success": success and backup.at(time.time() + success), "failure": None, "reason": ""}
    (tmp_path / "wal.json").write_text(json.dumps(state))
    for _ in range(2):
        backup.mail_about_what_is_late(plan)
    assert [mail["Subject"] for mail in mailbox] == (["x.test: the backup is late"] if mails else [])


def test_without_a_mail_server_nothing_is_written_about_what_is_late(backup: ModuleType, tmp_path: Path) -> None:
    """Its timer may be from an earlier deploy."""
    plan = machine_with_mail(tmp_path)
    plan.mail = None
    (tmp_path / "prepared").touch()
    os.utime(tmp_path / "prepared", (0, 0))
    backup.mail_about_what_is_late(plan)


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["2026-01-31 17:05", "2026-01-31T17:05:00Z", "2026-01-31 18:05+01:00", "2026-01-31T17:05"]
)
def test_a_moment_is_in_utc(text: str) -> None:
    assert Moment().convert(text, None, None) == 1769879100


@pytest.mark.parametrize(("text", "why"), [("yesterday", "is no time such as"), ("2999-01-01", "is in the future")])
def test_other_moments_are_refused(text: str, why: str) -> None:
    with pytest.raises(click.UsageError, match=why):
        Moment().convert(text, None, None)


ENDED = "FATAL:  recovery ended before configured recovery target was reached"


def test_what_an_earlier_attempt_has_logged_says_nothing_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would go beyond the moment that was asked for."""
    restore, log, seconds = program("restore"), tmp_path / "log", iter(range(0, 100, 10))
    log.write_text(f"{ENDED}\n")
    monkeypatch.setattr(restore, "Path", lambda _: log)
    monkeypatch.setattr(restore, "time", SimpleNamespace(time=lambda: next(seconds)))
    monkeypatch.setattr(restore, "cluster_command", lambda _, *words: subprocess.CompletedProcess(words, 3, ""))
    monkeypatch.setattr(restore, "psql", lambda *_: ["true"])
    with pytest.raises(restore.Problem, match="see its log"):
        restore.cluster_started(SimpleNamespace(cluster="15/main"))


@pytest.mark.parametrize(("reason", "restored"), [(ENDED, True), ("FATAL:  could not open file", False)])
def test_a_moment_after_the_end_of_the_log_is_its_end(
    reason: str, restored: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restore, options, starts = program("restore"), tmp_path / "options", iter([reason, ""])

    def start(_: object) -> None:
        if failure := next(starts):
            raise restore.Problem(failure)

    monkeypatch.setattr(restore, "Path", lambda _: options)
    monkeypatch.setattr(restore, "cluster_started", start)
    monkeypatch.setattr(restore, "progress", lambda *_: None)
    monkeypatch.setattr(restore, "pgbackrest_command", lambda *_: ["true"])
    monkeypatch.setattr(restore, "measured", lambda *given: (given[-1].wait(), ("", ""))[1])
    backup = {"label": "x", "info": {"size": 1}, "timestamp": {"stop": 0}}
    asked = (SimpleNamespace(cluster="15/main", home="/x"), [backup], 1.0, "")
    if restored:
        assert "as it was at its newest" in restore.physical(*asked)
        assert options.read_text() == "recovery_target_time = ''\n"
    else:
        with pytest.raises(restore.Problem, match="could not open file"):
            restore.physical(*asked)
        assert not options.exists()


# --- how far back it reaches ----------------------------------------------------------------------

STOP = 1801415100  # 2027-01-31 17:05:00 UTC


def known_to_pgbackrest(*backups: tuple[str, int], newest: str = "17") -> dict[str, Any]:
    """backups: PostgreSQL's version, and seconds after STOP when it had ended."""
    versions = sorted({*(version for version, _ in backups), newest}, key=int)
    return {
        "status": {"code": 0, "message": "ok"},
        "db": [{"id": number, "version": version} for number, version in enumerate(versions, 1)],
        "backup": [
            {"database": {"id": versions.index(version) + 1}, "timestamp": {"stop": STOP + seconds}}
            for version, seconds in backups
        ],
    }


@pytest.mark.parametrize(
    ("info", "reach"),
    [
        (known_to_pgbackrest(), None),
        (known_to_pgbackrest(("17", 0), ("17", A_DAY)), Reach(STOP + 1, STOP + 1)),
        (known_to_pgbackrest(("15", 0), ("17", A_DAY)), Reach(STOP + A_DAY + 1, STOP + 1, "15")),
        (known_to_pgbackrest(("15", 0)), Reach(None, STOP + 1, "15")),
    ],
)
def test_the_earliest_moment_is_after_the_oldest_backup_of_this_postgresql(
    info: dict[str, Any], reach: Reach | None
) -> None:
    assert Reach.of(info) == reach


DONE = [
    {"part": "wal", "success": "2027-01-31T18:00:30Z", "restore_to": "2027-01-31T17:59:58Z"},
    {"part": "files", "success": "2027-01-31T18:00:00Z"},
]
FILES = (
    "media and other files are those of the first backup of files after that moment (the newest is of "
    "2027-01-31 18:00:00 UTC)"
)


@pytest.mark.parametrize(
    ("reach", "parts", "line"),
    [
        (
            Reach(STOP, STOP),
            DONE,
            f"`restore --to` reaches from 2027-01-31 17:05:00 UTC to 2027-01-31 17:59:58 UTC; {FILES}",
        ),
        # The first backup has just ended, and is later than what else was sent.
        (Reach(STOP + 3600, STOP + 3600), DONE, f"from 2027-01-31 18:05:00 UTC to 2027-01-31 18:05:00 UTC; {FILES}"),
        # A program that was deployed before does not say it.
        (
            Reach(STOP, STOP),
            [],
            "to the end of the database's log at the target; media and other files are those of the ",
        ),
        (Reach(STOP, STOP), [], "first backup of files after that moment (there is none yet)"),
        (
            Reach(STOP + 60, STOP, "15"),
            DONE,
            "from 2027-01-31 17:06:00 UTC (before that, only the daily dumps of PostgreSQL 15, none of which is from before "
            "2027-01-31 17:05:00 UTC) to 2027-01-31 17:59:58 UTC; ",
        ),
        (Reach(STOP + 3600, STOP, "15"), DONE, " UTC) to 2027-01-31 18:05:00 UTC; "),
        (Reach(None, STOP, "15"), DONE, "`restore --to` has only the daily dumps of PostgreSQL 15, none of which is "),
        (None, DONE, "`restore --to` reaches nothing yet: there is no backup of the database"),
    ],
)
def test_a_line_says_from_when_to_when_a_restore_reaches(
    reach: Reach | None, parts: list[dict[str, Any]], line: str
) -> None:
    assert line in line_of(reach, parts, with_database=True)


def test_without_the_database_files_alone_are_restored() -> None:
    assert line_of(None, DONE, with_database=False).startswith("`restore --to` takes the first backup of files after")


class Answering:
    """A machine with backups, that says this of its target."""

    def __init__(self, directory: Path, answer: str, prepared: bool = True) -> None:
        self.name, self.settings, self.answer, self.prepared = "one", settings(directory), answer, prepared
        self.run = lambda _: [self.answer]
        self.ask = lambda *_, **__: self.prepared
        self.close = lambda: None


def test_a_moment_before_the_first_backup_is_refused_with_the_first_that_can_be_restored(tmp_path: Path) -> None:
    answer = json.dumps([known_to_pgbackrest(("15", 0), ("17", A_DAY))])
    machine: Any = Answering(tmp_path, answer)
    check_reach(machine, None)
    check_reach(machine, STOP + 1)
    with pytest.raises(Refused) as refused:
        check_reach(machine, STOP)
    assert str(refused.value) == (
        "one: there is no backup of the database from before 2027-01-31 17:05:00 UTC: --to reaches back to "
        "2027-01-31 17:05:01 UTC. Nothing was touched"
    )


@pytest.mark.parametrize(
    ("answer", "prepared"),
    [("", True), ("not JSON", True), (json.dumps([known_to_pgbackrest(("17", 0))]), False)],
)
def test_what_cannot_be_asked_at_once_is_looked_for_by_the_restore(tmp_path: Path, answer: str, prepared: bool) -> None:
    """The target is away, or is one where this machine makes no backups."""
    machine: Any = Answering(tmp_path, answer, prepared)
    check_reach(machine, STOP)


def test_a_target_that_does_not_say_it_is_named(tmp_path: Path) -> None:
    failed = json.dumps(
        [{**known_to_pgbackrest(), "status": {"code": 99, "message": "[HostConnectError] unable\nto \x01"}}]
    )
    machine: Any = Answering(tmp_path, failed)
    with pytest.raises(Refused, match=r"does not say how far back it reaches \(\[HostConnectError\] unable to\)"):
        reach_of(machine)


def test_the_log_reaches_as_far_as_what_was_sent(
    backup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not as far as the job has run: PostgreSQL keeps a file of its log until it is full or two minutes old."""
    sent: list[str] = []
    monkeypatch.setattr(backup, "pgbackrest", lambda _, *words, timeout: sent.append(Path(words[-1]).name))
    plan = SimpleNamespace(spool=tmp_path)
    assert backup.wal(plan) == {}
    for number, name in enumerate(("000000010000000000000002", "000000010000000000000001")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (STOP - number * 60 + 0.9,) * 2)
    assert backup.wal(plan) == {"restore_to": "2027-01-31T17:05:00Z"}
    assert sent == ["000000010000000000000001", "000000010000000000000002"] and not list(tmp_path.iterdir())


@pytest.mark.parametrize("fails", [False, True])
def test_a_gap_ends_with_a_backup_that_succeeds(
    backup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Without the mark nobody would know that a restore ends there."""
    gap = tmp_path / "gap"
    gap.touch()

    def made(_: object) -> None:
        assert not gap.exists(), "PostgreSQL would keep nothing for this backup"
        if fails:
            raise backup.Problem("PostgreSQL does not run")

    monkeypatch.setattr(backup, "new_backup_of_database", made)
    with pytest.raises(backup.Problem) if fails else nullcontext():
        backup.back_up_database(SimpleNamespace(spool=tmp_path))
    assert gap.exists() == fails


@pytest.mark.parametrize("left", [[], ["000000010000000000000007"]])
def test_what_is_not_sent_before_a_restore_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], left: list[str]
) -> None:
    machine = MagicMock(settings=settings(tmp_path))
    machine.name, machine.run.return_value = "one", left
    restoring.send_last_changes(machine)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "one: sending the last changes of the database"
    assert [line.startswith("one: not all of them are at the target") for line in said[1:]] == [True] * len(left)


def restorable(
    restore: ModuleType, monkeypatch: pytest.MonkeyPatch, info: dict[str, Any], dumps: Sequence[int]
) -> None:
    """What the target has. dumps: seconds after STOP."""
    known = json.dumps([{"id": seconds, "time": restore.at(STOP + seconds)} for seconds in dumps])
    monkeypatch.setattr(restore, "info", lambda _: info)
    monkeypatch.setattr(restore, "progress", lambda *_: None)
    monkeypatch.setattr(restore, "restic", lambda *_: known)
    monkeypatch.setattr(restore, "time", SimpleNamespace(time=lambda: STOP + 2 * A_DAY))


def test_the_second_in_which_a_backup_has_ended_is_too_early(
    restore: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pgBackRest leaves out what is after the comma: PostgreSQL would have to stop before the backup is consistent."""
    restorable(restore, monkeypatch, known_to_pgbackrest(("17", 0)), [])
    plan = SimpleNamespace(cluster="17/main")
    with pytest.raises(restore.Problem, match="the oldest is of 2027-01-31T17:05:01Z"):
        restore.backups_of_database(plan, STOP + 0.0)
    assert len(restore.backups_of_database(plan, STOP + 1.0).each) == 1


@pytest.mark.parametrize(
    ("dumps", "to", "why"),
    [
        ([], None, "there is no dump of the database synapse, and PostgreSQL 15 is needed"),
        (
            [600],
            STOP + 300.0,
            "no dump of the database synapse from before 2027-01-31T17:10:00Z: the oldest is of 2027-01-31T17:15:01Z",
        ),
    ],
)
def test_a_dump_that_is_not_there_is_missed_before_anything_is_replaced(
    restore: ModuleType, monkeypatch: pytest.MonkeyPatch, dumps: list[int], to: float | None, why: str
) -> None:
    restorable(restore, monkeypatch, known_to_pgbackrest(("15", 0), newest="15"), dumps)
    with pytest.raises(restore.Problem, match=why):
        restore.backups_of_database(SimpleNamespace(cluster="17/main", databases={"synapse": {}}), to)


def test_the_newest_dump_before_the_moment_is_taken(restore: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    restorable(restore, monkeypatch, known_to_pgbackrest(("15", 0), newest="15"), [10, 600, 900])
    found = restore.backups_of_database(SimpleNamespace(cluster="17/main", databases={"synapse": {}}), STOP + 600.0)
    assert {name: dump["id"] for name, dump in found.dumps.items()} == {"synapse": 600}


@pytest.mark.parametrize(
    ("timelines", "newest", "starts", "begun", "commands", "told"),
    [
        # Nobody has restored since.
        (("1", "1"), "1", [""], [], ["new"], "as it was at 2027"),
        # Somebody has, to an earlier time: what was written between is in the history that was left.
        (("1", "1"), "2", [""], [], ["new 1"], "as it was at 2027"),
        # That one ends before the time, and this belongs to the next.
        (("1", "1"), "2", [ENDED, ""], [True], ["new 1", "new 2"], "as it was at 2027"),
        (("1", "1"), "2", [ENDED, ENDED, ""], [], ["new 1", "new 2"], "as it was at its newest"),
        # Twice, and it belongs to the one between.
        (("1", "1"), "3", [ENDED, ""], [True], ["new 1", "new 2"], "as it was at 2027"),
        # Nobody has written between the time and the restore.
        (
            ("1", "1"),
            "3",
            [ENDED, ENDED, "", ENDED, ""],
            [False],
            ["new 1", "new 2", "new 3", "new 2"],
            "as it was at its newest",
        ),
        (("1", "2"), "2", [""], [], ["new"], "as it was at 2027"),
    ],
)
def test_a_moment_that_an_earlier_restore_has_left_behind_is_restored(
    timelines: tuple[str, str],
    newest: str,
    starts: list[str],
    begun: list[bool],
    commands: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever has gone back too far goes forward again."""
    restore, given, answers, known = program("restore"), list[str](), iter(starts), iter(begun)

    def start(_: object) -> None:
        if failure := next(answers):
            raise restore.Problem(failure)

    def command(_: object, *words: str) -> list[str]:
        given.append(
            " ".join(word.rpartition("=")[2] for word in words if word.startswith(("--set", "--target-timeline")))
        )
        return ["true"]

    monkeypatch.setattr(restore, "Path", lambda _: tmp_path / "options")
    monkeypatch.setattr(restore, "had_begun", lambda *_: next(known))
    for name, function in (("cluster_started", start), ("pgbackrest_command", command)):
        monkeypatch.setattr(restore, name, function)
    for name in ("progress", "cluster_stopped"):
        monkeypatch.setattr(restore, name, lambda *_: None)
    monkeypatch.setattr(restore, "measured", lambda *given: (given[-1].wait(), ("", ""))[1])
    backups = [
        {
            "label": label,
            "info": {"size": 1},
            "timestamp": {"stop": 0},
            "archive": {"stop": f"0000000{timeline}00000000"},
        }
        for label, timeline in zip(("old", "new"), timelines, strict=True)
    ]
    plan = SimpleNamespace(cluster="17/main", home="/x", spool="/x")
    text = restore.physical(plan, backups, STOP + 1.0, f"0000000{newest}")
    assert told in text and given == commands and not [*answers, *known]


BEGUN = "1\t0/3000000\t{}\n\n2\t0/5000000\tbefore 2027-01-31 17:05:02.5+00\n"


@pytest.mark.parametrize(
    ("history", "asked", "answer", "expected"),
    [
        (None, None, "", True),
        # It has stopped in the history of the backup.
        ("1\t0/3000000\tbefore 2027-01-31 17:00:01+00\n", None, "", True),
        # That of the backup was whole: whichever of both it was, the data are the same.
        (BEGUN.format("no recovery target specified"), None, "", True),
        (BEGUN.format("before 2027-01-31 17:00:01.25+00"), "2027-01-31 17:00:01.25+00", "t", True),
        (BEGUN.format("before 2027-01-31 17:00:01.25+00"), "2027-01-31 17:00:01.25+00", "f", False),
    ],
)
def test_whether_a_history_had_begun(
    history: str | None,
    asked: str | None,
    answer: str,
    expected: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    restore, questions = program("restore"), list[str]()
    (tmp_path / "00000002.history").write_text("1\t0/1\tof before\n")
    if history:
        (tmp_path / "00000003.history").write_text(history)
    else:
        (tmp_path / "00000002.history").unlink()
    monkeypatch.setattr(restore, "Path", lambda _: tmp_path)

    def ask(_: object, database: str, text: str) -> str:
        questions.append(text)
        return answer

    monkeypatch.setattr(restore, "sql", ask)
    backup = {"archive": {"stop": "000000010000000000000003"}}
    assert restore.had_begun(SimpleNamespace(cluster="17/main"), backup) is expected
    assert [bool(asked and asked in text) for text in questions] == ([True] if asked else [])


def test_the_newest_history_is_the_one_of_this_database(restore: ModuleType) -> None:
    """An older PostgreSQL's had its own numbers."""
    found = {
        "archive": [
            {"database": {"id": 1}, "max": "000000090000000000000001"},
            {"database": {"id": 2}, "max": "000000030000000000000001"},
            {"database": {"id": 2}, "max": None},
        ],
        "backup": [
            {"database": {"id": 1}, "archive": {"stop": "000000080000000000000001"}},
            {"database": {"id": 2}, "archive": {"stop": "000000020000000000000001"}},
        ],
    }
    assert restore.newest_timeline(found, 2) == "00000003"


@pytest.mark.parametrize(
    ("homeserver", "spare", "refused"),
    [
        (MachineState(release="13", postgresql=("17",)), "12", True),
        # Debian was upgraded, and PostgreSQL not yet.
        (MachineState(release="13", postgresql=("15",)), "12", False),
        (MachineState(release="12", postgresql=("15",)), "13", False),
        (MachineState(release="13", postgresql=("17",)), "13", False),
    ],
)
def test_a_rehearsal_on_too_old_a_debian_is_refused(homeserver: MachineState, spare: str, refused: bool) -> None:
    if not refused:
        return check_versions(homeserver, "spare", spare)
    with pytest.raises(
        Refused, match=r"^spare has Debian 12 with PostgreSQL 15, which cannot read what PostgreSQL 17 of"
    ):
        check_versions(homeserver, "spare", spare)
