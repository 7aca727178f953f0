"""The Debian packages of all the machine's roles, in one transaction. Units stay masked until their role is configured."""

from pyinfra import host

from operations import files, packages
from operations.files import Directory, Template
from roles import BANS, BANS_DEBIANS_OWN, MONITORING_DEBIANS_OWN
from settings import settings_of

settings = settings_of(host)

if settings.here("postgres"):
    # Before the package is installed, which creates the cluster.
    files.present(
        name="Enable data checksums for new PostgreSQL clusters",
        entries=[
            Directory("/etc/postgresql-common", mode="755"),
            Directory("/etc/postgresql-common/createcluster.d", mode="755"),
            Template(
                "/etc/postgresql-common/createcluster.d/matrix-metal.conf", "postgres/createcluster.conf", mode="644"
            ),
        ],
    )
if settings.here("bans"):
    packages.not_started(
        name="Keep Debian's fail2ban from starting with its own settings",
        drop_ins={BANS.packages[0]: BANS_DEBIANS_OWN},
        source="bans/fail2ban.service",
    )
if settings.here("monitoring"):
    packages.not_started(
        name="Keep Debian's own monitoring from starting",
        drop_ins=MONITORING_DEBIANS_OWN,
        source="monitoring/debians_own.service",
    )
packages.installed(name="Install the Debian packages", packages=settings.packages, masked=settings.masked)
