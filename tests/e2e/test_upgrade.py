"""Synapse is restarted and upgraded while clients use it: no request of theirs fails, whether it has a body or not.

A version that does not come up is put back. One from which there is no way back is refused.
"""

import re
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from roles import SYDENT
from tests.conftest import Deployed
from tests.deployment import ROOT, Deployment, Run
from tests.e2e.client import Account, Outside, expect_json
from tests.e2e.load import Load, during, room_of
from tests.e2e.older import OLDER, broken_checkout, broken_sydent, older_checkout
from tests.testbed import Host

pytestmark = pytest.mark.role("synapse")

UPGRADES = "/var/lib/matrix-metal/upgrades"


@pytest.fixture(scope="session")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This project, with an older Synapse."""
    return older_checkout(tmp_path_factory.mktemp("older"))


@pytest.fixture(scope="session")
def broken(older: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with a Synapse that does not start."""
    return broken_checkout(older, tmp_path_factory.mktemp("broken"))


@pytest.fixture(scope="module")
def room(deployed: Deployed, outside: Outside, alice: Account) -> str:
    return room_of(deployed.host, outside, alice)


@pytest.fixture
def deployment(deployed: Deployed) -> Iterator[Deployment]:
    """The deployment, which is as it was after the test."""
    settings = deployed.deployment.settings
    yield deployed.deployment
    deployed.deployment.root = ROOT
    deployed.deployment.choose(**settings)
    deployed.deployment.run("-y")


def version(outside: Outside) -> str:
    with outside.http() as http:
        server = expect_json(http.get(outside.url("matrix", "/_matrix/federation/v1/version")))["server"]
    return str(server["version"])


def restart(host: Host) -> None:
    for _ in range(2):
        host.run("systemctl restart matrix-synapse", timeout=120)
        time.sleep(3)  # whoever waited has an answer


def assert_nothing_failed(load: Load, longest: float) -> None:
    assert load.failed == [] and load.longest < longest and len(load.answered) == 7, load


def assert_nothing_is_left(host: Host) -> None:
    """Of an upgrade, but for the note that it has failed."""
    left = host.run(f"ls -A {UPGRADES} 2>/dev/null; ls -d /run/matrix-metal-trial* 2>/dev/null; true").stdout.split()
    assert [name for name in left if not name.endswith(".failed")] == []


def test_a_restart_of_synapse_fails_no_request(deployed: Deployed, outside: Outside, alice: Account, room: str) -> None:
    assert_nothing_failed(during(outside, alice, room, lambda: restart(deployed.host)), 20)


@pytest.mark.once("debian12")
def test_a_synapse_that_does_not_start_is_put_back(
    deployment: Deployment, outside: Outside, alice: Account, room: str, broken: Path
) -> None:
    host, current = deployment.hosts[0], version(outside)
    deployment.root = broken
    why = (
        rf"{host.name}: Run Synapse failed: Synapse {OLDER} did not come up: RuntimeError: .*psycopg2 module is not installed\. "
        rf"{current} serves again, (\d+) s later, with the files that it had before\. Repair the cause, then try again with "
        rf"--data try_again={OLDER}; or choose another version"
    )

    def assert_put_back(run: Run) -> None:
        assert run.status == 1
        told = re.fullmatch(why, run.refusal)
        # Synapse's start is most of it, and takes longer while the tests keep both processors busy.
        assert told and int(told[1]) < 10, run.output
        assert version(outside) == current
        assert_nothing_is_left(host)

    assert_put_back(deployment.run("-y", check=False))
    # It is not tried again, unless it is asked for. Nor is anything else touched.
    again = deployment.run("-y", check=False)
    assert again.status == 1 and again.changed == []
    assert re.match(rf"{host.name}: Synapse {OLDER} was tried on .* and did not come up: .*psycopg2", again.refusal)
    runs: list[Run] = []
    asked = ("-y", "--data", f"try_again={OLDER}")
    load = during(outside, alice, room, lambda: runs.append(deployment.run(*asked, check=False)))
    assert_put_back(runs[0])
    assert_nothing_failed(load, 20)
    deployment.root = ROOT
    assert deployment.run("-y").changed == [], "not everything was put back"


# Who connects sends the request only when the next process is there.
SENT_LATE = """import socket, subprocess
link = socket.socket(socket.AF_UNIX)
link.connect("/run/matrix-synapse/1.sock")
subprocess.run(["systemctl", "restart", "matrix-synapse"], check=True)
link.settimeout(30)
link.sendall(b"GET /_matrix/client/versions HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
print(link.recv(15).decode())"""


def test_connections_are_handed_over(deployed: Deployed) -> None:
    """Caddy may be slow between connecting and sending, for lack of time."""
    answer = deployed.host.run("python3 -", stdin=SENT_LATE, timeout=120).stdout
    assert answer == "HTTP/1.1 200 OK\n"
    kept = deployed.host.run("systemctl show -P NFileDescriptorStore matrix-synapse").stdout.strip()
    assert kept == deployed.host.run("ls /run/matrix-synapse/*.sock | wc -l").stdout.strip()


def test_a_request_that_is_under_way_is_answered(deployed: Deployed, outside: Outside, alice: Account) -> None:
    """Its client sends the rest when Synapse was told to stop."""
    body = b'{"device_keys": {}}'

    def slowly() -> Iterator[bytes]:
        yield body[:5]
        time.sleep(0.5)
        deployed.host.run("systemctl restart --no-block matrix-synapse")
        time.sleep(1)
        yield body[5:]

    headers = {**alice.authorization, "Content-Length": str(len(body))}
    with outside.http() as http:
        answer = http.post(outside.url("matrix", "/_matrix/client/v3/keys/query"), content=slowly(), headers=headers)
    assert answer.status_code == 200, answer.text
    deployed.host.run("systemctl start matrix-synapse", timeout=120)  # waits until it is up


@pytest.mark.once("debian13")
def test_an_upgrade_of_synapse_fails_no_request(
    deployment: Deployment, outside: Outside, alice: Account, room: str, older: Path
) -> None:
    """Nor does the one before it, to an older version. It is refused while the older could not run with the newer's database."""
    host, current = deployment.hosts[0], version(outside)
    deployment.root = older
    assert f"--> Synapse {current} -> {OLDER} on {host.name}\n" in deployment.run("--dry").output
    deployment.run("-y")
    assert version(outside) == OLDER != current

    # As if much had changed between the two.
    schema = "/opt/matrix-synapse/current/lib/python3*/site-packages/synapse/storage/schema/__init__.py"
    host.run(f"sed -i 's/^SCHEMA_VERSION = .*/SCHEMA_VERSION = 80/' {schema}")
    deployment.root = ROOT
    run = deployment.run("-y", check=False)
    assert run.status == 1
    assert re.fullmatch(
        rf"{host.name}: Install Synapse failed: from Synapse {current} there is no way back: .* To upgrade nevertheless, with a "
        rf"backup at hand: --data one_way={current}",
        run.refusal,
    ), run.output
    assert version(outside) == OLDER
    load = during(outside, alice, room, lambda: deployment.run("-y", "--data", f"one_way={current}"))
    assert version(outside) == current
    assert_nothing_failed(load, 20)
    assert_nothing_is_left(host)
    dry = deployment.run("--dry")
    assert dry.planned == [] and " -> " not in dry.output


@pytest.mark.once("debian13")
def test_a_synapse_that_is_too_old_for_the_database_is_refused(
    deployment: Deployment, outside: Outside, older: Path
) -> None:
    host, current = deployment.hosts[0], version(outside)

    def change(schema: str) -> None:
        statement = f"UPDATE schema_compat_version SET compat_version = compat_version {schema}"  # noqa: S608
        host.run("cd / && runuser -u postgres -- psql -XAtq -d synapse -f -", stdin=statement)

    change("+ 1000")
    try:
        deployment.root = older
        run = deployment.run("-y", check=False)
    finally:
        change("- 1000")
    assert run.status == 1
    assert f"Synapse {OLDER} cannot run with the data any more, which a newer version has changed" in run.refusal
    assert version(outside) == current


@pytest.mark.once("debian13")
@pytest.mark.parametrize(
    ("title", "setting", "unit"),
    [
        pytest.param(
            "Sliding Sync proxy", "sliding_sync_binary", "sliding-sync", marks=pytest.mark.role("sliding_sync")
        ),
        pytest.param("LiveKit", "livekit_archive", "livekit", marks=pytest.mark.role("rtc")),
    ],
    ids=["a program", "one in an archive"],
)
def test_a_program_that_ends_at_once_is_put_back(
    deployment: Deployment, tmp_path: Path, title: str, setting: str, unit: str
) -> None:
    host, program = deployment.hosts[0], tmp_path / "program"
    # LiveKit says that all is well when it cannot start.
    status = 0 if unit == "livekit" else 3
    program.write_text(f"#!/bin/sh\necho 'I cannot.'\nexit {status}\n")
    program.chmod(0o755)
    if setting == "livekit_archive":
        with tarfile.open(tmp_path / "archive.tar.gz", "w:gz") as archive:
            archive.add(program, "livekit-server")
        program = tmp_path / "archive.tar.gz"
    deployment.choose(**{**deployment.settings, setting: str(program)})
    run = deployment.run("-y", check=False)
    assert run.status == 1
    assert re.search(
        rf"{title} v[\d.]+ did not come up: I cannot\. The v[\d.]+ of before serves again, \d s later, with the files",
        run.refusal,
    ), run.output
    host.run(f"systemctl is-active {unit}")
    assert_nothing_is_left(host)
    again = deployment.run("-y", check=False)
    assert again.status == 1 and again.changed == [] and "did not come up: I cannot. " in again.refusal


@pytest.mark.once("debian13")
@pytest.mark.role("sydent")
def test_a_sydent_that_does_not_start_is_put_back(deployment: Deployment, outside: Outside, tmp_path: Path) -> None:
    host = deployment.hosts[0]
    deployment.root = broken_sydent(tmp_path)
    run = deployment.run("-y", check=False)
    assert run.status == 1
    assert re.search(
        r"Sydent 2[\d.]+ did not come up: .*192\.0\.2\.1.*The 2[\d.]+ of before serves again, \d s later, with the files",
        run.refusal,
    ), run.output
    host.run(SYDENT.units[0].health)
    assert_nothing_is_left(host)
    deployment.root = ROOT
    assert deployment.run("-y").changed == [], "not everything was put back"


@pytest.mark.once("debian13")
@pytest.mark.role("rtc")
def test_a_version_is_put_back_without_the_computer_that_has_tried_it(deployment: Deployment, tmp_path: Path) -> None:
    host, program = deployment.hosts[0], tmp_path / "lk-jwt-service"
    program.write_text("#!/bin/sh\nsleep 3\necho 'I cannot.'\nexit 3\n")
    deployment.choose(**deployment.settings, lk_jwt_binary=str(program))
    process = deployment.start("-y")
    host.run("until systemctl is-active -q matrix-metal-upgrade-lk-jwt-service; do sleep 0.1; done", timeout=120)
    process.kill()
    process.communicate()
    # Who comes next is told what goes on.
    second = deployment.run("-y", check=False)
    assert second.status == 1 and second.changed == []
    assert re.search("the trial of a new version of lk-jwt-service|another run is at work", second.refusal)
    host.run(f"until [ -e {UPGRADES}/lk-jwt-service.failed ]; do sleep 0.1; done", timeout=60)
    host.run("systemctl is-active lk-jwt")
    assert_nothing_is_left(host)
