"""Synapse, the homeserver."""

import json
import time
from datetime import datetime

from testinfra.host import Host

from roles import HOUSEKEEPING, HOUSEKEEPING_REPORT
from settings import Settings
from settings.synapse import Choices, Synapse
from tests.host.report import Note
from tests.host.services import DAY, DEPLOY, Answer, Service, ServiceTests, ask, get, locked_version, program_in_use


class TestService(ServiceTests):
    pass


def ask_synapse(host: Host, settings: Settings, path: str) -> Answer:
    return get(host, f"http://{settings.view(Synapse).address}:{settings.view(Synapse).port}{path}")


def test_answers(host: Host, settings: Settings) -> None:
    answer = ask_synapse(host, settings, "/health")
    assert answer.status == 200, f"{answer}; see journalctl -u matrix-synapse"


def test_reaches_its_database(host: Host, settings: Settings) -> None:
    # It looks the alias up in its database. After a restart of PostgreSQL each broken connection fails one request.
    alias = f"%23no-such-room-{time.time():.0f}:{settings.server_name}"
    for _ in range(10):
        answer = ask_synapse(host, settings, f"/_matrix/client/v3/directory/room/{alias}")
        if answer.status != 500:
            break
    assert answer.status == 404 and answer.json().get("errcode") == "M_NOT_FOUND", (
        f"Synapse cannot use its database, {answer}; see journalctl -u matrix-synapse and -u 'postgresql@*'"
    )


def test_is_the_version_of_the_lock(host: Host, settings: Settings, note: Note) -> None:
    running = ask_synapse(host, settings, "/_synapse/admin/v1/server_version").json()["server_version"]
    locked = locked_version("synapse", "matrix-synapse")
    note("versions", f"Synapse {running}")
    assert running == locked, f"Synapse {running} runs, requirements/synapse.txt says {locked}: {DEPLOY}"


def test_runs_from_the_installed_virtualenv(service: Service, settings: Settings) -> None:
    current = program_in_use(service, "matrix-synapse")
    wanted = settings.view(Synapse).virtualenv.key
    assert current == wanted, (
        f"/opt/matrix-synapse/{current} is in use, requirements/synapse.txt makes {wanted}: {DEPLOY}"
    )


def test_publishes_the_keys_of_its_server_name(host: Host, settings: Settings) -> None:
    """For other homeservers; without federation it publishes none."""
    answer = ask_synapse(host, settings, "/_matrix/key/v2/server")
    if settings.section(Choices).federation:
        assert answer.status == 200, f"other homeservers cannot check its signatures, {answer}"
        key = answer.json()
        assert key["server_name"] == settings.server_name, f"{answer.url} has keys of {key['server_name']}: {DEPLOY}"
        assert key["verify_keys"] and key["valid_until_ts"] > time.time() * 1000, f"no valid signing key, {answer}"
    else:
        assert answer.status == 404, f"federation is off in the settings, but {answer}: {DEPLOY}"


def test_registration_is_as_chosen(host: Host, settings: Settings) -> None:
    answer = ask_synapse(host, settings, "/_matrix/client/v3/register/available?username=nobody-asks-for-this-name")
    chosen = settings.section(Choices).registration
    if settings.exists("mas"):
        # Where people create accounts: test_mas.py.
        assert answer.status == 404, f"MAS has the accounts, but people can create some in Synapse, {answer}: {DEPLOY}"
        return
    if chosen == "closed":
        assert answer.status == 403, f"registration is closed in the settings, but {answer}: {DEPLOY}"
    else:
        assert answer.status == 200, f'registration is "{chosen}" in the settings, but {answer}: {DEPLOY}'


def test_what_it_removes_is_counted(host: Host, settings: Settings, note: Note) -> None:
    timer = HOUSEKEEPING.timer
    shown = ask(host, "systemctl show -p ActiveState -p UnitFileState %s", timer)
    assert "ActiveState=active" in shown and "UnitFileState=enabled" in shown, (
        f"{timer} is not active and enabled: {DEPLOY}"
    )
    threshold = str(int(HOUSEKEEPING.exposure * 10))
    done = host.run("systemd-analyze security --no-pager --threshold=%s %s", threshold, HOUSEKEEPING.service)
    assert done.rc == 0, f"{HOUSEKEEPING.service} may do more than it needs: {DEPLOY}"
    found = host.run("cat %s", HOUSEKEEPING_REPORT)
    # The first is made a minute after the deploy.
    made = float(ask(host, "stat -c %%Y %s", f"/etc/systemd/system/{timer}"))
    assert found.rc == 0 or time.time() - made < DAY, (
        f"nothing was counted so far: journalctl -u {HOUSEKEEPING.service}"
    )
    if found.rc == 0:
        counted = datetime.fromisoformat(json.loads(found.stdout)["at"])
        note("housekeeping", f"counted {counted:%Y-%m-%d %H:%M} UTC")
        age = time.time() - counted.timestamp()
        assert age < 2 * DAY, (
            f"the last count is {age / DAY:.0f} days old: systemctl status {timer} {HOUSEKEEPING.service}"
        )
