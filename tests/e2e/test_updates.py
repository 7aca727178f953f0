"""Security updates arrive: they are installed, what they replace is restarted, and deploys and updates wait for each other."""

import asyncio
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from roles import UPDATES_RESTARTS
from tests.built import built
from tests.conftest import complete, own
from tests.deployment import Deployment
from tests.e2e.client import Outside
from tests.e2e.people import UserData, continue_as_before, use_everything
from tests.standin.release_server import ReleaseServer
from tests.testbed import Host, Testbed

pytestmark = [pytest.mark.role("updates"), pytest.mark.once("debian13")]

INSTALL, LISTS = "apt-daily-upgrade.service", "apt-daily.service"
# What gets updates, and its unit. On Debian 12 no homeserver: what differs there is systemd, apt and needrestart.
UPDATED = {
    "trixie": {"postgresql-17": "postgresql@17-main", "caddy": "caddy"},
    "bookworm": {"coturn": "coturn", "caddy": "caddy"},
}
ROLES = {"trixie": ("postgres", "synapse", "caddy", "sydent", "updates"), "bookworm": ("coturn", "caddy", "updates")}
# An archive that says of itself what Debian's archive of security updates does, on the machine itself, which has its key.
ARCHIVE = """
mkdir -p /srv/security /etc/apt/keyrings /var/tmp/packages
apt-get install -qq -y --no-install-recommends gpg gpg-agent python3 >/dev/null 2>&1
cd /var/tmp/packages && apt-get download -qq PACKAGES
export GNUPGHOME=/root/trial && mkdir -m 700 /root/trial
gpg --batch --quiet --passphrase '' --quick-gen-key trial@example.org ed25519 sign
gpg --batch --export >/etc/apt/keyrings/trial.gpg
rm -rf /etc/apt/sources.list.d/*
echo 'deb [signed-by=/etc/apt/keyrings/trial.gpg] http://127.0.0.1:8100 ./' >/etc/apt/sources.list
systemd-run --quiet --unit=archive python3 -m http.server --bind 127.0.0.1 --directory /srv/security 8100
"""
# Puts newer versions of the packages into it. Their new configuration file is of no use: a deploy has written another. $script:
# what runs before a package is unpacked.
OFFER = """
cd /srv/security && rm -f *.deb
for name in PACKAGES; do
  rm -rf /var/tmp/new && dpkg-deb -R /var/tmp/packages/"$name"_*.deb /var/tmp/new
  sed -i 's/^Version: .*/&+deb99uNUMBER/' /var/tmp/new/DEBIAN/control
  [ -e /var/tmp/new/DEBIAN/preinst ] || printf '#!/bin/sh\\nset -e\\n' >/var/tmp/new/DEBIAN/preinst
  sed -i '1a SCRIPT' /var/tmp/new/DEBIAN/preinst && chmod 755 /var/tmp/new/DEBIAN/preinst
  for file in /var/tmp/new/etc/caddy/Caddyfile /var/tmp/new/etc/turnserver.conf; do
    [ ! -e "$file" ] || echo '# new' >>"$file"
  done
  dpkg-deb -Zgzip -z1 -b /var/tmp/new "$name.deb" >/dev/null
done
for deb in *.deb; do
  dpkg-deb -f "$deb"
  printf 'Filename: ./%s\\nSize: %s\\nSHA256: %s\\n\\n' "$deb" "$(stat -c %s "$deb")" "$(sha256sum <"$deb" | cut -d ' ' -f 1)"
done >Packages
cat >Release <<END
Origin: Debian
Label: Debian-Security
Suite: stable-security
Codename: $(. /etc/os-release; echo "$VERSION_CODENAME")-security
Date: $(date -Ru | sed 's/+0000/UTC/')
Architectures: $(dpkg --print-architecture) all
Components: main
SHA256:
 $(sha256sum <Packages | cut -d ' ' -f 1) $(stat -c %s Packages) Packages
END
GNUPGHOME=/root/trial gpg --batch --quiet --yes --clearsign -o InRelease Release
"""


@dataclass
class Machine:
    """A machine whose only source of packages is an archive of ours. users: people with data, if it has a homeserver."""

    host: Host
    deployment: Deployment
    outside: Outside
    users: UserData | None
    offered: int = field(default=0)

    @property
    def updated(self) -> dict[str, str]:
        return UPDATED[self.host.release]

    def offer(self, script: str = "true", packages: str = "") -> str:
        """Offer newer versions, and have the lists read. Returns what their versions end in."""
        self.offered += 1
        text = OFFER.replace("PACKAGES", packages or " ".join(self.updated))
        self.host.run(text.replace("NUMBER", str(self.offered)).replace("SCRIPT", script), timeout=300)
        self.host.run(f"systemctl start {LISTS}", timeout=120)
        return f"+deb99u{self.offered}"

    def install(self) -> None:
        """As the timer does, until what was replaced is restarted."""
        self.host.run(f"systemctl start {INSTALL}", timeout=300)
        self.finished()

    def finished(self) -> None:
        self.host.run(
            f"while systemctl is-active {INSTALL} {UPDATES_RESTARTS} | grep -qx activating; do sleep 0.2; done",
            timeout=300,
        )

    def versions(self) -> list[str]:
        return self.host.run(f"dpkg-query -W -f '${{Version}}\\n' {' '.join(self.updated)}").stdout.split()

    def invocations(self, *more: str) -> list[str]:
        """They differ after a restart."""
        units = " ".join((*self.updated.values(), *more))
        return self.host.run(f"systemctl show -p InvocationID --value {units}").stdout.split()

    def last_log(self) -> str:
        return self.host.run(
            f"tail -n 40 /var/log/unattended-upgrades/unattended-upgrades.log; journalctl -n 20 -u {INSTALL}"
        ).stdout


@pytest.fixture(scope="module", params=["trixie", "bookworm"], ids=["debian13", "debian12"])
def machine(
    request: pytest.FixtureRequest,
    testbed: Testbed,
    release_page: ReleaseServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Machine]:
    release, directory = request.param, tmp_path_factory.mktemp("updates")
    with_homeserver = "synapse" in ROLES[release]
    host = testbed.up(
        own(f"fresh{release[0]}"), release=release, layers=built(testbed, release) if with_homeserver else []
    )
    deployment = complete(testbed, host, directory, release_page)
    deployment.assign({role: [host.name] for role in ROLES[release]})
    # By their timers, they come at another time than this test.
    deployment.choose(**deployment.settings, updates_time=f"{datetime.now(UTC) + timedelta(hours=12):%H:%M}")
    deployment.run("-y")
    outside = Outside(host, directory)
    users = asyncio.run(use_everything(outside, directory)) if with_homeserver else None
    host.run(ARCHIVE.replace("PACKAGES", " ".join(UPDATED[release])), timeout=300)
    yield Machine(host, deployment, outside, users)
    host.down()


def test_security_updates_are_installed_and_a_deploy_waits_for_them(machine: Machine) -> None:
    host, more = machine.host, ["matrix-synapse"] if machine.users else []
    before = machine.invocations(*more)
    caddyfile = host.run("cat /etc/caddy/Caddyfile").stdout
    ending = machine.offer("sleep 6")
    # As an update of OpenSSL does, which Synapse uses though its virtualenv has no package of Debian's.
    host.run("file=$(readlink -f /usr/lib/*/libssl.so.3) && cp -a $file $file.new && mv $file.new $file")
    host.run(f"systemctl start --no-block {INSTALL}")
    run = machine.deployment.run("-y")
    assert f"--> {host.name} is installing security updates (apt-daily-upgrade.service): waiting" in run.output
    assert all(version.endswith(ending) for version in machine.versions()), machine.last_log()
    assert run.changed == []
    machine.finished()

    after = machine.invocations(*more)
    assert not set(before) & set(after), (before, after)
    assert host.run("cat /etc/caddy/Caddyfile").stdout == caddyfile
    if machine.users:
        continue_as_before(machine.outside, machine.users)
    status, report = machine.deployment.verify()
    assert status == 0, report
    assert machine.deployment.run("-y").changed == []
    done = machine.deployment.manage("status")
    assert done.returncode == 0 and re.search(r"\n  updates +security updates .* ago\n", done.stdout), done.stdout


def test_updates_wait_for_a_deploy(machine: Machine) -> None:
    host = machine.host
    ending = machine.offer(packages="caddy")
    # As a deploy holds its lock.
    host.run("systemd-run --quiet --unit=deploying flock /run/matrix-metal/run sleep infinity")
    with ThreadPoolExecutor() as pool:
        installing = pool.submit(machine.install)
        host.run(f"until systemctl show -p SubState --value {INSTALL} | grep -qx start-pre; do sleep 0.1; done")
        time.sleep(3)
        assert not any(version.endswith(ending) for version in machine.versions())
        host.run("systemctl stop deploying")
        installing.result()
    # The restarts wait as well.
    host.run("systemd-run --quiet --unit=deploying flock /run/matrix-metal/run sleep infinity")
    host.run(f"systemctl start --no-block {UPDATES_RESTARTS}; sleep 2")
    assert host.run(f"systemctl show -p SubState --value {UPDATES_RESTARTS}").stdout == "start-pre\n"
    host.run("systemctl stop deploying")
    machine.finished()
    assert any(version.endswith(ending) for version in machine.versions()), machine.last_log()


def test_a_deploy_does_not_begin_beside_updates_that_began_while_it_asked(machine: Machine) -> None:
    """Its question is answered once they are at work."""
    host = machine.host
    host.run("echo >>/etc/caddy/Caddyfile")
    ending = machine.offer("sleep 8", packages="caddy")
    run = machine.deployment.start(stdin=subprocess.PIPE)
    try:
        assert run.stdout
        for line in run.stdout:
            if "by the input operations" in line:
                break
        host.run(f"systemctl start --no-block {INSTALL}")
        host.run(f"until pgrep -x dpkg; do systemctl is-active {INSTALL} | grep -qx activating; sleep 0.1; done")
        shown, _ = run.communicate("\n", timeout=60)
    finally:
        run.kill()
    assert run.returncode == 1 and "it has begun to install security updates" in shown, shown
    # Nothing was touched.
    assert host.run("tail -c 2 /etc/caddy/Caddyfile").stdout == "\n\n"
    machine.finished()
    assert any(version.endswith(ending) for version in machine.versions()), machine.last_log()
    machine.deployment.run("-y")


def test_what_is_wrong_with_updates_is_said(machine: Machine) -> None:
    host = machine.host
    host.run("touch /run/reboot-required && echo linux-image-amd64 >/run/reboot-required.pkgs")
    machine.offer("exit 1", packages="caddy")
    machine.install()
    said = [
        "the last installation of security updates failed: `journalctl -u apt-daily-upgrade`",
        "a reboot is due for linux-image-amd64: reboot the machine when it suits",
    ]
    shown = machine.deployment.manage("status")
    status, report = machine.deployment.verify("tests/host/test_updates.py")
    assert (shown.returncode, status) == (1, 1)
    for words in said:
        assert words in " ".join(shown.stdout.split()) and words in " ".join(report.split()), report

    host.run("rm /run/reboot-required*")
    machine.offer(packages="caddy")
    machine.install()
    assert machine.deployment.manage("status").returncode == 0


def test_an_update_that_is_left_out_is_named(machine: Machine) -> None:
    machine.host.run("apt-mark hold caddy")
    machine.offer(packages="caddy")
    machine.install()
    done = machine.deployment.manage("status")
    assert done.returncode == 1 and "updates of caddy are not installed by themselves" in done.stdout, done.stdout
    machine.host.run("apt-mark unhold caddy")
    machine.install()
    assert machine.deployment.manage("status").returncode == 0
