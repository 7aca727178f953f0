"""`manage.py NAME backup ...` and `manage.py NAME restore`."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from compat import Refused
from manage.accounts import confirm
from manage.machines import ROOT, Deployment, Machine
from manage.output import as_json, print_json, print_table
from operations.machine import BACKUP_STATE, RESTORE_HOME
from operations.shell import quoted
from roles import any_version
from settings.backup import PROGRAM, Target, public_key
from settings.deployment import RESTORE_VARIABLE, Restore

PYINFRA = str(Path(sys.executable).parent / "pyinfra")
RESTORE_UNIT = "matrix-metal-restore"


@click.group()
def backup() -> None:
    """The backup: how it is, a backup now, the key for another machine."""


@backup.command()
@as_json
@click.pass_obj
def show(deployment: Deployment, as_json: bool) -> None:
    """Show when each part of the backup last succeeded, or why it failed."""
    found = {machine.name: _parts(machine) for machine in deployment.machines_with("backup")}
    if as_json:
        return print_json(found)
    rows = [
        (machine, part["part"], part["success"] or "never", part["failure"] or "", part["reason"])
        for machine, parts in found.items()
        for part in parts
    ]
    print_table(("MACHINE", "PART", "LAST SUCCESS", "FAILED SINCE", "WHY"), rows)


def _parts(machine: Machine) -> list[dict[str, object]]:
    try:
        printed = "\n".join(machine.run(f"cat {BACKUP_STATE}/*/*.json 2>/dev/null || true"))
    finally:
        machine.close()
    decoder, found, rest = json.JSONDecoder(), [], printed.strip()
    while rest:
        part, end = decoder.raw_decode(rest)
        found.append(part)
        rest = rest[end:].strip()
    return found


@backup.command()
@click.pass_obj
def now(deployment: Deployment) -> None:
    """Back up everything now, and wait for it."""
    for machine in deployment.machines_with("backup"):
        try:
            parts = ["database", "files"] if machine.settings.here("postgres") else ["files"]
            for part in parts:
                # What has changed counts, however short ago the last one was.
                machine.run(f"rm -f {BACKUP_STATE}/files/stamp")
                unit = f"matrix-metal-backup-{part}.service"
                why = f"journalctl -u {unit} -n 1 --no-pager -o cat >&2; exit 1"
                machine.run(f"systemctl start {unit} 2>/dev/null || {{ {why}; }}")
                click.echo(f"{machine.name}: {part} backed up.")
        finally:
            machine.close()


@backup.command()
@click.pass_obj
def key(deployment: Deployment) -> None:
    """Print the public key with which the backup logs in to another machine, for its authorized_keys."""
    vault = deployment.machines_with("backup")[0].settings.vault
    found = vault.get("backup_ssh_key")
    vault.save()
    click.echo(public_key(found))


# --- restore --------------------------------------------------------------------------------------


class Moment(click.ParamType[float]):
    """A moment in the past, in UTC unless it says otherwise."""

    name = "time"

    def convert(self, value: str, param: click.Parameter | None, context: click.Context | None) -> float:
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            self.fail(
                f"{value!r} is no time such as '2027-01-31 17:05' (UTC) or 2027-01-31T17:05:00+01:00", param, context
            )
        moment = (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
        if moment > time.time():
            self.fail(f"{value!r} is in the future", param, context)
        return moment


@click.command()
@click.option(
    "--to", type=Moment(), metavar="TIME", help="As it was then: '2027-01-31 17:05', in UTC. Without: the newest."
)
@click.option("--from", "source", metavar="TARGET", help="Another target than backup_target.")
@click.option(
    "--machine", "named", metavar="NAME", help="What the machine was called in the inventory when it was backed up."
)
@click.option("--overwrite", is_flag=True, help="Even if the machine has data, which is lost.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def restore(
    deployment: Deployment, to: float | None, source: str | None, named: str | None, overwrite: bool, yes: bool
) -> None:
    """Put everything back from the backup, on an empty machine.

    The inventory, the vault and the target are enough. Everything is installed, the data are put back, the services are started
    and verified. If it is interrupted, run it again.
    """
    begin = time.monotonic()
    if source:
        _check_target(source)
    machines = deployment.machines_with("backup")
    if named and len(machines) > 1:
        raise Refused("--machine is for a deployment with one machine; others keep their names in the inventory")
    with_data = [f"{machine.name} ({where})" for machine in machines if (where := _data_of(machine))]
    if with_data and not overwrite:
        raise Refused(f"there is data on {', '.join(with_data)}; --overwrite replaces it, and it is lost")
    names = ", ".join(machine.name for machine in machines)
    when = f"as it was at {datetime.fromtimestamp(to, UTC):%Y-%m-%d %H:%M:%S} UTC" if to else "the newest state"
    lost = f" The data on {', '.join(with_data)} is lost." if with_data else ""
    confirm(f"Restore {when} to {names}.{lost} Go on?", yes)
    for machine in machines:
        _stop(machine)
    _pyinfra(deployment, "restore.py", Restore(to, source, named), "the preparation failed, see above")
    for machine in machines:
        try:
            click.echo(f"{machine.name}: {_put_back(machine)}.")
        finally:
            machine.close()
    _pyinfra(
        deployment,
        "deploy.py",
        None,
        "the data is back; the deploy failed, see above: when that is fixed, run it again",
    )
    for machine in machines:
        try:
            machine.run(f"rm -rf {RESTORE_HOME}")
        finally:
            machine.close()
    click.echo("Verifying.")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/host", "--inventory", deployment.path],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
    )
    click.echo(f"Restored in {(time.monotonic() - begin) / 60:.1f} minutes.")
    if done.returncode:
        raise Refused("everything was restored and runs, but the verification finds something wrong, see above")


def _check_target(target: str) -> None:
    try:
        Target.parse(target)
    except ValueError as error:
        raise Refused(
            f"{target!r} is no target{f': {error}' if str(error) else ''}; it must be /path, sftp://user@host:22/path "
            "or s3://endpoint/bucket/path"
        ) from None


def _data_of(machine: Machine) -> str:
    """Where the machine has data already; "" while a restore of it has not ended."""
    played = machine.settings.played
    state = [path for role in played for path in role.state if not role.in_database]
    try:
        found = machine.run(
            f"[ ! -e {RESTORE_HOME} ] || exit 0\n"
            f'for path in {quoted(*state)}; do [ -z "$(ls -A "$path" 2>/dev/null)" ] || echo "$path"; done\n'
            # Besides the three databases that every cluster has.
            "for path in /var/lib/postgresql/*/main/base; do "
            'if [ "$(ls "$path" 2>/dev/null | grep -v pgsql_tmp | wc -l)" -gt 3 ]; then echo "$path"; fi; done'
        )
        return ", ".join(found)
    finally:
        machine.close()


def _stop(machine: Machine) -> None:
    """Nothing of the deployment runs, nor a restore that was interrupted."""
    played = machine.settings.played
    units = [any_version(unit.name) for role in played for unit in role.units]
    timers = [name for role in played for timer in role.timers for name in (timer.timer, timer.service)]
    # The last first: it needs the others.
    machine.run(f"systemctl stop {RESTORE_UNIT}.service {quoted(*timers, *units[::-1])} 2>/dev/null || true")
    machine.run(f"rm -f {RESTORE_HOME}/done")
    machine.close()


def _put_back(machine: Machine) -> str:
    """Start the restore on the machine, and show how far it is. Returns what was restored. Raises Refused."""
    progress = "/run/matrix-metal/restore.json"
    machine.run(
        f"rm -f {progress}; systemctl reset-failed {RESTORE_UNIT} 2>/dev/null || true; "
        f"systemd-run --quiet --unit={RESTORE_UNIT} {PROGRAM} restore"
    )
    return follow(machine, RESTORE_UNIT, progress)


def follow(machine: Machine, unit: str, file: str) -> str:
    """Show how far a unit is that writes its progress into a file, as JSON. Returns what it says at its end. Raises Refused."""
    shown, at_terminal = "", sys.stderr.isatty()
    while True:
        active, *printed = machine.run(f"systemctl is-active {unit} || true; cat {file} 2>/dev/null || true")
        progress = json.loads("".join(printed) or '{"state": "running", "text": "starting"}')
        text = str(progress["text"])
        if progress["state"] == "done":
            return text
        if progress["state"] == "failed":
            raise Refused(f"{machine.name}: {text}; when that is fixed, run the same command again")
        if active not in ("active", "activating"):
            raise Refused(f"{machine.name}: it has ended before it was done: journalctl -u {unit} there")
        if text != shown:
            line = f"{machine.name}: {text}"
            click.echo(f"\r\x1b[K{line}" if at_terminal else line, err=True, nl=not at_terminal)
            shown = text
        time.sleep(1)


def _pyinfra(deployment: Deployment, file: str, restore: Restore | None, problem: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != RESTORE_VARIABLE}
    if restore:
        environment[RESTORE_VARIABLE] = json.dumps(dataclasses.asdict(restore))
    command: Sequence[str] = [PYINFRA, str(deployment.path), file, "-y"]
    if subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL).returncode:
        raise Refused(problem)
