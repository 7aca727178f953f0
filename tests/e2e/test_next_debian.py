"""A machine goes from Debian 12 to 13 as the README says, with people's data: Python, and then PostgreSQL, are newer."""

import asyncio
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.built import built
from tests.conftest import complete, own
from tests.deployment import EVERYTHING, ROOT, Deployment
from tests.e2e.client import Outside
from tests.e2e.database import query
from tests.e2e.people import UserData, assert_media_are_kept, continue_as_before, use_everything
from tests.standin.release_server import ReleaseServer
from tests.testbed import Testbed

pytestmark = pytest.mark.role("postgres")
OLD, NEW = "15", "17"
TARGET = "/mnt/backup"
SECTION = "## From Debian 12 to 13"
FEWER = [role for role in EVERYTHING if role not in ("admin", "element", "monitoring")]
# A script that pg_upgradecluster runs with the new cluster: as an extension that has no new version would, it fails.
HOOK = "/etc/postgresql-common/pg_upgradecluster.d/refuse"
TABLES = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"


@dataclass(frozen=True)
class Renewed:
    """A machine after the upgrade of its Debian, on which nothing was deployed since."""

    deployment: Deployment
    outside: Outside
    users: UserData

    def query(self, statement: str, database: str = "synapse") -> str:
        return query(self.outside.host, statement, database)

    def upgrade(self) -> tuple[int, str]:
        done = self.deployment.manage("postgres", "upgrade", "--yes")
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def renewed(
    request: pytest.FixtureRequest,
    testbed: Testbed,
    release_page: ReleaseServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Renewed]:
    directory = tmp_path_factory.mktemp("renewed")
    host = testbed.up(own("older"), release="bookworm", layers=built(testbed, "bookworm"))
    deployment = complete(testbed, host, directory, release_page)
    host.run(f"mkdir {TARGET}")
    with (directory / "group_data" / f"{deployment.name}.py").open("a") as group_data:
        group_data.write(f"backup_target = {TARGET!r}\n")
    # All of them only before a release of ours: the upgrade of what they need takes minutes.
    roles = EVERYTHING if request.config.getoption("--both") else FEWER
    deployment.assign({role: [host.name] for role in (*roles, "backup")})
    deployment.run("-y")
    outside = Outside(host, directory)
    users = asyncio.run(use_everything(outside, directory))
    for command in upgrade_of_debian():
        host.run(f"export DEBIAN_FRONTEND=noninteractive\n{command}", timeout=900)
    host.reboot(timeout=120)
    yield Renewed(deployment, outside, users)
    host.down()


def upgrade_of_debian() -> list[str]:
    """What the README has an administrator type on the machine, before `reboot`."""
    section = (ROOT / "README.md").read_text().partition(f"\n{SECTION}\n")[2].partition("\n## ")[0]
    block = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[0]
    commands = [line for line in str(block).splitlines() if line]
    assert commands.pop() == "reboot"
    return commands


def test_a_deploy_after_the_upgrade_of_debian_heals_and_names_the_old_postgresql(renewed: Renewed) -> None:
    run = renewed.deployment.run("-y")
    assert f"has the data in PostgreSQL {OLD}, for which Debian 13 has no updates: " in run.output
    assert renewed.deployment.run("-y").changed == []
    status, report = renewed.deployment.verify()
    assert status == 0, report


def test_an_upgrade_that_fails_is_put_back(renewed: Renewed) -> None:
    host = renewed.outside.host
    tables = renewed.query(TABLES)
    host.run(f"install -m 755 /dev/stdin {HOOK}", stdin="#!/bin/sh\necho this is in the way >&2\nexit 1\n")
    status, shown = renewed.upgrade()
    host.run(f"rm {HOOK}")
    assert status == 1 and "this is in the way" in shown, shown
    assert re.search(rf"^manage: .*pg_upgradecluster.*PostgreSQL {OLD} goes on, with all data$", shown, re.MULTILINE), (
        shown
    )
    assert renewed.query("SHOW server_version_num")[:2] == OLD and renewed.query(TABLES) == tables
    assert host.run(f"ls /etc/postgresql /etc/matrix-metal | grep -xE '{NEW}|postgresql-upgrade' || true").stdout == ""
    # The deploy has nothing to mend.
    host.run("until systemctl is-active matrix-synapse; do sleep 0.5; done", timeout=120)
    assert renewed.deployment.run("-y").changed == []


def test_an_interrupted_upgrade_goes_on_when_it_is_run_again(renewed: Renewed) -> None:
    host = renewed.outside.host
    # As a power failure in the middle: nothing is put back.
    host.run(f"install -m 755 /dev/stdin {HOOK}", stdin="#!/bin/sh\ntouch /var/lib/postgresql/reached\nsleep 30\n")
    with ThreadPoolExecutor() as pool:
        upgrade = pool.submit(renewed.upgrade)
        host.run("until [ -e /var/lib/postgresql/reached ]; do sleep 0.1; done", timeout=120)
        host.run(f"rm {HOOK} /var/lib/postgresql/reached; systemctl kill -s KILL matrix-metal-postgresql-upgrade")
        status, shown = upgrade.result()
    assert status == 1 and "interrupted" in shown, shown
    run = renewed.deployment.run("-y", check=False)
    assert run.status == 1, run.output
    assert re.search(
        rf": the upgrade from PostgreSQL {OLD} to {NEW} has begun and is not complete: python manage.py \S+ postgres upgrade$",
        run.refusal,
        re.MULTILINE,
    ), run.output
    begin = time.monotonic()
    status, shown = renewed.upgrade()
    print(f"{time.monotonic() - begin:.1f} s\n{shown}")
    assert status == 0, shown
    assert renewed.query("SHOW server_version_num")[:2] == NEW
    # The machine is a container, where a file and its directory may be on different file systems.
    sizes = renewed.query("SELECT sum(pg_database_size(oid)) FROM pg_database")
    assert (freed := re.search(r" postgres drop-old frees (\d+) MiB\.$", shown, re.MULTILINE)), shown
    assert int(freed[1]) > int(sizes) / 2**20 / 2, (freed[0], sizes)


def test_the_new_postgresql_has_everything(renewed: Renewed) -> None:
    assert renewed.query("SHOW data_checksums") == "on"
    done = renewed.deployment.manage("backup", "now")
    assert done.returncode == 0, done.stdout + done.stderr
    assert renewed.query("SELECT datcollate, datctype FROM pg_database WHERE datname = 'synapse'") == "C|C"
    assert int(renewed.query("SELECT count(*) FROM pg_stats WHERE schemaname = 'public'")) > 100, (
        "there are no statistics"
    )
    continue_as_before(renewed.outside, renewed.users)
    assert_media_are_kept(renewed.outside, renewed.users)


def test_the_old_postgresql_is_kept_until_it_is_dropped(renewed: Renewed) -> None:
    host = renewed.outside.host
    assert renewed.deployment.run("-y").changed == []
    status, report = renewed.deployment.verify()
    assert status == 0, report
    assert host.run(f"pg_lsclusters -h | awk '$1 == {OLD} {{ print $4 }}'").stdout.strip() == "down"
    done = renewed.deployment.manage("postgres", "upgrade", "--yes")
    assert done.returncode == 0 and "nothing to do" in done.stdout, done
    done = renewed.deployment.manage("postgres", "drop-old", "--yes")
    assert done.returncode == 0, done
    places = f"/etc/postgresql/{OLD}* /var/lib/postgresql/{OLD}/main /etc/systemd/system/postgresql@{OLD}*"
    assert host.run(f"ls -d {places} 2>/dev/null || true").stdout == ""
    assert host.run(f"dpkg-query --show postgresql-{OLD} 2>&1 || true").stdout.startswith(
        "dpkg-query: no packages found"
    )
    assert renewed.deployment.run("-y").changed == []
    status, report = renewed.deployment.verify()
    assert status == 0, report
