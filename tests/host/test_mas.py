"""The Matrix Authentication Service, which has the accounts, and what Synapse and Caddy do for it."""

import re

import pytest
from testinfra.host import Host

from roles import MAS, MAS_ARGUMENTS, SYNAPSE
from settings import Settings
from settings.mas import Mas
from settings.synapse import Choices as Homeserver
from tests.host.report import Note
from tests.host.services import DEPLOY, Service, ServiceTests, get, program_in_use

# Of `mas-cli doctor`: a URL in its lines -> what is wrong if it does not say that this works. What it asks by public names is
# asked by other tests: the machine may not reach itself by them, or not trust its own authority.
CHECKS = {
    "/_matrix/client/versions": "MAS does not reach Synapse: see journalctl -u matrix-synapse",
    "/_matrix/client/v3/account/whoami": "Synapse does not reach MAS, or MAS refuses its secret, so that nobody is logged in: "
    f"see journalctl -u matrix-synapse -u mas, then {DEPLOY}",
    "/_synapse/mas/is_localpart_available": "Synapse refuses the secret of MAS, so that nobody can create an account: "
    f"{DEPLOY}",
}


class TestService(ServiceTests):
    pass


def test_is_the_version_of_the_settings(service: Service, settings: Settings, note: Note) -> None:
    current, wanted = program_in_use(service, "mas"), settings.view(Mas).release.version
    note("versions", f"Matrix Authentication Service {current.rpartition('-')[0]}")
    assert current.startswith(f"{wanted}-"), f"version {current} runs, {wanted} is wanted: {DEPLOY}"


@pytest.fixture(scope="module")
def diagnosis(host: Host) -> str:
    """What `mas-cli doctor` says. It succeeds whatever it finds, and shows the secret that MAS shares with Synapse."""
    done = host.run(f"cd / && timeout 60 runuser -u mas -- /opt/mas/current/mas-cli doctor {MAS_ARGUMENTS} 2>&1")
    return re.sub(r"\x1b\[[0-9;]*m", "", str(done.stdout))


@pytest.mark.parametrize("url", CHECKS)
def test_mas_and_synapse_accept_each_other(diagnosis: str, url: str) -> None:
    works = any("✅" in line and url in line for line in diagnosis.splitlines())
    # Not compared in the assertion: pytest would show its lines.
    assert works, CHECKS[url]


def test_clients_find_it(host: Host, settings: Settings) -> None:
    wanted = settings.view(Mas).public_url
    found = get(host, f"https://{settings.domain(MAS)}/.well-known/openid-configuration")
    assert found.status == 200, f"{found}; see journalctl -u caddy -u mas"
    assert found.json().get("issuer") == wanted, f"it says that it is another, {found}: {DEPLOY}"
    for path in ("v1/auth_metadata", "unstable/org.matrix.msc2965/auth_metadata"):
        answer = get(host, f"https://{settings.domain(SYNAPSE)}/_matrix/client/{path}")
        assert answer.status == 200, f"clients cannot find where to log in, {answer}; see journalctl -u caddy -u mas"
        assert answer.json() == found.json(), f"clients are not told what MAS says, {answer}: {DEPLOY}"


def test_older_clients_log_in_at_mas(host: Host, settings: Settings) -> None:
    answer = get(host, f"https://{settings.domain(SYNAPSE)}/_matrix/client/v3/login")
    assert answer.status == 200, f"older clients cannot log in, {answer}; see journalctl -u caddy -u mas"
    aware = any(
        flow.get("oauth_aware_preferred") or flow.get("org.matrix.msc3824.delegated_oidc_compatibility")
        for flow in answer.json()["flows"]
    )
    assert aware, f"Caddy does not pass log-ins on to MAS, {answer}: {DEPLOY}"


def test_registration_is_as_chosen(host: Host, settings: Settings) -> None:
    chosen = settings.section(Homeserver).registration
    answer = get(host, f"https://{settings.domain(MAS)}/register/password")
    if chosen == "closed":
        assert answer.status != 200, f"registration is closed in the settings, but {answer}: {DEPLOY}"
    else:
        assert answer.status == 200, f'registration is "{chosen}" in the settings, but {answer}: {DEPLOY}'
