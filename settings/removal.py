"""What goes with a role that the inventory no longer gives to a machine: derived from its record, and from those that stay."""

from collections.abc import Iterator
from pathlib import PurePosixPath

from operations import ports
from operations.filters import PORTS
from operations.programs import KEPT
from operations.removal import LastDatabase, Removal
from roles import PACKAGES, POSTGRES, ROLES, Role
from settings.deployment import FOR_PORTS, Settings, view_of
from settings.issuers import STORE
from settings.postgres import Postgres


def removal_of(settings: Settings, role: Role) -> Removal:
    """What of the role goes from this machine, where it may be interrupted, or not be there at all.

    Only if the role's units say that a deploy has set it up: a coturn of the administrator's own is left alone.
    """
    certificates = _certificates(settings, role)
    if role not in [left for left, _ in settings.left_over]:
        return Removal(role.name, paths=certificates)
    staying = settings.played
    units = [*(settings.written(unit.name) for unit in role.units), *(timer.service for timer in role.timers)]
    packaged = any(unit.masked for unit in role.units)
    paths = [*_paths(role), *certificates]
    tables = list(role.tables)
    helpers = [*(timer.timer for timer in role.timers), *role.helpers]
    packages = [*map(settings.written, role.packages), *view_of(role.name).packages(settings)]
    if settings.reserves(role) and not (settings.local_ports or settings.public_ports):
        # The last of the reserved ports: what keeps them is no role's own.
        helpers += [PORTS.unit, ports.UNIT]
        paths += [PORTS.path, PORTS.drop_in, ports.PATH, ports.PROGRAM]
        tables.append(PORTS.table)
        packages += FOR_PORTS
    going = set(paths) - {path for each in staying for path in _paths(each)}
    accounts = _accounts(role) - {name for each in staying for name in _accounts(each)}
    return Removal(
        role.name,
        units=(*helpers, *units),
        definitions=tuple(
            path
            # By the units of the role a later run sees that the machine has had it.
            for unit in (*helpers, *units)
            for path in (f"/etc/systemd/system/{unit}", f"/etc/systemd/system/{unit}.d")
        ),
        # What is in a directory goes with it.
        paths=tuple(path for path in dict.fromkeys(paths) if path in going and not going & set(_above(path))),
        tools=role.tools,
        accounts=tuple(sorted(accounts)),
        packages=tuple(each for each in dict.fromkeys(packages) if each not in (*settings.packages, *PACKAGES)),
        maker=packages[0] if packaged else "",
        tables=tuple(tables),
        state=role.state if role.irreplaceable else (),
        authority=role.authority,
        package_users=tuple(
            name for name in role.package_users if not any(name in each.package_users for each in staying)
        ),
    )


def database_roles(settings: Settings, role: Role) -> tuple[str, tuple[str, ...]] | None:
    """The cluster and the roles of PostgreSQL's that the role has had there, if a deploy has set it up."""
    left = role in [left for left, _ in settings.left_over]
    if not (left and role.database_roles and settings.here(POSTGRES.name)):
        return None
    return settings.view(Postgres).cluster, role.database_roles


def last_database(settings: Settings, role: Role) -> LastDatabase | None:
    """The role's database, if it is on this machine and no machine has the role any more."""
    if not role.database or settings.exists(role.name) or not settings.here(POSTGRES.name):
        return None
    return LastDatabase(role.name, settings.view(Postgres).cluster, role.database.name, role.database.owner)


def _paths(role: Role) -> list[str]:
    """The files and directories that the record names, besides what defines its units."""
    found = [*role.files, *(f"/opt/{program}" for program in role.programs), *role.state]
    found += [path for program in role.programs for path in (f"{KEPT}/{program}", f"{KEPT}/{program}.failed")]
    for unit in role.units:
        found += [*unit.reads, *unit.rereads, *unit.private, *unit.secrets]
        found += [unit.environment] if unit.environment else []
    found += [role.users_file] if role.users_file else []
    return found


def _above(path: str) -> Iterator[str]:
    """The directories that it is in."""
    return (str(parent) for parent in PurePosixPath(path).parents)


def _accounts(role: Role) -> set[str]:
    names = {name for unit in role.units for name in (unit.user, *unit.groups)}
    return (names | {user.name for user in role.users}) - {"root"}


def _certificates(settings: Settings, role: Role) -> tuple[str, ...]:
    """The certificates that Caddy obtained here for the role's names, and for pages behind its door, if nothing has the name."""
    if not settings.here("caddy") or settings.exists(role.name):
        return ()
    behind = [each for each in ROLES.values() if any(role.name in port.guests for port in each.listens)]
    names = [
        settings.server_name,
        *(
            settings.name_of(each, domain)
            for each in ROLES.values()
            for domain in each.domains
            if settings.uses(each, domain) and each not in behind
        ),
    ]
    domains = [settings.name_of(each, domain) for each in (role, *behind) for domain in each.domains]
    return tuple(f"{STORE}/certificates/*/{domain}" for domain in domains if domain not in names)
