"""python manage.py NAME secrets ..."""

import os
from collections.abc import Sequence
from pathlib import Path

import click

from compat import Refused
from manage.deploying import deploy
from manage.machines import ROOT, Deployment
from manage.output import confirm, unasked
from roles import VaultEntry
from vault import TOO_MANY, Command, Vault, VaultError, entry_of, run


@click.group()
def secrets() -> None:
    """The secrets of the deployment, in its vault.

    No machine is connected to, but by `rotate`: a deploy writes them to the machines.
    """


name_of_secret = click.argument("secret", nargs=-1)
force = click.option("--force", is_flag=True, help="Even if other data depends on the old value.")


# An unknown option may well be a value that should have been typed: it is not repeated.
lenient = {"ignore_unknown_options": True}


@secrets.command(context_settings=lenient)
@name_of_secret
@click.pass_obj
def show(deployment: Deployment, secret: tuple[str, ...]) -> None:
    """List the secrets, without their values; or print the value of one."""
    _run(deployment, "show", secret, False)


@secrets.command(name="set", context_settings=lenient)
@name_of_secret
@force
@click.pass_obj
def set_secret(deployment: Deployment, secret: tuple[str, ...], force: bool) -> None:
    """Set a secret: asked for without echo, or the first line of standard input."""
    _run(deployment, "set", secret, force)


@secrets.command(context_settings=lenient)
@name_of_secret
@click.option("--all", "every", is_flag=True, help="All that can be rotated.")
@click.option("--at-once", is_flag=True, help="The old ones are known to somebody: they are accepted no longer.")
@click.option("--no-deploy", is_flag=True, help="Only in the vault: the next deploy writes them to the machines.")
@unasked
@force
@click.pass_obj
def rotate(
    deployment: Deployment,
    secret: tuple[str, ...],
    every: bool,
    at_once: bool,
    no_deploy: bool,
    yes: bool,
    force: bool,
) -> None:
    """Put new generated secrets in the place of the old ones, and deploy.

    What it means for people is shown before, with a question. The vault is written first: if anything fails after that, a deploy
    goes on where it stopped.
    """
    path = _relative(deployment.vault_path)
    vault = Vault.open(path)
    if any(each.startswith("-") for each in secret):  # not repeated: it may well be a value
        raise VaultError(TOO_MANY)
    if every == bool(secret):
        raise click.UsageError("name the secrets to rotate, or give --all; `secrets show` lists them")
    names = list(dict.fromkeys(secret)) or vault.rotatable()
    entries = [entry_of(name) for name in names]
    if missing := [name for name in names if not vault.has(name) and entry_of(name).kind != "given"]:
        raise VaultError(f"{', '.join(missing)} is not set in {path}: a deploy makes it when a role needs it")
    for name in names:
        vault.rotate(name, force, at_once)
    if not names:
        raise VaultError(f"{path} has no secret that can be rotated: the first deploy makes them")
    for entry in entries:
        click.echo(f"{entry.name}: {_meaning(entry, at_once)}.", err=True)
    confirm(f"They are rotated{'' if no_deploy else ', and deployed'}. Go on?", yes)
    vault.save()
    inventory = _relative(deployment.path)
    if no_deploy:
        return click.echo(f"{_has(names)} in {path}. Now run: pyinfra {inventory} deploy.py")
    if problem := deploy(deployment, "secrets-rotate"):
        raise Refused(
            f"{_has(names)} in {path}, but not on all machines: {problem}. pyinfra {inventory} deploy.py goes on"
        )
    click.echo(f"{_has(names)} in {path} and on the machines. Keep a copy of {path} as it is now.")


def _has(names: Sequence[str]) -> str:
    return f"{names[0]} is" if len(names) == 1 else f"{len(names)} new secrets are"


def _meaning(entry: VaultEntry, at_once: bool) -> str:
    """What a rotation means for people."""
    if entry.keep:
        return f"{entry.keep}; that is lost"
    if not entry.overlap:
        return entry.rotation
    old = "is not accepted any more" if at_once else f"is accepted for {entry.overlap} hours more"
    return f"{entry.rotation}; what was signed with the old one {old}"


def _relative(path: Path) -> Path:
    """Shorter: relative to this directory, in which the deploy runs."""
    return Path(os.path.relpath(path)) if path.is_relative_to(ROOT) else path


@secrets.command()
@unasked
@click.pass_obj
def rekey(deployment: Deployment, yes: bool) -> None:
    """Give the vault another key. Copies of the old key open only copies of the old vault."""
    path = _relative(deployment.vault_path)
    vault = Vault.open(path)
    confirm(f"{path} is encrypted with a new key. Go on?", yes)
    vault.rekey()
    click.echo(f"{path.with_suffix('.key')} has a new key: keep a copy apart from {path}, and of that one a copy, too.")


def _run(deployment: Deployment, command: Command, secret: tuple[str, ...], force: bool) -> None:
    if len(secret) > 1 or any(each.startswith("-") for each in secret):  # not repeated: it may well be the value
        raise VaultError(TOO_MANY)
    path, inventory = _relative(deployment.vault_path), _relative(deployment.path)
    run(command, path, inventory, secret[0] if secret else None, force)
