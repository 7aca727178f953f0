"""Who uses a deployment: two users, each logged in once, because Synapse allows few logins from one address."""

import asyncio
import secrets

import pytest

from tests.conftest import Deployed
from tests.e2e.client import Account, Outside, register


@pytest.fixture(scope="session")
def outside(deployed: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Outside:
    """Another machine, which reaches the deployment by its public names."""
    return Outside(deployed.host, tmp_path_factory.mktemp("outside"))


@pytest.fixture(scope="session")
def alice(outside: Outside) -> Account:
    """A user of the deployment."""
    return _user(outside, "alice")


@pytest.fixture(scope="session")
def bob(outside: Outside) -> Account:
    """Another user of it."""
    return _user(outside, "bob")


def _user(outside: Outside, name: str) -> Account:
    user, password = f"{name}-{secrets.token_hex(3)}", secrets.token_urlsafe(20)
    register(outside.host, user, password)
    return asyncio.run(outside.log_in(user, password))
