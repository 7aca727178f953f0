"""The relay: users with credentials from Synapse get allocations, others none, and no private address is relayed to."""

import ipaddress
import secrets
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from roles import RELAYED
from tests.conftest import own
from tests.e2e.client import Account, Outside, expect_json
from tests.protocols.turn import Credentials, RefusedError, Relay, relay
from tests.testbed import CommandFailed, Host, Testbed

pytestmark = pytest.mark.role("coturn")

# Addresses that the relay must refuse. The testbed's own network is private as well, but allowed by `private_networks`.
PRIVATE = [
    "0.0.0.0",  # noqa: S104
    "10.255.255.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.8.8.8",
    "169.254.169.254",
    "172.16.0.1",
    "192.168.0.1",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
]
# The same addresses inside IPv6: mapped, compatible, translated (NAT64, both prefixes), 6to4. Then special IPv6 addresses.
FORMS = ["::ffff:{dotted}", "::{dotted}", "64:ff9b::{dotted}", "64:ff9b:1::{dotted}", "2002:{first}:{last}::1"]
PRIVATE6 = [
    "::",
    "::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "fc00::1",
    "fd12:3456:789a::1",
    "fe80::1",
    "fec0::1",
    "ff02::1",
]


@pytest.fixture(scope="module")
def credentials(outside: Outside, alice: Account) -> Credentials:
    """TURN credentials, as a client gets them at the beginning of a call."""
    with outside.http() as http:
        url = outside.url("matrix", "/_matrix/client/v3/voip/turnServer")
        assert expect_json(http.get(url), 401)["errcode"] == "M_MISSING_TOKEN", (
            "unauthenticated clients get credentials"
        )
        answer = expect_json(http.get(url, headers=alice.authorization))
    turn = f"turn.{outside.server_name}"
    assert answer["uris"] == [
        f"turn:{turn}:3478?transport=udp",
        f"turn:{turn}:3478?transport=tcp",
        f"turns:{turn}:5349?transport=tcp",
    ]
    assert answer["ttl"] >= 3600, "credentials expire within an hour"
    return Credentials(answer["username"], answer["password"])


@pytest.fixture(scope="session")
def other_machine(testbed: Testbed) -> Iterator[Host]:
    """A machine with Debian's TURN client and turnutils_peer, which sends back what it receives."""
    host = testbed.up(own("relay-client"))
    host.run(
        "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends coturn "
        "&& systemctl stop coturn && systemd-run --quiet --unit=echo turnutils_peer",
        timeout=300,
    )
    yield host
    host.down()


@pytest.mark.parametrize("options", ["", "-t", "-S", "-t -S"], ids=["udp", "tcp", "dtls", "tls"])
def test_debians_turn_client_loses_no_packets(
    outside: Outside, other_machine: Host, credentials: Credentials, options: str
) -> None:
    output = _uclient(outside, other_machine, credentials, options)
    assert "Total lost packets 0 (0.000000%), total send dropped 0" in output, output[-2000:]
    assert "tot_send_msgs=10, tot_recv_msgs=10" in output, output[-2000:]


def test_debians_turn_client_is_refused_with_a_wrong_password(
    outside: Outside, other_machine: Host, credentials: Credentials
) -> None:
    with pytest.raises(CommandFailed) as failed:
        _uclient(outside, other_machine, Credentials(credentials.username, "wrong"), "")
    assert "Cannot complete Allocation" in failed.value.result.stdout + failed.value.result.stderr


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
def test_two_users_exchange_packets_through_the_relay(
    outside: Outside, credentials: Credentials, transport: str, ipv6: bool
) -> None:
    """As in a call of two users behind strict firewalls. Over TLS the relay's certificate is checked."""
    with (
        _connected(outside, transport, credentials, ipv6) as one,
        _connected(outside, transport, credentials, ipv6) as two,
    ):
        his, hers = one.allocate(ipv6=ipv6), two.allocate(ipv6=ipv6)
        own = outside.host.address6 if ipv6 else outside.host.address
        assert {his[0], hers[0]} == {own}, f"the relayed addresses {his} and {hers} are not the relay's own"
        for _, port in (his, hers):
            assert port in RELAYED.numbers, f"port {port} is outside of the relay's range, which firewalls allow"
        one.permit(hers[0])
        two.permit(his[0])
        for packet in (secrets.token_bytes(size) for size in (1, 100, 1200)):
            one.send(hers, packet)
            assert two.receive() == (his, packet)
            two.send(his, packet)
            assert one.receive() == (hers, packet)


def test_the_relays_certificate_is_for_its_name_and_by_the_deployments_authority(outside: Outside) -> None:
    with (
        pytest.raises(ssl.SSLCertVerificationError, match=r"[Hh]ostname"),
        relay(outside.host.address, "tls", context=outside.context(), name=f"other.{outside.server_name}"),
    ):
        pass
    public = ssl.create_default_context()
    with (
        pytest.raises(ssl.SSLCertVerificationError),
        relay(outside.host.address, "tls", context=public, name=f"turn.{outside.server_name}"),
    ):
        pass


@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
def test_no_allocation_without_valid_credentials(outside: Outside, credentials: Credentials, transport: str) -> None:
    expired = _signed(outside, f"{int(time.time()) - 60}:@expired:{outside.server_name}")
    invented = Credentials(credentials.username.replace(":", ":x", 1), credentials.password)
    refused_clients = {
        "a client without credentials": None,
        "a client with a wrong password": Credentials(credentials.username, f"{credentials.password}x"),
        "a client with another user's password": invented,
        "a client with an empty name": Credentials("", ""),
        "a client with expired credentials": expired,
    }
    for client_kind, invalid in refused_clients.items():
        with _connected(outside, transport, invalid) as client:
            with pytest.raises(RefusedError) as refused:
                address = client.allocate()
                pytest.fail(f"{client_kind} got {address}")
            assert refused.value.code == 401, f"{client_kind}: {refused.value}"


def test_unexpired_credentials_with_the_same_secret_work(outside: Outside) -> None:
    """So that the expired credentials above are refused because of their age only."""
    fresh = _signed(outside, f"{int(time.time()) + 60}:@fresh:{outside.server_name}")
    with _connected(outside, "udp", fresh) as client:
        client.allocate()


def test_relay_refuses_private_ipv4_addresses(outside: Outside, credentials: Credentials) -> None:
    with _connected(outside, "udp", credentials) as client:
        client.allocate()
        # Public addresses and the relay's own are allowed, so not every address is refused.
        client.permit("9.9.9.9")
        client.permit(outside.host.address)
        assert _not_refused(client.permit, PRIVATE) == []


def test_relay_refuses_private_ipv6_addresses_and_ipv4_inside_ipv6(outside: Outside, credentials: Credentials) -> None:
    """Source of the mapped forms: CVE-2020-26262 and CVE-2026-27624."""
    addresses = [*PRIVATE6]
    for dotted in PRIVATE:
        packed = ipaddress.IPv4Address(dotted).packed
        addresses += [form.format(dotted=dotted, first=packed[:2].hex(), last=packed[2:].hex()) for form in FORMS]
    with _connected(outside, "udp", credentials, ipv6=True) as client:
        client.allocate(ipv6=True)
        client.permit("2620:fe::9")
        client.permit(outside.host.address6)
        assert _not_refused(client.permit, addresses) == []


def _not_refused(permit: Callable[[str], None], addresses: list[str]) -> list[str]:
    """Those of the addresses that are not refused with 403 Forbidden, and the answer instead."""
    wrong = []
    for address in addresses:
        try:
            permit(address)
            wrong.append(f"{address}: allowed")
        except RefusedError as refused:
            if refused.code != 403:
                wrong.append(f"{address}: {refused}")
    return wrong


def _connected(
    outside: Outside, transport: str, credentials: Credentials | None, ipv6: bool = False
) -> AbstractContextManager[Relay]:
    address = outside.host.address6 if ipv6 else outside.host.address
    return relay(address, transport, credentials, context=outside.context(), name=f"turn.{outside.server_name}")


def _signed(outside: Outside, username: str) -> Credentials:
    """Credentials as Synapse makes them, with the secret that it shares with coturn."""
    secret = outside.host.run("cat /etc/matrix-synapse/secrets/turn_shared_secret").stdout.strip()
    return Credentials.signed(username, secret)


def _uclient(outside: Outside, machine: Host, credentials: Credentials, options: str) -> str:
    """Ten packets through the relay to the machine and back. (This client ignores wrong certificates, even with -E.)"""
    done = machine.run(
        f"turnutils_uclient {options} -c -n 10 -z 50 -u '{credentials.username}' -w '{credentials.password}' "
        # Its exit status 255 would look like an error of SSH.
        f"-e {machine.address} turn.{outside.server_name} || exit 1",
    )
    return done.stdout + done.stderr
