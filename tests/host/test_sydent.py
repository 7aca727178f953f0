"""Sydent, the identity server."""

import pytest
from testinfra.host import Host

from settings import Settings
from tests.host.report import Note
from tests.host.services import DEPLOY, Answer, Service, ServiceTests, ask, get, locked_version, program_in_use


@pytest.fixture(scope="module")
def service(host: Host, settings: Settings) -> Service:
    return Service(
        host,
        "sydent.service",
        user="sydent",
        exposure=1.5,
        reads=["/etc/sydent"],
        # The texts of its mails are no secret, but lie behind a directory that others cannot enter.
        secrets=["/etc/sydent/sydent.conf", settings.sydent.database],
        troubles=r" - (ERROR|CRITICAL) - |^Traceback",
    )


class TestService(ServiceTests):
    pass


def ask_sydent(host: Host, settings: Settings, path: str) -> Answer:
    return get(host, f"http://{settings.sydent.bind_address}:{settings.sydent.port}/_matrix/identity/{path}")


def test_only_this_machine_reaches_it(service: Service, settings: Settings) -> None:
    own = f"{settings.sydent.bind_address}:{settings.sydent.port}"
    assert service.tcp() == {own}, f"Sydent listens on {service.tcp()} instead of {own}: {DEPLOY}"


def test_answers(host: Host, settings: Settings) -> None:
    answer = ask_sydent(host, settings, "v2")
    assert answer.status == 200, f"{answer}; see journalctl -u sydent"


def test_reaches_its_database(host: Host, settings: Settings) -> None:
    # It looks for the key among those that it once made for an invitation.
    answer = ask_sydent(host, settings, "v2/pubkey/ephemeral/isvalid?public_key=none")
    assert answer.status == 200 and answer.json() == {"valid": False}, (
        f"Sydent cannot use {settings.sydent.database}, {answer}; see journalctl -u sydent"
    )


def test_is_the_version_of_the_lock(service: Service, note: Note) -> None:
    """It does not say what it is: it is what lies in the virtualenv that it runs from."""
    current = program_in_use(service, "sydent")
    found = ask(service.host, f"ls -d /opt/sydent/{current}/lib/python3*/site-packages/matrix_sydent-*.dist-info")
    running = found.strip().rpartition("matrix_sydent-")[2].removesuffix(".dist-info")
    locked = locked_version("sydent", "matrix-sydent")
    note("versions", f"Sydent {running}")
    assert running == locked, f"Sydent {running} runs, requirements/sydent.txt says {locked}: {DEPLOY}"


def test_runs_from_the_installed_virtualenv(service: Service, settings: Settings) -> None:
    current = program_in_use(service, "sydent")
    assert current == settings.sydent.virtualenv.key, (
        f"/opt/sydent/{current} is in use, requirements/sydent.txt makes {settings.sydent.virtualenv.key}: {DEPLOY}"
    )
