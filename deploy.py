"""A complete Matrix homeserver. The roles, in the order in which they depend on each other."""

from pyinfra import config, host, local

from operations.preflight import checked_settings
from settings.postgres import database_server

settings = checked_settings(host)
config.SUDO = settings.machine.user != "root"

local.include("tasks/machine.py")
if settings.here("synapse") and settings.migration == "move":
    local.include("tasks/accounts_begin.py")
if settings.packages:
    local.include("tasks/packages.py")
local.include("tasks/users.py")
if settings.here("firewall"):
    local.include("tasks/firewall.py")
if settings.here("updates"):
    local.include("tasks/updates.py")
if settings.local_ports or settings.public_ports:
    local.include("tasks/ports.py")

if settings.here("postgres"):
    local.include("tasks/cluster.py")
    local.include("tasks/postgres.py")
if settings.here("postgres") and settings.migration == "move":
    local.include("tasks/accounts_backup.py")
if database_server(settings):
    local.include("tasks/database_client.py")
if settings.here("caddy") and settings.migration != "move":
    local.include("tasks/caddy.py")
if settings.here("coturn"):
    local.include("tasks/coturn.py")
# Before Synapse, which asks it about every token.
if settings.here("mas"):
    local.include("tasks/mas.py")
if settings.here("synapse"):
    local.include("tasks/synapse.py")
if settings.here("synapse") and settings.here("caddy"):
    local.include("tasks/join_page.py")
if settings.here("caddy") and settings.migration == "move":
    local.include("tasks/accounts_routes.py")
if settings.here("sydent"):
    local.include("tasks/sydent.py")
# What follows asks it, or is told by it.
if settings.here("synapse"):
    local.include("tasks/synapse_started.py")
    local.include("tasks/housekeeping.py")
if settings.here("sliding_sync"):
    local.include("tasks/sliding_sync.py")
if settings.here("rtc"):
    local.include("tasks/rtc.py")
if settings.here("element"):
    local.include("tasks/element.py")
if settings.here("ntfy"):
    local.include("tasks/ntfy.py")
if settings.here("admin"):
    local.include("tasks/admin.py")
if settings.here("bans"):
    local.include("tasks/bans.py")
if settings.here("monitoring"):
    local.include("tasks/monitoring.py")
if settings.migration == "back":
    local.include("tasks/accounts_back.py")
if settings.leaving:
    local.include("tasks/removal.py")
if settings.here("backup"):
    local.include("tasks/backup.py")
if settings.served:
    local.include("tasks/certificates.py")
