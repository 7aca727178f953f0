"""LiveKit and the relay on a machine of their own, and behind 1:1 NAT: users get places, and hear each other."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from roles import MEDIA_UDP_PORT
from tests.built import built
from tests.conftest import from_page, own, real_rtc
from tests.deployment import Deployment
from tests.e2e.client import CADDY_ROOT, Account, Outside, expect_json, new_user
from tests.e2e.test_rtc import ONLY_TLS, Callers, a_room, ask, calling, livekit_client, openid_token, validate
from tests.standin.release_server import ReleaseServer
from tests.testbed import Host, Testbed

__all__ = ["livekit_client"]
pytestmark = pytest.mark.role("rtc")

# Documentation addresses (RFC 5737): nobody has them.
PUBLIC = "198.51.100.7"
# What a router does, for packets of the machine with the browser.
# A router before LiveKit's machine, for IPv4; by IPv6 calls would not need it.
NAT = f"""
table inet router
delete table inet router
table inet router {{
	chain translate {{
		type nat hook output priority dstnat; policy accept;
		ip daddr {PUBLIC} counter dnat ip to ADDRESS4
	}}
	chain refuse {{
		type filter hook output priority filter; policy accept;
		ip6 daddr ADDRESS6 udp dport {MEDIA_UDP_PORT} drop
	}}
}}
"""
AUTHORITY = "/usr/local/share/ca-certificates/homeserver.crt"


@dataclass(frozen=True)
class Apart:
    """A homeserver, and another machine with LiveKit, lk-jwt-service and the relay.

    authorities: each machine's own, which clients trust.
    """

    home: Host
    rtc: Host
    deployment: Deployment
    outside: Outside
    users: tuple[Account, Account]
    authorities: tuple[Path, Path]


@pytest.fixture(scope="module")
def apart(testbed: Testbed, release_page: ReleaseServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    name = own("apart")
    home = testbed.up(name, layers=built(testbed, "trixie"))
    layers, names = built(testbed, "bookworm"), [f"{each}.{home.domain}" for each in ("rtc", "turn")]
    rtc = testbed.up(own("apart-rtc"), release="bookworm", layers=layers, names=names)
    directory = tmp_path_factory.mktemp("apart")
    settings = {
        "server_name": home.domain,
        "tls": "internal",
        "admin_email": f"admin@{home.domain}",
        "private_networks": [str(testbed.network.subnet), str(testbed.network.subnet6)],
        **from_page(release_page),
    }
    roles = {
        **{role: [home.name] for role in ("postgres", "synapse")},
        "caddy": [home.name, rtc.name],
        **{role: [rtc.name] for role in ("coturn", "rtc")},
    }
    deployment = Deployment(directory, [home, rtc], settings, roles)
    deployment.environment |= {"SSL_CERT_FILE": str(release_page.ca_file), "XDG_CACHE_HOME": str(directory / "cache")}
    deployment.run("-y")
    outside = Outside(home, directory)
    authorities = directory / "homeserver.crt", directory / "rtc.crt"
    for host, authority in zip((home, rtc), authorities, strict=True):
        host.get(CADDY_ROOT, authority)
    outside.root.write_text("".join(each.read_text() for each in authorities))
    # As for certificates that are publicly trusted: lk-jwt-service asks the homeserver.
    rtc.run(f"cat >{AUTHORITY}; update-ca-certificates", stdin=authorities[0].read_text())
    assert "Run lk-jwt-service" in deployment.run("-y").changed
    users = new_user(outside, "alice"), new_user(outside, "bob")
    yield Apart(home, rtc, deployment, outside, users, authorities)
    for host in (home, rtc):
        host.down()


@pytest.fixture(scope="module")
def callers(request: pytest.FixtureRequest, apart: Apart) -> Iterator[Callers]:
    if not real_rtc():
        pytest.skip("the stand-ins carry no sound: set LIVEKIT_BINARY and LK_JWT_BINARY to the real programs")
    library: Path = request.getfixturevalue("livekit_client")
    machine: Host = request.getfixturevalue("chromium")
    with calling(machine, apart.outside, library, apart.users, *apart.authorities) as callers:
        yield callers


def remotes(callers: Callers) -> set[str]:
    """Where the browsers send what is said."""
    return {path["remote"] for paths in callers.both("conference.paths()") for path in paths}


def test_a_user_gets_a_place_in_a_call(apart: Apart) -> None:
    outside = apart.outside
    with outside.http() as http:
        found = expect_json(http.get(outside.url("", "/.well-known/matrix/client")))
        assert found["org.matrix.msc4143.rtc_foci"][0]["livekit_service_url"] == outside.url("rtc", "/livekit/jwt")
    place = expect_json(ask(outside, a_room(outside), openid_token(outside, apart.users[0])))
    assert validate(outside, place["jwt"]) == 200
    assert apart.deployment.run("-y").changed == []


def test_two_users_hear_each_other(apart: Apart, callers: Callers) -> None:
    callers.join(a_room(callers.outside))
    callers.hear_each_other()
    assert callers.paths() == {("host", "udp")}
    # At either of its addresses: the browsers choose.
    assert remotes(callers) <= {f"{each}:{MEDIA_UDP_PORT}" for each in (apart.rtc.address, apart.rtc.address6)}


def test_the_verification_finds_nothing_wrong(apart: Apart) -> None:
    status, report = apart.deployment.verify()
    assert status == 0, report


def test_two_users_hear_each_other_through_nat(apart: Apart, callers: Callers) -> None:
    """LiveKit does not have the address that it tells clients."""
    before = apart.deployment.settings
    apart.deployment.choose(**before, external_ip=PUBLIC)
    machine = callers.pages[0].browser.host
    try:
        assert {"Run LiveKit", "Run coturn"} <= set(apart.deployment.run("-y").changed)
        machine.run("command -v nft || apt-get install -qq -y nftables >/dev/null", timeout=300)
        rules = NAT.replace("ADDRESS4", apart.rtc.address).replace("ADDRESS6", apart.rtc.address6)
        machine.run("nft -f -", stdin=rules)
        callers.join(a_room(callers.outside))
        callers.hear_each_other()
        assert callers.paths() == {("host", "udp")}
        # Where LiveKit's question was faster than its address, a page does not see from where it came.
        assert remotes(callers) <= {f"{PUBLIC}:{MEDIA_UDP_PORT}", f":{MEDIA_UDP_PORT}"}
        # Where only TLS leaves: the relay is told to send to that address, and no router sends it back.
        apart.rtc.run("nft -f -", stdin=ONLY_TLS)
        callers.join(a_room(callers.outside))
        callers.hear_each_other()
        # LiveKit sees another address of the relay's than clients do: theirs is "relay" or "prflx".
        assert {protocol for _, protocol in callers.paths()} == {"tls"}
    finally:
        apart.rtc.run("nft delete table inet only_tls", check=False)
        machine.run("nft delete table inet router", check=False)
        apart.deployment.choose(**before)
        apart.deployment.run("-y")
