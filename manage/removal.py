"""python manage.py NAME remove ROLE"""

import difflib

import click

from compat import Refused
from manage.deploying import deploy
from manage.machines import Deployment, Machine
from manage.output import as_json, confirm, print_json, print_table, unasked
from operations.databases import Existing
from operations.removal import Found, Kept, Left, Unneeded, left_words
from roles import ROLES, Role
from settings.deployment import REMOVAL_VARIABLE
from settings.removal import last_database, removal_of


class RoleName(click.ParamType[Role]):
    """A role that can be removed."""

    name = "role"

    def convert(self, value: str, param: click.Parameter | None, context: click.Context | None) -> Role:
        if value not in ROLES:
            near = difflib.get_close_matches(value, list(ROLES), n=1)
            hint = f"did you mean {near[0]}?" if near else f"The roles are {', '.join(ROLES)}"
            self.fail(f"there is no role {value}: {hint}", param, context)
        return ROLES[value]


@click.command()
@click.argument("role", type=RoleName())
@click.option("--dry", is_flag=True, help="Only list what would be removed.")
@unasked
@as_json
@click.pass_obj
def remove(deployment: Deployment, role: Role, dry: bool, yes: bool, as_json: bool) -> None:
    """Remove a role from machines to which the inventory no longer gives it.

    Take it out of the inventory first. This lists what will be removed, asks, and deploys without the role. If it is interrupted,
    run it again.
    """
    if role.stays:
        raise Refused(f"{role.name} cannot be removed: {role.stays}")
    machines = deployment.known_machines()
    try:
        rows = _left(machines, role)
        playing = [machine.name for machine in machines if machine.settings.here(role.name)]
        if not rows and playing:
            raise Refused(
                f"{deployment.path.name} still gives {', '.join(playing)} the role {role.name}: take it out there first"
            )
        if as_json:
            print_json([{"machine": machine, "kind": kind, "name": name} for machine, kind, name in rows])
        elif rows:
            print_table(("MACHINE", "WHAT", "NAME"), rows)
        if dry or not rows:
            click.echo("Nothing was removed." if rows else f"Nothing is left of {role.title}.", err=as_json)
            return
        names = ", ".join(dict.fromkeys(machine for machine, _, _ in rows))
        confirm(f"This is removed from {names}, with {role.title}'s data, after a deploy without the role. Go on?", yes)
        if problem := deploy(deployment, f"remove-{role.name}", {REMOVAL_VARIABLE: role.name}, err=as_json):
            raise Refused(f"{problem}. When that is fixed, run the same command again")
        left = _left(machines, role)
        kept = [(machine.name, path) for machine in machines for path in _ask_kept(machine, role)]
    finally:
        for machine in machines:
            machine.close()
    for name, path in kept:
        click.echo(f"{name} has a last copy of its data, which only root can read: {path}", err=as_json)
    for name, kind, what in left:
        click.echo(f"{name} still has the {kind} {what}, because something else needs it", err=as_json)
    click.echo(f"{role.title} is removed. Its secrets stay in the vault.", err=as_json)


def _left(machines: list[Machine], role: Role) -> list[tuple[str, str, str]]:
    """What there is to remove: machine, kind and name."""
    rows = []
    for machine in machines:
        removal = removal_of(machine.settings, role)
        found: Found = machine.ask(Left, removal=removal)
        packages: list[str] = machine.ask(Unneeded, removal=removal)
        if removal.maker and removal.maker not in packages:
            # The users belong to a package that stays.
            found = {kind: names for kind, names in found.items() if kind not in ("user", "group")}
        rows += [(machine.name, *row) for row in left_words(found, packages)]
        if database := last_database(machine.settings, role):
            existing: dict[str, str] = machine.ask(Existing, cluster=database.cluster)
            if existing.get(f"database {database.name}", "").split(" ")[0] == database.owner:
                rows.append((machine.name, "database", database.name))
    return rows


def _ask_kept(machine: Machine, role: Role) -> list[str]:
    kept: list[str] = machine.ask(Kept, role=role.name)
    return kept
