"""The relay reaches no denied address, tried with a listener at as many as possible. And its quota, and 1:1 NAT."""

import contextlib
import ipaddress
import secrets
import shlex
import socket
import time
from collections.abc import Iterator
from functools import partial
from itertools import product

import pytest

from roles import COTURN, RELAY_PORT, RELAY_TLS_PORT, RELAYED
from settings.networks import BLOCKED_NETWORKS
from tests.conftest import Deployed, own
from tests.e2e.client import Account, Outside, expect_json
from tests.e2e.test_relay import _connected, _signed
from tests.protocols.turn import Credentials, RefusedError, relay
from tests.testbed import Host, Testbed

pytestmark = pytest.mark.role("coturn")

PORT = 5353
RECEIVED = "/run/relay-test-received"
# Writes down each packet that reaches any address of the machine.
LISTENER = f"""
import socket
link = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
link.bind(("::", {PORT}))
with open("{RECEIVED}", "ab", buffering=0) as received:
    while True:
        received.write(link.recv(2048) + b"\\n")
"""
# Sent on the machine itself, to check that the listener receives.
SEND = """
import socket, sys
for place in sys.argv[2:]:
    family = socket.AF_INET6 if ":" in place else socket.AF_INET
    socket.socket(family, socket.SOCK_DGRAM).sendto(f"direct {place}".encode(), (place, int(sys.argv[1])))
"""
# An IPv4 address inside an IPv6 one: IPv4-mapped (CVE-2026-27624), translated (NAT64, RFC 6052 and 8215), 6to4.
FORMS = ["::ffff:{dotted}", "64:ff9b::{dotted}", "64:ff9b:1::{dotted}", "2002:{first}:{last}::1"]


def denied_addresses(own: list[str]) -> tuple[list[str], list[str]]:
    """An address near each end of every denied range outside of `own`: IPv4; IPv6 and the IPv4 ones inside IPv6."""
    networks = [ipaddress.ip_network(network) for network in BLOCKED_NETWORKS]
    ends = [ends for network in networks for ends in (network[1], network[-2])]
    allowed = [ipaddress.ip_network(network) for network in own]
    dotted = [str(end) for end in ends if end.version == 4 and not any(end in network for network in allowed)]
    written = [str(end) for end in ends if end.version == 6 and not any(end in network for network in allowed)]
    for address in dotted:
        packed = ipaddress.IPv4Address(address).packed
        written += [form.format(dotted=address, first=packed[:2].hex(), last=packed[2:].hex()) for form in FORMS]
    return dotted, list(dict.fromkeys(written))


@pytest.fixture(scope="module")
def credentials(outside: Outside, alice: Account) -> Credentials:
    with outside.http() as http:
        answer = expect_json(
            http.get(outside.url("matrix", "/_matrix/client/v3/voip/turnServer"), headers=alice.authorization)
        )
    return Credentials(answer["username"], answer["password"])


@pytest.fixture(scope="module")
def listener(deployed: Deployed) -> Iterator[Host]:
    """The machine, with the listener running."""
    host = deployed.host
    host.run(f"systemd-run --quiet --collect --unit=relay-test python3 -Ic {shlex.quote(LISTENER)}")
    host.run(f"until ss -Hlun sport = :{PORT} | grep -q .; do sleep 0.05; done")
    yield host
    host.run(f"systemctl stop relay-test; rm -f {RECEIVED}")


@pytest.fixture
def addresses(listener: Host, testbed: Testbed) -> Iterator[tuple[list[str], list[str]]]:
    """The denied addresses. While the test runs, the machine has those of them that the kernel accepts."""
    dotted, written = denied_addresses([str(testbed.network.subnet), str(testbed.network.subnet6)])
    everywhere = " ".join(_masked(address) for address in (*dotted, *written))
    # The kernel does not accept every address, and takes mapped ones for IPv4.
    add = "ip address add $place dev lo nodad 2>/dev/null || ip address add $place dev lo 2>/dev/null"
    added = listener.run(f"for place in {everywhere}; do {{ {add}; }} && echo $place; done; true").stdout.split()
    try:
        yield dotted, written
    finally:
        listener.run(f"for place in {' '.join(added)}; do ip address del $place dev lo; done")


def _masked(address: str) -> str:
    return f"{address}/{128 if ':' in address else 32}"


def received_by(host: Host) -> list[str]:
    return host.run(f"cat {RECEIVED}").stdout.splitlines()


def test_relay_refuses_every_denied_address(
    deployed: Deployed, outside: Outside, credentials: Credentials, addresses: tuple[list[str], list[str]]
) -> None:
    """Permissions and channels are refused, and nothing that is sent arrives at the listener."""
    host, token = deployed.host, secrets.token_hex(4)
    everywhere = [*addresses[0], *addresses[1]]
    reached = host.run(f"python3 -Ic {shlex.quote(SEND)} {PORT} 127.0.0.1 ::1 {host.address} || true").stdout
    direct = host.run(
        f"for place in {' '.join(everywhere)}; do python3 -Ic {shlex.quote(SEND)} {PORT} $place 2>/dev/null; done; true",
        timeout=120,
    ).stdout
    assert not reached + direct
    listening = {line.removeprefix("direct ") for line in received_by(host)}
    assert {"127.0.0.1", "::1", host.address} <= listening
    # The machine cannot have every address, but it needs some of each kind, or this test would check nothing.
    for kind in (
        "192.168.",
        "172.16.",
        "169.254.",
        "127.",
        "100.64.",
        "::ffff:",
        "64:ff9b::",
        "2002:",
        "fc00:",
        "2001:db8:",
    ):
        assert any(address.startswith(kind) for address in listening), f"no listener at {kind}: {sorted(listening)}"

    wrong = []
    for ipv6, some in enumerate(addresses):
        with _connected(outside, "udp", credentials, bool(ipv6)) as client:
            client.allocate(ipv6=bool(ipv6))
            for address in some:
                for request in (partial(client.permit, address), partial(client.bind_channel, (address, PORT))):
                    try:
                        request()
                        wrong.append(f"{address} is allowed")
                    except RefusedError as refused:
                        wrong += [f"{address}: {refused}"] if refused.code != 403 else []
                client.send((address, PORT), f"relayed {token} {address}".encode())
    time.sleep(0.5)
    assert not wrong, wrong
    arrived = [line for line in received_by(host) if token in line]
    assert not arrived, f"arrived through the relay: {arrived}"


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
def test_relay_does_not_reach_services_of_its_own_machine(
    deployed: Deployed, outside: Outside, credentials: Credentials, listener: Host, ipv6: bool
) -> None:
    """coturn has to allow the machine's address, where its own relayed addresses are; the packet filter protects the services."""
    host, token = deployed.host, secrets.token_hex(4)
    own = host.address6 if ipv6 else host.address
    with (
        _connected(outside, "udp", credentials, ipv6) as client,
        _connected(outside, "udp", credentials, ipv6) as other,
    ):
        sender, receiver = client.allocate(ipv6=ipv6), other.allocate(ipv6=ipv6)
        client.permit(own)
        other.permit(own)
        client.send((own, PORT), f"relayed {token}".encode())
        # This packet was sent later, so the one before would have arrived by now.
        client.send(receiver, b"a call")
        assert other.receive() == (sender, b"a call")
    with socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_DGRAM) as direct:
        direct.sendto(f"unrelayed {token}".encode(), (own, PORT))
    deadline = time.monotonic() + 10
    while f"unrelayed {token}" not in received_by(host):
        assert time.monotonic() < deadline, "the listener receives nothing"
        time.sleep(0.1)
    assert f"relayed {token}" not in received_by(host), "the relay reaches the machine's own services"


def test_a_restart_of_coturn_restores_its_packet_filter(deployed: Deployed) -> None:
    deployed.host.run("nft delete table inet matrix_metal_relay; systemctl restart coturn")
    assert "drop" in deployed.host.run("nft list table inet matrix_metal_relay").stdout
    deployed.host.run(f"until {COTURN.units[0].health}; do sleep 0.05; done")


def test_the_packet_filters_survive_a_firewall(deployed: Deployed) -> None:
    """Debian's nftables.service takes all tables away whenever it does something. By hand, a deploy loads them again."""
    host, tables = deployed.host, {"matrix_metal_ports", "matrix_metal_relay"}

    def found() -> set[str]:
        return set(host.run("nft list tables").stdout.split()) & tables

    host.run(
        "cp -p /etc/nftables.conf /run/nftables.saved; "
        "printf 'flush ruleset\\ntable inet filter {\\n}\\n' >/etc/nftables.conf"
    )
    try:
        for verb in ("start", "reload", "restart", "stop"):
            host.run(f"systemctl {verb} nftables")
            assert found() == tables, f"systemctl {verb} nftables"
    finally:
        host.run("mv /run/nftables.saved /etc/nftables.conf")
    loading = ["Keep the ports for their services", "Keep the relay from this machine's services"]
    started = host.run("systemctl show --value -p InvocationID coturn").stdout
    for damage in (
        "flush ruleset",
        "add rule inet matrix_metal_relay input accept",
        "delete table inet matrix_metal_ports",
    ):
        host.run(f"nft '{damage}'")
        wanted = (
            loading
            if damage == "flush ruleset"
            else [each for each in loading if ("relay" in each) == ("relay" in damage)]
        )
        assert deployed.deployment.run("-y").changed == wanted, damage
        assert found() == tables, damage
    assert host.run("systemctl show --value -p InvocationID coturn").stdout == started, "calls were ended"


def test_allocations_of_one_user_are_limited(outside: Outside) -> None:
    """New credentials do not raise the limit, and other users still get allocations."""
    server, now = outside.server_name, int(time.time())
    greedy = [_signed(outside, f"{now + 600 + number}:@greedy:{server}") for number in range(2)]
    with contextlib.ExitStack() as stack:
        allocated = 0
        with pytest.raises(RefusedError) as refused:
            for allocated in range(200):
                stack.enter_context(_connected(outside, "udp", greedy[allocated % 2])).allocate()
        assert refused.value.code == 486, f"{refused.value} after {allocated}"
        # A lower limit breaks calls of some clients: see tasks/coturn.py.
        assert 100 <= allocated <= 160, f"one user has {allocated} allocations"
        stack.enter_context(_connected(outside, "udp", _signed(outside, f"{now + 600}:@modest:{server}"))).allocate()
    # The allocations are deleted; coturn counts them down a moment later.
    deadline = time.monotonic() + 30
    while True:
        with _connected(outside, "udp", greedy[0]) as again, contextlib.suppress(RefusedError):
            again.allocate()
            break
        assert time.monotonic() < deadline, "deleted allocations are still counted"
        time.sleep(0.5)


@pytest.fixture
def bridge(deployed: Deployed) -> Iterator[Host]:
    """The machine with a bridge for containers, which has addresses of both families."""
    deployed.host.run(
        "ip link add docker0 type bridge && ip address add 172.17.0.1/16 dev docker0 && "
        "ip address add fd17::1/64 dev docker0 nodad && ip link set docker0 up"
    )
    yield deployed.host
    deployed.host.run("ip link del docker0; systemctl restart coturn")


def test_relay_gives_out_no_address_of_a_bridge(
    deployed: Deployed, bridge: Host, outside: Outside, credentials: Credentials
) -> None:
    """Nor does a deploy take note of the bridge: Docker makes one for each network, and the relay must not restart for that."""
    changed = deployed.deployment.run("-y").changed
    bridge.run("systemctl restart coturn")
    for over_ipv6, wanted in product((False, True), ({}, {"ipv4": True}, {"ipv6": True})):
        ipv6 = "ipv6" in wanted or (over_ipv6 and not wanted)
        own = bridge.address6 if ipv6 else bridge.address
        # coturn takes its addresses in turn.
        for _ in range(3):
            with _connected(outside, "udp", credentials, over_ipv6) as client:
                assert client.allocate(**wanted)[0] == own, f"{wanted} over {'IPv6' if over_ipv6 else 'IPv4'}"
    assert changed == []


@pytest.mark.once("debian13")
def test_relay_without_ipv4_refuses_it(deployed: Deployed, outside: Outside, credentials: Credentials) -> None:
    """On a machine that has IPv6 only, instead of giving out 127.0.0.1."""
    host, inventory = deployed.host, deployed.deployment.inventory
    before = inventory.read_text()
    host.inside(["ip", "-4", "address", "flush", "dev", "host0", "scope", "global"])
    try:
        inventory.write_text(before.replace(repr(host.address), repr(host.address6)))
        deployed.deployment.run("-y")
        host.inside(["systemctl", "restart", "coturn"])
        with _connected(outside, "udp", credentials, ipv6=True) as client:
            assert client.allocate()[0] == host.address6
        with _connected(outside, "udp", credentials, ipv6=True) as client:
            try:
                given: object = client.allocate(ipv4=True)[0]
            except RefusedError as refused:
                given = refused.code
            assert given == 440, f"who asks for IPv4 gets {given}"
    finally:
        host.inside(["networkctl", "reconfigure", "host0"])
        inventory.write_text(before)
        host.wait_ready()
        deployed.deployment.run("-y")


@pytest.mark.parametrize("transport", ["tcp", "tls"])
def test_relay_refuses_tcp_allocations(outside: Outside, credentials: Credentials, transport: str) -> None:
    """TCP allocations (RFC 6062) would let a user reach TCP services through the relay."""
    with _connected(outside, transport, credentials) as client:
        with pytest.raises(RefusedError) as refused:
            client.allocate(protocol=socket.IPPROTO_TCP)
        assert refused.value.code in (403, 442), str(refused.value)


@pytest.mark.once("debian13")
def test_relay_behind_nat_gives_out_the_external_address(
    deployed: Deployed, bridge: Host, outside: Outside, credentials: Credentials, testbed: Testbed
) -> None:
    """1:1 NAT: the relay has several private addresses, and clients get the router's. For IPv6 they get the relay's own."""
    inside = deployed.host
    router = testbed.up(own("router"))
    settings = deployed.deployment.directory / "group_data" / f"{deployed.deployment.name}.py"
    before, ports = settings.read_text(), f"{RELAY_PORT}, {RELAY_TLS_PORT}"
    nat = f"""
        sysctl -q net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.host0.send_redirects=0
        nft -f - <<'END'
        table ip nat {{
          chain prerouting {{ type nat hook prerouting priority dstnat
            ip daddr {router.address} udp dport {{ {ports}, {RELAYED.number}-{RELAYED.last} }} dnat to {inside.address}
            ip daddr {router.address} tcp dport {{ {ports} }} dnat to {inside.address}
          }}
          chain postrouting {{ type nat hook postrouting priority srcnat
            ip saddr {inside.address} meta l4proto udp snat to {router.address}
          }}
        }}
END
    """
    subnet = testbed.network.subnet
    try:
        router.run("DEBIAN_FRONTEND=noninteractive apt-get update -qq; apt-get install -qq -y nftables", timeout=300)
        router.run(nat)
        settings.write_text(f"{before}external_ip = {router.address!r}\n")
        assert "Run coturn" in deployed.deployment.run("-y").changed
        # Everything that it sends goes through the router.
        inside.run(
            f"ip route add {router.address} dev host0; ip route replace {subnet} via {router.address} dev host0 "
            f"src {inside.address}"
        )
        for transport in ("udp", "tcp", "tls"):
            with (
                relay(
                    router.address,
                    transport,
                    credentials,
                    context=outside.context(),
                    name=f"turn.{outside.server_name}",
                ) as client,
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
            ):
                peer.settimeout(10)
                peer.bind((testbed.bridge_address, 0))
                relayed = client.allocate()
                assert relayed[0] == router.address, f"the relayed address {relayed[0]} cannot be reached from outside"
                client.permit(testbed.bridge_address)
                client.send(peer.getsockname(), b"there")
                data, sender = peer.recvfrom(2048)
                assert (data, sender) == (b"there", relayed)
                peer.sendto(b"and back", relayed)
                assert client.receive() == (peer.getsockname(), b"and back")
        with _connected(outside, "udp", credentials, ipv6=True) as client:
            assert client.allocate()[0] == inside.address6
    finally:
        inside.run(
            f"ip route replace {subnet} dev host0 src {inside.address}; ip route del {router.address} dev host0 || true",
            check=False,
        )
        router.down()
        settings.write_text(before)
        deployed.deployment.run("-y")
