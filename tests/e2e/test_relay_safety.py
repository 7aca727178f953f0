"""The relay carries calls, and nobody anywhere else: tried against somebody who listens at every place it must not reach."""

import contextlib
import ipaddress
import secrets
import shlex
import socket
import time
from collections.abc import Iterator
from functools import partial

import pytest

from settings.networks import BLOCKED_NETWORKS
from tests.conftest import Deployed, own
from tests.e2e.client import Account, Outside, answered
from tests.e2e.test_relay import _connected, _signed
from tests.protocols.turn import Credentials, RefusedError, relay
from tests.testbed import Host, Testbed

pytestmark = pytest.mark.role("coturn")

PORT = 5353
HEARD = "/run/relay-test-heard"
# Somebody who writes down what reaches any address of the machine.
LISTEN = f"""
import socket
link = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
link.bind(("::", {PORT}))
with open("{HEARD}", "ab", buffering=0) as heard:
    while True:
        heard.write(link.recv(2048) + b"\\n")
"""
# To itself, on the machine: proof that the listener is there.
TELL = """
import socket, sys
for place in sys.argv[2:]:
    family = socket.AF_INET6 if ":" in place else socket.AF_INET
    socket.socket(family, socket.SOCK_DGRAM).sendto(f"direct {place}".encode(), (place, int(sys.argv[1])))
"""
# An IPv4 address inside an IPv6 one: IPv4-mapped (CVE-2026-27624), translated (NAT64, RFC 6052 and 8215), 6to4.
FORMS = ["::ffff:{dotted}", "64:ff9b::{dotted}", "64:ff9b:1::{dotted}", "2002:{first}:{last}::1"]


def denied(own: list[str]) -> tuple[list[str], list[str]]:
    """A place at the beginning and one at the end of every range, but for own networks: IPv4, and IPv6 with all forms."""
    networks = [ipaddress.ip_network(network) for network in BLOCKED_NETWORKS]
    ends = [ends for network in networks for ends in (network[1], network[-2])]
    allowed = [ipaddress.ip_network(network) for network in own]
    dotted = [str(end) for end in ends if end.version == 4 and not any(end in network for network in allowed)]
    written = [str(end) for end in ends if end.version == 6 and not any(end in network for network in allowed)]
    for place in dotted:
        packed = ipaddress.IPv4Address(place).packed
        written += [form.format(dotted=place, first=packed[:2].hex(), last=packed[2:].hex()) for form in FORMS]
    return dotted, list(dict.fromkeys(written))


@pytest.fixture(scope="module")
def credentials(outside: Outside, alice: Account) -> Credentials:
    with outside.http() as http:
        given = answered(
            http.get(outside.url("matrix", "/_matrix/client/v3/voip/turnServer"), headers=alice.authorization)
        )
    return Credentials(given["username"], given["password"])


@pytest.fixture(scope="module")
def listener(deployed: Deployed) -> Iterator[Host]:
    """The machine, with somebody who listens."""
    host = deployed.host
    host.run(f"systemd-run --quiet --collect --unit=relay-test python3 -Ic {shlex.quote(LISTEN)}")
    host.run(f"until ss -Hlun sport = :{PORT} | grep -q .; do sleep 0.05; done")
    yield host
    host.run(f"systemctl stop relay-test; rm -f {HEARD}")


@pytest.fixture
def places(listener: Host, testbed: Testbed) -> Iterator[tuple[list[str], list[str]]]:
    """The denied places. All that a machine can have for an address, this one has while the test runs."""
    dotted, written = denied([str(testbed.network.subnet), str(testbed.network.subnet6)])
    everywhere = " ".join(_masked(place) for place in (*dotted, *written))
    # Not every address can be had: some are nobody's, and mapped ones are IPv4 to the kernel.
    add = "ip address add $place dev lo nodad 2>/dev/null || ip address add $place dev lo 2>/dev/null"
    added = listener.run(f"for place in {everywhere}; do {{ {add}; }} && echo $place; done; true").stdout.split()
    try:
        yield dotted, written
    finally:
        listener.run(f"for place in {' '.join(added)}; do ip address del $place dev lo; done")


def _masked(place: str) -> str:
    return f"{place}/{128 if ':' in place else 32}"


def heard(host: Host) -> list[str]:
    return host.run(f"cat {HEARD}").stdout.splitlines()


def test_every_denied_place_is_out_of_reach(
    deployed: Deployed, outside: Outside, credentials: Credentials, places: tuple[list[str], list[str]]
) -> None:
    """None of the three ways to a peer works; and nothing arrives where somebody listens."""
    host, token = deployed.host, secrets.token_hex(4)
    everywhere = [*places[0], *places[1]]
    reached = host.run(f"python3 -Ic {shlex.quote(TELL)} {PORT} 127.0.0.1 ::1 {host.address} || true").stdout
    direct = host.run(
        f"for place in {' '.join(everywhere)}; do python3 -Ic {shlex.quote(TELL)} {PORT} $place 2>/dev/null; done; true",
        timeout=120,
    ).stdout
    assert not reached + direct
    listening = {line.removeprefix("direct ") for line in heard(host)}
    assert {"127.0.0.1", "::1", host.address} <= listening
    # Not every place can be an address of a machine's own, but of each kind some are, or this would prove nothing.
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
        assert any(place.startswith(kind) for place in listening), f"nobody listens at {kind}: {sorted(listening)}"

    wrong = []
    for ipv6, some in enumerate(places):
        with _connected(outside, "udp", credentials, bool(ipv6)) as client:
            client.allocate(ipv6=bool(ipv6))
            for place in some:
                for ask in (partial(client.permit, place), partial(client.bind_channel, (place, PORT))):
                    try:
                        ask()
                        wrong.append(f"{place} is allowed")
                    except RefusedError as refused:
                        wrong += [f"{place}: {refused}"] if refused.code != 403 else []
                client.send((place, PORT), f"relayed {token} {place}".encode())
    time.sleep(0.5)
    assert not wrong, wrong
    arrived = [line for line in heard(host) if token in line]
    assert not arrived, f"through the relay: {arrived}"


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
def test_the_machines_own_services_are_out_of_reach(
    deployed: Deployed, outside: Outside, credentials: Credentials, listener: Host, ipv6: bool
) -> None:
    """The relay has to reach itself at the machine's address, hence coturn lets it; the kernel sees to the rest."""
    host, token = deployed.host, secrets.token_hex(4)
    own = host.address6 if ipv6 else host.address
    with (
        _connected(outside, "udp", credentials, ipv6) as client,
        _connected(outside, "udp", credentials, ipv6) as other,
    ):
        here, there = client.allocate(ipv6=ipv6), other.allocate(ipv6=ipv6)
        client.permit(own)
        other.permit(own)
        client.send((own, PORT), f"relayed {token}".encode())
        # Sent later, arrived already.
        client.send(there, b"a call")
        assert other.receive() == (here, b"a call")
    with socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(f"stranger {token}".encode(), (own, PORT))
    deadline = time.monotonic() + 10
    while f"stranger {token}" not in heard(host):
        assert time.monotonic() < deadline, "the listener is gone"
        time.sleep(0.1)
    assert f"relayed {token}" not in heard(host), "the relay reaches the machine's own services"


def test_the_fence_comes_back_with_coturn(deployed: Deployed) -> None:
    deployed.host.run("nft delete table inet matrix_metal_relay; systemctl restart coturn")
    assert "drop" in deployed.host.run("nft list table inet matrix_metal_relay").stdout
    deployed.host.run("until ss -Hlun sport = :3478 | grep -q .; do sleep 0.05; done")


def test_one_user_gets_only_so_many_addresses(outside: Outside) -> None:
    """However often credentials are asked for; and others still get theirs."""
    server, now = outside.server_name, int(time.time())
    greedy = [_signed(outside, f"{now + 600 + number}:@greedy:{server}") for number in range(2)]
    with contextlib.ExitStack() as stack:
        taken = 0
        with pytest.raises(RefusedError) as refused:
            for taken in range(200):
                stack.enter_context(_connected(outside, "udp", greedy[taken % 2])).allocate()
        assert refused.value.code == 486, f"{refused.value} after {taken}"
        # Fewer break calls: tasks/coturn.py says of which clients.
        assert 100 <= taken <= 160, f"{taken} addresses were given to one user"
        stack.enter_context(_connected(outside, "udp", _signed(outside, f"{now + 600}:@modest:{server}"))).allocate()
    # They were given back; coturn counts them down a moment later.
    deadline = time.monotonic() + 30
    while True:
        with _connected(outside, "udp", greedy[0]) as again, contextlib.suppress(RefusedError):
            again.allocate()
            break
        assert time.monotonic() < deadline, "addresses that were given back are still counted"
        time.sleep(0.5)


@pytest.mark.parametrize("transport", ["tcp", "tls"])
def test_no_tcp_connections_are_relayed(outside: Outside, credentials: Credentials, transport: str) -> None:
    """RFC 6062: a stranger would get a way to TCP services."""
    with _connected(outside, transport, credentials) as client:
        with pytest.raises(RefusedError) as refused:
            client.allocate(protocol=socket.IPPROTO_TCP)
        assert refused.value.code in (403, 442), str(refused.value)


def test_behind_nat(deployed: Deployed, outside: Outside, credentials: Credentials, testbed: Testbed) -> None:
    """1:1 NAT: callers know only the router's address, and the relay, which has a private one, gives that out."""
    inside = deployed.host
    router = testbed.up(own("router"))
    settings = deployed.deployment.directory / "group_data" / f"{deployed.deployment.name}.py"
    before = settings.read_text()
    nat = f"""
        sysctl -q net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.host0.send_redirects=0
        nft -f - <<'END'
        table ip nat {{
          chain prerouting {{ type nat hook prerouting priority dstnat
            ip daddr {router.address} udp dport {{ 3478, 5349, 49152-65535 }} dnat to {inside.address}
            ip daddr {router.address} tcp dport {{ 3478, 5349 }} dnat to {inside.address}
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
        # Everything it sends goes through the router.
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
                given = client.allocate()
                assert given[0] == router.address, f"{given[0]} is given out, which nobody outside can reach"
                client.permit(testbed.bridge_address)
                client.send(peer.getsockname(), b"there")
                data, sender = peer.recvfrom(2048)
                assert (data, sender) == (b"there", given)
                peer.sendto(b"and back", given)
                assert client.receive() == (peer.getsockname(), b"and back")
    finally:
        inside.run(
            f"ip route replace {subnet} dev host0 src {inside.address}; ip route del {router.address} dev host0 || true",
            check=False,
        )
        router.down()
        settings.write_text(before)
        deployed.deployment.run("-y")
