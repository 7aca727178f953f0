"""The drill: a homeserver is backed up, destroyed and restored on a new machine, and nobody has lost anything.

Real clients use it before and after. It is so from each target. A directory is carried to the new machine, as a disk would be.
"""

import asyncio
import json
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import nio
import pytest

from operations.machine import BACKUP_STATE, RESTORE_HOME
from roles import BACKUP, BACKUP_CACHE, BACKUP_FILES, BACKUP_USER, MAS, SYNAPSE
from settings.backup import SPOOL
from tests.built import built
from tests.conftest import from_page, own
from tests.deployment import AVAILABLE, Deployment
from tests.e2e.client import (
    Account,
    Outside,
    create_shared_room,
    expect,
    expect_json,
    messages,
    new_user,
    new_user_of_mas,
    receive_message,
    send_message,
)
from tests.e2e.database import query
from tests.e2e.identity import MAIL_SERVER, look_up, receive_mail
from tests.e2e.people import ENCRYPTED, PLAIN, UserData, assert_media_are_kept, use_everything
from tests.e2e.storage import S3, Sftp
from tests.e2e.test_confinement import (
    ANYBODY,
    Machine,
    Service,
    assert_reaches_no_other,
    main_pid,
    may_end,
    neighbours,
    real_name,
)
from tests.e2e.test_element import PICTURES
from tests.protocols.federation_tester import key_problem
from tests.standin.archives import mas_archive, real_mas
from tests.standin.release_server import ReleaseServer
from tests.testbed import Host, Testbed
from vault import Vault

pytestmark = pytest.mark.role("backup")

ROLES = ("postgres", "synapse", "caddy", "sydent", "element", "backup")
TARGET = "/mnt/backup"
OWN, OWN_MAS = "/etc/matrix-synapse/conf.d/mine.yaml", "/etc/mas/local.yaml"
ONE_TIME_KEYS = "SELECT count(*) FROM e2e_one_time_keys_json"
BEFORE, AFTER = "Before the minute.", "After the minute."


@dataclass
class Drill:
    """A homeserver with a backup.

    roles: of its machine. moment: between its last two messages in the encrypted room. newest: to which its backup has said that
    it reaches, after them. key: its signing key. published: what other homeservers know it by. pack: the directory of a pack of
    stickers, not with the stand-in of MAS.
    """

    deployment: Deployment
    outside: Outside
    users: UserData
    key: str
    published: Mapping[str, Any]
    roles: Sequence[str]
    pack: Path
    moment: str = ""
    newest: str = ""

    @property
    def host(self) -> Host:
        return self.deployment.hosts[0]

    def query(self, sql: str) -> str:
        return self.host.run("cd / && runuser -u postgres -- psql -XAtq -d synapse", stdin=sql).stdout.strip()

    def part(self, path: str) -> dict[str, Any]:
        """What a job says about itself, such as "files/files"."""
        found: dict[str, Any] = json.loads(self.host.run(f"cat {BACKUP_STATE}/{path}.json").stdout)
        return found

    def backed_up(self) -> None:
        done = self.deployment.manage("backup", "now")
        assert done.returncode == 0, done.stdout + done.stderr

    def stickers(self, *arguments: str) -> dict[str, Any]:
        done = self.deployment.manage("stickers", *arguments, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def restored(self, *options: str) -> str:
        done = self.deployment.manage("restore", "--yes", *options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def unmount(self) -> None:
        """The directory of the target is there, and has nothing in it."""
        self.host.run(f"mv {TARGET}/{self.host.name} {TARGET}/away")

    def mount(self) -> None:
        self.host.run(f"mv {TARGET}/away {TARGET}/{self.host.name}")

    def log_sent(self) -> None:
        """The database's log is at the target up to now."""
        self.query("SELECT pg_create_restore_point('sent')")
        last = self.query("SELECT pg_walfile_name(pg_switch_wal())")
        # PostgreSQL leaves it in the spool a moment later.
        while self.query(f"SELECT last_archived_wal >= '{last}' FROM pg_stat_archiver") != "t":  # noqa: S608
            time.sleep(0.1)
        self.host.run(
            f'until [ -z "$(ls {SPOOL})" ]; do systemctl start matrix-metal-backup-wal; sleep 0.2; done', timeout=60
        )


def homeserver(host: Host, directory: Path, roles: Iterable[str] = ROLES, **settings: Any) -> Deployment:
    subnets = [str(host.bed.network.subnet), str(host.bed.network.subnet6)]
    return Deployment(
        directory,
        [host],
        {
            "server_name": host.domain,
            "tls": "internal",
            "admin_email": f"boss@{host.domain}",
            "private_networks": subnets,
            "backup_target": TARGET,
            **settings,
        },
        roles={role: [host.name] for role in roles},
    )


def begun(host: Host, directory: Path, page: ReleaseServer, roles: Sequence[str] = ROLES, **settings: Any) -> Drill:
    """Deployed, used and backed up; then used again."""
    # As another disk, of its own size.
    host.run(f"mkdir {TARGET}; mount -t tmpfs -o size=80m,mode=755 tmpfs {TARGET}")
    settings = {"stickers": "mas" not in roles, **from_page(page), **settings}
    deployment = homeserver(host, directory, roles, **settings)
    deployment.environment |= {"SSL_CERT_FILE": str(page.ca_file), "XDG_CACHE_HOME": str(directory / "cache")}
    deployment.run("-y")
    outside = Outside(host, directory)
    host.run(f"echo 'enable_set_displayname: false' >{OWN}; chgrp matrix-synapse {OWN}; chmod 640 {OWN}")
    host.run(f"systemctl restart matrix-synapse; until ( {SYNAPSE.units[0].health} ); do sleep 0.2; done", timeout=120)
    users = asyncio.run(use_everything(outside, directory, maker_of_users(deployment) if "mas" in roles else new_user))
    key = host.run("cat /var/lib/matrix-synapse/signing.key").stdout
    drill = Drill(deployment, outside, users, key, published(outside), roles, directory / "pack")
    if "mas" not in roles:
        drill.pack.mkdir()
        (drill.pack / "happy_cat.png").write_bytes(PICTURES["happy_cat.png"])
        drill.stickers("import", str(drill.pack), "--name", "Garden")
        drill.stickers("enable", users.alice.user_id)
    drill.backed_up()
    asyncio.run(say(drill, BEFORE))
    drill.moment = between()
    asyncio.run(say(drill, AFTER))
    drill.log_sent()
    return drill


def maker_of_users(deployment: Deployment) -> Callable[[Outside, str], Account]:
    """Who makes an account at MAS and logs in there; nobody can log in to the stand-in."""
    if not real_mas():
        return new_user_of_mas

    def made(outside: Outside, name: str) -> Account:
        user = f"{name}-{secrets.token_hex(3)}"
        done = deployment.manage("accounts", "create", user, "--generate", "--json")
        assert done.returncode == 0, done.stderr
        return asyncio.run(outside.log_in(user, json.loads(done.stdout)["password"]))

    return made


def published(outside: Outside) -> Mapping[str, Any]:
    """The keys by which other homeservers trust it."""
    with outside.http() as http:
        document = expect_json(http.get(outside.url("matrix", "/_matrix/key/v2/server")))
    assert key_problem(document, outside.server_name, time.time()) is None
    keys: Mapping[str, Any] = document["verify_keys"]
    return keys


def between() -> str:
    """A moment after all that was written, and before what will be."""
    time.sleep(1.1)
    moment = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    time.sleep(1.1)
    return moment


def written(drill: Drill) -> list[str]:
    """The messages in the encrypted room, as Bob reads them, without the first."""

    async def read() -> list[str]:
        async with drill.outside.matrix(drill.users.bob, keys=drill.users.keys) as his:
            # Synapse gives the same answer to the same question for two minutes: not the one of `assert_kept`.
            whole = {"room": {"timeline": {"limit": 99}}}
            sync = expect(await his.sync(sync_filter=whole, full_state=True), nio.SyncResponse)
            return [message.body for message in messages(sync, drill.users.encrypted)]

    return asyncio.run(read())[len(ENCRYPTED) :]


async def say(drill: Drill, text: str) -> None:
    users = drill.users
    async with drill.outside.matrix(users.alice, keys=users.keys) as hers:
        expect(await hers.sync(full_state=True), nio.SyncResponse)
        await send_message(hers, users.encrypted, text)


def replaced(drill: Drill, testbed: Testbed, layers: Sequence[Path]) -> None:
    """The machine burns, and a new one gets its name. layers: what the new one has besides Debian 13."""
    name = drill.host.name
    drill.host.down()
    new = testbed.up(name, layers=layers)
    drill.deployment.hosts = [new]
    drill.deployment.assign({role: [new.name] for role in drill.roles})


def carried(drill: Drill, testbed: Testbed, directory: Path) -> None:
    """The same, and the disk with the backup is put into the new one, on which nothing was installed."""
    disk = directory / "disk"
    shutil.rmtree(disk, ignore_errors=True)
    disk.mkdir()
    drill.host.copy_directories([TARGET], disk)
    disk.chmod(0o755)
    replaced(drill, testbed, [disk, *built(testbed, "trixie", "libraries", "programs")])


def assert_kept(drill: Drill, directory: Path, *last: str) -> None:
    """Log-ins, messages that the old devices can read, media, stickers, addresses, the signing key and own settings."""
    users = drill.users
    assert drill.host.run("cat /var/lib/matrix-synapse/signing.key").stdout == drill.key
    assert drill.host.run(f"stat -c '%a %U %G' {OWN}").stdout == "640 root matrix-synapse\n"
    drill.outside = Outside(drill.host, directory)
    assert published(drill.outside) == drill.published

    async def conversation() -> None:
        async with (
            drill.outside.matrix(users.alice, keys=users.keys) as hers,
            drill.outside.matrix(users.bob, keys=users.keys) as his,
        ):
            whole = {"room": {"timeline": {"limit": 100}}}
            read = expect(await his.sync(sync_filter=whole, full_state=True), nio.SyncResponse)
            found = [message.body for message in messages(read, users.encrypted)]
            assert found == [*ENCRYPTED, *last], found
            expect(await hers.sync(full_state=True), nio.SyncResponse)
            await send_message(hers, users.encrypted, "We are back.")
            assert (await receive_message(his, users.encrypted, users.alice.user_id, "We are back.")).decrypted

    asyncio.run(conversation())
    assert_media_are_kept(drill.outside, users)
    if "mas" not in drill.roles:
        assert_stickers_are_kept(drill)
    with drill.outside.http() as http:
        assert look_up(drill.outside, http, users.identity[1], users.address) == {users.address: users.alice.user_id}


def assert_stickers_are_kept(drill: Drill) -> None:
    """The picker has the pack, its pictures are there for it and for who gets a sticker, and Alice has the picker."""
    outside, alice = drill.outside, drill.users.alice
    with outside.http() as http:
        [pack] = expect_json(http.get(outside.url("stickers.chat", "/packs.json")))["packs"]
        [sticker] = pack["stickers"]
        address = f"/_matrix/client/v1/media/download/{sticker['url'].removeprefix('mxc://')}"
        for service, path in (("stickers.chat", f"/pictures/{sticker['picture']}"), ("matrix", address)):
            found = http.get(outside.url(service, path), headers=alice.authorization if service == "matrix" else {})
            assert found.content == PICTURES["happy_cat.png"], path
        widgets = outside.url("matrix", f"/_matrix/client/v3/user/{alice.user_id}/account_data/m.widgets")
        [widget] = expect_json(http.get(widgets, headers=alice.authorization)).values()
    assert widget["content"]["url"].startswith(outside.url("stickers.chat", "/"))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("backup")


@pytest.fixture(scope="module")
def drill(testbed: Testbed, directory: Path, release_page: ReleaseServer) -> Iterator[Drill]:
    host = testbed.up(own("backup13"), layers=built(testbed, "trixie"))
    found = begun(host, directory, release_page)
    yield found
    found.host.down()


def test_a_second_run_changes_nothing_and_the_verification_finds_nothing_wrong(drill: Drill) -> None:
    assert drill.deployment.run("-y").changed == []
    status, output = drill.deployment.verify()
    assert status == 0 and "Nothing is wrong" in output, output


def test_a_repository_of_roots_is_handed_over(drill: Drill) -> None:
    """Files were backed up by root once. What was backed up then stays, and nothing of it is in the way."""
    host, repository = drill.host, f"{TARGET}/{drill.host.name}/files"
    snapshots = "set -a; . /etc/matrix-metal/backup/files.env; restic snapshots --no-cache --no-lock --json"
    before = json.loads(host.run(snapshots).stdout)
    owned = f"{repository} {BACKUP_FILES} {BACKUP_CACHE}"
    host.run(f"chown -R root:root {owned}; echo another >{BACKUP_STATE}/prepared")
    drill.deployment.run("-y")
    drill.backed_up()
    host.run("systemctl start matrix-metal-backup-check-files", timeout=120)
    assert host.run(f"find {owned} ! -user {BACKUP_USER}").stdout == ""
    after = json.loads(host.run(snapshots).stdout)
    assert {each["id"] for each in before} < {each["id"] for each in after}
    assert drill.deployment.run("-y").changed == []


def test_nothing_at_the_target_can_be_read_without_the_key(drill: Drill) -> None:
    """Neither what is secret, nor what people wrote, nor their names. pgBackRest would compress what it does not encrypt."""
    host, users = drill.host, drill.users
    drill.backed_up()
    words = [drill.key.split()[-1], users.alice.user_id, users.address, *PLAIN, "signing.key", "homeserver.yaml"]
    at_the_target = f"find {TARGET}/{host.name} -type f"
    assert host.run(f"grep -rlaF -f - {TARGET}", stdin="\n".join(words), check=False).stdout == ""
    media = host.run("find /var/lib/matrix-synapse/media -type f -size +100k").stdout.split()
    beginnings = "while read -r file; do head -c 32 $file | base64; done | sort -u"
    stored = set(host.run(f"{at_the_target} | {beginnings}").stdout.split())
    assert media and not stored & set(host.run(beginnings, stdin="\n".join(media) + "\n").stdout.split())
    encrypted = 'while read -r file; do [ "$(head -c 8 $file)" = Salted__ ] || echo $file; done'
    assert host.run(f"{at_the_target} -path '*/postgresql/*' -size +0 | {encrypted}").stdout == ""


def test_a_machine_that_got_another_name_does_not_begin_new_backups(drill: Drill) -> None:
    inventory = drill.deployment.inventory
    before = inventory.read_text()
    inventory.write_text(before.replace(f"'{drill.host.name}'", "'another-name'"))
    refused = drill.deployment.run("-y", check=False)
    inventory.write_text(before)
    assert refused.status == 1 and refused.changed == []
    assert f"another-name: was called {drill.host.name} in inventories/trial.py, and its backups are" in refused.refusal


def test_a_target_that_is_away_stops_nothing_and_is_reported(drill: Drill) -> None:
    host = drill.host
    drill.unmount()
    host.run("touch /var/lib/matrix-synapse/media/new")
    drill.query("SELECT pg_switch_wal()")
    for part in ("wal", "files", "database"):
        assert host.run(f"systemctl start matrix-metal-backup-{part}", check=False).returncode
    assert f"is the disk mounted at {TARGET}?" in drill.part("files/files")["reason"]
    begin = time.monotonic()
    host.run("systemctl restart 'postgresql@*'", timeout=60)
    assert time.monotonic() - begin < 15
    status, output = drill.deployment.verify("tests/host/test_backup.py")
    assert status == 1 and "the backup fails (wal)" in output and "is the disk mounted" in output, output
    shown = drill.deployment.manage("backup", "show").stdout
    assert "is the disk mounted" in shown, shown
    now = drill.deployment.manage("backup", "now")
    assert now.returncode == 1 and f"database not backed up: {TARGET}/" in now.stderr, now.stderr
    restore = drill.deployment.manage("restore", "--overwrite", "--yes")
    assert restore.returncode == 1 and "mount the disk with the backup. Nothing was touched" in restore.stderr
    assert host.run("systemctl is-active matrix-synapse").stdout == "active\n"

    drill.mount()
    drill.log_sent()
    drill.backed_up()
    assert host.run("systemctl --failed --no-legend").stdout == ""


def test_a_target_that_is_away_for_long_leaves_a_gap_that_a_backup_ends(drill: Drill) -> None:
    host = drill.host
    configuration = host.run("ls /etc/postgresql/*/main/conf.d/matrix-metal.conf").stdout.strip()
    host.run(f"cp -a {configuration} /root/kept; sed -i 's/pgbackrest [0-9]* /pgbackrest 64 /' {configuration}")
    drill.unmount()
    host.run("systemctl stop matrix-metal-backup-wal.timer; systemctl reload postgresql")
    for _ in range(3):
        drill.query("CREATE TABLE waste AS SELECT generate_series(1, 20000); DROP TABLE waste; SELECT pg_switch_wal()")
        host.run(f'until [ "$(ls {SPOOL})" ]; do sleep 0.1; done; sleep 0.5', timeout=30)
    assert "gap" in host.run(f"ls {SPOOL}").stdout.split()
    assert len(host.run(f"ls {SPOOL}").stdout.split()) < 4, "PostgreSQL's log is kept without a limit"
    before = drill.part("database/database")["success"]
    drill.mount()
    host.run(f"mv /root/kept {configuration}; systemctl reload postgresql")
    time.sleep(1)
    host.run("systemctl start matrix-metal-backup-wal matrix-metal-backup-wal.timer", timeout=120)
    assert drill.part("database/database")["success"] > before and "gap" not in host.run(f"ls {SPOOL}").stdout


def test_a_full_target_is_reported(drill: Drill) -> None:
    """By each job. When there is room again, what PostgreSQL has written meanwhile arrives."""
    host, jobs = drill.host, {"files": "files/files", "wal": "database/wal", "database": "database/database"}
    host.run(
        f"head -c 3000000 /dev/urandom >/var/lib/matrix-synapse/media/large; dd if=/dev/zero of={TARGET}/filler bs=1M",
        check=False,
    )
    drill.query("SELECT pg_create_restore_point('full')")
    kept = drill.query("SELECT pg_walfile_name(pg_switch_wal())")
    host.run(f"until [ -e {SPOOL}/{kept} ]; do sleep 0.1; done", timeout=60)
    for job, part in jobs.items():
        assert host.run(f"systemctl start matrix-metal-backup-{job}", check=False).returncode, job
        assert "no space left" in drill.part(part)["reason"].lower(), drill.part(part)
    assert host.run(f"ls {SPOOL}/{kept}").stdout, "the log was not kept"
    host.run(f"rm {TARGET}/filler")
    for job, part in jobs.items():
        host.run(f"systemctl start matrix-metal-backup-{job}", timeout=120)
        assert drill.part(part)["failure"] is None, drill.part(part)
    assert host.run(f"find {TARGET}/{host.name}/postgresql/archive -name '{kept}-*'").stdout, "the log did not arrive"


def test_a_backup_that_is_killed_is_made_again(drill: Drill) -> None:
    host = drill.host
    for part in ("database", "files"):
        host.run(
            f"rm -f {BACKUP_STATE}/files/stamp; systemctl start --no-block matrix-metal-backup-{part}; sleep 0.4; "
            f"systemctl kill -s KILL matrix-metal-backup-{part}; sleep 0.2"
        )
    drill.backed_up()


@pytest.mark.parametrize(("part", "repository"), [("files", "files"), ("database", "dumps")])
def test_a_job_that_is_killed_locks_no_later_one(drill: Drill, part: str, repository: str) -> None:
    """The lock of a check or a prune excludes all others, and restic itself never takes one for left over."""
    host, locks = drill.host, f"{TARGET}/{drill.host.name}/{repository}/locks"

    def killed(job: str) -> None:
        # Again if it had ended already.
        seen = f"until ls {locks}/* >/dev/null 2>&1; do sleep 0.01; done"
        host.run(
            f"for attempt in 1 2 3 4 5 6; do rm -f {BACKUP_STATE}/files/stamp; systemctl start --no-block {job}; "
            f"timeout 20 sh -c '{seen}'; systemctl kill -s KILL {job}; sleep 0.2; "
            f'[ -z "$(ls {locks})" ] || exit 0; done; exit 1',
            timeout=150,
        )

    killed(f"matrix-metal-backup-check-{part}")
    drill.backed_up()
    assert not host.run(f"ls {locks}").stdout
    killed(f"matrix-metal-backup-{part}")
    host.run(f"systemctl start matrix-metal-backup-check-{part}", timeout=120)


def test_a_backup_that_was_asked_for_waits_for_a_check(drill: Drill) -> None:
    """`backup now` says that files are backed up when this job has succeeded."""
    before = drill.part("files/files")["success"]
    drill.host.run(f"systemd-run --quiet flock {BACKUP_STATE}/files/lock sleep 3; sleep 1")
    drill.host.run("systemctl start matrix-metal-backup-files")
    assert drill.part("files/files")["success"] > before


def test_a_backup_that_was_asked_for_is_none_that_runs_already(drill: Drill) -> None:
    """It would be without what was written since it has begun."""
    unit = "matrix-metal-backup-database.service"
    started = f"systemctl show -P InvocationID {unit}"
    drill.host.run(
        f"systemctl start --no-block {unit}; until [ $(systemctl is-active {unit}) = activating ]; do :; done"
    )
    running = drill.host.run(started).stdout
    drill.backed_up()
    assert drill.host.run(started).stdout != running


def test_a_clock_that_was_ahead_by_a_day_hides_nothing(drill: Drill) -> None:
    """When it is right again: what has changed is backed up, a success in the future is none, and its backup not the newest.

    Nor do the backups from the future decide which are too old to be kept.
    """
    host, file, repository = (
        drill.host,
        f"{BACKUP_STATE}/files/files.json",
        "set -a; . /etc/matrix-metal/backup/files.env; ",
    )
    for day in ("tomorrow", "40 days", "20 days ago", "3 days ago"):
        host.run(
            f"{repository}restic backup --quiet --time \"$(date -d '{day}' '+%F %T')\" --host matrix-metal /etc/hostname"
        )
    host.run(f"touch -d tomorrow {BACKUP_STATE}/files/stamp; systemctl stop matrix-metal-backup-files.timer")
    began = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}"
    future = f"{datetime.now(UTC) + timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}"
    host.run(f"cat >{file}", stdin=json.dumps({**drill.part("files/files"), "success": future}))
    for output in (
        drill.deployment.verify("tests/host/test_backup.py")[1],
        drill.deployment.manage("status").stdout,
    ):
        assert "which is in the future" in " ".join(output.split()), output
    host.run(
        f"rm {BACKUP_STATE}/files/pruned; touch /var/lib/matrix-synapse/media/since; systemctl start matrix-metal-backup-files"
    )
    days = [
        round((datetime.fromisoformat(each["time"][:19] + "+00:00") - datetime.now(UTC)) / timedelta(days=1))
        for each in json.loads(host.run(f"{repository}restic snapshots --json --path /etc/hostname").stdout)
    ]
    assert sorted(days) == [-3, 1, 40], days
    kept = json.loads(host.run(f"{repository}restic snapshots --json --path {SYNAPSE.state[0]}").stdout)
    assert any(each["time"] >= began for each in kept), "what was just backed up was removed at once"
    assert float(host.run(f"stat -c %Y {BACKUP_STATE}/files/stamp").stdout) <= time.time()
    host.run("systemctl start matrix-metal-backup-files.timer")
    assert "which is in the future" not in " ".join(drill.deployment.manage("status").stdout.split())


def test_everything_is_restored_on_a_new_machine(drill: Drill, testbed: Testbed, directory: Path) -> None:
    drill.log_sent()
    drill.backed_up()
    carried(drill, testbed, directory)
    begin = time.monotonic()
    output = drill.restored()
    assert time.monotonic() - begin < 240
    assert "Nothing is wrong" in output and "restoring the database" in output, output
    assert drill.query(ONE_TIME_KEYS) == "0"
    assert_kept(drill, directory, BEFORE, AFTER)
    again = drill.stickers("import", str(drill.pack), "--name", "Garden")
    assert not again["uploaded"] and not again["changed"]
    assert drill.deployment.run("-y").changed == []


def test_a_machine_with_data_is_refused(drill: Drill) -> None:
    done = drill.deployment.manage("restore", "--yes")
    assert done.returncode == 1 and "there is data on" in done.stderr and "--overwrite" in done.stderr, done.stderr


def test_the_backup_says_how_far_back_it_reaches(drill: Drill) -> None:
    """Whoever mistypes the time is told so before anything is stopped."""
    host = drill.host
    drill.log_sent()
    line = drill.deployment.manage("backup", "show").stdout.splitlines()[-1]
    found = re.match(rf"{host.name}: `restore --to` reaches from (\S+ \S+) UTC to (\S+ \S+) UTC; media ", line)
    assert found, line
    first, last = (datetime.fromisoformat(f"{each}+00:00") for each in found.groups())
    assert first < datetime.fromisoformat(f"{drill.moment}+00:00") < last, line
    assert timedelta() <= datetime.now(UTC) - last < timedelta(seconds=30), line
    drill.newest = found[2]
    # Something later, which a restore sends to the target before it replaces the database.
    drill.query("SELECT txid_current()")
    shown = json.loads(drill.deployment.manage("backup", "show", "--json").stdout)[host.name]
    parts = {part["part"]: part for part in shown}
    assert (parts["database"]["restore_from"], parts["wal"]["restore_to"]) == (
        f"{first:%Y-%m-%dT%H:%M:%SZ}",
        f"{last:%Y-%m-%dT%H:%M:%SZ}",
    )
    serving = host.run("systemctl show -p MainPID --value matrix-synapse").stdout
    before = f"{first - timedelta(seconds=1):%Y-%m-%d %H:%M:%S}"
    begin = time.monotonic()
    done = drill.deployment.manage("restore", "--yes", "--overwrite", "--to", before)
    assert time.monotonic() - begin < 15
    assert done.returncode == 1 and done.stderr.splitlines() == [
        f"manage: {host.name}: there is no backup of the database from before {before} UTC: --to reaches back to "
        f"{found[1]} UTC. Nothing was touched"
    ], done.stderr
    assert host.run("systemctl show -p MainPID --value matrix-synapse").stdout == serving


# A restore that fails leaves the machine as it is for the next attempt: the last of these succeeds.


def test_a_wrong_key_is_named(drill: Drill, tmp_path: Path) -> None:
    vault = Vault.open(drill.deployment.vault)
    saved = drill.deployment.vault.read_bytes()
    vault.rotate("backup_encryption_key", force=True)
    vault.save()
    done = drill.deployment.manage("restore", "--yes", "--overwrite")
    assert done.returncode == 1 and "backup_encryption_key in the vault is not the key" in done.stderr, done.stderr
    drill.deployment.vault.write_bytes(saved)


def test_a_time_before_the_first_backup_replaces_nothing(drill: Drill) -> None:
    """With a target that the machine cannot ask before, whoever mistypes it still has a homeserver."""
    options = ("--from", TARGET, "--to", "2024-01-31 17:05")
    done = drill.deployment.manage("restore", "--yes", "--overwrite", *options)
    assert done.returncode == 1, done.stderr
    assert re.search(
        r": there is no backup of the database from before 2024-01-31T17:05:00Z: the oldest is of \S+Z\. "
        r"Nothing was replaced, and the homeserver goes on$",
        done.stderr.splitlines()[-1],
    ), done.stderr
    drill.host.run(SYNAPSE.units[0].health)
    assert drill.deployment.run("-y").changed == []


def test_a_repository_that_was_truncated_is_reported_and_not_restored(drill: Drill) -> None:
    """By the weekly checks, and by a restore, in one line each."""
    host = drill.host
    for job, part, program in (("files", "files/data", "restic: "), ("database", "postgresql/backup", "pgbackrest")):
        found = f"find {TARGET}/{host.name}/{part} -type f -printf '%s %p\\n' | sort -n | tail -n 1"
        size, path = host.run(found).stdout.split()
        host.run(f"cp -a {path} /root/whole; truncate -s {int(size) // 2} {path}")
        assert host.run(f"systemctl start matrix-metal-backup-check-{job}", check=False).returncode
        reason = drill.part(f"{job}/check-{job}")["reason"]
        assert program in reason.lower() and "is damaged" in reason, reason
        assert "is damaged" in drill.deployment.manage("backup", "show").stdout
        # What the machine has already is not read from there.
        host.run("systemctl stop matrix-metal-backup-wal.timer matrix-synapse 'postgresql@*'")
        host.run("rm -rf /var/lib/matrix-synapse/media")
        host.run(f"rm -rf /var/lib/postgresql/*/main/{'base' if job == 'database' else 'none'}")
        waiting = host.run(f"ls {SPOOL}").stdout
        done = drill.deployment.manage("restore", "--yes", "--overwrite")
        assert done.returncode == 1 and "is damaged" in done.stderr.splitlines()[-1], done.stderr
        if job == "files":
            # The database was whole until then.
            assert waiting and not host.run(f"ls {SPOOL}").stdout
            assert "sending the last changes" in done.stderr and "not all of them" not in done.stderr, done.stderr
        host.run(f"mv /root/whole {path}; systemctl start matrix-metal-backup-check-{job}")


# Of another cluster, as PostgreSQL leaves it for the backup.
OTHER_LOG = f"""
cd / && runuser -u postgres -- sh -c '
    /usr/lib/postgresql/*/bin/initdb -D /var/lib/postgresql/other >/dev/null
    cp /var/lib/postgresql/other/pg_wal/0* {SPOOL}/'
rm -r /var/lib/postgresql/other
"""


def test_it_is_restored_as_it_was_at_a_time(drill: Drill, directory: Path) -> None:
    """And the first attempt is killed in the middle: nothing runs with half of the data.

    The machine had another database before, whose log was not sent: that of the restored one is.
    """
    host = drill.host
    host.run(OTHER_LOG)
    host.run("rm -f /run/matrix-metal/restore.json")
    with ThreadPoolExecutor() as pool:
        running = pool.submit(drill.deployment.manage, "restore", "--yes", "--to", drill.moment)
        reached = "grep -qs 'restoring the database' /run/matrix-metal/restore.json"
        host.run(f"until {reached}; do sleep 0.02; done; systemctl kill -s KILL matrix-metal-restore", timeout=120)
        killed = running.result()
    assert killed.returncode == 1 and "run the same command again" in killed.stderr, killed.stderr
    # What a boot would start now, its data half there, and its timers, which would back that up.
    units = [host.run("systemctl list-units -a --plain --no-legend 'postgresql@*.service'").stdout.split()[0]]
    units += [
        "matrix-synapse.service",
        "caddy.service",
        *(f"matrix-metal-backup-{job}.service" for job in ("wal", "database", "files")),
    ]
    host.run(f"systemctl start {' '.join(units)}")
    assert set(host.run(f"systemctl is-active {' '.join(units)}", check=False).stdout.split()) == {"inactive"}
    refused = drill.deployment.run("-y", check=False)
    assert refused.status == 1 and "a restore has begun here" in refused.refusal, refused.output
    [reason] = json.loads(drill.deployment.manage("status", "--json").stdout)["reasons"]
    assert refused.refusal == f"{host.name}: {reason['text']}", reason
    # Without --overwrite: the restore that has begun may go on.
    drill.restored("--to", drill.moment)
    assert host.run(f"ls {RESTORE_HOME}", check=False).returncode
    assert_kept(drill, directory, BEFORE)
    drill.log_sent()


def test_who_has_gone_back_too_far_goes_forward_again(drill: Drill, directory: Path) -> None:
    """To a time of the history that the restore before has left."""
    output = drill.restored("--overwrite", "--to", drill.newest)
    assert f"the database as it was at {drill.newest.replace(' ', 'T')}Z" in output, output
    assert_kept(drill, directory, BEFORE, AFTER, "We are back.")
    drill.log_sent()


# --- other targets --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(testbed: Testbed) -> Iterator[Host]:
    """An empty Debian: for SFTP, and to rehearse on."""
    host = testbed.up(own("backup-other"))
    yield host
    host.down()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with S3(tmp_path_factory.mktemp("s3")) as storage:
        yield storage


def burnt_after_a_backup(drill: Drill, testbed: Testbed, later: str = "", **settings: Any) -> list[str]:
    """Backups go to this target from now on, then the machine burns, and the target alone is left. Returns the messages since the
    first. The new machine is empty: what a deploy installs is there, for the sake of time, and nothing was configured.

    later: a message after `drill.moment`, which is not among those returned.
    """
    drill.deployment.choose(**{**drill.deployment.settings, **settings})
    drill.deployment.run("-y")
    jobs = "matrix-metal-backup-database matrix-metal-backup-files"
    working = f"systemctl is-active {jobs} | grep -q activating"
    drill.host.run(
        f"end=$(( $(date +%s) + 120 )); while {working} && [ $(date +%s) -lt $end ]; do sleep 0.2; done", timeout=150
    )
    if drill.host.run(working, check=False).returncode == 0:
        said = "journalctl -u 'matrix-metal-backup-*' -n 50 --no-pager"
        raise AssertionError(drill.host.run(f"ps axo etime,args | grep -E 'pgbackrest|restic|archiver'; {said}").stdout)
    assert drill.host.run("systemctl --failed --no-legend").stdout == "", "the first backup there failed"
    drill.backed_up()
    asyncio.run(say(drill, f"Now by {settings['backup_target'].partition(':')[0]}."))
    drill.log_sent()
    messages = written(drill)
    if later:
        drill.moment = between()
        asyncio.run(say(drill, later))
        drill.log_sent()
    replaced(drill, testbed, built(testbed, "trixie"))
    places = (
        "/etc/matrix-* /etc/mas /var/lib/matrix-synapse /var/lib/sydent /var/lib/caddy/.local /var/lib/postgresql /mnt"
    )
    assert drill.host.run(f"find {places} -mindepth 1", check=False).stdout == ""
    return messages


def test_everything_is_restored_from_another_machine_by_sftp(
    drill: Drill, testbed: Testbed, other: Host, directory: Path
) -> None:
    """It is not at the target of the settings, and the machine had another name. The first attempt is killed near its end.

    The moment is after the last that the target has of the database.
    """
    line = drill.deployment.manage("backup", "key").stdout
    account, before = Sftp(other, line.strip()), drill.deployment.settings
    messages = burnt_after_a_backup(drill, testbed, backup_target=account.target, backup_sftp_host_key=account.host_key)
    other.run(f"mv /srv/matrix/{drill.host.name} /srv/matrix/former")
    drill.deployment.choose(**{**drill.deployment.settings, "backup_target": before["backup_target"]})
    drill.host.run(f"mkdir {TARGET}")
    moment = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    options = ("--from", account.target, "--machine", "former", "--to", moment)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(drill.deployment.manage, "restore", "--yes", *options)
        recovered = "[ \"$(runuser -u postgres -- psql -XAtqc 'SELECT pg_is_in_recovery()' 2>/dev/null)\" = f ]"
        kill = "systemctl kill -s KILL matrix-metal-restore"
        running.add_done_callback(lambda _: drill.host.run("touch /run/ended"))
        drill.host.run(f"cd /; until {recovered} || [ -e /run/ended ]; do sleep 0.05; done; {kill}", timeout=120)
        killed = running.result()
    assert killed.returncode == 1 and "run the same command again" in killed.stderr, killed.stderr
    output = drill.restored(*options)
    assert f"at its newest, as the backup has nothing later until {moment.replace(' ', 'T')}Z" in output, output
    assert_kept(drill, directory, *messages)


@dataclass(frozen=True)
class Peer:
    """Carol's homeserver; one trusts the other's authority, as homeservers of one company would."""

    outside: Outside
    carol: Account


@pytest.fixture
def peer(drill: Drill, testbed: Testbed, tmp_path: Path) -> Iterator[Peer]:
    host = testbed.up(own("backup-peer"), layers=built(testbed, "trixie"))
    trust(host, drill.outside)
    homeserver(host, tmp_path, roles=("postgres", "synapse", "caddy"), backup_target=None).run("-y")
    outside = Outside(host, tmp_path)
    trust(drill.host, outside)
    yield Peer(outside, new_user(outside, "carol"))
    host.down()


def trust(host: Host, other: Outside) -> None:
    host.run("install -d /usr/local/share/ca-certificates")
    host.put(other.root, "/usr/local/share/ca-certificates/neighbour.crt")
    host.run(
        "apt-get update -qq; apt-get install -qq -y --no-install-recommends ca-certificates; update-ca-certificates"
    )


async def talk(drill: Drill, peer: Peer, room: str | None) -> str:
    """Alice and Carol write to each other, in a room that is made if there is none yet."""
    async with drill.outside.matrix(drill.users.alice) as hers, peer.outside.matrix(peer.carol) as carols:
        if room:
            for client in (hers, carols):
                expect(await client.sync(full_state=True), nio.SyncResponse)
        else:
            room = await create_shared_room(hers, carols)
        for writer, reader in ((carols, hers), (hers, carols)):
            text = secrets.token_hex(4)
            await send_message(writer, room, text)
            await receive_message(reader, room, writer.user_id, text)
        return room


def test_everything_is_restored_from_s3_and_another_homeserver_still_trusts_it(
    drill: Drill, testbed: Testbed, s3: S3, peer: Peer, directory: Path
) -> None:
    """As it was at a time before the last message."""
    s3.trusted_by(drill.host)
    for name, value in (("backup_s3_access_key", s3.access_key), ("backup_s3_secret_key", s3.secret_key)):
        set_ = drill.deployment.manage("secrets", "set", name, stdin=f"{value}\n")
        assert set_.returncode == 0, set_.stderr
    drill.deployment.run("-y")  # it trusts the other's authority now
    room = asyncio.run(talk(drill, peer, None))
    messages = burnt_after_a_backup(drill, testbed, later="It is lost.", backup_target=s3.target)
    s3.trusted_by(drill.host)
    trust(drill.host, peer.outside)
    drill.restored("--to", drill.moment)
    assert_kept(drill, directory, *messages)
    asyncio.run(talk(drill, peer, room))


def mail_about(drill: Drill, directory: Path, subject: str, words: str) -> str:
    """The text of the mail; the job of the files may fail at the same time, as it begins every four minutes."""
    host, admin = drill.host, drill.deployment.settings["admin_email"]
    for _ in range(3):
        mail = receive_mail(drill.outside, "boss", admin, directory)
        text: str = mail.get_content()
        if mail["Subject"] == f"{host.domain}: {subject}" and words in text:
            return text
    raise AssertionError(text)


def test_the_administrator_gets_a_mail_if_the_backup_fails_or_is_late(drill: Drill, s3: S3, directory: Path) -> None:
    """The key for the storage is revoked; then a job that has succeeded is not started any more."""
    host, deployment = drill.host, drill.deployment
    host.run(MAIL_SERVER.format(domain=host.domain, user="boss"), timeout=300)
    host.run("postconf -e inet_interfaces=all; systemctl restart postfix")
    server = {"smtp_host": f"mail.{host.domain}", "smtp_port": 25, "smtp_tls": "none"}
    deployment.choose(**{**deployment.settings, **server})
    deployment.manage("secrets", "set", "backup_s3_secret_key", stdin="revoked\n")
    deployment.run("-y")
    drill.query("SELECT pg_create_restore_point('mail')")
    drill.query("SELECT pg_switch_wal()")
    host.run(f'until [ "$(ls {SPOOL})" ]; do sleep 0.1; done', timeout=60)
    assert host.run("systemctl start matrix-metal-backup-wal", check=False).returncode
    text = mail_about(drill, directory, "the backup failed", f"On {host.name}, a job of the backup failed: wal.")
    assert "Why: pgBackRest: " in text, text

    deployment.manage("secrets", "set", "backup_s3_secret_key", stdin=f"{s3.secret_key}\n")
    deployment.run("-y")
    drill.log_sent()
    host.run("systemctl stop matrix-metal-backup-files.timer")
    past = f"{datetime.now(UTC) - timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}"
    state = {**drill.part("files/files"), "success": past}
    host.run(f"cat >{BACKUP_STATE}/files/files.json", stdin=json.dumps(state))
    host.run(f"touch -d '2 hours ago' {BACKUP_STATE}/prepared")
    for _ in range(2):
        host.run("systemctl start matrix-metal-backup-late")
    text = mail_about(drill, directory, "the backup is late", "is late: files.")
    assert f"Its last success: {past}" in text, text
    host.run("systemctl start matrix-metal-backup-files matrix-metal-backup-files.timer")
    assert host.run("ls /home/boss/Maildir/new | wc -l").stdout == "0\n", "one mail a day is enough"


def test_a_job_that_was_taken_over_reaches_no_service(drill: Drill) -> None:
    """The target is in the network by now: the jobs may do more than with a directory."""
    host, roles = drill.host, [role for name, role in AVAILABLE["trixie"].items() if name in drill.roles]
    own = "/etc/matrix-metal/backup"
    with neighbours(host) as pids:
        for unit in (unit for role in roles for unit in role.units):
            name = real_name(host, Service.of(SYNAPSE, unit))
            pids[name] = main_pid(host, name)
        machine = Machine(host, pids, roles, secrets=(f"{own}/*.env", f"{own}/ssh_key.*", "/etc/matrix-synapse/conf.d"))
        postgres = [f"read /var/lib/postgresql/*/main{below}" for below in ("", "/*")]
        files = [f"read {path}{below}" for path in (*machine.private, *machine.secrets) for below in ("", "/*")]
        may: dict[str, Sequence[str]] = {
            "postgres": (*ANYBODY, *postgres, f"read {own}/ssh_key.postgres", *may_end("postgresql@*")),
            BACKUP_USER: (*ANYBODY, *files),
        }
        mails = (BACKUP.timers[-1].service, BACKUP.helpers[0].replace("@", "@files"))
        jobs = [Service(timer.service, tuple(may[timer.user])) for timer in BACKUP.timers if timer.service not in mails]
        there = host.run("ls /etc/systemd/system/matrix-metal-backup-*").stdout
        # They can be started where somebody gets mails, as the test above has chosen.
        jobs += [Service(name, ANYBODY) for name in mails if mails[0] in there]
        timers = " ".join(timer.timer for timer in BACKUP.timers if timer.timer in there)
        host.run(f"systemctl stop {timers}")
        try:
            for job in jobs:
                assert_reaches_no_other(machine, job)
        finally:
            host.run(f"systemctl start {timers}")
    assert len(jobs) >= 5


# --- rehearsal ------------------------------------------------------------------------------------

# What is listening, and which units run, twice a second.
WATCH = "systemd-run -q --unit=watch sh -c 'while sleep 0.5; do ss -Hlntu; done >/var/tmp/watched'"
LISTENING = "sort -u /var/tmp/watched | awk '{ print $1, $5 }'"
TRACES = (
    "ls -d /etc/matrix-* /var/lib/matrix-* /var/lib/postgresql /etc/postgresql /usr/local/lib/matrix-metal 2>/dev/null; "
    "cat /etc/passwd /etc/group; dpkg-query --show; "
    "find /etc /usr/local /opt | sort"
)


def test_a_restore_is_rehearsed_on_another_machine(drill: Drill, other: Host, s3: S3, directory: Path) -> None:
    """Nothing of the homeserver runs there, and nothing is left."""
    spare = directory / "spare.py"
    spare.write_text(f"spare = [{one(other)!r}]\n")
    s3.trusted_by(other)
    other.run(WATCH)
    before = other.run(TRACES).stdout
    count = drill.query("SELECT count(*) FROM events")
    done = drill.deployment.manage("restore", "--rehearse", "--on", str(spare), "--yes")
    assert done.returncode == 0 and "Nothing is wrong." in done.stdout, done.stdout + done.stderr
    for words in (
        "the database synapse can be read",
        "the signing key: the same as the homeserver has",
        "Rehearsed in ",
    ):
        assert words in done.stdout, done.stdout
    assert "  media compared with the homeserver's, byte for byte: 0" not in done.stdout
    assert other.run(TRACES).stdout == before
    other.run("systemctl stop watch")
    listening = {line.rpartition(":")[2] for line in other.run(LISTENING).stdout.splitlines()}
    assert listening <= {"22", "53", "5355"}, "something of the homeserver listened"
    assert drill.query("SELECT count(*) FROM events") == count


def test_what_is_no_spare_machine_is_refused(drill: Drill, other: Host, directory: Path) -> None:
    host, spare = drill.host, directory / "spare.py"
    done = drill.deployment.manage("restore", "--rehearse")
    assert done.returncode == 1 and "a rehearsal needs a spare machine: write inventories/spare.py" in done.stderr
    for name, words in ((host.name, "is the homeserver"), ("alias", "itself; a rehearsal needs another machine")):
        address = {"ssh_hostname": host.address6} if name == "alias" else {}
        spare.write_text(f"spare = [{(name, {**one(host)[1], **address})!r}]\n")
        done = drill.deployment.manage("restore", "--rehearse", "--on", str(spare))
        assert done.returncode == 1 and words in done.stderr, done.stderr
    other.run("mkdir /var/lib/postgresql")
    spare.write_text(f"spare = [{one(other)!r}]\n")
    done = drill.deployment.manage("restore", "--rehearse", "--on", str(spare))
    assert done.returncode == 1 and "has /var/lib/postgresql, so it is no spare machine" in done.stderr, done.stderr


# What does not change when people use it.
ROWS_OF_MAS = ("users", *(("user_passwords", "compat_access_tokens") if real_mas() else ("stand_in_tokens",)))


def kept_of_mas(drill: Drill) -> tuple[str, ...]:
    """Its rows, its secrets, the keys that it signs with, and the administrator's settings. It works."""
    host = drill.host
    host.run(f"( {MAS.units[0].health} )")
    keys = ""
    if real_mas():
        with Outside(host, drill.deployment.directory).http() as http:
            keys = json.dumps(expect_json(http.get(drill.outside.url("auth", "/oauth2/keys.json"))))
    return (
        *(query(host, f"SELECT * FROM {table} ORDER BY {table}", "mas") for table in ROWS_OF_MAS),  # noqa: S608
        host.run("sha256sum /etc/mas/secrets/*").stdout,
        keys,
        host.run(f"cat {OWN_MAS}; stat -c '%a %U %G' {OWN_MAS}").stdout,
    )


def user_name(account: Account) -> str:
    return account.user_id.partition(":")[0].removeprefix("@")


def one(host: Host) -> tuple[str, dict[str, str]]:
    """A machine of an inventory."""
    options = {"ssh_hostname": host.address, "ssh_user": "root", "ssh_key": str(host.ssh_key)}
    return host.name, {**options, "ssh_known_hosts_file": str(host.known_hosts)}


def test_debian_12_is_restored_on_debian_13(testbed: Testbed, release_page: ReleaseServer, tmp_path: Path) -> None:
    """PostgreSQL 17 does not read the files of PostgreSQL 15: the dumps are for that. Before, on Debian 12, it goes back in
    time, and all data that it has are replaced.

    Here the accounts are in MAS: that nobody was logged out says that its database and its secret belong together.
    """
    host, archive = (
        testbed.up(own("backup12"), release="bookworm", layers=built(testbed, "bookworm")),
        str(real_mas() or mas_archive(tmp_path)),
    )
    drill = begun(host, tmp_path, release_page, roles=(*ROLES, "mas"), mas_archive=archive)
    host.run(f"echo 'email: {{reply_to: me@example.org}}' >{OWN_MAS}; chgrp mas {OWN_MAS}; chmod 640 {OWN_MAS}")
    mas = kept_of_mas(drill)
    assert mas[0].count("\n") == mas[1].count("\n") == 1, "two people, and each is logged in once"
    # All data are there, and are replaced. A job of the backup has failed before.
    host.run("systemctl stop 'postgresql@*'")
    assert host.run("systemctl start matrix-metal-backup-database", check=False).returncode
    output = drill.restored("--overwrite", "--to", drill.moment)
    assert f"the database as it was at {drill.moment.replace(' ', 'T')}Z" in output and "Nothing is wrong" in output, (
        output
    )
    assert_kept(drill, tmp_path, BEFORE)
    assert kept_of_mas(drill) == mas

    asyncio.run(say(drill, AFTER))
    drill.backed_up()
    carried(drill, testbed, tmp_path)
    output = drill.restored()
    assert "from dumps of" in output and "(PostgreSQL 15 to 17)" in output and "Nothing is wrong" in output, output
    assert_kept(drill, tmp_path, BEFORE, "We are back.", AFTER)
    assert kept_of_mas(drill) == mas
    if real_mas():
        again = asyncio.run(drill.outside.log_in(user_name(drill.users.bob), drill.users.bob.password))
        assert again.user_id == drill.users.bob.user_id
    assert drill.deployment.run("-y").changed == []
    drill.host.down()
