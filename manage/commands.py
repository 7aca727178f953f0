"""The command line: `python manage.py NAME NOUN VERB ...`, or a single word. Exit status 0, or 1 with a line that says why."""

import os
import sys
from pathlib import Path

import click

from compat import Refused
from manage.accounts import accounts
from manage.admin import admin
from manage.backup import backup, restore
from manage.bans import bans
from manage.machines import ROOT, Deployment
from manage.mas import mas
from manage.outdated import outdated
from manage.postgres import postgres
from manage.removal import remove
from manage.reports import reports
from manage.rooms import rooms
from manage.sbom import sbom
from manage.secrets import secrets
from manage.status import status
from manage.stickers import stickers
from manage.takeover import takeover
from manage.tokens import tokens
from settings import SettingError
from vault import VaultError


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, subcommand_metavar="NOUN VERB ...")
@click.argument("name")
@click.pass_context
def cli(context: click.Context, name: str) -> None:
    """Everything after the first deploy.

    NAME is the deployment: prod means inventories/prod.py; a path of another inventory may be given. Each NOUN has --help, and
    so has each VERB. These deploy: `mas migrate`, `postgres upgrade`, `remove`, `restore`, `secrets rotate`, `takeover`. No other
    does.
    """
    context.obj = Deployment(name)
    # As for a deploy: paths in the inventory are relative to this directory.
    os.chdir(ROOT)


for _noun in (
    status,
    accounts,
    tokens,
    rooms,
    reports,
    stickers,
    mas,
    bans,
    admin,
    postgres,
    backup,
    restore,
    takeover,
    secrets,
    remove,
    outdated,
    sbom,
):
    cli.add_command(_noun)


def _summarise(group: click.Group) -> None:
    """In lists of commands click cuts their first sentence to one line, unless it is given as the summary."""
    for command in group.commands.values():
        command.short_help = command.get_short_help_str(limit=1000)
        if isinstance(command, click.Group):
            _summarise(command)


_summarise(cli)


def main() -> None:
    sys.path.append(str(ROOT))
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command; returns the exit status."""
    try:
        cli.main(arguments, prog_name=f"python {Path(sys.argv[0]).name}", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "manage.py"
        click.echo(f"manage: {error.format_message().rstrip('.')}; see {command} --help", err=True)
    except (Refused, SettingError, VaultError, click.ClickException) as error:
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        click.echo(f"manage: {text}", err=True)
    except (click.Abort, KeyboardInterrupt, EOFError):
        click.echo("manage: stopped", err=True)
    except BrokenPipeError:
        # Whoever reads the output has seen enough: `list | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    else:
        return 0
    return 1
