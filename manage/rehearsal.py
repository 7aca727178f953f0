"""`manage.py NAME restore --rehearse --on INVENTORY`: a restore to a spare machine, which is as before in the end.

Nothing of the homeserver runs there: neither Synapse nor anything else that people or other servers could reach is installed, and
PostgreSQL answers on its Unix socket only. So the rehearsal cannot act as the homeserver. From the target it only reads.
"""

import dataclasses
import json
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import click

from compat import Refused, read_inventory
from manage.machines import Deployment, Machine, inventory_path
from manage.reach import check_reach, shown
from manage.restoring import check_disk, put_back, pyinfra, stop
from operations.machine import REHEARSAL_NOTE, RESTORE_HOME, MachineState
from operations.machine import Machine as LookedAt
from operations.shell import quoted, shell_file
from roles import ASK_POSTGRES, BACKUP, POSTGRES, ROLES, Role, any_version
from settings.deployment import Restore
from settings.postgres import OF_DEBIAN, version_on

# What is counted there and on the homeserver: name -> database, table, and when a row was made, in seconds since the epoch.
COUNTED = {
    "events": ("synapse", "events", "received_ts / 1000"),
    "accounts": ("synapse", "users", "creation_ts"),
    "media": ("synapse", "local_media_repository", "created_ts / 1000"),
    "accounts of MAS": ("mas", "users", "extract(epoch FROM created_at)"),
}
# When the newest account or event was made; 0: there are none.
NEWEST = (
    "SELECT coalesce(greatest((SELECT max(received_ts) / 1000 FROM events), (SELECT max(creation_ts) FROM users)), 0)"
)
# Seconds before the newest of those: what was written later may have been on its way.
SETTLED = 60
# Files that are compared byte for byte.
SAMPLE = 50
KEY, MEDIA = "/var/lib/matrix-synapse/signing.key", "/var/lib/matrix-synapse/media/local_content"
# Local media, as the database knows them: file and size. Those of previews are not backed up.
KNOWN_MEDIA = (
    "SELECT substr(media_id, 1, 2) || '/' || substr(media_id, 3, 2) || '/' || substr(media_id, 5) || ' ' || media_length "
    "FROM local_media_repository WHERE url_cache IS NULL AND media_length IS NOT NULL AND created_ts / 1000 <= {moment:.0f}"
)


def rehearse(deployment: Deployment, spare: str | None, restore: Restore) -> None:
    """Restore to the spare machine, check what is there, and take it down. Raises Refused if anything is wrong."""
    begin = time.monotonic()
    sources = deployment.machines_with("backup")
    if len(sources) > 1:
        raise Refused(
            f"{deployment.path.name} has {len(sources)} machines with the role backup, and a rehearsal is for one: "
            "docs/BACKUP.md says how several are rehearsed"
        )
    source = sources[0]
    if not spare:
        raise Refused(
            'a rehearsal needs a spare machine: write inventories/spare.py with the line spare = [("spare.example.org", {})], '
            "and give --on spare"
        )
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rehearsal-")))
        there = _deployment(deployment, source, spare, directory)
        machine = there.machines_with("backup")[0]
        stack.callback(source.close)
        stack.callback(machine.close)
        homeserver = _homeserver(source, machine)
        wanted = dataclasses.replace(restore, machine=restore.machine or source.name)
        # While a rehearsal has not ended, what it has left is taken down in any case.
        if not machine.run(f"[ ! -e {REHEARSAL_NOTE} ] || echo begun"):
            check_disk(machine, wanted)
            # Of another backup, only that one can say it.
            if homeserver and not restore.source and not restore.machine:
                check_versions(homeserver.ask(LookedAt), machine.name, machine.ask(LookedAt).release)
                check_reach(homeserver, restore.to)
        try:
            _spare(machine, source, "begin")
            stop(machine)
            pyinfra(there, "restore.py", wanted, "the preparation failed, see above")
            prepared = time.monotonic()
            click.echo(f"{machine.name}: {put_back(machine)}.")
            restored = time.monotonic()
            wrong = list(_wrong(machine, homeserver))
            checked = time.monotonic()
        finally:
            click.echo(f"Taking everything down on {machine.name}.")
            _spare(machine, source, "end")
    click.echo(
        f"Rehearsed in {(time.monotonic() - begin) / 60:.1f} minutes: {prepared - begin:.0f} s to install, "
        f"{restored - prepared:.0f} s to put the data back, {checked - restored:.0f} s to check it."
    )
    if wrong:
        raise Refused(f"the restore is not what it should be: {'; '.join(wrong)}")
    click.echo("Nothing is wrong.")


def _deployment(deployment: Deployment, source: Machine, spare: str, directory: Path) -> Deployment:
    """The homeserver's roles that have data, on the spare machine instead."""
    path = inventory_path(spare)
    machines = read_inventory(path)
    if len(machines) != 1:
        raise Refused(f"{path.name} has {len(machines)} machines; a rehearsal needs one")
    [name] = machines.hosts
    own = {source.name, source.host.data.get("ssh_hostname") or source.name}
    if own & {name, machines.host_data[name].get("ssh_hostname") or name}:
        raise Refused(f"{name} is the homeserver; a rehearsal needs another machine")
    roles = [role.name for role in ROLES.values() if source.settings.here(role.name) and _has_data(role)]
    lines = [f"_machine = ({name!r}, {dict(machines.host_data[name])!r})", *(f"{role} = [_machine]" for role in roles)]
    inventory = directory / deployment.path.name
    inventory.write_text("\n".join([*lines, ""]))
    # Settings and vault are those of the homeserver: they go by the inventory's name.
    if (data := deployment.path.parent / "group_data").is_dir():
        (directory / "group_data").symlink_to(data)
    return Deployment(str(inventory))


def _has_data(role: Role) -> bool:
    """Whether it is needed there. Certificates are no use without the names, and can be had again."""
    return role is BACKUP or role is POSTGRES or bool(role.database or role.sqlite)


def _spare(machine: Machine, source: Machine, command: str) -> None:
    """Run a command of rehearsal.sh there. Raises Refused."""
    played, backed_up = machine.settings.played, source.settings.played
    own = [Path(any_version(path)) for role in backed_up for unit in role.units for path in unit.own]
    paths = [
        *(path for role in backed_up for path in role.state),
        # Such as /etc/matrix-synapse for its conf.d.
        *(str(Path(*path.parts[:3])) for path in own),
        *BACKUP.files,
        "/etc/matrix-metal",
        "/var/lib/matrix-metal",
        *(role.users_file for role in played if role.users_file),
        "/etc/postgresql-common/createcluster.d/matrix-metal.conf",
        "/etc/systemd/system/postgresql@*-main.service.d",
    ]
    masked = [any_version(unit.name) for role in played for unit in role.units if unit.masked]
    given = f"paths={quoted(' '.join(dict.fromkeys(paths)))} masked={quoted(' '.join(masked))} note={REHEARSAL_NOTE}"
    machine.run(f"{given}\n{shell_file('rehearsal')}\n{command}")


# --- checks -------------------------------------------------------------------------------------------


def _homeserver(source: Machine, spare: Machine) -> Machine | None:
    """The homeserver to compare with; None if it cannot be reached. Raises Refused if the spare machine is the same."""
    try:
        identity = source.run("cat /etc/machine-id")
    except Refused as error:
        click.echo(f"{error}: nothing can be compared with what it has.")
        return None
    if spare.run("cat /etc/machine-id") == identity:
        raise Refused(f"{spare.name} is {source.name} itself; a rehearsal needs another machine")
    return source


def check_versions(homeserver: MachineState, name: str, release: str) -> None:
    """Raises Refused if the spare machine, of that name and release, would get an older PostgreSQL than the homeserver has."""
    theirs, own = version_on(homeserver), OF_DEBIAN.get(release, "")
    if own and int(own) < int(theirs):
        raise Refused(
            f"{name} has Debian {release} with PostgreSQL {own}, which cannot read what PostgreSQL {theirs} of the "
            "homeserver has backed up: take a spare machine with a newer Debian. Nothing was touched"
        )


def _wrong(machine: Machine, homeserver: Machine | None) -> Iterator[str]:
    """What is wrong with the restored data, a sentence each."""
    files = float(json.loads("".join(machine.run(f"cat {RESTORE_HOME}/done")))["files"])
    machine.run(
        "cd /etc/postgresql && for version in *; do "
        'pg_ctlcluster --skip-systemctl-redirect "$version" main start </dev/null >/dev/null 2>&1; done'
    )
    databases = [role.database.name for role in machine.settings.played if role.database]
    for database in databases:
        begin = time.monotonic()
        # Reads every row, and its checksum.
        machine.run(f"{ASK_POSTGRES} pg_dump -Fc -Z0 {database} >/dev/null")
        click.echo(f"  the database {database} can be read: {time.monotonic() - begin:.1f} s")
    newest = float(_ask(machine, "synapse", NEWEST))
    # A homeserver that nobody has used yet has none either.
    if not newest and (homeserver is None or float(_ask(homeserver, "synapse", NEWEST))):
        yield "the database has no accounts and no events"
    until = f"{shown(max(0, newest - SETTLED))} UTC"
    for what, (database, table, made) in COUNTED.items():
        if database not in databases:
            continue
        statement = f"SELECT count(*) FROM {table} WHERE {made} <= {newest - SETTLED:.0f}"  # noqa: S608 - no input
        found, expected = int(_ask(machine, database, statement)), None
        if homeserver:
            expected = int(_ask(homeserver, database, statement))
            if found < expected:
                yield f"{found} {what} of until {until} were restored, and the homeserver has {expected}"
        compared = "" if expected is None else f"; the homeserver has {expected}"
        click.echo(f"  {what} until {until}: {found}{compared}")
    yield from _wrong_media(machine, homeserver, files)
    for path in (path for role in machine.settings.played for path in role.sqlite):
        code = f"import sqlite3; print(sqlite3.connect({path!r}).execute('PRAGMA integrity_check').fetchone()[0])"
        if (said := "".join(machine.run(f"python3 -Ic {quoted(code)}"))) != "ok":
            yield f"{path} is damaged: {said}"
        click.echo(f"  {path}: whole")
    [key] = machine.run(f"sha256sum <{KEY}")
    if machine.run(f"grep -cE '^ed25519 \\S+ [A-Za-z0-9+/]{{43}}' {KEY} || true") == ["0"]:
        yield f"{KEY} is no signing key"
    if homeserver and homeserver.run(f"sha256sum <{KEY}") != [key]:
        yield "the signing key is another than the homeserver has"
    click.echo(f"  the signing key: {'the same as the homeserver has' if homeserver else 'there'}")


def _wrong_media(machine: Machine, homeserver: Machine | None, moment: float) -> Iterator[str]:
    """moment: when the files were backed up."""
    [number, *missing] = machine.run(
        "work=$(mktemp -d); trap 'rm -rf \"$work\"' EXIT; "
        f"{{ [ ! -e {MEDIA} ] || find {MEDIA} -type f -printf '%P %s\\n'; }} | sort >\"$work/there\"; "
        f'{ASK_POSTGRES} psql -XAtqd synapse -c {quoted(KNOWN_MEDIA.format(moment=moment))} | sort >"$work/known"; '
        'wc -l <"$work/known"; comm -13 "$work/there" "$work/known" | head -n 1000'
    )
    if missing:
        yield f"{len(missing)} of {number} media are missing or have another size, such as {missing[0].split()[0]}"
    click.echo(f"  media that the database knows: {number}, of which {len(missing)} have no file of their size")
    if not homeserver:
        return
    sample = homeserver.run(
        f"cd {MEDIA} 2>/dev/null || exit 0; find . -type f ! -newermt @{moment - SETTLED:.0f} | shuf -n {SAMPLE} | "
        "xargs -r -d '\\n' sha256sum"
    )
    different = machine.run(
        f"cd {MEDIA} 2>/dev/null; sha256sum --check --quiet 2>/dev/null || true",
        stdin="".join(f"{each}\n" for each in sample),
    )
    if different:
        name = re.sub(r": FAILED.*", "", different[0])
        yield f"{len(different)} of {len(sample)} media are not what the homeserver has, such as {name}"
    click.echo(f"  media compared with the homeserver's, byte for byte: {len(sample)}")


def _ask(machine: Machine, database: str, statement: str) -> str:
    """One value from a database."""
    return "".join(machine.run(f"{ASK_POSTGRES} psql -XAtqd {database} -c {quoted(statement)}"))
