"""Caddy: what strangers can reach on the web ports, and what they cannot. Asked on the machine, by its public names."""

import pytest
from testinfra.host import Host

from settings import Settings
from tests.host.certificates import complaint, presented
from tests.host.services import DEPLOY, Answer, Service, ServiceTests, get, statuses

# What a browser sends along from a web client of somebody else's.
ORIGIN = "https://app.example.com"


@pytest.fixture(scope="module")
def service(host: Host) -> Service:
    return Service(
        host,
        "caddy.service",
        user="caddy",
        exposure=2.0,
        rereads=["/etc/caddy/Caddyfile"],
        secrets=["/etc/caddy/Caddyfile", "/var/lib/caddy/.local/share/caddy/certificates"],
        # Certificates that cannot be had. That a visitor went away is an error to Caddy as well, and so is every attempt that
        # was cut off by a reload, which begins it anew.
        troubles=r'"level":"(error|panic|fatal)".*"logger":"(tls|admin|pki)(?!.*: context canceled")|^Error: ',
        recoveries=r'"msg":"certificate (?:obtained|renewed) successfully","identifier":"([^"]+)"',
    )


class TestService(ServiceTests):
    pass


def names(settings: Settings) -> list[str]:
    """The names that this machine answers for on the web ports."""
    caddy = settings.caddy
    served = [
        caddy.server_name,
        caddy.matrix_domain,
        caddy.identity_domain,
        caddy.sliding_sync_domain,
        caddy.turn_domain,
    ]
    return [name for name in served if name]


def unreachable(host: Host, name: str | None, *paths: str) -> list[str]:
    """What of these strangers can reach nevertheless."""
    found = statuses(host, name, paths) if name else {}
    return [f"https://{name}{path} answers {status}" for path, status in found.items() if status != 404]


def test_only_the_web_ports_are_open(service: Service, settings: Settings) -> None:
    """Its administration is not among them: it would let every user of the machine change what Caddy does."""
    ports = {f"{socket.split()[0]} {socket.rpartition(':')[2]}" for socket in service.sockets()}
    federation = {"tcp 8448"} if settings.caddy.federation_port and settings.caddy.matrix_domain else set()
    assert ports == {"tcp 80", "tcp 443", "udp 443"} | federation, (
        f"Caddy listens on {', '.join(sorted(ports))}: {DEPLOY}"
    )


def test_every_name_has_its_certificate(host: Host, settings: Settings) -> None:
    wrong = []
    for name in names(settings):
        issuer = settings.turn_issuer if name == settings.caddy.turn_domain else settings.caddy.issuer
        shown = presented(host, 443, name, authority=issuer.trusted_root)
        problem = "no certificate is presented" if shown.certificate is None else complaint(shown.certificate, name)
        # Whom the clients of `files` trust, this machine cannot know.
        if not problem and issuer.kind != "files" and not shown.verdict.startswith(("0 ", "OK")):
            problem = f"clients will not trust its certificate: {shown.verdict}"
        wrong += [f"{name}: {problem}"] if problem else []
    assert not wrong, (
        "\n".join(wrong) + "\nDo the DNS records lead here, are ports 80 and 443 open? "
        "See `journalctl -u caddy | grep error`; Caddy tries again by itself"
    )


def test_plain_http_leads_to_https(host: Host, settings: Settings) -> None:
    for name in names(settings):
        answer = get(host, f"http://{name}/somewhere")
        assert answer.headers.get("location") == f"https://{name}/somewhere", f"{answer}, not a redirection: {DEPLOY}"


def _agrees(answer: Answer, wanted: object) -> None:
    assert answer.status == 200, f"{answer}; {DEPLOY}"
    assert answer.json() == wanted, f"{answer}, the settings say {wanted}: {DEPLOY}"
    assert answer.headers.get("access-control-allow-origin") == "*", (
        f"web clients may not read {answer.url}, it has no Access-Control-Allow-Origin: {DEPLOY}"
    )


def test_clients_find_the_homeserver(host: Host, settings: Settings) -> None:
    caddy = settings.caddy
    if caddy.server_name:
        answer = get(host, f"https://{caddy.server_name}/.well-known/matrix/client", origin=ORIGIN)
        _agrees(answer, caddy.well_known_client)


def test_homeservers_find_the_homeserver(host: Host, settings: Settings) -> None:
    caddy = settings.caddy
    if caddy.server_name:
        answer = get(host, f"https://{caddy.server_name}/.well-known/matrix/server", origin=ORIGIN)
        if caddy.well_known_server:
            _agrees(answer, caddy.well_known_server)
        else:
            assert answer.status == 404, f"federation is off in the settings, but {answer}: {DEPLOY}"


def test_the_homeserver_is_reachable(host: Host, settings: Settings) -> None:
    if name := settings.caddy.matrix_domain:
        answer = get(host, f"https://{name}/_matrix/client/versions", origin=ORIGIN)
        assert answer.status == 200, f"{answer}; see journalctl -u caddy -u matrix-synapse"
        assert "v1.1" in answer.json()["versions"], f"{answer}: these are no versions of the client-server API"
        assert answer.headers.get("access-control-allow-origin") == "*", (
            f"web clients may not read {answer.url}: {DEPLOY}"
        )
        if settings.choices.federation:
            answer = get(host, f"https://{name}/_matrix/federation/v1/version")
            assert answer.status == 200, f"other homeservers get no answer: {answer}"


def test_the_homeservers_administration_is_not_reachable(host: Host, settings: Settings) -> None:
    reached = unreachable(
        host,
        settings.caddy.matrix_domain,
        "/_synapse/admin/v1/server_version",
        "/_synapse/admin/v1/register",
        "/_matrix/../_synapse/admin/v1/server_version",
        "/_matrix/%2e%2e/_synapse/admin/v1/server_version",
        "/_synapse/metrics",
        "/_synapse/replication",
        "/health",
        "/",
    )
    assert not reached, f"strangers reach what is the administrator's: {reached}; {DEPLOY}"


def test_the_identity_server_is_reachable(host: Host, settings: Settings) -> None:
    if name := settings.caddy.identity_domain:
        answer = get(host, f"https://{name}/_matrix/identity/v2", origin=ORIGIN)
        assert answer.status == 200, f"{answer}; see journalctl -u caddy -u sydent"
        assert answer.headers.get("access-control-allow-origin") == "*", (
            f"web clients may not read {answer.url}: {DEPLOY}"
        )


def test_the_identity_server_sends_no_mails_for_strangers(host: Host, settings: Settings) -> None:
    reached = unreachable(
        host,
        settings.caddy.identity_domain,
        "/_matrix/identity/api/v1/store-invite",
        "/_matrix/identity/api/v1/validate/email/requestToken",
        "/_matrix/identity/api/v1/lookup",
        "/_matrix/identity/internal/bind",
        "/_matrix/identity/replicate/v1/push",
        "/",
    )
    assert not reached, f"strangers reach more than clients need: {reached}; {DEPLOY}"


def test_the_sliding_sync_proxy_is_reachable(host: Host, settings: Settings) -> None:
    if name := settings.caddy.sliding_sync_domain:
        answer = get(host, f"https://{name}/client/server.json", origin=ORIGIN)
        assert answer.status == 200, f"{answer}; see journalctl -u caddy -u sliding-sync"
        reached = unreachable(host, name, "/_matrix/client/versions", "/_matrix/client/v3/sync", "/debug/pprof/", "/")
        assert not reached, f"strangers reach more than clients need: {reached}; {DEPLOY}"


def test_the_relays_name_serves_nothing(host: Host, settings: Settings) -> None:
    reached = unreachable(host, settings.caddy.turn_domain, "/", "/_matrix/client/versions")
    assert not reached, f"the name is there for its certificate alone: {reached}; {DEPLOY}"
