"""Calls of Element X: a user gets a place in a call, others do not; two users hear each other, directly and through the relay."""

import base64
import hashlib
import json
import re
import secrets
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from roles import LK_JWT_PORT, MEDIA_TCP_PORT, MEDIA_UDP_PORT, RELAY_PORT, RELAY_TLS_PORT, RELAYED, RTC
from settings.rtc import KEY
from tests.conftest import Deployed, real_rtc
from tests.e2e.call.browser import HOME, Page, browsing
from tests.e2e.client import TIMEOUT, Account, Outside, expect_json, new_user
from tests.testbed import Host
from vault import Vault

pytestmark = pytest.mark.role("rtc")

CLIENT = "livekit-client@2.23.0"
INTEGRITY = "j9Kg86nJjBjNFUD+ukp2jwMCGa0k+YD5gU//RzAM+ZY3pbG631QCte7fQjwqWMmtBzhDJL9nKYuOLMv/9IbAxg=="
# In the way of all packets from outside but those to the web site and to the relay over TLS.
ONLY_TLS = f"""
table inet only_tls
delete table inet only_tls
table inet only_tls {{
	chain input {{
		type filter hook input priority -10; policy accept;
		iifname != "lo" tcp dport {{ {MEDIA_TCP_PORT}, {RELAY_PORT} }} counter drop
		iifname != "lo" udp dport {{ {MEDIA_UDP_PORT}, {RELAY_PORT}, {RELAY_TLS_PORT} }} counter drop
		iifname != "lo" udp dport {RELAYED.number}-{RELAYED.last} counter drop
	}}
}}
"""


def openid_token(outside: Outside, account: Account) -> dict[str, Any]:
    """By which the homeserver vouches for a user."""
    url = outside.url("matrix", f"/_matrix/client/v3/user/{account.user_id}/openid/request_token")
    with outside.http() as http:
        token: dict[str, Any] = expect_json(http.post(url, json={}, headers=account.authorization))
        return token


def ask(outside: Outside, room: str, token: dict[str, Any]) -> httpx.Response:
    """Ask for a place in the call of a room."""
    asked = {"room": room, "openid_token": token, "device_id": "TESTS"}
    with outside.http() as http:
        return http.post(outside.url("rtc", "/livekit/jwt/sfu/get"), json=asked)


def validate(outside: Outside, token: str) -> int:
    """LiveKit's answer to who wants to join a call with a token: 200 if the token is good, and the room exists."""
    with outside.http() as http:
        return http.get(outside.url("rtc", "/livekit/sfu/rtc/validate"), params={"access_token": token}).status_code


def claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    return claims


def a_room(outside: Outside) -> str:
    return f"!{secrets.token_hex(8)}:{outside.server_name}"


def test_a_user_gets_a_place_in_a_call(outside: Outside, alice: Account) -> None:
    place = expect_json(ask(outside, a_room(outside), openid_token(outside, alice)))
    assert place["url"] == f"wss://rtc.{outside.server_name}/livekit/sfu"
    claims = claims_of(place["jwt"])
    assert claims["iss"] == KEY and claims["sub"].startswith(f"{alice.user_id}:")
    assert claims["video"]["roomJoin"] and not claims["video"].get("roomCreate")
    assert validate(outside, place["jwt"]) == 200


def test_the_homeserver_says_where_calls_are(outside: Outside, alice: Account) -> None:
    wanted = {"type": "livekit", "livekit_service_url": outside.url("rtc", "/livekit/jwt")}
    with outside.http() as http:
        found = expect_json(http.get(outside.url("", "/.well-known/matrix/client")))
        assert found["org.matrix.msc4143.rtc_foci"] == [wanted]
        url = outside.url("matrix", "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports")
        assert wanted in expect_json(http.get(url, headers=alice.authorization))["rtc_transports"]
        features = expect_json(http.get(outside.url("matrix", "/_matrix/client/versions")))["unstable_features"]
        # Somebody who vanishes leaves the call by an event that was sent in advance.
        assert features["org.matrix.msc4140"]


# Caddy repeats no request with a body.
RESTART = (
    "systemctl restart lk-jwt; for attempt in $(seq 100); do "
    f"curl -sf -o /dev/null http://127.0.0.1:{LK_JWT_PORT}/healthz && break; sleep 0.1; done"
)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"access_token": "forged"}, id="forged"),
        pytest.param({"matrix_server_name": "nobody.test"}, id="of a server that does not exist"),
        pytest.param({"matrix_server_name": "127.0.0.1:8008"}, id="of an address"),
        pytest.param({"access_token": ""}, id="empty"),
    ],
)
def test_who_has_no_user_gets_no_place(outside: Outside, alice: Account, wrong: dict[str, str]) -> None:
    answer = ask(outside, a_room(outside), {**openid_token(outside, alice), **wrong})
    assert answer.status_code >= 400 and "jwt" not in answer.json(), answer.text


def log_of(host: Host, since: str, words: str) -> str:
    """What lk-jwt-service has logged since then. It comes through a filter: words are waited for."""
    log = f"journalctl -q -o cat -u lk-jwt --since @{since}"
    host.run(f"for i in $(seq 50); do {log} | grep -qi '{words}' && break; sleep 0.1; done; journalctl --sync")
    return host.run(log).stdout


def test_the_journal_has_problems_and_not_who_makes_calls(outside: Outside, alice: Account) -> None:
    host, token = outside.host, openid_token(outside, alice)
    since = host.run("date +%s").stdout.strip()
    expect_json(ask(outside, a_room(outside), token))
    # It looks for that server, and says where it has asked, with the token.
    assert ask(outside, a_room(outside), {**token, "matrix_server_name": "nobody.test"}).status_code >= 400
    # Who says too little.
    assert ask(outside, a_room(outside), {**token, "access_token": ""}).status_code >= 400
    logged = log_of(host, since, "Failed to look up user info")
    assert "Failed to look up user info" in logged, logged
    for each in (alice.user_id, alice.user_id[1:].partition(":")[0], token["access_token"], outside.server_name):
        assert each not in logged, logged


def test_the_journal_says_why_lk_jwt_service_does_not_start(deployed: Deployed) -> None:
    """It ends right after it has said so."""
    host, port = deployed.host, LK_JWT_PORT
    since = host.run("date +%s; systemctl stop lk-jwt").stdout.strip()
    host.run(
        f'systemd-run -q --unit=taken python3 -c \'import socket, time; s = socket.create_server(("127.0.0.1", {port})); '
        "time.sleep(60)'"
    )
    try:
        host.run(
            f"until ss -Hlnt sport = :{port} | grep -q .; do sleep 0.1; done; systemctl start lk-jwt || true; sleep 1"
        )
        logged = log_of(host, since, "address already in use")
        assert re.search("address already in use", logged, re.IGNORECASE), logged
    finally:
        host.run(f"systemctl stop taken lk-jwt; systemctl reset-failed lk-jwt || true; {RESTART}")


@pytest.mark.once("debian13")
def test_livekit_that_lacks_something_has_failed(deployed: Deployed) -> None:
    """It ends with exit status 0 then."""
    host, directory = deployed.host, "/etc/systemd/system/livekit.service.d"
    lacking = (
        f"mkdir {directory}; cat >{directory}/lacking.conf; systemctl daemon-reload; touch /etc/livekit/livekit.yaml"
    )
    host.run(lacking, stdin="[Service]\nRestrictAddressFamilies=~AF_NETLINK\n")
    try:
        run = deployed.deployment.run("-y", check=False)
        assert run.status == 1 and "livekit.service failed to start" in run.refusal, run.output
        assert host.run("systemctl show -p ExecMainStatus --value livekit").stdout == "0\n"
    finally:
        host.run(f"rm -r {directory}; systemctl daemon-reload")
    # systemd goes on trying.
    ready = f"until ( {RTC.units[0].health} ); do sleep 0.2; done"
    host.run(ready, timeout=60)
    # It counts as a crash until it is started anew, and the host's other tests do not expect one.
    host.run(
        f"systemctl stop livekit; systemctl reset-failed livekit || true; systemctl start livekit; {ready}", timeout=60
    )


def test_a_forged_place_is_none(outside: Outside, alice: Account) -> None:
    """LiveKit checks who signed it; a real one is for one room, and lets nobody create others."""
    place = expect_json(ask(outside, a_room(outside), openid_token(outside, alice)))
    header, _, signature = place["jwt"].split(".")
    claims = {**claims_of(place["jwt"]), "video": {"roomJoin": True, "roomCreate": True, "room": "another"}}
    forged = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    assert validate(outside, f"{header}.{forged}.{signature}") == 401
    url = outside.url("rtc", "/livekit/sfu/twirp/livekit.RoomService/CreateRoom")
    with outside.http() as http:
        for token in (place["jwt"], f"{header}.{forged}.{signature}", ""):
            answer = http.post(url, json={"name": "another"}, headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code in (401, 403), answer.text


def test_users_of_other_servers_join_calls_and_start_none(
    both: tuple[Deployed, Deployed], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Unless a setting lets them."""
    here, elsewhere = (Outside(each.host, tmp_path_factory.mktemp("rtc")) for each in both)
    authority, host, room = "/usr/local/share/ca-certificates/elsewhere.crt", here.host, a_room(here)
    local, foreign = new_user(here, "local"), new_user(elsewhere, "foreign")
    # As for certificates that are publicly trusted.
    host.run(f"cat > {authority}; update-ca-certificates; {RESTART}", stdin=elsewhere.root.read_text())
    try:
        place = expect_json(ask(here, room, openid_token(elsewhere, foreign)))
        assert validate(here, place["jwt"]) != 200, "a user of another server has started a call"
        expect_json(ask(here, room, openid_token(here, local)))
        assert validate(here, place["jwt"]) == 200

        deployment, before = both[0].deployment, both[0].deployment.settings
        deployment.choose(**before, rtc_full_access_servers=[elsewhere.server_name])
        try:
            assert "Run lk-jwt-service" in deployment.run("-y").changed
            place = expect_json(ask(here, a_room(here), openid_token(elsewhere, foreign)))
            assert validate(here, place["jwt"]) == 200
        finally:
            deployment.choose(**before)
            deployment.run("-y")
    finally:
        host.run(f"rm {authority}; update-ca-certificates --fresh; {RESTART}")


def test_livekit_and_lk_jwt_service_share_a_secret_that_the_vault_has(deployed: Deployed) -> None:
    secret = Vault.open(deployed.deployment.vault).get("livekit_secret").reveal()
    shown = deployed.host.run("cat /etc/livekit/keys.yaml /etc/lk-jwt/secret").stdout.split()
    assert shown[-2:] == [json.dumps(secret), secret]
    deployed.host.run(
        "! runuser -u lk-jwt -- cat /etc/livekit/keys.yaml; ! runuser -u livekit -- cat /etc/lk-jwt/secret"
    )


def test_clients_do_not_send_lk_jwt_service_into_private_networks(deployed: Deployed) -> None:
    """It connects to whatever homeserver a client names. The network of these hosts is allowed in the settings."""
    host, address, port = deployed.host, "192.168.77.1", 8999
    get = f"curl -s -m 5 -o /dev/null -w '%{{http_code}}\\n' http://{address}:{port}/"
    host.run(f"ip address add {address}/32 dev lo; systemd-run -q --unit=inside python3 -m http.server {port}")
    try:
        host.run(f"until ss -Hlnt sport = :{port} | grep -q .; do sleep 0.1; done")
        assert host.run(get).stdout == "200\n"
        assert host.run(f"runuser -u lk-jwt -- {get}", check=False).stdout == "000\n"
        assert host.run(f"runuser -u lk-jwt -- {get.replace(address, host.address)}").stdout == "200\n"
    finally:
        host.run(f"systemctl stop inside; ip address del {address}/32 dev lo")


# --- calls, with the real programs ----------------------------------------------------------------


@dataclass(frozen=True)
class Callers:
    """Two users, each logged in on a page of their own, who join the call of a room."""

    outside: Outside
    pages: tuple[Page, Page]

    def both(self, function: str, *arguments: Any) -> list[Any]:
        started = [page.start(function, *arguments) for page in self.pages]
        return [page.result(number, TIMEOUT) for page, number in zip(self.pages, started, strict=True)]

    def join(self, room: str) -> None:
        # Who is in another call leaves it, so that only the connection of this one counts.
        join = (
            "async (...place) => { await self.conference?.leave(); "
            "self.conference = await Conference.join(await askForPlace(matrix, ...place)) }"
        )
        self.both(join, self.outside.server_name, room)

    def hear_each_other(self) -> None:
        try:
            self.both("conference.hears()")
        except TimeoutError:
            found = self.both("(async () => [conference.events, await conference.paths()])()")
            raise AssertionError(f"they do not hear each other: {found}") from None

    def paths(self) -> set[tuple[str, str]]:
        """Kind and protocol of their connections with LiveKit."""
        return {(path["type"], path["protocol"]) for paths in self.both("conference.paths()") for path in paths}


@pytest.fixture(scope="module")
def livekit_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LiveKit's own client library for browsers, from npm."""
    directory = tmp_path_factory.mktemp("livekit")
    if not shutil.which("npm"):
        pytest.skip("LiveKit's client library comes from npm, which is not installed here")
    command = ["npm", "pack", "--silent", "--pack-destination", str(directory), CLIENT]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=120)
    [packed] = directory.glob("*.tgz")
    assert base64.b64encode(hashlib.sha512(packed.read_bytes()).digest()).decode() == INTEGRITY
    with tarfile.open(packed) as tar:
        file = tar.extractfile("package/dist/livekit-client.umd.js")
        assert file
        library = directory / "livekit-client.umd.js"
        library.write_bytes(file.read())
    return library


@contextmanager
def calling(
    machine: Host, outside: Outside, library: Path, accounts: tuple[Account, Account], *authorities: Path
) -> Iterator[Callers]:
    """Both are logged in, each on a page, in a browser that trusts these authorities."""
    machine.put(library, f"{HOME}/page/{library.name}")
    with browsing(machine, *authorities) as browser:
        callers = Callers(outside, (browser.page(), browser.page()))
        for page, account in zip(callers.pages, accounts, strict=True):
            page.run(
                "(homeserver, user, device, token) => { self.matrix = new Matrix(homeserver); "
                "Object.assign(matrix, { user, device, token }) }",
                outside.url("matrix"),
                account.user_id,
                account.device_id,
                account.access_token,
            )
        yield callers


@pytest.fixture(scope="module")
def callers(request: pytest.FixtureRequest, outside: Outside, alice: Account, bob: Account) -> Iterator[Callers]:
    if not real_rtc():
        pytest.skip("the stand-ins carry no sound: set LIVEKIT_BINARY and LK_JWT_BINARY to the real programs")
    library: Path = request.getfixturevalue("livekit_client")
    machine: Host = request.getfixturevalue("chromium")
    with calling(machine, outside, library, (alice, bob), outside.root) as callers:
        yield callers


def test_two_users_hear_each_other(callers: Callers) -> None:
    callers.join(a_room(callers.outside))
    callers.hear_each_other()
    assert callers.paths() == {("host", "udp")}
    name = callers.outside.server_name
    assert set(callers.pages[0].run("conference.servers()")) == {
        f"stun:turn.{name}:{RELAY_PORT}",
        f"turns:turn.{name}:{RELAY_TLS_PORT}?transport=tcp",
    }


# Synapse answers once with an error for each connection to the database that it had: so it is restarted with it.
@pytest.mark.parametrize("unit", ["lk-jwt", "matrix-synapse", "caddy", "'postgresql@*' matrix-synapse"])
def test_a_call_goes_on_while_a_service_is_restarted(callers: Callers, pool: ThreadPoolExecutor, unit: str) -> None:
    callers.join(a_room(callers.outside))
    callers.hear_each_other()
    restart = pool.submit(callers.outside.host.run, f"systemctl restart {unit}", timeout=120)
    callers.hear_each_other()
    restart.result()
    callers.hear_each_other()
    assert not any("Disconnected" in event for events in callers.both("conference.events") for event in events)


def test_after_a_restart_of_livekit_people_join_again(callers: Callers) -> None:
    room = a_room(callers.outside)
    callers.join(room)
    callers.hear_each_other()
    # Two calls are going on: LiveKit would wait for their ends.
    callers.outside.host.run("systemctl restart livekit", timeout=8)
    callers.join(room)
    callers.hear_each_other()


def test_two_users_hear_each_other_where_only_tls_leaves(callers: Callers) -> None:
    """Through coturn, which a call finds again after a restart."""
    host = callers.outside.host
    host.run("nft -f -", stdin=ONLY_TLS)
    try:
        callers.join(a_room(callers.outside))
        callers.hear_each_other()
        assert callers.paths() == {("relay", "tls")}
        host.run("systemctl restart coturn")
        callers.hear_each_other()
    finally:
        host.run("nft delete table inet only_tls")
