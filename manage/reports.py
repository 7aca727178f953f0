"""python manage.py NAME reports ..."""

import re

import click

from compat import Refused
from manage.machines import Deployment
from manage.output import as_json, plain, print_json, print_table
from manage.rooms import limit_option, moderation_of, say_left_off

# How many letters of a reason a list shows.
WIDTH = 60


@click.group()
def reports() -> None:
    """What people report in their clients: messages and users."""


@reports.command(name="list")
@limit_option
@as_json
@click.pass_obj
def list_reports(deployment: Deployment, limit: int, as_json: bool) -> None:
    """List what people have reported, the newest first.

    Not listed are reports of whole rooms, and of messages in rooms that were removed: Synapse's admin API has neither. The
    setting reports_to has all of them told to moderators.
    """
    with moderation_of(deployment) as (moderation, _):
        found, total = moderation.reports(limit)
    if as_json:
        print_json(found)
    elif found:
        headings = ("REPORT", "WHEN", "BY", "WHOM", "ROOM", "REASON")
        print_table(
            headings, [(e.id, e.reported, e.reporter, e.user_id, e.room or e.room_id, _cut(e.reason)) for e in found]
        )
    else:
        click.echo("Nobody has reported a message or a user.")
    say_left_off(len(found), total, "reports")


@reports.command()
@click.argument("report")
@as_json
@click.pass_obj
def show(deployment: Deployment, report: str, as_json: bool) -> None:
    """Show a report, with the message that it is about. REPORT is as in `reports list`: message-3."""
    named = re.fullmatch(r"(message|user)-(\d{1,15})", report)
    if not named:
        raise Refused(f"{report!r} is no report: give one such as message-3 or user-1, as `reports list` shows them")
    with moderation_of(deployment) as (moderation, _):
        found = moderation.report(named[1], int(named[2]))
    if not found:
        raise Refused(f"there is no report {report}: `reports list` shows those that there are")
    its, message = found
    if as_json:
        return print_json({**plain(its), "message": plain(message)})
    rows: list[tuple[str, object]] = [
        ("report", its.id),
        ("when", its.reported),
        ("by", its.reporter),
        ("whom", its.user_id),
        ("reason", its.reason),
    ]
    if message:
        encrypted = message.type == "m.room.encrypted"
        rows += [
            ("score", its.score),
            ("room", its.room),
            ("room ID", its.room_id),
            ("event ID", its.event_id),
            ("sent", message.sent),
            ("text", "encrypted, so only members of the room can read it" if encrypted else message.text),
        ]
    print_table(("", ""), rows, headed=False)


def _cut(text: str | None) -> str:
    """A text on one line, and not too much of it."""
    line = " ".join((text or "").split())
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}\N{HORIZONTAL ELLIPSIS}"
