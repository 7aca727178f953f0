"""What the first complete deployment of a run builds and downloads, kept for further hosts of the same release.

To build the virtualenvs takes half of the processor time of a deployment, and to unpack libraries a fifth of the other half. A
test that only needs a deployed machine gets a host that has both already: as after a deploy that was interrupted before it used
them, and as a machine has more than the least of Debian. Tests of how something is installed, upgraded, removed, interrupted or
kept secret meanwhile take empty hosts, and so does the first complete deployment itself.
"""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from tests.testbed import Host, Testbed

# The virtualenvs, and the lists of Debian's packages, and what was downloaded of these.
DIRECTORIES = ("/opt/matrix-synapse", "/opt/sydent", "/opt/uv", "/var/lib/apt/lists", "/var/cache/apt/archives")
# The packages that came with others and bring no service: their files are most of what a deployment unpacks. Not the locales,
# whose lack tests are about.
LIBRARIES = r"""
cd /var/lib/dpkg/info
{ grep -lE '/systemd/system/|/init\.d/' *.list | sed -E 's/(:[a-z0-9]+)?\.list$//'; echo locales; } | sort >/tmp/others
apt-mark showauto | sort | comm -23 - /tmp/others
rm /tmp/others
"""
INSTALL = "DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends {} >/dev/null"
# What a host has of its own.
OF_THE_HOST = ("etc/machine-id", "etc/ssh", "home", "root", "run", "tmp", "var/lib/systemd", "var/log", "var/tmp")


def _layer(testbed: Testbed, release: str) -> Path | None:
    """Where it is kept; None if all tests run in one process, in which it would be of little use."""
    run = os.environ.get("TESTBED_MADE")
    return testbed.directory / f"{Path(run).name}-{release}" if run else None


def built(testbed: Testbed, release: str, *chosen: str) -> list[Path]:
    """Layers for `Testbed.up`: none before the first complete deployment. chosen: "libraries", "programs"; both by default."""
    layer = _layer(testbed, release)
    return [layer / each for each in chosen or ("libraries", "programs")] if layer and layer.exists() else []


def keep(host: Host) -> None:
    """Keep what was built on this host, on which nothing else has happened."""
    layer = _layer(host.bed, host.release)
    if not layer or layer.exists():
        return
    partial = Path(tempfile.mkdtemp(prefix=f"{layer.name}-", dir=layer.parent))
    programs = partial / "programs"
    programs.mkdir()
    host.copy_directories(DIRECTORIES, programs)
    for current in programs.glob("opt/*/current"):
        current.unlink()  # to put a virtualenv to use is up to a deploy
    _keep_libraries(host, programs, partial / "libraries")
    try:
        partial.rename(layer)
    except OSError:  # another process was faster
        shutil.rmtree(partial)


def _keep_libraries(host: Host, programs: Path, to: Path) -> None:
    """Install on a new host the libraries that this one has, and keep what is written to its disk."""
    fresh = host.bed.up(f"{host.name}-libraries", release=host.release, layers=[programs])
    fresh.run(INSTALL.format(" ".join(host.run(LIBRARIES).stdout.split())), timeout=300)
    fresh.stop()
    disk = fresh.directory / "upper"
    for path in OF_THE_HOST:
        subprocess.run(["rm", "-rf", disk / path], check=True)
    subprocess.run(["cp", "-a", disk, to], check=True)
    fresh.down()


def remove_built(testbed: Testbed) -> None:
    """At the end of a run, and what runs left that were killed a day ago. Hosts with these layers must have ended."""
    run = Path(os.environ["TESTBED_MADE"]).name
    for path in testbed.directory.glob("testbed-made-*"):
        if path.name.startswith(run) or time.time() - path.stat().st_mtime > 24 * 60 * 60:
            shutil.rmtree(path, ignore_errors=True)
