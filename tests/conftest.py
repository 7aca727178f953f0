"""What the tests share: throw-away hosts, a release page, and a complete deployment on each Debian."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deployment import Deployment
from tests.standin.release_server import ReleaseServer
from tests.testbed import Host, Testbed

STAND_IN = Path(__file__).parent / "standin" / "syncv3"
RELEASE = "matrix-org/sliding-sync/releases/download/v0.99.19/syncv3_linux_amd64"


def real_proxy() -> Path | None:
    """The real Sliding Sync proxy, if SLIDING_SYNC_BINARY names it; else its stand-in is deployed."""
    named = os.environ.get("SLIDING_SYNC_BINARY")
    return Path(named).expanduser().resolve() if named else None


def pytest_addoption(parser: pytest.Parser) -> None:
    # For tests/host, whose own conftest.py is too late for options when every test is run.
    parser.addoption("--inventory", metavar="PATH", help="verify this live deployment, only reading (tests/host)")


@pytest.fixture(scope="session")
def testbed() -> Testbed:
    """The throw-away hosts of this checkout."""
    return Testbed()


@pytest.fixture(scope="session")
def release_page() -> Iterator[ReleaseServer]:
    """A release page that has the Sliding Sync proxy, or what stands in for it."""
    with ReleaseServer({RELEASE: real_proxy() or STAND_IN}) as server:
        yield server


@dataclass(frozen=True)
class Deployed:
    """A machine with every role, and the deployment that put them there."""

    host: Host
    deployment: Deployment

    @property
    def server_name(self) -> str:
        return self.host.domain


def complete(testbed: Testbed, host: Host, directory: Path, page: ReleaseServer, user: str = "root") -> Deployment:
    """A deployment of every role on one host, as its administrator would choose it on a private network."""
    deployment = Deployment(
        directory,
        [host],
        {
            "server_name": host.domain,
            "tls": "internal",
            "admin_email": f"admin@{host.domain}",
            # The hosts of the testbed have private addresses.
            "private_networks": [str(testbed.network.subnet), str(testbed.network.subnet6)],
            "sliding_sync_releases": f"{page.url}/matrix-org/sliding-sync/releases/download",
        },
        user=user,
    )
    deployment.environment["SSL_CERT_FILE"] = str(page.ca_file)
    deployment.environment["XDG_CACHE_HOME"] = str(directory / "cache")
    return deployment


@pytest.fixture(scope="session", params=["trixie", "bookworm"], ids=["debian13", "debian12"])
def deployed(
    request: pytest.FixtureRequest,
    testbed: Testbed,
    release_page: ReleaseServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Deployed]:
    """Every role on a Debian 13 and on a Debian 12 host, deployed once: tests leave it as they find it."""
    host = testbed.up({"trixie": "full13", "bookworm": "full12"}[request.param], release=request.param)
    deployment = complete(testbed, host, tmp_path_factory.mktemp(host.name), release_page)
    deployment.run("-y")
    yield Deployed(host, deployment)
    host.down()
