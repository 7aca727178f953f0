"""`pytest tests/host --inventory`: the report for a healthy machine, and for one with many faults."""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from roles import SYDENT, SYNAPSE
from tests.built import built
from tests.conftest import complete
from tests.deployment import Deployment
from tests.standin.release_server import ReleaseServer
from tests.testbed import Host, Testbed

CERTIFICATES = "/var/lib/caddy/.local/share/caddy/certificates/local"
# Whether Sydent reaches the homeserver by its name: with an invalid token, it answers that the homeserver does not know it.
FORGED = f"""curl -s --max-time 20 -d '{{"access_token": "none", "token_type": "Bearer", "expires_in": 60,
"matrix_server_name": "NAME"}}' http://127.0.0.1:{SYDENT.port}/_matrix/identity/v2/account/register"""
# Command that causes a fault -> patterns of the messages about it. Each is of another kind, and none is a wrong setting.
FAULTS = {
    # A service that does not run, and what clients get instead.
    "systemctl stop sydent": [
        r"sydent\.service is inactive \(dead\): see journalctl -u sydent\.service, then run the deploy again",
        r"https://identity\.verify\.test/_matrix/identity/v2 answers 502; see journalctl -u caddy -u sydent",
    ],
    # A failed unit that is not ours.
    "systemd-run --quiet --unit=backup --property=Type=oneshot false || true": [
        r"backup\.service failed: see `systemctl status backup\.service`"
    ],
    # A secret that every local user may read.
    "chmod 755 /etc/matrix-synapse /etc/matrix-synapse/secrets; chmod 644 /etc/matrix-synapse/secrets/macaroon_secret_key": [
        r"every user of the machine may read or change .*/secrets/macaroon_secret_key: run the deploy again"
    ],
    # An old address in the well-known document; an admin API that is open to everybody.
    'sed -i \'s/"m.server": "[^"]*"/"m.server": "old.example.com:443"/\' /etc/caddy/Caddyfile': [
        r"other homeservers will not talk with this one: .*old\.example\.com has no address"
    ],
    "sed -i 's#@homeserver path /_matrix/\\*#@homeserver path /_synapse/admin/* /_matrix/*#' /etc/caddy/Caddyfile; "
    "systemctl reload caddy": [r"the administration API is reachable from outside: .*_synapse/admin"],
    # Open registration.
    "printf 'enable_registration: true\\nenable_registration_without_verification: true\\n' "
    "> /etc/matrix-synapse/conf.d/mine.yaml; chmod 644 /etc/matrix-synapse/conf.d/mine.yaml; "
    "systemctl restart matrix-synapse": [r"registration is closed in the settings, but .* answers 200"],
    # A relay with another secret than the homeserver's, and with an expired certificate.
    "sed -i 's/^static-auth-secret=.*/static-auth-secret=another/' /etc/turnserver.conf": [
        r"the relay turn\.verify\.test refuses the credentials that Synapse hands out: run the deploy again"
    ],
    f"cd {CERTIFICATES}/turn.verify.test; openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes "
    "-not_before 20250101000000Z -not_after 20250201000000Z -subj /CN=old -addext subjectAltName=DNS:turn.verify.test "
    "-keyout turn.verify.test.key -out turn.verify.test.crt 2>/dev/null; systemctl restart coturn": [
        r"turn\.verify\.test:5349 at [0-9.]+ and .*: its certificate expired on"
    ],
    # A relay that chooses its addresses itself, and takes that of a bridge for containers.
    "ip link add docker0 type bridge; ip address add 172.17.0.1/16 dev docker0; ip link set docker0 up; "
    "sed -i '/^relay-ip=/d; /^allocation-default/d' /etc/turnserver.conf; systemctl restart coturn": [
        r"clients that connect to fd[0-9a-f:]+ are relayed at .*172\.17\.0\.1"
    ],
    # A firewall that blocks what it should not.
    "nft 'add table inet firewall; add chain inet firewall input { type filter hook input priority 0; }; "
    "add rule inet firewall input ip6 nexthdr tcp tcp dport 443 reject with tcp reset'": [
        r"verify\.test:443 at fd[0-9a-f:]+: this computer gets no connection"
    ],
    # An address that Synapse does not connect to, and an old one.
    "echo 127.0.0.1 identity.verify.test >>/etc/hosts; "
    "sed -n 's/^nameserver \\(.*\\)/\\1 matrix.verify.test/p' /etc/resolv.conf >>/etc/hosts": [
        r"this machine gets no connection to matrix\.verify\.test at [0-9.]+, port 443: connection refused",
        r"identity\.verify\.test is 127\.0\.0\.1 on this machine, an address that Synapse refuses: take the name out",
    ],
    # A mail server that does not run.
    "systemctl stop postfix@-.service postfix.service": [
        r"the mail server mail\.verify\.test:25 cannot be reached from this machine: .*refused; is smtp_host right"
    ],
    # A program of another version.
    "ln -sfn 0 /opt/uplot/current": [r"uPlot is 0, not 1\.6\.\d+: run the deploy again"],
    # A damaged marker.
    "echo '[]' > /etc/matrix-metal/deployment.json": [
        r"deployment\.json does not say which deployment the machine belongs to: run the deploy again"
    ],
    # A database that listens on all addresses.
    "echo \"listen_addresses = '*'\" > $(ls -d /etc/postgresql/*/main/conf.d)/zz-mine.conf; "
    "chmod 644 /etc/postgresql/*/main/conf.d/zz-mine.conf; systemctl restart 'postgresql@*'; "
    f"for i in $(seq 60); do curl -sf http://127.0.0.1:{SYNAPSE.port}/health >/dev/null && break; sleep 0.5; done": [
        r"PostgreSQL listens on .*:5432 though only this machine uses it"
    ],
    # Settings of the administrator's that are noticed only at the next start.
    "echo 'a: [' > /etc/matrix-synapse/conf.d/broken.yaml; chmod 644 /etc/matrix-synapse/conf.d/broken.yaml": [
        r"matrix-synapse\.service runs, but would not start again: in \S*/conf\.d/broken\.yaml.*, line 2"
    ],
    "echo 'workmem = 3' > $(ls -d /etc/postgresql/*/main/conf.d)/zz-broken.conf": [
        r"main\.service runs, but would not start again: \S*/zz-broken\.conf line 1: workmem: unrecognized configuration "
        "parameter"
    ],
}


@dataclass(frozen=True)
class Machine:
    host: Host
    deployment: Deployment


@pytest.fixture(scope="module")
def machine(
    testbed: Testbed, release_page: ReleaseServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    """A machine for these tests alone, with a mail server and nftables."""
    host = testbed.up("verify", layers=built(testbed, "trixie"))
    deployment = complete(testbed, host, tmp_path_factory.mktemp("verify"), release_page)
    with (deployment.directory / "group_data" / f"{deployment.name}.py").open("a") as settings:
        settings.write(f"smtp_host = 'mail.{host.domain}'\nsmtp_port = 25\nsmtp_tls = 'none'\n")
    host.run(
        "export DEBIAN_FRONTEND=noninteractive; echo 'postfix postfix/main_mailer_type select Local only' | "
        "debconf-set-selections; apt-get update -qq && apt-get install -qq -y --no-install-recommends postfix nftables; "
        "postconf -e inet_interfaces=all; systemctl restart postfix",
        timeout=300,
    )
    deployment.run("-y")
    yield Machine(host, deployment)
    host.down()


def _unwrapped(output: str) -> str:
    """The report, with wrapped lines joined."""
    return re.sub(r"\n {10,}|\n {5}(?! *\()", " ", output.partition(" verification ")[2])


def test_the_report_of_a_healthy_machine(machine: Machine) -> None:
    status, output = machine.deployment.verify()
    assert status == 0, output
    report = _unwrapped(output)
    address = re.escape(machine.host.address)
    for expected in (
        rf"names +verify\.test, matrix\.verify\.test.*: {address}, {machine.host.address6}\b",
        r"turn\.verify\.test:5349: 1[12] hours left, issued by Caddy Local Authority",
        r"federation +well-known: matrix\.verify\.test:443 speaks for verify\.test",
        r"version: Synapse [0-9.]+\b",
        *(rf"turns?:turn\.verify\.test:\d+ by {transport}: allocation at {address}" for transport in ("udp", "tcp")),
        r"mail +mail\.verify\.test:25: 220 ",
        r"PostgreSQL 17\.",
        r"synapse: UTF8, C\b",
        r"^Nothing is wrong: \d+ checks passed\.$",
    ):
        assert re.search(expected, report, re.MULTILINE), f"{expected} is not in\n{report}"
    assert re.fullmatch(r"=+ \d+ passed in .* =+", output.rstrip().splitlines()[-1]), output


def test_a_logged_certificate_error_is_reported_until_it_is_resolved(machine: Machine) -> None:
    folder = f"{CERTIFICATES}/identity.verify.test"
    machine.host.run(f"rm -r {folder}; install -d -m 755 {folder}; touch {folder}/in-the-way; systemctl restart caddy")
    status, output = machine.deployment.verify()
    expected = (
        r"caddy\.service has logged 1 error in the last 15 minutes, such as .*\[identity\.verify\.test\] Obtain: saving"
    )
    assert status == 1 and re.search(expected, _unwrapped(output)), output
    machine.host.run(f"rm -r {folder}")
    assert machine.deployment.run("-y").changed == ["Check every certificate"]
    logged = machine.host.run("journalctl -u caddy -o cat --no-pager -n 2000").stdout
    assert "identity.verify.test: obtaining certificate: context canceled" in logged, logged
    status, output = machine.deployment.verify()
    assert status == 0, output


def test_the_installers_line_in_hosts_does_no_harm(machine: Machine) -> None:
    """Debian's installer gives an address of the loopback to the machine's own name, which may be a name of ours."""
    host, deployment = machine.host, machine.deployment
    own = host.run("cat /etc/hosts").stdout
    try:
        host.run(f"echo '127.0.0.1 localhost\n127.0.1.1 {host.domain} verify' >/etc/hosts")
        run = deployment.run("-y")
        host.run(f"systemctl restart sydent; until {SYDENT.units[0].health}; do sleep 0.1; done", timeout=60)
        answer = host.run(FORGED.replace("NAME", host.domain)).stdout
        assert "did not include 'sub'" in answer, answer
        assert run.changed == ["Configure Sydent", "Run Sydent"] and "refuses" not in run.output, run.output
        assert deployment.run("-y").changed == []
        # An address that is not allowed: the message is the same when nothing is changed.
        host.run("sed -i s/127.0.1.1/127.0.0.1/ /etc/hosts")
        assert re.search(
            rf"--> verify: {host.domain} is 127\.0\.0\.1 .* Sydent and LiveKit refuse: .*hosts",
            deployment.run("--dry").output,
        )
    finally:
        host.run("cat >/etc/hosts", stdin=own)
    assert deployment.run("-y").changed == ["Configure Sydent", "Run Sydent"]


def test_an_address_that_leads_nowhere_is_reported(machine: Machine) -> None:
    """On a machine without IPv6 whose names have AAAA records: at every port of everybody's."""
    address = machine.host.address6
    # So that this computer need not wait for each connection to time out.
    route = ["unreachable", address, "metric", "1"]
    machine.host.run("sysctl -qw net.ipv6.conf.host0.disable_ipv6=1")
    subprocess.run(["ip", "-6", "route", "add", *route], check=True)
    try:
        status, output = machine.deployment.verify("tests/host/test_from_outside.py")
    finally:
        subprocess.run(["ip", "-6", "route", "delete", *route], check=True)
        machine.host.run("sysctl -qw net.ipv6.conf.host0.disable_ipv6=0; networkctl reconfigure host0")
    report = _unwrapped(output)
    assert status == 1, output
    assert f"matrix.verify.test resolves to {address}, but this machine has {machine.host.address}" in report, output
    places = ("verify.test:80", "matrix.verify.test:443", "turn.verify.test:5349", "turn:turn.verify.test:3478 by udp")
    for place in (*places, "turn:turn.verify.test:3478 by tcp", "turns:turn.verify.test:5349 by tcp"):
        assert f" {place} at {address}: " in report, f"{place} is not in\n{output}"
    wrong = report.partition("things are wrong")[2]
    assert f" at {machine.host.address}" not in wrong, output


def test_a_computer_without_ipv6_is_no_fault_of_the_machine(machine: Machine) -> None:
    rule = ["to", machine.host.address6, "unreachable"]
    subprocess.run(["ip", "-6", "rule", "add", *rule], check=True)
    try:
        status, output = machine.deployment.verify("tests/host/test_from_outside.py")
    finally:
        subprocess.run(["ip", "-6", "rule", "delete", *rule], check=True)
    assert status == 0, output
    for place in ("verify.test:80", "verify.test:443", "turn:turn.verify.test:3478 by udp"):
        line = f" {place} was not checked at {machine.host.address6}: this computer has no IPv6"
        assert line in re.sub(r"\s+", " ", output), output


def test_a_deploy_reports_settings_that_a_service_would_not_start_with(machine: Machine) -> None:
    refused = {
        "/etc/matrix-synapse/conf.d/mine.yaml": ("enable_registration: true", "You have enabled open registration"),
        "/etc/postgresql/17/main/conf.d/mine.conf": (
            "work_mem = much",
            "line 1: work_mem: setting could not be applied",
        ),
    }
    for path, (text, _) in refused.items():
        machine.host.run(f"cat > {path}; chmod 644 {path}", stdin=f"{text}\n")
    try:
        run = machine.deployment.run("-y")
    finally:
        machine.host.run(f"rm {' '.join(refused)}")
    assert not run.changed
    lines = [line for line in run.output.splitlines() if "would not start again" in line]
    assert len(lines) == len(refused), run.output
    for path, (_, why) in refused.items():
        assert any(path in line and why in line for line in lines), f"{path} is not in {lines}"


def test_every_fault_of_a_machine_is_reported(machine: Machine) -> None:
    for command in FAULTS:
        machine.host.run(command, timeout=60)
    status, output = machine.deployment.verify()
    assert status == 1, output
    report = _unwrapped(output)
    expected = [message for messages in FAULTS.values() for message in messages]
    missing = [message for message in expected if not re.search(message, report, re.IGNORECASE)]
    assert not missing, f"{missing} is not in\n{output}"
    # A restart would end it, and its directory is closed to other users.
    assert "broken.yaml changed after" not in report and "may read or change /etc/matrix-synapse/conf.d" not in report
    # The source of the tests is of no use to an administrator.
    assert "Traceback" not in output and "AssertionError" not in output and "assert " not in output, output
