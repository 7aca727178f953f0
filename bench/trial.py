"""Throw-away hosts to measure on, and the deployment of every role that is measured."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from settings import element
from tests.conftest import STAND_IN, livekit_archive, lk_jwt, real_proxy
from tests.deployment import Deployment
from tests.standin.archives import (
    element_archive,
    ketesa_archive,
    real_element,
    real_ketesa,
    real_uplot,
    uplot_archive,
)
from tests.testbed import Host, Testbed

# The roles that 0.1.0 has; and with what Element X needs.
SIX = ("postgres", "synapse", "caddy", "sydent", "sliding_sync", "coturn")
ELEMENT_X = (*SIX, "mas", "rtc")


def say(text: str) -> None:
    print(f"--> {text}", flush=True)


def load() -> str:
    """The load of this machine, which also runs the hosts: on a busy machine the figures mean little."""
    one, five, _ = os.getloadavg()
    return f"load {one:.1f} (5 min: {five:.1f}) on {os.cpu_count()} processors"


def proxy() -> Path:
    """The program deployed as Sliding Sync proxy: given as a file, because a download would measure another server."""
    return real_proxy() or STAND_IN


@contextmanager
def fresh_host(name: str, release: str = "trixie") -> Iterator[Host]:
    """A new host, deleted afterwards."""
    host = Testbed().up(name, release=release)
    try:
        yield host
    finally:
        host.down()


@contextmanager
def every_role(host: Host) -> Iterator[Deployment]:
    """A deployment of every role to the host, with a vault of its own, not yet run."""
    with TemporaryDirectory(prefix="bench-") as directory:
        livekit = Path(directory) / "livekit.tar.gz"
        livekit.write_bytes(livekit_archive())
        yield Deployment(
            Path(directory),
            [host],
            {
                "server_name": host.domain,
                "tls": "internal",
                "admin_email": f"admin@{host.domain}",
                "private_networks": [str(host.bed.network.subnet), str(host.bed.network.subnet6)],
                "sliding_sync_binary": str(proxy()),
                "livekit_archive": str(livekit),
                "lk_jwt_binary": str(lk_jwt()),
                "element_archive": str(real_element() or element_archive(Path(directory), element.VERSION)),
                "ketesa_archive": str(real_ketesa() or ketesa_archive(Path(directory))),
                "uplot_archive": str(real_uplot() or uplot_archive(Path(directory))),
                "uplot_sha256": None,
            },
        )
