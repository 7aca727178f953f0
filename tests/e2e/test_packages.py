"""Debian packages: a run waits for another package manager, and reports a mirror that cannot be reached."""

import re
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
# Locks as apt and dpkg do; one of the files with a lock that belongs to no process, so that apt cannot name any.
LOCK_PROGRAM = """
import fcntl, struct, sys, time
with open(sys.argv[1], "w") as lock:
    if "archives" in sys.argv[1]:
        fcntl.fcntl(lock, fcntl.F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_WRLCK, 0, 0, 0, 0))
    else:
        fcntl.lockf(lock, fcntl.LOCK_EX)
    open("/run/locked", "w").close()
    time.sleep(float(sys.argv[2]))
"""
# Lock file -> a package to install while it is locked.
LOCKS = {
    "/var/lib/apt/lists/lock": "hello",
    "/var/cache/apt/archives/lock": "pv",
    "/var/lib/dpkg/lock-frontend": "tree",
    "/var/lib/dpkg/lock": "sl",
}


class Installation(Deployment):
    """Installs one package on one host."""

    def __init__(self, directory: Path, host: Host) -> None:
        # Any role: the settings and the inventory are checked before every run.
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


@pytest.mark.parametrize(
    "lock",
    # Whom it waits for, each release's apt says in its own words.
    [pytest.param(lock, marks=() if "frontend" in lock else pytest.mark.once("debian13")) for lock in LOCKS],
)
def test_a_run_waits_for_another_package_manager(installation: Installation, lock: str) -> None:
    # With dpkg's, long enough to be seen by a run on a busy computer.
    host, seconds = installation.host, 20 if "frontend" in lock else 8
    installation.environment["PACKAGE"] = LOCKS[lock]
    # The package lists are old, so that the run has to update them as well.
    host.run("touch -d '2 days ago' /var/lib/apt/lists; rm -f /run/locked")
    host.run(f"systemd-run --quiet --collect python3 -Ic {shlex.quote(LOCK_PROGRAM)} {lock} {seconds}")
    host.run("until [ -e /run/locked ]; do sleep 0.05; done")
    begin = time.monotonic()
    run = installation.run("-y")
    assert run.changed == ["Install it"]
    assert time.monotonic() - begin > seconds - 2
    if "frontend" in lock:
        assert re.search(
            rf"^--> {host.name}: waiting for process \d+ \(python3\), which holds {lock}$", run.output, re.MULTILINE
        )
    assert host.run(f"dpkg-query --show --showformat '${{db:Status-Status}}' {LOCKS[lock]}").stdout == "installed"


# What a machine's sources of packages are -> how the last line of the run goes on.
SOURCES = {
    "deb http://127.0.0.1:9/debian stable main": "packages cannot be fetched, a mirror of this machine does not answer as it "
    "should: http://127.0.0.1:9/debian",
    "deb file:/nowhere ./": "packages cannot be found: The repository 'file:/nowhere ./ Release' does not have a Release file.",
}
# A package of somebody else's that cannot be configured.
BROKEN = """
mkdir -p /run/broken/DEBIAN && cd /run/broken
printf 'Package: broken\nVersion: 1\nArchitecture: all\nMaintainer: M <m@example.org>\nDescription: D\n' >DEBIAN/control
printf '#!/bin/sh\nexit 1\n' >DEBIAN/postinst && chmod 755 DEBIAN/postinst
dpkg-deb -b . /run/broken.deb && dpkg -i /run/broken.deb || true
"""


def test_why_a_package_cannot_be_installed_is_reported(installation: Installation) -> None:
    host = installation.host
    installation.environment["PACKAGE"] = "cowsay"

    def assert_reported(why: str) -> None:
        run = installation.run("-y", check=False)
        last = run.output.strip().splitlines()[-1]
        assert run.status == 1
        assert f"{host.name}: Install it failed: {why}" in last and "run the same command again" in last, last

    host.run(
        "mkdir /run/sources && cp -a /etc/apt/sources.list* /run/sources/ && "
        "rm -rf /etc/apt/sources.list.d/* /etc/apt/apt.conf.d/*proxy*"
    )
    try:
        for line, why in SOURCES.items():
            host.run("rm -rf /var/lib/apt/lists/*; cat >/etc/apt/sources.list", stdin=f"{line}\n")
            assert_reported(why)
    finally:
        host.run("rm -rf /etc/apt/sources.list*; cp -a /run/sources/* /etc/apt/")
    host.run(BROKEN)
    assert_reported("dpkg could not complete a package (broken)")
    host.run("dpkg --purge broken; dpkg --purge cowsay")
    assert installation.run("-y").changed == ["Install it"]
