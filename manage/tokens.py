"""python manage.py NAME tokens ..."""

import re
from datetime import UTC, datetime, timedelta

import click

from compat import Refused
from manage.accounts import homeserver_of
from manage.homeserver import Token
from manage.machines import Deployment, Machine
from manage.output import as_json, plain, print_json, print_table
from settings.synapse import Choices

UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Duration(click.ParamType[timedelta]):
    """A time from now on, such as 12h or 7d."""

    name = "duration"

    def convert(self, value: str, param: click.Parameter | None, context: click.Context | None) -> timedelta:
        found = re.fullmatch(r"([1-9][0-9]{0,4})([mhdw])", value)
        if not found:
            self.fail(f"{value!r} is no duration such as 30m, 12h, 7d or 4w", param, context)
        return timedelta(**{UNITS[found[2]]: int(found[1])})


@click.group()
def tokens() -> None:
    """Registration tokens, for people who make accounts themselves.

    They are asked for one if registration = "token".
    """


@tokens.command()
@click.option("--uses", type=click.IntRange(1), default=1, show_default=True, help="How many accounts it is good for.")
@click.option("--unlimited", is_flag=True, help="It is good for any number of accounts.")
@click.option("--expires", type=Duration(), help="When it stops being good: 30m, 12h, 7d, 4w from now. Without: never.")
@as_json
@click.pass_obj
def create(deployment: Deployment, uses: int, unlimited: bool, expires: timedelta | None, as_json: bool) -> None:
    """Make a registration token, and print it."""
    with homeserver_of(deployment) as (homeserver, machine):
        token = homeserver.create_token(None if unlimited else uses, datetime.now(UTC) + expires if expires else None)
    if as_json:
        print_json(token)
    else:
        click.echo(token.token)
    _warn(machine)


@tokens.command(name="list")
@click.option("--all", "every", is_flag=True, help="Also those that are used up or expired.")
@as_json
@click.pass_obj
def list_tokens(deployment: Deployment, every: bool, as_json: bool) -> None:
    """List the registration tokens."""
    with homeserver_of(deployment) as (homeserver, machine):
        found = [each for each in homeserver.tokens() if each.usable or every]
    if as_json:
        print_json(found)
    elif found:
        headings = ("TOKEN", "USES", "USED", "BEING USED", "EXPIRES", "STATE")
        print_table(headings, [(e.token, *_uses(e), e.expires or "never", _state(e)) for e in found])
    else:
        click.echo("There are no registration tokens: `tokens create` makes one.")
    _warn(machine)


def _uses(token: Token) -> tuple[str, str, str]:
    return ("any number" if token.uses is None else str(token.uses), str(token.used), str(token.pending))


def _state(token: Token) -> str:
    return "usable" if token.usable else "used up or expired"


# One token of 64 begins with "-".
@tokens.command(context_settings={"ignore_unknown_options": True})
@click.argument("token")
@as_json
@click.pass_obj
def revoke(deployment: Deployment, token: str, as_json: bool) -> None:
    """Take a registration token back. Accounts that were made with it stay."""
    with homeserver_of(deployment) as (homeserver, _):
        found = [each for each in homeserver.tokens() if each.token == token]
        if not found:
            raise Refused("there is no such registration token: `tokens list --all` shows them")
        homeserver.revoke_token(found[0])
    if as_json:
        return print_json({**plain(found[0]), "usable": False})
    click.echo("The registration token cannot be used any more.")


def _warn(machine: Machine) -> None:
    """Say so if nobody needs a token."""
    registration = machine.settings.section(Choices).registration
    if registration != "token":
        why = "nobody can make an account themselves" if registration == "closed" else "everybody can make an account"
        click.echo(
            f'manage: registration is "{registration}": {why}, with or without a token; set registration = "token" and deploy',
            err=True,
        )
