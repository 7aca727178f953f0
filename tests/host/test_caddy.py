"""Caddy: what can be reached on the web ports, and what cannot. Requests are made on the machine, to its public names."""

from testinfra.host import Host

from operations.validity import certificate_problem
from roles import COTURN, SLIDING_SYNC, SYDENT, SYNAPSE, Role
from settings import Settings
from settings.caddy import Caddy
from settings.coturn import Coturn
from settings.issuers import Issuer
from settings.synapse import Choices as Homeserver
from settings.synapse import Synapse
from tests.host.certificates import presented
from tests.host.services import DEPLOY, Answer, ServiceTests, get, statuses

# The Origin header of a browser with a web client on another site.
ORIGIN = "https://app.example.com"


class TestService(ServiceTests):
    pass


def names(settings: Settings) -> dict[str, Issuer]:
    """The names that this machine serves on the web ports, and the issuers of their certificates."""
    caddy = settings.view(Caddy)
    found = dict.fromkeys(caddy.domains, caddy.issuer)
    if settings.here("coturn"):
        found[settings.domain(COTURN)] = settings.view(Coturn).issuer
    return found


def name_of(settings: Settings, role: Role) -> str | None:
    """The role's domain name, if this machine serves it."""
    return settings.domain(role) if settings.here(role.name) else None


def reachable(host: Host, name: str | None, *paths: str) -> list[str]:
    """Those of the paths that do not answer 404, with their status."""
    found = statuses(host, name, paths) if name else {}
    return [f"https://{name}{path} answers {status}" for path, status in found.items() if status != 404]


def test_every_name_has_its_certificate(host: Host, settings: Settings) -> None:
    wrong = []
    for name, issuer in names(settings).items():
        shown = presented(host, 443, name, authority=issuer.trusted_root)
        problem = (
            "no certificate is presented" if shown.certificate is None else certificate_problem(shown.certificate, name)
        )
        # This machine does not know which authorities the clients trust with `files`.
        if not problem and issuer.kind != "files" and not shown.verdict.startswith(("0 ", "OK")):
            problem = f"clients will not trust its certificate: {shown.verdict}"
        wrong += [f"{name}: {problem}"] if problem else []
    assert not wrong, (
        "\n".join(wrong) + "\nDo the DNS records lead here, are ports 80 and 443 open? "
        "See `journalctl -u caddy | grep error`; Caddy tries again by itself"
    )


def test_http_is_redirected_to_https(host: Host, settings: Settings) -> None:
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
    if settings.here("synapse"):
        answer = get(host, f"https://{settings.server_name}/.well-known/matrix/client", origin=ORIGIN)
        _agrees(answer, settings.well_known)


def test_homeservers_find_the_homeserver(host: Host, settings: Settings) -> None:
    if settings.here("synapse"):
        synapse = settings.view(Synapse)
        answer = get(host, f"https://{settings.server_name}/.well-known/matrix/server", origin=ORIGIN)
        if synapse.well_known_server:
            _agrees(answer, synapse.well_known_server)
        else:
            assert answer.status == 404, f"federation is off in the settings, but {answer}: {DEPLOY}"


def test_the_homeserver_is_reachable(host: Host, settings: Settings) -> None:
    if name := name_of(settings, SYNAPSE):
        answer = get(host, f"https://{name}/_matrix/client/versions", origin=ORIGIN)
        assert answer.status == 200, f"{answer}; see journalctl -u caddy -u matrix-synapse"
        assert "v1.1" in answer.json()["versions"], f"{answer}: these are no versions of the client-server API"
        assert answer.headers.get("access-control-allow-origin") == "*", (
            f"web clients may not read {answer.url}: {DEPLOY}"
        )
        if settings.section(Homeserver).federation:
            answer = get(host, f"https://{name}/_matrix/federation/v1/version")
            assert answer.status == 200, f"other homeservers get no answer: {answer}"


def test_the_administration_api_is_not_reachable(host: Host, settings: Settings) -> None:
    reached = reachable(
        host,
        name_of(settings, SYNAPSE),
        "/_synapse/admin/v1/server_version",
        "/_synapse/admin/v1/register",
        "/_matrix/../_synapse/admin/v1/server_version",
        "/_matrix/%2e%2e/_synapse/admin/v1/server_version",
        "/_synapse/metrics",
        "/_synapse/replication",
        "/health",
        "/",
    )
    assert not reached, f"the administration API is reachable from outside: {reached}; {DEPLOY}"


def test_the_identity_server_is_reachable(host: Host, settings: Settings) -> None:
    if name := name_of(settings, SYDENT):
        answer = get(host, f"https://{name}/_matrix/identity/v2", origin=ORIGIN)
        assert answer.status == 200, f"{answer}; see journalctl -u caddy -u sydent"
        assert answer.headers.get("access-control-allow-origin") == "*", (
            f"web clients may not read {answer.url}: {DEPLOY}"
        )


def test_the_identity_server_sends_no_mails_for_unauthenticated_clients(host: Host, settings: Settings) -> None:
    reached = reachable(
        host,
        name_of(settings, SYDENT),
        "/_matrix/identity/api/v1/store-invite",
        "/_matrix/identity/api/v1/validate/email/requestToken",
        "/_matrix/identity/api/v1/lookup",
        "/_matrix/identity/internal/bind",
        "/_matrix/identity/replicate/v1/push",
        "/",
    )
    assert not reached, f"more is reachable than clients need: {reached}; {DEPLOY}"


def test_the_sliding_sync_proxy_is_reachable(host: Host, settings: Settings) -> None:
    if name := name_of(settings, SLIDING_SYNC):
        answer = get(host, f"https://{name}/client/server.json", origin=ORIGIN)
        assert answer.status == 200, f"{answer}; see journalctl -u caddy -u sliding-sync"
        reached = reachable(host, name, "/_matrix/client/versions", "/_matrix/client/v3/sync", "/debug/pprof/", "/")
        assert not reached, f"more is reachable than clients need: {reached}; {DEPLOY}"


def test_the_relays_name_serves_no_site(host: Host, settings: Settings) -> None:
    reached = reachable(host, name_of(settings, COTURN), "/", "/_matrix/client/versions")
    assert not reached, f"the name is served only to obtain its certificate: {reached}; {DEPLOY}"
