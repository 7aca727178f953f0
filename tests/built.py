"""What the first complete deployment of a run builds, kept for further hosts of the same release.

To build the virtualenvs takes half of the processor time of a deployment. A test that only needs a deployed machine gets a host
that has them already, as after a deploy that was interrupted before it used them. Tests of how something is installed, upgraded,
interrupted or kept secret meanwhile take empty hosts, and so does the first complete deployment itself.
"""

import os
import shutil
import tempfile
import time
from pathlib import Path

from tests.testbed import Host, Testbed

# The virtualenvs, and the lists of Debian's packages.
DIRECTORIES = ("/opt/matrix-synapse", "/opt/sydent", "/opt/uv", "/var/lib/apt/lists")


def _layer(testbed: Testbed, release: str) -> Path | None:
    """Where it is kept; None if all tests run in one process, in which it would be of little use."""
    run = os.environ.get("TESTBED_MADE")
    return testbed.directory / f"{Path(run).name}-{release}" if run else None


def built(testbed: Testbed, release: str) -> list[Path]:
    """Layers for `Testbed.up`: none before the first complete deployment."""
    layer = _layer(testbed, release)
    return [layer] if layer and layer.exists() else []


def keep(host: Host) -> None:
    """Keep what was built on this host, on which nothing else has happened."""
    layer = _layer(host.bed, host.release)
    if not layer or layer.exists():
        return
    partial = Path(tempfile.mkdtemp(prefix=f"{layer.name}-", dir=layer.parent))
    host.copy_directories(DIRECTORIES, partial)
    for current in partial.glob("opt/*/current"):
        current.unlink()  # to put a virtualenv to use is up to a deploy
    partial.chmod(0o755)
    try:
        partial.rename(layer)
    except OSError:  # another process was faster
        shutil.rmtree(partial)


def remove_built(testbed: Testbed) -> None:
    """At the end of a run, and what runs left that were killed a day ago. Hosts with these layers must have ended."""
    run = Path(os.environ["TESTBED_MADE"]).name
    for path in testbed.directory.glob("testbed-made-*"):
        if path.name.startswith(run) or time.time() - path.stat().st_mtime > 24 * 60 * 60:
            shutil.rmtree(path, ignore_errors=True)
