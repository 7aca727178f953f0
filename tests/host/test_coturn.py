"""coturn, the relay for calls: it answers, with its certificate, and is confined although it runs as root."""

import ipaddress
import json
import re
import shlex
from pathlib import Path

import pytest
from cryptography import x509
from testinfra.host import Host

from operations.filters import RELAY
from operations.validity import certificate_problem
from roles import COTURN, RELAY_PORT, RELAY_TLS_PORT, RELAYED
from settings import Settings
from settings.coturn import Coturn
from settings.networks import PRIVATE
from tests.host.certificates import presented
from tests.host.report import Note
from tests.host.services import DEPLOY, Service, ServiceTests, ask, table_of
from tests.protocols import turn

CAP_DAC_READ_SEARCH = 1 << 2
# Files and directories that may contain secrets, and a shell script that prints which of its arguments are not empty.
SENSITIVE = (
    "/etc/shadow /etc/gshadow /etc/ssh /root /etc/matrix-synapse /var/lib/matrix-synapse /etc/sydent /var/lib/sydent "
    "/etc/sliding-sync /etc/caddy /etc/ssl/private /var/lib/postgresql /run/postgresql /var/backups /var/log"
)
NOT_EMPTY = (
    'for p; do if [ -d "$p" ]; then [ -z "$(ls -A "$p" 2>/dev/null)" ]; else [ ! -s "$p" ]; fi || echo "$p"; done'
)
# A Python program that sends one TURN request to this machine and prints the answer in hexadecimal.
ASK = f"""
import os, socket, struct, sys
kind, attributes = int(sys.argv[1], 16), bytes.fromhex(sys.argv[2])
link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
link.settimeout(2)
for attempt in range(3):
    link.sendto(struct.pack("!HHI", kind, len(attributes), 0x2112A442) + os.urandom(12) + attributes, ("127.0.0.1", {RELAY_PORT}))
    try:
        print(link.recv(2048).hex())
        break
    except TimeoutError:
        pass
""".replace("%d", str(RELAY_PORT))
# Prints, as JSON, which address a client gets that connects to each of the arguments. Several allocations for each: an address
# may be one of which coturn takes each in turn. The credentials are signed on the machine, so the secret stays there.
ALLOCATE = f"""
{Path(turn.__file__).read_text()}
import json, sys, time
with open("/etc/turnserver.conf") as lines:
    secret = next(line.strip().partition("=")[2] for line in lines if line.startswith("static-auth-secret="))
credentials, told = Credentials.signed(f"{{int(time.time()) + 60}}:verification", secret), {{}}
for place in sys.argv[1:]:
    told[place] = []
    for attempt in range(4):
        with relay(place, "udp", credentials) as client:
            try:
                told[place].append(client.allocate()[0])
            except (RefusedError, OSError) as error:
                told[place].append(str(error))
print(json.dumps(told))
"""


class TestService(ServiceTests):
    pass


def test_accepts_its_configuration(service: Service) -> None:
    """It ignores what it does not understand or cannot read, and reports that only in its log, when it starts."""
    wrong = service.log(
        since=service.started - 1,
        until=service.started + 120,
        pattern="Bad configuration format|Wrong address format|CONFIG ERROR|ERROR: .*(certificate|key|TLS|file)"
        "|WARNING: .*(certificate|key file|TLS|file)|[Cc]annot (bind|start|find (certificate|private)|create a? ?(TLS|DTLS))",
    )
    assert not wrong, f"coturn does not take its configuration, {wrong}: {DEPLOY}, or correct /etc/turnserver.conf"


def test_listens_only_where_it_should(service: Service) -> None:
    wanted = {f"{port.protocol} {port.number}" for port in COTURN.listens if port != RELAYED}
    found = {f"{socket.split()[0]} {socket.rpartition(':')[2]}" for socket in service.sockets()}
    assert wanted <= found, (
        f"coturn does not listen on {', '.join(sorted(wanted - found))}: {DEPLOY}; see journalctl -u coturn. Without TLS on "
        f"{RELAY_TLS_PORT}, it could not read its certificate when it started"
    )
    # Allocations in use have ports of their own.
    others = {
        socket for socket in found - wanted if not ("udp" in socket and int(socket.split()[1]) in RELAYED.numbers)
    }
    assert not others, f"coturn listens on {', '.join(sorted(others))} as well: {DEPLOY}"


@pytest.mark.parametrize("datagrams", [False, True], ids=["tls", "dtls"])
def test_presents_its_certificate(host: Host, settings: Settings, datagrams: bool) -> None:
    coturn = settings.view(Coturn)
    shown = presented(host, RELAY_TLS_PORT, coturn.domain, datagrams).certificate
    place = f"port {RELAY_TLS_PORT} ({'udp' if datagrams else 'tcp'})"
    assert shown, f"{place} presents no certificate: {DEPLOY}; see journalctl -u coturn"
    problem = certificate_problem(shown, coturn.domain)
    assert not problem, f"{coturn.domain}, {place}: {problem}; see journalctl -u caddy -u coturn"
    file = x509.load_pem_x509_certificate(ask(host, "cat %s", coturn.certificate).encode())
    assert shown == file, (
        f"{place} does not present {coturn.certificate}: {DEPLOY}; see journalctl -u coturn-certificate"
    )


def test_is_reloaded_on_renewal(host: Host, settings: Settings) -> None:
    unit = f"{settings.view(Coturn).reloader}.path"
    found = ask(host, "systemctl show --value -p ActiveState -p UnitFileState %s", unit).split()
    assert found == ["active", "enabled"], (
        f"{unit} is {' and '.join(found)}: {DEPLOY}, else the certificate will expire"
    )


def turn_request(host: Host, kind: int, attributes: bytes = b"") -> tuple[int, dict[int, bytes]]:
    """Kind and attributes of coturn's answer (RFC 8489, 5 and 14); kind 0 is no answer."""
    command = f"python3 -Ic {shlex.quote(ASK)} {kind:x} {shlex.quote(attributes.hex())}"
    answer = bytes.fromhex(ask(host, command))
    found, rest = {}, answer[20:]
    while len(rest) >= 4:
        number, length = int.from_bytes(rest[:2]), int.from_bytes(rest[2:4])
        found[number] = rest[4 : 4 + length]
        rest = rest[4 + length + -length % 4 :]
    return int.from_bytes(answer[:2]), found


def test_answers(host: Host) -> None:
    kind, _ = turn_request(host, 0x0001)
    assert kind == 0x0101, f"no answer to a STUN binding request on port {RELAY_PORT}: see journalctl -u coturn"


def test_relays_only_with_credentials(host: Host, settings: Settings) -> None:
    udp = bytes.fromhex("0019000411000000")
    kind, attributes = turn_request(host, 0x0003, udp)
    error = attributes.get(0x0009, b"")
    assert kind == 0x0113 and error[2:4] == bytes([4, 1]), (
        f"coturn answers a request without credentials with {kind:#x} {error!r} instead of 401: it may relay for anyone; {DEPLOY}"
    )
    realm = attributes.get(0x0014, b"").decode()
    assert realm == settings.domain(COTURN), f"its realm is {realm!r} instead of {settings.domain(COTURN)}: {DEPLOY}"


def test_gives_clients_the_public_address(host: Host, settings: Settings, note: Note) -> None:
    """In each address family, and not that of a bridge for containers, of the loopback or of the inside of a router."""
    relayed = settings.view(Coturn).relayed
    assert relayed, "the machine has no address that calls could be relayed from"
    places = " ".join(each.address for each in relayed)
    told = json.loads(ask(host, f"python3 -Ic {shlex.quote(ALLOCATE)} {places}"))
    wrong = [
        f"clients that connect to {each.address} are relayed at {' and '.join(sorted(set(told[each.address])))}, not at "
        f"{each.told}: {DEPLOY}, or set external_ip or external_ipv6 if it is another address of the machine"
        for each in relayed
        if set(told[each.address]) != {each.told}
    ]
    assert not wrong, "\n".join(wrong)
    reachable = [*map(ipaddress.ip_network, settings.choices.private_networks)]
    inside = [
        each.told
        for each in relayed
        if any(ipaddress.ip_address(each.told) in network for network in PRIVATE)
        and not any(ipaddress.ip_address(each.told) in network for network in reachable)
    ]
    assert not inside, (
        f"calls are relayed at {' and '.join(inside)}, which nobody outside can reach: set external_ip (external_ipv6) to the "
        "public address, or name the network in private_networks if all users are there"
    )
    note("calls", f"relayed at {', '.join(each.told for each in relayed)}")


def test_has_no_capability_but_to_read(service: Service) -> None:
    status = ask(service.host, "cat %s", f"/proc/{service.pid}/status")
    for kind in ("CapEff", "CapPrm", "CapBnd"):
        found = re.search(rf"^{kind}:\s*(\w+)$", status, re.MULTILINE)
        assert found and int(found[1], 16) == CAP_DAC_READ_SEARCH, (
            f"coturn has capabilities {found[1] if found else '?'} ({kind}), not CAP_DAC_READ_SEARCH alone: {DEPLOY}"
        )


def test_sees_no_secrets(service: Service, host: Host) -> None:
    """It may read every file that it sees, because it is root: so no secret may be in its view of the machine.

    A file that is replaced while coturn runs can become visible again, so the list is made from the machine as it is now.
    """
    there = set(ask(host, f"sh -c {shlex.quote(NOT_EMPTY)} - {SENSITIVE}").split())
    assert "/etc/shadow" in there, (
        "the files that should be hidden from coturn are not on the machine: this test would always pass"
    )
    command = f"nsenter --target {service.pid} --mount sh -c {shlex.quote(NOT_EMPTY)} - {' '.join(sorted(there))}"
    seen = ask(host, command).split()
    assert not seen, f"coturn sees {', '.join(seen)}: {DEPLOY}, then `systemctl restart coturn`"


def test_sees_no_other_process(service: Service, host: Host) -> None:
    """Root owns the user namespaces of the confined services: through /proc it would see all files that they see."""
    places = "/proc /sys /dev/pts /dev/shm"
    command = f"nsenter --target {service.pid} --mount sh -c {shlex.quote(NOT_EMPTY)} - {places}"
    seen = ask(host, command).split()
    assert not seen, f"coturn sees what is in {', '.join(seen)}: {DEPLOY}, then `systemctl restart coturn`"


def test_signals_no_other_process(service: Service, host: Host) -> None:
    """Root could end every process of root's and every confined one."""
    command = "systemctl show --value -p SystemCallFilter -p RestrictAddressFamilies %s"
    allowed = set(ask(host, command, service.unit).split())
    assert "execve" in allowed, f"coturn may use every system call: {DEPLOY}"
    wrong = allowed & {"AF_UNIX", "kill", "tkill", "tgkill", "pidfd_open", "pidfd_send_signal", "rt_sigqueueinfo"}
    command = "systemctl show --value -p ExecStart %s"
    started = re.search(r"argv\[\]=(\S+)", ask(host, command, service.unit))
    assert not wrong and started and started[1].endswith("/run-alone"), (
        f"coturn may use {', '.join(sorted(wrong)) or 'fcntl() to send signals'}, and so end other services: {DEPLOY}; "
        f"`systemctl cat {service.unit}` shows drop-ins that are not ours"
    )


def test_reaches_no_service_of_the_machine(service: Service, host: Host) -> None:
    """It has to reach itself, at the machine's own addresses: the packet filter blocks the other services there."""
    shown = table_of(host, RELAY)
    groups = ask(host, "stat -c %%G %s", f"/proc/{service.pid}").split()
    marked = re.search(
        rf'oifname "lo" meta skgid \S+ udp sport {RELAYED.number}-{RELAYED.last} udp dport 0-{RELAYED.number - 1} '
        r"meta mark set (\w+)$",
        shown,
        re.MULTILINE,
    )
    dropped = marked and re.search(rf'iifname "lo" meta mark {marked[1]} .*drop$', shown, re.MULTILINE)
    assert dropped and groups == ["turnserver"], (
        f"UDP services of this machine can be reached through the relay: {DEPLOY}"
    )


def test_cannot_write(service: Service, host: Host) -> None:
    places = (
        "/ /etc /etc/turnserver.conf /usr /usr/bin /opt /boot /home /var /var/lib /var/lib/caddy /var/tmp/.. /run /srv"
    )
    script = 'for p; do [ -w "$p" ] && echo "$p"; done; true'
    command = f"nsenter --target {service.pid} --mount sh -c {shlex.quote(script)} - {places}"
    writable = ask(host, command).split()
    assert not writable, f"coturn may write to {', '.join(writable)}: {DEPLOY}"
