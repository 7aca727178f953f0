"""For `manage.py NAME restore`: what to restore, and how to reach the target that it is at."""

import json

from pyinfra import host

from operations import backups, files
from operations.files import Text
from operations.machine import RESTORE_HOME
from settings import settings_of
from settings.backup import RESTORE_PROGRAM, Backup

settings = settings_of(host)
assert settings.restore

files.present(
    name="Reach the backup",
    entries=[
        *backups.program_and_access(RESTORE_PROGRAM, Backup.to_restore(settings)),
        Text(f"{RESTORE_HOME}/restore.json", json.dumps({"to": settings.restore.to}) + "\n", mode="644"),
    ],
)
