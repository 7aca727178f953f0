"""python manage.py NAME secrets ..."""

import os
from pathlib import Path

import click

import vault
from manage.machines import ROOT, Deployment


@click.group()
def secrets() -> None:
    """The secrets of the deployment, in its vault.

    No machine is connected to: a deploy brings them there.
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
@force
@click.pass_obj
def rotate(deployment: Deployment, secret: tuple[str, ...], force: bool) -> None:
    """Put a new generated secret in the place of the old one."""
    _run(deployment, "rotate", secret, force)


def _run(deployment: Deployment, command: vault.Command, secret: tuple[str, ...], force: bool) -> None:
    if len(secret) > 1 or any(each.startswith("-") for each in secret):  # not repeated: it may well be the value
        raise vault.VaultError(vault.TOO_MANY)
    # Shorter: relative to this directory, in which the deploy runs.
    path, inventory = (
        Path(os.path.relpath(each)) if each.is_relative_to(ROOT) else each
        for each in (deployment.vault_path, deployment.path)
    )
    vault.run(command, path, inventory, secret[0] if secret else None, force)
