"""What the monitoring of a test host has noticed."""

import json

from roles import PROMETHEUS_PORT
from tests.testbed import Host


def labels_of_alerts(host: Host) -> list[dict[str, str]]:
    """Of each alert of the last ten minutes. They are not sent before it has lasted for as long as their rules say."""
    url = f"http://127.0.0.1:{PROMETHEUS_PORT}/api/v1/query"
    shown = host.run(f"curl -sfG {url} --data-urlencode 'query=last_over_time(ALERTS[10m])'").stdout
    return [each["metric"] for each in json.loads(shown)["data"]["result"]]
