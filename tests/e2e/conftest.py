"""Shared fixtures: two users, each logged in once because Synapse limits logins from one address, and a thread pool."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import Deployed, own
from tests.e2e.call.browser import install
from tests.e2e.client import Account, Outside, Side, new_user
from tests.testbed import Host, Testbed


@pytest.fixture(scope="session")
def outside(deployed: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Outside:
    """Clients on another machine, which reach the deployment by its public names."""
    return Outside(deployed.host, tmp_path_factory.mktemp("outside"))


@pytest.fixture(scope="session")
def chromium(testbed: Testbed) -> Iterator[Host]:
    """A machine with Chromium, for all deployments."""
    host = testbed.up(own("chromium"))
    install(host)
    yield host
    host.down()


@pytest.fixture(scope="session")
def alice(outside: Outside) -> Account:
    """A user of the homeserver."""
    return new_user(outside, "alice")


@pytest.fixture(scope="session")
def bob(outside: Outside) -> Account:
    """Another user of the same homeserver."""
    return new_user(outside, "bob")


@pytest.fixture(scope="session")
def sides(both: tuple[Deployed, Deployed], tmp_path_factory: pytest.TempPathFactory) -> tuple[Side, Side]:
    """Alice on Debian 13 and Bob on Debian 12, whose homeservers trust each other's authority.

    The authorities stay trusted afterwards: no other test is affected.
    """
    outsides = [Outside(each.host, tmp_path_factory.mktemp(each.host.name)) for each in both]

    def trust(deployed: Deployed, other: Outside) -> list[str]:
        deployed.host.put(other.root, "/usr/local/share/ca-certificates/neighbour.crt")
        deployed.host.run("update-ca-certificates")
        return deployed.deployment.run("-y").changed

    with ThreadPoolExecutor() as pool:
        for changed in pool.map(trust, both, reversed(outsides)):
            # They read the trust store only when they start, so the deploy after its change has to restart them.
            expected = ["Run Synapse", "Run Sydent", "Run lk-jwt-service", "Run the blackbox exporter"]
            assert changed == expected, f"the trust store has changed; the deploy did {changed}"
    first, second = (
        Side(deployed, outside, new_user(outside, name))
        for deployed, outside, name in zip(both, outsides, ("alice", "bob"), strict=True)
    )
    return first, second


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for what a test does at the same time; the test ends when they have."""
    with ThreadPoolExecutor() as pool:
        yield pool
