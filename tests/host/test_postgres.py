"""PostgreSQL: the databases of the other roles."""

import ipaddress

from testinfra.host import Host

from operations.databases import AS_POSTGRES
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


def query(host: Host, sql: str) -> list[list[str]]:
    """Rows of a query, which may not change anything."""
    done = ask(host, f"{AS_POSTGRES} env PGOPTIONS='-c default_transaction_read_only=on' psql -XAtq -F '|' -c %s", sql)
    return [line.split("|") for line in done.splitlines()]


def test_listens_only_where_needed(service: Service, settings: Settings) -> None:
    if settings.view(Postgres).clients:
        assert any(address.endswith(":5432") for address in service.tcp()), (
            f"PostgreSQL does not listen for the other machines: {DEPLOY}"
        )
    else:
        assert not service.tcp(), (
            f"PostgreSQL listens on {', '.join(service.tcp())} though only this machine uses it: {DEPLOY}; "
            "look for listen_addresses in the other files of its conf.d"
        )


def test_only_the_machines_that_need_it_get_through(service: Service, settings: Settings, machine: Machine) -> None:
    if clients := settings.view(Postgres).clients:
        shown = ask(service.host, "systemctl show -p IPAddressDeny -p IPAddressAllow %s", service.unit)
        found = dict(line.split("=", 1) for line in shown.splitlines())
        assert {"::/0", "0.0.0.0/0"} <= set(found["IPAddressDeny"].split()), (
            f"nothing but passwords keeps strangers from port 5432: {DEPLOY}"
        )
        allowed = [ipaddress.ip_network(network) for network in found["IPAddressAllow"].split()]
        wanted = {ipaddress.ip_network(address) for client in clients for address in client.addresses}
        for user in machine.inventory.machines:
            if any(role.database and user.name in settings.roles[role.name] for role in ROLES.values()):
                wanted |= {ipaddress.ip_network(address) for address in user.state.addresses}
        others = {network for network in allowed if not network.is_loopback} - wanted
        assert not others, f"port 5432 is open to {', '.join(map(str, others))} as well: {DEPLOY}"


def test_databases_are_what_their_roles_need(host: Host, settings: Settings, note: Note) -> None:
    """Another collation than C breaks indexes with an upgrade of the operating system."""
    found = {
        name: properties
        for name, *properties in query(
            host,
            "SELECT datname, pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datcollate, datctype FROM pg_database",
        )
    }
    note("versions", f"PostgreSQL {query(host, 'SHOW server_version')[0][0].split()[0]}")
    for database in settings.view(Postgres).databases:
        properties = found.get(database.name, [])
        note("databases", f"{database.name}: {', '.join(properties[1:3]) or 'not there'}")
        assert found.get(database.name) == [database.owner, "UTF8", "C", "C"], (
            f"the database {database.name} has owner, encoding, collation and character type {found.get(database.name)}, "
            f"but needs {[database.owner, 'UTF8', 'C', 'C']}: restore it into one that has them"
        )


def test_roles_rule_over_nothing_but_their_database(host: Host, settings: Settings) -> None:
    owners = ", ".join(f"'{database.owner}'" for database in settings.view(Postgres).databases)
    if not owners:  # a database server whose homeserver is still to come
        return
    mighty = query(
        host,
        f"SELECT rolname FROM pg_roles WHERE rolname IN ({owners}) "  # noqa: S608 - names of ours
        "AND (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)",
    )
    assert not mighty, f"{mighty} may do more than use their own database: ALTER ROLE ... NOSUPERUSER ..."


def test_damage_on_the_disk_is_noticed(host: Host) -> None:
    assert query(host, "SHOW data_checksums") == [["on"]], (
        "the cluster has no data checksums: with PostgreSQL stopped, run pg_checksums --enable on its data directory"
    )


def test_nobody_gets_in_without_proof(host: Host) -> None:
    rules = query(
        host,
        "SELECT file_name, line_number, type, auth_method FROM pg_hba_file_rules WHERE error IS NULL"
        if int(query(host, "SHOW server_version_num")[0][0]) >= 160000
        else "SELECT current_setting('hba_file'), line_number, type, auth_method FROM pg_hba_file_rules WHERE error IS NULL",
    )
    assert rules, f"PostgreSQL lets nobody in: {DEPLOY}"
    for file, line, kind, method in rules:
        allowed = ("peer", "reject") if kind == "local" else ("scram-sha-256", "cert", "reject")
        assert method in allowed, f"{file} line {line} lets {kind} connections in with {method}: {DEPLOY}"
        assert kind in ("local", "hostssl", "hostgssenc") or method == "reject", (
            f"{file} line {line} lets connections in without TLS: {DEPLOY}"
        )


def test_runs_what_its_files_say(host: Host) -> None:
    wrong = query(host, "SELECT sourcefile, sourceline, name, error FROM pg_file_settings WHERE error IS NOT NULL")
    wrong += query(host, "SELECT 'hba', line_number, '', error FROM pg_hba_file_rules WHERE error IS NOT NULL")
    assert not wrong, f"PostgreSQL does not take {wrong}: correct it, then `systemctl reload postgresql`"
    pending = [name for (name,) in query(host, "SELECT name FROM pg_settings WHERE pending_restart")]
    assert not pending, f"{', '.join(pending)} will change with the next start: {DEPLOY}, or restart PostgreSQL"
