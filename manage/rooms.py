"""python manage.py NAME rooms ..."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from compat import Refused
from manage.accounts import backends_of
from manage.backends.moderation import Moderation, Room
from manage.machines import Deployment, Machine
from manage.output import as_json, confirm, plain, print_json, print_table, unasked

# How many are listed at most, unless --limit says otherwise.
LIMIT = 50
# Seconds between two lines about a room that is being removed.
NEWS = 5


@contextmanager
def moderation_of(deployment: Deployment) -> Iterator[tuple[Moderation, Machine]]:
    """The rooms and reports of a deployment, and the machine that is asked for them. Raises Refused."""
    machine = deployment.machine("synapse")
    try:
        homeserver, synapse = backends_of(machine)
        try:
            yield Moderation(synapse), machine
        finally:
            homeserver.close()
    finally:
        machine.close()


def room_id_of(moderation: Moderation, machine: Machine, room: str) -> str:
    """The ID of a room that is named by its ID or alias. Raises Refused."""
    if re.fullmatch(r"![\x21-\x7e]{1,254}", room):
        return room
    if not re.fullmatch(r"#[^\s:]+(:[^\s]+)?", room) or len(room) > 255:
        raise Refused(
            f"{room!r} is no room: give its ID, such as '!dw4...', or an alias, such as "
            f"'#garden:{machine.settings.server_name}', in quotes: `rooms list` shows them"
        )
    alias = room if ":" in room else f"{room}:{machine.settings.server_name}"
    if found := moderation.synapse.room_id(alias):
        return found
    raise _unknown(alias)


def existing(moderation: Moderation, machine: Machine, room: str) -> Room:
    """The room of this ID or alias. Raises Refused if the homeserver has none."""
    room_id = room_id_of(moderation, machine, room)
    if found := moderation.find(room_id):
        return found
    raise _unknown(room)


def _unknown(room: str) -> Refused:
    return Refused(f"there is no room {room} here: `rooms list` shows those that there are")


def say_left_off(shown: int, total: int, what: str) -> None:
    """Say if not everything was listed."""
    if shown < total:
        click.echo(f"manage: {shown} of {total} {what} are shown: --limit {total} shows all", err=True)


def counted(number: int, what: str = "member") -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


name_of_room = click.argument("room")
limit_option = click.option(
    "--limit", type=click.IntRange(1), default=LIMIT, show_default=True, help="How many are listed at most."
)


@click.group()
def rooms() -> None:
    """The rooms that the homeserver knows.

    ROOM is an ID or an alias, in quotes: '!dw4xQmKfB...' or '#garden:example.org'.
    """


@rooms.command(name="list")
@click.option("--search", metavar="TEXT", help="Only those with this in their name or alias.")
@limit_option
@as_json
@click.pass_obj
def list_rooms(deployment: Deployment, search: str | None, limit: int, as_json: bool) -> None:
    """List the rooms, those with most members first."""
    with moderation_of(deployment) as (moderation, _):
        found, total = moderation.rooms(limit, search)
    if as_json:
        print_json(found)
    elif found:
        headings = ("ROOM", "NAME", "ALIAS", "MEMBERS", "OF THIS SERVER", "ENCRYPTED", "PUBLIC", "FEDERATED")
        rows = [
            (e.room_id, e.name, e.alias, e.members, e.local_members, e.encrypted, e.public, e.federated) for e in found
        ]
        print_table(headings, rows)
    else:
        click.echo("There are no such rooms." if search else "There are no rooms.")
    say_left_off(len(found), total, "rooms")


@rooms.command()
@name_of_room
@as_json
@click.pass_obj
def show(deployment: Deployment, room: str, as_json: bool) -> None:
    """Show what is known about a room."""
    with moderation_of(deployment) as (moderation, machine):
        found = moderation.details(room_id_of(moderation, machine, room))
    if not found:
        raise _unknown(room)
    if as_json:
        about = plain(found)
        return print_json({**about.pop("room"), **about})
    its = found.room
    rows: list[tuple[str, object]] = [
        ("room", its.room_id),
        ("name", its.name),
        ("alias", its.alias),
        ("topic", found.topic),
        ("kind", found.kind),
        ("members", its.members),
        ("of this server", its.local_members),
        ("encrypted", its.encrypted),
        ("public", its.public),
        ("federated", its.federated),
        ("who may join", found.join_rule),
        ("who may read", found.history),
        ("creator", found.creator),
        ("created", found.created),
        ("last event", found.last_event),
        ("version", found.version),
        ("replaced by", found.replaced_by),
        ("blocked", found.blocked),
    ]
    print_table(("", ""), rows, headed=False)


@rooms.command()
@name_of_room
@as_json
@click.pass_obj
def block(deployment: Deployment, room: str, as_json: bool) -> None:
    """Let nobody of this homeserver join a room, or be invited.

    Who is in it stays: `rooms purge --block` makes them leave. A room that nobody here is in yet can be blocked by its ID.
    """
    _set_blocked(deployment, room, True, as_json)


@rooms.command()
@name_of_room
@as_json
@click.pass_obj
def unblock(deployment: Deployment, room: str, as_json: bool) -> None:
    """Let people join a room again."""
    _set_blocked(deployment, room, False, as_json)


def _set_blocked(deployment: Deployment, room: str, blocked: bool, as_json: bool) -> None:
    with moderation_of(deployment) as (moderation, machine):
        room_id = room_id_of(moderation, machine, room)
        found = moderation.find(room_id)
        changed = moderation.blocked(room_id) != blocked
        if changed:
            moderation.block(room_id, blocked)
    if as_json:
        return print_json({"room_id": room_id, "blocked": blocked, "changed": changed})
    title = found.title if found else f"{room_id}, which nobody here is in,"
    state = "is blocked" if blocked else "is not blocked"
    if not changed:
        click.echo(f"{title} {state}{' already' if blocked else ''}; nothing was changed.")
    elif not blocked:
        click.echo(f"{title} {state} any more.")
    else:
        stay = found.local_members if found else 0
        line = f"{title} {state}: nobody of this homeserver can join it or be invited."
        click.echo(f"{line} {counted(stay)} of this homeserver {'is' if stay == 1 else 'are'} in it." if stay else line)


@rooms.command()
@name_of_room
@click.option("--block", is_flag=True, help="Also let nobody of this homeserver join it again.")
@unasked
@as_json
@click.pass_obj
def purge(deployment: Deployment, room: str, block: bool, yes: bool, as_json: bool) -> None:
    """Make everybody here leave a room, and remove its messages here.

    Other homeservers keep what they have, and their members stay. Files that were sent in it are kept. If this command is
    interrupted, Synapse goes on.
    """
    with moderation_of(deployment) as (moderation, machine):
        found = existing(moderation, machine, room)
        confirm(question_about(found, block), yes)
        done = moderation.remove(found.room_id, block, _Progress(found.local_members))
    if as_json:
        return print_json({**plain(found), "left": done.left, "blocked": block, "changed": True})
    ending = "; nobody of this homeserver can join it again" if block else ""
    have = "has" if done.left == 1 else "have"
    click.echo(f"{found.title} is removed: {counted(done.left)} of this homeserver {have} left it{ending}.")


def question_about(room: Room, block: bool) -> str:
    """What a purge of a room means."""
    here, elsewhere = room.local_members, room.members - room.local_members
    said = [
        f"its {counted(here)} of this homeserver {'is' if here == 1 else 'are'} made to leave it"
        if here
        else "it has no members of this homeserver",
        "its messages and aliases are removed from here",
    ]
    if block:
        said.append("nobody of this homeserver can join it again")
    *first, last = said
    kept = (
        f" {counted(elsewhere)} of other homeservers {'stays' if elsewhere == 1 else 'stay'} in it, and those homeservers keep "
        "what they have."
        if elsewhere
        else ""
    )
    return f"{room.title}: {', '.join(first)}, and {last}.{kept} That cannot be undone. Go on?"


class _Progress:
    """Says now and then how far the removal of a room is."""

    def __init__(self, members: int) -> None:
        self.members, self.begun = members, time.monotonic()
        self.next = NEWS

    def __call__(self, left: int) -> None:
        seconds = int(time.monotonic() - self.begun)
        if seconds < self.next:
            return
        self.next = seconds + NEWS
        what = f"{left} of {counted(self.members)} have left" if left < self.members else "messages are being removed"
        click.echo(f"  {what}, after {seconds} s", err=True)
