"""What the tests share: two users, each logged in once, because Synapse allows few logins from one address, and threads."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import Deployed
from tests.e2e.client import Account, Outside, new_user


@pytest.fixture(scope="session")
def outside(deployed: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Outside:
    """Another machine, which reaches the deployment by its public names."""
    return Outside(deployed.host, tmp_path_factory.mktemp("outside"))


@pytest.fixture(scope="session")
def alice(outside: Outside) -> Account:
    """A user of the deployment."""
    return new_user(outside, "alice")


@pytest.fixture(scope="session")
def bob(outside: Outside) -> Account:
    """Another user of it."""
    return new_user(outside, "bob")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """For what happens at once; at the end of the test it is over."""
    with ThreadPoolExecutor() as pool:
        yield pool
