"""Debian packages: another package manager is waited for, and a mirror that is away is named."""

import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import own
from tests.deployment import Deployment
from tests.testbed import Host, Testbed

TASK = """
import os

from pyinfra import config

from operations import packages

config.SUDO = True
packages.installed(name="Install it", packages=[os.environ["PACKAGE"]])
"""
# As apt and dpkg lock.
HOLD = """
import fcntl, sys, time
with open(sys.argv[1], "w") as lock:
    fcntl.lockf(lock, fcntl.LOCK_EX)
    open("/run/held", "w").close()
    time.sleep(float(sys.argv[2]))
"""
LOCKS = {
    "/var/lib/apt/lists/lock": "hello",
    "/var/cache/apt/archives/lock": "pv",
    "/var/lib/dpkg/lock-frontend": "tree",
    "/var/lib/dpkg/lock": "sl",
}


class Installation(Deployment):
    """One package on one host."""

    def __init__(self, directory: Path, host: Host) -> None:
        # Any role: every deploy is looked at before it connects.
        super().__init__(directory, [host], {"server_name": host.domain, "tls": "internal"}, {"caddy": [host.name]})
        self.host, self.task = host, directory / "task.py"
        self.task.write_text(TASK)

    def command(self, *options: str) -> list[str]:
        return [str(self.task) if word == "deploy.py" else word for word in super().command(*options)]


@pytest.fixture(scope="module", params=["trixie", "bookworm"], ids=["debian13", "debian12"])
def installation(
    request: pytest.FixtureRequest, testbed: Testbed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    host = testbed.up(own(f"apt{request.param[0]}"), release=request.param)
    host.run("apt-get update -qq && apt-get install -qq -y --no-install-recommends python3 >/dev/null", timeout=300)
    yield Installation(tmp_path_factory.mktemp("apt"), host)
    host.down()


@pytest.mark.parametrize("lock", LOCKS)
def test_another_package_manager_is_waited_for(installation: Installation, lock: str) -> None:
    host, seconds = installation.host, 8
    installation.environment["PACKAGE"] = LOCKS[lock]
    # The lists are stale, so that they have to be fetched, too.
    host.run("touch -d '2 days ago' /var/lib/apt/lists; rm -f /run/held")
    host.run(f"systemd-run --quiet --collect python3 -Ic {shlex.quote(HOLD)} {lock} {seconds}")
    host.run("until [ -e /run/held ]; do sleep 0.05; done")
    begin = time.monotonic()
    assert installation.run("-y").changed == ["Install it"]
    assert time.monotonic() - begin > seconds - 2
    assert host.run(f"dpkg-query --show --showformat '${{db:Status-Status}}' {LOCKS[lock]}").stdout == "installed"


def test_a_mirror_that_is_away_is_named(installation: Installation) -> None:
    host = installation.host
    installation.environment["PACKAGE"] = "cowsay"
    host.run(
        "mkdir /run/sources && cp -a /etc/apt/sources.list* /run/sources/ && rm -rf /etc/apt/sources.list.d/* "
        "/var/lib/apt/lists/* /etc/apt/apt.conf.d/*proxy*; . /etc/os-release; "
        'echo "deb http://127.0.0.1:9/debian $VERSION_CODENAME main" > /etc/apt/sources.list'
    )
    try:
        run = installation.run("-y", check=False)
        last = run.output.strip().splitlines()[-1]
        assert run.status == 1
        assert f"{host.name}: Install it failed: packages cannot be fetched, a mirror of this machine" in last
        assert "http://127.0.0.1:9/debian" in last and "run the same command again" in last
    finally:
        host.run("rm -rf /etc/apt/sources.list*; cp -a /run/sources/* /etc/apt/")
    assert installation.run("-y").changed == ["Install it"]
