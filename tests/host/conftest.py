"""Verify a deployment: `pytest tests/host --inventory inventories/prod.py`. Only reads, so it is safe on production.

Without --inventory the tests run on throw-away hosts. Each module tests one role, the one in its name, on the machine that
plays it; test_machine.py tests every machine.
"""

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from testinfra.host import Host

from settings import NEEDS, Settings
from tests.conftest import Deployed
from tests.host.machines import Inventory, InventoryError, Machine
from tests.host.services import Service

INVENTORY = pytest.StashKey[Inventory]()


def pytest_configure(config: pytest.Config) -> None:
    if path := config.getoption("--inventory"):
        try:
            config.stash[INVENTORY] = Inventory(config.invocation_params.dir / path)
        except InventoryError as error:
            raise pytest.UsageError(str(error)) from None
        # The message says what to do; the source of the test does not.
        if config.option.tbstyle == "auto":
            config.option.tbstyle = "short"


def pytest_unconfigure(config: pytest.Config) -> None:
    if inventory := config.stash.get(INVENTORY, None):
        inventory.close()


def _role(module: Path) -> str | None:
    name = module.stem.removeprefix("test_")
    return name if name in NEEDS else None


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A role that nobody plays is not tested; there is nothing to say about it."""
    inventory = config.stash.get(INVENTORY, None)
    unplayed = inventory and _role(collection_path) and not inventory.playing(_role(collection_path))
    return True if unplayed else None


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """With --inventory, its machines take the place of the throw-away hosts."""
    if (inventory := metafunc.config.stash.get(INVENTORY, None)) and "deployed" in metafunc.fixturenames:
        machines = inventory.playing(_role(metafunc.definition.path))
        # A mark, because only what a mark parametrises is not parametrised again by the fixture's own hosts.
        metafunc.definition.add_marker(
            pytest.mark.parametrize("deployed", machines, ids=[machine.name for machine in machines], scope="session")
        )


@pytest.fixture(scope="session")
def machine(deployed: Deployed | Machine) -> Iterator[Machine]:
    """The machine to verify. It is found out here, once, whether it can be reached."""
    if isinstance(deployed, Machine):
        assert deployed.state
        yield deployed
        return
    deployment = deployed.deployment
    inventory = Inventory(deployment.inventory, deployment.environment)
    yield inventory.machines[0]
    inventory.close()


@pytest.fixture(scope="session")
def host(machine: Machine) -> Host:
    """The same as testinfra's: how to ask the machine, as root."""
    return machine.host


@pytest.fixture(scope="session")
def settings(machine: Machine) -> Settings:
    """What the machine should work with."""
    return machine.settings


@pytest.fixture(scope="module")
def service() -> Service | None:
    """The service that a module is about; each says it in a fixture of its own."""
    return None


@pytest.fixture(autouse=True)
def _of_interest(service: Service | None) -> Service | None:
    """Makes the service known to pytest_runtest_makereport, whether a test asks for it or not."""
    return service


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure comes with the end of the service's log."""
    report = yield
    service = getattr(item, "funcargs", {}).get("_of_interest")
    if report.when == "call" and report.failed and service:
        report.sections.append((f"journalctl -u {service.unit}", service.log_end()))
    return report
