"""Somebody tries passwords, until nothing answers any more: what the role `bans` does on a machine with a homeserver.

From addresses that are not private, and are on the testbed's bridge meanwhile.
"""

import http.client
import json
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlencode

from roles import BANS_TABLE
from tests.deployment import Deployment
from tests.e2e.client import register
from tests.testbed import Host
from tests.testbed.tools import run

# How many attempts the deployment has to allow: Synapse looks at no more than five from an address.
ATTEMPTS = 4
CLAIMED = "203.0.113.9"


@dataclass(frozen=True)
class Visitors:
    """Addresses of people who visit one host: another host is visited at the same time, over the same bridge."""

    guesser: str
    bystander: str
    guesser6: str
    neighbour6: str
    network6: str
    bystander6: str

    @classmethod
    def of(cls, host: Host) -> "Visitors":
        number = host.record.number
        network = f"2001:db8:{number:x}"
        return cls(
            f"198.51.100.{number}",
            f"192.0.2.{number}",
            f"{network}:1::1",
            f"{network}:1::2",
            f"{network}:1::/64",
            f"{network}:2::1",
        )

    @property
    def all(self) -> tuple[str, ...]:
        return self.guesser, self.bystander, self.guesser6, self.neighbour6, self.bystander6


@contextmanager
def _at_home(host: Host) -> Iterator[Visitors]:
    """The addresses are this computer's."""
    visitors, route = Visitors.of(host), f"2001:db8::/32 via {host.bed.bridge_address6} dev host0"
    try:
        for address in visitors.all:
            length = 128 if ":" in address else 32
            run(["ip", "address", "add", f"{address}/{length}", "dev", host.bed.bridge, "nodad"])
        host.run(f"ip -6 route add {route}")
        yield visitors
    finally:
        host.run(f"ip -6 route del {route}", check=False)
        # As it was before, whatever happened: what comes with Debian's package, an empty filter, is not loaded.
        host.run("systemctl stop nftables", check=False)
        for address in visitors.all:
            length = 128 if ":" in address else 32
            run(["ip", "address", "del", f"{address}/{length}", "dev", host.bed.bridge], check=False)


def _connect(host: Host, source: str, name: str = "matrix", timeout: float = 30) -> http.client.HTTPConnection:
    """A connection to the homeserver, or to another name of it, from an address. Raises OSError."""
    name, address = f"{name}.{host.domain}", host.address6 if ":" in source else host.address
    # Who it is, other tests check.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    link = socket.create_connection((address, 443), timeout=1, source_address=(source, 0))
    link.settimeout(timeout)
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


def _log_in_at_page(host: Host, source: str, user: str, password: str) -> int:
    """The status of an attempt to log in at MAS's page, as in a browser."""
    with closing(_connect(host, source, "auth")) as made:
        made.request("GET", "/login")
        shown = made.getresponse()
        cookies = "; ".join(each.partition(";")[0] for each in shown.headers.get_all("Set-Cookie", []))
        found = re.search(r'name="csrf" value="([^"]+)"', shown.read().decode())
        assert found, "the page has no form"
        form = {"csrf": found[1], "username": user, "password": password}
        headers = {"Cookie": cookies, "Content-Type": "application/x-www-form-urlencoded"}
        made.request("POST", "/login?kind=manage_account", urlencode(form), headers)
        return made.getresponse().status


def _is_served(host: Host, source: str) -> bool:
    # Of who is banned in the middle of it, Caddy gives up a request that does not arrive. _soon() asks again.
    with suppress(TimeoutError, http.client.RemoteDisconnected), closing(_connect(host, source, timeout=4)) as made:
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


def _is_pardoned(host: Host, who: Visitors) -> bool:
    """Whether who guessed is served again; if not, it is shown who is banned, and what fail2ban has said."""
    for source in (who.guesser, who.guesser6):
        if not _soon(lambda: _is_served(host, source)):  # noqa: B023
            seen = host.run(
                f"nft list table inet {BANS_TABLE}; journalctl -u matrix-bans -n 30 --no-pager", check=False
            )
            raise AssertionError(f"{source} is not served: {seen.stdout}")
    return True


def _listed(deployment: Deployment) -> dict[str, int]:
    """Who is banned, with the number of failures."""
    return {ban["address"]: ban["failures"] for ban in json.loads(deployment.manage("bans", "list", "--json").stdout)}


def assert_bans(host: Host, deployment: Deployment) -> None:
    """Whoever tries too many passwords is banned, nobody else is, and an administrator ends it."""
    register(host, "berta", "secret")
    with _at_home(host) as who:
        # On a busy machine, a first packet of IPv6 may take longer than a second.
        assert all(_soon(lambda: _is_served(host, one)) for one in (who.guesser6, who.neighbour6, who.bystander6))  # noqa: B023
        # Below the limit.
        assert {_log_in(host, who.bystander, "berta", "wrong") for _ in range(ATTEMPTS - 2)} == {403}
        assert _log_in(host, who.bystander, "berta", "secret") == 200

        with closing(_connect(host, who.guesser)) as still_open:
            still_open.request("GET", "/_matrix/client/versions")
            assert still_open.getresponse().read()
            # Neither what it says of itself nor how it writes the name makes a difference.
            odd = {"Host": f"MATRIX.{host.domain}", "X-Forwarded-For": CLAIMED}
            for number in range(ATTEMPTS):
                assert _log_in(host, who.guesser, f"user{number}", "wrong", **(odd if number % 2 else {})) == 403
                assert _log_in(host, who.guesser6 if number % 2 else who.neighbour6, f"user6{number}", "wrong") == 403
            assert _soon(lambda: not _is_served(host, who.guesser))
            still_open.sock.settimeout(1)
            still_open.request("GET", "/_matrix/client/versions")
            with suppress(TimeoutError):
                raise AssertionError(still_open.getresponse().status)
        assert not any(_is_served(host, source) for source in (who.guesser6, who.neighbour6))
        assert all(_soon(lambda: _is_served(host, source)) for source in (who.bystander, who.bystander6))  # noqa: B023
        socket.create_connection((host.address, 22), timeout=5, source_address=(who.guesser, 0)).close()
        assert _listed(deployment) == {who.guesser: ATTEMPTS, who.network6: ATTEMPTS}

        for unit in ("matrix-bans", "nftables"):
            before = host.run("systemctl show -p InvocationID matrix-bans").stdout
            host.run(f"systemctl restart {unit}")
            assert _soon(lambda: host.run("systemctl show -p InvocationID matrix-bans").stdout != before)  # noqa: B023
            assert _soon(lambda: not _is_served(host, who.guesser)), unit
        assert _soon(lambda: _is_served(host, who.bystander6))
        host.run("systemctl stop nftables")
        assert _soon(lambda: not _is_served(host, who.guesser)), "nftables is stopped"

        done = deployment.manage("bans", "pardon", who.guesser, who.neighbour6)
        assert (done.returncode, done.stdout) == (
            0,
            f"{who.guesser} is not banned any more.\n{who.network6} is not banned any more.\n",
        )
        assert _is_pardoned(host, who)
        again = deployment.manage("bans", "pardon", who.guesser)
        assert (again.returncode, again.stdout) == (1, "")
        assert (
            again.stderr == f"manage: {who.guesser} is not banned, and nothing was changed: `bans list` shows who is\n"
        )


def assert_bans_at_mas(host: Host, deployment: Deployment) -> None:
    """The same where MAS has the accounts: at its page, and where clients log in as with Synapse."""
    with _at_home(host) as who:
        assert all(_soon(lambda: _is_served(host, one)) for one in (who.guesser6, who.bystander6))  # noqa: B023
        # Below the limit.
        assert {_log_in_at_page(host, who.bystander6, "berta", "wrong") for _ in range(ATTEMPTS - 2)} == {200}
        assert {_log_in(host, who.bystander6, "berta", "wrong")} == {403}
        for number in range(ATTEMPTS):
            assert _log_in_at_page(host, who.guesser, f"user{number}", "wrong") == 200
            assert _log_in(host, who.guesser6 if number % 2 else who.neighbour6, f"user{number}", "wrong") == 403
        assert _soon(lambda: not _is_served(host, who.guesser)) and _soon(lambda: not _is_served(host, who.guesser6))
        assert all(_soon(lambda: _is_served(host, one)) for one in (who.bystander, who.bystander6))  # noqa: B023
        assert _listed(deployment) == {who.guesser: ATTEMPTS, who.network6: ATTEMPTS}
        done = deployment.manage("bans", "pardon", who.guesser, who.guesser6)
        assert done.returncode == 0, done.stderr
        assert _is_pardoned(host, who)
