"""Upgrade from the last release: it is deployed, two users use it, and this version is deployed over it.

Nothing is lost, only units whose files changed are restarted, and a second run changes nothing.
"""

import asyncio
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest
from cryptography.fernet import Fernet

from tests.built import built
from tests.conftest import own
from tests.deployment import ROOT, Deployment
from tests.e2e.client import Outside, expect_json
from tests.e2e.database import query
from tests.e2e.identity import look_up
from tests.e2e.people import UserData, assert_media_are_kept, continue_as_before, exchange, use_everything
from tests.standin.archives import mas_archive, real_mas
from tests.standin.release_server import ReleaseServer
from tests.testbed import Host, Testbed
from vault import Vault

LAST_RELEASE, COMMIT = "0.1.0", "703070e5dd30e758630dc382a5f616dfcebaba87"
pytestmark = pytest.mark.once("debian13")

# The roles of that release; later ones are unknown to it.
ROLES = ("postgres", "synapse", "sydent", "sliding_sync", "caddy", "coturn")

# Unit -> files that it reads only when it starts, beside its unit files. Caddy reloads its Caddyfile without a restart.
READS = {
    "postgresql@*.service": "/etc/postgresql/*/main",
    "caddy.service": "",
    "coturn.service": "/etc/turnserver.conf /etc/turnserver.nft",
    "matrix-synapse.service": "/etc/matrix-synapse /opt/matrix-synapse/current /etc/ssl/certs/ca-certificates.crt",
    "sydent.service": "/etc/sydent /opt/sydent/current /etc/ssl/certs/ca-certificates.crt",
    "sliding-sync.service": "/etc/sliding-sync /opt/sliding-sync/current",
}
SYNAPSE_OWN, POSTGRES_OWN = "/etc/matrix-synapse/conf.d/mine.yaml", "$(ls -d /etc/postgresql/*/main/conf.d)/mine.conf"
OWN_CONFIGURATION = f"""
echo 'enable_set_displayname: false' >{SYNAPSE_OWN}
echo "log_min_duration_statement = '54321ms'" >{POSTGRES_OWN}
chgrp matrix-synapse {SYNAPSE_OWN}; chmod 640 {SYNAPSE_OWN}; chmod 644 {POSTGRES_OWN}
systemctl restart 'postgresql@*' matrix-synapse
for attempt in $(seq 300); do curl -sf http://127.0.0.1:8008/health && exit; sleep 0.2; done
exit 1
"""
DATABASES = """
SELECT concat_ws(' ', 'role', rolname, rolsuper, rolcanlogin, rolcreatedb, rolcreaterole, rolpassword IS NULL) FROM pg_authid
UNION ALL SELECT concat_ws(' ', 'database', datname, pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datcollate)
FROM pg_database;
"""


@pytest.fixture(scope="session")
def last_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last release's files, from the history of this repository."""
    archive = subprocess.run(["git", "archive", COMMIT], cwd=ROOT, capture_output=True)
    if archive.returncode:
        reason = archive.stderr.decode().strip()
        pytest.fail(
            f"{LAST_RELEASE} ({COMMIT[:7]}) is not in this clone (git fetch --unshallow): {reason}", pytrace=False
        )
    directory = tmp_path_factory.mktemp("last-release")
    # Python 3.11 of Debian 12 has no filters for what it unpacks.
    subprocess.run(["tar", "-x", "-C", directory], input=archive.stdout, check=True)
    return directory


def settings(host: Host, release_page: str) -> dict[str, Any]:
    """The group data."""
    return {
        "server_name": host.domain,
        "tls": "internal",
        "private_networks": [str(host.bed.network.subnet), str(host.bed.network.subnet6)],
        "sliding_sync_releases": f"{release_page}/matrix-org/sliding-sync/releases/download",
    }


@dataclass(frozen=True)
class Machine:
    """The state of a machine that an upgrade must keep.

    started: unit -> invocation ID. files: unit -> the files that it reads, each with its checksum, and the targets of its
    links. own: the administrator's own configuration files, with owner and mode.
    """

    started: dict[str, str]
    files: dict[str, set[str]]
    databases: set[str]
    own: str

    @classmethod
    def of(cls, host: Host) -> Self:
        started, files = {}, {}
        for unit, paths in READS.items():
            started[unit] = host.run(f"systemctl show '{unit}' -p InvocationID --value").stdout
            definition = f"$(systemctl show '{unit}' -p FragmentPath -p DropInPaths --value)"
            found = host.run(
                f"for path in {definition} {paths}; do "
                "if [ -h $path ]; then readlink -f $path; else find $path -type f -exec sha256sum {} +; fi; done"
            )
            files[unit] = set(found.stdout.splitlines())
        own = host.run(f"for file in {SYNAPSE_OWN} {POSTGRES_OWN}; do stat -c '%n %a %U %G' $file; cat $file; done")
        return cls(started, files, set(query(host, DATABASES).splitlines()), own.stdout)


@dataclass(frozen=True)
class Upgraded:
    """A machine on which this version was deployed over the last release. vault: its content before."""

    deployment: Deployment
    outside: Outside
    users: UserData
    before: Machine
    after: Machine
    vault: dict[str, Any] = field(repr=False)


@pytest.fixture(scope="module", params=["trixie", "bookworm"])
def upgraded(
    request: pytest.FixtureRequest,
    testbed: Testbed,
    release_page: ReleaseServer,
    last_release: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Upgraded]:
    directory = tmp_path_factory.mktemp(request.param)
    layers = built(testbed, request.param, "libraries")
    host = testbed.up(own(f"last-{request.param}"), release=request.param, layers=layers)
    deployment = Deployment(
        directory,
        [host],
        settings(host, release_page.url),
        roles={role: [host.name] for role in ROLES},
        root=last_release,
    )
    deployment.environment |= {"SSL_CERT_FILE": str(release_page.ca_file), "XDG_CACHE_HOME": str(directory / "cache")}
    deployment.run("-y")
    assert deployment.run("-y").changed == [], "the last release is not deployed completely"

    host.run(OWN_CONFIGURATION, timeout=120)
    outside = Outside(host, directory)
    users = asyncio.run(use_everything(outside, directory))
    before, vault = Machine.of(host), vault_document(deployment)

    deployment.root = ROOT
    deployment.run("-y")
    yield Upgraded(deployment, outside, users, before, Machine.of(host), vault)
    host.down()


def vault_document(deployment: Deployment) -> dict[str, Any]:
    """The vault as the last release wrote it."""
    key = Fernet(deployment.vault.with_suffix(".key").read_bytes().strip())
    document: dict[str, Any] = json.loads(key.decrypt(deployment.vault.read_bytes().strip()))
    return document


def test_messages_from_before_the_upgrade_are_kept_and_users_continue(upgraded: Upgraded) -> None:
    continue_as_before(upgraded.outside, upgraded.users)


def test_media_passwords_and_bound_addresses_are_kept(upgraded: Upgraded) -> None:
    users, outside = upgraded.users, upgraded.outside
    assert_media_are_kept(outside, users)
    with outside.http() as http:
        assert look_up(outside, http, users.identity[1], users.address) == {users.address: users.alice.user_id}
    name = users.alice.user_id.removeprefix("@").partition(":")[0]
    assert asyncio.run(outside.log_in(name, users.alice.password)).user_id == users.alice.user_id


def test_only_units_whose_files_changed_are_restarted(upgraded: Upgraded) -> None:
    before, after = upgraded.before, upgraded.after
    restarted = {unit for unit in READS if after.started[unit] != before.started[unit]}
    changed = {unit for unit in READS if after.files[unit] != before.files[unit]}
    assert restarted - changed == set(), "units were restarted needlessly"


def test_a_second_run_changes_nothing(upgraded: Upgraded) -> None:
    assert upgraded.deployment.run("-y").changed == []


def test_the_administrators_own_configuration_is_kept_and_used(upgraded: Upgraded) -> None:
    assert upgraded.after.own == upgraded.before.own
    assert query(upgraded.outside.host, "SHOW log_min_duration_statement") == "54321ms"
    with upgraded.outside.http() as http:
        url = upgraded.outside.url("matrix", "/_matrix/client/v3/capabilities")
        capabilities = expect_json(http.get(url, headers=upgraded.users.alice.authorization))["capabilities"]
    assert capabilities["m.set_displayname"] == {"enabled": False}


def test_databases_and_secrets_are_kept(upgraded: Upgraded) -> None:
    assert upgraded.before.databases - upgraded.after.databases == set()
    vault, secrets = Vault.open(upgraded.deployment.vault), upgraded.vault["secrets"]
    assert vault.id == upgraded.vault["id"] and len(secrets) > 4
    # Only names are compared by `assert`, which prints what it compares.
    assert [name for name, value in secrets.items() if not vault.has(name) or vault.get(name).reveal() != value] == []


def test_the_verification_passes(upgraded: Upgraded) -> None:
    status, report = upgraded.deployment.verify()
    assert status == 0, report


# The accounts move to the Matrix Authentication Service. This comes last, because nobody can move them back.

WITH_MAS = (*ROLES, "mas")


def continues(upgraded: Upgraded, text: str) -> None:
    """The two users exchange a message in each room, with the sessions and keys that they had before, and log in."""
    users, outside = upgraded.users, upgraded.outside
    exchange(outside, users, text)
    name = users.alice.user_id.removeprefix("@").partition(":")[0]
    assert asyncio.run(outside.log_in(name, users.alice.password)).user_id == users.alice.user_id


@pytest.fixture
def wants_mas(upgraded: Upgraded, release_page: ReleaseServer, tmp_path: Path) -> Upgraded:
    """The inventory and the group data ask for MAS; nothing was deployed since."""
    deployment = upgraded.deployment
    chosen = settings(upgraded.outside.host, release_page.url)
    deployment.choose(**chosen, mas_archive=str(real_mas() or mas_archive(tmp_path)))
    deployment.assign({role: [deployment.hosts[0].name] for role in WITH_MAS})
    return upgraded


@pytest.mark.role("mas")
def test_accounts_are_not_given_to_mas_by_accident(wants_mas: Upgraded) -> None:
    before = Machine.of(wants_mas.outside.host)
    run = wants_mas.deployment.run("-y", check=False)
    assert run.status == 1
    assert re.search(r"Synapse has \d+ accounts?, .*: python manage.py trial mas migrate$", run.refusal, re.MULTILINE)
    assert Machine.of(wants_mas.outside.host) == before


@pytest.mark.role("mas")
@pytest.mark.skipif(bool(real_mas()), reason="the real program does not fail")
def test_a_failed_migration_puts_everything_back(wants_mas: Upgraded) -> None:
    """The stand-in finds nothing wrong, and takes no account."""
    host, deployment = wants_mas.outside.host, wants_mas.deployment
    before = Machine.of(host)
    done = deployment.manage("mas", "migrate", "--yes")
    assert done.returncode == 1
    assert "Synapse has the accounts, as before" in done.stderr.splitlines()[-1], done.stdout + done.stderr
    after = Machine.of(host)
    assert after.databases == before.databases and after.own == before.own
    assert after.files["matrix-synapse.service"] == before.files["matrix-synapse.service"]
    assert host.run("systemctl is-active mas || true").stdout.strip() == "inactive"
    assert query(host, "SELECT 1 FROM pg_auth_members WHERE member::regrole::text = 'mas';") == ""
    continues(wants_mas, "Nothing happened.")
    deployment.assign({role: [host.name] for role in ROLES})
    assert deployment.run("-y").changed == []


REAL = pytest.mark.skipif(
    not real_mas(), reason="the stand-in has no accounts: set MAS_BINARY to an archive of the real MAS"
)


@pytest.mark.role("mas")
@REAL
def test_a_migration_after_which_nobody_could_log_in_is_put_back(wants_mas: Upgraded) -> None:
    """Everything has moved then; settings of the administrator's have MAS show Synapse another secret."""
    host, own = wants_mas.outside.host, "/etc/mas/local.yaml"
    before = Machine.of(host)
    host.run(f"mkdir -p /etc/mas; echo 'matrix: {{secret_file: /etc/hostname}}' >{own}; chmod 644 {own}")
    done = wants_mas.deployment.manage("mas", "migrate", "--yes")
    host.run(f"rm {own}")
    assert done.returncode == 1
    assert re.search("MAS refuses: .*; Synapse has the accounts, as before$", done.stderr.splitlines()[-1]), done.stderr
    after = Machine.of(host)
    assert after.databases == before.databases
    assert after.files["matrix-synapse.service"] == before.files["matrix-synapse.service"]
    continues(wants_mas, "We are still here.")


@pytest.mark.role("mas")
@REAL
def test_accounts_sessions_and_encrypted_messages_move_to_mas(wants_mas: Upgraded) -> None:
    host, deployment = wants_mas.outside.host, wants_mas.deployment
    done = deployment.manage("mas", "migrate", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    continues(wants_mas, "We have moved.")
    # With which the migration, and the commands before it, have logged in.
    accounts = json.loads(deployment.manage("accounts", "list", "--deactivated", "--json").stdout)
    assert {each["user_id"] for each in accounts} == {wants_mas.users.alice.user_id, wants_mas.users.bob.user_id}
    assert query(host, "SELECT 1 FROM pg_auth_members WHERE member::regrole::text = 'mas';") == "", "MAS keeps rights"
    assert host.run("ls /var/backups/matrix-metal").stdout.split() == ["synapse-before-mas.dump"]
    assert deployment.run("-y").changed == []
    status, report = deployment.verify()
    assert status == 0, report
    done = deployment.manage("mas", "migrate", "--yes")
    assert done.returncode == 1 and "MAS has the accounts already" in done.stderr, done.stdout + done.stderr
    deployment.assign({role: [host.name] for role in ROLES})
    run = deployment.run("-y", check=False)
    assert run.status == 1 and "which Synapse cannot take back: give the role mas to" in run.refusal
