"""What the first complete deployment of a run builds and installs, kept for further hosts of the same release.

To build the virtualenvs takes two fifths of the processor time of a deployment, and to install Debian's packages half of what
is left. A test that only needs a deployed machine gets a host that has both already, as after a deploy that was interrupted
before it used them. Tests of how something is installed, upgraded, removed, interrupted or kept secret meanwhile take empty
hosts, or such with fewer of these layers, and so does the first complete deployment itself.
"""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Literal

from roles import MONITORING_DEBIANS_OWN, ROLES
from tests.testbed import Host, Testbed

# programs: the virtualenvs, the lists of Debian's packages, and what was downloaded of these. libraries: see LIBRARIES.
# packages: these, and the packages that a complete deployment installs.
Layer = Literal["programs", "libraries", "packages"]

PROGRAMS = ("/opt/matrix-synapse", "/opt/sydent", "/opt/uv", "/var/lib/apt/lists", "/var/cache/apt/archives")
# The packages that came with others and bring no service: their files are most of what a deployment unpacks. Not the locales,
# whose lack tests are about.
LIBRARIES = r"""
cd /var/lib/dpkg/info
{ grep -lE '/systemd/system/|/init\.d/' *.list | sed -E 's/(:[a-z0-9]+)?\.list$//'; echo locales; } | sort >/tmp/others
apt-mark showauto | sort | comm -23 - /tmp/others
rm /tmp/others
"""
INSTALL = (
    "DEBIAN_FRONTEND=noninteractive SYSTEMD_OFFLINE=1 apt-get install -qq -y --no-install-recommends {} >/dev/null"
)
# The packages that a deployment has installed: it records them.
RECORDED = "/var/lib/matrix-metal/packages"
# They are installed, and nothing else has happened: no service was started, and PostgreSQL has no cluster. {services}: those that
# start with the machine otherwise. {not_started}: the drop-ins of those that never start.
PACKAGES = """
set -e
echo 'exit 101' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
mkdir -p /etc/postgresql-common/createcluster.d {directory}
echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.d/none.conf
{install}
rm /usr/sbin/policy-rc.d /etc/postgresql-common/createcluster.d/none.conf
printf '%s\\n' {packages} >{recorded}
systemctl disable --quiet {services}
for drop_in in {not_started}; do
    mkdir -p ${{drop_in%/*}}
    printf '[Unit]\\nConditionPathExists=!/\\n' >$drop_in
done
"""
SERVICES = [unit.name for role in ROLES.values() for unit in role.units if unit.masked and "@" not in unit.name]
# What a host has of its own.
OF_THE_HOST = ("etc/machine-id", "etc/ssh", "home", "root", "run", "tmp", "var/lib/systemd", "var/log", "var/tmp")


def _directory(testbed: Testbed, release: str) -> Path | None:
    """Where the layers are kept; None if all tests run in one process, in which they would be of little use."""
    run = os.environ.get("TESTBED_MADE")
    return testbed.directory / f"{Path(run).name}-{release}" if run else None


def built(testbed: Testbed, release: str, *chosen: Layer) -> list[Path]:
    """Layers for `Testbed.up`: none before the first complete deployment. chosen: by default, all that a deployment installs."""
    kept = _directory(testbed, release)
    return [kept / layer for layer in chosen or ("packages", "programs")] if kept and kept.exists() else []


def keep(host: Host) -> None:
    """Keep what was built and installed on this host, on which nothing else has happened."""
    kept = _directory(host.bed, host.release)
    if not kept or kept.exists():
        return
    partial = Path(tempfile.mkdtemp(prefix=f"{kept.name}-", dir=kept.parent))
    programs = partial / "programs"
    programs.mkdir()
    host.copy_directories(PROGRAMS, programs)
    for current in programs.glob("opt/*/current"):
        current.unlink()  # to put a virtualenv to use is up to a deploy
    libraries = " ".join(host.run(LIBRARIES).stdout.split())
    packages = " ".join(host.run(f"cat {RECORDED}").stdout.split())
    fresh = host.bed.up(f"{host.name}-packages", release=host.release, layers=[programs])
    fresh.run(INSTALL.format(libraries), timeout=300)
    _copy_disk(fresh, partial / "libraries")
    script = PACKAGES.format(
        install=INSTALL.format(packages),
        packages=packages,
        recorded=RECORDED,
        directory=Path(RECORDED).parent,
        services=" ".join(SERVICES),
        not_started=" ".join(MONITORING_DEBIANS_OWN.values()),
    )
    fresh.run(script, timeout=300)
    _copy_disk(fresh, partial / "packages")
    fresh.down()
    try:
        partial.rename(kept)
    except OSError:  # another process was faster
        shutil.rmtree(partial)


def _copy_disk(host: Host, to: Path) -> None:
    """What was written to a host's disk, without what is its own. Nothing may write to it."""
    subprocess.run(["cp", "-a", host.directory / "upper", to], check=True)
    for path in OF_THE_HOST:
        subprocess.run(["rm", "-rf", to / path], check=True)


def remove_built(testbed: Testbed) -> None:
    """At the end of a run, and what runs left that were killed a day ago. Hosts with these layers must have ended."""
    run = Path(os.environ["TESTBED_MADE"]).name
    for path in testbed.directory.glob("testbed-made-*"):
        if path.name.startswith(run) or time.time() - path.stat().st_mtime > 24 * 60 * 60:
            shutil.rmtree(path, ignore_errors=True)
