"""The Sliding Sync proxy, for old clients."""

from testinfra.host import Host

from settings import Settings
from settings.sliding_sync import SlidingSync
from tests.host.report import Note
from tests.host.services import DEPLOY, Service, ServiceTests, get, program_in_use


class TestService(ServiceTests):
    pass


def test_answers(host: Host, settings: Settings) -> None:
    proxy = settings.view(SlidingSync)
    answer = get(host, "http://localhost/client/server.json", unix_socket=proxy.socket)
    assert answer.status == 200, f"{answer}; see journalctl -u sliding-sync"
    assert answer.json().get("server") == proxy.homeserver_url, f"it serves another homeserver, {answer}: {DEPLOY}"


def test_is_the_version_of_the_settings(service: Service, settings: Settings, note: Note) -> None:
    current, wanted = program_in_use(service, "sliding-sync"), settings.view(SlidingSync).release.version
    note("versions", f"Sliding Sync proxy {current.rpartition('-')[0]}")
    assert current.startswith(f"{wanted}-"), f"version {current} runs, {wanted} is wanted: {DEPLOY}"
