"""Whether Synapse's database is the one that was there before, and as new as it was: another is refused before Synapse has it.

What the look at the machines (operations/look.py) has found is compared with Synapse's daily count: the number of the newest
event only grows. With an older database, events would get numbers a second time that clients and other homeservers have seen.
"""

from pyinfra.api.host import Host
from pyinfra.context import inventory

from operations.databases import Existing
from operations.look import looked
from roles import HOUSEKEEPING_REPORT, SYNAPSE
from settings import settings_of


def wrong_database(host: Host) -> list[str]:
    """A line if the machine has the database of another homeserver, an older one, or none any more. Call it after the look."""
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
