"""Somebody tries passwords, until nothing answers any more: what the role `bans` does on a machine with a homeserver.

From addresses that are not private, and are on the testbed's bridge meanwhile.
"""

import http.client
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

from tests.deployment import Deployment
from tests.e2e.client import register
from tests.testbed import Host
from tests.testbed.tools import run

# How many attempts the deployment has to allow: Synapse looks at no more than five from an address.
ATTEMPTS = 4
GUESSER, BYSTANDER, CLAIMED = "198.51.100.77", "198.51.100.78", "203.0.113.9"
GUESSER6, NEIGHBOUR6, BYSTANDER6 = "2001:db8:77::1", "2001:db8:77::2", "2001:db8:78::1"
HERE = (GUESSER, BYSTANDER, GUESSER6, NEIGHBOUR6, BYSTANDER6)


@contextmanager
def _at_home(host: Host) -> Iterator[None]:
    """The addresses are this computer's."""
    route = f"2001:db8::/32 via {host.bed.bridge_address6} dev host0"
    try:
        for address in HERE:
            length = 128 if ":" in address else 32
            run(["ip", "address", "add", f"{address}/{length}", "dev", host.bed.bridge, "nodad"])
        host.run(f"ip -6 route add {route}")
        yield
    finally:
        host.run(f"ip -6 route del {route}", check=False)
        for address in HERE:
            length = 128 if ":" in address else 32
            run(["ip", "address", "del", f"{address}/{length}", "dev", host.bed.bridge], check=False)


def _connect(host: Host, source: str) -> http.client.HTTPConnection:
    """A connection to the homeserver from an address. Raises OSError."""
    name, address = f"matrix.{host.domain}", host.address6 if ":" in source else host.address
    # Who it is, other tests check.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    link = socket.create_connection((address, 443), timeout=1, source_address=(source, 0))
    link.settimeout(30)
    made = http.client.HTTPConnection(name)
    made.sock = context.wrap_socket(link, server_hostname=name)
    return made


def _log_in(host: Host, source: str, user: str, password: str, **headers: str) -> int:
    """The status of an attempt to log in."""
    body = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": user},
        "password": password,
    }
    with closing(_connect(host, source)) as made:
        made.request("POST", "/_matrix/client/v3/login", json.dumps(body), headers)
        return made.getresponse().status


def _is_served(host: Host, source: str) -> bool:
    # Of who is banned in the middle of it, Caddy gives up a request that does not arrive.
    with suppress(TimeoutError, http.client.RemoteDisconnected), closing(_connect(host, source)) as made:
        made.request("GET", "/_matrix/client/versions")
        return made.getresponse().status == 200
    return False


def _soon(happens: Callable[[], bool], seconds: float = 15) -> bool:
    end = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def _listed(deployment: Deployment) -> dict[str, int]:
    """Who is banned, with the number of failures."""
    return {ban["address"]: ban["failures"] for ban in json.loads(deployment.manage("bans", "list", "--json").stdout)}


def assert_bans(host: Host, deployment: Deployment) -> None:
    """Whoever tries too many passwords is banned, nobody else is, and an administrator ends it."""
    register(host, "berta", "secret")
    with _at_home(host):
        # On a busy machine, a first packet of IPv6 may take longer than a second.
        assert all(_soon(lambda: _is_served(host, source)) for source in (GUESSER6, NEIGHBOUR6, BYSTANDER6))  # noqa: B023
        # Below the limit.
        assert {_log_in(host, BYSTANDER, "berta", "wrong") for _ in range(ATTEMPTS - 2)} == {403}
        assert _log_in(host, BYSTANDER, "berta", "secret") == 200

        with closing(_connect(host, GUESSER)) as still_open:
            still_open.request("GET", "/_matrix/client/versions")
            assert still_open.getresponse().read()
            # Neither what it says of itself nor how it writes the name makes a difference.
            odd = {"Host": f"MATRIX.{host.domain}", "X-Forwarded-For": CLAIMED}
            for number in range(ATTEMPTS):
                assert _log_in(host, GUESSER, f"user{number}", "wrong", **(odd if number % 2 else {})) == 403
                assert _log_in(host, GUESSER6 if number % 2 else NEIGHBOUR6, f"user6{number}", "wrong") == 403
            assert _soon(lambda: not _is_served(host, GUESSER))
            still_open.sock.settimeout(1)
            still_open.request("GET", "/_matrix/client/versions")
            with suppress(TimeoutError):
                raise AssertionError(still_open.getresponse().status)
        assert not any(_is_served(host, source) for source in (GUESSER6, NEIGHBOUR6))
        assert all(_soon(lambda: _is_served(host, source)) for source in (BYSTANDER, BYSTANDER6))  # noqa: B023
        socket.create_connection((host.address, 22), timeout=5, source_address=(GUESSER, 0)).close()
        network = "2001:db8:77::/64"
        assert _listed(deployment) == {GUESSER: ATTEMPTS, network: ATTEMPTS}

        for unit in ("matrix-bans", "nftables"):
            before = host.run("systemctl show -p InvocationID matrix-bans").stdout
            host.run(f"systemctl restart {unit}")
            assert _soon(lambda: host.run("systemctl show -p InvocationID matrix-bans").stdout != before)  # noqa: B023
            assert _soon(lambda: not _is_served(host, GUESSER)), unit
        assert _soon(lambda: _is_served(host, BYSTANDER6))
        # As it was before: what comes with Debian's package, an empty filter, is not loaded.
        host.run("systemctl stop nftables")
        assert _soon(lambda: not _is_served(host, GUESSER)), "nftables is stopped"

        done = deployment.manage("bans", "pardon", GUESSER, NEIGHBOUR6)
        assert (done.returncode, done.stdout) == (
            0,
            f"{GUESSER} is not banned any more.\n{network} is not banned any more.\n",
        )
        assert _soon(lambda: _is_served(host, GUESSER)) and _soon(lambda: _is_served(host, GUESSER6))
        again = deployment.manage("bans", "pardon", GUESSER)
        assert (again.returncode, again.stdout) == (1, "")
        assert again.stderr == f"manage: {GUESSER} is not banned, and nothing was changed: `bans list` shows who is\n"
