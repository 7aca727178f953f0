"""`manage.py NAME mas ...`: the Matrix Authentication Service."""

import json
import secrets

import click

from compat import Refused
from manage.backends.mas import Mas
from manage.backends.synapse import TOKEN_FILE
from manage.deploying import deploy
from manage.homeserver import SERVICE_NAME
from manage.machines import Deployment, Machine
from manage.output import confirm, unasked
from operations.accounts import MIGRATION
from operations.shell import quoted, shell_file
from roles import MAS, SYNAPSE
from settings.deployment import MIGRATION_VARIABLE, Migration
from settings.mas import Choices


@click.group()
def mas() -> None:
    """The Matrix Authentication Service: move accounts to it, where other providers send people back."""


@mas.command()
@click.pass_obj
def callbacks(deployment: Deployment) -> None:
    """Show where each provider of the setting `sso` must send people back (its redirect URI)."""
    settings = deployment.machine("mas").settings
    for provider in settings.section(Choices).sso:
        click.echo(f"{provider.id:16}  https://{settings.domain(MAS)}/upstream/callback/{provider.ulid}")


@mas.command()
@unasked
@click.option("--back", is_flag=True, help="Only put everything back that an interrupted migration has left.")
@click.pass_obj
def migrate(deployment: Deployment, yes: bool, back: bool) -> None:
    """Move the accounts of Synapse to the Matrix Authentication Service: passwords, sessions, addresses.

    The inventory has the role mas already, and nothing was deployed with it. Synapse is stopped meanwhile, for less than a minute
    with a few hundred accounts. Clients stay logged in. If anything fails, everything is put back as it was. If it is
    interrupted, run it again: until it is complete, Synapse goes on with the accounts. Afterwards the way back is closed:
    Synapse cannot take the accounts again.
    """
    machine = deployment.machine("mas")
    delegated, begun = "delegated" in (state := machine.run(_STATE)), "begun" in state
    if delegated and not begun:
        if "token" not in state or back:
            raise Refused("MAS has the accounts already")
        _retire(machine)
        click.echo(f"{_moved(machine)}; what was left of the migration is done.")
        return
    if back:
        if not begun:
            raise Refused("no migration was interrupted, so there is nothing to put back")
        _put_back(deployment, machine)
        click.echo("Synapse has the accounts, as before.")
        return
    if begun:
        click.echo("An earlier migration was interrupted: " + ("it is completed." if delegated else "it begins anew."))
    confirm(
        f"All accounts of {machine.settings.server_name} are moved to the Matrix Authentication Service. People cannot use the "
        "homeserver for a minute, and there is no way back later. Go on?",
        yes,
    )
    problem = _deploy(deployment, machine, "" if delegated else "move")
    moved = not problem
    problem = problem or _complete(machine)
    if not problem:
        click.echo(f"{_moved(machine)}, and a log-in works.")
        return
    try:
        state = machine.run(_STATE)
    except Refused as error:
        when = "When" if moved else "Synapse goes on with the accounts there; when"
        raise Refused(f"{problem}; {error}. {when} the machine is back, run: {_command(deployment)}") from None
    if "delegated" in state and "begun" not in state:
        raise Refused(
            f"{_moved(machine)}, and a log-in works; only the account {_service(machine)}, which these commands had at Synapse, "
            f"is still there: {problem}. To remove it, run: {_command(deployment)}"
        )
    if "begun" not in state:
        raise Refused(f"nothing was changed: {problem}")
    _put_back(deployment, machine, problem)
    raise Refused(f"{problem}; Synapse has the accounts, as before")


# How far a migration has come, on Synapse's machine.
_STATE = f"""
if grep -qs ^matrix_authentication_service: /etc/matrix-synapse/homeserver.yaml; then echo delegated; fi
if [ -e {MIGRATION} ]; then echo begun; fi
if [ -e {TOKEN_FILE} ]; then echo token; fi
"""


def _moved(machine: Machine) -> str:
    return f"MAS has the accounts of {machine.settings.server_name}"


def _service(machine: Machine) -> str:
    return f"@{SERVICE_NAME}:{machine.settings.server_name}"


def _command(deployment: Deployment) -> str:
    return f"python manage.py {deployment.name} mas migrate"


def _deploy(deployment: Deployment, machine: Machine, migration: Migration) -> str:
    # It may be cut meanwhile.
    machine.close()
    return deploy(deployment, f"mas-migrate{migration and '-'}{migration}", {MIGRATION_VARIABLE: migration})


def _complete(machine: Machine) -> str:
    """Why the migration is not complete once the accounts have moved, in a sentence; "" if it is."""
    try:
        _log_in(machine)
        click.echo(f"  Log in, on {machine.name}")
        machine.run(f"rm -f {MIGRATION}")
        _retire(machine)
    except Refused as error:
        return str(error)
    except KeyboardInterrupt:
        return "it was interrupted"
    return ""


def _put_back(deployment: Deployment, machine: Machine, problem: str = "") -> None:
    """Everything is as it was before the migration. problem: why it is put back. Raises Refused."""
    click.echo("Putting everything back as it was:", err=True)
    if another := _deploy(deployment, machine, "back"):
        raise Refused(
            f"{problem}{problem and '; and '}it could not be put back: {another}. When that is fixed, run: "
            f"{_command(deployment)} --back"
        )


def _retire(machine: Machine) -> None:
    """Deactivate the account that these commands had at Synapse: MAS knows them as a client."""
    homeserver = Mas(machine)
    account = homeserver.find_any(_service(machine))
    if account and not account.deactivated:
        homeserver.deactivate(account, erase=True)
    machine.run(f"rm -f {TOKEN_FILE}")
    homeserver.close()


def _log_in(machine: Machine) -> None:
    """Log in with a new account, which is deactivated afterwards. Raises Refused if that does not work."""
    homeserver, settings = Mas(machine), machine.settings
    # As the account that these commands have without MAS, which is not listed.
    user_id = f"@{SERVICE_NAME}-{secrets.randbelow(10**9)}:{settings.server_name}"
    password = secrets.token_urlsafe(24)
    homeserver.create(user_id, password, admin=False, display_name=None)
    account = homeserver.find_any(user_id)
    assert account is not None
    try:
        body = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": user_id}, "password": password}
        # A client on the machine itself, by the public name.
        program = f"domain={quoted(settings.domain(SYNAPSE))}\n{shell_file('log_in')}log_in"
        machine.run(program, stdin=json.dumps(body) + "\n")
    finally:
        homeserver.deactivate(account, erase=True)
        homeserver.close()
