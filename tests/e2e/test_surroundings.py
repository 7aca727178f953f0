"""Locale, time zone, login shell and shell profile of a machine do not affect the deployment."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.built import built
from tests.conftest import complete, own
from tests.deployment import EVERYTHING, ROOT, Deployment
from tests.e2e.test_refusals import assert_refused
from tests.standin.proxy import PASSWORD, Proxy
from tests.standin.release_server import ReleaseServer
from tests.testbed import Host, Testbed

# A decimal comma, translated messages, and half of the time another date than in UTC.
LOCALE = """
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq && apt-get install -qq -y --no-install-recommends locales >/dev/null
sed -i 's/^# *de_DE.UTF-8/de_DE.UTF-8/' /etc/locale.gen && locale-gen >/dev/null
printf 'LANG=de_DE.UTF-8\\nLC_ALL=de_DE.UTF-8\\nLANGUAGE=de\\n' >/etc/default/locale
ln -sfn /usr/share/zoneinfo/Pacific/Kiritimati /etc/localtime
"""
# For .bashrc, which bash reads also for commands over SSH.
PROFILE = """
echo Welcome; printf 'no end of line'; echo 'to this machine' >&2
umask 077; set -o noclobber; cd /tmp
alias stat='stat -c gotcha'
stat() { echo gotcha; }
export -f stat
export PATH=/usr/games:/usr/bin:/bin LC_NUMERIC=de_DE.UTF-8 TZ=Asia/Kathmandu
export POSIXLY_CORRECT=1 QUOTING_STYLE=c BLOCK_SIZE=1 CDPATH=/etc
export SYSTEMD_COLORS=1 SYSTEMD_PAGER=cat SYSTEMD_LOG_LEVEL=debug GREP_COLORS=always TMPDIR=/nowhere PYTHONPATH=/nowhere
export PGHOST=nowhere PGPORT=1 PGDATABASE=nothing PGOPTIONS=-cno_such=1 PGUSER=nobody OPENSSL_CONF=/nowhere CURL_HOME=/nowhere
"""


@dataclass(frozen=True)
class Machine:
    host: Host
    deployment: Deployment

    def write_bashrc(self, text: str) -> None:
        """Write the user's .bashrc."""
        home = "/root" if self.deployment.user == "root" else f"/home/{self.deployment.user}"
        self.host.inside(["sh", "-c", f"cat >{home}/.bashrc <<'END'\n{text}\nEND"])


# Nothing but this address and port is reached.
ONLY_PROXY = """
table inet only_proxy {{
    chain output {{
        type filter hook output priority 0
        oif lo accept
        ct state established,related accept
        ip daddr {address} tcp dport {port} accept
        reject
    }}
}}
"""
# Prints the proxy's password if an ordinary user finds it. The brackets keep it from finding its own command line.
SPY = """
while sleep 0.01; do
    cat /proc/[0-9]*/cmdline; systemctl show matrix-metal-build-sydent.service
done 2>/dev/null | grep -ao '{pattern}' >/tmp/found
"""


@pytest.fixture(scope="module", params=["trixie", "bookworm"], ids=["debian13", "debian12"])
def machine(
    request: pytest.FixtureRequest,
    testbed: Testbed,
    release_page: ReleaseServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Machine]:
    """Deployed as root on Debian 13, and as a user with sudo on Debian 12."""
    # On Debian 12 it builds the virtualenvs itself, with that locale.
    layers = built(testbed, request.param, "libraries", "programs") if request.param == "trixie" else []
    host = testbed.up(own(f"odd{request.param[0]}"), release=request.param, layers=layers)
    host.run(LOCALE, timeout=300)
    # So that systemd's services have the locale as well.
    host.reboot()
    user = "root" if request.param == "trixie" else "admin"
    deployment = complete(testbed, host, tmp_path_factory.mktemp("odd"), release_page, user=user)
    # What these run is the same on both releases.
    without = ("sliding_sync",) if request.param == "trixie" else ("sliding_sync", "admin", "element", "monitoring")
    deployment.assign({role: [host.name] for role in EVERYTHING if role not in without})
    yield Machine(host, deployment)
    host.down()


def test_a_deployment_works_with_another_locale_and_a_noisy_profile(machine: Machine) -> None:
    machine.write_bashrc(PROFILE)
    machine.deployment.run("-y")
    again = machine.deployment.run("-y")
    assert again.changed == []
    assert again.results["results"]["totals"]["no_change"] > 10


def test_the_verification_works_with_another_locale_and_a_noisy_profile(machine: Machine) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "tests/host",
            "--inventory",
            machine.deployment.inventory,
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "Nothing is wrong" in done.stdout, done.stdout + done.stderr


def test_a_profile_that_ends_the_shell_is_reported(machine: Machine) -> None:
    machine.write_bashrc("exit 0")
    assert_refused(machine.deployment.run("-y", check=False), "gives no answer", ".bashrc")
    machine.write_bashrc("exec cat /etc/motd")
    assert_refused(machine.deployment.run("-y", check=False), "gives no answer", ".bashrc")
    machine.write_bashrc("")
    assert machine.deployment.run("-y").changed == []


def test_other_login_shells_work_or_are_refused(machine: Machine) -> None:
    """fish, zsh and dash work; tcsh quotes in another way and is refused."""
    user = machine.deployment.user
    machine.host.run(
        "export DEBIAN_FRONTEND=noninteractive; apt-get install -qq -y --no-install-recommends fish zsh tcsh >/dev/null"
    )
    try:
        for shell in ("fish", "zsh", "dash"):
            machine.host.inside(["usermod", "-s", f"/usr/bin/{shell}", user])
            assert machine.deployment.run("-y").changed == [], shell
        machine.host.inside(["usermod", "-s", "/usr/bin/tcsh", user])
        assert_refused(machine.deployment.run("-y", check=False), "gives no answer")
    finally:
        machine.host.inside(["usermod", "-s", "/bin/bash", user])


def test_a_machine_that_only_a_proxy_connects_is_deployed(machine: Machine, testbed: Testbed) -> None:
    """A package, uv and a virtualenv are missing; sudo does not pass the proxy on. Nobody sees the proxy's password."""
    host = machine.host
    if machine.deployment.user == "root":
        pytest.skip("the same without sudo, and it takes half a minute")
    host.run("systemctl stop sydent; rm -r /opt/sydent /opt/uv/*; apt-get purge -qq -y python3-venv; apt-get clean")
    with Proxy(testbed.network.address) as proxy:
        host.run(f"echo 'http_proxy=\"{proxy.url}\"' >>/etc/environment")
        host.run("nft -f -", stdin=ONLY_PROXY.format(address=testbed.network.address, port=proxy.port))
        spy = SPY.format(pattern=f"[{PASSWORD[0]}]{PASSWORD[1:]}")
        host.run("cat >/tmp/spy; systemd-run --quiet --unit=spy --uid=nobody sh /tmp/spy", stdin=spy)
        try:
            changed = machine.deployment.run("-y").changed
        finally:
            host.run("systemctl stop spy; nft delete table inet only_proxy; sed -i /http_proxy/d /etc/environment")
    assert {"Install Python and the certificate authorities", "Install Sydent", "Run Sydent"} <= set(changed)
    assert {"pypi.org", "files.pythonhosted.org"} <= proxy.asked
    assert host.run("cat /tmp/found").stdout == ""
