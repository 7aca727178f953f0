"""Calls that cannot go directly go through coturn: for users with Synapse's credentials, and to nowhere private."""

import ipaddress
import secrets
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.conftest import own
from tests.e2e.client import Account, Outside, expect_json
from tests.protocols.turn import Credentials, RefusedError, Relay, relay
from tests.testbed import CommandFailed, Host, Testbed

pytestmark = pytest.mark.role("coturn")

# Where no relay of a homeserver may lead, beyond the testbed's own network, which `complete` allows.
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
# The same places written as IPv6: mapped, compatible, translated (NAT64, both prefixes), 6to4; and IPv6's own.
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
    """What a client is given at the beginning of a call."""
    with outside.http() as http:
        url = outside.url("matrix", "/_matrix/client/v3/voip/turnServer")
        assert expect_json(http.get(url), 401)["errcode"] == "M_MISSING_TOKEN", "strangers are given credentials"
        given = expect_json(http.get(url, headers=alice.authorization))
    turn = f"turn.{outside.server_name}"
    assert given["uris"] == [
        f"turn:{turn}:3478?transport=udp",
        f"turn:{turn}:3478?transport=tcp",
        f"turns:{turn}:5349?transport=tcp",
    ]
    assert given["ttl"] >= 3600, "credentials expire during a call"
    return Credentials(given["username"], given["password"])


@pytest.fixture(scope="session")
def other_machine(testbed: Testbed) -> Iterator[Host]:
    """A machine with Debian's own TURN client and something that sends back what it receives."""
    host = testbed.up(own("relay-client"))
    host.run(
        "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends coturn "
        "&& systemctl stop coturn && systemd-run --quiet --unit=echo turnutils_peer",
        timeout=300,
    )
    yield host
    host.down()


@pytest.mark.parametrize("options", ["", "-t", "-S", "-t -S"], ids=["udp", "tcp", "dtls", "tls"])
def test_debians_client_gets_everything_through(
    outside: Outside, other_machine: Host, credentials: Credentials, options: str
) -> None:
    output = _uclient(outside, other_machine, credentials, options)
    assert "Total lost packets 0 (0.000000%), total send dropped 0" in output, output[-2000:]
    assert "tot_send_msgs=10, tot_recv_msgs=10" in output, output[-2000:]


def test_debians_client_is_refused_with_a_wrong_password(
    outside: Outside, other_machine: Host, credentials: Credentials
) -> None:
    with pytest.raises(CommandFailed) as failed:
        _uclient(outside, other_machine, Credentials(credentials.username, "wrong"), "")
    assert "Cannot complete Allocation" in failed.value.result.stdout + failed.value.result.stderr


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
def test_two_users_meet_at_the_relay(outside: Outside, credentials: Credentials, transport: str, ipv6: bool) -> None:
    """Both sides of a call behind networks that let only this much out. Over TLS the certificate must be the relay's."""
    with (
        _connected(outside, transport, credentials, ipv6) as one,
        _connected(outside, transport, credentials, ipv6) as two,
    ):
        his, hers = one.allocate(ipv6=ipv6), two.allocate(ipv6=ipv6)
        own = outside.host.address6 if ipv6 else outside.host.address
        assert {his[0], hers[0]} == {own}, f"the relay gives out {his} and {hers} instead of addresses of its own"
        for _, port in (his, hers):
            assert 49152 <= port <= 65535, f"port {port} is none of the relay's range, which firewalls let through"
        one.permit(hers[0])
        two.permit(his[0])
        for packet in (secrets.token_bytes(size) for size in (1, 100, 1200)):
            one.send(hers, packet)
            assert two.receive() == (his, packet)
            two.send(his, packet)
            assert one.receive() == (hers, packet)


def test_the_relays_certificate_is_its_own(outside: Outside) -> None:
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
def test_others_get_no_address(outside: Outside, credentials: Credentials, transport: str) -> None:
    expired = _signed(outside, f"{int(time.time()) - 60}:@expired:{outside.server_name}")
    invented = Credentials(credentials.username.replace(":", ":x", 1), credentials.password)
    strangers = {
        "somebody without credentials": None,
        "somebody with a wrong password": Credentials(credentials.username, f"{credentials.password}x"),
        "somebody with another's password": invented,
        "somebody with an empty name": Credentials("", ""),
        "somebody whose credentials have expired": expired,
    }
    for who, given in strangers.items():
        with _connected(outside, transport, given) as client:
            with pytest.raises(RefusedError) as refused:
                address = client.allocate()
                pytest.fail(f"{who} got {address}")
            assert refused.value.code == 401, f"{who}: {refused.value}"


def test_unexpired_credentials_of_the_same_making_work(outside: Outside) -> None:
    """So that the expired ones above are refused for their age and nothing else."""
    fresh = _signed(outside, f"{int(time.time()) + 60}:@fresh:{outside.server_name}")
    with _connected(outside, "udp", fresh) as client:
        client.allocate()


def test_no_private_place_is_relayed_to(outside: Outside, credentials: Credentials) -> None:
    with _connected(outside, "udp", credentials) as client:
        client.allocate()
        # What is refused below is not refused because everything is.
        client.permit("9.9.9.9")
        client.permit(outside.host.address)
        assert _not_refused(client.permit, PRIVATE) == []


def test_no_private_place_is_relayed_to_as_ipv6(outside: Outside, credentials: Credentials) -> None:
    """Source of the mapped forms: CVE-2020-26262 and CVE-2026-27624."""
    places = [*PRIVATE6]
    for dotted in PRIVATE:
        packed = ipaddress.IPv4Address(dotted).packed
        places += [form.format(dotted=dotted, first=packed[:2].hex(), last=packed[2:].hex()) for form in FORMS]
    with _connected(outside, "udp", credentials, ipv6=True) as client:
        client.allocate(ipv6=True)
        client.permit("2620:fe::9")
        client.permit(outside.host.address6)
        assert _not_refused(client.permit, places) == []


def _not_refused(permit: Callable[[str], None], places: list[str]) -> list[str]:
    """Of these places, those that are not refused with 403 Forbidden, and what was said instead."""
    wrong = []
    for place in places:
        try:
            permit(place)
            wrong.append(f"{place}: allowed")
        except RefusedError as refused:
            if refused.code != 403:
                wrong.append(f"{place}: {refused}")
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
    """Ten packets through the relay to the machine and back. Its -E does not stop it at a wrong certificate."""
    done = machine.run(
        f"turnutils_uclient {options} -c -n 10 -z 50 -u '{credentials.username}' -w '{credentials.password}' "
        # Its own 255 would look like SSH's.
        f"-e {machine.address} turn.{outside.server_name} || exit 1",
    )
    return done.stdout + done.stderr
