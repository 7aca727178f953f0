"""The settings: what the administrator chose, typed and validated.

    inventory + group_data  ->  settings_of(host)  ->  tasks/<role>.py  ->  templates/<role>/*

`choices` defines what may be chosen, `rules` which choices contradict each other; `deployment` derives what all roles share, and
one module per role what its templates need. Every mistake is found here, before any machine is touched.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

from pyinfra.api.host import Host
from pyinfra.context import inventory

from operations.machine import Machine, MachineState
from roles import ROLES, Role
from settings.choices import Choices, choices_from
from settings.deployment import (
    MIGRATION_VARIABLE,
    REMOVAL_VARIABLE,
    RESTORE_VARIABLE,
    Migration,
    Neighbour,
    Restore,
    SettingError,
    Settings,
)
from settings.postgres import port_on
from settings.rules import misspelt_roles, mistakes

__all__ = [
    "Choices",
    "Neighbour",
    "SettingError",
    "Settings",
    "choices_from",
    "chosen_for",
    "mistakes",
    "settings_anew",
    "settings_of",
]

_settings: dict[str, Settings] = {}
_machines: dict[str, MachineState] = {}


def chosen_for(host: Host, machine: MachineState, neighbours: Mapping[str, Neighbour] | None = None) -> Settings:
    """The settings of one of the run's machines, validated. Raises SettingError with a line per mistake."""
    groups = {name: [member.name for member in members] for name, members in inventory.groups.items() if members}
    # pyinfra adds a group with the inventory file's name at the end, followed by one for the connector, such as @local.
    own = [name for name in groups if name not in ROLES and name != "all" and not name.startswith("@")]
    if not own:
        raise SettingError("the inventory file must not be named like a role; use a name such as inventories/prod.py")
    deployment = own[-1]
    if misspelt := misspelt_roles(set(groups) - {deployment, "all"}):
        raise SettingError("\n".join(f"inventories/{deployment}.py: {line}" for line in misspelt))
    data: dict[str, Any] = host.data.dict()  # type: ignore[no-untyped-call]
    migration = _migration()
    settings = Settings(
        choices_from(data, deployment),
        deployment,
        {name: machines for name, machines in groups.items() if migration != "back" or name != "mas"},
        host.name,
        machine,
        neighbours,
        data.get("ssh_hostname"),
        migration=migration,
        leaving=_leaving(),
        restore=_restore(),
    )
    if wrong := mistakes(settings):
        raise SettingError("\n".join(wrong))
    return settings


def _migration() -> Migration:
    match os.environ.get(MIGRATION_VARIABLE, ""):
        case ("" | "move" | "back") as known:
            return known
        case other:
            raise SettingError(
                f"{MIGRATION_VARIABLE} = {other!r} is not allowed: it is for `manage.py NAME mas migrate`"
            )


def _leaving() -> Role | None:
    name = os.environ.get(REMOVAL_VARIABLE, "")
    if name and (name not in ROLES or ROLES[name].stays):
        raise SettingError(f"{REMOVAL_VARIABLE} = {name!r} is not allowed: it is for `manage.py NAME remove`")
    return ROLES.get(name)


def _restore() -> Restore | None:
    given = os.environ.get(RESTORE_VARIABLE, "")
    return Restore(**json.loads(given)) if given else None


def settings_of(host: Host) -> Settings:
    """The settings of one of the run's machines, validated, with the machine's state; derived once per run."""
    if host.name not in _settings:
        neighbours = {other.name: _neighbour_of(host, other) for other in inventory if other is not host}
        _settings[host.name] = chosen_for(host, _machine_of(host), neighbours)
    return _settings[host.name]


def settings_anew(host: Host) -> Settings:
    """The same, with the state that the machine has now."""
    for known in (_settings, _machines):
        known.pop(host.name, None)
    return settings_of(host)


def _neighbour_of(host: Host, other: Host) -> Neighbour:
    address = other.data.get("address") or other.data.get("ssh_hostname") or other.name
    # Only the database server needs the addresses of the others. Otherwise the other machines are not asked.
    client = "postgres" in host.groups and any(role.database and role.name in other.groups for role in ROLES.values())
    # Only a machine that uses a database needs its port.
    server = "postgres" in other.groups and any(role.database and role.name in host.groups for role in ROLES.values())
    return Neighbour(
        address,
        _machine_of(other).addresses if client else (),
        port_on(_machine_of(other)) if server else None,
    )


def _machine_of(host: Host) -> MachineState:
    if host.name not in _machines:
        # Without an answer it is an empty state, for which preflight has a message.
        names = dict.fromkeys(name for _, name in chosen_for(host, MachineState()).reached)
        _machines[host.name] = host.get_fact(Machine, names=list(names), _ignore_errors=True)
    return _machines[host.name]
