"""What every machine needs, whatever its roles."""

from pyinfra import host

from operations import deployment, files, packages, removal, units, users, virtualenvs
from operations.files import Directory, Template
from roles import PACKAGES
from settings import settings_of
from settings.removal import removal_of

settings = settings_of(host)
JOURNAL = "/etc/systemd/journald.conf.d"

deployment.vault_saved(name="Save new secrets in the vault", vault=settings.vault)

files.present(
    name="Mark the machine as part of this deployment",
    entries=[
        Directory("/etc/matrix-metal", mode="755"),
        # The location of Synapse's database is not changed here: tasks/synapse.py does that, once Synapse uses another one.
        deployment.marker(
            settings.server_name, settings.vault, (settings.machine.database, settings.machine.database_port)
        ),
    ],
)

if settings.leaving:
    # Before the other programs start with the files that they read.
    removal.distrusted(
        name="Trust the authority of what is removed no more", removal=removal_of(settings, settings.leaving)
    )

users.restored(name="Restore system users that were removed", accounts=settings.accounts, groups=settings.groups)

# Of a spare machine, which is as before in the end, only what a restore needs is changed.
rehearsing = bool(settings.restore and settings.restore.rehearsal)

if not rehearsing:
    limits = {"max_size": settings.choices.journal_max_size, "max_days": settings.choices.journal_max_days}
    files.present(
        name="Limit the journal",
        entries=[
            Directory(JOURNAL, mode="755"),
            Template(f"{JOURNAL}/matrix-metal.conf", "journald.conf", mode="644", values=limits),
        ],
    )
    units.running(
        name="Run the journal with its limits",
        unit="systemd-journald.service",
        reads=[f"{JOURNAL}/matrix-metal.conf"],
        enabled=False,
    )

packages.installed(
    name="Install Python and the certificate authorities",
    packages=list(PACKAGES),
)

if not rehearsing:
    # Virtualenvs need the processor and PyPI, packages the disk and the mirror: in parallel they take half the time.
    virtualenvs.build_started(name="Start building the virtualenvs", virtualenvs=settings.virtualenvs)
