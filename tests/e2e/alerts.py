"""What the monitoring of a test host has noticed, and rules of it that a test has time for."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from roles import MONITORING_HOME, PROMETHEUS_PORT
from tests.testbed import Host

RULES = f"{MONITORING_HOME}/rules.yaml"


def labels_of_alerts(host: Host) -> list[dict[str, str]]:
    """Of each alert of the last ten minutes. They are not sent before it has lasted for as long as their rules say."""
    return [each["metric"] for each in asked(host, "last_over_time(ALERTS[10m])")]


def asked(host: Host, query: str) -> list[dict[str, Any]]:
    """What Prometheus answers."""
    url = f"http://127.0.0.1:{PROMETHEUS_PORT}/api/v1/query"
    shown = host.run(f"curl -sfG {url} --data-urlencode query@-", stdin=query).stdout
    result: list[dict[str, Any]] = json.loads(shown)["data"]["result"]
    return result


@contextmanager
def shortened(host: Host, changes: Mapping[str, Mapping[str, str]]) -> Iterator[None]:
    """Rules with other numbers: alert -> what stands in it -> what stands there meanwhile.

    A test can wait for seconds where a rule has hours; how long each has in truth, test_monitoring.py judges.
    """
    text = host.run(f"cat {RULES}").stdout
    for alert, replaced in changes.items():
        [rule] = re.findall(rf"- alert: {alert}\n +expr: .*\n", text)
        changed = rule
        for old, new in replaced.items():
            assert old in changed, changed
            changed = changed.replace(old, new)
        text = text.replace(rule, changed)
    load = f"promtool check rules {RULES} >/dev/null && systemctl kill -s HUP matrix-prometheus"
    host.run(f"cp -p {RULES} /run/rules.yaml; cat >{RULES}; {load}", stdin=text)
    try:
        yield
    finally:
        host.run(f"cp -p /run/rules.yaml {RULES}; rm /run/rules.yaml; {load}")
