"""What the monitoring's rules are about is made to happen, and each rule that can be brought to it in a minute notices.

They are judged with series of figures in test_monitoring.py, all of them, to the time when the administrator is told.
"""

import json
import time

import pytest

from roles import FIGURES, FIGURES_TIMER, PROMETHEUS_PORT
from tests.conftest import Deployed
from tests.testbed import Host

pytestmark = pytest.mark.role("monitoring")

PRELUDE = r"""
set -e
cd /
python=/opt/matrix-synapse/current/bin/python
as_postgres() { runuser -u postgres -- "$@"; }
ask() {
    curl -sk --parallel --parallel-max 20 --resolve matrix.DOMAIN:443:127.0.0.1 >/dev/null \
        "https://matrix.DOMAIN/_matrix/client/v3/directory/room/%23nobody%3ADOMAIN?$1"
}
on_aliases() { as_postgres psql -Xqd synapse -c "$1 SELECT ON room_aliases $2 \"matrix-synapse\""; }
"""
# Two transactions take two rows, each in the other's order.
DEADLOCK = r"""
import threading, psycopg2
def run(first, second, gate):
    with psycopg2.connect("dbname=postgres") as one:
        cursor = one.cursor()
        cursor.execute("SET deadlock_timeout = '50ms'")
        cursor.execute("SELECT * FROM locked WHERE id = %s FOR UPDATE", (first,))
        gate.wait()
        try:
            cursor.execute("SELECT * FROM locked WHERE id = %s FOR UPDATE", (second,))
        except psycopg2.errors.DeadlockDetected:
            pass
for _ in range(25):
    gate = threading.Barrier(2)
    both = [threading.Thread(target=run, args=(*each, gate)) for each in ((1, 2), (2, 1))]
    [each.start() for each in both]
    [each.join() for each in both]
"""
# Until its standard input ends.
CONNECTED = r"""
import psycopg2, time
one = psycopg2.connect("dbname=postgres")
cursor = one.cursor()
cursor.execute("SELECT current_setting('max_connections')::int - count(*) FROM pg_stat_activity WHERE datname <> ''")
[left] = cursor.fetchone()
many = [psycopg2.connect("dbname=postgres") for _ in range(left - 8)]
time.sleep(600)
"""

# Alert -> the labels of what it is about, what makes it happen, and what ends that. In this order.
CAUSES: dict[str, tuple[dict[str, str], str, str]] = {
    # Meanwhile the others. Prometheus may have begun just now, and not have seen the first of them.
    "UnitRestarts": (
        {"unit": "sliding-sync.service"},
        "systemd-run -q --unit=restarts sh -c "
        "'for i in $(seq 9); do systemctl restart sliding-sync; systemctl start matrix-metal-figures; sleep 16; done'",
        "systemctl stop restarts; systemctl reset-failed sliding-sync",
    ),
    # A figure has to be there before it can grow. Nor are these errors left for the tests that come after this one.
    "Errors": (
        {},
        "on_aliases REVOKE FROM; ask '[1-10]'; sleep 20; ask '[1-900]'; on_aliases GRANT TO",
        "on_aliases GRANT TO; systemctl restart matrix-synapse",
    ),
    "GatewayErrors": ({}, "", ""),
    # A file of the database has other bytes than were written, and is read.
    "Damage": (
        {"source": "postgresql"},
        """
        as_postgres createdb whole
        as_postgres psql -Xqd whole -c 'CREATE TABLE t AS SELECT generate_series(1, 1000)'
        as_postgres psql -Xqc 'CREATE DATABASE damaged TEMPLATE whole STRATEGY file_copy'
        file=$(as_postgres psql -XAtqd damaged -c "SELECT pg_relation_filepath('t')")
        data=$(as_postgres psql -XAtqc 'SHOW data_directory')
        printf 'not what was written' | dd of="$data/$file" bs=1 seek=4000 conv=notrunc status=none
        ! as_postgres psql -Xqd damaged -c 'SELECT count(*) FROM t' 2>/dev/null
        """,
        "for name in whole damaged; do as_postgres dropdb --if-exists $name; done",
    ),
    "Deadlocks": (
        {"datname": "postgres"},
        """
        as_postgres psql -Xqc 'CREATE TABLE locked AS SELECT generate_series(1, 2) AS id'
        as_postgres $python -I -c "$(cat)"
        """,
        "as_postgres psql -Xqc 'DROP TABLE IF EXISTS locked'",
    ),
    "RebootDue": ({}, "touch /run/reboot-required", "rm -f /run/reboot-required"),
    "NotScraped": ({"job": "livekit"}, "systemctl stop livekit", "systemctl start livekit"),
    "CertificateWrong": ({"port": "5349"}, "systemctl stop coturn", "systemctl start coturn"),
    "FilesOpen": (
        {"job": "alertmanager"},
        # One more is needed to count them, and one for who asks. Some connections are there for a moment only.
        """
        pid=$(systemctl show -p MainPID --value matrix-alertmanager)
        least=$(for i in $(seq 30); do ls /proc/$pid/fd | wc -l; sleep 0.2; done | sort -n | head -n 1)
        prlimit --pid $pid --nofile=$((least + 2)):
        """,
        "systemctl restart matrix-alertmanager",
    ),
    "DatabaseConnections": (
        {},
        'systemd-run -q --unit=connected --uid=postgres $python -I -c "$(cat)"',
        "systemctl stop connected",
    ),
    "FiguresStale": (
        {},
        f"systemctl stop restarts || true; systemctl stop {FIGURES_TIMER.name}.timer; rm {FIGURES}/figures.prom",
        f"systemctl start {FIGURES_TIMER.name}.timer {FIGURES_TIMER.name}",
    ),
    "DatabaseDown": (
        {},
        "as_postgres psql -Xqc 'ALTER ROLE \"matrix-pg-figures\" NOLOGIN'; systemctl restart matrix-pg-figures",
        "as_postgres psql -Xqc 'ALTER ROLE \"matrix-pg-figures\" LOGIN'; systemctl restart matrix-pg-figures",
    ),
}
# With these, there are no figures for some of the others.
HIDING = {"FiguresStale", "DatabaseDown"}
INPUT = {"Deadlocks": DEADLOCK, "DatabaseConnections": CONNECTED}


def noticed(host: Host) -> set[str]:
    """Alerts that tell of what was made to happen here. They are not sent before it has lasted for as long as their rules say."""
    shown = host.run(f"curl -sf http://127.0.0.1:{PROMETHEUS_PORT}/api/v1/alerts").stdout
    labels = [each["labels"] for each in json.loads(shown)["data"]["alerts"]]
    return {
        alert
        for alert, (about, _, _) in CAUSES.items()
        if any({"alertname": alert, **about}.items() <= each.items() for each in labels)
    }


@pytest.mark.once("debian13")
def test_what_goes_wrong_is_noticed(deployed: Deployed) -> None:
    host, found = deployed.host, set[str]()
    prelude = PRELUDE.replace("DOMAIN", host.domain)
    try:
        for several in (set(CAUSES) - HIDING, HIDING):
            for alert, (_, cause, _) in CAUSES.items():
                if alert in several:
                    host.run(prelude + cause, stdin=INPUT.get(alert), timeout=150)
            deadline = time.monotonic() + 120
            # What happened in earlier tests may have been noticed before.
            while several - found and time.monotonic() < deadline:
                time.sleep(2)
                found |= noticed(host)
    finally:
        for _, _, end in reversed(CAUSES.values()):
            host.run(prelude + end, check=False)
    assert set(CAUSES) - found == set()
