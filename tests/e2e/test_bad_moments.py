"""Load and outages: many clients at once, a restart of the homeserver, a service that is down."""

import shlex
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from roles import SYDENT, SYNAPSE
from tests.e2e.client import CADDY_ROOT, Outside

pytestmark = pytest.mark.role("caddy", "synapse")

# Simultaneous requests; curl allows no more.
CLIENTS = 300


def statuses(outside: Outside, path: str, requests: int, clients: int, *options: str) -> Counter[str]:
    """HTTP status -> number of answers with it; "000" counts requests without an answer."""
    url = outside.url("matrix", f"/_matrix/client/{path}?[1-{requests}]")
    command = ["curl", "-sS", "--cacert", CADDY_ROOT, "--http1.1", "--parallel", "--parallel-immediate"]
    command += ["--parallel-max", str(clients), "-o", "/dev/null", "-w", "%{http_code}\\n", *options, url]
    # Each may need several files at once: sockets of IPv4 and IPv6, those of its resolver, the certificates.
    done = outside.host.run(f"ulimit -n {8 * CLIENTS}; {shlex.join(command)}", check=False, timeout=180)
    # Why there was no answer; shown if the test fails.
    print(Counter(line for line in done.stderr.splitlines() if line.startswith("curl:")))
    return Counter(done.stdout.split())


def test_many_simultaneous_requests_are_all_answered(outside: Outside) -> None:
    """Synapse's listen backlog is 50 connections, and Caddy does not retry requests that have a body."""
    assert statuses(outside, "v3/keys/query", 4 * CLIENTS, CLIENTS, "-d", "{}") == {"401": 4 * CLIENTS}
    assert statuses(outside, "versions", 4 * CLIENTS, CLIENTS) == {"200": 4 * CLIENTS}


def test_requests_wait_while_the_homeserver_restarts(outside: Outside, pool: ThreadPoolExecutor) -> None:
    restart = pool.submit(outside.host.run, "sleep 1; systemctl restart matrix-synapse", timeout=120)
    answers: Counter[str] = Counter()
    during = 0
    while not restart.done():
        answers += statuses(outside, "versions", 100, 10)
        during += 1
    restart.result()
    assert during > 1, "no requests were sent while Synapse restarted"
    assert answers == {"200": 100 * during}


def test_services_that_crash_are_started_again_at_once(outside: Outside) -> None:
    # Not the Sliding Sync proxy: it cannot start while Synapse is away.
    host, names = outside.host, "caddy coturn matrix-synapse sydent"
    show = f"systemctl show --timestamp=us+utc --value {names} -p"
    try:
        begin = float(host.run(f"date +%s.%N; systemctl kill -s KILL {names}; sleep 0.3").stdout)
        host.run(f"until ! {show} MainPID | grep -qx 0; do sleep 0.05; done", timeout=30)
        started = host.run(f"{show} ExecMainStartTimestamp | grep . | date +%s.%N -f -").stdout.split()
        pauses = [float(each) - begin for each in started]
        assert len(pauses) == 4 and all(0 < pause < 2.5 for pause in pauses), pauses
    finally:
        # They count how often they crashed.
        host.run(f"systemctl restart {names}", timeout=120)
        host.run(f"until {SYNAPSE.units[0].health}; do sleep 0.1; done", timeout=60)


def test_requests_that_are_too_long_are_refused_at_once(outside: Outside) -> None:
    """Synapse and Sydent close the connection for a line of more than 16 KiB, and Caddy must not send it again and again."""
    host, refused, wrong = outside.host, {"414", "431"}, {}
    begin = host.run("date +%s.%N").stdout.strip()
    for service, path in {"matrix": "/_matrix/client/versions", "identity": "/_matrix/identity/v2"}.items():
        for method in ("GET", "HEAD", "OPTIONS", "POST"):
            for length in (7000, 12000, 17000, 100_000):
                found = statuses_of_long_requests(outside, outside.url(service, path), length, method, "http1.1")
                wanted = refused if length >= 12000 else {"200", "204", "405"}
                if not found <= wanted:
                    wrong[f"{method} {service}, {length} bytes"] = found
        # curl sends no longer headers by HTTP/2.
        for length in (7000, 8100, 17000, 60_000):
            found = statuses_of_long_requests(outside, outside.url(service, path), length, "GET", "http2")
            if not found <= (refused if length > 8000 else {"200"}):
                wrong[f"{service} by HTTP/2, {length} bytes"] = found
        # Many that are too long together: the service itself says so, or at times closes the connection before all was sent.
        for version in ("http1.1", "http2"):
            found = statuses_of_long_requests(outside, outside.url(service, path), 5000, "GET", version, headers=5)
            if not {"200"} < found <= {"200", "400", "502"}:
                wrong[f"{service} by {version}, five headers of 5000 bytes"] = found
    assert not wrong
    lines = host.run(f"journalctl -q -o cat -u caddy -u matrix-synapse -u sydent --since @{begin} | wc -l").stdout
    assert int(lines) < 100, f"{lines} lines in the journal"


def test_what_clients_can_write_into_the_journal_is_bounded(outside: Outside) -> None:
    """systemd takes about four times the limit, by the free space."""
    host, url = outside.host, outside.url("identity", "/_matrix/identity/v2?[1-5000]")
    host.run("systemctl stop sydent")
    try:
        begin = host.run("date +%s.%N").stdout.strip()
        # Which has a body is not sent again, so Caddy writes down at once that it failed.
        post = ["curl", "-sS", "--cacert", CADDY_ROOT, "--http1.1", "--parallel", "--parallel-max", "50", "-d", "{}"]
        post += ["-o", "/dev/null", "-w", "%{http_code}\\n", url]
        found = Counter(host.run(shlex.join(post), check=False, timeout=180).stdout.split())
        assert found == {"502": 5000}
        counted = host.run(f"journalctl --sync; journalctl -q -o cat -u caddy --since @{begin} | wc -l")
    finally:
        # It forgets that it has left something out.
        host.run("systemctl start sydent; systemctl restart systemd-journald")
        host.run(f"until {SYDENT.units[0].health}; do sleep 0.1; done", timeout=60)
    assert 0 < int(counted.stdout) <= 4100


def statuses_of_long_requests(
    outside: Outside, url: str, length: int, method: str, version: str, headers: int = 1
) -> set[str]:
    """Of one with a URL, and of one with headers, of this many bytes each; "000" for no answer."""
    same = [
        version,
        "silent",
        'output = "/dev/null"',
        'write-out = "%{http_code} "',
        f'cacert = "{CADDY_ROOT}"',
        "max-time = 5",
    ]
    same.append("head" if method == "HEAD" else f'request = "{method}"')
    long = [f'header = "X-{number}: {"a" * length}"' for number in range(headers)]
    requests = [[f'url = "{url}?{"a" * length}"'], ["next", f'url = "{url}"', *long]]
    config = "".join(f"{line}\n" for request in requests for line in (*request, *same))
    return set(outside.host.run("curl -K - || true", stdin=config).stdout.split())


def test_the_journal_has_the_cause_of_a_failed_request_and_no_tokens(outside: Outside) -> None:
    host = outside.host
    host.run("systemctl stop sydent")
    try:
        with outside.http() as http:
            url = outside.url("identity", "/_matrix/identity/v2/lookup?token=secret1&client_secret=secret3")
            assert http.post(url, json={}, headers={"Authorization": "Bearer secret2"}).status_code == 502
    finally:
        host.run("systemctl start sydent")
    logged = host.run("journalctl --sync; journalctl -u caddy --since -1min -o cat | grep identity/v2/lookup").stdout
    assert "connection refused" in logged and "secret" not in logged
