"""What Element X needs, with the real MAS, LiveKit and lk-jwt-service: all services of one host, and log-ins.

The host first has no MAS: so log-ins through Synapse alone are measured on the same host, with the same account, before the
accounts move to MAS. It gets the other roles in the end.
"""

import secrets
import time
from collections.abc import Iterator
from statistics import median

import httpx

from bench import rerun
from bench.figures import Figure
from bench.memory import sizes
from bench.trial import ELEMENT_X, load, say
from roles import MAS, ROLES
from tests.deployment import WITH_MAS, Deployment
from tests.e2e.client import Account, Outside, expect_json, register
from tests.standin.archives import real_mas
from tests.testbed import Host

LOG_INS, RESTARTS = 20, 5
# Seconds after the start of the machine; and after it was used.
IDLE, IDLE_AFTER_USE = 180, 60

# Both limit log-ins from one address.
_MANY = "{per_second: 1000, burst_count: 1000}"
UNLIMITED_SYNAPSE = f"rc_login: {{address: {_MANY}, account: {_MANY}, failed_attempts: {_MANY}}}\n"
UNLIMITED_MAS = (
    "rate_limiting: {login: {per_ip: {burst: 1000, per_second: 100}, per_account: {burst: 1000, per_second: 100}}}\n"
)


class NoMigration(Exception):
    """The accounts could not be moved."""


def measure(host: Host, deployment: Deployment) -> Iterator[Figure]:
    """host: a new one; deployment: not yet run, without MAS."""
    deployment.assign({role: [host.name] for role in ELEMENT_X if role != "mas"})
    deployment.run("-y")
    outside, password = Outside(host, deployment.directory), secrets.token_urlsafe(20)
    write(host, "/etc/matrix-synapse/conf.d/bench.yaml", "matrix-synapse", UNLIMITED_SYNAPSE)
    host.run(f"systemctl restart matrix-synapse; until ( {ROLES['synapse'].units[0].health} ); do sleep 0.2; done")
    register(host, "bench", password)
    alone = log_ins(outside, password)

    deployment.choose(**deployment.settings, mas_archive=str(real_mas()))
    deployment.assign({role: [host.name] for role in ELEMENT_X})
    moved = deployment.manage("mas", "migrate", "--yes")
    if moved.returncode:
        raise NoMigration(moved.stdout + moved.stderr)
    write(host, "/etc/mas/local.yaml", "mas", UNLIMITED_MAS)
    host.run(f"systemctl restart mas; until {MAS.units[0].health}; do sleep 0.1; done")
    with_mas = log_ins(outside, password)
    say(f"log-ins measured; {load()}")
    yield Figure("log-in through Synapse alone", alone, "ms")
    yield Figure("log-in through MAS", with_mas, "ms")
    yield Figure("log-in: through MAS / through Synapse alone, of the medians", [median(with_mas) / median(alone)])
    yield Figure("MAS: from a restart to healthy", [restart(host) for _ in range(RESTARTS)], "s")
    for roles, names in (("six roles, mas and rtc", ELEMENT_X), ("all roles", tuple(WITH_MAS))):
        deployment.assign({role: [host.name] for role in names})
        deployment.run("-y")
        yield from rerun.measure_with_mas(deployment, roles)
        host.reboot()
        yield from sizes(host, [ROLES[name] for name in names], IDLE, f"memory when idle, {roles}")
        log_ins(outside, password)
        use(outside, password)
        yield from sizes(host, [ROLES[name] for name in names], IDLE_AFTER_USE, f"memory after use, {roles}")


def write(host: Host, path: str, group: str, text: str) -> None:
    host.run(f"umask 027; cat >{path}; chgrp {group} {path}", stdin=text)


def log_in(outside: Outside, http: httpx.Client, password: str) -> Account:
    body = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "bench"}, "password": password}
    answer = expect_json(http.post(outside.url("matrix", "/_matrix/client/v3/login"), json=body))
    return Account(answer["user_id"], password, answer["device_id"], answer["access_token"])


def log_ins(outside: Outside, password: str) -> list[float]:
    """Milliseconds of each log-in, of those after the first, in which MAS stores the password anew."""
    took = []
    with outside.http() as http:
        for _ in range(LOG_INS + 1):
            began = time.monotonic()
            log_in(outside, http, password)
            took.append(1000 * (time.monotonic() - began))
    return took[1:]


def restart(host: Host) -> float:
    began = time.monotonic()
    host.run(f"systemctl restart mas; until {MAS.units[0].health}; do sleep 0.02; done")
    return time.monotonic() - began


def use(outside: Outside, password: str) -> None:
    """A room with messages, sliding sync, and a place in a call."""
    with outside.http() as http:
        account = log_in(outside, http, password)
        http.headers.update(account.authorization)
        client = "/_matrix/client/v3"
        created = http.post(outside.url("matrix", f"{client}/createRoom"), json={"preset": "private_chat"})
        room = expect_json(created)["room_id"]
        for number in range(20):
            url = outside.url("matrix", f"{client}/rooms/{room}/send/m.room.message/{number}")
            expect_json(http.put(url, json={"msgtype": "m.text", "body": f"Message {number}"}))
        url = outside.url("matrix", "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync")
        expect_json(
            http.post(url, json={"lists": {"all": {"ranges": [[0, 9]], "timeline_limit": 20, "required_state": []}}})
        )
        token = http.post(outside.url("matrix", f"{client}/user/{account.user_id}/openid/request_token"), json={})
        place = {"room": room, "openid_token": expect_json(token), "device_id": account.device_id}
        del http.headers["Authorization"]
        expect_json(http.post(outside.url("rtc", "/livekit/jwt/sfu/get"), json=place))
