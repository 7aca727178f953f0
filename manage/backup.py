"""`manage.py NAME backup ...` and `manage.py NAME restore`."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NoReturn

import click

from compat import Refused
from manage.machines import ROOT, Deployment, Machine
from manage.output import as_json, confirm, print_json, print_table, unasked
from manage.reach import at, check_reach, line_of, reach_of
from manage.rehearsal import rehearse
from manage.restoring import (
    Untouched,
    check_disk,
    check_original,
    check_target,
    data_of,
    put_back,
    pyinfra,
    send_last_changes,
    stop,
)
from operations.machine import BACKUP_STATE, RESTORE_HOME
from settings.backup import public_key
from settings.deployment import Restore


@click.group()
def backup() -> None:
    """The backup: how it is, a backup now, the key for another machine."""


@backup.command()
@as_json
@click.pass_obj
def show(deployment: Deployment, as_json: bool) -> None:
    """Show when each part of the backup last succeeded, or why it failed, and how far back `restore --to` reaches."""
    found, reaches = {}, {}
    for machine in deployment.machines_with("backup"):
        found[machine.name], reaches[machine.name] = _shown(machine)
    if as_json:
        return print_json(found)
    rows = [
        (machine, part["part"], part["success"] or "never", part["failure"] or "", part["reason"])
        for machine, parts in found.items()
        for part in parts
    ]
    print_table(("MACHINE", "PART", "LAST SUCCESS", "FAILED SINCE", "WHY"), rows)
    for name, line in reaches.items():
        click.echo(f"{name}: {line}.")


def _shown(machine: Machine) -> tuple[list[dict[str, object]], str]:
    """What the jobs on a machine say, and how far back a restore reaches."""
    parts, with_database = _parts(machine), machine.settings.here("postgres")
    try:
        reach = reach_of(machine) if with_database else None
    except Refused as error:
        return parts, str(error).removeprefix(f"{machine.name}: ")
    finally:
        machine.close()
    for part in parts:
        if part["part"] == "database":
            part["restore_from"] = at(reach.exact) if reach and reach.exact else None
    return parts, line_of(reach, parts, with_database)


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
                unit = f"matrix-metal-backup-{part}.service"
                # One that runs already has begun before what is wanted was written. It is waited for.
                wait = f"[ $(systemctl is-active {unit}) != activating ] || systemctl start {unit} 2>/dev/null || true"
                # What has changed counts, however short ago the last one was.
                due = f"rm -f {BACKUP_STATE}/files/stamp"
                if machine.run(f"{wait}; {due}; systemctl start {unit} 2>/dev/null || echo failed"):
                    # The last line of the journal is often systemd's, which says only that it has failed.
                    reasons = [each["reason"] for each in _parts(machine) if each["part"] == part and each["failure"]]
                    last = f"journalctl -u {unit} -n 1 --no-pager -o cat"
                    why = reasons[0] if reasons else "".join(machine.run(last))
                    raise Refused(f"{machine.name}: {part} not backed up: {why}")
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
@click.option("--rehearse", "rehearsing", is_flag=True, help="On a spare machine, which is as before in the end.")
@click.option(
    "--on", "spare", metavar="INVENTORY", help="That of the spare machine, for --rehearse: `spare`, or a path."
)
@unasked
@click.pass_obj
def restore(
    deployment: Deployment,
    to: float | None,
    source: str | None,
    named: str | None,
    overwrite: bool,
    rehearsing: bool,
    spare: str | None,
    yes: bool,
) -> None:
    """Put everything back from the backup, on an empty machine.

    The inventory, the vault and the target are enough. Everything is installed, the data are put back, the services are started
    and verified. If it is interrupted, run it again.

    With --rehearse, only the data are put back, on a spare machine. They are checked there, and removed again.
    """
    begin = time.monotonic()
    if source:
        check_target(source)
    if rehearsing:
        if overwrite:
            raise click.UsageError("--overwrite is not for --rehearse: a spare machine is empty")
        return rehearse(deployment, spare, Restore(to, source, named, rehearsal=True))
    if spare:
        raise click.UsageError("--on is for --rehearse")
    machines = deployment.machines_with("backup")
    if named and len(machines) > 1:
        raise Refused("--machine is for a deployment with one machine; others keep their names in the inventory")
    wanted = Restore(to, source, named)
    with_data = {machine.name: where for machine in machines if (where := data_of(machine))}
    data = ", ".join(f"{name} ({where})" for name, where in with_data.items())
    if with_data and not overwrite:
        raise Refused(f"there is data on {data}; --overwrite replaces it, and it is lost")
    for machine in machines:
        check_disk(machine, wanted)
        if not source and not named:
            check_reach(machine, to)
        if not with_data:
            check_original(machine)
    names = ", ".join(machine.name for machine in machines)
    when = f"as it was at {datetime.fromtimestamp(to, UTC):%Y-%m-%d %H:%M:%S} UTC" if to else "the newest state"
    lost = f" The data on {data} is lost." if with_data else ""
    confirm(f"Restore {when} to {names}.{lost} Go on?", yes)
    for machine in machines:
        stop(machine)
        if machine.name in with_data:
            send_last_changes(machine)
    pyinfra(deployment, "restore.py", wanted, "the preparation failed, see above")
    for machine in machines:
        try:
            click.echo(f"{machine.name}: {put_back(machine)}.")
        except Untouched as error:
            # Others may have been restored already, or have nothing that could go on.
            if machine is not machines[0] or len(with_data) < len(machines):
                raise
            _go_on(deployment, machines, error)
        finally:
            machine.close()
    pyinfra(
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


def _go_on(deployment: Deployment, machines: Sequence[Machine], error: Untouched) -> NoReturn:
    """Start again what was stopped for a restore that has replaced nothing."""
    for machine in machines:
        try:
            machine.run(f"rm -rf {RESTORE_HOME}")
        finally:
            machine.close()
    pyinfra(
        deployment, "deploy.py", None, f"{error}, but the deploy that was to start everything again failed, see above"
    )
    raise Refused(f"{error}, and the homeserver goes on")
