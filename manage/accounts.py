"""python manage.py NAME accounts ..."""

import difflib
import getpass
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from compat import Refused
from manage.backends.mas import Mas
from manage.backends.synapse import Synapse
from manage.homeserver import Account, Homeserver, new_user_id, user_id_of
from manage.machines import Deployment, Machine
from manage.output import as_json, confirm, plain, print_json, print_table, unasked

# Letters and digits that do not look like others: 99 bits in 20 of them.
ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"


def backends_of(machine: Machine) -> tuple[Homeserver, Synapse]:
    """The accounts of the homeserver on a machine, and its Synapse. The end of the first is that of both."""
    # MAS is on the same machine.
    if machine.settings.roles.get("mas"):
        mas = Mas(machine)
        return mas, mas.synapse
    synapse = Synapse(machine)
    return synapse, synapse


@contextmanager
def homeserver_of(deployment: Deployment) -> Iterator[tuple[Homeserver, Machine]]:
    """The accounts of a deployment, and the machine that is asked for them."""
    machine = deployment.machine("synapse")
    homeserver, _ = backends_of(machine)
    try:
        yield homeserver, machine
    finally:
        try:
            homeserver.close()
        finally:
            machine.close()


def existing(homeserver: Homeserver, user_id: str) -> Account:
    """The account of this name. Raises Refused with the nearest that there is."""
    if found := homeserver.find(user_id):
        return found
    near = difflib.get_close_matches(user_id, [each.user_id for each in homeserver.all()], n=1)
    raise Refused(f"there is no account {user_id}" + (f": did you mean {near[0]}?" if near else ""))


# Passwords.


class Password:
    """Where a password comes from. `get` is called after everything else was checked."""

    def __init__(self, stdin: bool, generate: bool) -> None:
        if stdin and generate:
            raise click.UsageError("--password-stdin and --generate exclude each other")
        self.stdin, self.generated = stdin, generate

    def get(self, user_id: str) -> str:
        """The password: generated, the first line of standard input, or asked for. Raises Refused."""
        if self.generated:
            return "-".join("".join(secrets.choice(ALPHABET) for _ in range(5)) for _ in range(4))
        if self.stdin:
            # The first line, because password managers print the password there and notes below it.
            line = sys.stdin.buffer.readline()
            try:
                return self._checked(line.decode().removesuffix("\n").removesuffix("\r"))
            except UnicodeDecodeError:
                raise Refused("the password on standard input is not UTF-8") from None
        if not sys.stdin.isatty():
            raise Refused("there is no terminal to ask for the password: give --password-stdin or --generate")
        password = self._checked(getpass.getpass(f"Password of {user_id}: "))
        if getpass.getpass("The same again: ") != password:
            raise Refused("the two passwords differ; nothing was changed")
        return password

    def shown(self, password: str) -> dict[str, object]:
        """What to report of it."""
        return {"password": password} if self.generated else {}

    @staticmethod
    def _checked(password: str) -> str:
        if not password:
            raise Refused("the password is empty")
        if len(password) > 512 or not password.isprintable():
            raise Refused("the password has more than 512 characters, or control characters")
        return password


def password_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a command that sets a password, which is asked for twice without them."""
    stdin = click.option("--password-stdin", is_flag=True, help="Read it from standard input: the first line.")
    generate = click.option("--generate", is_flag=True, help="Make one, and show it once.")
    return stdin(generate(command))


# Commands.

name_of_account = click.argument("account")


@click.group()
def accounts() -> None:
    """The accounts of the homeserver.

    ACCOUNT is anna or @anna:example.org.
    """


@accounts.command()
@name_of_account
@click.option("--admin", is_flag=True, help="Make it a server administrator.")
@click.option("--display-name", metavar="NAME", help="The name that others see.")
@click.option("--exists-ok", is_flag=True, help="Succeed, and change nothing, if the account exists.")
@password_options
@as_json
@click.pass_obj
def create(
    deployment: Deployment,
    account: str,
    admin: bool,
    display_name: str | None,
    exists_ok: bool,
    password_stdin: bool,
    generate: bool,
    as_json: bool,
) -> None:
    """Make an account. It asks for the password twice."""
    password = Password(password_stdin, generate)
    with homeserver_of(deployment) as (homeserver, machine):
        user_id = new_user_id(account, machine.settings.server_name)
        if found := homeserver.find(user_id):
            line = f"{user_id} exists already" + (", and is deactivated" if found.deactivated else "")
            if not exists_ok:
                raise Refused(line)
            return report(f"{line}; nothing was changed.", found, as_json, changed=False)
        chosen = password.get(user_id)
        homeserver.create(user_id, chosen, admin, display_name)
        text = f"{user_id} was made" + (", a server administrator." if admin else ".")
        report(text, existing(homeserver, user_id), as_json, changed=True, **password.shown(chosen))


@accounts.command(name="list")
@click.option("--deactivated", is_flag=True, help="Also accounts that are deactivated.")
@click.option("--admins", is_flag=True, help="Only server administrators.")
@as_json
@click.pass_obj
def list_accounts(deployment: Deployment, deactivated: bool, admins: bool, as_json: bool) -> None:
    """List the accounts."""
    with homeserver_of(deployment) as (homeserver, _):
        found = [
            each for each in homeserver.all() if (deactivated or not each.deactivated) and (each.admin or not admins)
        ]
    if as_json:
        print_json(found)
    elif found:
        headings = ("ACCOUNT", "NAME", "ADMIN", "STATE", "CREATED", "LAST SEEN")
        print_table(
            headings,
            [(e.user_id, e.display_name, e.admin, e.state, e.created, e.last_seen) for e in found],
        )
    else:
        click.echo("There are no accounts: `accounts create` makes one.")


@accounts.command()
@name_of_account
@as_json
@click.pass_obj
def show(deployment: Deployment, account: str, as_json: bool) -> None:
    """Show what is known about an account."""
    with homeserver_of(deployment) as (homeserver, machine):
        found = existing(homeserver, user_id_of(account, machine.settings.server_name))
        sessions = homeserver.sessions(found)
    if as_json:
        return print_json({**plain(found), "sessions": len(sessions)})
    rows: list[tuple[str, object]] = [
        ("account", found.user_id),
        ("name", found.display_name),
        ("server administrator", found.admin),
        ("state", found.state),
        ("created", found.created),
        ("last seen", found.last_seen),
        ("e-mail addresses", ", ".join(found.emails)),
        ("sessions", str(len(sessions))),
    ]
    print_table(("", ""), rows, headed=False)


@accounts.command(name="reset-password")
@name_of_account
@click.option("--keep-sessions", is_flag=True, help="Leave its sessions logged in; otherwise all are logged out.")
@password_options
@as_json
@click.pass_obj
def reset_password(
    deployment: Deployment, account: str, keep_sessions: bool, password_stdin: bool, generate: bool, as_json: bool
) -> None:
    """Set another password. It asks for it twice."""
    password = Password(password_stdin, generate)
    with homeserver_of(deployment) as (homeserver, machine):
        found = existing(homeserver, user_id_of(account, machine.settings.server_name))
        if found.deactivated:
            raise Refused(f"{found.user_id} is deactivated: `accounts reactivate` sets a password as well")
        chosen = password.get(found.user_id)
        homeserver.set_password(found, chosen, keep_sessions)
        sessions = "its sessions stay logged in" if keep_sessions else "all its sessions were logged out"
        report(f"{found.user_id} has another password; {sessions}.", found, as_json, **password.shown(chosen))


@accounts.command()
@name_of_account
@as_json
@click.pass_obj
def promote(deployment: Deployment, account: str, as_json: bool) -> None:
    """Make it a server administrator."""
    _set_admin(deployment, account, True, as_json)


@accounts.command()
@name_of_account
@as_json
@click.pass_obj
def demote(deployment: Deployment, account: str, as_json: bool) -> None:
    """Make it an ordinary account again."""
    _set_admin(deployment, account, False, as_json)


def _set_admin(deployment: Deployment, account: str, admin: bool, as_json: bool) -> None:
    with homeserver_of(deployment) as (homeserver, machine):
        found = existing(homeserver, user_id_of(account, machine.settings.server_name))
        what = "a server administrator" if admin else "no server administrator"
        if found.admin == admin:
            return report(f"{found.user_id} is {what} already.", found, as_json, changed=False)
        if found.deactivated:
            raise Refused(f"{found.user_id} is deactivated")
        homeserver.set_admin(found, admin)
        now = existing(homeserver, found.user_id)
        report(f"{found.user_id} is {what} {'now' if admin else 'any more'}.", now, as_json, changed=True)


@accounts.command()
@name_of_account
@click.option("--erase", is_flag=True, help="Also hide its messages from whoever joins its rooms later.")
@click.option("--redact", is_flag=True, help="Also remove its messages, in all rooms that it was ever in.")
@click.option("--quarantine", is_flag=True, help="Also keep everybody from downloading what it has uploaded.")
@unasked
@as_json
@click.pass_obj
def deactivate(
    deployment: Deployment, account: str, erase: bool, redact: bool, quarantine: bool, yes: bool, as_json: bool
) -> None:
    """Take an account out of use.

    It is logged out everywhere, leaves all its rooms, and loses its password and e-mail addresses. Its name stays taken.

    The other options are for abuse, and may be given later as well.
    """
    with homeserver_of(deployment) as (homeserver, machine):
        server = account.partition(":")[2]
        if server not in ("", machine.settings.server_name):
            raise Refused(
                f"{account} is an account of {server}, whose administrators alone can deactivate it: ban it from your rooms"
            )
        found = existing(homeserver, user_id_of(account, machine.settings.server_name))
        if found.deactivated and not (erase or redact or quarantine):
            return report(f"{found.user_id} is deactivated already.", found, as_json, changed=False)
        losses = (
            ["leaves all its rooms", "is logged out everywhere"] if not found.deactivated else [],
            ["its messages are hidden"] if erase else [],
            ["its messages are removed from all rooms"] if redact else [],
            ["nobody can download its media"] if quarantine else [],
        )
        *first, last = (loss for each in losses for loss in each)
        lost = f"{', '.join(first)}, and {last}" if first else last
        confirm(
            f"{found.user_id}{'' if not found.deactivated else ' is deactivated;'} {lost}. That cannot be undone. Go on?",
            yes,
        )
        if erase or not found.deactivated:
            homeserver.deactivate(found, erase)
        done, numbers = [f"{found.user_id} is deactivated" + (" and erased" if erase else "")], {}
        if quarantine:
            numbers["quarantined"] = homeserver.quarantine(found)
            done.append(f"media files that nobody can download any more: {numbers['quarantined']}")
        if redact:
            numbers["not_redacted"] = homeserver.redact(found)
            failed = numbers["not_redacted"]
            done.append(
                "its messages are removed" + (f", but for {failed} that Synapse could not redact" if failed else "")
            )
        report(f"{'; '.join(done)}.", existing(homeserver, found.user_id), as_json, changed=True, **numbers)


@accounts.command()
@name_of_account
@password_options
@as_json
@click.pass_obj
def reactivate(deployment: Deployment, account: str, password_stdin: bool, generate: bool, as_json: bool) -> None:
    """Take a deactivated account into use again, with a new password. It is in no room."""
    password = Password(password_stdin, generate)
    with homeserver_of(deployment) as (homeserver, machine):
        found = existing(homeserver, user_id_of(account, machine.settings.server_name))
        if not found.deactivated:
            return report(f"{found.user_id} is not deactivated; nothing was changed.", found, as_json, changed=False)
        chosen = password.get(found.user_id)
        homeserver.reactivate(found, chosen)
        now = existing(homeserver, found.user_id)
        report(f"{found.user_id} is in use again.", now, as_json, changed=True, **password.shown(chosen))


@accounts.command()
@name_of_account
@as_json
@click.pass_obj
def sessions(deployment: Deployment, account: str, as_json: bool) -> None:
    """List where an account is logged in."""
    with homeserver_of(deployment) as (homeserver, machine):
        found = existing(homeserver, user_id_of(account, machine.settings.server_name))
        there = homeserver.sessions(found)
    if as_json:
        print_json(there)
    elif there:
        headings = ("SESSION", "DEVICE", "NAME", "LAST SEEN", "ADDRESS")
        print_table(headings, [(e.id, e.device, e.name, e.last_seen, e.address) for e in there])
    else:
        click.echo(f"{found.user_id} is not logged in anywhere.")


@accounts.command(name="log-out")
@name_of_account
@click.option("--session", metavar="SESSION", help="Only this one, as `accounts sessions` lists it.")
@as_json
@click.pass_obj
def log_out(deployment: Deployment, account: str, session: str | None, as_json: bool) -> None:
    """Log an account out: all its sessions, or one."""
    with homeserver_of(deployment) as (homeserver, machine):
        found = existing(homeserver, user_id_of(account, machine.settings.server_name))
        ended = [each for each in homeserver.sessions(found) if session in (None, each.id)]
        if session and not ended:
            raise Refused(f"{found.user_id} has no session {session}: `accounts sessions` lists them")
        if ended:
            homeserver.end_sessions(found, ended)
        count = f"{len(ended)} session{'' if len(ended) == 1 else 's'}"
        text = f"{count} of {found.user_id} logged out." if ended else f"{found.user_id} is not logged in anywhere."
        report(text, found, as_json, logged_out=len(ended))


def report(text: str, account: Account, as_json: bool, **more: object) -> None:
    """Say what was done: in a line for people; for programs as the account is now, and more."""
    if as_json:
        return print_json({**plain(account), **more})
    click.echo(text)
    if "password" in more:
        click.echo(f"Its password, which is not shown again: {more['password']}")
