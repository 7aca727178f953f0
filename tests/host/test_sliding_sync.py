"""The Sliding Sync proxy, for old clients."""

import pytest
from testinfra.host import Host

from settings import Settings
from tests.host.report import Note
from tests.host.services import DEPLOY, Service, ServiceTests, get, program_in_use


@pytest.fixture(scope="module")
def service(host: Host) -> Service:
    return Service(
        host,
        "sliding-sync.service",
        user="sliding-sync",
        exposure=1.5,
        reads=["/etc/sliding-sync"],
        secrets=["/etc/sliding-sync"],
        troubles=r"\b(FTL|PNC)\b|^panic:|\"level\":\"(fatal|panic)\"",
    )


class TestService(ServiceTests):
    pass


def test_only_this_machine_reaches_it(service: Service, settings: Settings) -> None:
    own = f"{settings.sliding_sync.address}:{settings.sliding_sync.port}"
    assert service.tcp() == {own}, f"the Sliding Sync proxy listens on {service.tcp()} instead of {own}: {DEPLOY}"


def test_answers(host: Host, settings: Settings) -> None:
    proxy = settings.sliding_sync
    answer = get(host, f"http://{proxy.address}:{proxy.port}/client/server.json")
    assert answer.status == 200, f"{answer}; see journalctl -u sliding-sync"
    assert answer.json().get("server") == proxy.homeserver_url, f"it serves another homeserver, {answer}: {DEPLOY}"


def test_is_the_version_of_the_settings(service: Service, settings: Settings, note: Note) -> None:
    current, wanted = program_in_use(service, "sliding-sync"), settings.sliding_sync.release.version
    note("versions", f"Sliding Sync proxy {current.rpartition('-')[0]}")
    assert current.startswith(f"{wanted}-"), f"version {current} runs, {wanted} is wanted: {DEPLOY}"
