"""python manage.py NAME bans ..."""

import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager

import click

from compat import Refused
from manage.look import AS_BANS, BANS_QUESTION, BanSeen
from manage.machines import Deployment, Machine
from manage.output import as_json, print_json, print_table
from operations.shell import quoted
from roles import BANS, BANS_HOME, BANS_JAIL
from settings.bans import banned_as

[UNIT] = BANS.units


class Address(click.ParamType[str]):
    """An address as it is banned: of IPv6, its /64."""

    name = "address"

    def convert(self, value: str, param: click.Parameter | None, context: click.Context | None) -> str:
        try:
            # As `bans list` shows it.
            found = ipaddress.ip_address(value.removesuffix("/64") if ":" in value else value)
        except ValueError:
            self.fail(f"{value!r} is no address such as 192.0.2.7 or 2001:db8::7", param, context)
        return banned_as(str(found)).removesuffix("/32")


@contextmanager
def _banned(deployment: Deployment) -> Iterator[tuple[tuple[BanSeen, ...], Machine]]:
    """Who is banned, and the machine that bans."""
    machine = deployment.machine("bans")
    try:
        runs = machine.run(f"systemctl is-active {UNIT.name} || true")
        if runs != ["active"]:
            raise Refused(
                f"{machine.name}: {UNIT.name} does not run, so nobody is banned: deploy, or see journalctl -u {UNIT.name}"
            )
        yield BanSeen.of(machine.run(BANS_QUESTION)), machine
    finally:
        machine.close()


@click.group()
def bans() -> None:
    """Addresses that are banned because log-ins from there failed too often.

    Of IPv6, a /64 is banned.
    """


@bans.command(name="list")
@as_json
@click.pass_obj
def list_bans(deployment: Deployment, as_json: bool) -> None:
    """List who is banned, since when, and until when. Times are UTC."""
    with _banned(deployment) as (found, _):
        pass
    if as_json:
        print_json(found)
    elif found:
        headings = ("ADDRESS", "SINCE", "UNTIL", "FAILURES", "TIMES")
        print_table(headings, [(each.address, each.since, each.until, each.failures, each.times) for each in found])
    else:
        click.echo("Nobody is banned.")


@bans.command()
@click.argument("addresses", metavar="ADDRESS...", type=Address(), nargs=-1, required=True)
@as_json
@click.pass_obj
def pardon(deployment: Deployment, addresses: tuple[str, ...], as_json: bool) -> None:
    """End the bans of addresses, and forget that they were banned."""
    with _banned(deployment) as (found, machine):
        known = {each.address: each for each in found}
        if missing := [each for each in addresses if each not in known]:
            raise Refused(f"{missing[0]} is not banned, and nothing was changed: `bans list` shows who is")
        chosen = dict.fromkeys(addresses)
        names = quoted(*(each.removesuffix("/64") for each in chosen))
        machine.run(f"{AS_BANS} fail2ban-client -c {BANS_HOME} set {BANS_JAIL} unbanip {names}")
    if as_json:
        return print_json([known[each] for each in chosen])
    for each in chosen:
        click.echo(f"{each} is not banned any more.")
