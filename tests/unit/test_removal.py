"""What goes with a role: its record names all that its task writes, and nothing that belongs to another role."""

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest

from operations import ports
from operations.filters import PORTS, RELAY
from operations.machine import MachineState
from operations.removal import Removal
from roles import ADMIN, BACKUP_FILES, BACKUP_USER, COTURN, ELEMENT, JOIN_PAGE, ROLES, Role
from settings.removal import last_database, removal_of
from tests.render import INDEX, render
from tests.unit.test_settings import MACHINE, settings

REMOVABLE = [role for role in ROLES.values() if not role.stays]
by_role = pytest.mark.parametrize("role", REMOVABLE, ids=lambda role: role.name)
# Of the machine, whatever its roles.
COMMON = (
    "/etc/matrix-metal",
    "/var/lib/matrix-metal",
    "/etc/sysusers.d",
    "/etc/systemd/journald.conf.d",
    "/etc/systemd/journald.conf.d/matrix-metal.conf",
    PORTS.path,
    PORTS.drop_in,
    f"/etc/systemd/system/{PORTS.unit}",
    ports.PATH,
    ports.PROGRAM,
    f"/etc/systemd/system/{ports.UNIT}",
)
# Directories of the drop-ins that roles have for Debian's units: they go when they are empty (removal.sh).
DROP_INS = [
    path.rpartition("/")[0]
    for role in ROLES.values()
    for path in role.files
    if fnmatch(path, "/etc/systemd/system/*.d/*")
]
# Of roles that stay.
OF_POSTGRES = ("/etc/postgresql-common*", "/etc/postgresql/*", "/etc/systemd/system/postgresql@*")


def removal(tmp_path: Path, role: Role, staying: Sequence[str]) -> Removal:
    """What goes with the role from a machine that has had it, and has these roles."""
    had = replace(MACHINE, units=units_of(role), releases=releases_of(role))
    return removal_of(settings(tmp_path, {name: ["one"] for name in staying}, had), role)


def all_of(role: Role) -> Removal:
    """What goes with the role where there is nothing else."""
    return removal_of(
        settings(Path("/nowhere"), {}, MachineState(units=units_of(role), releases=releases_of(role))), role
    )


def units_of(role: Role) -> frozenset[str]:
    return frozenset([*(unit.name for unit in role.units), *(timer.service for timer in role.timers), *role.helpers])


def releases_of(role: Role) -> frozenset[str]:
    """By these a role that runs nothing is known."""
    return frozenset(f"{program}/v1-0123456789ab" for program in role.programs)


def covered(path: str, by: Removal) -> bool:
    names = (*by.definitions, *by.paths, *by.tools)
    return any(fnmatch(path, name) or path.startswith(f"{name}/") for name in names)


def test_records_name_everything_that_tasks_write(tmp_path: Path) -> None:
    render(tmp_path / "rendered", ["everything", "debian12"])
    removals = [all_of(role) for role in ROLES.values()]
    for line in (tmp_path / "rendered" / INDEX).read_text().splitlines():
        path = "/" + line.split()[0].split("/", 2)[2].rstrip("/")
        known = path in COMMON or any(fnmatch(path, each) for each in OF_POSTGRES)
        known = known or any(covered(path, each) for each in removals)
        assert known or path.startswith("/etc/matrix-metal/") or path in DROP_INS, path


@by_role
def test_nothing_goes_that_another_role_has(tmp_path: Path, role: Role) -> None:
    for other in (each for each in ROLES.values() if each is not role):
        # Ports that another role's unit has for it.
        beside = [each for each in other.beside if not other.units and each != role.name]
        goes, has = removal(tmp_path, role, [other.name, *beside]), all_of(other)
        for path in (*has.definitions, *has.paths):
            assert not covered(path, goes), path


def test_the_page_of_the_server_name_goes_with_caddy(tmp_path: Path) -> None:
    assert JOIN_PAGE in removal(tmp_path, ROLES["caddy"], ["postgres", "synapse"]).paths


def test_records_name_every_program(tmp_path: Path) -> None:
    for role, view in settings(tmp_path, cinny=True).views:
        found = {each.home for each in view.virtualenvs} | {each.home for each in view.programs}
        uv = {"/opt/uv"} if view.virtualenvs else set()
        assert {f"/opt/{program}" for program in role.programs} == found | uv, role.name


def test_the_relays_packet_filter_is_in_its_record() -> None:
    assert RELAY.table in COTURN.tables and RELAY.unit in COTURN.helpers
    assert {RELAY.path, RELAY.drop_in} <= set(COTURN.files)


@by_role
def test_what_another_role_needs_stays(tmp_path: Path, role: Role) -> None:
    every = [each for each in ROLES if each != role.name]
    found = removal(tmp_path, role, every)
    assert not {"matrix-sockets", "matrix-synapse"} & set(found.accounts)
    assert not {"nftables", "curl", "openssl"} & set(found.packages)
    assert not {"/opt/uv", PORTS.path} & set(found.paths)


def test_the_user_of_jobs_goes_with_them_and_is_restored_until_then(tmp_path: Path) -> None:
    """A user that no unit of a role has: postgres, as whom other jobs of the backup run, is another role's."""
    found = removal(tmp_path, ROLES["backup"], ["synapse"])
    assert found.accounts == (BACKUP_USER,) and f"/etc/sysusers.d/{BACKUP_USER}.conf" in found.paths
    made = settings(tmp_path, {"postgres": ["one"], "backup": ["one"]}, MACHINE)
    [account] = [each for each in made.accounts if each.name == BACKUP_USER]
    assert (account.home, account.unit) == (BACKUP_FILES, "matrix-metal-backup-files.service")


@by_role
def test_a_service_of_the_administrators_own_is_left_alone(tmp_path: Path, role: Role) -> None:
    """The units of the machine do not say that a deploy has ever set up the role there."""
    found = removal_of(settings(tmp_path, {"postgres": ["one"], "synapse": ["one"]}), role)
    assert found == Removal(role.name)


@by_role
def test_a_machine_that_has_the_role_keeps_it(tmp_path: Path, role: Role) -> None:
    found = removal(tmp_path, role, list(ROLES))
    assert found == Removal(role.name) and last_database(settings(tmp_path), role) is None


def test_what_the_last_of_its_kind_needed_goes(tmp_path: Path) -> None:
    found = removal(tmp_path, ROLES["sydent"], ["caddy"])
    assert {"/opt/uv", "/opt/sydent", PORTS.path, PORTS.drop_in} <= set(found.paths)
    assert {ports.PATH, ports.PROGRAM, "/etc/systemd/system/" + ports.UNIT} <= {*found.paths, *found.definitions}
    assert {PORTS.unit, ports.UNIT} <= set(found.units) and PORTS.table in found.tables
    assert found.packages == ("nftables", "python3")


def test_the_relays_ports_stay_reserved_without_local_ones(tmp_path: Path) -> None:
    found = removal(tmp_path, ROLES["sydent"], ["caddy", "coturn"])
    assert not {PORTS.path, ports.PATH} & set(found.paths) and found.packages == ()


def test_a_certificate_goes_unless_the_name_is_used(tmp_path: Path) -> None:
    [pattern] = [path for path in removal(tmp_path, COTURN, ["caddy"]).paths if "certificates" in path]
    assert pattern.endswith("/certificates/*/turn.x.test")
    # The overview of the monitoring is served with these pages only.
    staying = ["postgres", "synapse", "caddy", "monitoring"]
    found = {path.rpartition("/")[2] for path in removal(tmp_path, ADMIN, staying).paths if "certificates" in path}
    assert found == {"admin.x.test", "monitor.x.test"}
    found = {path.rpartition("/")[2] for path in removal(tmp_path, ELEMENT, staying).paths if "certificates" in path}
    assert found == {"chat.x.test", "cinny.x.test", "stickers.chat.x.test"}
    # The role has moved to another machine.
    had = replace(MACHINE, units=frozenset(("coturn.service",)))
    moved = removal_of(settings(tmp_path, {"caddy": ["one", "two"], "coturn": ["two"]}, had), COTURN)
    assert "/etc/turnserver.conf" in moved.paths and pattern not in moved.paths


def test_a_database_goes_when_no_machine_has_the_role(tmp_path: Path) -> None:
    proxy = ROLES["sliding_sync"]
    without = {"postgres": ["one"], "synapse": ["two"]}
    found = last_database(settings(tmp_path, without), proxy)
    assert found and (found.name, found.owner) == ("syncv3", "sliding-sync")
    assert last_database(settings(tmp_path, {**without, "sliding_sync": ["two"]}), proxy) is None
    assert last_database(settings(tmp_path, {"caddy": ["one"]}), proxy) is None
