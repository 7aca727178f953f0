"""The monitoring notices what goes wrong. Its rules are judged by Debian's promtool, each on what it is for."""

import itertools
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest

from operations.templating import render
from roles import MONITORING, PROMETHEUS_PORT
from settings.admin import USER
from settings.monitoring import Presented
from tests.conftest import ADMIN_PASSWORD, Deployed
from tests.e2e.call.browser import browsing
from tests.e2e.test_admin import at_the_same_port, tunnel, wait_for
from tests.testbed import Host

pytestmark = pytest.mark.role("monitoring")

# In promtool's notation, a figure for each minute from 0 on, N being the end. WRONG: alert -> what is not as in HEALTHY, and
# when it is looked at.
HEALTHY = {
    "matrix_metal_figures_seconds": "0+60xN",
    'matrix_metal_unit_up{unit="a.service"}': "1xN",
    'matrix_metal_unit_started_seconds{unit="a.service"}': "7xN",
    'up{job="node"}': "1xN",
    'probe_ssl_earliest_cert_expiry{name="a.test",port="443"}': "9000000xN",
    'probe_success{name="a.test",port="443"}': "1xN",
    'matrix_metal_backup_success_seconds{part="wal"}': "0+60xN",
    'matrix_metal_backup_late_seconds{part="wal"}': "300xN",
    'matrix_metal_backup_failed{part="wal"}': "0xN",
    "pg_stat_archiver_failed_count": "3xN",
    'node_filesystem_avail_bytes{mountpoint="/"}': "50xN",
    'node_filesystem_size_bytes{mountpoint="/"}': "100xN",
    'node_filesystem_files_free{mountpoint="/"}': "0xN",
    'node_filesystem_files{mountpoint="/"}': "0xN",  # btrfs does not count them
    "node_memory_MemAvailable_bytes": "50xN",
    "node_memory_MemTotal_bytes": "100xN",
    "node_timex_sync_status": "1xN",
    "matrix_metal_reboot_required": "0xN",
    'matrix_metal_damage_total{source="kernel"}': "2xN",
    'pg_stat_database_deadlocks{datname="synapse"}': "40xN",
    'pg_stat_activity_count{datname="synapse"}': "20xN",
    "pg_settings_max_connections": "100xN",
    "pg_up": "1xN",
    'pg_stat_activity_max_tx_duration{datname="synapse"}': "5xN",
    "synapse_storage_schedule_time_sum": "0+0.1xN",
    "synapse_storage_schedule_time_count": "0+100xN",
    'python_twisted_reactor_tick_time_bucket{le="0.1"}': "0+100xN",
    'python_twisted_reactor_tick_time_bucket{le="5.0"}': "0+100xN",
    'python_twisted_reactor_tick_time_bucket{le="+Inf"}': "0+100xN",
    'synapse_event_processing_lag{name="a"}': "40xN",
    "synapse_storage_events_persisted_events_total": "0+9xN",
    "synapse_federation_transaction_queue_pending_pdus": "7xN",
    "synapse_http_httppusher_http_pushes_failed_total": "0+0.1xN",
    "synapse_http_httppusher_http_pushes_processed_total": "0+9xN",
    'synapse_http_server_responses_total{code="200"}': "0+900xN",
    'synapse_http_server_responses_total{code="500"}': "0+1xN",
    'caddy_http_request_duration_seconds_count{code="200"}': "0+900xN",
    'caddy_http_request_duration_seconds_count{code="502"}': "0+1xN",
    "caddy_http_requests_total": "0+901xN",
    "caddy_http_request_errors_total": "0+200xN",
    'process_open_fds{job="caddy"}': "100xN",
    'process_max_fds{job="caddy"}': "1000xN",
    "alertmanager_notifications_failed_total": "4xN",
}
WRONG: dict[str, tuple[dict[str, str], str]] = {
    "UnitDown": ({'matrix_metal_unit_up{unit="a.service"}': "1 0xN"}, "10m"),
    "UnitRestarts": ({'matrix_metal_unit_started_seconds{unit="a.service"}': "1 2 3 4 5xN"}, "10m"),
    "NotScraped": ({'up{job="node"}': "0xN"}, "10m"),
    "FiguresStale": ({"matrix_metal_figures_seconds": "0xN"}, "20m"),
    "CertificateNotRenewed": ({'probe_ssl_earliest_cert_expiry{name="a.test",port="443"}': "600000xN"}, "20m"),
    "CertificateWrong": ({'probe_success{name="a.test",port="443"}': "0xN"}, "20m"),
    "BackupLate": ({'matrix_metal_backup_success_seconds{part="wal"}': "0xN"}, "20m"),
    "BackupFails": ({'matrix_metal_backup_failed{part="wal"}': "1xN"}, "20m"),
    "ArchivingFails": ({"pg_stat_archiver_failed_count": "0+1xN"}, "40m"),
    "DiskAlmostFull": ({'node_filesystem_avail_bytes{mountpoint="/"}': "6xN"}, "20m"),
    "DiskFullSoon": ({'node_filesystem_avail_bytes{mountpoint="/"}': "30-0.005xN"}, "1700m"),
    "MemoryShort": ({"node_memory_MemAvailable_bytes": "4xN"}, "20m"),
    "ClockOff": ({"node_timex_sync_status": "0xN"}, "80m"),
    "RebootDue": ({"matrix_metal_reboot_required": "1xN"}, "1500m"),
    "Damage": ({'matrix_metal_damage_total{source="kernel"}': "2 2 3xN"}, "10m"),
    "Deadlocks": ({'pg_stat_database_deadlocks{datname="synapse"}': "0+1xN"}, "50m"),
    "DatabaseConnections": ({'pg_stat_activity_count{datname="synapse"}': "95xN"}, "20m"),
    "DatabaseDown": ({"pg_up": "0xN"}, "20m"),
    "LongTransaction": ({'pg_stat_activity_max_tx_duration{datname="synapse"}': "8000xN"}, "20m"),
    "DatabaseSlow": ({"synapse_storage_schedule_time_sum": "0+60xN"}, "40m"),
    "SynapseBusy": ({'python_twisted_reactor_tick_time_bucket{le="0.1"}': "0+50xN"}, "40m"),
    "EventsLate": ({'synapse_event_processing_lag{name="a"}': "90000xN"}, "40m"),
    "FederationQueue": ({"synapse_federation_transaction_queue_pending_pdus": "3000xN"}, "40m"),
    "PushFails": ({"synapse_http_httppusher_http_pushes_failed_total": "0+10xN"}, "90m"),
    "Errors": ({'synapse_http_server_responses_total{code="500"}': "0+90xN"}, "40m"),
    "GatewayErrors": ({'caddy_http_request_duration_seconds_count{code="502"}': "0+90xN"}, "40m"),
    "FilesOpen": ({'process_open_fds{job="caddy"}': "900xN"}, "20m"),
    "AlertsNotSent": ({"alertmanager_notifications_failed_total": "0+1xN"}, "40m"),
}
FIRING = 'count by (alertname) (ALERTS{alertstate="firing"})'


def case(changes: dict[str, str], when: str, firing: str) -> dict[str, Any]:
    count = when.removesuffix("m")
    series = [
        {"series": name, "values": values.replace("xN", f"x{count}")} for name, values in {**HEALTHY, **changes}.items()
    ]
    samples = [{"labels": f'{{alertname="{firing}"}}', "value": 1}] if firing else []
    return {
        "name": firing or "nothing is wrong",
        "interval": "1m",
        "input_series": series,
        "promql_expr_test": [{"expr": FIRING, "eval_time": when, "exp_samples": samples}],
    }


def every(case: dict[str, Any]) -> str:
    """How often the rules are judged in a case."""
    return "1m" if len(case["promql_expr_test"][0]["eval_time"]) < len("1000m") else "10m"


# The older promtool of the two.
@pytest.mark.once("debian12")
def test_each_rule_notices_what_it_is_for_and_nothing_else(deployed: Deployed) -> None:
    # As on a machine that has all: backups, and a certificate of an issuer's.
    machine = SimpleNamespace(late_after={"wal": 300}, left=7 * 86400, caddy=True)
    rules, _ = render("monitoring/rules.yaml.j2", {"monitoring": machine, "presented": [Presented("a.test", 443)]})
    assert {line.split()[-1] for line in rules.splitlines() if "- alert:" in line} == set(WRONG)
    cases = [case({}, when, "") for when in ("20m", "100m")]
    cases += [case(changes, when, alert) for alert, (changes, when) in WRONG.items()]
    # In another way: Caddy reaches nobody.
    cases.append(case({"caddy_http_request_errors_total": "0+600xN"}, "40m", "GatewayErrors"))
    host, directory = deployed.host, "/run/rules"
    host.run(f"mkdir -p {directory}")
    try:
        host.run(f"cat >{directory}/rules.yaml", stdin=rules)
        # What takes a day is judged less often.
        for interval, several in itertools.groupby(sorted(cases, key=every), every):
            tests = {"rule_files": ["rules.yaml"], "evaluation_interval": interval, "tests": [*several]}
            # JSON is YAML.
            host.run(f"cat >{directory}/tests-{interval}.yaml", stdin=json.dumps(tests))
        done = host.run(f"promtool test rules {directory}/tests-*.yaml 2>&1", check=False, timeout=120)
        assert done.returncode == 0, done.stdout
    finally:
        host.run(f"rm -r {directory}")


def asked(host: Host, path: str) -> Any:
    return json.loads(host.run(f"curl -sf 'http://127.0.0.1:{PROMETHEUS_PORT}/api/v1/{path}'").stdout)["data"]


@pytest.mark.once("debian13")
def test_a_service_that_stops_is_noticed(deployed: Deployed, chromium: Host, tmp_path: Path) -> None:
    """Soon: the administrator is told when it has lasted for a minute. The overview shows it at once, and what to do."""
    host, wanted = deployed.host, {"alertname": "UnitDown", "unit": "sydent.service"}
    host.run("systemctl stop sydent")
    try:
        host.run("systemctl start matrix-metal-figures")
        deadline = time.monotonic() + 60
        while not any(wanted.items() <= each["labels"].items() for each in asked(host, "alerts")["alerts"]):
            assert time.monotonic() < deadline, asked(host, "alerts")
            time.sleep(0.5)
        # After a deployment, it takes a minute until each certificate was looked at.
        probed, deadline = quote(f'probe_success{{name="matrix.{host.domain}"}}'), time.monotonic() + 90
        while not asked(host, f"query?query={probed}")["result"]:
            assert time.monotonic() < deadline, probed
            time.sleep(1)
        with tunnel(deployed) as url, at_the_same_port(chromium, url), browsing(chromium) as browser:
            page, address = browser.page(), url.replace("//admin.", "//monitor.")
            page.open(address.replace("//", f"//{USER}:{ADMIN_PASSWORD.replace(' ', '%20')}@"))
            page.open(address)

            def shown() -> str:
                return str(page.run("document.body ? document.body.innerText : ''"))

            for text in ("as it was at", "sydent.service does not run", "journalctl -u sydent.service says why"):
                wait_for(shown, text)
            for text in (f"matrix.{host.domain}\n", "Synapse\n", "Prometheus\n", "Programs\n"):
                assert text in shown(), text
            assert page.run("document.querySelectorAll('.plot > *').length") == 6
            page.picture(tmp_path / "desktop.png", 1440, 900)
            page.picture(tmp_path / "phone.png", 390, 844)
            # Nothing is wider than a phone.
            assert page.run("document.documentElement.scrollWidth") <= 390
    finally:
        host.run("systemctl start sydent && systemctl start matrix-metal-figures")


def test_figures_of_each_service_arrive(deployed: Deployed) -> None:
    """Those that the rules are about, soon. LiveKit's are its own or its stand-in's."""
    host, deadline = deployed.host, time.monotonic() + 90
    for expression in (
        "synapse_build_info",
        "synapse_storage_schedule_time_count",
        "python_twisted_reactor_tick_time_bucket",
        "synapse_federation_transaction_queue_pending_pdus",
        "caddy_http_request_duration_seconds_count",
        "pg_stat_archiver_failed_count",
        'pg_stat_activity_max_tx_duration{datname="synapse"}',
        "pg_settings_max_connections",
        'pg_stat_database_deadlocks{datname="synapse"}',
        'node_filesystem_avail_bytes{mountpoint="/"}',
        "node_memory_MemAvailable_bytes",
        "node_timex_sync_status",
        "matrix_metal_unit_up",
        "matrix_metal_users_today",
        'matrix_metal_version_info{component="Synapse"}',
        'process_open_fds{job="caddy"}',
        'up{job="livekit"} == 1',
        'namedprocess_namegroup_num_procs{groupname="matrix-synapse"} == 1',
        'namedprocess_namegroup_num_procs{groupname="postgres"} > 5',
        'rate(namedprocess_namegroup_cpu_seconds_total{groupname="matrix-synapse"}[10m])',
        f'probe_success{{name="turn.{host.domain}",port="5349"}} == 1',
        f'probe_ssl_earliest_cert_expiry{{name="{host.domain}",port="443"}}',
        "alertmanager_notifications_failed_total",
    ):
        while not asked(host, f"query?query={quote(expression)}")["result"]:
            assert time.monotonic() < deadline, expression
            time.sleep(1)


def test_nobody_else_reaches_it(deployed: Deployed) -> None:
    """Not even a local user: who does may silence alerts, or send others."""
    host = deployed.host
    for port in MONITORING.local_ports:
        refused = f"runuser -u nobody -- curl -s --max-time 5 -o /dev/null http://127.0.0.1:{port}/metrics"
        assert host.run(refused, check=False).returncode == 7, port


def test_its_role_in_postgresql_sees_no_data(deployed: Deployed) -> None:
    host, [role] = deployed.host, MONITORING.database_roles
    as_exporter = f"cd / && runuser -u {role} -- psql -XAtqc 'SELECT 1' -h /run/postgresql"
    assert host.run(f"{as_exporter} postgres", check=False).stdout.strip() == "1"
    for database in ("synapse", "syncv3"):
        done = host.run(f"{as_exporter} {database}", check=False)
        assert done.returncode and "permission denied" in done.stderr, done.stderr
