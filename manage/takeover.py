"""`manage.py NAME takeover PATH...`: an existing homeserver goes on with this deployment.

This judges and prints; templates/takeover looks and copies, on the machine.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from compat import Refused
from manage.deploying import deploy
from manage.judgement import size
from manage.machines import ROOT, Deployment, Machine
from manage.output import confirm, unasked
from manage.restoring import follow
from operations.databases import Accounts
from operations.shell import quoted
from roles import ASK_POSTGRES, PEOPLE, SYNAPSE
from settings.postgres import Postgres
from settings.synapse import Choices

HOME, UNIT = "/run/matrix-metal/takeover.d", "matrix-metal-takeover"
PROGRAM, PROGRESS = f"{HOME}/takeover", "/run/matrix-metal/takeover.json"
PYTHON = "/opt/matrix-synapse/current/bin/python -IB"
# What the database says about itself, once the data was put into its place.
BEGUN, DONE = "taken over, not verified", "taken over on "
STATE = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = 'synapse'"
# Settings whose values are taken. Others of this deployment's homeserver.yaml are replaced by the inventory's.
TAKEN = ("server_name", "old_signing_keys", "signing_key", "macaroon_secret_key", "form_secret")
# Secrets that this deployment has itself, and nobody's data depends on.
REPLACED = ("registration_shared_secret", "turn_shared_secret", "worker_replication_secret", "email", "log_config")
# Settings whose part Caddy and systemd have here.
ELSEWHERE = ("no_tls", "tls_certificate", "tls_private_key", "pid_file")
# Settings that Debian's homeserver.yaml still has, and Synapse does not know any more.
GONE = ("tls_dh_params", "uploads")
SECRETS = {
    "synapse_macaroon_secret_key": "macaroon_secret_key",
    "synapse_form_secret": "form_secret",
    "synapse_password_pepper": "password_config.pepper",
}


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--dry", is_flag=True, help="Only look, and say what would be taken.")
@unasked
@click.pass_obj
def takeover(deployment: Deployment, paths: Sequence[str], dry: bool, yes: bool) -> None:
    """Take over an existing homeserver: users, rooms, media, log-ins and signing key.

    PATH is a directory or file on the machine, with what was copied from the old homeserver after it was stopped:
    homeserver.yaml, signing key, media, and the SQLite database or a dump of PostgreSQL's. The machine was deployed with this
    inventory, and nobody has an account there yet. What was copied is only read. If anything fails, run it again.
    """
    machine = _machine(deployment)
    state = _state(machine)
    if state.startswith(DONE):
        click.echo(f"{machine.settings.server_name} was {state}: nothing to do.")
        return
    if state != BEGUN:
        found = _look(machine, paths)
        for line in described(found, machine.settings.domain(SYNAPSE)):
            click.echo(line)
        vault = machine.settings.vault
        for name, value in found["secrets"].items():
            vault.set(name, value)
        if dry:
            return
        confirm(f"Copy this to {machine.name}, as the data of {machine.settings.server_name}?", yes)
        vault.save()
        _take(machine, paths, found["database"]["size"])
    elif dry:
        click.echo("The data was copied and is in its place; without --dry, the homeserver is started and verified.")
        return
    click.echo("Starting the homeserver with it.")
    machine.close()
    problem = deploy(deployment, "takeover")
    federation = machine.settings.section(Choices).federation
    request = {"done": f"{DONE}{time.strftime('%Y-%m-%d')}", "federation": federation, "port": SYNAPSE.port}
    try:
        for line in _program(machine, "verify", request):
            click.echo(f"Verified: {line}.")
    except Refused as error:
        why = f"{problem}; {error}" if problem else str(error)
        raise Refused(f"the data is in its place, but {why}. When that is mended, run the same command again") from None
    click.echo(f"{machine.settings.server_name} is taken over. The old homeserver must never be started again.")
    if problem:
        # As long as the names lead to the old machine, there are no certificates.
        raise Refused(
            f"the homeserver runs with its data, but the deploy did not end: {problem}. Mend that, and deploy"
        )


def _machine(deployment: Deployment) -> Machine:
    """The machine that is to take over. Raises Refused if it cannot."""
    machine = next((each for each in deployment.known_machines() if each.settings.here("synapse")), None)
    if machine is None:
        raise Refused(f"{deployment.path.name} gives no machine the role synapse, which this needs")
    settings = machine.settings
    if settings.exists("mas"):
        raise Refused(
            "take the role mas out of the inventory and deploy, take over, then give it back and move the accounts: "
            f"python manage.py {deployment.name} mas migrate"
        )
    if not settings.here("postgres"):
        raise Refused(
            "a takeover needs the roles synapse and postgres on the same machine; the database can move later"
        )
    if not settings.machine.deployment or "matrix-synapse.service" not in settings.machine.units:
        raise Refused(f"{machine.name} was not deployed yet: pyinfra {deployment.command_name} deploy.py")
    if settings.machine.deployment["vault"] != settings.vault.id:
        raise Refused(f"{machine.name} was deployed with another vault than {settings.vault_path}")
    return machine


def _state(machine: Machine) -> str:
    return "".join(machine.run(f"{ASK_POSTGRES} psql -XAtqc {quoted(STATE)}"))


def _look(machine: Machine, paths: Sequence[str]) -> Mapping[str, Any]:
    if relative := [path for path in paths if not path.startswith("/")]:
        raise Refused(f"{relative[0]!r} must be the path of a file or directory on {machine.name}, from / on")
    cluster = machine.settings.view(Postgres).cluster
    people = machine.ask(Accounts, cluster=cluster, databases=[("synapse", PEOPLE)]).get("synapse")
    if people is None:
        raise Refused(f"{machine.name}: PostgreSQL does not answer: deploy first")
    if people:
        raise Refused(
            f"{machine.name} has {people} account{'s' * (people > 1)} already, which a takeover would replace"
        )
    click.echo(f"Looking at {', '.join(paths)} on {machine.name}. A large dump takes minutes.")
    found: Mapping[str, Any] = json.loads("".join(_program(machine, "look", {"paths": paths})))
    if wrong := next(problems(found, machine.settings.server_name), ""):
        raise Refused(f"{wrong}; nothing was touched")
    return found


def _program(machine: Machine, verb: str, request: Mapping[str, Any]) -> list[str]:
    # Each time: the machine may have been restarted since.
    for path in (f"{HOME}/source.py", PROGRAM):
        machine.run(
            f"install -d -m 700 /run/matrix-metal {HOME} && umask 077 && cat >{path}.new && mv {path}.new {path}",
            (ROOT / "templates/takeover" / path.rpartition("/")[2]).read_text(),
        )
    return machine.run(f"cd / && {PYTHON} {PROGRAM} {verb} {quoted(json.dumps(request))}")


def _take(machine: Machine, paths: Sequence[str], size: int) -> None:
    assert SYNAPSE.database
    request = json.dumps({"paths": paths, "size": size, "used_once": SYNAPSE.database.used_once, "begun": BEGUN})
    machine.run(
        f"rm -f {PROGRESS}; systemctl reset-failed {UNIT} 2>/dev/null || true; "
        # A unit goes on if the connection ends.
        f"systemctl is-active --quiet {UNIT} || "
        f"systemd-run --quiet --collect --unit={UNIT} {PYTHON} {PROGRAM} take {quoted(request)}"
    )
    click.echo(f"{follow(machine, UNIT, PROGRESS)}.".capitalize())


# --- judgement and words --------------------------------------------------------------------------


def problems(found: Mapping[str, Any], server_name: str) -> Iterator[str]:
    """Why what was found cannot be taken over, a line each."""
    file, database = found["file"], found["database"]
    if found["server_name"] != server_name:
        yield (
            f"{file} is of {found['server_name'] or 'no server_name'}, and server_name of this deployment is {server_name}: "
            "it is part of every user and room, and cannot be changed"
        )
    if found["delegated"]:
        yield f"{file} says that a Matrix Authentication Service has the accounts: they cannot be taken over"
    if not database["counts"]["users"]:
        yield f"{database['path']} has no accounts"
    elif database["user"].partition(":")[2] != server_name:
        yield f"{database['path']} has the account {database['user']}, which is not of {server_name}"
    if database["needs"] > database["known"]:
        yield (
            f"{database['path']} was written by a newer Synapse (schema {database['schema']}) than this one "
            f"(schema {database['known']}): get a newer version of this project"
        )
    for each in found["space"]:
        if each["free"] < each["needed"]:
            yield f"{size(each['needed'])} are needed in {each['at']}, and {size(each['free'])} are free"


def _files(number: int) -> str:
    return f"{number} file{'' if number == 1 else 's'}"


def described(found: Mapping[str, Any], domain: str) -> Iterator[str]:
    """What was found and is taken, and what is not. domain: the name by which clients reach the new homeserver."""
    database, media, counts = found["database"], found["media"], found["database"]["counts"]
    kind = "SQLite" if database["kind"] == "SQLite" else f"dump of PostgreSQL, {database['kind']}"
    yield f"  server name    {found['server_name']}"
    yield f"  database       {database['path']} ({kind}, {size(database['size'])}, schema {database['schema']})"
    yield f"                 {database['counted']}"
    yield f"  media          {media['path']}: {_files(media['files'])}, {size(media['size'])}"
    if (known := counts.get("local_media_repository")) and not media["own"]:
        yield f"  but            the database knows {_files(known)} of people, and none is there: copy them to that place first,"
        yield "                 as from a volume of their own, or people miss them"
    yield f"  signing key    {', '.join(found['signing_keys'])}"
    if found["old_signing_keys"]:
        yield f"  older keys     {', '.join(found['old_signing_keys'])}, into /etc/matrix-synapse/conf.d/takeover.yaml"
    if found["secrets"]:
        yield f"  into the vault {', '.join(SECRETS[name] for name in found['secrets'])}"
    if (url := found["public_baseurl"]) and url.rstrip("/") != f"https://{domain}":
        yield f"  but            clients that are logged in know it as {url}, and here it is https://{domain}/:"
        yield "                 set matrix_domain to that name, or they have to log in again"
    replaced, ignored = settings_not_taken(found)
    if replaced:
        yield f"  as deployed    {', '.join(replaced)}"
    if ignored:
        yield f"  ignored        {', '.join(ignored)}"
        yield "                 (what you need of these goes into a file in /etc/matrix-synapse/conf.d, see the README)"


def settings_not_taken(found: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The names of settings that this deployment has its own values for, and of those that it does not know."""

    def plain(name: str) -> str:
        return name.removesuffix("_path")

    ours = {*map(plain, found["ours"]), *REPLACED, *ELSEWHERE}
    rest = [name for name in found["settings"] if plain(name) not in (*TAKEN, *GONE) and name != "password_config"]
    ignored = [name for name in rest if plain(name) not in ours]
    ignored += [f"password_config.{name}" for name in found["passwords"] if name != "pepper"]
    return [name for name in rest if plain(name) in ours], ignored
