"""manage.py NAME status without a machine: what answers mean, what is judged to be wrong, and what is printed."""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, Self

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from manage import judgement, look, status
from manage.judgement import alerts_besides, reasons, size, updates_reasons
from manage.look import AlertSeen, BackupSeen, CertificateSeen, DatabaseSeen, DeploySeen, DiskSeen, Seen, UnitSeen
from manage.output import plain, print_text
from manage.outside import federation_problem, homeserver_runs, keys_problem
from manage.status import span
from operations.machine import Failure, MachineState
from roles import ROLES
from settings import Settings
from settings.mas import VERSION
from settings.sliding_sync import VERSION as SLIDING_SYNC
from tests.standin.release_server import ReleaseServer
from tests.unit.test_settings import settings
from vault import WithoutSecrets

STATE = MachineState(
    "root",
    True,
    "debian",
    "13",
    "amd64",
    4096,
    40960,
    ("192.0.2.1",),
    postgresql=("17",),
    deployment={"server_name": "x.test", "vault": "0123456789abcdef"},
)
NOW = datetime.now(UTC)
GIB = 1 << 30
# What templates/synapse/synapse-housekeeping writes.
COUNTED = {
    "at": "2026-11-26T04:40:00Z",
    "since": "2026-11-20T04:40:00Z",
    "counts": [
        {"at": "2026-11-25T04:40:00Z", "remote_media_files": 2, "remote_media_bytes": 5000, "rooms": 1},
        {"at": "2026-11-26T04:40:00Z", "rooms": 0, "devices": 1},
    ],
    "empty_rooms": 4,
    "unused_remote_media_bytes": 70,
    "tables": [
        {
            **{"name": "events", "bytes": GIB, "rows": 6, "dead_rows": 4},
            **{"vacuumed": "2026-11-20T04:40:00Z", "analyzed": None},
        }
    ],
    "base": {},
}


# As Alertmanager answers.
FIRING = {
    "annotations": {"summary": "a.service does not run\x1b[2J", "todo": "Start it."},
    "labels": {"alertname": "UnitDown", "unit": "a.service"},
    "startsAt": "2023-11-14T22:13:20.000Z",
    "fingerprint": "0123456789abcdef",
}


class Clock(datetime):
    """A clock that stands: unit tests run an hour or two after this file was read, and "5 hours ago" has to stay true."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return cls.fromtimestamp(NOW.timestamp(), tz)


@pytest.fixture(autouse=True)
def standing_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (status, judgement):
        monkeypatch.setattr(module, "datetime", Clock)


@pytest.fixture
def chosen(tmp_path: Path) -> Settings:
    """A machine with every role but the backup."""
    found = settings(tmp_path, {role: ["one"] for role in ROLES if role != "backup"}, STATE)
    found.vault = WithoutSecrets()
    return found


def certificate(
    name: str, begin: datetime, end: datetime, key: ec.EllipticCurvePrivateKey | None = None
) -> x509.Certificate:
    """A self-signed one. key: its own; None: a new one."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(begin).not_valid_after(end)
    return builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False).sign(key, hashes.SHA256())


def answered(chosen: Settings) -> Seen:
    """What is seen of a machine on which all is well."""
    days, valid = timedelta(days=30), NOW + timedelta(days=60)
    return Seen(
        settings=chosen,
        units=tuple(
            UnitSeen(role.name, chosen.written(unit.name), role.title_of(unit), "active", True, NOW - days, 0)
            for role in chosen.played
            for unit in role.units
        ),
        programs=tuple(
            look.ProgramSeen(role.name, each.program, each.version, each.key, each.key, each.version, (each.key,))
            for role, view in chosen.views
            for each in view.virtualenvs
        ),
        packages=tuple(look.PackageSeen(each, "1.0-1") for each in chosen.packages),
        certificates=tuple(
            CertificateSeen(each.domain, each.port, certificate(each.domain, NOW - days, valid))
            for each in chosen.served
        ),
        disks=(DiskSeen("/", 40 * GIB, 20 * GIB, 90),),
        backups=(),
        databases=(DatabaseSeen("synapse", "synapse", 5 * GIB, {"accounts": 12, "media": 7 * GIB}),),
        failed=(),
        deployed=DeploySeen(NOW, "anna@laptop", "0.2.0", "1234567"),
        began=DeploySeen(NOW - timedelta(minutes=1), "anna@laptop"),
        federation="",
        alerts=(),
    )


Change = Callable[[Seen], Seen]


def unit(name: str, **changes: Any) -> Change:
    def change(seen: Seen) -> Seen:
        return replace(
            seen, units=tuple(replace(each, **changes) if name in each.name else each for each in seen.units)
        )

    return change


def program(**changes: Any) -> Change:
    return lambda seen: replace(seen, programs=(replace(seen.programs[0], **changes), *seen.programs[1:]))


of_release = program(name="mas", version="v1", wanted="v1-abcdefabcdef", installed="v1-0123456789ab", found="v1")


def put_back(seen: Seen, installed: str = "0123456789ab-py3.13", found: str = "1.160.0") -> Seen:
    failure = Failure(seen.programs[0].wanted, "yesterday", "it cannot")
    seen.settings.machine = replace(seen.settings.machine, failures={seen.programs[0].name: failure})
    return program(installed=installed, found=found)(seen)


def shown(begin: timedelta, end: timedelta, name: str = "") -> Change:
    def change(seen: Seen) -> Seen:
        first = seen.certificates[0]
        other = certificate(name or first.name, NOW + begin, NOW + end)
        return replace(seen, certificates=(replace(first, certificate=other), *seen.certificates[1:]))

    return change


HOUR, DAY = timedelta(hours=1), timedelta(days=1)
WRONG: list[tuple[Change, str]] = [
    (unit("matrix-synapse", state="failed", works=False), "matrix-synapse.service has failed: `journalctl -u matrix-"),
    (unit("postgresql", state="inactive", works=False), "postgresql@17-main.service is inactive"),
    (unit("caddy", state="missing", works=False), "caddy.service is not there: deploy again"),
    (unit("mas", state="failing", works=False), "mas.service fails again and again"),
    (unit("sydent", works=False), "sydent.service runs, but does not do its work"),
    (
        unit("livekit", restarts=3, since=NOW - timedelta(hours=1)),
        "livekit.service has crashed and was restarted 3 times",
    ),
    (unit("sydent", errors=((NOW, " - ERROR - "),)), "sydent.service has logged 1 error in the last 15 minutes"),
    (lambda seen: replace(seen, failed=("nginx.service",)), "nginx.service failed: `systemctl status nginx.service`"),
    (
        lambda seen: replace(seen, packages=(replace(seen.packages[0], version=""), *seen.packages[1:])),
        "Debian's postgresql-17 is not installed: deploy again",
    ),
    (program(installed=""), "matrix-synapse 1."),
    (program(installed="0123456789ab-py3.13", found="1.160.0"), "matrix-synapse 1.160.0 is installed, and 1."),
    (put_back, "was tried on yesterday and did not come up: it cannot. 1.160.0 serves: docs/UPGRADE.md"),
    (program(installed="0123456789ab-py3.13"), "is installed with other packages than requirements/ has"),
    (of_release, "mas v1 is installed from another file than is wanted: deploy again"),
    (
        lambda seen: put_back(of_release(seen), installed="v1-0123456789ab", found="v1"),
        "mas v1 was tried on yesterday and did not come up: it cannot. The v1 of before serves: docs/UPGRADE.md",
    ),
    (program(running=("0123456789ab-py3.13",)), "matrix-synapse still runs from an earlier version than is installed"),
    (shown(-60 * DAY, 5 * DAY), "x.test, port 443: its certificate expires on "),
    (shown(-60 * DAY, -DAY), "x.test, port 443: its certificate expired on "),
    (shown(-DAY, 60 * DAY, "y.test"), "x.test, port 443: its certificate is for y.test"),
    (
        lambda seen: replace(seen, certificates=(CertificateSeen("x.test", 443, None),)),
        "x.test, port 443: no certificate is presented",
    ),
    (lambda seen: replace(seen, disks=(DiskSeen("/", 40 * GIB, GIB, 90),)), "only 1.0 GiB of 40.0 GiB are free on /"),
    (
        lambda seen: replace(seen, disks=(DiskSeen("/", 4 * GIB, GIB // 4, 90),)),
        "only 256 MiB of 4.0 GiB are free on /",
    ),
    (lambda seen: replace(seen, disks=(DiskSeen("/", 40 * GIB, 20 * GIB, 1),)), "space for few more files"),
    (
        lambda seen: replace(seen, databases=(DatabaseSeen("synapse", "synapse", None, {}),)),
        "the database synapse does not say how large it is",
    ),
    (lambda seen: replace(seen, federation="curl: (7) refused"), "other homeservers do not reach x.test: curl: (7)"),
    (
        lambda seen: replace(seen, began=DeploySeen(NOW + timedelta(hours=1), "ben@desk")),
        "the last deploy, by ben@desk at ",
    ),
]


def test_nothing_is_wrong_if_all_is_well(chosen: Settings) -> None:
    assert list(reasons(answered(chosen), "inventories/prod.py")) == []


@pytest.mark.parametrize(("change", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_is_wrong_is_one_sentence(chosen: Settings, change: Change, words: str) -> None:
    [reason] = reasons(change(answered(chosen)), "inventories/prod.py")
    assert words in reason and "\n" not in reason and len(reason) < 250


@pytest.mark.parametrize(
    "change",
    [
        unit("livekit", restarts=3),
        unit("sydent", errors=((NOW - timedelta(minutes=16), " - ERROR - "),)),
        # PostgreSQL has just been restarted: Synapse noticed.
        lambda seen: unit("matrix-synapse", errors=((NOW, "ERROR"),))(unit("postgresql", since=NOW)(seen)),
        # Valid for twelve hours, and renewed when four are left.
        shown(timedelta(hours=-6), timedelta(hours=6)),
    ],
    ids=[
        "crashes of long ago",
        "an old error",
        "an error after a restart of its database",
        "a short-lived certificate",
    ],
)
def test_what_the_verification_does_not_report_is_not_wrong(chosen: Settings, change: Change) -> None:
    assert list(reasons(change(answered(chosen)), "inventories/prod.py")) == []


def test_a_machine_of_another_deployment_is_not_judged(chosen: Settings) -> None:
    chosen.machine = replace(STATE, deployment={"server_name": "y.test", "vault": ""})
    [reason] = reasons(answered(chosen), "inventories/prod.py")
    assert reason.startswith("this machine serves y.test")
    chosen.machine = replace(STATE, deployment=None)
    [reason] = reasons(answered(chosen), "inventories/prod.py")
    assert reason == "nothing was deployed here: pyinfra inventories/prod.py deploy.py"


def test_in_the_middle_of_a_restore_nothing_else_is_wrong(chosen: Settings) -> None:
    """Nothing runs then, and no deploy starts it."""
    chosen.machine = replace(STATE, restoring="begun")
    [reason] = reasons(answered(chosen), "inventories/prod.py")
    assert reason.startswith("a restore has begun here, and has not ended; this goes on with it: python manage.py ")


def test_what_the_inventory_has_no_more_is_named(chosen: Settings) -> None:
    """Nobody gives it newer versions, and nothing else in status is about it."""
    chosen.machine = replace(STATE, units=STATE.units | {"matrix-metal-backup-files.service"})
    [reason] = reasons(answered(chosen), "inventories/prod.py")
    assert reason.startswith("it still has "), reason
    assert reason.endswith(f"remove it: python manage.py {chosen.deployment} remove backup"), reason


@pytest.mark.parametrize(
    ("backup", "words"),
    [
        (None, "nothing was backed up yet"),
        (BackupSeen("database", NOW - DAY, None), ""),
        (BackupSeen("database", NOW - 2 * DAY, None), "the backup of database is late, the last is from "),
        (BackupSeen("wal", NOW - DAY, None, late_after=300), "the backup of wal is late, the last is from "),
        (BackupSeen("files", NOW + DAY, None), "the backup of files succeeded at"),
        (
            BackupSeen("files", NOW - DAY, NOW, "no space"),
            "the backup of files has failed (no space); the last good one",
        ),
        (BackupSeen("files", None, NOW, "no space"), "the backup of files has never succeeded (no space)"),
    ],
)
def test_a_backup_is_judged_if_the_inventory_has_the_role(
    chosen: Settings, backup: BackupSeen | None, words: str
) -> None:
    seen = replace(answered(chosen), backups=(backup,) if backup else ())
    chosen.roles["backup"] = ()
    assert list(reasons(seen, "prod")) == []
    chosen.roles["backup"] = ("one",)
    found = list(reasons(seen, "prod"))
    assert (words in found[0]) if words else found == []


UPDATED = look.UpdatesSeen(True, NOW - 9 * DAY, NOW - HOUR, NOW - HOUR, False, (), False, ())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        # As after the first deploy.
        ({"since": NOW - HOUR, "lists": None, "installed": None}, ""),
        ({"lists": None}, "the lists of packages were not read so far: `apt-get update`"),
        ({"installed": NOW - 3 * DAY}, "no security updates were looked for since "),
        ({"failed": True, "installed": NOW - 3 * DAY}, "the last installation of security updates failed: "),
        ({"source": False}, "apt does not know where Debian's security updates are"),
        ({"kept_back": ("caddy", "coturn")}, "updates of caddy and coturn are not installed by themselves"),
        ({"reboot": True}, "a reboot is due for a newer kernel: "),
        ({"reboot": True, "reboot_for": ("linux-image-amd64",)}, "a reboot is due for linux-image-amd64: "),
    ],
)
def test_security_updates_are_judged(changes: dict[str, Any], words: str) -> None:
    found = list(updates_reasons(replace(UPDATED, **changes), reboots=False))
    assert len(found) == bool(words) and (not words or found[0].startswith(words)), found


def test_a_reboot_that_the_machine_makes_by_itself_is_not_due() -> None:
    assert list(updates_reasons(replace(UPDATED, reboot=True), reboots=True)) == []


def test_updates_that_do_not_end_well_are_noticed() -> None:
    """Debian's job succeeds in any case; it only notes the time if it did."""
    assert look.UpdatesSeen.of(["begun 1700000050", "installed 1700000000"]).failed
    assert look.UpdatesSeen.of(["begun 1700000050"]).failed
    assert not look.UpdatesSeen.of(["begun 1700000050", "installed 1700000000", "updating"]).failed
    assert not look.UpdatesSeen.of(["installed 1700000000"]).failed


# --- the look -------------------------------------------------------------------------------------


def test_the_question_is_shell(chosen: Settings) -> None:
    done = subprocess.run(["sh", "-n"], input=look.question(chosen), text=True, capture_output=True, check=False)
    assert done.stderr == ""


def test_a_disk_that_is_written_to_meanwhile_is_listed_once(chosen: Settings, tmp_path: Path) -> None:
    """df asks for each directory anew."""
    lines = [
        "1B-blocks  Avail  Inodes  IFree  Mounted on",
        "200  90  9  8  /",
        "200  89  9  8  /",
        "100  89  9  8  /mnt/a b",
    ]
    (tmp_path / "df").write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    (tmp_path / "df").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    asked = ["sh", "-c", look._probes(chosen)["disks"]]
    done = subprocess.run(asked, env=environment, text=True, capture_output=True, check=True)
    assert [line.split(maxsplit=4)[4] for line in done.stdout.splitlines()] == ["/", "/mnt/a b"]


def test_the_question_of_a_machine_with_every_role_is_short_enough_for_a_command(tmp_path: Path) -> None:
    """Linux takes 128 KiB for an argument. It is the standard input of a command, in which other characters do not arrive."""
    choices = {"backup_target": "/mnt/backup", "admin_email": "a@x.test"}
    question = look.question(settings(tmp_path, {role: ["one"] for role in ROLES}, STATE, **choices))
    assert len(question) < 64 << 10 and question.replace("\n", "").isprintable()


def test_answers_are_understood(chosen: Settings) -> None:
    stamp = f"{NOW - DAY:%a %Y-%m-%d %H:%M:%S.000000} UTC"
    answers: dict[str, list[str]] = {
        "machine": ["user root", "release 13"],
        "failed": ["nginx.service loaded failed failed"],
        "units": [
            *("Id=caddy.service", "LoadState=loaded", "ActiveState=active", "SubState=running", "NRestarts=2"),
            *("InvocationID=now", f"ExecMainStartTimestamp={stamp}", ""),
            *("Id=postgresql@15-main.service", "LoadState=loaded", "ActiveState=failed", ""),
            *("Id=postgresql@17-main.service", "LoadState=loaded", "ActiveState=active", ""),
            *("Id=sydent.service", "LoadState=loaded", "ActiveState=activating", "SubState=auto-restart"),
        ],
        "health caddy.service": ["works"],
        "log sydent.service": [
            json.dumps({"MESSAGE": text, "__REALTIME_TIMESTAMP": "1700000000000000"})
            for text in (
                "Traceback (most recent call last):",
                "Traceback (most recent call last):",
                "ModuleNotFoundError: No module named 'sydent'",
                "x - ERROR - ModuleNotFoundError: No module named 'sydent'",
            )
        ],
        "log caddy.service": [
            json.dumps({"MESSAGE": text, "_SYSTEMD_INVOCATION_ID": which, "__REALTIME_TIMESTAMP": "1700000000000000"})
            for text, which in (
                ('{"level":"error","logger":"tls","identifier":"a.test"}', "now"),
                ('{"level":"error","logger":"tls","identifier":"b.test"}', "now"),
                ('{"level":"error","logger":"tls","identifier":"b.test"}', "before"),
                ('{"msg":"certificate obtained successfully","identifier":"a.test"}', "now"),
            )
        ],
        "installed": ["/opt/sydent/current abc-py3.13", f"/opt/mas/current {VERSION}-0123456789ab"],
        "running": ["/opt/sydent/old-py3.13/", "/opt/mas/current/"],
        "packages": ["installed caddy 2.6.2-12", "config-files coturn 4.6.1-2", "not-installed postgresql-9 "],
        "disks": ["1000 100 50 10 /", "1000 100 - - /var/lib/my data"],
        "backups": ['{"part": "files", "success": "2026-11-26T10:00:00Z", "failure": null, "late_after": 300}', "{"],
        "deployed": ['1700000000 {"by": "anna@laptop", "version": "0.2.0", "commit": ""}'],
        "began": ["1700000001 ben@desk, since 2023-11-14 22:13:21 UTC"],
        "database synapse": ["size 1000", "accounts 3"],
        "housekeeping": [json.dumps(COUNTED)],
        "journal": [
            "4096",
            '{"__CURSOR": "s=4f;i=3e9;b=50;m=2f;t=66;x=de", "__REALTIME_TIMESTAMP": "1700000000000000"}',
        ],
        "updates": [
            *("since 1699990000", "lists 1700000000", "installed 1700000100", "begun 1700000050", "source"),
            *("kept_back caddy coturn", "reboot linux-image-amd64"),
        ],
        "bans": ["192.0.2.7 1700000050 3600 1 10", "2001:db8:: 1700000000 7200 2 20"],
        "federation": ['keys {"server_name": "y.test", "verify_keys": {"a": 1}}'],
        "alerts": [json.dumps([FIRING, {**FIRING, "annotations": {}, "startsAt": "2024-01-01T00:00:00Z"}])],
    }
    lines = [f"{number}:{line}" for number, name in enumerate(look._probes(chosen)) for line in answers.get(name, [])]
    assert look.machine_state(chosen, lines).release == "13"
    seen = look.seen(chosen, chosen, lines)
    units = {each.name: each for each in seen.units}
    caddy = units["caddy.service"]
    assert (caddy.state, caddy.works, caddy.restarts) == ("active", True, 2)
    assert caddy.since and abs(caddy.since - (NOW - DAY)) < timedelta(seconds=2)
    assert [text for _, text in caddy.errors] == ['{"level":"error","logger":"tls","identifier":"b.test"}']
    assert (units["postgresql@17-main.service"].state, units["postgresql@17-main.service"].works) == ("active", False)
    assert units["sydent.service"].state == "failing" and units["mas.service"].state == "missing"
    # Those of which the log says no more have their first line.
    wrong = ["Traceback (most recent call last):", "ModuleNotFoundError: No module named 'sydent'"]
    assert [text for _, text in units["sydent.service"].errors] == [wrong[0], wrong[1], f"x - ERROR - {wrong[1]}"]
    programs = {each.name: each for each in seen.programs}
    assert programs["mas"].current and programs["mas"].found == VERSION and programs["mas"].running == ()
    assert not programs["sydent"].current and programs["sydent"].running == ("old-py3.13",)
    packages = {each.name: each.version for each in seen.packages}
    assert packages["caddy"] == "2.6.2-12" and packages["coturn"] == ""
    assert seen.disks == (DiskSeen("/", 1000, 100, 20), DiskSeen("/var/lib/my data", 1000, 100, None))
    assert seen.backups[0] == BackupSeen("files", datetime(2026, 11, 26, 10, tzinfo=UTC), None, late_after=300)
    assert seen.backups[1].error == "its report cannot be read"
    assert seen.deployed and seen.began and seen.began.by == "ben@desk" and seen.began.at > seen.deployed.at
    databases = {each.name: each for each in seen.databases}
    assert databases["synapse"].size == 1000 and databases["synapse"].figures["accounts"] == 3
    assert databases["synapse"].figures["rooms"] is None and databases["mas"].size is None
    assert seen.federation == "the keys of y.test are published"
    assert seen.failed == ("nginx.service",)
    alert, own = seen.alerts or ()
    assert (own.summary, own.todo) == ("UnitDown", "")
    assert (alert.name, alert.about["unit"]) == ("UnitDown", "a.service")
    assert (alert.summary, alert.since) == ("a.service does not run [2J", datetime.fromtimestamp(1700000000, UTC))
    assert seen.updates and seen.updates.source and not seen.updates.failed
    assert seen.updates.installed == datetime.fromtimestamp(1700000100, UTC)
    assert (seen.updates.kept_back, seen.updates.reboot_for) == (("caddy", "coturn"), ("linux-image-amd64",))
    assert seen.bans and [(ban.address, ban.failures, ban.times) for ban in seen.bans] == [
        ("2001:db8::/64", 20, 2),
        ("192.0.2.7", 10, 1),
    ]
    assert seen.bans[0].until == datetime.fromtimestamp(1700007200, UTC)
    assert seen.housekeeping and seen.housekeeping.at == datetime(2026, 11, 26, 4, 40, tzinfo=UTC)
    assert seen.housekeeping.last == {"rooms": 0, "devices": 1}
    assert seen.housekeeping.month == {"remote_media_files": 2, "remote_media_bytes": 5000, "rooms": 1, "devices": 1}
    assert (seen.housekeeping.unused, seen.housekeeping.empty_rooms) == (70, 4)
    day = datetime(2026, 11, 20, 4, 40, tzinfo=UTC)
    assert seen.housekeeping.tables == (look.TableSeen("events", GIB, 6, 4, day, None),)
    since = datetime.fromtimestamp(1700000000, UTC)
    # The first entry that is there has the number 1001.
    assert seen.journal == look.JournalSeen(4096, since, 1000)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], None),
        (["du: cannot"], None),
        (["4096"], look.JournalSeen(4096, None)),
        (["4096", "No journal files"], look.JournalSeen(4096, None)),
        (["4096", "{}"], look.JournalSeen(4096, None)),
        (
            ["4096", '{"__CURSOR": "s=4f;i=1;b=50", "__REALTIME_TIMESTAMP": "0"}'],
            look.JournalSeen(4096, datetime.fromtimestamp(0, UTC), 0),
        ),
    ],
)
def test_a_journal_that_has_lost_nothing_or_says_nothing(lines: list[str], expected: look.JournalSeen | None) -> None:
    assert look._journal(lines) == expected


@pytest.mark.parametrize("text", ["", "no JSON", "[1]", '[{"labels": {}}]', '{"error": "busy"}'])
def test_alerts_that_cannot_be_read_are_not_known(chosen: Settings, text: str) -> None:
    number = list(look._probes(chosen)).index("alerts")
    assert look.seen(chosen, chosen, [f"{number}:{text}"]).alerts is None
    assert look.seen(chosen, chosen, [f"{number}:[]"]).alerts == ()


def alert(kind: str, /, **about: str) -> AlertSeen:
    return AlertSeen(kind, f"{kind} is wrong", "Do something.", NOW - 5 * HOUR, about)


@pytest.mark.parametrize(
    ("fires", "change"),
    [
        (alert("UnitDown", unit="sydent.service"), unit("sydent", state="inactive", works=False)),
        (alert("UnitRestarts", unit="livekit.service"), unit("livekit", restarts=3, since=NOW)),
        (alert("CertificateWrong", name="x.test", port="443"), shown(-60 * DAY, -DAY)),
        (
            alert("DiskAlmostFull", mountpoint="/"),
            lambda seen: replace(seen, disks=(DiskSeen("/", 40 * GIB, GIB, 90),)),
        ),
        (
            alert("BackupFails", part="wal"),
            lambda seen: replace(seen, backups=(BackupSeen("wal", NOW - DAY, NOW, "no space"),)),
        ),
        (alert("RebootDue"), lambda seen: replace(seen, updates=replace(UPDATED, reboot=True))),
    ],
    ids=lambda value: value.name if isinstance(value, AlertSeen) else "",
)
def test_what_status_finds_itself_is_said_once(chosen: Settings, fires: AlertSeen, change: Change) -> None:
    chosen.roles["backup"] = ("one",)
    others = [alert("ClockOff"), alert("UnitRestarts", unit="other.service"), alert("EventsLate", name="x.test")]
    seen = replace(change(answered(chosen)), alerts=(fires, *others))
    found = [reason for reason in reasons(seen, "prod") if "nothing was backed up" not in reason]
    assert len(found) == 1 and alerts_besides(seen, found) == others
    # An alert alone is no reason.
    chosen.roles["backup"] = ()
    assert list(reasons(replace(answered(chosen), alerts=(fires, *others)), "prod")) == []


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({**COUNTED, "counts": [1]}), json.dumps({"at": "now"})])
def test_a_count_that_cannot_be_read_is_none(chosen: Settings, text: str) -> None:
    number = list(look._probes(chosen)).index("housekeeping")
    assert look.seen(chosen, chosen, [f"{number}:{text}"]).housekeeping is None


def test_a_machine_that_answers_nothing_is_understood(chosen: Settings) -> None:
    seen = look.seen(chosen, chosen, [])
    assert {each.state for each in seen.units} == {"missing"} and seen.deployed is None and list(reasons(seen, "prod"))


def test_versions_of_postgresql_are_not_known_before(tmp_path: Path) -> None:
    """On Debian 12 it is another than on 13."""
    probes = look._probes(settings(tmp_path, machine=MachineState(release="13", architecture="amd64")))
    assert "'postgresql-*'" in probes["packages"] and "'postgresql@*-main.service'" in probes["units"]


def test_no_health_command_depends_on_what_the_look_finds_out() -> None:
    """It is asked in the same command."""
    assert not [unit.name for role in ROLES.values() for unit in role.units if "{version}" in unit.health]


# --- what is printed ------------------------------------------------------------------------------


TABLES = (
    look.TableSeen("state_groups_state", 4 * GIB, 10, 0, None, None),
    look.TableSeen("events", GIB, 6, 4, None, None),
)
HOUSEKEPT = (
    "state_groups_state 4.0 GiB, events 1.0 GiB (40% outdated)",
    "freed 3 rooms, 12 events in 9 days, counted 5 hours ago; 1.0 GiB of other servers' media were not used for 90 days "
    "(remote_media_days); 4 rooms have nobody of this homeserver (forget_left_rooms)",
    "512 MiB of at most 1G, 9 days back, 1,234 older entries removed",
)


@pytest.mark.parametrize("columns", [80, 120])
def test_it_fits_the_terminal(
    chosen: Settings, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))

    class Named:
        name, settings = "matrix.example.org", chosen

    seen = unit("caddy", errors=((NOW, "bad " * 100),))(answered(chosen))
    counted = look.HousekeepingSeen(NOW - 5 * HOUR, NOW - 10 * DAY, {}, {"rooms": 3, "events": 12}, GIB, 4, TABLES)
    seen = replace(seen, housekeeping=counted, journal=look.JournalSeen(GIB // 2, NOW - 9 * DAY, 1234))
    looked = [
        status.Looked(Named, seen, ()),  # type: ignore[arg-type]
        status.Looked(Named, None, (status.Reason("relay", "cannot be reached"),)),  # type: ignore[arg-type]
    ]
    print_text(*status.rendered(looked))
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= columns
    assert printed.endswith("Something is wrong:\n 1. relay: cannot be reached\n") and "\x1b" not in printed
    disk = "20.0 GiB of 40.0 GiB free on / (50%)"
    # Further roles have further names.
    names = ("x.test; below x.test: matrix, auth, identity,", "turn:5349")
    for words in ("PostgreSQL", disk, *names, "12 accounts", "7.0 GiB media", "no backup", "ago: bad", *HOUSEKEPT):
        assert words in " ".join(printed.split())
    assert "alerts" in printed and "none" in printed
    print_text(*status.rendered(looked[:1]))
    assert capsys.readouterr().out.endswith("All is well.\n")
    fires = replace(seen, alerts=(alert("ClockOff"), alert("UnitDown", unit="caddy.service")))
    print_text(*status.rendered([replace(looked[0], seen=fires)]))
    printed = capsys.readouterr().out
    assert printed.endswith("All is well, but for 2 alerts of the monitoring.\n")
    assert max(map(len, printed.splitlines())) <= columns
    assert "ClockOff is wrong (for 5 hours): Do something." in " ".join(printed.split())
    # A reason is about the same.
    why = (status.Reason("one", "caddy.service is inactive"),)
    print_text(*status.rendered([replace(looked[0], seen=fires, reasons=why)]))
    printed = capsys.readouterr().out
    assert "ClockOff is wrong" in printed and "UnitDown is wrong" not in printed


def test_names_of_others_are_shown_whole() -> None:
    names = ["x.test", "matrix.x.test", "auth.x.test", "turn.x.test:5349", "rtc.x.test.example.org"]
    shown = status._together(names, "x.test")
    assert shown == "x.test, rtc.x.test.example.org; below x.test: matrix, auth, turn:5349"
    assert status._together(names[:2], "x.test") == "x.test, matrix.x.test"


def test_programs_get_plain_values(chosen: Settings) -> None:
    class Named:
        name, settings = "matrix.example.org", chosen

    seen = replace(unit("caddy", errors=((NOW, "bad"),))(answered(chosen)), alerts=(alert("ClockOff", job="node"),))
    looked = status.Looked(Named, seen, ())  # type: ignore[arg-type]
    found = json.loads(json.dumps(plain(status._machine_as_plain(looked))))
    assert found["reached"] and found["backup"] is None and found["federation"] == {"works": True, "problem": ""}
    [caddy] = [each for each in found["units"] if each["name"] == "caddy.service"]
    assert (caddy["works"], caddy["errors"], caddy["last_error"]) == (True, 1, "bad")
    assert found["certificates"][0]["days"] == 59 and found["certificates"][0]["name"] == "x.test"
    assert found["last_deploy"]["commit"] == "1234567" and found["well"]
    assert found["alerts"] == [
        {
            **{"name": "ClockOff", "summary": "ClockOff is wrong", "todo": "Do something."},
            **{"since": plain(NOW - 5 * HOUR), "about": {"job": "node"}},
        }
    ]
    documented = (Path(__file__).parent.parent.parent / "docs" / "STATUS.md").read_text()
    for key in (
        *found,
        *(key for kind in ("units", "programs", "certificates", "disks", "alerts") for key in found[kind][0]),
    ):
        assert f"`{key}`" in documented, key


@pytest.mark.parametrize("chosen", [True, False])
def test_another_file_of_the_same_release_is_not_the_wanted_one(tmp_path: Path, chosen: bool) -> None:
    """A file of the administrator's own has the version of the settings, whatever is in it."""
    sha256 = {"sliding_sync_sha256": {STATE.architecture: "b" * 64}} if chosen else {}
    made = settings(
        tmp_path, {role: ["one"] for role in ("postgres", "synapse", "caddy", "sliding_sync")}, STATE, **sha256
    )
    answers = {"installed": [f"/opt/sliding-sync/current {SLIDING_SYNC}-{'a' * 12}"], "running": []}
    [seen] = [each for each in look._programs_seen(made, answers) if each.name == "sliding-sync"]
    assert seen.current != chosen and seen.wanted == (f"{SLIDING_SYNC}-{'b' * 12}" if chosen else f"{SLIDING_SYNC}-")


def test_one_is_not_several() -> None:
    database = ROLES["synapse"].database
    assert database
    words = [status._figure(each, {"accounts": 1, "rooms": 2}) for each in database.figures]
    assert words[0] == "1 account" and "2 rooms" in words and "? other servers" in words
    assert status._figure(database.figures[-1], {"failing_servers": 1}) == "1 server not reached"


@pytest.mark.parametrize(
    ("counted", "words"),
    [
        (timedelta(), "first counted 1 minute ago: what was freed is known after the next count"),
        (timedelta(minutes=13), "freed nothing in 13 minutes, counted 1 minute ago"),
        (timedelta(hours=30), "freed nothing in 30 hours, counted 1 minute ago"),
        (timedelta(days=400), "freed nothing in 30 days, counted 1 minute ago"),
    ],
    ids=["once", "minutes", "hours", "more than what is kept"],
)
def test_for_how_long_it_was_counted(tmp_path: Path, counted: timedelta, words: str) -> None:
    made = settings(tmp_path, {role: ["one"] for role in ("postgres", "synapse")}, STATE)
    at = NOW - timedelta(seconds=90)
    seen = look.HousekeepingSeen(at, at - counted, {}, {}, 0, 0, ())
    assert status._housekeeping(replace(answered(made), housekeeping=seen)).plain == words


def test_what_a_setting_removes_already_is_no_advice(tmp_path: Path) -> None:
    def shown(rooms: int, **choices: object) -> str:
        made = settings(tmp_path, {role: ["one"] for role in ("postgres", "synapse")}, STATE, **choices)
        counted = look.HousekeepingSeen(NOW - HOUR, NOW - 10 * DAY, {}, {}, 0, rooms, ())
        return status._housekeeping(replace(answered(made), housekeeping=counted)).plain.partition(" ago")[2]

    assert shown(0) == ""
    assert shown(1) == "; 1 room has nobody of this homeserver (forget_left_rooms)"
    assert shown(1, forget_left_rooms=True) == ""


@pytest.mark.parametrize(
    ("freed", "words"),
    [
        ({}, []),
        ({"rooms": 0, "local_media_files": 0}, []),
        ({"remote_media_files": 1, "remote_media_bytes": 3 << 30}, ["3.0 GiB of other servers' media (1 file)"]),
        ({"local_media_files": 2, "local_media_bytes": 512}, ["512 B of own media (2 files)"]),
        ({"rooms": 1, "devices": 3, "events": 7}, ["1 room", "3 devices", "7 events"]),
    ],
)
def test_what_was_freed_for_people(freed: dict[str, int], words: list[str]) -> None:
    assert list(status.freed_words(freed)) == words


@pytest.mark.parametrize(
    ("time", "words"),
    [
        (timedelta(seconds=-5), "0 s"),
        (timedelta(seconds=59), "59 s"),
        (timedelta(minutes=1), "1 minute"),
        (timedelta(minutes=119), "119 minutes"),
        (timedelta(hours=47), "47 hours"),
        (timedelta(days=89, hours=23), "89 days"),
    ],
)
def test_times_for_people(time: timedelta, words: str) -> None:
    assert span(time) == words


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (200 << 20, "200 MiB"), (5 << 40, "5.0 TiB")]
)
def test_sizes_for_people(number: int, words: str) -> None:
    assert size(number) == words


# --- from outside ---------------------------------------------------------------------------------


def test_what_other_homeservers_get(server: ReleaseServer) -> None:
    name = server.url.removeprefix("https://")
    assert keys_problem(name) == f"https://{name}/.well-known/matrix/server answers 404"
    server.files[".well-known/matrix/server"] = b"<html>"
    assert keys_problem(name) == f"https://{name}/.well-known/matrix/server is not JSON"
    server.files[".well-known/matrix/server"] = json.dumps({"m.server": name}).encode()
    server.files["_matrix/key/v2/server"] = json.dumps({"server_name": "other", "verify_keys": {"a": "b"}}).encode()
    assert keys_problem(name) == f"https://{name}/_matrix/key/v2/server has no signing keys of {name}"
    server.files["_matrix/key/v2/server"] = json.dumps({"server_name": name, "verify_keys": {"a": "b"}}).encode()
    assert keys_problem(name) == ""
    server.fault = "dead"
    assert "refused" in keys_problem(name)


def test_whether_the_homeserver_that_was_backed_up_still_runs(
    server: ReleaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its authority may be a private one.
    monkeypatch.delenv("SSL_CERT_FILE")
    name = server.url.removeprefix("https://")
    assert not homeserver_runs(name)
    server.files["_matrix/client/versions"] = b"<html>We are moving</html>"
    assert not homeserver_runs(name)
    server.files["_matrix/client/versions"] = json.dumps({"versions": ["v1.11"]}).encode()
    assert homeserver_runs(name)
    server.fault = "dead"
    assert not homeserver_runs(name)


def test_a_private_authority_cannot_be_judged_from_outside(chosen: Settings) -> None:
    assert federation_problem(chosen) == ""
