"""PostgreSQL, the homeserver and the relay each on a machine of its own; the database accepts only the homeserver.

The machines are those of inventories/split.py. Tests that change something restore it by a deploy.
"""

import os
import re
import secrets
import shlex
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from roles import CADDY, COTURN, MAS, POSTGRES, POSTGRES_PORT, RELAYED, SLIDING_SYNC, SYNAPSE, Port, Role
from settings.postgres import DATABASE_AUTHORITY
from tests.built import built
from tests.conftest import RELEASE, STAND_IN, real_proxy
from tests.deployment import PYINFRA, ROOT, Deployment, Run
from tests.e2e.client import TIMEOUT, Account, Outside, expect_json, new_user
from tests.e2e.database import query

# The same tests as for a deployment on one machine, with the fixtures below.
from tests.e2e.test_messages import (  # noqa: F401
    test_clients_find_everything_from_the_server_name,
    test_homeservers_find_it_from_the_server_name,
    test_media_is_downloaded_unchanged_and_only_by_users,
    test_native_sliding_sync_lists_rooms,
    test_two_users_exchange_messages,
)
from tests.e2e.test_runs import assert_nothing_to_do, invocations, restarted
from tests.e2e.test_secrets import SPECIAL, VERBOSE, assert_none_in, shown, traces
from tests.e2e.watching import HIDDEN, command_lines
from tests.protocols.turn import Credentials, relay
from tests.standin.archives import mas_archive, real_mas
from tests.standin.release_server import ReleaseServer
from tests.testbed import Host, Testbed
from vault import Vault

pytestmark = pytest.mark.role("postgres")

ROLES = {
    "postgres": ["split-db"],
    "synapse": ["split"],
    "sydent": ["split"],
    "sliding_sync": ["split"],
    "caddy": ["split", "split-relay"],
    "coturn": ["split-relay"],
}
# From the middle on, as in inventories/split.py.
WITH_FIREWALL = {**ROLES, "firewall": ["split-db", "split", "split-relay"]}
PASSWORDS = (SYNAPSE.password, SLIDING_SYNC.password)
# User -> database of the two clients on the homeserver's machine.
CLIENTS = {role.database.owner: role.database.name for role in (SYNAPSE, SLIDING_SYNC) if role.database}


def open_ports(role: Role) -> list[Port]:
    """Those on which it listens to other machines, without those of calls."""
    return [port for port in role.listens if port.reach != "machine" and port != RELAYED]


# The ports on which each machine listens to other machines.
OPEN_PORTS = {
    name: {"tcp 22", *(f"{port.protocol} {port.number}" for role in played for port in open_ports(role))}
    for name, played in {"split-db": [POSTGRES], "split": [CADDY], "split-relay": [CADDY, COTURN]}.items()
}
LOG = "/var/log/postgresql/postgresql-15-main.log"


@dataclass(frozen=True)
class Split:
    """The three machines. first: the first run. command_lines: machine -> all command lines during that run."""

    db: Host
    home: Host
    relay: Host
    deployment: Deployment
    first: Run = field(repr=False)
    command_lines: Mapping[str, str] = field(repr=False)

    @property
    def hosts(self) -> tuple[Host, Host, Host]:
        return self.db, self.home, self.relay

    def password(self, name: str) -> str:
        return Vault.open(self.deployment.vault).get(name).reveal()


@pytest.fixture(scope="module")
def split(testbed: Testbed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Split]:
    with ThreadPoolExecutor() as pool:
        begun = [
            pool.submit(testbed.up, "split-db", release="bookworm", layers=built(testbed, "bookworm")),
            pool.submit(testbed.up, "split", layers=built(testbed, "trixie")),
            # The homeserver's machine owns all other names below split.test.
            pool.submit(testbed.up, "split-relay", names=["turn.split.test"]),
        ]
    db, home, relay_host = (each.result() for each in begun)
    # Not for the deployment: the stand-in for the Sliding Sync proxy and the tests connect to the database with it.
    home.run(
        "apt-get update -qq && DEBIAN_FRONTEND=noninteractive "
        "apt-get install -qq -y --no-install-recommends postgresql-client",
        timeout=300,
    )
    directory = tmp_path_factory.mktemp("split")
    with ReleaseServer({RELEASE: real_proxy() or STAND_IN}) as page:
        deployment = Deployment(
            directory,
            [db, home, relay_host],
            {
                "server_name": home.domain,
                "tls": "internal",
                "admin_email": f"admin@{home.domain}",
                "private_networks": [str(testbed.network.subnet), str(testbed.network.subnet6)],
                "sliding_sync_releases": f"{page.url}/matrix-org/sliding-sync/releases/download",
            },
            ROLES,
        )
        deployment.environment |= {"SSL_CERT_FILE": str(page.ca_file), "XDG_CACHE_HOME": str(directory / "cache")}
        vault = Vault.open(deployment.vault)
        for name in PASSWORDS:
            vault.set(name, f"{secrets.token_hex(8)}{SPECIAL}{secrets.token_hex(8)}")
        vault.save()
        with command_lines(db) as on_db, command_lines(home) as at_home:
            first = deployment.run("-y", *VERBOSE)
        seen = {db.name: "\n".join(on_db), home.name: "\n".join(at_home)}
        yield Split(db, home, relay_host, deployment, first, seen)
    for host in (db, home, relay_host):
        host.down()


@pytest.fixture(scope="module")
def outside(split: Split, tmp_path_factory: pytest.TempPathFactory) -> Outside:
    return Outside(split.home, tmp_path_factory.mktemp("outside"))


@pytest.fixture(scope="module")
def alice(outside: Outside) -> Account:
    return new_user(outside, "alice")


@pytest.fixture(scope="module")
def bob(outside: Outside) -> Account:
    return new_user(outside, "bob")


def test_unedited_sample_inventory_is_refused() -> None:
    """Before any machine is connected to."""
    command = [PYINFRA, "inventories/split.py", "deploy.py", "-y"]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    refused = Run(done.returncode, done.stderr, {})
    assert refused.status == 1 and len(refused.refusal.splitlines()) == 1, refused.output
    assert "group_data/split.py: server_name is still example.org" in refused.refusal
    assert "Connected" not in done.stderr


# --- open ports -----------------------------------------------------------------------------------


# The first test: the packet filter has to be in force since the first deploy.
@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
def test_only_the_homeserver_reaches_the_databases_port(split: Split, ipv6: bool) -> None:
    assert_filtered(split.db, split.relay, ipv6)
    address = split.db.address6 if ipv6 else split.db.address
    # The port does answer the homeserver.
    assert split.home.run(f"timeout 5 bash -c '</dev/tcp/{address}/{POSTGRES_PORT}'", check=False).returncode == 0


def assert_filtered(db: Host, other: Host, ipv6: bool = False) -> None:
    """Neither the controller nor another machine gets an answer: its packets are dropped."""
    address = db.address6 if ipv6 else db.address
    with pytest.raises(TimeoutError):
        socket.create_connection((address, POSTGRES_PORT), timeout=2).close()
    attempt = other.run(f"timeout 2 bash -c '</dev/tcp/{address}/{POSTGRES_PORT}'", check=False)
    assert attempt.returncode == 124, f"{other.name} gets an answer: {attempt.returncode} {attempt.stderr}"


def test_second_run_changes_nothing(split: Split) -> None:
    before = [invocations(host) for host in split.hosts]
    running = [unit for units in before for unit, state in units.items() if not state.endswith("inactive")]
    assert len(running) == 7, "Caddy runs on two machines, the others on one"
    assert_nothing_to_do(split.deployment)
    assert [restarted(units, host) for units, host in zip(before, split.hosts, strict=True)] == [set()] * 3


@pytest.mark.parametrize("name", OPEN_PORTS)
def test_each_machine_listens_only_for_its_roles(split: Split, name: str) -> None:
    [host] = [host for host in split.hosts if host.name == name]
    bound = host.run("ss -Hlntu").stdout
    found = set()
    for line in bound.splitlines():
        protocol, _, _, _, local, *_ = line.split()
        address, _, port = re.sub(r"%\w+", "", local).rpartition(":")
        if not address.startswith(("127.", "[::1]")) and not (protocol == "udp" and int(port) in RELAYED.numbers):
            found.add(f"{protocol} {port}")
    assert found == OPEN_PORTS[name], bound


# --- the homeserver's connections to its database -------------------------------------------------


def test_connections_use_tls_and_scram(split: Split) -> None:
    query(split.db, "ALTER SYSTEM SET log_connections = on; SELECT pg_reload_conf();")
    try:
        end = int(split.db.run(f"stat -c %s {LOG}").stdout)
        split.home.run(f"systemctl restart {SYNAPSE.units[0].name} {SLIDING_SYNC.units[0].name}", timeout=180)
        split.home.run(f"until {SLIDING_SYNC.units[0].health}; do sleep 0.1; done")
        logged = split.db.run(f"tail -c +{end + 1} {LOG}").stdout
    finally:
        query(split.db, "ALTER SYSTEM RESET log_connections; SELECT pg_reload_conf();")
    for user, database in CLIENTS.items():
        methods = re.findall(rf'connection authenticated: identity="{user}" method=(\S+)', logged)
        authorized = re.findall(rf"connection authorized: user={user} database=(\S+)(.*)", logged)
        assert methods and set(methods) == {"scram-sha-256"}, logged
        assert len(authorized) == len(methods) and {name for name, _ in authorized} == {database}, logged
        assert all("SSL enabled (protocol=TLSv1.3" in how for _, how in authorized), logged
    connections = query(
        split.db,
        "SELECT DISTINCT usename, host(client_addr), ssl, version FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) "
        "WHERE usename = 'matrix-synapse'",
    ).splitlines()
    assert connections == [f"matrix-synapse|{split.home.address}|t|TLSv1.3"]


def test_the_database_stores_no_password_in_plain_text(split: Split) -> None:
    stored = query(
        split.db, "SELECT rolname, rolpassword FROM pg_authid WHERE rolpassword IS NOT NULL ORDER BY 1"
    ).splitlines()
    assert [line.partition("|")[0] for line in stored] == sorted(CLIENTS)
    for line in stored:
        assert re.fullmatch(r"[\w-]+\|SCRAM-SHA-256\$4096:[\w+/=]{24}\$[\w+/=]{44}:[\w+/=]{44}", line)


def connect(
    split: Split,
    user: str = "matrix-synapse",
    database: str = "synapse",
    sslmode: str = "verify-full",
    password: str | None = None,
    authority: str = DATABASE_AUTHORITY,
) -> str:
    """Try to connect from the homeserver's machine; returns the output of psql. password: Synapse's if it is None."""
    words = f"host={split.db.address} user={user} dbname={database} sslmode={sslmode} sslrootcert={authority}"
    done = split.home.run(
        # By standard input: the password may have any character.
        'IFS= read -r PGPASSWORD; export PGPASSWORD PGCONNECT_TIMEOUT=5; cd / && psql -XAtqc "SELECT 42" '
        f"{shlex.quote(words)} 2>&1",
        stdin=f"{password if password is not None else split.password(PASSWORDS[0])}\n",
        user="matrix-synapse",
        check=False,
    )
    return done.stdout.strip()


def test_clients_with_the_right_password_connect(split: Split) -> None:
    assert connect(split) == "42"
    assert connect(split, "sliding-sync", "syncv3", password=split.password(PASSWORDS[1])) == "42"


def test_connections_with_wrong_credentials_or_without_tls_are_refused(split: Split) -> None:
    assert "password authentication failed" in connect(split, password="wrong")  # noqa: S106
    assert "password authentication failed" in connect(split, password=split.password(PASSWORDS[1]))
    assert "no encryption" in connect(split, sslmode="disable")
    for user, database in (("matrix-synapse", "syncv3"), ("sliding-sync", "synapse"), ("postgres", "postgres")):
        assert "no pg_hba.conf entry" in connect(split, user, database), f"{user} can connect to {database}"


def test_a_wrong_database_certificate_is_refused_and_repaired_by_a_deploy(split: Split) -> None:
    """As with a man in the middle between the machines. The next deploy restores the authority."""
    home, address = split.home, split.db.address
    right = home.run(f"cat {DATABASE_AUTHORITY}").stdout
    home.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 1 "
        f"-subj /CN={address} -addext subjectAltName=IP:{address} -keyout /dev/null -out {DATABASE_AUTHORITY}"
    )
    assert "certificate verify failed" in connect(split)
    begin = home.run("date +%s").stdout.strip()
    unit = SYNAPSE.units[0].name
    home.run(f"systemctl restart --no-block {unit}")
    home.run(
        f"until journalctl -q -u {unit} --since @{begin} | grep -q 'certificate verify failed'; do sleep 0.2; done"
    )

    changed = split.deployment.run("-y").changed

    assert changed == ["Trust the database server's certificate", "Run Synapse"]
    assert home.run(f"cat {DATABASE_AUTHORITY}").stdout == right
    assert connect(split) == "42"


# --- calls ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
def test_two_users_exchange_packets_through_the_relay(
    split: Split, outside: Outside, alice: Account, tmp_path: Path, transport: str
) -> None:
    """With the homeserver's TURN credentials, at the machine that its TURN URIs name."""
    with outside.http() as http:
        url = outside.url("matrix", "/_matrix/client/v3/voip/turnServer")
        answer = expect_json(http.get(url, headers=alice.authorization))
    name = answer["uris"][0].split(":")[1]
    assert split.home.bed.resolve(name) == split.relay.address
    credentials = Credentials(answer["username"], answer["password"])
    # Each Caddy has an authority of its own.
    context: ssl.SSLContext = Outside(split.relay, tmp_path).context()
    with (
        relay(split.relay.address, transport, credentials, context=context, name=name) as one,
        relay(split.relay.address, transport, credentials, context=context, name=name) as two,
    ):
        his, hers = one.allocate(), two.allocate()
        assert {his[0], hers[0]} == {split.relay.address}
        one.permit(hers[0])
        two.permit(his[0])
        one.send(hers, b"hello")
        assert two.receive() == (his, b"hello")


# --- verify ---------------------------------------------------------------------------------------


def test_the_verification_passes(split: Split) -> None:
    command = [sys.executable, "-m", "pytest", "tests/host", "--inventory", str(split.deployment.inventory)]
    done = subprocess.run(
        [*command, "-v", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={**os.environ, **split.deployment.environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    for role, machines in ROLES.items():
        for machine in machines:
            assert re.search(rf"test_{role}\.py::.*\[{machine}[-\]].* PASSED", done.stdout), f"{role} on {machine}"
    assert " skipped" not in done.stdout.splitlines()[-1], done.stdout[-2000:]


# --- secrets --------------------------------------------------------------------------------------


def test_the_database_passwords_are_not_disclosed(split: Split) -> None:
    needles = traces(split.password(name) for name in PASSWORDS)
    assert_none_in(needles, shown(split.first), "the output of the first run")
    assert "SCRAM-SHA-256$" not in shown(split.first), "a verifier is in the output of the first run"
    for name, lines in split.command_lines.items():
        assert "systemctl" in lines, "no command of the run was recorded"
        assert_none_in(needles, "".join(lines.split()), f"the command lines on {name}")
    found = {}
    for host in split.hosts:
        assert_none_in(needles, host.run("cat /proc/[0-9]*/cmdline 2>/dev/null; true").stdout, f"ps on {host.name}")
        journal = host.run("journalctl --all --no-pager -o verbose", timeout=120).stdout
        assert_none_in(needles, "".join(journal.split()), f"the journal of {host.name}")
        host.run(f"install -d -m 700 {HIDDEN} && cat > {HIDDEN}/needles", stdin="\n".join(needles))
        files = host.run(
            f"cd / && grep -rlaF --devices=skip --exclude-dir={Path(HIDDEN).name} -f {HIDDEN}/needles "
            "/etc /var /opt /run /tmp /root /home /usr/local 2>/dev/null | xargs -r stat -c '%n %a %U:%G'",
            timeout=120,
        ).stdout
        found[host.name] = sorted(files.splitlines())
    assert found == {
        "split-db": [],
        "split": [
            "/etc/matrix-synapse/secrets/postgresql 600 matrix-synapse:matrix-synapse",
            "/etc/sliding-sync/environment 600 root:root",
        ],
        "split-relay": [],
    }


def test_rotated_passwords_replace_the_old(split: Split) -> None:
    old = split.password(PASSWORDS[0])
    vault = Vault.open(split.deployment.vault)
    for name in PASSWORDS:
        vault.rotate(name)
    vault.save()
    assert split.deployment.run("-y").changed == [
        "Create the databases",
        "Configure Synapse",
        "Run Synapse",
        "Configure the Sliding Sync proxy",
        "Run the Sliding Sync proxy",
    ]
    assert connect(split) == "42"
    assert "password authentication failed" in connect(split, password=old)


# --- faults ---------------------------------------------------------------------------------------


def assert_refused(run: Run, *words: str) -> None:
    """The run stopped with one line that has all of these words."""
    assert run.status == 1 and run.changed == [], run.output
    assert len(run.refusal.splitlines()) == 1 and "Traceback" not in run.output, run.output
    for word in words:
        assert word in run.refusal


def write_times(split: Split) -> list[str]:
    """The change times of the files that a deployment writes, for each machine."""
    files = "/etc/matrix-metal /etc/matrix-synapse /etc/sydent /etc/caddy /etc/postgresql /etc/turnserver.conf"
    return [host.run(f"find {files} -printf '%p %C@\\n' 2>/dev/null | sort").stdout for host in split.hosts]


def test_nothing_is_changed_while_one_machine_is_unreachable(split: Split) -> None:
    deployment, before = split.deployment, write_times(split)
    inventory, group_data = deployment.inventory, deployment.directory / "group_data" / f"{deployment.name}.py"
    reachable, chosen = inventory.read_text(), group_data.read_text()
    try:
        unreachable = reachable.replace(f"'{split.relay.address}'", f"'{split.relay.address}', 'ssh_port': 9")
        assert unreachable != reachable
        inventory.write_text(unreachable)
        group_data.write_text(f"{chosen}max_upload_size = '60M'\n")

        refused = deployment.run("-y", check=False)

        assert_refused(refused, "split-relay cannot be reached", "nothing was touched", "--exclude split-relay")
        assert write_times(split) == before
        group_data.write_text(chosen)
        assert deployment.run("-y", "--exclude", "split-relay").changed == []
        inventory.write_text(reachable.replace(f"'{split.db.address}'", f"'{split.db.address}', 'ssh_port': 9"))
        alone = deployment.run("-y", "--exclude", "split-db", check=False)
        assert_refused(alone, "split cannot be deployed without another machine")
        assert deployment.run("-y", "--limit", "split-relay").changed == []
    finally:
        inventory.write_text(reachable)
        group_data.write_text(chosen)


def test_homeserver_recovers_from_a_reboot_of_the_database(
    split: Split, outside: Outside, alice: Account, bob: Account
) -> None:
    before = invocations(split.home)
    split.db.reboot()
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            test_two_users_exchange_messages(outside, alice, bob)
            break
        except AssertionError:
            # One request fails for each connection that the reboot has closed. Clients retry, matrix-nio does not.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
    assert restarted(before, split.home) == set(), "units were restarted needlessly"
    assert_filtered(split.db, split.relay)
    assert split.deployment.run("-y").changed == []


def test_a_firewall_on_each_machine_lets_in_who_has_to(
    split: Split, outside: Outside, alice: Account, bob: Account
) -> None:
    split.deployment.assign(WITH_FIREWALL)
    split.deployment.run("-y")
    assert_filtered(split.db, split.relay)
    for port, status in {POSTGRES_PORT: 0, 22: 0, 9: 124}.items():
        attempt = f"timeout 2 bash -c '</dev/tcp/{split.db.address}/{port}'"
        assert split.home.run(attempt, check=False).returncode == status, port
    test_two_users_exchange_messages(outside, alice, bob)
    assert split.deployment.run("-y").changed == []


# --- moving the database: last, as it stays moved -------------------------------------------------


def test_homeserver_is_not_switched_to_an_empty_database(split: Split) -> None:
    deployment, before = split.deployment, write_times(split)
    for machine in ("split-relay", "split"):
        deployment.assign({**WITH_FIREWALL, "postgres": [machine]})
        refused = deployment.run("-y", check=False)
        assert_refused(refused, f"split: Synapse has its database at {split.db.address}", f"on {machine}", "move it")
        assert write_times(split) == before


def test_a_second_homeserver_with_the_same_database_is_refused(split: Split) -> None:
    """By a copied inventory, for example."""
    deployment, before = split.deployment, write_times(split)
    with_synapse = ("synapse", "sydent", "sliding_sync")
    deployment.assign({**WITH_FIREWALL, **{role: ["split-relay"] for role in with_synapse}})
    refused = deployment.run("-y", check=False)
    words = (
        "split-db: the Synapse at ",
        " uses the database synapse, and that of split-relay would be a second one",
        "stop it",
    )
    assert_refused(refused, *words)
    assert write_times(split) == before


def test_database_is_moved_as_in_the_readme(split: Split, outside: Outside, alice: Account, bob: Account) -> None:
    deployment = split.deployment
    deployment.assign({**WITH_FIREWALL, "postgres": ["split-relay"], "firewall": ["split", "split-relay"]})
    deployment.run("-y", "--limit", "split-relay")
    refused = deployment.run("-y", check=False)
    assert_refused(refused, "on split-relay", "empty")

    split.home.run(f"systemctl stop {SYNAPSE.units[0].name}")
    dump = "cd / && runuser -u postgres -- pg_dump -Fc synapse"
    load = "cd / && runuser -u postgres -- pg_restore --no-owner --role=matrix-synapse --exit-on-error -d synapse"
    with subprocess.Popen(split.db.ssh(dump), stdout=subprocess.PIPE) as dumping:
        subprocess.run(split.relay.ssh(load), stdin=dumping.stdout, check=True, timeout=120)
    assert dumping.returncode == 0
    deployment.run("-y")

    split.db.stop()
    # Alice and Bob are still logged in: their accounts were moved as well.
    test_two_users_exchange_messages(outside, alice, bob)


@pytest.mark.role("mas")
def test_mas_has_its_database_on_another_machine(split: Split, tmp_path: Path) -> None:
    """Over TLS and with a password. At the very end, because Synapse's accounts are removed for it."""
    deployment = split.deployment
    database = split.db if split.db.running else split.relay
    vault = Vault.open(deployment.vault)
    vault.set("postgres_mas_password", f"{secrets.token_hex(8)}{SPECIAL}{secrets.token_hex(8)}")
    vault.save()
    group_data = deployment.directory / "group_data" / f"{deployment.name}.py"
    group_data.write_text(group_data.read_text() + f"mas_archive = {str(real_mas() or mas_archive(tmp_path))!r}\n")
    deployment.assign(
        {**WITH_FIREWALL, "postgres": [database.name], "firewall": ["split", database.name], "mas": ["split"]}
    )
    query(database, "\\c synapse\nDELETE FROM users;")
    deployment.run("-y")
    connections = query(
        database,
        "SELECT DISTINCT datname, host(client_addr), ssl, version FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) "
        "WHERE usename = 'mas'",
    ).splitlines()
    # The stand-in connects only when it is asked.
    assert connections in ([], [f"mas|{split.home.address}|t|TLSv1.3"])
    stored = query(database, "SELECT rolpassword FROM pg_authid WHERE rolname = 'mas'")
    assert stored.startswith("SCRAM-SHA-256$4096:")
    assert split.home.run(MAS.units[0].health, check=False).returncode == 0
    status, output = deployment.verify("tests/host/test_mas.py")
    assert status == 0, output
    assert deployment.run("-y").changed == []
