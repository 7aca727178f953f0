"""Two users call each other in Chromium, only through coturn, by each transport that the homeserver offers."""

import contextlib
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.call.browser import Page, browsing
from tests.e2e.client import TIMEOUT, Outside, register
from tests.testbed import Host, Testbed

pytestmark = [pytest.mark.role("coturn"), pytest.mark.once("debian13")]

# Prefix and suffix of the TURN URIs that a call uses, of those that Synapse gives to clients.
UDP, TCP, TLS, ANY = ("turn:", "?transport=udp"), ("turn:", "?transport=tcp"), ("turns:", "?transport=tcp"), ("", "")
# Bytes that each side sends over the data channel.
EXCHANGED = 256 * 1024


@dataclass(frozen=True)
class Callers:
    """Two users in a room, each logged in on a page of their own."""

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
            raise AssertionError(f"the call is not established:\n{report}") from None


@contextlib.contextmanager
def _two_callers(chromium: Host, outside: Outside) -> Iterator[Callers]:
    """Two new users, since homeservers limit the logins and events of a user."""
    with browsing(chromium, outside.root) as browser:
        pages = browser.page(), browser.page()
        for page, name in zip(pages, ("romeo", "juliet"), strict=True):
            user, password = f"{name}-{secrets.token_hex(3)}", secrets.token_urlsafe(20)
            register(outside.host, user, password)
            page.run(
                "async (homeserver, ...login) => { self.matrix = new Matrix(homeserver); await matrix.logIn(...login) }",
                outside.url("matrix"),
                user,
                password,
                timeout=TIMEOUT,
            )
        invited = pages[1].start("matrix.acceptInvitation()")
        room = pages[0].run("(other) => matrix.createRoom(other)", pages[1].run("matrix.user"), timeout=TIMEOUT)
        assert pages[1].result(invited, TIMEOUT) == room
        yield Callers(pages, room)


@pytest.fixture(scope="module")
def callers(chromium: Host, outside: Outside) -> Iterator[Callers]:
    with _two_callers(chromium, outside) as callers:
        yield callers


@pytest.mark.parametrize(
    ("relays", "reached_by", "caller"),
    [
        pytest.param(UDP, {"udp"}, 0, id="udp"),
        # The callers alternate: homeservers limit the events of a user per second, and a caller sends most.
        pytest.param(TCP, {"tcp"}, 1, id="tcp"),
        pytest.param(TLS, {"tls"}, 0, id="tls"),
        # Clients try all at once, and keep the one that connects first.
        pytest.param(ANY, {"udp", "tcp", "tls"}, 1, id="any"),
    ],
)
def test_two_users_call_each_other_through_the_relay(
    callers: Callers, outside: Outside, relays: tuple[str, str], reached_by: set[str], caller: int
) -> None:
    _call(callers, outside, relays, reached_by, caller)


def test_the_relay_is_reached_over_tls_only_with_a_trusted_certificate(
    callers: Callers, chromium: Host, outside: Outside
) -> None:
    """A browser that does not trust the authority reaches neither the homeserver nor, with valid credentials, the relay."""
    udp, tls = (callers.pages[0].run("(...ends) => matrix.relays(...ends)", *ends) for ends in (UDP, TLS))
    homeserver = outside.url("matrix", "/_matrix/client/versions")
    with browsing(chromium) as distrusting_browser:
        trusting, distrusting = callers.pages[0], distrusting_browser.page()
        assert trusting.run("async (url) => (await fetch(url)).status", homeserver) == 200
        assert distrusting.run("(url) => fetch(url).catch(String)", homeserver) == "TypeError: Failed to fetch"

        assert _relay_candidates(distrusting, udp), "the relay cannot be reached over UDP"
        assert _relay_candidates(trusting, tls), (
            "the relay cannot be reached over TLS by a browser that trusts its certificate"
        )
        assert not _relay_candidates(distrusting, tls), "an untrusted certificate is accepted"


def test_two_users_call_each_other_without_ipv4(testbed: Testbed, chromium: Host, outside: Outside) -> None:
    with (
        # A default route: without one Chromium does not use IPv6.
        _route(chromium, f"default via {testbed.bridge_address6}"),
        _route(chromium, f"unreachable {outside.host.address}"),
        # New browsers: connections of the others would still wait for answers over IPv4.
        _two_callers(chromium, outside) as callers,
    ):
        _call(callers, outside, ANY, {"udp", "tcp", "tls"}, caller=0)


def _call(callers: Callers, outside: Outside, relays: tuple[str, str], reached_by: set[str], caller: int) -> None:
    """Call, receive video and sound, exchange data, hang up."""
    calling, called = callers.pages[caller], callers.pages[1 - caller]
    offers = callers.both("async (...ends) => (self.relays = await matrix.relays(...ends)).urls", *relays)
    assert offers[0] == offers[1]
    assert len(offers[0]) == len(reached_by), f"the homeserver offers {offers[0]} for {relays}"

    answering = called.start("async (room) => { self.call = await Call.answer(matrix, room, relays) }", callers.room)
    placing = calling.start("async (room) => { self.call = await Call.place(matrix, room, relays) }", callers.room)
    callers.outcome(calling, placing)
    callers.outcome(called, answering)

    ours, theirs = callers.both("(size) => call.exchange(size)", EXCHANGED)
    assert ours["sent"] == theirs["received"] and theirs["sent"] == ours["received"], "the data arrived changed"
    callers.both("(frames, packets) => call.waitForMedia(frames, packets)", 20, 50)

    relay = {outside.host.address, outside.host.address6}
    for report in callers.both("call.report()"):
        assert report["state"] in ("connected", "completed")
        assert report["unhandledErrors"] == []
        assert (report["local"]["candidateType"], report["remote"]["candidateType"]) == ("relay", "relay")
        assert report["local"]["relayProtocol"] in reached_by
        assert {report["local"]["address"], report["remote"]["address"]} <= relay, (
            "the call goes through another machine"
        )
        assert {candidate["candidateType"] for candidate in report["candidates"]} == {"relay"}
        assert all(" typ relay " in candidate for candidate in report["offered"]), (
            "an address of the user was disclosed"
        )
        # 701: no answer from one of the addresses, as without IPv4, or because the browser chose the other family.
        # All other codes come from coturn, such as 486: the user has all the allocations that one user may have.
        assert [error for error in report["errors"] if ": 701 " not in error] == []

    callers.outcome(calling, calling.start("call.hangUp()"))
    callers.outcome(called, called.start("call.ended"))


def _relay_candidates(page: Page, relays: dict[str, Any]) -> list[str]:
    """The relay candidates that a page gets."""
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
