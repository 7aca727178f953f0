"""ntfy, the push server."""

from testinfra.host import Host

from roles import NTFY
from settings import Settings
from tests.host.services import DEPLOY, ServiceTests, get


class TestService(ServiceTests):
    pass


def test_is_a_gateway_for_notifications(host: Host, settings: Settings) -> None:
    answer = get(host, f"https://{settings.domain(NTFY)}/_matrix/push/v1/notify")
    assert answer.status == 200, f"{answer}; see journalctl -u ntfy"
    assert answer.json() == {"unifiedpush": {"gateway": "matrix"}}, f"{answer}: {DEPLOY}"
