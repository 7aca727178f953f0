"""What a machine needs before its data is put back. `manage.py NAME restore` runs it; afterwards it runs deploy.py."""

from pyinfra import config, host, local

from operations.preflight import checked_settings

settings = checked_settings(host)
config.SUDO = settings.machine.user != "root"

if settings.here("backup"):
    local.include("tasks/machine.py")
    local.include("tasks/packages.py")
    local.include("tasks/users.py")
    if settings.here("postgres"):
        local.include("tasks/cluster.py")
    local.include("tasks/restore.py")
