"""The monitoring: what it is told is all there, it writes to somebody, and it stays small."""

import json
import re
import time
from collections.abc import Sequence

import pytest
from testinfra.host import Host

from manage.judgement import size
from roles import FIGURES, FIGURES_TIMER, MONITORING, PROMETHEUS_PORT
from settings import Settings
from settings.deployment import listed
from settings.monitoring import Monitoring
from settings.synapse import Choices as Homeserver
from tests.host.report import Note
from tests.host.services import DEPLOY, ServiceTests, ask

# PSS of the whole role.
MOST = 250 << 20
# Seconds between two questions to the same target, and until the second has failed.
MOST_BETWEEN = 75


class TestService(ServiceTests):
    pass


@pytest.fixture
def monitoring(settings: Settings) -> Monitoring:
    return settings.view(Monitoring)


def asked(host: Host, path: str) -> dict[str, list[dict[str, object]]]:
    """An answer of Prometheus's API."""
    found: dict[str, list[dict[str, object]]] = json.loads(
        ask(host, "curl -qsf --max-time 10 %s", f"http://127.0.0.1:{PROMETHEUS_PORT}/api/v1/{path}")
    )["data"]
    return found


def silent(host: Host) -> dict[str, tuple[str, str]]:
    """What does not say how it is: when it was asked, and why not. Of a service that is down its own tests tell."""
    return {
        str(each["scrapePool"]): (str(each["lastScrape"]), str(each["lastError"]))
        for each in asked(host, "targets?state=active")["activeTargets"]
        if each["health"] == "down" and "connect" not in str(each["lastError"])
    }


def test_everything_says_how_it_is(host: Host, monitoring: Monitoring) -> None:
    before = down = silent(host)
    end = time.monotonic() + MOST_BETWEEN
    # One that was stopped in the middle of its answer is asked again soon.
    while before.items() & down.items() and time.monotonic() < end:
        time.sleep(1)
        down = silent(host)
    wrong = ", ".join(f"{name} ({why})" for name, (_, why) in sorted(down.items()))
    assert not wrong, f"{wrong}: {DEPLOY}, or see journalctl -u matrix-prometheus"
    pools = {str(each["scrapePool"]) for each in asked(host, "targets?state=active")["activeTargets"]}
    missing = {each.job for each in monitoring.targets} - pools
    assert not missing, f"{', '.join(sorted(missing))} is not asked: {DEPLOY}"


def test_figures_are_collected(host: Host) -> None:
    assert ask(host, "systemctl is-active %s || true", FIGURES_TIMER.timer).strip() == "active", (
        f"{FIGURES_TIMER.timer} does not run: {DEPLOY}"
    )
    age = float(ask(host, "date +%s")) - float(ask(host, "stat -c %%Y %s", f"{FIGURES}/figures.prom"))
    assert age < 120, f"no figures for {age:.0f} s: see journalctl -u {FIGURES_TIMER.name}"


def test_what_it_finds_is_reported(host: Host, note: Note) -> None:
    """It tells the administrator itself: what lasts too short for that counts as well here."""
    for each in asked(host, "alerts")["alerts"]:
        note("monitoring", f"{each['state']}: {each['annotations']['summary']}")  # type: ignore[index]


def told(monitoring: Monitoring, in_room: Sequence[str]) -> str:
    """Who is told of alerts, or what is missing for that. in_room: the accounts that are told in a room."""
    ways = [f"by mail to {monitoring.to}"] if monitoring.mails else []
    ways += [f"in a room: {', '.join(in_room)}"] if in_room else []
    needed = {"smtp_host": monitoring.mail.host, "admin_email": monitoring.to}
    return "; ".join(ways) or (
        f"nobody is told: set {listed([name for name, chosen in needed.items() if not chosen])}, or alerts_to"
    )


def test_somebody_is_told(settings: Settings, monitoring: Monitoring, note: Note) -> None:
    """A warning only: no mail server need be set."""
    note("alerts", told(monitoring, settings.section(Homeserver).alerts_to))


def test_its_rules_can_be_judged(host: Host) -> None:
    groups = asked(host, "rules")["groups"]
    wrong = [rule["name"] for group in groups for rule in group["rules"] if rule["health"] == "err"]  # type: ignore[attr-defined]
    assert not wrong, f"{', '.join(wrong)} cannot be judged: see journalctl -u matrix-prometheus"


def test_it_stays_small(host: Host, note: Note) -> None:
    units = " ".join(unit.name for unit in MONITORING.units)
    command = (
        f"for unit in {units}; do for pid in $(cat /sys/fs/cgroup/system.slice/$unit/cgroup.procs); do "
        "grep ^Pss: /proc/$pid/smaps_rollup; done; done"
    )
    used = sum(int(kilobytes) << 10 for kilobytes in re.findall(r"Pss:\s+(\d+) kB", ask(host, "sh -c %s", command)))
    assert used <= MOST, f"the monitoring has {size(used)} of memory instead of at most {size(MOST)}"
    note("monitoring", size(used))
