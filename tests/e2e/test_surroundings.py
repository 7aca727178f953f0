"""The machine's language, its time zone and what its users have in their profiles make no difference."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from roles import ROLES
from tests.conftest import complete, own
from tests.deployment import ROOT, Deployment
from tests.e2e.test_refusals import assert_refused
from tests.standin.release_server import ReleaseServer
from tests.testbed import Host, Testbed

# A decimal comma, translated words, another day than in UTC for half of the time.
LANGUAGE = """
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq && apt-get install -qq -y --no-install-recommends locales >/dev/null
sed -i 's/^# *de_DE.UTF-8/de_DE.UTF-8/' /etc/locale.gen && locale-gen >/dev/null
printf 'LANG=de_DE.UTF-8\\nLC_ALL=de_DE.UTF-8\\nLANGUAGE=de\\n' >/etc/default/locale
ln -sfn /usr/share/zoneinfo/Pacific/Kiritimati /etc/localtime
"""
# bash reads this even for a command that comes over SSH.
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
class Odd:
    host: Host
    deployment: Deployment

    def profile(self, text: str) -> None:
        """What the user's shell reads first; in front of whatever else it reads."""
        home = "/root" if self.deployment.user == "root" else f"/home/{self.deployment.user}"
        self.host.inside(["sh", "-c", f"cat >{home}/.bashrc <<'END'\n{text}\nEND"])


@pytest.fixture(scope="module", params=["trixie", "bookworm"], ids=["debian13", "debian12"])
def odd(
    request: pytest.FixtureRequest,
    testbed: Testbed,
    release_page: ReleaseServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Odd]:
    """On Debian 12 it is a user with sudo who has the profile."""
    host = testbed.up(own(f"odd{request.param[0]}"), release=request.param)
    host.run(LANGUAGE, timeout=300)
    # The language is in force for systemd's services, too.
    host.reboot()
    user = "root" if request.param == "trixie" else "admin"
    deployment = complete(testbed, host, tmp_path_factory.mktemp("odd"), release_page, user=user)
    deployment.assign({role: [host.name] for role in ROLES if role != "sliding_sync"})
    yield Odd(host, deployment)
    host.down()


def test_a_deployment_does_not_mind(odd: Odd) -> None:
    odd.profile(PROFILE)
    odd.deployment.run("-y")
    again = odd.deployment.run("-y")
    assert again.changed == []
    assert again.results["results"]["totals"]["no_change"] > 10


def test_nor_does_the_verification(odd: Odd) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "tests/host",
            "--inventory",
            odd.deployment.inventory,
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "Nothing is wrong" in done.stdout, done.stdout + done.stderr


def test_a_profile_that_ends_the_shell_is_named(odd: Odd) -> None:
    odd.profile("exit 0")
    assert_refused(odd.deployment.run("-y", check=False), "gives no answer", ".bashrc")
    odd.profile("exec cat /etc/motd")
    assert_refused(odd.deployment.run("-y", check=False), "gives no answer", ".bashrc")
    odd.profile("")
    assert odd.deployment.run("-y").changed == []


def test_another_shell_is_another_profile(odd: Odd) -> None:
    """A shell without bash's quoting is refused, others are as good."""
    user = odd.deployment.user
    odd.host.run(
        "export DEBIAN_FRONTEND=noninteractive; apt-get install -qq -y --no-install-recommends fish zsh tcsh >/dev/null"
    )
    try:
        for shell in ("fish", "zsh", "dash"):
            odd.host.inside(["usermod", "-s", f"/usr/bin/{shell}", user])
            assert odd.deployment.run("-y").changed == [], shell
        odd.host.inside(["usermod", "-s", "/usr/bin/tcsh", user])
        assert_refused(odd.deployment.run("-y", check=False), "gives no answer")
    finally:
        odd.host.inside(["usermod", "-s", "/bin/bash", user])
