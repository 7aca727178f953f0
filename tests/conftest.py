"""Fixtures of all tests: throw-away hosts, a release page, and a complete deployment on each Debian release."""

import hashlib
import io
import os
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from roles import ROLES, Role
from settings import admin, element, mas, monitoring
from settings.rtc import LIVEKIT_VERSION, LK_JWT_VERSION
from settings.sliding_sync import VERSION
from tests.built import built, keep, remove_built
from tests.deployment import Deployment
from tests.standin.archives import (
    Signer,
    cinny_archive,
    element_archive,
    ketesa_archive,
    mas_archive,
    real_cinny,
    real_element,
    real_ketesa,
    real_mas,
    real_uplot,
    uplot_archive,
)
from tests.standin.release_server import ReleaseServer
from tests.testbed import Host, Testbed
from vault import Vault

STAND_IN = Path(__file__).parent / "standin" / "syncv3"
MAS_RELEASES = "element-hq/matrix-authentication-service/releases/download"
ELEMENT_RELEASES = "element-hq/element-web/releases/download"
CINNY_RELEASES = "cinnyapp/cinny/releases/download"
KETESA_RELEASES = "etkecc/ketesa/releases/download"
UPLOT_RELEASES = "uplot/-"
# The password of the administrator's pages, and its hash by `manage.py NAME admin password`.
ADMIN_PASSWORD = "correct horse battery"  # noqa: S105 - of hosts that are thrown away
ADMIN_PASSWORD_HASH = "$2b$12$CCG.WuRc00XCK8dSBaJsQ.T1EzIEWoY1ledPjVMRSXmdtU2Y9W71G"  # noqa: S105
RELEASE = f"matrix-org/sliding-sync/releases/download/{VERSION}/syncv3_linux_amd64"


def named(variable: str) -> Path | None:
    """The file that an environment variable names."""
    path = os.environ.get(variable)
    return Path(path).expanduser().resolve() if path else None


def real_proxy() -> Path | None:
    """The program of the real Sliding Sync proxy, if SLIDING_SYNC_BINARY names it; None: the stand-in is deployed."""
    return named("SLIDING_SYNC_BINARY")


def real_rtc() -> bool:
    """Whether LIVEKIT_BINARY and LK_JWT_BINARY name the real programs; otherwise their stand-ins are deployed."""
    return bool(named("LIVEKIT_BINARY") and named("LK_JWT_BINARY"))


def livekit_archive() -> bytes:
    """LiveKit's program, or its stand-in, in an archive like upstream's."""
    program = named("LIVEKIT_BINARY") if real_rtc() else STAND_IN.with_name("livekit-server")
    assert program
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as tar:
        tar.add(program, "livekit-server")
    return packed.getvalue()


def lk_jwt() -> Path:
    """The program of lk-jwt-service, or its stand-in."""
    program = named("LK_JWT_BINARY") if real_rtc() else STAND_IN.with_name("lk-jwt-service")
    assert program
    return program


def released(directory: Path) -> dict[str, bytes | Path]:
    """What a release page has, by path: each program, or its stand-in, which may be made in the directory."""
    livekit = f"livekit/livekit/releases/download/{LIVEKIT_VERSION}"
    web = f"{ELEMENT_RELEASES}/{element.VERSION}/element-{element.VERSION}.tar.gz"
    client, signer = real_element() or element_archive(directory, element.VERSION), Signer(directory)
    signature, keys, fingerprint = signer.sign(client), signer.keys, signer.fingerprint
    cinny = real_cinny() or cinny_archive(directory)
    signature_of_cinny = signer.sign(cinny)
    signer.close()
    name, archive = f"livekit_{LIVEKIT_VERSION.removeprefix('v')}_linux_amd64.tar.gz", livekit_archive()
    return {
        RELEASE: real_proxy() or STAND_IN,
        f"{livekit}/{name}": archive,
        f"{livekit}/checksums.txt": f"{hashlib.sha256(archive).hexdigest()}  {name}\n".encode(),
        f"element-hq/lk-jwt-service/releases/download/{LK_JWT_VERSION}/lk-jwt-service_linux_amd64": lk_jwt(),
        web: client,
        f"{web}.asc": signature,
        f"{CINNY_RELEASES}/{element.CINNY_VERSION}/cinny-{element.CINNY_VERSION}.tar.gz": cinny,
        f"{CINNY_RELEASES}/{element.CINNY_VERSION}/cinny-{element.CINNY_VERSION}.tar.gz.asc": signature_of_cinny,
        "keys.asc": keys,
        "keys.fingerprint": fingerprint.encode(),
        f"{KETESA_RELEASES}/{admin.VERSION}/ketesa.tar.gz": real_ketesa() or ketesa_archive(directory),
        f"{UPLOT_RELEASES}/uplot-{monitoring.UPLOT_VERSION}.tgz": real_uplot() or uplot_archive(directory),
        f"{MAS_RELEASES}/{mas.VERSION}/mas-cli-x86_64-linux.tar.gz": real_mas() or mas_archive(directory),
    }


def _fingerprint(page: ReleaseServer) -> str:
    """Of the key that has signed what is on the page."""
    found = page.files.get("keys.fingerprint", b"0" * 40)
    assert isinstance(found, bytes)
    return found.decode()


def from_page(page: ReleaseServer) -> dict[str, str | None]:
    """The settings with which all programs come from a release page."""
    return {
        "sliding_sync_releases": f"{page.url}/matrix-org/sliding-sync/releases/download",
        "livekit_releases": f"{page.url}/livekit/livekit/releases/download",
        "lk_jwt_releases": f"{page.url}/element-hq/lk-jwt-service/releases/download",
        "mas_releases": f"{page.url}/{MAS_RELEASES}",
        "element_releases": f"{page.url}/{ELEMENT_RELEASES}",
        "ketesa_releases": f"{page.url}/{KETESA_RELEASES}",
        "uplot_releases": f"{page.url}/{UPLOT_RELEASES}",
        # That of the settings is that of the real one.
        "uplot_sha256": None,
        "cinny_releases": f"{page.url}/{CINNY_RELEASES}",
        "element_keys": f"{page.url}/keys.asc",
        "element_signed_by": _fingerprint(page),
        "cinny_keys": f"{page.url}/keys.asc",
        "cinny_signed_by": _fingerprint(page),
    }


def pytest_addoption(parser: pytest.Parser) -> None:
    # Here and not in tests/host/conftest.py, which is read too late for options when all tests are run.
    parser.addoption("--role", metavar="ROLE", choices=list(ROLES), help="only the tests of this role")
    parser.addoption("--both", action="store_true", help="on both releases also what is marked `once`")
    parser.addoption("--inventory", metavar="PATH", help="verify this live deployment, only reading (tests/host)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --role: the tests in files named after the role, those that are marked `role` with it, and its row of tests of all.

    Without --both: what is marked `once` on the release only that the mark names.
    """
    items.sort(key=_turn)
    for item in items:
        if "fleet" in getattr(item, "fixturenames", ()):
            # Another process would deploy everything again.
            group = SharedHostScheduling._split_scope(item.nodeid)
            assert group in ("debian13", "debian12"), f"{item.nodeid} is in the group {group}"
    if role := config.getoption("--role"):
        chosen = [item for item in items if _is_about(item, role)]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen
    if not config.getoption("--both"):
        chosen = [
            item for item in items if all(_release(item) in (None, *mark.args) for mark in item.iter_markers("once"))
        ]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


def _is_about(item: pytest.Item, role: str) -> bool:
    """By its file, by the mark `role`, or as the row of a test of all roles."""
    if item.path.stem == f"test_{role}" or any(role in mark.args for mark in item.iter_markers("role")):
        return True
    params = item.callspec.params.values() if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
    return any(role == (each.name if isinstance(each, Role) else each) for each in params)


def _turn(item: pytest.Item) -> int:
    name = item.path.name
    return FIRST.index(name) if name in FIRST else len(FIRST) + LAST.index(name) + 1 if name in LAST else len(FIRST)


def _release(item: pytest.Item) -> str | None:
    """The release of Debian that an item is about, if it has one for each."""
    found = re.search(r"debian1[23]|trixie|bookworm", item.name)
    return {"trixie": "debian13", "bookworm": "debian12"}.get(found[0], found[0]) if found else None


# The first complete deployments, whose virtualenvs other hosts of the same release get, and beside them what needs none; then
# what takes longest, so that it is not what one process still does when the others are done, or would be the last, and alone.
_EARLY = ("accounts", "bad_moments", "firewall", "backup", "ways", "verify", "next_debian", "removal", "split")
FIRST = tuple(f"test_{name}.py" for name in (*_EARLY, "takeover", "surroundings", "updates", "certificates"))

# It waits for minutes: when other processes have much to do, not while they wait, too.
LAST = ("test_alerts.py",)

# Files with tests that take the complete deployments of both releases. They run where that of Debian 13 is made already.
BOTH = ("test_federation.py", "test_housekeeping.py", "test_rtc.py")
# Files whose tests all have a host of their own for each release: another process may take them than the complete deployment's.
OWN_HOSTS = tuple(
    f"tests/e2e/test_{name}.py"
    for name in ("firewall", "mas", "packages", "releases", "removal", "surroundings", "updates")
)


class SharedHostScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """With `pytest -n NUMBER`, tests that share a host run in the same process, and in order."""

    @staticmethod
    def _split_scope(nodeid: str) -> str:
        if nodeid.startswith("tests/unit/"):
            return nodeid
        release = re.search(r"[\[-](debian1[23])\b", nodeid)
        file = nodeid.partition("::")[0]
        if release:
            return f"{file} {release[1]}" if file in OWN_HOSTS else release[1]
        return "debian13" if file.endswith(BOTH) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SharedHostScheduling:
    """The order of the files is kept, so that the many short tests at the end keep all processes busy."""
    config.option.loadscopereorder = False
    return SharedHostScheduling(config, log)


# The file with the names of the hosts that were made in this run.
MADE = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses") and "PYTEST_XDIST_WORKER" not in os.environ:
        handle, made = tempfile.mkstemp(prefix="testbed-made-")
        os.close(handle)
        config.stash[MADE] = Path(made)
        os.environ["TESTBED_MADE"] = made


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove hosts of processes that ended early, by Ctrl-C or a crash. Hosts that were not made in this run stay."""
    if MADE not in config.stash:
        return
    made = set(config.stash[MADE].read_text().split())
    for host in Testbed().hosts():
        if host.name in made:
            host.down()
    remove_built(Testbed())
    config.stash[MADE].unlink()


def own(name: str) -> str:
    """A host's name that is different in each process of pytest-xdist."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    return f"{name}-{worker}" if worker else name


@pytest.fixture(scope="session")
def testbed() -> Testbed:
    """The throw-away hosts of this checkout."""
    return Testbed()


@pytest.fixture(scope="session")
def release_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReleaseServer]:
    """A release page that has each program that comes from one, or its stand-in."""
    with ReleaseServer(released(tmp_path_factory.mktemp("released"))) as server:
        yield server


@dataclass(frozen=True)
class Deployed:
    """A machine with every role, and the deployment that put them there."""

    host: Host
    deployment: Deployment

    @property
    def server_name(self) -> str:
        return self.host.domain


def complete(testbed: Testbed, host: Host, directory: Path, page: ReleaseServer, user: str = "root") -> Deployment:
    """A deployment of every role on one host in a private network."""
    deployment = Deployment(
        directory,
        [host],
        {
            "server_name": host.domain,
            "tls": "internal",
            "admin_email": f"admin@{host.domain}",
            # The hosts of the testbed have private addresses.
            "private_networks": [str(testbed.network.subnet), str(testbed.network.subnet6)],
            "stickers": True,
            "cinny": True,
            # The tests are outside over IPv4, and inside over IPv6.
            "admin_networks": [testbed.bridge_address6],
            **from_page(page),
        },
        user=user,
    )
    vault = Vault.open(deployment.vault)
    vault.set(admin.PASSWORD, ADMIN_PASSWORD_HASH)
    vault.save()
    deployment.environment["SSL_CERT_FILE"] = str(page.ca_file)
    deployment.environment["XDG_CACHE_HOME"] = str(directory / "cache")
    return deployment


# The complete deployments of this process.
FLEET = pytest.StashKey["Fleet"]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if (fleet := item.config.stash.get(FLEET, None)) and "fleet" in getattr(item, "fixturenames", ()):
        fleet.rest(False)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    fleet = item.config.stash.get(FLEET, None)
    if fleet and nextitem and "fleet" not in getattr(nextitem, "fixturenames", ()):
        fleet.rest(True)


# Release -> the host that has every role; see own().
COMPLETE = {"trixie": "full13", "bookworm": "full12"}


class Fleet:
    """The complete deployments, one for each release: made once, in parallel, and kept until the end."""

    def __init__(self, deploy: Callable[[str], Deployed]) -> None:
        self._deploy, self._pool = deploy, ThreadPoolExecutor(len(COMPLETE))
        self._deployed: dict[str, Future[Deployed]] = {}

    def rest(self, resting: bool) -> None:
        """Let the machines stand still while the process has tests without them, from which they would take time."""
        hosts = [each.result().host for each in self._deployed.values() if each.done() and not each.exception()]
        for host in hosts:
            if host.running:
                host.container.rest(resting)

    def start(self, releases: Iterable[str]) -> None:
        """Start the deployments that were not started yet."""
        for release in releases:
            if release not in self._deployed:
                self._deployed[release] = self._pool.submit(self._deploy, release)

    def get(self, release: str) -> Deployed:
        """The deployment on this release."""
        self.start([release])
        self.finished()
        return self._deployed[release].result()

    def finished(self) -> list[str]:
        """Wait for all that were started: a deployment that is still running would slow down the tests. Returns the releases."""
        wait(self._deployed.values())
        return list(self._deployed)


@pytest.fixture(scope="session")
def fleet(
    request: pytest.FixtureRequest,
    testbed: Testbed,
    release_page: ReleaseServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Fleet]:
    """The deployments that the chosen tests need."""
    directories = {release: tmp_path_factory.mktemp(name) for release, name in COMPLETE.items()}

    def deploy(release: str) -> Deployed:
        host = testbed.up(own(COMPLETE[release]), release=release, layers=built(testbed, release))
        deployment = complete(testbed, host, directories[release], release_page)
        keep(host, lambda: deployment.run("-y"))
        return Deployed(host, deployment)

    fleet = request.config.stash[FLEET] = Fleet(deploy)
    chosen = [item for item in request.session.items if isinstance(item, pytest.Function)]
    params = [item.callspec.params.get("deployed") for item in chosen if hasattr(item, "callspec")]
    needs_both = any("both" in item.fixturenames for item in chosen)
    if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker does not know yet which tests it will get
        fleet.start(release for release in COMPLETE if needs_both or release in params)
    yield fleet
    deployed = [own(COMPLETE[release]) for release in fleet.finished()]
    for host in testbed.hosts():
        if host.name in deployed:
            host.down()


@pytest.fixture(scope="session", params=list(COMPLETE), ids=["debian13", "debian12"])
def deployed(request: pytest.FixtureRequest, fleet: Fleet) -> Deployed:
    """Every role on a Debian 13 and on a Debian 12 host, deployed once: tests must not leave changes on it."""
    return fleet.get(request.param)


@pytest.fixture(scope="session")
def both(fleet: Fleet) -> tuple[Deployed, Deployed]:
    """The same two hosts at once: Debian 13 and Debian 12."""
    fleet.start(COMPLETE)
    return fleet.get("trixie"), fleet.get("bookworm")
