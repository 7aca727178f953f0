"""manage.py NAME outdated: what PyPI, release pages and apt say, and what is made of it. The sources are local servers."""

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from manage.outdated import debian_packages, is_newer, outdated
from operations.virtualenvs import locked
from settings.monitoring import UPLOT_VERSION
from settings.sliding_sync import VERSION
from tests.deployment import Deployment
from tests.standin.release_server import ReleaseServer
from tests.unit.test_settings import settings

LOCKED = {**locked("synapse"), **locked("sydent")}
VULNERABILITY = {"id": "PYSEC-2027-1", "aliases": ["CVE-2027-1"], "fixed_in": ["99.0.0"], "withdrawn": None}
WITHDRAWN = {"id": "PYSEC-2027-2", "fixed_in": [], "withdrawn": "2027-01-01T00:00:00Z"}


def about(version: str, *vulnerabilities: dict[str, Any]) -> bytes:
    return json.dumps({"info": {"version": version}, "vulnerabilities": vulnerabilities}).encode()


def pypi(*locks: str, **newest: str) -> dict[str, bytes | Path]:
    """The answers about every locked package: each is the newest, but for those of `newest`."""
    found: dict[str, bytes | Path] = {}
    for versions in (*map(locked, locks),):
        for name, version in versions.items():
            found[f"pypi/{name}/json"] = about(newest.get(name, version), WITHDRAWN)
            found[f"pypi/{name}/{version}/json"] = about(version)
    return found


@pytest.fixture
def deployment(tmp_path: Path, server: ReleaseServer) -> Deployment:
    """A machine with Sydent and the Sliding Sync proxy that does not answer."""
    page = f"{server.url}/matrix-org/sliding-sync/releases/download"
    found = Deployment(
        tmp_path, [], {"server_name": "a.test", "tls": "internal", "sliding_sync_releases": page}, roles={}
    )
    found.environment["COLUMNS"] = "200"
    (tmp_path / "known_hosts").touch()
    data = {"ssh_hostname": "127.0.0.1", "ssh_port": 1, "ssh_known_hosts_file": str(tmp_path / "known_hosts")}
    machine = repr(("far", data))
    found.inventory.write_text(f"postgres = caddy = synapse = sydent = sliding_sync = [{machine}]\n")
    server.files |= pypi("synapse", "sydent", "")
    server.latest["matrix-org/sliding-sync"] = VERSION
    return found


def ask(deployment: Deployment, server: ReleaseServer, *options: str) -> tuple[int, str]:
    done = deployment.manage("outdated", "--pypi", f"{server.url}/pypi", *options)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def found_by(deployment: Deployment, server: ReleaseServer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ask(deployment, server, "--json")[1])
    return found


def test_all_is_current_and_a_machine_that_is_away_is_one_line(deployment: Deployment, server: ReleaseServer) -> None:
    status, printed = ask(deployment, server)
    away, *others = printed.splitlines()
    # Its packages may have vulnerabilities. A job of cron's must not be content for ever.
    assert (status, others) == (1, ["Not everything was asked about vulnerabilities, see above: exit status 1."])
    assert away.startswith("far cannot be reached: ")


def test_vulnerabilities_and_newer_releases_are_listed(deployment: Deployment, server: ReleaseServer) -> None:
    pillow = LOCKED["pillow"]
    server.files[f"pypi/pillow/{pillow}/json"] = about(pillow, VULNERABILITY)
    server.files["pypi/pillow/json"] = about("99.0.1")
    server.files["pypi/matrix-synapse/json"] = about("99.1.0")
    server.files["pypi/jinja2/json"] = about("99.2.0")
    server.latest["matrix-org/sliding-sync"] = "v99.4.0"
    found = found_by(deployment, server)
    items = {item["name"]: item for item in found["items"]}
    assert set(items) == {"pillow", "matrix-synapse", "jinja2", "sliding-sync"} and found["vulnerable"]
    assert items["pillow"]["vulnerabilities"] == [{"id": "PYSEC-2027-1", "fixed_in": ["99.0.0"]}]
    assert items["pillow"]["version"] == pillow and items["pillow"]["where"] == "requirements/synapse.txt"
    assert (items["sliding-sync"]["version"], items["sliding-sync"]["newest"]) == (VERSION, "v99.4.0")
    status, printed = ask(deployment, server)
    assert status == 1 and "1 with known vulnerabilities." in printed
    assert "PYSEC-2027-1 (fixed in 99.0.0)" in printed
    # What came with Synapse, and is not vulnerable, is only counted.
    assert (
        "jinja2" not in printed
        and "Of what comes with them, 1 has a newer release: `make lock UPGRADE=1` takes it in." in printed
    )


def test_a_source_that_does_not_answer_is_one_line(deployment: Deployment, server: ReleaseServer) -> None:
    server.fault = "unavailable"
    server.latest.clear()
    found = found_by(deployment, server)
    assert (found["items"], found["vulnerable"], found["complete"]) == ([], False, False)
    index, page, machine = found["unreachable"]
    assert index.startswith("PyPI was not asked about ") and "more: https://127.0.0.1" in index and "503" in index
    assert page.startswith("the release page of sliding-sync was not asked: ")
    assert machine.startswith("far cannot be reached: ")


SECURE = "Inst caddy [2.6.2-12] (2.6.2-13 Debian-Security:13/stable-security [amd64])"


@pytest.mark.parametrize(
    ("fault", "apt", "status", "line"),
    [
        (False, ["lists {now}"], 0, "No vulnerability is known."),
        (False, ["lists {now}", SECURE], 1, "1 with known vulnerabilities."),
        (False, ["lists 1700000000"], 1, "Not everything was asked about vulnerabilities"),
        (True, ["lists {now}"], 1, "Not everything was asked about vulnerabilities"),
    ],
    ids=["none", "one", "old lists", "no PyPI"],
)
def test_exit_status_is_about_vulnerabilities(
    server: ReleaseServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: bool,
    apt: list[str],
    status: int,
    line: str,
) -> None:
    """A machine that answers; the release page never does, and knows of no vulnerability."""
    monkeypatch.setenv("COLUMNS", "200")
    page = f"{server.url}/matrix-org/sliding-sync/releases/download"
    roles = {role: ["one"] for role in ("postgres", "caddy", "synapse", "sliding_sync")}
    machine = SimpleNamespace(
        name="one",
        settings=settings(tmp_path, roles, sliding_sync_releases=page),
        run=lambda command: [each.format(now=int(time.time())) for each in apt],
        close=lambda: None,
    )
    server.files |= {} if fault else pypi("synapse", "")
    done = CliRunner().invoke(
        outdated, ["--pypi", f"{server.url}/pypi"], obj=SimpleNamespace(every_machine=lambda: [machine])
    )
    assert done.exit_code == status, done.output
    assert "the release page of sliding-sync was not asked: " in done.output
    assert line in done.output and ("No vulnerability" in done.output) == (status == 0)


APT = """Inst libc6 [2.41-12] (2.41-12+deb13u1 Debian:13.3/stable, Debian-Security:13/stable-security [amd64])
Inst postgresql-17 [17.6-0+deb13u1] (17.7-0+deb13u1 Debian-Security:13/stable-security [amd64])
Inst caddy [2.6.2-12] (2.6.2-13 Debian:13.3/stable [amd64])
Inst vim [1-1] (1-2 Debian:13.3/stable [amd64])
Inst linux-image-new (6.12 Debian:13.3/stable [amd64])
Conf libc6 (2.41-12+deb13u1 Debian:13.3/stable [amd64])
"""


def test_debian_packages() -> None:
    lines = [f"lists {time.time():.0f}", *APT.splitlines()]
    items, silent = debian_packages("one", [re.compile(r"postgresql-\d+"), re.compile("caddy")], lines)
    assert silent == []
    assert [(item.name, item.newest, bool(item.vulnerabilities), item.direct) for item in items] == [
        ("libc6", "2.41-12+deb13u1", True, False),
        ("postgresql-17", "17.7-0+deb13u1", True, True),
        ("caddy", "2.6.2-13", False, True),
    ]
    _, [stale] = debian_packages("one", [], ["lists 1700000000"])
    assert stale == "one: its package lists are from 2023-11-14: `apt-get update` there"


@pytest.mark.parametrize(
    ("one", "other", "newer"),
    [
        ("1.163.10", "1.163.2", True),
        ("v1.22.0", "v1.22.0", False),
        ("v1.21.0", "v1.22.0", False),
        ("2.0rc1", "2.0", False),
        ("nightly", "v1", True),
        ("nightly", "nightly", False),
    ],
)
def test_newer_versions(one: str, other: str, newer: bool) -> None:
    assert is_newer(one, other) == newer


def test_npm_says_what_is_newest(deployment: Deployment, server: ReleaseServer) -> None:
    deployment.choose(**deployment.settings, uplot_releases=f"{server.url}/uplot/-", uplot_sha256=None)
    deployment.inventory.write_text(f"{deployment.inventory.read_text()}monitoring = synapse\n")
    server.files["uplot/latest"] = b'{"name": "uplot", "version": "99.0.0"}'
    [found] = [each for each in found_by(deployment, server)["items"] if each["name"] == "uplot"]
    assert (found["version"], found["newest"]) == (UPLOT_VERSION, "99.0.0")
