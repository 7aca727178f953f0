"""The settings that all roles share, derived for one machine of the deployment. No code here is about a single role."""

import importlib
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import Field

from operations.certificates import BUNDLE, Served
from operations.machine import MachineState
from operations.users import Account
from operations.virtualenvs import Virtualenv
from releases import Release
from roles import ROLES, Port, Protocol, Role, RoleName, Unit, any_version
from roles import Domain as DomainRecord
from settings.fields import (
    A_DOMAIN,
    A_NUMBER_OF_DAYS,
    Chosen,
    Days,
    Domain,
    Host,
    MailAddress,
    Network,
    Size,
    UserName,
)
from settings.issuers import Certificates, Issuer
from settings.networks import DEBIANS_OWN, PRIVATE, is_refused
from vault import Secret, Vault

ROOT = Path(__file__).parent.parent

# Debian release -> the version of Python that it has. Other releases are refused.
PYTHON_OF_DEBIAN = {"12": "3.11", "13": "3.13"}

# What keeps the services' ports for them needs these packages.
FOR_PORTS = ("nftables", "python3")

# One vault for the whole run, so that all machines get the same generated secrets.
_vault = cache(Vault.open)


# What `manage.py NAME mas migrate` has a run do, in the environment: move the accounts; or be as without the role.
MIGRATION_VARIABLE = "MATRIX_METAL_MIGRATION"
Migration = Literal["", "move", "back"]
# What `manage.py NAME restore` has a run prepare, as JSON: a Restore.
RESTORE_VARIABLE = "MATRIX_METAL_RESTORE"


@dataclass(frozen=True)
class Restore:
    """A restore. to: the moment, in seconds since the epoch; None: the newest. source: the target, if not that of the settings.

    machine: what the machine was called in the inventory when it was backed up, if that was another name.
    rehearsal: whether it is one, on a spare machine, where nothing is to run.
    """

    to: float | None = None
    source: str | None = None
    machine: str | None = None
    rehearsal: bool = False


# What `manage.py NAME remove` has a run do, in the environment: remove this role from the machines that no longer have it.
REMOVAL_VARIABLE = "MATRIX_METAL_REMOVE"


class SettingError(Exception):
    """Settings that cannot be deployed. The text has one line per mistake: what, where, what is allowed."""


class Common(Certificates):
    """The settings that belong to no single role."""

    server_name: Domain = Field(description=A_DOMAIN.format(example="example.org"))
    private_networks: list[Network] = Field(
        description='a list of private networks (RFC 1918, 6598, 4193), such as ["10.1.0.0/16"]'
    )
    smtp_host: Domain | None = Field(description=A_DOMAIN.format(example="mail.example.org"))
    smtp_port: int = Field(description="a port from 1 to 65535", ge=1, le=65535)
    smtp_tls: Literal["none", "starttls", "tls"] = Field(description='"starttls", "tls" or "none"')
    smtp_username: UserName | None = Field(description="None or a user name")
    mail_from: MailAddress | None = Field(description="an e-mail address, such as noreply@example.org")
    journal_max_size: Size | None = Field(description='None or a size such as "1G"')
    journal_max_days: Days | None = Field(description=A_NUMBER_OF_DAYS)
    address: Host | None = Field(description="an IP address or a domain name")
    vault: str | None = Field(description="None or the path of a file ending in .vault")
    try_again: str | None = Field(description='None or a version, such as "1.163.2"')
    one_way: str | None = Field(description='None or a version, such as "1.163.2"')


@dataclass(frozen=True)
class Neighbour:
    """Another machine of the deployment. address: where we reach it. addresses: all its own, for its incoming connections.

    database_port: where its PostgreSQL listens, if that was asked.
    """

    address: str
    addresses: tuple[str, ...] = ()
    database_port: int | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """The addresses its connections may come from. Behind 1:1 NAT, it does not have the address where we reach it."""
        try:
            reached = ipaddress.ip_address(self.address)
        except ValueError:
            return self.addresses
        known = [ipaddress.ip_address(address) for address in self.addresses]
        return self.addresses if reached in known or reached.is_loopback else (*self.addresses, str(reached))


@dataclass(frozen=True)
class LocalPort:
    """A TCP port that only this machine may reach. owner: the user who may listen on it.

    callers: the users who may connect to it, besides root; None: everybody on the machine.
    """

    number: int
    owner: str
    callers: tuple[str, ...] | None


@dataclass(frozen=True)
class PublicPort:
    """A port that other machines reach, and on which any local user could listen. owner: the user who answers from it."""

    protocol: Protocol
    number: int
    owner: str


@dataclass(frozen=True)
class Mail:
    """How mails are sent. tls: "none", "starttls" or "tls". host: None if no mail server is configured."""

    host: str | None
    port: int
    tls: str
    username: str | None
    password: Secret | None
    sender: str


class View:
    """The settings of one role on its machine, for its task and templates. Each role's module names its class VIEW."""

    @classmethod
    def of(cls, settings: "Settings") -> Self:
        """Derived from the settings. Raises SettingError and VaultError."""
        raise NotImplementedError

    @classmethod
    def well_known(cls, settings: "Settings") -> Mapping[str, Any]:
        """What the role adds to /.well-known/matrix/client, on whichever machine it is."""
        return {}

    @classmethod
    def placeholders(cls, machine: MachineState) -> Mapping[str, str]:
        """What the {names} of its record stand for on this machine."""
        return {}

    @classmethod
    def port_of(cls, port: Port, machine: MachineState) -> Port:
        """A port of its record as it is on this machine."""
        return port

    @classmethod
    def account(cls, role: Role, unit: Unit, name: str) -> Account:
        """The system user of its unit, which is called so on this machine."""
        home = role.state[0] if role.state else "/"
        title = role.title_of(unit).removeprefix("the ")
        return Account(unit.user, title=title, home=home, unit=name, paths=unit.reads)

    @classmethod
    def reaches(cls, settings: "Settings") -> Sequence[str]:
        """Names of the deployment that it connects to on port 443, as clients do, but at no private address unless allowed."""
        return ()

    @classmethod
    def packages(cls, settings: "Settings") -> Sequence[str]:
        """Debian's packages that it needs with these settings, besides those of its record."""
        return ()

    @property
    def web_names(self) -> Sequence[str]:
        """Names that Caddy serves for the role on port 443."""
        return ()

    @property
    def served(self) -> Sequence[Served]:
        """Names that it serves over TLS besides its web names."""
        return ()

    @property
    def issuers(self) -> Sequence[Issuer]:
        """The issuers of the certificates that it needs on its machine."""
        return ()

    @property
    def virtualenvs(self) -> Sequence[Virtualenv]:
        return ()

    @property
    def programs(self) -> Sequence[Release]:
        """What it has from release pages."""
        return ()


V = TypeVar("V", bound=View)
C = TypeVar("C", bound=Chosen)


def _refused(address: str, names: Sequence[str], roles: Sequence[Role]) -> str:
    """What is to be done about names that have this address on the machine, which the roles refuse."""
    line = (
        f"{listed(names)} {'is' if len(names) == 1 else 'are'} {address} on this machine, an address that "
        f"{listed([role.title for role in roles])} {'refuses' if len(roles) == 1 else 'refuse'}:"
    )
    if any(ipaddress.ip_address(address) in network for network in PRIVATE):
        width = ipaddress.ip_address(address).max_prefixlen
        return (
            f'{line} add "{address}/{width}" to private_networks, if the machine with Caddy is there, and deploy again'
        )
    units = " ".join(unit.name.removesuffix(".service") for role in roles for unit in role.units)
    name = "the name" if len(names) == 1 else "the names"
    return f"{line} take {name} out of that line of /etc/hosts there, then `systemctl restart {units}`"


def listed(words: Sequence[str]) -> str:
    """Such as "a, b and c"."""
    *most, last = words or [""]
    return f"{', '.join(most)} and {last}" if most else last


def _users(role: Role) -> list[str]:
    """The users of its units; of a role that runs nothing, those of the units that answer for it."""
    owners = {unit.name: unit.user for each in ROLES.values() for unit in each.units}
    return [unit.user for unit in role.units] or [owners[port.unit] for port in role.listens]


def view_of(role: str) -> type[View]:
    """The class of a role's view."""
    view: type[View] = importlib.import_module(f"settings.{role}").VIEW
    return view


class Settings:
    """The settings of one machine of a deployment.

    choices: the validated group data. roles: role -> its machines. name: this machine. machine: its state.
    migration: whether this run gives Synapse's accounts to the Matrix Authentication Service, or puts everything back.
    leaving: the role that this run removes from machines that no longer have it.
    restore: what this run prepares to be restored.
    """

    def __init__(
        self,
        choices: Common,
        deployment: str,
        roles: Mapping[str, Sequence[str]],
        name: str,
        machine: MachineState,
        neighbours: Mapping[str, Neighbour] | None = None,
        connected_at: str | None = None,
        inventories: Path = ROOT / "inventories",
        migration: Migration = "",
        leaving: Role | None = None,
        restore: Restore | None = None,
    ) -> None:
        self.choices = choices
        self.deployment = deployment
        self.roles = {role: tuple(roles.get(role, ())) for role in ROLES}
        self.name = name
        self.machine = machine
        self.neighbours = neighbours or {}
        self.connected_at = connected_at or name
        self.inventories = inventories
        self.migration = migration
        self.leaving = leaving
        self.restore = restore
        self._views: dict[type[View], View] = {}

    def section(self, kind: type[C]) -> C:
        """The choices of one section, with its type."""
        assert isinstance(self.choices, kind)
        return self.choices

    # Names, addresses and roles.

    @property
    def server_name(self) -> str:
        return self.choices.server_name

    @property
    def address(self) -> str:
        """The address at which the deployment's other machines reach this one."""
        return self.choices.address or self.connected_at

    def domain(self, role: Role) -> str:
        """The role's domain name. Raises ValueError if it has none."""
        if role.domain is None:
            raise ValueError(role.name)
        return self.name_of(role, role.domain)

    def name_of(self, role: Role, domain: DomainRecord) -> str:
        """One of the role's domain names, also if it is not used."""
        chosen: str | None = getattr(self.choices, domain.setting)
        below_ours = domain == role.domain or domain.apart
        return chosen or f"{domain.prefix}.{self.server_name if below_ours else self.domain(role)}"

    def uses(self, role: Role, domain: DomainRecord) -> bool:
        """Whether a machine plays the role, and the role has this name with these choices."""
        return self.exists(role.name) and (domain.when is None or bool(getattr(self.choices, domain.when)))

    def here(self, role: RoleName) -> bool:
        """Whether this machine plays the role."""
        return self.name in self.roles[role]

    def exists(self, role: RoleName) -> bool:
        """Whether any machine plays the role."""
        return bool(self.roles[role])

    @property
    def played(self) -> list[Role]:
        """The roles of this machine."""
        return [role for role in ROLES.values() if self.here(role.name)]

    def neighbour(self, role: RoleName) -> Neighbour:
        """The other machine that plays the role."""
        name = self.roles[role][0]
        return self.neighbours.get(name, Neighbour(name))

    def listens(self, role: Role) -> list[Port]:
        """The ports on which the role listens on this machine with these choices; not those of a unit that is not here."""
        return [
            view_of(role.name).port_of(port, self.machine)
            for port in role.listens
            if self._chosen(port)
            and all(
                self.here(owner.name) for owner in ROLES.values() if port.unit in (unit.name for unit in owner.units)
            )
        ]

    def _chosen(self, port: Port) -> bool:
        if port.when == "remote":
            return any(self.exists(user.name) and not self.here(user.name) for user in ROLES.values() if user.database)
        return port.when is None or bool(getattr(self.choices, port.when))

    def reserves(self, role: Role) -> bool:
        """Whether the role has ports that are kept from other local users, with these choices."""
        return any(self._chosen(port) and (port.local or port.public) for port in role.listens)

    def reachable(self, names: Iterable[str]) -> tuple[str, ...]:
        """Private networks that a program may connect to which reaches these names of the deployment.

        Debian's installer writes the machine's own name into /etc/hosts with an address of the loopback. Where it is one of
        these names, that address is allowed: it leads to nothing but what listens on all addresses of the machine.
        """
        own = any(DEBIANS_OWN in self.machine.names.get(name, ()) for name in names)
        return (*self.choices.private_networks, *([f"{DEBIANS_OWN}/32"] if own else []))

    @property
    def reached(self) -> list[tuple[Role, str]]:
        """Roles of this machine with the names of the deployment that they connect to on port 443."""
        return [(role, name) for role in self.played for name in view_of(role.name).reaches(self)]

    @property
    def unreachable(self) -> list[str]:
        """A line for each address of these names that a role does not connect to, and for each name without an address."""
        refused: dict[str, tuple[dict[str, None], dict[Role, None]]] = {}
        unknown: dict[str, dict[Role, None]] = {}
        for role, name in self.reached:
            allowed = self.reachable(view_of(role.name).reaches(self))
            for address in self.machine.names.get(name, ()):
                if is_refused(address, allowed):
                    names, roles = refused.setdefault(address, ({}, {}))
                    names[name], roles[role] = None, None
            if not self.machine.names.get(name):
                unknown.setdefault(name, {})[role] = None
        return [
            *(_refused(address, list(names), list(roles)) for address, (names, roles) in refused.items()),
            *(
                f"{name} has no address on this machine, and {listed([role.title for role in roles])} "
                f"{'has' if len(roles) == 1 else 'have'} to reach it: add a DNS record"
                for name, roles in unknown.items()
            ),
        ]

    @property
    def local_ports(self) -> list[LocalPort]:
        """The TCP ports that only this machine may reach."""
        found = []
        for port, user in self._ports:
            if port.local:
                # Without Caddy here, a reverse proxy of the administrator's connects, as a user that we do not know.
                known = port.callers is not None and all(map(self.here, port.callers))
                callers = dict.fromkeys(
                    user
                    for each in (*(port.callers or ()), *filter(self.here, port.guests))
                    for user in _users(ROLES[each])
                )
                found.append(LocalPort(port.number, user, tuple(callers) if known else None))
        return found

    @property
    def public_ports(self) -> list[PublicPort]:
        """The ports that other machines reach and any user may bind. Not those of calls: the kernel gives them to others too."""
        return [PublicPort(port.protocol, port.number, user) for port, user in self._ports if port.public]

    @property
    def _ports(self) -> Iterator[tuple[Port, str]]:
        """The ports on which this machine's roles listen, each with the user of its unit."""
        users = {unit.name: unit.user for role in ROLES.values() for unit in role.units}
        return ((port, users[port.unit]) for role in self.played for port in self.listens(role))

    @property
    def kept_out(self) -> list[str]:
        """The users of services that connect wherever a client says."""
        return [unit.user for role in self.played for unit in role.units if unit.anywhere]

    # The machine.

    @cached_property
    def _placeholders(self) -> Mapping[str, str]:
        return {key: value for role in ROLES for key, value in view_of(role).placeholders(self.machine).items()}

    def written(self, text: str) -> str:
        """A name, path or command of a record as it is on this machine."""
        return re.sub(r"\{(\w+)\}", lambda found: self._placeholders.get(found[1], found[0]), text)

    def depends_on(self, role: Role) -> list[str]:
        """Units of this machine whose restart causes errors in those of the role."""
        needed = [ROLES[each] for each in role.needs if self.here(each)]
        # What it asks for its clients: Synapse asks MAS about tokens.
        needed += [each for each in self.played if each.routes_on == role.name]
        return [self.written(unit.name) for each in needed for unit in each.units]

    @property
    def packages(self) -> list[str]:
        """Debian's packages that this machine's roles need."""
        needed = [
            package
            for role in self.played
            for package in (*map(self.written, role.packages), *view_of(role.name).packages(self))
        ]
        return list(dict.fromkeys([*needed, *(FOR_PORTS if self.local_ports or self.public_ports else ())]))

    @property
    def masked(self) -> list[str]:
        """Units that a package would start before they are configured."""
        return [self.written(unit.name) for role in self.played for unit in role.units if unit.masked]

    @property
    def accounts(self) -> list[Account]:
        """The system users of its roles. Debian's packages and the roles' tasks make them."""
        found = [
            view_of(role.name).account(role, unit, self.written(unit.name))
            for role in self.played
            for unit in role.units
            if unit.user != "root"
        ]
        jobs = [user for role in self.played for user in role.users]
        return [*found, *(Account(user.name, title=user.title, home=user.home, unit=user.unit) for user in jobs)]

    @property
    def groups(self) -> dict[str, list[str]]:
        """The groups that units run with besides their user's, on a machine that has them from an earlier run -> the units."""
        found: dict[str, list[str]] = {}
        for unit in (
            unit for role in self.played for unit in role.units if self.written(unit.name) in self.machine.units
        ):
            for group in unit.groups:
                found.setdefault(group, []).append(self.written(unit.name))
        return found

    @property
    def left_over(self) -> list[tuple[Role, list[str]]]:
        """Roles that this machine has from an earlier run and no longer plays, with their units.

        A role that runs nothing is known by its programs.
        """
        found = []
        for role in ROLES.values():
            patterns = [any_version(unit.name) for unit in role.units]
            units = sorted(name for name in self.machine.units if any(fnmatch(name, pattern) for pattern in patterns))
            units += [timer.timer for timer in role.timers if timer.service in self.machine.units]
            units += [helper for helper in role.helpers if helper in self.machine.units]
            runs = role.units or role.timers or role.helpers
            programs = {release.partition("/")[0] for release in self.machine.releases}
            left = units or (not runs and programs & set(role.programs))
            if left and not self.here(role.name):
                found.append((role, units))
        return found

    # Secrets.

    @property
    def vault_path(self) -> Path:
        if self.choices.vault:
            return Path(self.choices.vault).expanduser()
        return self.inventories / f"{self.deployment}.vault"

    @cached_property
    def vault(self) -> Vault:
        return _vault(self.vault_path)

    @property
    def mail(self) -> Mail:
        choices = self.choices
        return Mail(
            host=choices.smtp_host,
            port=choices.smtp_port,
            tls=choices.smtp_tls,
            username=choices.smtp_username,
            password=self.vault.get("smtp_password") if choices.smtp_username else None,
            sender=choices.mail_from or f"noreply@{self.server_name}",
        )

    # The views of the roles.

    def view(self, kind: type[V]) -> V:
        """The view of a role. Raises SettingError and VaultError."""
        if kind not in self._views:
            self._views[kind] = kind.of(self)
        found = self._views[kind]
        assert isinstance(found, kind)
        return found

    @property
    def views(self) -> Iterator[tuple[Role, View]]:
        """The view of each role of this machine."""
        for role in self.played:
            yield role, self.view(view_of(role.name))

    @property
    def served(self) -> list[Served]:
        """The names that this machine serves over TLS."""
        return [each for _, view in self.views for each in view.served]

    @property
    def well_known(self) -> dict[str, Any]:
        """The content of /.well-known/matrix/client."""
        found: dict[str, Any] = {}
        for role in ROLES.values():
            if self.exists(role.name):
                found |= view_of(role.name).well_known(self)
        return found

    @property
    def virtualenvs(self) -> list[Virtualenv]:
        """The virtualenvs that this machine's roles need."""
        return [each for _, view in self.views for each in view.virtualenvs]

    @property
    def programs(self) -> list[tuple[str, Virtualenv | Release]]:
        """What this machine's roles have below /opt, each with its title."""
        found: list[tuple[str, Virtualenv | Release]] = []
        for role, view in self.views:
            # What a unit runs is called after it, in the order of the record; the pages of a role without units after the role.
            titles = [role.title_of(unit) for unit in role.units] or [role.title]
            below_opt: list[Virtualenv | Release] = [*view.virtualenvs]
            for release in view.programs:
                if release.title:
                    found.append((release.title, release))
                else:
                    below_opt.append(release)
            found += [(title.removeprefix("the "), each) for title, each in zip(titles, below_opt, strict=False)]
        return found

    @property
    def python(self) -> str:
        """The version of the machine's Python."""
        return PYTHON_OF_DEBIAN.get(self.machine.release, "3.13")

    def issuer(self, for_relay: bool = False) -> Issuer:
        """The issuer of certificates for the web names, or for the relay's name."""
        return Issuer.of(self.choices, self.vault.get, for_relay)

    @property
    def private_authorities(self) -> list[str]:
        """The machine's trust store, if certificates may be issued by an authority that is not publicly trusted."""
        return [BUNDLE] if self.choices.private_authority else []
