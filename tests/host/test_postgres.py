"""PostgreSQL: the databases of the other roles."""

import ipaddress
from collections.abc import Callable
from functools import partial

import pytest
from testinfra.host import Host

from operations.databases import OPEN_TO_ALL, as_postgres
from roles import ROLES
from settings import Settings
from settings.postgres import Postgres
from tests.host.machines import Machine
from tests.host.report import Note
from tests.host.services import DEPLOY, Service, ServiceTests, ask


class TestService(ServiceTests):
    def test_its_clusters_start_at_boot(self, host: Host) -> None:
        assert host.run("systemctl is-enabled --quiet postgresql.service").rc == 0, (
            "postgresql.service is not enabled, so the next boot will not start it: systemctl enable postgresql.service"
        )


# For roles of another machine, which are no system users here, it fails.
_CONNECT = "cd / && runuser -u %s -- env -i PATH=/usr/bin:/bin psql -XAtqwc 'SELECT 1' %s 2>/dev/null"
Ask = Callable[[str], list[list[str]]]


@pytest.fixture(scope="module")
def query(host: Host, settings: Settings) -> Ask:
    """A function that runs a read-only query and returns its rows."""
    return partial(_query, host, settings.view(Postgres).cluster)


def _query(host: Host, cluster: str, sql: str) -> list[list[str]]:
    done = ask(
        host, f"{as_postgres(cluster)} PGOPTIONS='-c default_transaction_read_only=on' psql -XAtq -F '|' -c %s", sql
    )
    return [line.split("|") for line in done.splitlines()]


def test_listens_only_where_needed(service: Service, settings: Settings) -> None:
    if settings.view(Postgres).clients:
        assert any(address.endswith(f":{settings.view(Postgres).port}") for address in service.tcp()), (
            f"PostgreSQL does not listen for the other machines: {DEPLOY}"
        )
    else:
        assert not service.tcp(), (
            f"PostgreSQL listens on {', '.join(service.tcp())} though only this machine uses it: {DEPLOY}; "
            "look for listen_addresses in the other files of its conf.d"
        )


def test_only_the_machines_that_need_it_can_connect(service: Service, settings: Settings, machine: Machine) -> None:
    if clients := settings.view(Postgres).clients:
        shown = ask(service.host, "systemctl show -p IPAddressDeny -p IPAddressAllow %s", service.unit)
        found = dict(line.split("=", 1) for line in shown.splitlines())
        assert {"::/0", "0.0.0.0/0"} <= set(found["IPAddressDeny"].split()), (
            f"port {settings.view(Postgres).port} is open to every address, protected by passwords only: {DEPLOY}"
        )
        allowed = [ipaddress.ip_network(network) for network in found["IPAddressAllow"].split()]
        wanted = {ipaddress.ip_network(address) for client in clients for address in client.addresses}
        for user in machine.inventory.machines:
            if any(role.database and user.name in settings.roles[role.name] for role in ROLES.values()):
                wanted |= {ipaddress.ip_network(address) for address in user.state.addresses}
        others = {network for network in allowed if not network.is_loopback} - wanted
        assert not others, (
            f"port {settings.view(Postgres).port} is open to {', '.join(map(str, others))} as well: {DEPLOY}"
        )


def test_databases_have_the_right_properties(query: Ask, settings: Settings, note: Note) -> None:
    """With another collation than C, an upgrade of the operating system can break indexes."""
    found = {
        name: properties
        for name, *properties in query(
            "SELECT datname, pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datcollate, datctype FROM pg_database",
        )
    }
    note("versions", f"PostgreSQL {query('SHOW server_version')[0][0].split()[0]}")
    for database in settings.view(Postgres).databases:
        properties = found.get(database.name, [])
        note("databases", f"{database.name}: {', '.join(properties[1:3]) or 'not there'}")
        assert found.get(database.name) == [database.owner, "UTF8", "C", "C"], (
            f"the database {database.name} has owner, encoding, collation and character type {found.get(database.name)}, "
            f"but needs {[database.owner, 'UTF8', 'C', 'C']}: restore it into one that has them"
        )


def test_roles_have_no_rights_beyond_their_database(query: Ask, settings: Settings) -> None:
    owners = ", ".join(f"'{database.owner}'" for database in settings.view(Postgres).databases)
    if not owners:  # a database server without a homeserver yet
        return
    privileged = query(
        f"SELECT rolname FROM pg_roles WHERE rolname IN ({owners}) "  # noqa: S608 - names of ours
        "AND (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)",
    )
    assert not privileged, f"{privileged} may do more than use their own database: ALTER ROLE ... NOSUPERUSER ..."


def test_each_role_reaches_its_own_database_only(host: Host, query: Ask, settings: Settings) -> None:
    everybody = [name for (name,) in query(f"SELECT datname FROM pg_database WHERE {OPEN_TO_ALL}")]  # noqa: S608 - ours
    ours = {database.name for database in settings.view(Postgres).databases}
    assert not ours & set(everybody), (
        f"every role of PostgreSQL's may connect to {', '.join(ours & set(everybody))}: {DEPLOY}"
    )
    for database in settings.view(Postgres).databases:
        own = host.run(_CONNECT, database.owner, f"port={settings.view(Postgres).port} dbname={database.name}")
        assert own.rc == 0 or database.password, (
            f"{database.owner} cannot connect to its database {database.name}: {DEPLOY}"
        )
        for other in sorted({*everybody, *ours} - {database.name, "template0"}):
            done = host.run(_CONNECT, database.owner, f"port={settings.view(Postgres).port} dbname={other}")
            assert done.rc != 0, f"{database.owner} may connect to the database {other}: {DEPLOY}"


def test_data_checksums_are_enabled(query: Ask) -> None:
    assert query("SHOW data_checksums") == [["on"]], (
        "the cluster has no data checksums: with PostgreSQL stopped, run pg_checksums --enable on its data directory"
    )


def test_every_connection_is_authenticated(query: Ask) -> None:
    rules = query(
        "SELECT file_name, line_number, type, auth_method FROM pg_hba_file_rules WHERE error IS NULL"
        if int(query("SHOW server_version_num")[0][0]) >= 160000
        else "SELECT current_setting('hba_file'), line_number, type, auth_method FROM pg_hba_file_rules WHERE error IS NULL",
    )
    assert rules, f"PostgreSQL accepts no connections: {DEPLOY}"
    for file, line, kind, method in rules:
        allowed = ("peer", "reject") if kind == "local" else ("scram-sha-256", "cert", "reject")
        assert method in allowed, f"{file} line {line} allows {kind} connections with {method}: {DEPLOY}"
        assert kind in ("local", "hostssl", "hostgssenc") or method == "reject", (
            f"{file} line {line} allows connections without TLS: {DEPLOY}"
        )


def test_its_configuration_files_are_applied(query: Ask) -> None:
    wrong = query("SELECT sourcefile, sourceline, name, error FROM pg_file_settings WHERE error IS NOT NULL")
    wrong += query("SELECT 'hba', line_number, '', error FROM pg_hba_file_rules WHERE error IS NOT NULL")
    assert not wrong, f"PostgreSQL does not accept {wrong}: correct it, then `systemctl reload postgresql`"
    pending = [name for (name,) in query("SELECT name FROM pg_settings WHERE pending_restart")]
    assert not pending, f"{', '.join(pending)} will change with the next start: {DEPLOY}, or restart PostgreSQL"
