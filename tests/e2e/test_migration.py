"""`manage.py NAME mas migrate` with the database on another machine, and when it is interrupted after Synapse was stopped.

With one machine it is in test_last_release.py. The stand-in for MAS takes no accounts: with it, a migration that nobody
interrupts is put back at its end.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from operations.accounts import MIGRATION
from roles import SYNAPSE
from tests.built import built
from tests.conftest import own
from tests.deployment import Deployment
from tests.e2e.client import Account, Outside, expect_json, new_user
from tests.standin.archives import mas_archive, real_mas
from tests.testbed import Host, Testbed

pytestmark = pytest.mark.role("mas")

# So that there is a moment after Synapse was stopped, and before its accounts are read.
SLOWLY = """
mkdir -p /etc/systemd/system/matrix-synapse.service.d
printf '[Service]\\nExecStopPost=/bin/sleep 4\\n' >/etc/systemd/system/matrix-synapse.service.d/slowly.conf
systemctl daemon-reload
"""
# The stand-in needs psql. It is no part of the deployment.
CLIENT = "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends postgresql-client"
COMMAND = ("mas", "migrate", "--yes")


@dataclass(frozen=True)
class Pair:
    """A homeserver with two users, and the machine with its database. The inventory has asked for MAS since."""

    home: Host
    db: Host
    deployment: Deployment
    outside: Outside
    users: tuple[Account, Account]

    def start(self) -> subprocess.Popen[str]:
        """Start the migration; returns when Synapse was stopped."""
        process = subprocess.Popen(
            [sys.executable, str(self.deployment.root / "manage.py"), str(self.deployment.inventory), *COMMAND],
            cwd=self.deployment.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # It is ignored by what is started in the background of a script.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        state = "systemctl show -p SubState --value matrix-synapse"
        while self.home.run(state).stdout.strip() != "stop-post":
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.2)
        return process

    def synapse_works(self) -> None:
        """It does by itself, after a while."""
        health = SYNAPSE.units[0].health
        deadline = time.monotonic() + 60
        while "works" not in self.home.inside(["sh", "-c", f"( {health} ) >/dev/null 2>&1 && echo works || true"]):
            assert time.monotonic() < deadline, "Synapse stays stopped"
            time.sleep(0.5)
        assert (
            self.home.inside(["sh", "-c", "systemctl is-active matrix-metal-migration.scope || true"]).strip()
            == "inactive"
        )

    def continues(self) -> None:
        """Both users are still logged in, and one logs in again."""
        with self.outside.http() as http:
            for each in self.users:
                url = self.outside.url("matrix", "/_matrix/client/v3/account/whoami")
                assert expect_json(http.get(url, headers=each.authorization))["user_id"] == each.user_id
        name = self.users[0].user_id.removeprefix("@").partition(":")[0]
        assert asyncio.run(self.outside.log_in(name, self.users[0].password)).user_id == self.users[0].user_id

    def begun(self) -> bool:
        return self.home.run(f"test -e {MIGRATION}", check=False).returncode == 0

    def databases(self) -> list[str]:
        return self.db.run(
            "cd / && runuser -u postgres -- psql -XAtqc 'SELECT datname FROM pg_database ORDER BY 1'"
        ).stdout.split()


@pytest.fixture(scope="module")
def pair(testbed: Testbed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    db = testbed.up(own("move-db"), release="bookworm", layers=built(testbed, "bookworm"))
    home = testbed.up(own("move"), layers=built(testbed, "trixie"))
    if not real_mas():
        home.run(CLIENT, timeout=300)
    directory = tmp_path_factory.mktemp("move")
    settings = {
        "server_name": home.domain,
        "tls": "internal",
        "admin_email": f"admin@{home.domain}",
        "private_networks": [str(testbed.network.subnet), str(testbed.network.subnet6)],
        "mas_archive": str(real_mas() or mas_archive(directory)),
    }
    roles = {"postgres": [db.name], "synapse": [home.name], "caddy": [home.name]}
    deployment = Deployment(directory, [db, home], settings, roles, user="admin")
    deployment.run("-y")
    outside = Outside(home, directory)
    users = new_user(outside, "alice"), new_user(outside, "bob")
    home.run(SLOWLY)
    deployment.assign({**roles, "mas": [home.name]})
    yield Pair(home, db, deployment, outside, users)
    for host in (db, home):
        host.down()


def test_synapse_goes_on_when_the_administrators_computer_is_gone(pair: Pair) -> None:
    process = pair.start()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    pair.synapse_works()
    pair.continues()
    # The next run names the command.
    assert pair.begun()
    run = pair.deployment.run("-y", check=False)
    assert run.status == 1
    assert "Synapse has 2 accounts, " in run.refusal and "python manage.py trial mas migrate" in run.refusal


def test_synapse_goes_on_when_the_connection_is_cut(pair: Pair) -> None:
    process = pair.start()
    pair.home.cut_off()
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        pair.home.reconnect()
    # It could not, while it did not reach its database either.
    pair.synapse_works()
    last = output.splitlines()[-1]
    assert process.returncode == 1 and last.startswith("manage: "), output
    assert "Synapse goes on with the accounts there; when the machine is back, run: python manage.py " in last, output
    pair.continues()


def test_what_an_interrupted_migration_has_left_is_put_back(pair: Pair) -> None:
    done = pair.deployment.manage("mas", "migrate", "--back")
    assert done.returncode == 0 and "Synapse has the accounts, as before." in done.stdout, done.stdout + done.stderr
    assert not pair.begun() and "mas" not in pair.databases()
    assert pair.home.run("systemctl is-active mas || true").stdout.strip() == "inactive"
    pair.continues()
    done = pair.deployment.manage("mas", "migrate", "--back")
    assert done.returncode == 1 and "nothing to put back" in done.stderr


def test_a_migration_that_is_interrupted_begins_anew(pair: Pair) -> None:
    """After a Ctrl-C it is put back at once; after a loss of power, the next one does all of it."""
    process = pair.start()
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    assert output.splitlines()[-1] == "manage: it was interrupted; Synapse has the accounts, as before", output
    assert not pair.begun() and "mas" not in pair.databases()
    pair.continues()

    process = pair.start()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = pair.deployment.manage(*COMMAND)
    assert "An earlier migration was interrupted: it begins anew." in done.stdout, done.stdout + done.stderr
    # Steps, each in a line, and not what pyinfra prints.
    assert (
        f"  Move Synapse's accounts to the Matrix Authentication Service, on {pair.home.name}"
        in done.stdout.splitlines()
    )
    assert "Starting operation" not in done.stdout + done.stderr
    if real_mas():
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        # It is tried with an account of its own, and only the stand-in refuses that.
        last = done.stderr.splitlines()[-1]
        assert "the log-in was refused: " in last and '"no such account"' in last, done.stderr
        assert last.endswith("; Synapse has the accounts, as before"), done.stderr
    pair.continues()


@pytest.mark.skipif(not real_mas(), reason="the stand-in has no accounts: set MAS_BINARY to an archive of the real MAS")
def test_mas_has_the_accounts(pair: Pair) -> None:
    dumps = pair.db.run("ls /var/backups/matrix-metal").stdout.split()
    assert dumps == ["synapse-before-mas.dump"] and not pair.begun()
    assert pair.deployment.run("-y").changed == []
    status, report = pair.deployment.verify()
    assert status == 0, report
    done = pair.deployment.manage(*COMMAND)
    assert done.returncode == 1 and "MAS has the accounts already" in done.stderr, done.stdout + done.stderr
