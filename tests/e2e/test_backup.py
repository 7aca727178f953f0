"""The drill: a homeserver is backed up, destroyed and restored on a new machine, and nobody has lost anything.

Real clients use it before and after. The target is carried to the new machine, as a disk would be.
"""

import asyncio
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nio
import pytest

from operations.machine import BACKUP_STATE, RESTORE_HOME
from roles import SYNAPSE
from settings.backup import SPOOL
from tests.built import built
from tests.conftest import own
from tests.deployment import Deployment
from tests.e2e.client import Outside, expect, messages, receive_message, send_message
from tests.e2e.identity import look_up
from tests.e2e.people import ENCRYPTED, UserData, assert_media_are_kept, use_everything
from tests.testbed import Host, Testbed
from vault import Vault

pytestmark = pytest.mark.role("backup")

ROLES = ("postgres", "synapse", "caddy", "sydent", "backup")
TARGET = "/mnt/backup"
OWN = "/etc/matrix-synapse/conf.d/mine.yaml"
ONE_TIME_KEYS = "SELECT count(*) FROM e2e_one_time_keys_json"
BEFORE, AFTER = "Before the minute.", "After the minute."


@dataclass
class Drill:
    """A homeserver with a backup. moment: between its last two messages in the encrypted room. key: its signing key."""

    deployment: Deployment
    outside: Outside
    users: UserData
    key: str
    moment: str = ""

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
        self.query("SELECT pg_switch_wal()")
        self.host.run(
            f'until [ -z "$(ls {SPOOL})" ]; do systemctl start matrix-metal-backup-wal; sleep 0.2; done', timeout=60
        )


def homeserver(host: Host, directory: Path, **settings: Any) -> Deployment:
    subnets = [str(host.bed.network.subnet), str(host.bed.network.subnet6)]
    return Deployment(
        directory,
        [host],
        {
            "server_name": host.domain,
            "tls": "internal",
            "admin_email": f"admin@{host.domain}",
            "private_networks": subnets,
            "backup_target": TARGET,
            **settings,
        },
        roles={role: [host.name] for role in ROLES},
    )


def begun(host: Host, directory: Path, **settings: Any) -> Drill:
    """Deployed, used and backed up; then used again."""
    # As another disk, of its own size.
    host.run(f"mkdir {TARGET}; mount -t tmpfs -o size=80m,mode=755 tmpfs {TARGET}")
    deployment = homeserver(host, directory, **settings)
    deployment.run("-y")
    outside = Outside(host, directory)
    host.run(f"echo 'enable_set_displayname: false' >{OWN}; chgrp matrix-synapse {OWN}; chmod 640 {OWN}")
    host.run(f"systemctl restart matrix-synapse; until ( {SYNAPSE.units[0].health} ); do sleep 0.2; done", timeout=120)
    users = asyncio.run(use_everything(outside, directory))
    key = host.run("cat /var/lib/matrix-synapse/signing.key").stdout
    drill = Drill(deployment, outside, users, key)
    drill.backed_up()
    asyncio.run(say(drill, BEFORE))
    time.sleep(1.1)
    drill.moment = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    time.sleep(1.1)
    asyncio.run(say(drill, AFTER))
    drill.log_sent()
    return drill


async def say(drill: Drill, text: str) -> None:
    users = drill.users
    async with drill.outside.matrix(users.alice, keys=users.keys) as hers:
        expect(await hers.sync(full_state=True), nio.SyncResponse)
        await send_message(hers, users.encrypted, text)


def replaced(drill: Drill, testbed: Testbed, directory: Path, release: str = "trixie") -> None:
    """The machine burns; its disk with the backup is put into a new one of the same name."""
    disk = directory / "disk"
    shutil.rmtree(disk, ignore_errors=True)
    disk.mkdir()
    drill.host.copy_directories([TARGET], disk)
    disk.chmod(0o755)
    name = drill.host.name
    drill.host.down()
    new = testbed.up(name, release=release, layers=[disk, *built(testbed, release)])
    drill.deployment.hosts = [new]
    drill.deployment.assign({role: [new.name] for role in ROLES})


def assert_kept(drill: Drill, directory: Path, *last: str) -> None:
    """Log-ins, messages that the old devices can read, media, addresses, the signing key and the administrator's settings."""
    users = drill.users
    assert drill.host.run("cat /var/lib/matrix-synapse/signing.key").stdout == drill.key
    assert drill.host.run(f"stat -c '%a %U %G' {OWN}").stdout == "640 root matrix-synapse\n"
    drill.outside = Outside(drill.host, directory)

    async def conversation() -> None:
        async with (
            drill.outside.matrix(users.alice, keys=users.keys) as hers,
            drill.outside.matrix(users.bob, keys=users.keys) as his,
        ):
            whole = {"room": {"timeline": {"limit": 100}}}
            read = expect(await his.sync(sync_filter=whole, full_state=True), nio.SyncResponse)
            found = [message.body for message in messages(read, users.encrypted)]
            assert found == [*ENCRYPTED, *last]
            expect(await hers.sync(full_state=True), nio.SyncResponse)
            await send_message(hers, users.encrypted, "We are back.")
            assert (await receive_message(his, users.encrypted, users.alice.user_id, "We are back.")).decrypted

    asyncio.run(conversation())
    assert_media_are_kept(drill.outside, users)
    with drill.outside.http() as http:
        assert look_up(drill.outside, http, users.identity[1], users.address) == {users.address: users.alice.user_id}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("backup")


@pytest.fixture(scope="module")
def drill(testbed: Testbed, directory: Path) -> Iterator[Drill]:
    host = testbed.up(own("backup13"), layers=built(testbed, "trixie"))
    found = begun(host, directory)
    yield found
    found.host.down()


def test_a_second_run_changes_nothing_and_the_verification_finds_nothing_wrong(drill: Drill) -> None:
    assert drill.deployment.run("-y").changed == []
    status, output = drill.deployment.verify()
    assert status == 0 and "Nothing is wrong" in output, output


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
    host = drill.host
    host.run(
        f"head -c 3000000 /dev/urandom >/var/lib/matrix-synapse/media/large; dd if=/dev/zero of={TARGET}/filler bs=1M",
        check=False,
    )
    assert host.run("systemctl start matrix-metal-backup-files", check=False).returncode
    assert "no space left" in drill.part("files/files")["reason"].lower()
    host.run(f"rm {TARGET}/filler")
    host.run("systemctl start matrix-metal-backup-files")
    assert drill.part("files/files")["failure"] is None


def test_a_backup_that_is_killed_is_made_again(drill: Drill) -> None:
    host = drill.host
    for part in ("database", "files"):
        host.run(
            f"rm -f {BACKUP_STATE}/files/stamp; systemctl start --no-block matrix-metal-backup-{part}; sleep 0.4; "
            f"systemctl kill -s KILL matrix-metal-backup-{part}; sleep 0.2"
        )
    drill.backed_up()


def test_everything_is_restored_on_a_new_machine(drill: Drill, testbed: Testbed, directory: Path) -> None:
    drill.log_sent()
    drill.backed_up()
    replaced(drill, testbed, directory)
    begin = time.monotonic()
    output = drill.restored()
    assert time.monotonic() - begin < 240
    assert "Nothing is wrong" in output and "restoring the database" in output, output
    assert drill.query(ONE_TIME_KEYS) == "0"
    assert_kept(drill, directory, BEFORE, AFTER)
    assert drill.deployment.run("-y").changed == []


def test_a_machine_with_data_is_refused(drill: Drill) -> None:
    done = drill.deployment.manage("restore", "--yes")
    assert done.returncode == 1 and "there is data on" in done.stderr and "--overwrite" in done.stderr, done.stderr


def test_it_is_restored_as_it_was_at_a_time(drill: Drill, directory: Path) -> None:
    """And the first attempt is killed in the middle: nothing runs with half of the data."""
    host = drill.host
    arguments = ("restore", "--yes", "--overwrite", "--to", drill.moment)
    host.run(f"mv {TARGET}/{host.name}/postgresql {TARGET}/away")
    stopped = drill.deployment.manage(*arguments)
    assert stopped.returncode == 1 and "run the same command again" in stopped.stderr, stopped.stderr
    refused = drill.deployment.run("-y", check=False)
    assert refused.status == 1 and "a restore has begun here" in refused.refusal, refused.output
    host.run(f"mv {TARGET}/away {TARGET}/{host.name}/postgresql")
    # Without --overwrite: the restore that has begun may go on.
    drill.restored("--to", drill.moment)
    assert host.run(f"ls {RESTORE_HOME}", check=False).returncode
    assert_kept(drill, directory, BEFORE)


def test_a_wrong_key_is_named(drill: Drill, tmp_path: Path) -> None:
    vault = Vault.open(drill.deployment.vault)
    saved = drill.deployment.vault.read_bytes()
    vault.rotate("backup_encryption_key", force=True)
    vault.save()
    done = drill.deployment.manage("restore", "--yes", "--overwrite")
    assert done.returncode == 1 and "backup_encryption_key in the vault is not the key" in done.stderr, done.stderr
    drill.deployment.vault.write_bytes(saved)
    drill.restored()


def test_debian_12_is_restored_on_debian_13(testbed: Testbed, tmp_path: Path) -> None:
    """PostgreSQL 17 does not read the files of PostgreSQL 15: the dumps are for that."""
    host = testbed.up(own("backup12"), release="bookworm", layers=built(testbed, "bookworm"))
    drill = begun(host, tmp_path)
    drill.backed_up()
    replaced(drill, testbed, tmp_path)
    output = drill.restored()
    assert "from dumps of" in output and "(PostgreSQL 15 to 17)" in output and "Nothing is wrong" in output, output
    assert_kept(drill, tmp_path, BEFORE, AFTER)
    assert drill.deployment.run("-y").changed == []
    drill.host.down()
