"""An existing homeserver is taken over as the README says: a Synapse of years ago, with people, an encrypted room and media.

On Debian 12 it was a container with SQLite, on Debian 13 a package with a PostgreSQL of another locale, and then, with the same
data, a container beside one with PostgreSQL.
"""

import asyncio
import io
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import nio
import pytest
from nio.store import SqliteStore

from manage.takeover import BEGUN, SECRETS
from operations.machine import KEY_NOTE
from roles import HOUSEKEEPING_REPORT, SYNAPSE
from tests.built import built
from tests.conftest import own
from tests.deployment import ROOT, Deployment
from tests.e2e.client import Account, Outside, expect, expect_json, receive_message, send_message
from tests.e2e.people import bodies, create_shared_room
from tests.testbed import Host, Testbed
from vault import Vault

pytestmark = pytest.mark.role("synapse")

PROGRAMS, PORT = "/srv/old", 18008
COPY, DUMP = "/root/old", "/root/synapse.dump"
# As the README has it copied, to another directory, with a dump that was made in the database's container.
COPY_OF_CONTAINER = "/root/container"
OLD_KEY = "ed25519:a_before"
WRITTEN = ["The seeds are in the shed.", "Which shelf?", "The upper one."]


@dataclass(frozen=True)
class Old:
    """An old homeserver. newest: when its version was new. home, data: its directories; key: its signing key.

    prepare: a shell program that makes what it needs besides. database: that part of its configuration. more: other parts.
    """

    version: str
    newest: str
    home: str
    data: str
    key: str
    media: str
    prepare: str
    database: str
    more: str = ""

    @property
    def configuration(self) -> str:
        return f"""
pid_file: {self.data}/homeserver.pid
listeners:
  - {{port: {PORT}, tls: false, type: http, resources: [{{names: [client, federation], compress: false}}]}}
{self.database}
{self.more}
log_config: {self.home}/log.yaml
media_store_path: {self.data}/{self.media}
registration_shared_secret: not taken
macaroon_secret_key: of the old macaroons
form_secret: of the old forms
password_config: {{pepper: "of the old: passwords"}}
retention: {{enabled: true}}
report_stats: false
signing_key_path: {self.home}/{self.key}
trusted_key_servers: [{{server_name: matrix.org}}]
suppress_key_server_warning: true
old_signing_keys: {{"{OLD_KEY}": {{key: "k8G3mYxuUn6hCkGkzBHB2f2Tdf2XJGMLD6+BZ1CLh2w", expired_ts: 1700000000000}}}}
"""


CONTAINER = Old(
    version="1.98.0",
    newest="2024-01-05",
    home="/data",
    data="/data",
    key="homeserver.test.signing.key",
    media="media_store",
    prepare="",
    database="database: {name: sqlite3, args: {database: /data/homeserver.db}}",
)
PACKAGE = Old(
    version="1.120.2",
    newest="2025-06-15",
    home="/etc/matrix-synapse",
    data="/var/lib/matrix-synapse",
    key="homeserver.signing.key",
    media="media",
    # The user and its log stay when Debian's package is purged; the user has no group of its own.
    prepare="""
useradd --system --gid nogroup --home-dir /var/lib/matrix-synapse --shell /usr/sbin/nologin matrix-synapse
install -d -o matrix-synapse -g nogroup -m 755 /var/log/matrix-synapse
install -d /etc/postgresql-common/createcluster.d
echo "initdb_options = '--data-checksums'" >/etc/postgresql-common/createcluster.d/checksums.conf
apt-get install -qq -y locales >&2
localedef -i en_US -f UTF-8 en_US.UTF-8
apt-get install -qq -y postgresql >&2
cd / && runuser -u postgres -- createuser synapse_user
runuser -u postgres -- createdb --owner synapse_user --locale en_US.UTF-8 --template template0 messages
""",
    database="""database:
  name: psycopg2
  allow_unsafe_locale: true
  args: {user: synapse_user, database: messages, host: /var/run/postgresql, cp_min: 1, cp_max: 5}""",
    # As Debian's package has them.
    more="""
uploads_path: /var/lib/matrix-synapse/uploads
tls_certificate_path: /etc/matrix-synapse/homeserver.tls.crt
tls_private_key_path: /etc/matrix-synapse/homeserver.tls.key
tls_dh_params_path: /etc/matrix-synapse/homeserver.tls.dh
no_tls: false""",
)
# As a container has it whose neighbour `db` is an image of PostgreSQL's: there is another user, and another database.
BESIDE = Old(
    version=PACKAGE.version,
    newest=PACKAGE.newest,
    home="/data",
    data="/data",
    key="homeserver.test.signing.key",
    media="media_store",
    prepare="",
    database="""database:
  name: psycopg2
  txn_limit: 10000
  allow_unsafe_locale: true
  args: {user: synapse, password: of the database, database: synapse, host: db, port: 5432, cp_min: 5, cp_max: 10}""",
)
INSTALL = """
set -eu
useradd --system synapse_user
mkdir -p {data}
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq && apt-get install -qq -y --no-install-recommends python3 curl ca-certificates >&2
{prepare}
cd {programs}
export UV_PYTHON_DOWNLOADS=never SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
./uv venv -q --no-cache --python /usr/bin/python3 v
./uv pip install -q --no-cache --only-binary :all: --python v --exclude-newer {newest} \\
  matrix-synapse=={version} psycopg2-binary
chown -R synapse_user {home} {data}
cd {data}
start="{programs}/v/bin/python -m synapse.app.homeserver -c {home}/homeserver.yaml -c {home}/conf.d"
runuser -u synapse_user -- $start --generate-keys >&2
systemd-run -q --unit old-synapse --uid synapse_user -p WorkingDirectory={data} $start
for attempt in $(seq 150); do curl -sf http://127.0.0.1:{port}/health >/dev/null && break; sleep 0.2; done
for user in alice bob; do
  {programs}/v/bin/register_new_matrix_user -u $user -p "of $user" --no-admin -c {home}/homeserver.yaml \\
    http://127.0.0.1:{port} >&2
done
"""
# The same homeserver moves into a container, and runs there. With its database, it needs that name and a password.
INTO_CONTAINER = """
set -eu
mkdir /data
mv /root/homeserver.yaml /data
cp {home}/log.yaml /data
cp {home}/{key} /data/{other.key}
cp -a {data}/{media} /data/{other.media}
chown -R synapse_user /data
echo "127.0.0.1 db" >>/etc/hosts
cd / && runuser -u postgres -- psql -q -c "CREATE ROLE synapse LOGIN SUPERUSER PASSWORD 'of the database'" \\
  -c "CREATE DATABASE synapse TEMPLATE messages OWNER synapse"
runuser -u postgres -- psql -q -d synapse -c "REASSIGN OWNED BY synapse_user TO synapse"
systemd-run -q --unit old-synapse --uid synapse_user -p WorkingDirectory=/data \\
  {programs}/v/bin/python -m synapse.app.homeserver -c /data/homeserver.yaml
for attempt in $(seq 150); do curl -sf http://127.0.0.1:{port}/health >/dev/null && break; sleep 0.2; done
curl -sSf http://127.0.0.1:{port}/_matrix/client/versions >/dev/null
systemctl stop old-synapse
PGPASSWORD="of the database" pg_dump -Fc -h db -U synapse synapse >/data/synapse.dump
mkdir {to}
cp -a /data/. {to}
rm -r /data
runuser -u postgres -- psql -q -c "DROP DATABASE synapse" -c "REASSIGN OWNED BY synapse TO synapse_user" -c "DROP ROLE synapse"
"""
# Copied by the README's own command, which gets only what a new machine has, and nothing of it is left at its place.
MOVE = """
set -eu
ssh() {{ [ "$1" = root@matrix.example.org ] && sh -c "$2"; }}
cd /
{copying}
if [ -d /etc/postgresql ]; then
  cd / && runuser -u synapse_user -- pg_dump -Fc messages >{dump}
  runuser -u synapse_user -- pg_dump messages >{dump}.sql
  gzip -k {dump}.sql
  runuser -u postgres -- dropdb messages
  runuser -u postgres -- dropuser synapse_user
fi
rm -rf {home} {data} {programs}
userdel synapse_user
"""

# What a takeover has copied goes again, and the next deploy makes an empty homeserver.
EMPTY = f"""
systemctl stop matrix-synapse
cd / && runuser -u postgres -- dropdb --force synapse
rm -rf /var/lib/matrix-synapse {KEY_NOTE} {HOUSEKEEPING_REPORT} /etc/matrix-synapse/conf.d/takeover.yaml
"""


@dataclass(frozen=True)
class Home:
    """A machine with an empty homeserver, and the copy of the old one, whose people these are."""

    old: Old
    deployment: Deployment
    outside: Outside
    alice: Account
    bob: Account
    keys: Path
    room: str
    since: str
    media: str
    picture: bytes = field(repr=False)

    @property
    def host(self) -> Host:
        return self.outside.host

    @property
    def paths(self) -> list[str]:
        if self.old is BESIDE:
            return [COPY_OF_CONTAINER]
        return [COPY] if self.old is CONTAINER else [COPY, f"{DUMP}.sql.gz"]

    @property
    def key(self) -> str:
        """The signing key, of what was copied."""
        place = {BESIDE: COPY_OF_CONTAINER, CONTAINER: COPY, PACKAGE: f"{COPY}{PACKAGE.home}"}[self.old]
        return self.host.run(f"cat {place}/{self.old.key}").stdout

    def take(self, *arguments: str) -> tuple[int, str]:
        done = self.deployment.manage("takeover", *arguments)
        return done.returncode, done.stdout + done.stderr


@asynccontextmanager
async def client_of(host: Host, user: str, keys: Path) -> AsyncIterator[nio.AsyncClient]:
    """A client of the old homeserver, logged in."""
    config = nio.AsyncClientConfig(store=SqliteStore)
    client = nio.AsyncClient(
        f"http://{host.address}:{PORT}", f"@{user}:{host.domain}", config=config, store_path=str(keys)
    )
    try:
        expect(await client.login(f"of {user}", device_name="an old one"), nio.LoginResponse)
        expect(await client.sync(), nio.SyncResponse)
        expect(await client.keys_upload(), nio.KeysUploadResponse)
        yield client
    finally:
        await client.close()


async def live(host: Host, keys: Path, picture: bytes) -> dict[str, str | Account]:
    """Two people write to each other, encrypted; Bob has not received the last message. Alice uploads a picture."""
    async with client_of(host, "alice", keys) as hers, client_of(host, "bob", keys) as his:
        room = await create_shared_room(hers, his, nio.EnableEncryptionBuilder().as_dict())
        await send_message(hers, room, WRITTEN[0])
        await receive_message(his, room, hers.user_id, WRITTEN[0])
        await send_message(his, room, WRITTEN[1])
        await receive_message(hers, room, his.user_id, WRITTEN[1])
        since = expect(await his.sync(), nio.SyncResponse).next_batch
        await send_message(hers, room, WRITTEN[2])
        answer, _ = await hers.upload(io.BytesIO(picture), content_type="image/png", filesize=len(picture))
        media = expect(answer, nio.UploadResponse).content_uri.removeprefix("mxc://")
        alice, bob = (
            Account(each.user_id, f"of {name}", str(each.device_id), each.access_token)
            for name, each in (("alice", hers), ("bob", his))
        )
    return {"room": room, "since": since, "media": media, "alice": alice, "bob": bob}


@pytest.fixture(scope="module")
def homes() -> Iterator[dict[str, Home]]:
    """The machines, by their release."""
    found: dict[str, Home] = {}
    yield found
    for home in found.values():
        home.host.down()


@pytest.fixture(scope="module", params=["bookworm", "trixie", "trixie, a container"])
def home(
    request: pytest.FixtureRequest, testbed: Testbed, tmp_path_factory: pytest.TempPathFactory, homes: dict[str, Home]
) -> Home:
    release, _, again = request.param.partition(", ")
    if release not in homes:
        homes[release] = made(testbed, release, tmp_path_factory.mktemp(release))
    home = homes[release]
    return emptied(home, tmp_path_factory.mktemp("again")) if again else home


def copying() -> list[str]:
    """The commands of the README that copy the data of a container, and of a package."""
    section = (ROOT / "README.md").read_text().partition("**2. Stop the old homeserver")[2].partition("**3. ")[0]
    return re.findall(r"^    ((?:[^\n|]+\|\n? *)?[^\n|]* root@matrix\.example\.org\b.*)$", section, re.M)


def made(testbed: Testbed, release: str, directory: Path) -> Home:
    old = CONTAINER if release == "bookworm" else PACKAGE
    layers = built(testbed, release, "libraries", "programs")
    host = testbed.up(own(f"take-{release}"), release=release, layers=layers)
    host.run(f"mkdir -p {PROGRAMS} {old.home}/conf.d")
    host.put(Path(sys.executable).parent / "uv", f"{PROGRAMS}/uv", mode="755")
    name = f"server_name: {host.domain}\n"
    if old is PACKAGE:
        host.run(f"cat >{old.home}/conf.d/server_name.yaml", stdin=name)
    host.run(f"cat >{old.home}/homeserver.yaml", stdin=old.configuration + (name if old is CONTAINER else ""))
    host.run(f"cat >{old.home}/log.yaml", stdin="version: 1\nroot: {level: WARNING}\n")
    [of_container, of_package] = copying()
    places = {
        "copying": of_container if old is CONTAINER else of_package,
        "programs": PROGRAMS,
        "port": PORT,
        "copy": COPY,
        "dump": DUMP,
        **vars(old),
    }
    host.run(INSTALL.format(**places), timeout=300)
    (keys := directory / "keys").mkdir()
    picture = os.urandom(200_000)
    people = asyncio.run(live(host, keys, picture))
    host.run("systemctl stop old-synapse")
    if old is PACKAGE:
        host.run("cat >/root/homeserver.yaml", stdin=BESIDE.configuration + name)
        host.run(INTO_CONTAINER.format(other=BESIDE, to=COPY_OF_CONTAINER, **places), timeout=120)
    host.run(MOVE.format(**places))
    # As they are now, for those who meet the same homeserver again.
    shutil.copytree(keys, directory / "kept")

    settings = {
        "server_name": host.domain,
        "tls": "internal",
        "admin_email": f"admin@{host.domain}",
        "private_networks": [str(testbed.network.subnet), str(testbed.network.subnet6)],
    }
    roles = {role: [host.name] for role in ("postgres", "synapse", "caddy")}
    deployment = Deployment(directory, [host], settings, roles)
    deployment.run("-y")
    return Home(old, deployment, Outside(host, directory), keys=keys, picture=picture, **people)  # type: ignore[arg-type]


def emptied(home: Home, directory: Path) -> Home:
    """The same machine without what it has taken over. Its people have the keys that they had then."""
    home.host.run(EMPTY, timeout=60)
    vault = Vault.open(home.deployment.vault)
    for name in SECRETS:
        vault._values.pop(name, None)
    vault.save()
    home.deployment.run("-y")
    shutil.copytree(home.keys.parent / "kept", directory / "keys")
    return replace(home, old=BESIDE, keys=directory / "keys")


def test_what_cannot_be_taken_over_is_refused(home: Home) -> None:
    status, shown = home.take("/nowhere")
    assert status == 1 and shown.splitlines()[-1].endswith("there is no /nowhere"), shown
    broken = "/root/broken"
    if home.old is CONTAINER:
        home.host.run(f"cp -a {COPY} {broken} && rm {broken}/*.signing.key")
        wrong, paths = f"there is no signing key {home.old.key} in what was given", [broken]
    elif home.old is BESIDE:
        # As `docker exec -t` writes it.
        home.host.run(f"sed 's/$/\\r/' {DUMP}.sql >{broken}")
        wrong, paths = f"{broken} was written through a terminal", [COPY, broken]
    else:
        # Newer versions of pg_dump repeat the list of contents at the end, which may be missing.
        home.host.run(f"head -c $(($(stat -c %s {DUMP}) / 2)) {DUMP} >{broken}")
        wrong, paths = f"pg_restore cannot read {broken}: ", [COPY, broken]
    status, shown = home.take(*paths, "--yes")
    home.host.run(f"rm -r {broken}")
    assert status == 1 and wrong in shown.splitlines()[-1], shown


def test_it_says_what_it_takes_and_what_not(home: Home) -> None:
    # In each format that pg_dump writes for one file: the container's is another.
    ways = [home.paths, [COPY, f"{DUMP}.sql"]] if home.old is PACKAGE else [home.paths]
    for paths in ways:
        status, shown = home.take(*paths, "--dry")
        assert status == 0, shown
        assert re.search(
            r"^ +2 users, 4 access tokens, 1 room, \d+ events, \d+ room memberships, 1 local media file$", shown, re.M
        ), shown
    assert f"server name    {home.host.domain}" in shown and "media: 1 file," in shown.replace("_store", "")
    assert "into the vault macaroon_secret_key, form_secret, password_config.pepper" in shown
    assert re.search(r"^  ignored        retention$", shown, re.M), shown
    assert not Vault.open(home.deployment.vault).has("synapse_password_pepper")
    if home.old is BESIDE:
        # A volume of their own is an empty directory in what is copied.
        home.host.run(f"mv {COPY_OF_CONTAINER}/media_store /root/volume && mkdir {COPY_OF_CONTAINER}/media_store")
        status, shown = home.take(*home.paths, "--dry")
        home.host.run(f"rmdir {COPY_OF_CONTAINER}/media_store && mv /root/volume {COPY_OF_CONTAINER}/media_store")
        assert status == 0 and "the database knows 1 file of people, and none is there" in shown, shown


def test_a_takeover_that_was_killed_leaves_the_empty_homeserver(home: Home) -> None:
    if home.old is not CONTAINER:
        pytest.skip("it is the same with a dump, and takes half a minute")
    with ThreadPoolExecutor() as pool:
        running = pool.submit(home.take, *home.paths, "--yes")
        home.host.run(
            "until systemctl is-active -q matrix-metal-takeover; do sleep 0.1; done; sleep 0.5\n"
            "systemctl kill -s KILL matrix-metal-takeover",
            timeout=120,
        )
        status, shown = running.result()
    assert status == 1 and "it has ended before it was done" in shown.splitlines()[-1], shown
    home.host.run(SYNAPSE.units[0].health)


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ("--unit=deploying flock /run/matrix-metal/run sleep infinity", "another run is at work: "),
        (
            "--unit=matrix-metal-updates --no-block -p Type=oneshot sleep infinity",
            "security updates are being installed",
        ),
    ],
    ids=["deploy", "updates"],
)
def test_it_is_not_taken_over_beside_others(home: Home, beside: str, said: str) -> None:
    if home.old is not CONTAINER:
        pytest.skip("it is the same with a dump")
    home.host.run(f"systemd-run --quiet {beside}")
    status, shown = home.take(*home.paths, "--yes")
    home.host.run("systemctl stop deploying matrix-metal-updates", check=False)
    assert status == 1 and said in shown.splitlines()[-1], shown
    home.host.run(SYNAPSE.units[0].health)


def test_it_is_taken_over(home: Home) -> None:
    status, shown = home.take(*home.paths, "--yes")
    print(shown)
    assert status == 0, shown
    assert "Copied and compared: 2 users, 4 access tokens, 1 room," in shown
    assert "Verified: @" in shown and "is still logged in." in shown


def test_a_takeover_that_a_restart_of_the_machine_has_interrupted_goes_on(home: Home) -> None:
    """Its data is in its place, and nothing of it is left in /run."""
    if home.old is BESIDE:
        pytest.skip("it is the same with the other dump")
    sql = f"COMMENT ON DATABASE synapse IS '{BEGUN}'"
    home.host.run("rm -r /run/matrix-metal/takeover*; cd / && runuser -u postgres -- psql -XAtq", stdin=sql)
    status, shown = home.take(*home.paths, "--yes")
    assert status == 0 and "is still logged in." in shown and " is taken over." in shown, shown


def test_people_go_on(home: Home) -> None:
    alice, bob, outside = home.alice, home.bob, home.outside

    async def conversation() -> None:
        async with outside.matrix(alice, keys=home.keys) as hers, outside.matrix(bob, keys=home.keys) as his:
            unread = expect(await his.sync(since=home.since), nio.SyncResponse)
            assert bodies(unread, home.room) == WRITTEN[2:]
            expect(await hers.sync(full_state=True), nio.SyncResponse)
            await send_message(hers, home.room, "They grow.")
            assert (await receive_message(his, home.room, alice.user_id, "They grow.")).decrypted
        # The password has the pepper of the old homeserver. A new device encrypts with keys that the old one uploads now.
        again = await outside.log_in("bob", bob.password)
        assert again.user_id == bob.user_id

    asyncio.run(conversation())
    with outside.http() as http:
        url = outside.url("matrix", f"/_matrix/client/v1/media/download/{home.media}")
        assert http.get(url, headers=bob.authorization).content == home.picture


def test_other_homeservers_see_the_same_one(home: Home) -> None:
    key = home.key
    assert home.host.run("cat /var/lib/matrix-synapse/signing.key").stdout == key
    with home.outside.http() as http:
        keys = expect_json(http.get(home.outside.url("matrix", "/_matrix/key/v2/server")))
    assert list(keys["verify_keys"]) == [f"ed25519:{key.split()[1]}"] and list(keys["old_verify_keys"]) == [OLD_KEY]


def test_it_is_a_deployment_like_any_other(home: Home) -> None:
    assert home.deployment.run("-y").changed == []
    if home.old is PACKAGE:
        status, report = home.deployment.verify()
        assert status == 0, report
    status, shown = home.take(*home.paths)
    assert status == 0 and re.search(r" was taken over on \d{4}-\d\d-\d\d: nothing to do\.$", shown.strip()), shown
    left = home.host.run(
        "ls -d /var/lib/matrix-synapse/takeover 2>/dev/null; cd / && runuser -u postgres -- psql -XAtqc "
        "\"SELECT datname, datcollate FROM pg_database WHERE datname LIKE 'synapse%'\""
    ).stdout
    assert left.split() == ["synapse|C"]
