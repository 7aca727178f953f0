"""Shared fixtures: two users, each logged in once because Synapse limits logins from one address, and a thread pool."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import Deployed
from tests.e2e.client import Account, Outside, new_user


@pytest.fixture(scope="session")
def outside(deployed: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Outside:
    """Clients on another machine, which reach the deployment by its public names."""
    return Outside(deployed.host, tmp_path_factory.mktemp("outside"))


@pytest.fixture(scope="session")
def alice(outside: Outside) -> Account:
    """A user of the homeserver."""
    return new_user(outside, "alice")


@pytest.fixture(scope="session")
def bob(outside: Outside) -> Account:
    """Another user of the same homeserver."""
    return new_user(outside, "bob")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for what a test does at the same time; the test ends when they have."""
    with ThreadPoolExecutor() as pool:
        yield pool
