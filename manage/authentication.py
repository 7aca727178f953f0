"""`manage.py NAME mas ...`: the Matrix Authentication Service."""

import json
import os
import secrets
import subprocess

import click

from compat import Refused
from manage.homeserver import SERVICE_NAME, new_user_id
from manage.machines import PYINFRA, ROOT, Deployment, Machine
from manage.mas import Mas
from manage.synapse import TOKEN_FILE
from operations.accounts import MIGRATION
from operations.shell import quoted
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
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def migrate(deployment: Deployment, yes: bool) -> None:
    """Move the accounts of Synapse to the Matrix Authentication Service: passwords, sessions, addresses.

    The inventory has the role mas already, and nothing was deployed with it. Synapse is stopped meanwhile, for less than a minute
    with a few hundred accounts. Clients stay logged in. If anything fails, everything is put back as it was. Afterwards the way
    back is closed: Synapse cannot take the accounts again.
    """
    machine = deployment.machine("mas")
    if machine.run("grep -qs ^matrix_authentication_service: /etc/matrix-synapse/homeserver.yaml && echo yes || true"):
        raise Refused("MAS has the accounts already")
    if not yes:
        click.confirm(
            f"Move all accounts of {machine.settings.server_name} to the Matrix Authentication Service? People cannot use the "
            "homeserver for a minute, and there is no way back later",
            abort=True,
        )
    problem = "" if _deploy(deployment, "move") else "the deploy failed, see above"
    if not problem:
        try:
            _log_in(machine)
        except Refused as error:
            problem = str(error)
    if not problem:
        machine.run(f"rm -f {MIGRATION}")
        _retire(machine)
        click.echo(f"MAS has the accounts of {machine.settings.server_name}, and a log-in works.")
        return
    if not machine.run(f"[ ! -e {MIGRATION} ] || echo begun"):
        raise Refused(f"nothing was changed: {problem}")
    click.echo("Putting everything back as it was.", err=True)
    if not _deploy(deployment, "back"):
        raise Refused(
            f"{problem}; and it could not be put back, see above: {MIGRATION_VARIABLE}=back pyinfra {deployment.path} deploy.py"
        )
    raise Refused(f"{problem}; Synapse has the accounts, as before")


def _deploy(deployment: Deployment, migration: Migration) -> bool:
    done = subprocess.run(
        [PYINFRA, str(deployment.path), "deploy.py", "-y"],
        cwd=ROOT,
        env={**os.environ, MIGRATION_VARIABLE: migration},
        stdin=subprocess.DEVNULL,
    )
    return done.returncode == 0


def _retire(machine: Machine) -> None:
    """Deactivate the account that these commands had at Synapse: MAS knows them as a client."""
    homeserver = Mas(machine)
    account = homeserver.find(f"@{SERVICE_NAME}:{machine.settings.server_name}")
    if account and not account.deactivated:
        homeserver.deactivate(account, erase=True)
    machine.run(f"rm -f {TOKEN_FILE}")
    homeserver.close()


# A client on the machine itself, by the public name. Its answer is the user ID.
_CLIENT = """
read -r body
client() {{ curl -qsSk --noproxy '*' --max-time 20 -H 'Content-Type: application/json' --resolve {domain}:443:127.0.0.1 "$@"; }}
answer=$(printf %s "$body" | client -d @- https://{domain}/_matrix/client/v3/login)
token=$(printf %s "$answer" | sed -n 's/.*"access_token" *: *"\\([^"]*\\)".*/\\1/p')
[ "$token" ] || {{ echo "the log-in was refused: $answer" >&2; exit 1; }}
for path in account/whoami logout; do
  answer=$(printf 'header = "Authorization: Bearer %s"' "$token" |
    client -K - $([ $path = logout ] && echo -d {{}}) https://{domain}/_matrix/client/v3/$path)
  case $answer in *errcode* | '') echo "$path: $answer" >&2; exit 1 ;; esac
done
"""


def _log_in(machine: Machine) -> None:
    """Log in with a new account, which is deactivated afterwards. Raises Refused if that does not work."""
    homeserver, settings = Mas(machine), machine.settings
    user_id = new_user_id(f"migration-check-{secrets.token_hex(4)}", settings.server_name)
    password = secrets.token_urlsafe(24)
    homeserver.create(user_id, password, admin=False, display_name=None)
    account = homeserver.find(user_id)
    assert account is not None
    try:
        body = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": user_id}, "password": password}
        machine.run(_CLIENT.format(domain=quoted(settings.domain(SYNAPSE))), stdin=json.dumps(body) + "\n")
    finally:
        homeserver.deactivate(account, erase=True)
        homeserver.close()
