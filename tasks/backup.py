"""The backup: timers that send the database's changes, and what else there is, to the target."""

from pyinfra import host

from operations import backups, files, units
from operations.files import Directory, Template
from operations.machine import BACKUP_STATE
from roles import BACKUP_USER
from settings import settings_of
from settings.backup import PROGRAM, SPOOL, Backup, part_of

backup = settings_of(host).view(Backup)
UNITS = "/etc/systemd/system"
values = {"backup": backup, "program": PROGRAM, "state": BACKUP_STATE, "spool": SPOOL, "user": BACKUP_USER}

files.present(
    name="Configure the backup",
    entries=[
        *backups.program_and_access(PROGRAM, backup),
        *(
            [Template(f"{backup.access.home}/mail.env", "backup/mail.env", mode="600", values=values)]
            if backup.mail_password
            else []
        ),
        *(
            [Directory(f"{BACKUP_STATE}/mail", mode="755", user=BACKUP_USER, group=BACKUP_USER)]
            if backup.mail.host
            else []
        ),
    ],
)
files.present(
    name="Confine the backup",
    entries=[
        *(
            Template(
                f"{UNITS}/{timer.service}",
                "backup/job.service",
                mode="644",
                values={**values, "timer": timer, "part": part_of(timer)},
            )
            for timer in backup.timers
        ),
        *(
            Template(f"{UNITS}/{timer.timer}", "backup/job.timer", mode="644", values={**values, "timer": timer})
            for timer in backup.timers
        ),
        Template(f"{UNITS}/matrix-metal-backup-failed@.service", "backup/failed.service", mode="644", values=values),
    ],
)
backups.prepared(
    name="Prepare the target of the backup",
    # With the user: a repository of root's is handed over once.
    repository=f"{backup.access.repository('')} {backup.access.target.kind} {BACKUP_USER}",
    first=[timer.service for timer in backup.timers if part_of(timer) in ("database", "files")],
)
for timer in backup.timers:
    units.running(
        name="Run the timers of the backup",
        unit=timer.timer,
        # The service that it starts: systemd has to read its definition again as well.
        reads=[f"{UNITS}/{timer.service}"],
    )
