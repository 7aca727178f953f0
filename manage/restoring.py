"""The steps of a restore, which `manage.py NAME restore` takes on the deployment's machines, and a rehearsal on a spare one."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from compat import Refused
from manage.machines import ROOT, Deployment, Machine
from manage.outside import homeserver_runs
from operations.machine import RESTORE_HOME
from operations.shell import quoted
from roles import SYNAPSE, any_version
from settings.backup import RESTORE_PROGRAM, SPOOL, Choices, Target, folder_of
from settings.deployment import RESTORE_VARIABLE, Restore

PYINFRA = str(Path(sys.executable).parent / "pyinfra")
RESTORE_UNIT = "matrix-metal-restore"
# Sends what PostgreSQL has left for the backup, and how long that may take while nothing runs.
SEND = "matrix-metal-backup-wal.service"
SEND_SECONDS = 150


class Untouched(Refused):
    """The machine has the data that it had."""


def check_target(target: str) -> None:
    try:
        Target.parse(target)
    except ValueError as error:
        raise Refused(
            f"{target!r} is no target{f': {error}' if str(error) else ''}; it must be /path, sftp://user@host:22/path "
            "or s3://endpoint/bucket/path"
        ) from None


def check_disk(machine: Machine, restore: Restore) -> None:
    """Raises Refused if the disk with the backup is not there: before anything is stopped, and minutes of installing."""
    target = Target.parse(restore.source or machine.settings.section(Choices).backup_target or "")
    if target.kind != "directory":
        return
    place = f"{target.path}/{folder_of(restore.machine or machine.name)}"
    try:
        if machine.run(f"[ -d {quoted(place)} ] || echo missing"):
            raise Refused(f"{machine.name}: {place} is not there: mount the disk with the backup. Nothing was touched")
    finally:
        machine.close()


def check_original(machine: Machine) -> None:
    """Raises Refused if the homeserver that was backed up still runs, and the restored one would be its double."""
    settings = machine.settings
    name = settings.domain(SYNAPSE)
    if not settings.here("synapse") or not homeserver_runs(name):
        return
    try:
        if machine.run(f"[ -e {RESTORE_HOME} ] || echo new"):
            raise Refused(
                f"{machine.name}: a homeserver runs at https://{name}, and the restored one would be a second with its key and "
                "its rooms, which spoils both: stop that one (systemctl disable --now matrix-synapse), or let the name lead "
                "here. Nothing was touched"
            )
    finally:
        machine.close()


def data_of(machine: Machine) -> str:
    """Where the machine has data already; "" while a restore of it has not ended."""
    played = machine.settings.played
    state = [path for role in played for path in role.state if not role.in_database]
    try:
        found = machine.run(
            f"[ ! -e {RESTORE_HOME} ] || exit 0\n"
            # A package that makes a user's home puts a few files there.
            "ours=$(ls -A /etc/skel)\n"
            f'for path in {quoted(*state)}; do if ls -A "$path" 2>/dev/null | grep -qvxF "$ours"; then echo "$path"; fi; done\n'
            # Besides the three databases that every cluster has.
            "for path in /var/lib/postgresql/*/main/base; do "
            'if [ "$(ls "$path" 2>/dev/null | grep -v pgsql_tmp | wc -l)" -gt 3 ]; then echo "$path"; fi; done'
        )
        return ", ".join(found)
    finally:
        machine.close()


def stop(machine: Machine) -> None:
    """Nothing of the deployment runs, nor a restore that was interrupted."""
    played = machine.settings.played
    units = [any_version(unit.name) for role in played for unit in role.units]
    timers = [name for role in played for timer in role.timers for name in (timer.timer, timer.service)]
    # The last first: it needs the others.
    names = quoted(*timers, *units[::-1])
    machine.run(f"systemctl stop {RESTORE_UNIT}.service {names} 2>/dev/null || true")
    # What failed with the data that are lost, or because it was stopped, says nothing about those that are put back.
    machine.run(f"systemctl reset-failed {names} 2>/dev/null || true")
    machine.run(f"rm -f {RESTORE_HOME}/done")
    machine.close()


def send_last_changes(machine: Machine) -> None:
    """Send what PostgreSQL has written last: whoever goes back too far can go forward again to this very moment.

    Says so if the target does not take all of it, which a restore deletes.
    """
    if not machine.settings.here("postgres"):
        return
    click.echo(f"{machine.name}: sending the last changes of the database", err=True)
    try:
        left = machine.run(
            f"timeout {SEND_SECONDS} systemctl start {SEND} 2>/dev/null || systemctl stop {SEND} 2>/dev/null || true; "
            f"systemctl reset-failed {SEND} 2>/dev/null || true; ls -A {SPOOL} 2>/dev/null || true"
        )
    finally:
        machine.close()
    if left:
        click.echo(
            f"{machine.name}: not all of them are at the target (journalctl -u {SEND} there says why); "
            "what is not is lost with the data",
            err=True,
        )


def put_back(machine: Machine) -> str:
    """Start the restore on the machine, and show how far it is. Returns what was restored. Raises Refused."""
    progress = "/run/matrix-metal/restore.json"
    machine.run(
        f"rm -f {progress}; systemctl reset-failed {RESTORE_UNIT} 2>/dev/null || true; "
        f"systemd-run --quiet --collect --unit={RESTORE_UNIT} {RESTORE_PROGRAM}"
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
        if progress["state"] == "failed" and not progress.get("touched", True):
            raise Untouched(f"{machine.name}: {text}. Nothing was replaced")
        if progress["state"] == "failed":
            raise Refused(f"{machine.name}: {text}; when that is fixed, run the same command again")
        if active not in ("active", "activating"):
            raise Refused(
                f"{machine.name}: it has ended before it was done (journalctl -u {unit} there says why); "
                "run the same command again"
            )
        if text != shown:
            line = f"{machine.name}: {text}"
            click.echo(f"\r\x1b[K{line}" if at_terminal else line, err=True, nl=not at_terminal)
            shown = text
        time.sleep(1)


def pyinfra(deployment: Deployment, file: str, restore: Restore | None, problem: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != RESTORE_VARIABLE}
    if restore:
        environment[RESTORE_VARIABLE] = json.dumps(dataclasses.asdict(restore))
    command: Sequence[str] = [PYINFRA, str(deployment.path), file, "-y"]
    if subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL).returncode:
        raise Refused(problem)
