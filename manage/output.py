"""What the commands print, tables for people and JSON for programs, and how they ask before what cannot be undone."""

import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import click
from rich.console import Console, RenderableType

from compat import Refused

# Of what is printed into a file, columns.
WIDTH = 120

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
# For `confirm`.
unasked = click.option("--yes", is_flag=True, help="Do not ask.")


def confirm(question: str, yes: bool) -> None:
    """Ask before what cannot be undone, with sentences of which the last is "Go on?".

    Without a terminal, the answer is the next line of standard input. Raises Refused if there is none, Abort if it is no.
    """
    if yes:
        return
    if sys.stdin.isatty():
        click.confirm(question, abort=True, err=True)
        return
    answer = sys.stdin.readline()
    if not answer:
        raise Refused(f"{question.removesuffix(' Go on?')} There is no terminal to ask: give --yes")
    if answer.strip().lower() not in ("y", "yes"):
        raise click.Abort


def print_json(value: Any) -> None:
    """Print dataclasses, dictionaries and lists of them as JSON. Times are UTC, such as 2027-01-31T12:00:00Z."""
    click.echo(json.dumps(plain(value), indent=2))


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%dT%H:%M:%SZ}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # `id` is for the API where it is not shown.
        shown = [each.name for each in dataclasses.fields(value) if each.repr]
        return {name: plain(getattr(value, name)) for name in shown}
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def print_text(*parts: RenderableType) -> None:
    """Print what rich has made for people: colours on a terminal, and its width; elsewhere neither, and no spaces at the ends."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH)
    with console.capture() as captured:
        console.print(*parts, sep="\n")
    click.echo("\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n")))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]], headed: bool = True) -> None:
    """Print columns, each as wide as it has to be. headed: with the headings."""
    lines = [[_cell(each) for each in row] for row in rows]
    if headed:
        lines.insert(0, list(headings))
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    return printable(str(value))


def printable(text: str) -> str:
    """A text that people or programs elsewhere have chosen, without control characters: they would reach the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)
