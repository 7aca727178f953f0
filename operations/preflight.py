"""Whether a machine can be deployed to. Everything here is looked at before anything anywhere is touched."""

from collections.abc import Callable, Iterator

from pyinfra.api.exceptions import ConnectError, PyinfraError
from pyinfra.api.host import Host
from pyinfra.api.state import State
from pyinfra.context import inventory

from operations.certificates import Unusable
from operations.databases import Tables
from operations.machine import MARKER, MachineState
from operations.refusal import Refused
from settings import SettingError, Settings, chosen_for, settings_of
from vault import VaultError

# A first deploy needs room for packages, virtualenvs and what they leave; a later one for one more virtualenv.
FIRST_DISK, LATER_DISK, MEMORY = 3072, 512, 900  # MiB

# role -> (protocol, port, unit that may hold it)
PORTS = {
    "caddy": [("tcp", 80, "caddy.service"), ("tcp", 443, "caddy.service"), ("udp", 443, "caddy.service")],
    "coturn": [(protocol, port, "coturn.service") for protocol in ("udp", "tcp") for port in (3478, 5349)],
    "synapse": [("tcp", 8008, "matrix-synapse.service")],
    "sydent": [("tcp", 8090, "sydent.service")],
    "sliding_sync": [("tcp", 8009, "sliding-sync.service")],
}
FEDERATION_PORT = ("tcp", 8448, "caddy.service")


def choices_first(connect_all: Callable[[State], None]) -> Callable[[State], None]:
    """pyinfra's step that connects to all machines, preceded by a look at the choices made for them."""

    def checked_connect_all(state: State) -> None:
        try:
            for host in state.inventory:
                chosen_for(host, MachineState())
        except SettingError as error:
            raise Refused(str(error)) from None
        try:
            connect_all(state)
        except PyinfraError as error:
            # Else it would be told as a mistake in this file. The machines' own lines, above it, say why.
            raise Refused(str(error)) from None
        if state.failed_hosts:
            # pyinfra would go on with the others, and leave a homeserver without its database, or half of a change.
            names = sorted(host.name for host in state.failed_hosts)
            without = " ".join(f"--exclude {name}" for name in names)
            raise Refused(f"{', '.join(names)} cannot be reached, see above; nothing was touched (to go on: {without})")

    return checked_connect_all


def checked(host: Host) -> Settings:
    """The settings of the machine, after all that could be wrong with them and with the machine was looked at."""
    try:
        settings = settings_of(host)
        mistakes = list(_unsuitable(settings.machine)) or list(_occupied(settings))
        if not mistakes:
            # Deriving every room's settings finds secrets that are missing and a vault that does not open.
            for role in settings.roles:
                if settings.here(role):
                    getattr(settings, role)
            mistakes = list(_deployed_otherwise(settings)) or _moved(settings) or _brought(host, settings)
    except (SettingError, VaultError) as error:
        raise Refused(str(error)) from None
    except ConnectError:
        # Only with --limit or --exclude: else all are connected to.
        raise Refused(
            f"{host.name} cannot be deployed without another machine, which cannot be reached, see above"
        ) from None
    if mistakes:
        raise Refused("\n".join(f"{host.name}: {mistake}" for mistake in mistakes))
    return settings


def _moved(settings: Settings) -> list[str]:
    """A line if Synapse would leave the database it has for a new and empty one."""
    if not settings.here("synapse") or not settings.machine.deployment:
        return []
    server = inventory.get_host(settings.roles["postgres"][0])
    there, database = settings_of(server), settings.synapse.database
    earlier, port = settings.machine.database, settings.machine.database_port
    if earlier == "" or (earlier, port) == (database.host, database.port):
        return []
    tables: int = server.get_fact(
        Tables, cluster=there.postgres.cluster, database=database.name, _sudo=there.machine.user != "root"
    )
    if tables:
        return []
    where = "on this machine" if earlier.startswith("/") else f"at {earlier}"
    if port != database.port:
        where += f", port {port}"
    return [
        f"Synapse has its database {where}, and on {server.name}, where it is to be now (PostgreSQL's cluster "
        f"{there.postgres.cluster}), there is none or an empty one: "
        'move it first (README, "Several machines")'
    ]


def _brought(host: Host, settings: Settings) -> list[str]:
    """What is wrong with certificate files that the administrator put on the machine."""
    if settings.brought_files is None:
        return []
    found: list[str] = host.get_fact(Unusable, **settings.brought_files, _sudo=settings.machine.user != "root")
    return found


def _unsuitable(machine: MachineState) -> Iterator[str]:
    if not machine.root:
        yield f"connected as {machine.user}, who is not root and has no sudo without a password; use either"
    elif machine.distribution != "debian" or machine.release not in ("12", "13"):
        yield f"runs {machine.distribution} {machine.release}; only Debian 13 and 12 are supported"
    elif machine.architecture not in ("amd64", "arm64"):
        yield f"is {machine.architecture}; only amd64 and arm64 are supported"
    else:
        if machine.memory < MEMORY:
            yield f"has {machine.memory} MiB of memory; at least {MEMORY} MiB are needed"
        needed = LATER_DISK if machine.deployment else FIRST_DISK
        if machine.disk < needed:
            yield f"has {machine.disk} MiB free for /opt and /var; at least {needed} MiB are needed"


def _occupied(settings: Settings) -> Iterator[str]:
    """Ports that another program holds, a line each."""
    federation = [FEDERATION_PORT] if settings.here("synapse") and settings.choices.federation_port_8448 else []
    for role, ports in {
        **PORTS,
        "caddy": [*PORTS["caddy"], *federation],
        # Without other machines it has no port.
        "postgres": [("tcp", settings.postgres.port, settings.postgres.unit)] if _shared(settings) else [],
    }.items():
        for protocol, port, unit in ports if settings.here(role) else []:
            foreign = [
                listener
                for listener in settings.machine.listeners
                if (listener.protocol, listener.port) == (protocol, port) and listener.unit != unit
            ]
            if foreign:
                program, pid = foreign[0].program or "another program", foreign[0].pid
                yield f"{protocol} port {port}, which {role} needs, is taken by {program} (process {pid}); stop it"


def _shared(settings: Settings) -> bool:
    """Whether other machines use the database here."""
    return settings.here("postgres") and bool(settings.postgres.clients)


def _deployed_otherwise(settings: Settings) -> Iterator[str]:
    earlier = settings.machine.deployment
    if earlier is None:
        return
    if earlier["server_name"] != settings.server_name:
        yield (
            f"was deployed as {earlier['server_name']}, and server_name is now {settings.server_name}: "
            f"it cannot be changed, because it is part of every user, room and signature ({MARKER})"
        )
    if earlier["vault"] != settings.vault.id:
        yield (
            f"was deployed with another vault than {settings.vault_path}: its secrets would be lost; "
            "bring back the vault and key it was deployed with"
        )
