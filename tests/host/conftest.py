"""Verify a deployment: `pytest tests/host --inventory inventories/prod.py`. It only reads, so it is safe in production.

Without --inventory the tests run on throw-away hosts. Each module tests the role in its name, on the machine that plays it;
test_machine.py tests every machine.
"""

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from testinfra.host import Host

from roles import ROLES, Unit
from settings import Settings
from tests.conftest import Deployed
from tests.host.machines import Inventory, InventoryError, Machine
from tests.host.report import Note, Report
from tests.host.services import Service, ServiceTests

INVENTORY = pytest.StashKey[Inventory]()
REPORT = pytest.StashKey[Report]()


def pytest_configure(config: pytest.Config) -> None:
    if path := config.getoption("--inventory"):
        try:
            inventory = config.stash[INVENTORY] = Inventory(config.invocation_params.dir / path)
        except InventoryError as error:
            raise pytest.UsageError(str(error)) from None
        config.stash[REPORT] = Report(
            f"Deployment {inventory.deployment}",
            {machine.name: ", ".join(machine.roles) for machine in inventory.machines},
        )
        # The report at the end says what is wrong and what to do; the source of the tests does not help. --tb=short shows both.
        if config.option.tbstyle == "auto":
            config.option.tbstyle = "no"


def pytest_unconfigure(config: pytest.Config) -> None:
    if inventory := config.stash.get(INVENTORY, None):
        inventory.close()


def _role(module: Path) -> str | None:
    name = module.stem.removeprefix("test_")
    return name if name in ROLES else None


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A role that no machine plays is not tested, and not reported as skipped either."""
    inventory = config.stash.get(INVENTORY, None)
    unplayed = inventory and _role(collection_path) and not inventory.playing(_role(collection_path))
    return True if unplayed else None


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """With --inventory, its machines are used instead of throw-away hosts. The tests of every service run for each unit."""
    role = _role(metafunc.definition.path)
    if role and metafunc.cls and issubclass(metafunc.cls, ServiceTests) and len(units := ROLES[role].units) > 1:
        metafunc.parametrize("service", units, ids=[unit.name for unit in units], indirect=True, scope="module")
    if (inventory := metafunc.config.stash.get(INVENTORY, None)) and "deployed" in metafunc.fixturenames:
        machines = inventory.playing(_role(metafunc.definition.path))
        # By a mark, because otherwise the fixture would add its own hosts.
        metafunc.definition.add_marker(
            pytest.mark.parametrize("deployed", machines, ids=[machine.name for machine in machines], scope="session")
        )


@pytest.fixture(scope="session")
def machine(deployed: Deployed | Machine) -> Iterator[Machine]:
    """The machine to verify. Fails here, once, if it cannot be reached."""
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
    """testinfra's connection to the machine, as root."""
    return machine.host


@pytest.fixture(scope="session")
def settings(machine: Machine) -> Settings:
    """The settings of the machine."""
    return machine.settings


@pytest.fixture(scope="module")
def services(request: pytest.FixtureRequest, host: Host, settings: Settings) -> dict[str, Service]:
    """The services of the role that a module tests, which is in its name: unit, as in the record -> service."""
    role = _role(request.path)
    return {unit.name: Service.of(host, settings, ROLES[role], unit) for unit in ROLES[role].units} if role else {}


@pytest.fixture(scope="module")
def service(request: pytest.FixtureRequest, services: dict[str, Service]) -> Service:
    """The service that a test is about: each in turn for the tests of every service, the role's first for others."""
    unit: Unit | None = getattr(request, "param", None)
    return services[unit.name] if unit else next(iter(services.values()))


# The tests that make sense for a service that does not run.
WHILE_STOPPED = ("test_runs", "test_starts_at_boot", "test_keeps_its_secrets", "test_is_confined")


@pytest.fixture(autouse=True)
def _services(request: pytest.FixtureRequest, services: dict[str, Service]) -> list[Service]:
    """The services that a test is about. If one does not run, test_runs fails for it, and most other tests are skipped."""
    tested = [request.getfixturevalue("service")] if hasattr(request.cls, "test_runs") else [*services.values()]
    for service in tested:
        if service.properties["MainPID"] == "0" and request.node.originalname not in WHILE_STOPPED:
            pytest.skip(f"{service.unit} does not run")
    return tested


@pytest.fixture
def note(request: pytest.FixtureRequest, machine: Machine) -> Note:
    """A function that adds what a test found to the report."""
    report = request.config.stash.get(REPORT, None)

    def add(subject: str, text: str) -> None:
        if report:
            report.note(machine.name, subject, text)

    return add


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the end of the services' logs to a failure."""
    result = yield
    report = item.config.stash.get(REPORT, None)
    if report:
        _add_to_report(report, item, result, call)
    services: list[Service] = getattr(item, "funcargs", {}).get("_services", [])
    for service in services if result.when == "call" and result.failed else ():
        journal, log = f"journalctl -u {service.unit}", service.log_end()
        result.sections.append((journal, log))
        if report and getattr(item, "originalname", "") in ("test_runs", "test_answers"):
            report.logs[journal] = log
    return result


def _add_to_report(report: Report, item: pytest.Item, result: pytest.TestReport, call: pytest.CallInfo[None]) -> None:
    if result.failed and call.excinfo:
        name = getattr(item, "callspec", None) and item.callspec.params.get("deployed")  # type: ignore[attr-defined]
        # Below the message, pytest explains how the values differ, which does not help an administrator.
        text = str(call.excinfo.value).partition("\nassert ")[0].strip()
        if not call.excinfo.errisinstance((AssertionError, pytest.fail.Exception)):
            text = f"it could not be verified: {call.excinfo.exconly()}"
        report.problem(str(name or "the deployment"), text or result.nodeid, item.nodeid)
    elif result.when == "call" and result.passed:
        report.passed += 1
    elif result.skipped and isinstance(result.longrepr, tuple):
        report.skipped.append(result.longrepr[2].removeprefix("Skipped: "))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The report, instead of pytest's own summary."""
    if (report := config.stash.get(REPORT, None)) and (report.passed or report.problems):
        terminalreporter.reportchars = ""
        terminalreporter.section("verification")
        for line in report.lines():
            terminalreporter.line(line)
