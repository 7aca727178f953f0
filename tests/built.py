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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from roles import CADDY, ROLES
from tests.testbed import Host, Testbed

# programs: the virtualenvs, the lists of Debian's packages, and what was downloaded of these. libraries: see LIBRARIES.
# packages: all that a complete deployment installs of Debian's.
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
# Where a deploy records the packages that it has installed.
RECORDED = "var/lib/matrix-metal/packages"
# What packages write.
OF_PACKAGES = ("etc", "usr", "var/lib", "var/cache/debconf")
# What of that a host has of its own. Of systemd's, what Debian's deb-systemd-helper knows about packages stays.
OF_THE_HOST = ("etc/machine-id", "etc/ssh", "var/lib/systemd/[!d]*")
# What a deployment has of its own when its packages are installed: its name, and a cluster of PostgreSQL. And what would start
# with the machine.
OF_THE_DEPLOYMENT = (
    "etc/matrix-metal",
    "etc/postgresql/*",
    "var/lib/apt/lists",
    "var/lib/postgresql/*",
    *(f"etc/systemd/system/*/{unit.name}" for role in ROLES.values() for unit in role.units if unit.masked),
)


def _directory(testbed: Testbed, release: str) -> Path | None:
    """Where the layers are kept; None if all tests run in one process, in which they would be of little use."""
    run = os.environ.get("TESTBED_MADE")
    return testbed.directory / f"{Path(run).name}-{release}" if run else None


def built(testbed: Testbed, release: str, *chosen: Layer) -> list[Path]:
    """Layers for `Testbed.up`: none before the first complete deployment. chosen: by default, all that a deployment installs."""
    kept = _directory(testbed, release)
    return [kept / layer for layer in chosen or ("packages", "programs")] if kept and kept.exists() else []


def keep(host: Host, deploy: Callable[[], object]) -> None:
    """Deploy to an empty host, and keep what is built and installed there. Raises what `deploy` does."""
    kept = _directory(host.bed, host.release)
    if not kept or kept.exists():
        deploy()
        return
    partial = Path(tempfile.mkdtemp(prefix=f"{kept.name}-", dir=kept.parent))
    with ThreadPoolExecutor(1) as pool:
        deploying = pool.submit(deploy)
        while not deploying.done() and CADDY.packages[0] not in _recorded(host):
            time.sleep(0.02)
        if not deploying.done():
            host.container.rest(True)
            try:
                _copy(host, partial / "packages", *OF_THE_HOST, *OF_THE_DEPLOYMENT)
            finally:
                host.container.rest(False)
        deploying.result()
    programs = partial / "programs"
    programs.mkdir()
    host.copy_directories(PROGRAMS, programs)
    for current in programs.glob("opt/*/current"):
        current.unlink()  # to put a virtualenv to use is up to a deploy
    fresh = host.bed.up(f"{host.name}-libraries", release=host.release, layers=[programs])
    fresh.run(INSTALL.format(" ".join(host.run(LIBRARIES).stdout.split())), timeout=300)
    fresh.stop()
    _copy(fresh, partial / "libraries", *OF_THE_HOST)
    fresh.down()
    try:
        partial.rename(kept)
    except OSError:  # another process was faster
        shutil.rmtree(partial)


def _recorded(host: Host) -> list[str]:
    file = host.directory / "upper" / RECORDED
    return file.read_text().split() if file.exists() else []


def _copy(host: Host, to: Path, *but: str) -> None:
    """What packages have written to a host's disk. Nothing writes to it meanwhile. but: patterns of what is left out."""
    to.mkdir()
    subprocess.run(["cp", "-a", "--parents", *OF_PACKAGES, to], cwd=host.directory / "upper", check=True)
    left_out = [path for pattern in but for path in to.glob(pattern)]
    subprocess.run(["rm", "-rf", *left_out], check=True)


def remove_built(testbed: Testbed) -> None:
    """At the end of a run, and what runs left that were killed a day ago. Hosts with these layers must have ended."""
    run = Path(os.environ["TESTBED_MADE"]).name
    for path in testbed.directory.glob("testbed-made-*"):
        if path.name.startswith(run) or time.time() - path.stat().st_mtime > 24 * 60 * 60:
            shutil.rmtree(path, ignore_errors=True)
