"""Two people call each other in Chromium, through coturn and nothing else, by each way that the homeserver offers."""

import contextlib
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.conftest import own
from tests.e2e.call.browser import Page, browsing, install
from tests.e2e.client import TIMEOUT, Outside, register
from tests.testbed import Host, Testbed

pytestmark = pytest.mark.role("coturn")

# Prefix and suffix of the relays' addresses that a call uses, as clients are given them, and how each is then reached.
UDP, TCP, TLS, ANY = ("turn:", "?transport=udp"), ("turn:", "?transport=tcp"), ("turns:", "?transport=tcp"), ("", "")
EXCHANGED = 256 * 1024


@pytest.fixture(scope="session")
def client(testbed: Testbed) -> Iterator[Host]:
    """A machine with Chromium, for all deployments."""
    host = testbed.up(own("call-client"))
    install(host)
    yield host
    host.down()


@dataclass(frozen=True)
class Couple:
    """Two users in a room, each with a page in which they have logged in."""

    pages: tuple[Page, Page]
    room: str

    def both(self, function: str, *arguments: Any) -> list[Any]:
        """Run a function on both pages at once."""
        started = [page.start(function, *arguments) for page in self.pages]
        return [self.outcome(page, number) for page, number in zip(self.pages, started, strict=True)]

    def outcome(self, page: Page, number: int) -> Any:
        try:
            return page.result(number, TIMEOUT)
        except TimeoutError:
            found = [other.run("self.call && call.report()") for other in self.pages]
            report = "\n\n".join(json.dumps(each, indent=1) for each in found)
            raise AssertionError(f"the call does not come about:\n{report}") from None


@contextlib.contextmanager
def _met(client: Host, outside: Outside) -> Iterator[Couple]:
    """Two new users, since homeservers allow few logins and events of one."""
    with browsing(client, outside.root) as browser:
        pages = browser.page(), browser.page()
        for page, name in zip(pages, ("romeo", "juliet"), strict=True):
            user, password = f"{name}-{secrets.token_hex(3)}", secrets.token_urlsafe(20)
            register(outside.host, user, password)
            page.run(
                "async (homeserver, ...who) => { self.matrix = new Matrix(homeserver); await matrix.logIn(...who) }",
                outside.url("matrix"),
                user,
                password,
                timeout=TIMEOUT,
            )
        invited = pages[1].start("matrix.accept()")
        room = pages[0].run("(other) => matrix.meet(other)", pages[1].run("matrix.user"), timeout=TIMEOUT)
        assert pages[1].result(invited, TIMEOUT) == room
        yield Couple(pages, room)


@pytest.fixture(scope="session")
def couple(client: Host, outside: Outside) -> Iterator[Couple]:
    with _met(client, outside) as couple:
        yield couple


@pytest.mark.parametrize(
    ("relays", "reached_by", "caller"),
    [
        pytest.param(UDP, {"udp"}, 0, id="udp"),
        # They take turns, as homeservers allow a user few events a second, and a caller needs most.
        pytest.param(TCP, {"tcp"}, 1, id="tcp"),
        pytest.param(TLS, {"tls"}, 0, id="tls"),
        # Clients use all at once, and keep what connects first.
        pytest.param(ANY, {"udp", "tcp", "tls"}, 1, id="any"),
    ],
)
def test_two_users_call_each_other_through_the_relay(
    couple: Couple, outside: Outside, relays: tuple[str, str], reached_by: set[str], caller: int
) -> None:
    _call(couple, outside, relays, reached_by, caller)


def test_the_certificate_of_the_relay_is_what_makes_tls_work(couple: Couple, client: Host, outside: Outside) -> None:
    """Who does not trust its authority reaches neither the homeserver nor the relay over TLS, with the same credentials."""
    udp, tls = (couple.pages[0].run("(...ends) => matrix.relays(...ends)", *ends) for ends in (UDP, TLS))
    homeserver = outside.url("matrix", "/_matrix/client/versions")
    with browsing(client) as wary:
        trusting, distrusting = couple.pages[0], wary.page()
        assert trusting.run("async (url) => (await fetch(url)).status", homeserver) == 200
        assert distrusting.run("(url) => fetch(url).catch(String)", homeserver) == "TypeError: Failed to fetch"

        assert _gathered(distrusting, udp), "the relay cannot be reached at all"
        assert _gathered(trusting, tls), "the relay cannot be reached over TLS even by who trusts its certificate"
        assert not _gathered(distrusting, tls), "a certificate that nobody vouches for is accepted"


def test_two_users_call_each_other_without_ipv4(testbed: Testbed, client: Host, outside: Outside) -> None:
    with (
        # The machine seems connected to all the world over IPv6, or else Chromium does not look for IPv6 addresses.
        _route(client, f"default via {testbed.bridge_address6}"),
        _route(client, f"unreachable {outside.host.address}"),
        # Browsers of their own, as the connections of others would go on to wait for answers over IPv4.
        _met(client, outside) as couple,
    ):
        _call(couple, outside, ANY, {"udp", "tcp", "tls"}, caller=0)


def _call(couple: Couple, outside: Outside, relays: tuple[str, str], reached_by: set[str], caller: int) -> None:
    """Call, see, hear, exchange data, hang up."""
    calling, called = couple.pages[caller], couple.pages[1 - caller]
    offers = couple.both("async (...ends) => (self.relays = await matrix.relays(...ends)).urls", *relays)
    assert offers[0] == offers[1]
    assert len(offers[0]) == len(reached_by), f"the homeserver offers {offers[0]} for {relays}"

    ringing = called.start("async (room) => { self.call = await Call.take(matrix, room, relays) }", couple.room)
    placed = calling.start("async (room) => { self.call = await Call.place(matrix, room, relays) }", couple.room)
    couple.outcome(calling, placed)
    couple.outcome(called, ringing)

    ours, theirs = couple.both("(size) => call.exchange(size)", EXCHANGED)
    assert ours["sent"] == theirs["received"] and theirs["sent"] == ours["received"], "the data arrived changed"
    couple.both("(pictures, sounds) => call.perceive(pictures, sounds)", 20, 50)

    relay = {outside.host.address, outside.host.address6}
    for report in couple.both("call.report()"):
        assert report["state"] in ("connected", "completed")
        assert report["troubles"] == []
        assert (report["local"]["candidateType"], report["remote"]["candidateType"]) == ("relay", "relay")
        assert report["local"]["relayProtocol"] in reached_by
        assert {report["local"]["address"], report["remote"]["address"]} <= relay, "another machine relays"
        assert {candidate["candidateType"] for candidate in report["candidates"]} == {"relay"}
        assert all(" typ relay " in candidate for candidate in report["offered"]), (
            "an address of the user was given away"
        )
        # 701: nothing answered at one of the addresses, as without IPv4, or by the browser's choice between the families.
        # All else is said by coturn, such as 486: more addresses are asked for than one user may have.
        assert [error for error in report["errors"] if ": 701 " not in error] == []

    couple.outcome(calling, calling.start("call.hangUp()"))
    couple.outcome(called, called.start("call.over"))


def _gathered(page: Page, relays: dict[str, Any]) -> list[str]:
    """The addresses at the relay that a page is given."""
    candidates: list[str] = page.run("(relays) => gather(relays)", relays, timeout=TIMEOUT)["candidates"]
    return candidates


@contextlib.contextmanager
def _route(host: Host, route: str) -> Iterator[None]:
    family = "-6" if "::" in route else "-4"
    host.run(f"ip {family} route add {route}")
    try:
        yield
    finally:
        host.run(f"ip {family} route del {route}")
