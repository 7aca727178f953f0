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
        package=BANS.packages[0],
        drop_in=BANS_DEBIANS_OWN,
        source="bans/fail2ban.service",
    )
if settings.here("monitoring"):
    for package, drop_in in MONITORING_DEBIANS_OWN.items():
        packages.not_started(
            name="Keep Debian's own monitoring from starting",
            package=package,
            drop_in=drop_in,
            source="monitoring/debians_own.service",
        )
packages.installed(name="Install the Debian packages", packages=settings.packages, masked=settings.masked)
