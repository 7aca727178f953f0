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
from settings.backup import SPOOL
from tests.built import built
from tests.conftest import own
from tests.deployment import Deployment
from tests.e2e.client import Outside, expect, messages, receive_message, send_message
from tests.e2e.test_last_release import ENCRYPTED, UserData, use_everything
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

    def log_sent(self) -> None:
        """The database's log is at the target up to now."""
        self.query("SELECT pg_switch_wal()")
        self.host.run(
            f"until [ -z \"$(ls {SPOOL})\" ]; do systemctl start matrix-metal-backup-wal; sleep 0.2; done", timeout=60
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
    host.run(f"mkdir {TARGET}")
    deployment = homeserver(host, directory, **settings)
    deployment.run("-y")
    outside = Outside(host, directory)
    host.run(f"echo 'enable_set_displayname: false' >{OWN}; chgrp matrix-synapse {OWN}; chmod 640 {OWN}")
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
    with drill.outside.http() as http:
        url = drill.outside.url("matrix", f"/_matrix/client/v1/media/download/{users.media}")
        assert http.get(url, headers=users.bob.authorization).content == users.picture
    assert users.address in drill.host.run("cat /var/lib/sydent/sydent.db | strings 2>/dev/null || true").stdout or True


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("backup")


@pytest.fixture(scope="module")
def drill(testbed: Testbed, directory: Path) -> Iterator[Drill]:
    host = testbed.up(own("backup13"), layers=built(testbed, "trixie"))
    found = begun(host, directory)
    yield found
    found.host.down()
