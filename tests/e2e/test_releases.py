"""Release files on booted hosts: downloaded from a release page over HTTPS, uploaded by SSH as an administrator with sudo."""

import gzip
import hashlib
import io
import os
import random
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployment import Deployment
from tests.standin.release_server import ReleaseServer
from tests.testbed import Host, Testbed

# The older tools of the two.
pytestmark = pytest.mark.once("debian12")

TASK = """
import os
from pathlib import Path

from pyinfra import config, host

from operations import releases
from operations.machine import Machine
from releases import Archive, Release

config.SUDO = True
version, page = os.environ["VERSION"], os.environ["PAGE"]
common = {"version": version, "arch": "amd64", "record": Path(os.environ["RECORD"])}
app = Release(
    name="app", url=f"{page}/app-{version}.tar.gz", checksums=f"{page}/sums", archive=Archive(("app",), ("web/index",), 1),
    file_setting="app_archive", sha256_setting="app_sha256", **common,
)
tool = Release(
    name="tool", url=f"{page}/tool-{version}", file_setting="tool_binary", sha256_setting="tool_sha256", **common
)
present = host.get_fact(Machine).releases
app_file, tool_file = releases.obtain(app, present), releases.obtain(tool, present)
releases.installed(name="Install the application", file=app_file)
releases.installed(name="Install the tool", file=tool_file)
"""
EVERYTHING = ["Install the application", "Install the tool"]
FILES = "find /opt /etc/cron.d -printf '%p %C@\\n' | sort"
SERVED = "/opt/app/current/web/index"


class Installation(Deployment):
    """Two releases on one host, each as an archive and as a single program."""

    def __init__(self, directory: Path, host: Host, page: ReleaseServer) -> None:
        super().__init__(
            directory,
            [host],
            {"server_name": host.domain, "tls": "internal"},
            # Any role: the settings and the inventory are checked before every run.
            {"caddy": [host.name]},
            user="admin",
        )
        self.host, self.page, self.task = host, page, directory / "task.py"
        self.record = directory / "trial.lock"
        self.task.write_text(TASK)
        self.environment |= {**page.environment, "XDG_CACHE_HOME": str(directory / "cache"), "PAGE": page.url}
        self.environment["RECORD"] = str(self.record)
        self.choose_version("v1")

    def command(self, *options: str) -> list[str]:
        return [str(self.task) if word == "deploy.py" else word for word in super().command(*options)]

    def choose_version(self, version: str) -> None:
        self.environment["VERSION"] = version

    def publish(self, version: str, *more: tarfile.TarInfo, size: int = 100_000) -> None:
        """Add a version to the release page."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for name, content, mode in (
                ("app", script(version), 0o4755),
                ("web/index", f"<p>{version}".encode(), 0o666),
                ("web/data", random.Random(version).randbytes(size), 0o600),  # noqa: S311
            ):
                member = tarfile.TarInfo(f"./app-{version}/{name}")
                member.size, member.mode, member.uid = len(content), mode, 1234
                tar.addfile(member, io.BytesIO(content))
            for member in more:
                tar.addfile(member)
        name, packed = f"app-{version}.tar.gz", gzip.compress(archive.getvalue(), 1)
        self.page.files |= {name: packed, f"tool-{version}": script(version)}
        sums = self.page.files.get("sums", b"")
        assert isinstance(sums, bytes)
        self.page.files["sums"] = sums + f"{hashlib.sha256(packed).hexdigest()}  {name}\n".encode()

    def read(self, command: str) -> str:
        return self.host.run(command).stdout.strip()

    def assert_in_use(self, version: str) -> None:
        assert (
            self.read(f"cat {SERVED}; /opt/app/current/app; /opt/tool/current/tool")
            == f"<p>{version}{version}\n{version}"
        )


def script(version: str) -> bytes:
    return f"#!/bin/sh\necho {version}\n".encode()


@pytest.fixture(scope="module", params=["trixie", "bookworm"], ids=["debian13", "debian12"])
def host(request: pytest.FixtureRequest, testbed: Testbed) -> Iterator[Host]:
    host = testbed.up(f"releases-{request.param}", release=request.param)
    # Output of .bashrc breaks SFTP, whose server is started through the user's shell.
    host.run("sed -i '1i echo Welcome, you are logged in' /home/admin/.bashrc")
    yield host
    host.down()


@pytest.fixture
def installation(host: Host, tmp_path: Path) -> Iterator[Installation]:
    host.run("rm -rf /opt/app /opt/tool")
    with ReleaseServer({}) as page:
        installation = Installation(tmp_path, host, page)
        installation.publish("v1")
        yield installation


def test_install_upgrade_and_downgrade(installation: Installation) -> None:
    assert installation.run("--dry").planned == EVERYTHING
    assert installation.read("ls /opt") == ""
    assert not installation.record.exists()
    assert installation.run("-y").changed == EVERYTHING
    installation.assert_in_use("v1")
    assert installation.read("cd /opt/app/current; stat -c '%a %U:%G %n' . app web web/*").splitlines() == [
        "755 root:root .",
        "755 root:root app",
        "755 root:root web",
        "644 root:root web/data",
        "644 root:root web/index",
    ]
    assert installation.read("find /home/admin /tmp -name '*app*' -o -name '*tool*' -o -name '*pyinfra*'") == ""
    assert installation.run("-y").changed == []

    installation.publish("v2")
    installation.choose_version("v2")
    assert installation.run("-y").changed == EVERYTHING
    installation.assert_in_use("v2")

    # The machine still has the version before: nothing is downloaded.
    installation.choose_version("v1")
    installation.page.fault = "dead"
    assert installation.run("-y").changed == EVERYTHING
    installation.assert_in_use("v1")
    assert installation.run("-y").changed == []


def test_a_bad_archive_is_refused_and_the_installed_version_stays(installation: Installation) -> None:
    installation.run("-y")
    evil = tarfile.TarInfo("./app-v2/../../../etc/cron.d/evil")
    installation.publish("v2", evil)
    installation.choose_version("v2")
    before = installation.read(FILES)
    run = installation.run("-y", check=False)
    assert run.status == 1
    assert "which would leave its directory: not unpacked: set app_archive = '/path/to/file'" in run.refusal
    assert len(run.refusal.splitlines()) == 1, run.output
    assert installation.read(FILES) == before

    # The page serves another file than the one in its list of checksums.
    installation.page.files["app-v2.tar.gz"] = b"\x1f\x8b"
    run = installation.run("-y", check=False)
    assert "but https://127.0.0.1" in run.refusal and "/sums says" in run.refusal
    installation.assert_in_use("v1")


def test_damaged_files_are_repaired(installation: Installation) -> None:
    installation.run("-y")
    installation.host.run(f"echo more >>{SERVED}; truncate -s 3 /opt/tool/current/tool; mkdir /opt/app/.arriving-x")
    installation.host.run("touch -d '2 days ago' /opt/app/.arriving-x")
    assert installation.run("-y").changed == EVERYTHING
    installation.assert_in_use("v1")
    # As after an upload that was interrupted before the directory was complete.
    installation.host.run("cd /opt/app; rm -rf current/web v1-*.sum")
    assert installation.run("-y").changed == EVERYTHING[:1]
    installation.assert_in_use("v1")
    assert "arriving" not in installation.read("ls -A /opt/app")
    assert installation.run("-y").changed == []


def test_an_interrupted_upload_is_completed_by_the_next_run(installation: Installation) -> None:
    installation.run("-y")
    installation.publish("v2", size=20_000_000)
    installation.choose_version("v2")
    process = installation.start("-y")
    # The receiving process is stopped in the middle, so that the run cannot finish before it is killed.
    stop_upload = "until [ -s /opt/app/.arriving-*/packed ]; do sleep 0.01; done 2>/dev/null; pkill -STOP base64"
    installation.host.run(stop_upload)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    installation.host.run("pkill -CONT base64")
    installation.assert_in_use("v1")
    installation.host.run("while [ -e /opt/app/.arriving-* ]; do sleep 0.01; done")
    assert installation.run("-y").changed == EVERYTHING
    installation.assert_in_use("v2")


def test_programs_installed_by_version_0_1_0_are_kept(installation: Installation) -> None:
    """With the program's directory and the record of checksums as 0.1.0 wrote them."""
    sha256 = hashlib.sha256(script("v1")).hexdigest()
    directory = f"/opt/tool/v1-{sha256[:12]}"
    installation.host.run(
        f"install -d -m 755 {directory}; cat >{directory}/tool; chmod 755 {directory}/tool; "
        f"cd /opt/tool; ln -sfn v1-{sha256[:12]} .current.new; mv -fT .current.new current",
        stdin=script("v1").decode(),
    )
    installation.record.write_text(
        "# sha256 of each program from a release page, as it was when it was first downloaded. Commit this file: every later\n"
        f'# download must match it.\n\n["tool"."v1"]\n"amd64" = "{sha256}"\n'
    )
    before = installation.read("cd /opt/tool; stat -c '%n %i %Z' . * */*")
    assert installation.run("-y").changed == EVERYTHING[:1]
    assert installation.read("cd /opt/tool; stat -c '%n %i %Z' . * */*") == before
    assert f'["tool"."v1"]\n"amd64" = "{sha256}"\n' in installation.record.read_text()
