"""What the monitoring's rules are about is made to happen, and each rule notices it.

With series of figures test_monitoring.py judges all of them, to the time when the administrator is told. UnitDown is there too,
what is wrong with backups in test_removal.py, and what waits for another homeserver in test_federation.py.
"""

import time
from typing import Any

import pytest

from roles import ALERTS_PORT, FIGURES, FIGURES_TIMER
from tests.conftest import Deployed
from tests.e2e.alerts import asked, labels_of_alerts, shortened
from tests.e2e.client import Account, Outside, expect_json
from tests.testbed import Host

pytestmark = pytest.mark.role("monitoring")

PRELUDE = r"""
set -e
cd /
python=/opt/matrix-synapse/current/bin/python
as_postgres() { runuser -u postgres -- "$@"; }
ask() {
    curl -sk --parallel --parallel-max ${2:-20} --resolve matrix.DOMAIN:443:127.0.0.1 >/dev/null \
        "https://matrix.DOMAIN/_matrix/client/v3/directory/room/%23nobody%3ADOMAIN?$1"
}
alerts=ALERTS mails=/etc/matrix-alertmanager/alertmanager.yaml
mails_again() { [ ! -e /run/mails.yaml ] || cp /run/mails.yaml $mails; systemctl kill -s HUP matrix-alertmanager; }
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
# So many that two more are less than a fifth.
OPENED = r"""
import socket, sys, time
many = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(10)]
time.sleep(600)
"""

# A mail server that is away.
AWAY = """
global: {smtp_smarthost: "127.0.0.1:9", smtp_from: a@example.test, smtp_require_tls: false}
route: {receiver: administrator, group_wait: 1s, group_interval: 1s}
receivers: [{name: administrator, email_configs: [{to: b@example.test}]}]
"""

# A certificate that Caddy's authority has signed, and that ends in an hour.
SOON = r"""
cd /run
authority=/var/lib/caddy/.local/share/caddy/pki/authorities/local
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout soon.key -out soon.csr -subj / \
    -addext subjectAltName=DNS:turn.DOMAIN 2>/dev/null
openssl x509 -req -in soon.csr -CA $authority/intermediate.crt -CAkey $authority/intermediate.key -copy_extensions copy \
    -not_after $(date -ud '1 hour' +%Y%m%d%H%M%SZ) -out soon.crt 2>/dev/null
systemctl stop coturn
systemd-run -q --unit=soon --working-directory=/run \
    openssl s_server -quiet -accept 5349 -cert soon.crt -key soon.key -cert_chain $authority/intermediate.crt
"""

# Alert -> the labels of what it is about, what makes it happen, and what ends that. In this order.
CAUSES: dict[str, tuple[dict[str, str], str, str]] = {
    # Alertmanager counts what it could not send, and Prometheus sees how much that was before.
    "AlertsNotSent": (
        {"job": "alertmanager"},
        """
        cp $mails /run/mails.yaml
        cat >$mails
        systemctl restart matrix-alertmanager
        until curl -sf $alerts/-/ready >/dev/null; do sleep 0.1; done
        amtool --alertmanager.url=$alerts alert add Drill
        """,
        "mails_again",
    ),
    # See `push`.
    "PushFails": ({}, "", ""),
    # Requests wait until one of ten connections to the database is free, and those wait for a lock: for so long that figures were
    # taken meanwhile, and that a thousand quick requests of the minutes before do not hide it.
    "DatabaseSlow": (
        {},
        """
        as_postgres psql -Xqd synapse -c 'BEGIN; LOCK TABLE room_aliases; SELECT pg_sleep(20)' >/dev/null &
        sleep 0.5; ask '[1-300]' 300; wait
        """,
        "",
    ),
    # It is no tmpfs: those are not looked at.
    "DiskAlmostFull": (
        {"mountpoint": "/mnt/full"},
        """
        mkdir -p /run/small /mnt/full; mount -t tmpfs -o size=8m small /run/small; mkdir /run/small/upper /run/small/work
        mount -t overlay -o lowerdir=/mnt,upperdir=/run/small/upper,workdir=/run/small/work full /mnt/full
        fallocate -l 7900K /mnt/full/filler
        """,
        "umount /mnt/full; umount /run/small; rmdir /mnt/full /run/small",
    ),
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
    # Those of the tests have none.
    "ClockOff": ({}, "", ""),
    # The exporter sees a machine with hardly any memory left.
    "MemoryShort": (
        {},
        """
        sed 's/^MemAvailable:.*/MemAvailable: 100000 kB/' /proc/meminfo >/run/meminfo
        nsenter -t $(systemctl show -P MainPID matrix-node) -m mount --bind /run/meminfo /proc/meminfo
        """,
        "systemctl restart matrix-node",
    ),
    "DiskFullSoon": (
        {"mountpoint": "/mnt/filling"},
        """
        mkdir -p /run/filling /mnt/filling; mount -t tmpfs -o size=8m filling /run/filling; mkdir /run/filling/{upper,work}
        mount -t overlay -o lowerdir=/mnt,upperdir=/run/filling/upper,workdir=/run/filling/work filling /mnt/filling
        fallocate -l 5900K /mnt/filling/filler
        systemd-run -q --unit=filling sh -c 'for i in $(seq 100); do fallocate -l 16K /mnt/filling/$i; sleep 1; done'
        """,
        "systemctl stop filling || true; umount /mnt/filling; umount /run/filling; rmdir /mnt/filling /run/filling",
    ),
    "LongTransaction": (
        {},
        "systemd-run -q --unit=long --uid=postgres psql -Xqd synapse -c 'BEGIN; SELECT 1; SELECT pg_sleep(600)'",
        "systemctl stop long",
    ),
    # Nobody is told of new events while one table is locked. See `write`.
    "EventsLate": (
        {},
        """
        systemd-run -q --unit=locks --uid=postgres psql -Xqd synapse -c \
            'BEGIN; LOCK TABLE federation_stream_position; SELECT pg_sleep(12)'
        sleep 1
        """,
        "systemctl stop locks",
    ),
    "CertificateNotRenewed": ({"port": "5349"}, SOON, "systemctl stop soon; rm -f /run/soon.*; systemctl start coturn"),
    "RebootDue": ({}, "touch /run/reboot-required", "rm -f /run/reboot-required"),
    "NotScraped": ({"job": "livekit"}, "systemctl stop livekit", "systemctl start livekit"),
    "CertificateWrong": ({"port": "5349"}, "systemctl stop soon coturn", "systemctl start coturn"),
    # It gets a hundredth of the processor's time while it is asked a lot.
    "SynapseBusy": (
        {},
        """
        pid=$(systemctl show -P MainPID matrix-synapse)
        ask '[1-800]' 40 &
        for i in $(seq 8); do kill -STOP $pid; sleep 2.3; kill -CONT $pid; sleep 0.02; done; wait
        """,
        "systemctl kill -s CONT matrix-synapse",
    ),
    "FilesOpen": (
        {"job": "alertmanager"},
        # One more is needed to count them, and one for who asks. Some connections are there for a moment only.
        """
        mails_again
        systemd-run -q --unit=opened python3 -Ic "$(cat)" ${alerts##*:}
        pid=$(systemctl show -p MainPID --value matrix-alertmanager)
        until [ $(ls /proc/$pid/fd | wc -l) -gt 12 ]; do sleep 0.1; done
        least=$(for i in $(seq 30); do ls /proc/$pid/fd | wc -l; sleep 0.2; done | sort -n | head -n 1)
        prlimit --pid $pid --nofile=$((least + 2)):
        """,
        "systemctl stop opened; systemctl restart matrix-alertmanager",
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
# With these, there are no figures for some of the others, Alertmanager begins anew, and what is made for others ends.
HIDING = {"FilesOpen", "FiguresStale", "DatabaseDown", "CertificateWrong", "SynapseBusy"}
SHORTER = {
    "DiskFullSoon": {"[1d]": "[1m]", "> 1000": "> 2"},
    "LongTransaction": {"> 7200": "> 5"},
    "EventsLate": {"> 60000": "> 4000"},
    "SynapseBusy": {"[5m]": "[1m]", "0.99": "0.999"},
}
INPUT = {"AlertsNotSent": AWAY, "Deadlocks": DEADLOCK, "FilesOpen": OPENED, "DatabaseConnections": CONNECTED}


def noticed(host: Host) -> set[str]:
    """Alerts about what was made to happen here."""
    labels = labels_of_alerts(host)
    return {
        alert
        for alert, (about, _, _) in CAUSES.items()
        if any({"alertname": alert, **about}.items() <= each.items() for each in labels)
    }


def push(outside: Outside, alice: Account, kind: str | None) -> None:
    """Phones of Alice's get their notifications from where nobody listens; kind: None: she has lost them."""
    gateway = outside.url("matrix", "/_matrix/push/v1/notify").replace("/_matrix", ":9/_matrix", 1)
    phone = {"kind": kind, "app_display_name": "x", "device_display_name": "x", "lang": "en", "data": {"url": gateway}}
    with outside.http() as http:
        url = outside.url("matrix", "/_matrix/client/v3/pushers/set")
        for number in range(25):
            content = {**phone, "app_id": "test.drill", "pushkey": f"phone-{number}", "append": True}
            expect_json(http.post(url, headers=alice.authorization, json=content))


def write(outside: Outside, bob: Account, alice: Account) -> None:
    """Bob writes to Alice."""

    def ask(who: Account, method: str, path: str, content: Any) -> Any:
        url = outside.url("matrix", f"/_matrix/client/v3{path}")
        return expect_json(http.request(method, url, headers=who.authorization, json=content))

    with outside.http() as http:
        room = ask(bob, "POST", "/createRoom", {"invite": [alice.user_id], "preset": "private_chat"})["room_id"]
        ask(alice, "POST", f"/join/{room}", {})
        ask(bob, "PUT", f"/rooms/{room}/send/m.room.message/1", {"msgtype": "m.text", "body": "Look out!"})


@pytest.mark.once("debian13")
def test_what_goes_wrong_is_noticed(deployed: Deployed, outside: Outside, alice: Account, bob: Account) -> None:
    """And status shows what the administrator is told."""
    host, found = deployed.host, set[str]()
    # The computer's own clock may be right.
    expected = set(CAUSES) - {"ClockOff" for each in asked(host, "node_timex_sync_status") if each["value"][1] == "1"}

    def do(command: str, **options: Any) -> None:
        text = (PRELUDE + command).replace("DOMAIN", host.domain)
        host.run(text.replace("ALERTS", f"http://127.0.0.1:{ALERTS_PORT}"), **options)

    try:
        push(outside, alice, "http")
        write(outside, bob, alice)
        with shortened(host, SHORTER):
            for several in (expected - HIDING, HIDING):
                for alert, (_, cause, _) in CAUSES.items():
                    if alert in several:
                        do(cause, stdin=INPUT.get(alert), timeout=150)
                    if alert == "EventsLate" and alert in several:
                        write(outside, bob, alice)
                deadline = time.monotonic() + 120
                # What happened in earlier tests may have been noticed before.
                while several - found and time.monotonic() < deadline:
                    time.sleep(2)
                    found |= noticed(host)
                if "Damage" in several:
                    shown = " ".join(deployed.deployment.manage("status").stdout.split())
                    assert "The log of postgresql has signs of damaged data or a failing disk (for " in shown, shown
                    assert "): Look at that log now, check the disk, and " in shown, shown
    finally:
        push(outside, alice, None)
        for _, _, end in reversed(CAUSES.values()):
            do(end, check=False)
    assert expected - found == set()
