"""Whether Synapse's database is the one that was there before, and as new as it was: another is refused before Synapse has it.
So is one that the Synapse of another machine uses: two with one database spoil every room.

What the look at the machines (operations/look.py) has found is compared with Synapse's daily count: the number of the newest
event only grows. With an older database, events would get numbers a second time that clients and other homeservers have seen.
"""

from collections.abc import Mapping

from pyinfra.api.host import Host
from pyinfra.context import inventory

from operations.databases import Existing
from operations.look import looked
from operations.machine import KEY_NOTE
from roles import HOUSEKEEPING_REPORT, SYNAPSE
from settings import Settings, settings_of

[STATE] = SYNAPSE.state


def wrong_database(host: Host) -> list[str]:
    """A line if the machine has the database of another homeserver, an older one, or none any more; or if it has the right one,
    and another machine's Synapse uses it, or Synapse would begin with it without its signing key. Call it after the look.
    """
    settings = settings_of(host)
    if not settings.here("postgres") or not settings.roles.get("synapse") or settings.restore or settings.migration:
        return []
    homeserver = settings_of(inventory.get_host(settings.roles["synapse"][0]))
    assert SYNAPSE.database
    name, found = SYNAPSE.database.name, looked(host, Existing) or {}
    back = f"put the right one back (docs/BACKUP.md): python manage.py {settings.deployment} restore"
    other = found.get(f"of {name}")
    if other and other != settings.server_name:
        return [
            f"the database {name} is that of the homeserver {other}, and server_name is {settings.server_name}: {back}"
        ]
    if lines := _used_by_another(settings, homeserver, found) or _without_its_key(homeserver, name, other):
        return lines
    counted = homeserver.machine.counted.split()
    # Without PostgreSQL's answer, nothing is known, unless there is no cluster any more.
    if len(counted) != 2 or homeserver.machine.restoring or not (found or not settings.machine.postgresql):
        return []
    before, when = int(counted[0]), counted[1]
    now = found.get(f"newest {name}")
    if now and int(now) >= before:
        return []
    what = "is older than it was" if now else "is empty or gone, and had data"
    return [
        f"the database {name} {what} on {when}: {back}. If it has to be so: "
        f"rm {HOUSEKEEPING_REPORT} on {homeserver.name}"
    ]


def _used_by_another(settings: Settings, homeserver: Settings, found: Mapping[str, str]) -> list[str]:
    """Connections tell it: whoever may not connect is refused by PostgreSQL, once a deploy has told it who may."""
    assert SYNAPSE.database
    [unit], name = SYNAPSE.units, SYNAPSE.database.name
    here = settings.here("synapse")
    allowed = ("here",) if here else settings.neighbour("synapse").sources
    others = [key.split()[2] for key in found if key.startswith(f"used {name} ")]
    others = [address for address in others if address not in allowed]
    if not others:
        return []
    place = "on this machine" if others[0] == "here" else f"at {others[0]}"
    return [
        f"the Synapse {place} uses the database {name}, and that of {homeserver.name} would be a second one: two with one "
        f"database spoil every room. To move it to {homeserver.name}, stop it first where it is (systemctl disable --now "
        f'{unit.name.removesuffix(".service")}), and bring {STATE} along (README, "Several machines"); '
        "otherwise correct the inventory"
    ]


def _without_its_key(homeserver: Settings, name: str, of: str | None) -> list[str]:
    """If Synapse was moved to a machine without what it has besides its database."""
    machine = homeserver.machine
    if not of or machine.signing_key != "none" or machine.database or machine.restoring:
        return []
    return [
        f"the database {name} is that of {of}, and {homeserver.name} has no signing key: with a new one, other homeservers may "
        f'refuse what this one sends for days. Bring {STATE} along (README, "Several machines"). If the key is lost, and there '
        f"is no backup: mkdir -p {KEY_NOTE.rpartition('/')[0]} && touch {KEY_NOTE} on {homeserver.name}"
    ]
