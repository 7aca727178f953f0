"""`manage.py NAME postgres ...`: PostgreSQL, after the machine has got a newer Debian."""

from collections.abc import Sequence
from dataclasses import dataclass

import click

from compat import Refused
from manage.deploying import deploy
from manage.machines import Deployment, Machine
from manage.output import confirm, unasked
from operations.machine import BACKUP_STATE
from operations.shell import quoted, shell_file
from roles import POSTGRES, ROLES, Role
from settings.backup import SPOOL
from settings.postgres import OF_DEBIAN

# MiB beside a copy of the data: for the write-ahead log of the new cluster, and the packages.
SPARE = 1024


@click.group()
def postgres() -> None:
    """PostgreSQL: move its data to the version of a newer Debian, and remove the old version."""


@dataclass(frozen=True)
class Clusters:
    """The clusters called main. release: Debian's. versions: ascending. size, free: MiB of data, and of free space beside it.

    begun: whether an upgrade was begun and not completed. working: whether it is at work.
    """

    release: str
    versions: tuple[str, ...]
    active: frozenset[str]
    size: dict[str, int]
    free: dict[str, int]
    begun: str
    working: bool

    @classmethod
    def of(cls, machine: Machine) -> "Clusters":
        lines = [line.split(" ", 1) for line in machine.run(f"{shell_file('postgresql')}\nabout") if " " in line]
        values = {key: value for key, value in lines}

        def numbers(key: str) -> dict[str, int]:
            pairs = [value.split() for name, value in lines if name == key]
            return {version: int(number) for version, number in pairs}

        return cls(
            release=values["release"],
            versions=tuple(sorted((value for key, value in lines if key == "version"), key=int)),
            active=frozenset(value for key, value in lines if key == "active"),
            size=numbers("size"),
            free=numbers("free"),
            begun=values.get("begun", ""),
            working=values.get("working") == "yes",
        )


@postgres.command()
@unasked
@click.pass_obj
def upgrade(deployment: Deployment, yes: bool) -> None:
    """Move the data to the PostgreSQL of this Debian, for example from 15 to 17 after an upgrade to Debian 13.

    Everything that uses the database is stopped meanwhile: for a minute, and longer with many gigabytes. The data are copied, and
    compared. If anything fails, the old version goes on, with all data. It is kept until `drop-old`.
    """
    machine = deployment.machine("postgres")
    found = Clusters.of(machine)
    new = OF_DEBIAN.get(found.release)
    if new is None:
        raise Refused(f"{machine.name} runs Debian {found.release}; only {' and '.join(OF_DEBIAN)} are supported")
    if not found.versions:
        raise Refused(f"{machine.name} has no PostgreSQL cluster main: deploy first")
    old = found.begun.split()[0] if found.begun else found.versions[-1]
    if not found.begun and int(old) >= int(new):
        click.echo(f"{machine.name} has PostgreSQL {old}, which is that of Debian {found.release}: nothing to do.")
        return
    others = _users_elsewhere(deployment, machine)
    if not found.working:
        _check(machine, found, old, new)
        confirm(
            f"The {found.size[old]} MiB of PostgreSQL {old} are moved to {new}; people cannot use the homeserver meanwhile. "
            "Go on?",
            yes,
        )
        click.echo(f"Installing PostgreSQL {new}.")
        machine.run(
            f"{shell_file('proxy')}\nuse_proxy\n{shell_file('apt')}\nset -e\nmasked=\n"
            f"install_packages {quoted(f'postgresql-{new}')} >&2"
        )
    click.echo(
        f"Copying the data, which is compared afterwards. If the connection is lost, the machine goes on: {_again(deployment)}."
    )
    for other, units in others:
        other.run(f"systemctl stop {quoted(*units)}")
    here = " ".join(unit.name for role in _users(machine) for unit in role.units)
    given = f"old={old} new={new} units={quoted(here)} backup={BACKUP_STATE} spool={SPOOL}"
    program = f"{shell_file('lock')}\n{shell_file('postgresql')}\n{given}\n"
    try:
        # As a unit: it goes on if the connection ends.
        machine.run(f"{program}begin {quoted(program + 'upgrade')} && watch")
    except Refused as error:
        for other, units in others:
            other.run(f"systemctl start --no-block {quoted(*units)}")
        for line in machine.run(f"{program}told"):
            click.echo(f"    {line}", err=True)
        raise Refused(f"{str(error).rstrip('.')}. PostgreSQL {old} goes on, with all data") from None
    click.echo(f"PostgreSQL {new} has all data. Configuring it, and starting what uses it.")
    machine.close()
    if problem := deploy(deployment, "postgres-upgrade"):
        raise Refused(
            f"PostgreSQL {new} has all data, but the deploy failed: {problem}. When that is fixed, deploy again"
        )
    click.echo(
        f"PostgreSQL {new} runs. {old} is kept, stopped, with the data of before: when you are content, "
        f"python manage.py {deployment.name} postgres drop-old frees {found.size[old]} MiB."
    )


@postgres.command(name="drop-old")
@unasked
@click.pass_obj
def drop_old(deployment: Deployment, yes: bool) -> None:
    """Remove the versions of PostgreSQL that an upgrade has left behind, with their data."""
    machine = deployment.machine("postgres")
    found = Clusters.of(machine)
    if found.begun:
        raise Refused(f"an upgrade has begun and is not complete: {_again(deployment)}")
    old = [version for version in found.versions[:-1]]
    if not old:
        click.echo(f"{machine.name} has PostgreSQL {' '.join(found.versions) or 'nowhere'}, and no older version.")
        return
    if running := [version for version in old if version in found.active]:
        raise Refused(f"PostgreSQL {running[0]} runs on {machine.name}: it may be in use, and is not removed")
    sizes = ", ".join(f"{version} ({found.size[version]} MiB)" for version in old)
    confirm(f"PostgreSQL {sizes} is removed from {machine.name}, with its data as of the upgrade. Go on?", yes)
    for version in old:
        drop_ins = f"/etc/systemd/system/{POSTGRES.units[0].name.format(version=version)}.d"
        machine.run(f"{shell_file('postgresql')}\ndrop_old {version} {quoted(drop_ins)}")
        click.echo(f"PostgreSQL {version} is removed.")


def _check(machine: Machine, found: Clusters, old: str, new: str) -> None:
    """Raises Refused if the upgrade cannot work."""
    if not found.begun and old not in found.active:
        raise Refused(
            f"PostgreSQL {old} does not run on {machine.name}: start it, or deploy, before its data are moved"
        )
    needed = found.size[old] + SPARE
    if found.free[old] < needed:
        raise Refused(
            f"{machine.name} has {found.free[old]} MiB free beside the data of PostgreSQL {old}; {needed} MiB are needed, "
            "because the data are copied"
        )


def _users(machine: Machine) -> list[Role]:
    """The roles of a machine that have a database."""
    return [role for role in machine.settings.played if role.database]


def _users_elsewhere(deployment: Deployment, machine: Machine) -> list[tuple[Machine, Sequence[str]]]:
    """Other machines with roles that have a database, and their units."""
    roles = [role for role in ROLES.values() if role.database and machine.settings.exists(role.name)]
    found: list[tuple[Machine, Sequence[str]]] = []
    for role in roles:
        other = deployment.machine(role.name)
        if other.name != machine.name:
            found.append((other, [unit.name for unit in role.units]))
    return found


def _again(deployment: Deployment) -> str:
    return f"python manage.py {deployment.name} postgres upgrade"
