"""Whether a machine can be deployed to. Everything here is checked before any machine is touched."""

import contextlib
import hashlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import gevent
from pyinfra.api.exceptions import ConnectError
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory
from pyinfra.context import inventory

from compat import add_final_line, executes, installed
from operations.certificates import Unusable
from operations.databases import Accounts, Tables
from operations.filters import FIREWALL
from operations.lock import at_work
from operations.machine import BACKUP_HOME, KEY_NOTE, MARKER, SIGNING_KEY, MachineState
from operations.refusal import Refused
from operations.virtualenvs import Virtualenv
from releases import Release, ReleaseError, store
from roles import PEOPLE, ROLES, Role
from settings import SettingError, Settings, chosen_for, settings_anew, settings_of
from settings.addresses import public_addresses
from settings.backup import Choices as Backups
from settings.backup import folder_of
from settings.caddy import given_files
from settings.coturn import Choices as Relay
from settings.deployment import PYTHON_OF_DEBIAN, ROOT
from settings.firewall import OWN_RULES, Firewall
from settings.postgres import OF_DEBIAN, Postgres
from settings.synapse import Synapse
from vault import Vault, VaultError

# A first deploy needs space for packages, virtualenvs and data; a later one for one more virtualenv.
FIRST_DISK, LATER_DISK, MEMORY = 3072, 512, 900  # MiB
INVENTORIES = ROOT / "inventories"
# Seconds that a run waits for security updates.
UPDATES_PATIENCE = 60 * 60


def check_choices(machines: Inventory) -> None:
    """Check the inventory and the group data of every machine. Raises Refused."""
    try:
        for host in machines:
            settings = chosen_for(host, MachineState())
            if host.name == "@local":
                _rename_local_vault(settings)
    except SettingError as error:
        raise Refused(f"{error}{_left_behind(machines)}") from None


def _left_behind(machines: Inventory) -> str:
    """A hint if there is no group data of this name, and other group data has a vault and no inventory: that was renamed."""
    [*_, name] = ["", *(each for each in machines.groups if each not in (*ROLES, "all") and not each.startswith("@"))]
    places = INVENTORIES, INVENTORIES.parent / "group_data"
    if not (places[0] / f"{name}.py").exists() or (places[1] / f"{name}.py").exists():
        return ""
    for old in sorted(path.stem for path in places[0].glob("*.vault")):
        if not (places[0] / f"{old}.py").exists() and (places[1] / f"{old}.py").exists():
            return f". If it was called {old} before: {_moves(name, old)}"
    return ""


def _rename_local_vault(settings: Settings) -> None:
    """Version 0.1.0 took @local for the deployment's name: rename its vault, key and record after the inventory."""
    old, new = settings.inventories / "@local.vault", settings.vault_path
    if settings.choices.vault or new.exists() or not old.exists():
        return
    # The vault last, so that the next run continues if this one is interrupted.
    for suffix in (".lock", ".key", ".vault"):
        if old.with_suffix(suffix).exists() and not new.with_suffix(suffix).exists():
            old.with_suffix(suffix).rename(new.with_suffix(suffix))


def checked_settings(host: Host) -> Settings:
    """The settings of the machine, after they and the machine were checked. Raises Refused."""
    if not installed():
        raise Refused("config.py was not read: run pyinfra in the directory where it lies, and without --config")
    try:
        settings = _after_updates(host, settings_of(host))
        mistakes = list(_unsuitable(settings.machine))
        if not mistakes and settings.machine.other_run and executes():
            # What that run has half done would be reported as mistakes of this one.
            mistakes = [at_work(settings.machine.other_run)]
        mistakes = mistakes or _another_synapse(settings) or list(_ports_in_use(settings))
        if not mistakes:
            # This also finds missing secrets, and a vault that cannot be opened.
            list(settings.views)
            mistakes = (
                list(_of_another_deployment(settings))
                or _half_restored(settings)
                or _upgrade_begun(settings)
                or _failed_before(settings)
                or _backed_up_under_another_name(settings)
                or _newer_data(settings)
                or _unreached_by_calls(settings)
                or _locked_out(settings)
                or _database_left_behind(settings)
                or _lost_encryption(settings)
                or _lost_secrets(settings)
                or _lost_signing_key(settings)
                or _accounts_left_behind(settings)
                or _unusable_certificates(host, settings)
            )
    except (SettingError, VaultError) as error:
        raise Refused(str(error)) from None
    except ConnectError:
        # Only with --limit or --exclude: otherwise all machines are connected to before.
        raise Refused(
            f"{host.name} cannot be deployed without another machine, which cannot be reached, see above"
        ) from None
    if mistakes:
        raise Refused("\n".join(f"{host.name}: {mistake}" for mistake in mistakes))
    _say_what_is_upgraded(host, settings)
    if not settings.restore:
        _say_what_is_not_backed_up(host, settings)
    # When accounts are given back, the run itself takes MAS away.
    for role, units in settings.left_over if settings.migration != "back" else ():
        if role is not settings.leaving:
            add_final_line(f"{host.name} {left_over(settings, role, units)}")
    if (
        settings.here("postgres")
        and (version := settings.view(Postgres).version) != OF_DEBIAN[settings.machine.release]
    ):
        add_final_line(
            f"{host.name} has the data in PostgreSQL {version}, for which Debian {settings.machine.release} has no updates: "
            f"python manage.py {settings.deployment} postgres upgrade"
        )
    if settings.here("firewall") and FIREWALL.unit not in settings.machine.units:
        for closed in settings.view(Firewall).closed:
            add_final_line(
                f"{host.name}: the firewall keeps others from {closed}; if they should reach it, put a rule into {OWN_RULES}"
            )
    for line in settings.unreachable:
        add_final_line(f"{host.name}: {line}")
    return settings


def left_over(settings: Settings, role: Role, units: Sequence[str]) -> str:
    """What to do about a role that the machine has and no longer plays."""
    command = (
        f"stop it there: systemctl disable --now {' '.join(units)}"
        if role.stays
        else f"remove it: python manage.py {settings.deployment} remove {role.name}"
    )
    return (
        f"still has {role.title} from an earlier run, though the inventory no longer gives it the role "
        f"{role.name}. If it is not needed any more, {command}"
    )


def _after_updates(host: Host, settings: Settings) -> Settings:
    """The settings once the machine does not install security updates any more, and restarts nothing for them. Raises Refused."""
    if not settings.machine.updating or settings.machine.other_run or not executes():
        return settings
    click.echo(
        f"--> {host.name} is installing security updates (apt-daily-upgrade.service): waiting until they are installed",
        err=True,
    )
    end = time.monotonic() + UPDATES_PATIENCE
    while time.monotonic() < end:
        gevent.sleep(2)
        now = settings_anew(host)
        # Without an answer it is an empty state, for which there is a message.
        if not now.machine.updating or now.machine.other_run:
            return now
    raise Refused(
        f"{host.name} has been installing security updates for an hour: `systemctl status apt-daily-upgrade "
        "matrix-metal-updates` there says what it does; nothing was touched"
    )


def _say_what_is_not_backed_up(host: Host, settings: Settings) -> None:
    if not settings.exists("backup"):
        add_final_line("nothing is backed up: no machine has the role backup, see docs/BACKUP.md")
    elif not settings.here("backup") and (settings.here("postgres") or settings.here("synapse")):
        add_final_line(f"{host.name} is not backed up: it does not have the role backup")


def _say_what_is_upgraded(host: Host, settings: Settings) -> None:
    """A line for each program below /opt of which the machine will get another version: at the end of a run that only plans."""
    for title, program in settings.programs:
        now, wanted = settings.machine.programs.get(_name(program)), _wanted_directory(program)
        if not now or wanted in ("", now.directory, f"{now.version}-"):
            continue
        how = "built anew" if isinstance(program, Virtualenv) else "another file"
        new = program.version if now.version != program.version else f"{now.version}, {how},"
        line = f"{title} {now.version} -> {new} on {host.name}"
        if executes():
            click.echo(f"--> {line}", err=True)
        else:
            add_final_line(line)


def _failed_before(settings: Settings) -> list[str]:
    """A line for each program that would get a version again which was tried and put back."""
    lines = []
    for title, program in settings.programs:
        failure, now = settings.machine.failures.get(_name(program)), settings.machine.programs.get(_name(program))
        if not failure or not now or now.directory == failure.directory:
            continue
        if failure.directory == _wanted_directory(program) and settings.choices.try_again != program.version:
            before = now.version if now.version != program.version else f"The {now.version} of before"
            lines.append(
                f"{title} {program.version} was tried on {failure.when} and did not come up: {failure.why}. {before} "
                f"serves. Repair the cause, then try again with --data try_again={program.version}; or choose another version"
            )
    return lines


def _name(program: Virtualenv | Release) -> str:
    return program.home.rpartition("/")[2]


def _wanted_directory(program: Virtualenv | Release) -> str:
    """The directory of the version that is wanted, or how its name begins; "" if its file cannot be used."""
    if isinstance(program, Virtualenv):
        return program.key
    try:
        return store.wanted_directory(program)
    except ReleaseError:
        return ""  # the task says it


HALF_RESTORED = "a restore has begun here, and has not ended; this goes on with it"


def _half_restored(settings: Settings) -> list[str]:
    """A line if the data of an earlier time is being put back: what runs without it would make data of its own."""
    if settings.machine.restoring != "begun" or settings.restore:
        return []
    return [f"{HALF_RESTORED}: python manage.py {settings.deployment} restore"]


def _upgrade_begun(settings: Settings) -> list[str]:
    """A line if PostgreSQL's data are in two versions, of which only the older is complete."""
    if not settings.here("postgres") or not settings.machine.upgrading:
        return []
    old, new, *_ = settings.machine.upgrading.split()
    return [
        f"the upgrade from PostgreSQL {old} to {new} has begun and is not complete: "
        f"python manage.py {settings.deployment} postgres upgrade"
    ]


def _database_left_behind(settings: Settings) -> list[str]:
    """A line if Synapse would be given a new and empty database instead of the one it has."""
    if not settings.here("synapse") or not (settings.machine.deployment or settings.machine.secrets):
        return []
    server = inventory.get_host(settings.roles["postgres"][0])
    there, database = settings_of(server), settings.view(Synapse).database
    earlier, port = settings.machine.database, settings.machine.database_port
    if earlier == "" or (earlier, port) == (database.host, database.port):
        return []
    tables: int = server.get_fact(
        Tables, cluster=there.view(Postgres).cluster, database=database.name, _sudo=there.machine.user != "root"
    )
    if tables:
        return []
    where = "on this machine" if earlier.startswith("/") else f"at {earlier}"
    if port != database.port:
        where += f", port {port}"
    return [
        f"Synapse has its database {where}, and on {server.name}, where it is to be now (PostgreSQL's cluster "
        f"{there.view(Postgres).cluster}), there is none or an empty one: "
        'move it first (README, "Several machines")'
    ]


def _lost_encryption(settings: Settings) -> list[str]:
    """A line if MAS would get another secret than the one that it has encrypted its data with."""
    name = "mas_encryption_secret"
    if not settings.here("mas"):
        return []
    on_machine, in_vault = dict(settings.machine.secrets).get(name), settings.vault.get(name)
    missing = settings.vault.generated(name)
    replaced = on_machine and on_machine != hashlib.sha256(in_vault.reveal().encode()).hexdigest()
    if not replaced and not (missing and settings.machine.delegated):
        return []
    return [
        f"MAS has encrypted what is in its database with {name}, and {settings.vault_path} "
        f"{'does not have it' if missing else 'has another'}: restore that file from a backup"
        + (", or set the secret to what is in /etc/mas/secrets/encryption there" if on_machine else "")
    ]


def _lost_secrets(settings: Settings) -> list[str]:
    """A line for each secret that must not change, and that this run would replace, as the vault is an older copy."""
    return [
        f"{role.title} has used {entry.name}, and {settings.vault_path} does not have it: restore that file from a backup. "
        f"With a new one: {entry.keep}"
        for role in ROLES.values()
        for entry in role.secrets
        if entry.name in settings.machine.kept and settings.vault.generated(entry.name)
    ]


def _lost_signing_key(settings: Settings) -> list[str]:
    """A line if Synapse would be another homeserver to others: they refuse what a key has signed that they do not know."""
    state = settings.machine.signing_key
    if (
        state not in ("gone", "another")
        or not settings.here("synapse")
        or settings.machine.restoring
        or settings.restore
    ):
        return []
    found = "is gone" if state == "gone" else "is another than it was"
    return [
        f"Synapse's signing key, {SIGNING_KEY}, {found}: put it back, from a backup perhaps (docs/BACKUP.md). With a new one, "
        f"other homeservers may refuse what this one sends for days. If that has to be: rm {KEY_NOTE}"
    ]


def _accounts_left_behind(settings: Settings) -> list[str]:
    """A line if accounts would be lost by giving Synapse's to MAS, or MAS's to Synapse."""
    wanted, delegated = settings.exists("mas"), settings.machine.delegated
    known = settings.machine.deployment or settings.machine.secrets
    if settings.migration == "back" and settings.here("synapse") and not settings.machine.migrating:
        return ["no accounts are being moved, so there is nothing to put back"]
    if settings.migration == "move" and settings.here("synapse") and (not wanted or delegated):
        where = f"inventories/{settings.deployment}.py"
        return ["MAS has the accounts already" if wanted else f"{where} gives no machine the role mas: add it first"]
    if not settings.here("synapse") or not known or wanted == delegated or settings.migration:
        return []
    if settings.machine.restoring or settings.restore:
        # The accounts are there before the configuration that says whose they are.
        return []
    counts = accounts_of(settings)
    if counts is None:
        return [
            "whether Synapse or MAS has accounts cannot be found out, because PostgreSQL does not answer: start it and run again"
        ]
    if wanted and counts["synapse"]:
        return [
            f"Synapse has {_accounts(counts['synapse'])}, and the Matrix Authentication Service would know none of their "
            f"passwords and sessions. Take the role mas out of inventories/{settings.deployment}.py, or move the accounts: "
            f"python manage.py {settings.deployment} mas migrate"
        ]
    if not wanted and counts["mas"]:
        return [
            f"the Matrix Authentication Service has {_accounts(counts['mas'])}, which Synapse cannot take back: "
            f"give the role mas to {settings.name} again (inventories/{settings.deployment}.py)"
        ]
    return []


def accounts_of(settings: Settings) -> dict[str, int] | None:
    """How many accounts of people Synapse and MAS have; None if PostgreSQL does not answer."""
    server = inventory.get_host(settings.roles["postgres"][0])
    there = settings_of(server)
    if not there.machine.postgresql:
        return {"synapse": 0, "mas": 0}
    with_mas = "deactivated_at IS NULL AND username !~ '^matrix-metal(-[0-9]+|-reports)?$'"
    counts: dict[str, int] = server.get_fact(
        Accounts,
        cluster=there.view(Postgres).cluster,
        databases=[("synapse", PEOPLE), ("mas", with_mas)],
        _sudo=there.machine.user != "root",
    )
    return counts if counts.keys() >= {"synapse", "mas"} else None


def _accounts(number: int) -> str:
    return f"{number} account{'' if number == 1 else 's'}"


def _locked_out(settings: Settings) -> list[str]:
    """A line if the firewall would close the way to the machine later, which a new connection does not notice now."""
    if not settings.here("firewall"):
        return []
    firewall, own = settings.view(Firewall), settings.machine.own_rules
    if not firewall.ssh_ports and "ssh.nft" not in own:
        return [
            "the firewall would close SSH, as no SSH server is found: start it, or write what is to be open, such as "
            f'"tcp dport 22 accept", into {OWN_RULES}/ssh.nft there; that may be nothing'
        ]
    if firewall.closed_tunnel and "tunnel.nft" not in own:
        name, kind = firewall.closed_tunnel
        return [
            f"the firewall would close {name} ({kind}), by which this run comes, as its port is not found: write what it needs, "
            f'such as "udp dport 51820 accept", into {OWN_RULES}/tunnel.nft there; that may be nothing'
        ]
    return []


def _unreached_by_calls(settings: Settings) -> list[str]:
    """A line for each address family that calls are to have and the machine has not."""
    found, missing = public_addresses(settings.machine, settings.section(Relay).external)
    if not (settings.here("coturn") or settings.here("rtc")):
        return []
    if not found and not missing:
        return ["has no address but local ones, so that calls cannot reach it"]
    return [
        f"{name} is set, but the machine has no IPv{6 if name.endswith('6') else 4} address that calls could reach: give it one, "
        "or leave the setting out"
        for name in missing
    ]


def _unusable_certificates(host: Host, settings: Settings) -> list[str]:
    """What is wrong with certificate files that the administrator put on the machine."""
    files = given_files(settings)
    if files is None:
        return []
    found: list[str] = host.get_fact(Unusable, **files, _sudo=settings.machine.user != "root")
    return found


def _unsuitable(machine: MachineState) -> Iterator[str]:
    if not machine.user:
        yield (
            "gives no answer to a command sent over SSH: the login shell of the user that you connect as must be one like "
            "sh or bash, and what it reads first (.bashrc, .profile, /etc/bash.bashrc) must not end it"
        )
    elif not machine.root:
        yield f"connected as {machine.user}, who is not root and has no sudo without a password; use either"
    elif machine.distribution != "debian" or machine.release not in PYTHON_OF_DEBIAN:
        yield f"runs {machine.distribution} {machine.release}; only Debian 13 and 12 are supported"
    elif machine.architecture not in ("amd64", "arm64"):
        yield f"is {machine.architecture}; only amd64 and arm64 are supported"
    else:
        if machine.memory < MEMORY:
            yield f"has {machine.memory} MiB of memory; at least {MEMORY} MiB are needed"
        needed = LATER_DISK if machine.deployment or machine.secrets else FIRST_DISK
        if machine.disk < needed:
            yield f"has {machine.disk} MiB free for /opt and /var; at least {needed} MiB are needed"


def _ports_in_use(settings: Settings) -> Iterator[str]:
    """A line for each port that another program listens on."""
    for role in settings.played:
        for port in settings.listens(role):
            unit = settings.written(port.unit)
            # The relay's port range is not checked: other programs may use single ports of it.
            foreign = [
                listener
                for listener in settings.machine.listeners
                if (listener.protocol, listener.port) == (port.protocol, port.number)
                and port.last is None
                and listener.unit != unit
            ]
            if foreign:
                program, pid = foreign[0].program or "another program", foreign[0].pid
                taken = f"is taken by {program} (process {pid}); stop it"
                yield f"{port.protocol} port {port.number}, which {role.name} needs, {taken}"


def _of_another_deployment(settings: Settings) -> Iterator[str]:
    machine = settings.machine
    if not machine.marker_is_file:
        yield f"{MARKER} should be a file and is not; move it away (mv {MARKER} /root) and run again"
        return
    # A marker that is missing or damaged is written again, if the machine has secrets of this vault.
    server_name = machine.deployment["server_name"] if machine.deployment else machine.server_name
    known = machine.deployment or machine.secrets
    same_vault = machine.deployment["vault"] == settings.vault.id if machine.deployment else _has_secret_of(settings)
    if known and server_name and server_name != settings.server_name:
        yield (
            f"was deployed as {server_name}, and server_name is now {settings.server_name}: "
            f"it cannot be changed, because it is part of every user, room and signature ({MARKER})"
        )
    if known and not same_vault:
        yield (
            f"was deployed with another vault than {settings.vault_path}: its secrets would be lost; "
            f"{_renamed(settings) or 'restore the vault and key it was deployed with'}"
        )
    if machine.marker_damaged and not known:
        yield (
            f"{MARKER} does not say which deployment the machine belongs to; if it is this one, with "
            f"{settings.vault_path}, move the file away (mv {MARKER} /root) and run again"
        )


def _renamed(settings: Settings) -> str:
    """The way out if the vault of the machine has the name of another deployment: that is how this one was called."""
    new, marker = settings.vault_path, settings.machine.deployment or {}
    for old in sorted(new.parent.glob("*.vault")):
        with contextlib.suppress(VaultError, OSError):
            if old != new and Vault.open(old).id == marker.get("vault"):
                return f"it was called {old.stem}: {_moves(settings.deployment, old.stem, settings.inventories)}"
    return ""


def _moves(new: str, old: str, inventories: Path = INVENTORIES) -> str:
    """How everything that is named after the inventory is called as the inventory is now."""
    places = inventories, inventories.parent / "group_data"
    if (inventories / f"{old}.py").exists():
        return f"deploy with inventories/{old}.py, which is still there, or set vault = 'inventories/{old}.vault'"
    left = [
        path
        for path in (*(places[0] / f"{old}{end}" for end in (".vault", ".key", ".lock")), places[1] / f"{old}.py")
        if path.exists() and not path.with_stem(new).exists()
    ]
    moves = [f"mv {path.parent.name}/{path.name} {path.parent.name}/{new}{path.suffix}" for path in left]
    return f"{' && '.join(moves)}; or call the inventory inventories/{old}.py again"


def _backed_up_under_another_name(settings: Settings) -> list[str]:
    """A line if the backup would begin anew in another place, where a restore does not find the earlier ones."""
    before, now = settings.machine.backed_up_as, settings.name
    if not settings.here("backup") or settings.restore or settings.machine.restoring:
        return []
    if not before or folder_of(before) == folder_of(now):
        return []
    target = settings.section(Backups).backup_target
    where, note = f"inventories/{settings.deployment}.py", f"{BACKUP_HOME}/plan.json"
    return [
        f"was called {before} in {where}, and its backups are in the folder {folder_of(before)} of {target}: as {now} it would "
        f'begin new ones, and leave those where nobody looks. Call it {before} there again ("{before}", {{"ssh_hostname": '
        f'"..."}}), or rename that folder to {folder_of(now)} and then, here: rm {note}'
    ]


def _newer_data(settings: Settings) -> list[str]:
    """A line if PostgreSQL would be older than data that are on the machine."""
    machine = settings.machine
    if not settings.here("postgres") or not machine.data or settings.restore or machine.restoring:
        return []
    wanted, newest = settings.view(Postgres).version, machine.data[-1]
    place = f"/var/lib/postgresql/{newest}/main"
    if int(newest) > int(wanted):
        return [
            f"{place} has data of PostgreSQL {newest}, and a deploy would make an empty cluster of PostgreSQL {wanted} beside: "
            f"put /etc/postgresql/{newest}/main back, from a backup; or move the data away (mv {place} /root)"
        ]
    if int(newest) > int(OF_DEBIAN[machine.release]) and newest not in machine.servers:
        return [
            f"{place} has data of PostgreSQL {newest}, and Debian {machine.release} has only PostgreSQL "
            f"{OF_DEBIAN[machine.release]}, which cannot read them: take a newer Debian; docs/BACKUP.md says how to go on there"
        ]
    return []


def _another_synapse(settings: Settings) -> list[str]:
    """A line if the machine has a Synapse of another installation: its settings would be replaced, its data upgraded."""
    machine = settings.machine
    if not settings.here("synapse") or settings.restore or machine.restoring or machine.deployment or machine.secrets:
        return []
    found = machine.foreign
    if not found and settings.here("postgres") and (accounts := (accounts_of(settings) or {}).get("synapse")):
        found = f"the database synapse, with {_accounts(accounts)}"
    if not found:
        return []
    return [
        f"has a Synapse that was installed in another way ({found}), and a deploy would replace it: "
        '"Taking over an existing homeserver" in README.md says how to go on with its data on the same machine'
    ]


def _has_secret_of(settings: Settings) -> bool:
    """Whether the machine has a secret of this vault; one is enough, because others may have been changed in the vault."""
    return any(
        hashlib.sha256(settings.vault.get(name).reveal().encode()).hexdigest() == digest
        for name, digest in settings.machine.secrets
        if settings.vault.has(name)
    )
