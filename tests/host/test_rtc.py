"""LiveKit and lk-jwt-service: they run, answer through Caddy, and give no place in a call to who has no user."""

import ipaddress
import json
import re
import time

from testinfra.host import Host

from operations.filters import PORTS
from roles import LK_JWT_PORT, MEDIA_UDP_PORT, SIGNAL_PORT
from settings import Settings
from settings.networks import PRIVATE
from settings.rtc import Rtc, transports
from tests.host.report import Note
from tests.host.services import DEPLOY, Service, ServiceTests, ask, get, program_in_use, statuses, table_of

ORIGIN = "https://client.example"


class TestService(ServiceTests):
    pass


def test_they_answer(host: Host) -> None:
    livekit, lk_jwt = (f"http://127.0.0.1:{port}" for port in (SIGNAL_PORT, LK_JWT_PORT))
    answer = get(host, f"{livekit}/")
    assert (answer.status, answer.body.strip()) == (200, "OK"), f"{answer}; see journalctl -u livekit"
    answer = get(host, f"{lk_jwt}/healthz")
    assert answer.status == 200, f"{answer}; see journalctl -u lk-jwt"


def test_they_are_the_versions_of_the_settings(services: dict[str, Service], settings: Settings, note: Note) -> None:
    releases = settings.view(Rtc).releases
    for unit, release in (("livekit.service", releases.livekit), ("lk-jwt.service", releases.lk_jwt)):
        current = program_in_use(services[unit], release.name)
        note("versions", f"{release.name} {current.rpartition('-')[0]}")
        assert current.startswith(f"{release.version}-"), (
            f"version {current} of {release.name} runs, {release.version} is wanted: {DEPLOY}"
        )


def test_clients_reach_both_and_nothing_else(host: Host, settings: Settings) -> None:
    if not settings.here("caddy"):
        return
    name = settings.view(Rtc).domain
    answer = get(host, f"https://{name}/livekit/sfu/", origin=ORIGIN)
    assert answer.status == 200, f"clients do not reach LiveKit: {answer}; see journalctl -u caddy -u livekit"
    answer = get(host, f"https://{name}/livekit/jwt/sfu/get", method="OPTIONS", origin=ORIGIN)
    assert answer.status == 200 and answer.headers.get("access-control-allow-origin") == "*", (
        f"web clients may not ask for a place in a call: {answer}; see journalctl -u caddy -u lk-jwt"
    )
    found = statuses(host, name, ["/", "/sfu/get", "/rtc", "/healthz", "/metrics", "/debug/pprof/", "/livekit"])
    reached = {path: status for path, status in found.items() if status != 404}
    assert not reached, f"more is reachable than clients need: {reached}; {DEPLOY}"


def test_clients_find_it(host: Host, settings: Settings) -> None:
    if not (settings.here("synapse") and settings.here("caddy")):
        return
    answer = get(host, f"https://{settings.server_name}/.well-known/matrix/client", origin=ORIGIN)
    found = answer.json().get("org.matrix.msc4143.rtc_foci")
    assert found == transports(settings), f"Element X finds no calls, {answer.url} says {found}: {DEPLOY}"


def test_who_has_no_user_gets_no_place(host: Host, settings: Settings) -> None:
    """A forged token is refused, and it is the homeserver who says so: otherwise nobody would get a place."""
    token = {"access_token": "forged", "token_type": "Bearer", "matrix_server_name": settings.server_name}
    asked = {"room": "!verification", "device_id": "verification", "openid_token": {**token, "expires_in": 60}}
    begun = time.time()
    command = "curl -qsS --max-time 20 -X POST -d %s http://127.0.0.1:%s/sfu/get"
    answer = ask(host, command, json.dumps(asked), str(LK_JWT_PORT))
    assert "jwt" not in json.loads(answer), "lk-jwt-service gives a place in a call to anybody"
    # A busy machine's journal is behind.
    for _ in range(25):
        log = ask(host, "journalctl -q -o cat -u lk-jwt --since=%s", f"@{begun - 1:.0f}")
        if refused := re.search("look up user info: HTTP 401", log):
            break
        time.sleep(0.2)
    assert refused, (
        f"lk-jwt-service cannot ask {settings.server_name} who a user is, so nobody can make calls: "
        f"{(log.strip().splitlines() or ['it does not say why'])[-1]}"
    )


def test_clients_do_not_send_it_into_private_networks(host: Host, services: dict[str, Service]) -> None:
    """lk-jwt-service connects to whatever homeserver a client names."""
    uid = ask(host, "id -u %s", services["lk-jwt.service"].user).strip()
    assert re.search(rf"meta skuid {uid} .*jump outward", table_of(host, PORTS)), (
        f"clients can have lk-jwt-service connect to machines of your network: {DEPLOY}"
    )


def test_media_reaches_it_at_the_public_addresses(services: dict[str, Service], settings: Settings, note: Note) -> None:
    rtc, found = settings.view(Rtc), services["livekit.service"].sockets()
    assert rtc.addresses, "the machine has no address at which calls could reach it"
    places = {
        each: f"udp {f'[{each.address}]' if ':' in each.address else each.address}:{MEDIA_UDP_PORT}"
        for each in rtc.addresses
    }
    missing = [each.address for each, place in places.items() if place not in found]
    assert not missing, f"LiveKit does not listen for media at {' and '.join(missing)}: {DEPLOY}"
    reachable = [*map(ipaddress.ip_network, settings.choices.private_networks)]
    inside = [
        each.told
        for each in rtc.addresses
        if any(ipaddress.ip_address(each.told) in network for network in PRIVATE)
        and not any(ipaddress.ip_address(each.told) in network for network in reachable)
    ]
    assert not inside, (
        f"calls are to reach LiveKit at {' and '.join(inside)}, which nobody outside can reach: set external_ip "
        "(external_ipv6) to the public address, or name the network in private_networks if all users are there"
    )
    note("calls", f"LiveKit at {', '.join(each.told for each in rtc.addresses)}")
