"""For `manage.py NAME remove ROLE`: what the role has left on machines that the inventory no longer gives it.

After the other roles, which do without it by now.
"""

from pyinfra import host

from operations import backups, removal
from roles import BACKUP
from settings import settings_of
from settings.removal import database_roles, last_database, removal_of

settings = settings_of(host)
assert settings.leaving
leaving = removal_of(settings, settings.leaving)

removal.stopped(name="Stop what is removed", removal=leaving)
if settings.leaving == BACKUP:
    backups.given_back(name="Give what is at the backup's target to root")
removal.copied(name="Keep a last copy of its data", removal=leaving)
if database := last_database(settings, settings.leaving):
    removal.database_dropped(name="Keep a last dump of its database, and drop it", database=database)
if dropped := database_roles(settings, settings.leaving):
    removal.database_roles_dropped(name="Drop its roles in PostgreSQL", cluster=dropped[0], roles=dropped[1])
removal.files_removed(name="Remove its files", removal=leaving)
removal.packages_purged(name="Remove the Debian packages that only it needed", removal=leaving)
removal.accounts_removed(name="Remove its users", removal=leaving)
removal.forgotten(name="Remove its units", removal=leaving)
