"""Sydent, the identity server."""

import json

from testinfra.host import Host

from roles import SYNAPSE
from settings import Settings
from settings.sydent import Sydent
from settings.synapse import Choices as Homeserver
from tests.host.report import Note
from tests.host.services import DEPLOY, Answer, Service, ServiceTests, ask, get, locked_version, program_in_use


class TestService(ServiceTests):
    pass


def ask_sydent(host: Host, settings: Settings, path: str) -> Answer:
    return get(
        host, f"http://{settings.view(Sydent).bind_address}:{settings.view(Sydent).port}/_matrix/identity/{path}"
    )


def test_answers(host: Host, settings: Settings) -> None:
    answer = ask_sydent(host, settings, "v2")
    assert answer.status == 200, f"{answer}; see journalctl -u sydent"


def test_reaches_its_database(host: Host, settings: Settings) -> None:
    # It looks the key up in its table of keys for invitations.
    answer = ask_sydent(host, settings, "v2/pubkey/ephemeral/isvalid?public_key=none")
    assert answer.status == 200 and answer.json() == {"valid": False}, (
        f"Sydent cannot use {settings.view(Sydent).database}, {answer}; see journalctl -u sydent"
    )


def test_learns_from_the_homeserver_who_its_users_are(host: Host, settings: Settings) -> None:
    """It connects to the homeserver by its public name. With an invalid token, so that nobody is logged in."""
    if not settings.exists("synapse") or not settings.section(Homeserver).federation:
        return
    token = {
        "access_token": "none",
        "token_type": "Bearer",
        "expires_in": 60,
        "matrix_server_name": settings.server_name,
    }
    url = f"http://127.0.0.1:{settings.view(Sydent).port}/_matrix/identity/v2/account/register"
    command = "curl -sS --max-time 20 -H 'Content-Type: application/json' -d %s %s 2>&1"
    answer = str(host.run(command, json.dumps(token), url).stdout).strip()
    # What Sydent 2.6.1 answers when the homeserver knows of no such token.
    assert "did not include 'sub'" in answer, (
        f"nobody can log in to Sydent, {url} answers {answer}: does this machine reach {settings.server_name} and "
        f"{settings.domain(SYNAPSE)} by name? Then `systemctl restart sydent`: for an hour it does not try again by itself"
    )


def test_is_the_version_of_the_lock(service: Service, note: Note) -> None:
    """Sydent has no API for its version: it is that of the virtualenv it runs from."""
    current = program_in_use(service, "sydent")
    found = ask(service.host, f"ls -d /opt/sydent/{current}/lib/python3*/site-packages/matrix_sydent-*.dist-info")
    running = found.strip().rpartition("matrix_sydent-")[2].removesuffix(".dist-info")
    locked = locked_version("sydent", "matrix-sydent")
    note("versions", f"Sydent {running}")
    assert running == locked, f"Sydent {running} runs, requirements/sydent.txt says {locked}: {DEPLOY}"


def test_runs_from_the_installed_virtualenv(service: Service, settings: Settings) -> None:
    current = program_in_use(service, "sydent")
    assert current == settings.view(Sydent).virtualenv.key, (
        f"/opt/sydent/{current} is in use, requirements/sydent.txt makes {settings.view(Sydent).virtualenv.key}: {DEPLOY}"
    )
