"""The testbed itself, tested on real hosts: one of each release."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from . import CommandFailed, Host, Testbed, TestbedError
from .bed import IDLE_GENERATORS, first_number
from .network import NUMBERS, Network
from .tools import run

# Options that work on every machine, but not in every container.
CONFINED = (
    "systemd-run --quiet --wait --collect --pipe -p ProtectSystem=strict -p PrivateUsers=yes -p PrivateTmp=yes"
    " -p ProtectProc=invisible -p ProcSubset=pid -p PrivateDevices=yes -p ProtectKernelTunables=yes"
    " -p ProtectControlGroups=yes -p MemoryDenyWriteExecute=yes -p SystemCallFilter=@system-service"
    " -p RestrictNamespaces=yes -p RestrictAddressFamilies=AF_INET -p CapabilityBoundingSet= -p DynamicUser=yes"
    " -p LoadCredential=word:/root/word sh -c 'cat $CREDENTIALS_DIRECTORY/word'"
)


@pytest.fixture(scope="module")
def bed() -> Testbed:
    return Testbed()


@pytest.fixture(scope="module")
def hosts(bed: Testbed) -> Iterator[tuple[Host, Host]]:
    with ThreadPoolExecutor() as pool:
        new = pool.submit(bed.up, "tb-new", release="trixie", names=["tb-exact.test", "*.tb-below.test"])
        old = pool.submit(bed.up, "tb-old", release="bookworm")
    pair = new.result(), old.result()
    yield pair
    for host in pair:
        host.down()


@pytest.fixture(scope="module")
def new(hosts: tuple[Host, Host]) -> Host:
    return hosts[0]


@pytest.fixture(scope="module")
def old(hosts: tuple[Host, Host]) -> Host:
    return hosts[1]


@pytest.fixture(params=[0, 1], ids=["trixie", "bookworm"])
def host(request: pytest.FixtureRequest, hosts: tuple[Host, Host]) -> Host:
    return hosts[request.param]


def test_what_hosts_need_is_made_once(bed: Testbed, hosts: tuple[Host, Host]) -> None:
    def roots() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (bed.directory / "roots").iterdir()}

    before = roots()
    bed.prepare()
    assert roots() == before
    assert {host.record.root for host in hosts} <= set(before)


def test_hosts_boot_without_a_failed_unit(host: Host) -> None:
    assert host.run("systemctl is-system-running", check=False).stdout.strip() == "running", host.run(
        "systemctl --failed"
    ).stdout
    assert f"VERSION_CODENAME={host.release}" in host.run("cat /etc/os-release").stdout
    assert host.run("hostname --fqdn").stdout.strip() == host.domain


def test_generators_that_are_off_would_make_nothing(host: Host) -> None:
    places = " ".join(f"/run/made/{place}" for place in ("normal", "early", "late"))
    each = f"program=/usr/lib/systemd/system-generators/systemd-$name-generator; [ ! -e $program ] || $program {places}"
    host.run(f"set -e; mkdir -p {places}; for name in {' '.join(IDLE_GENERATORS)}; do {each}; done")
    assert host.run("find /run/made -mindepth 2").stdout == ""


def test_hosts_are_different_machines(new: Host, old: Host) -> None:
    identities = [host.run("cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub").stdout for host in (new, old)]
    assert not set(identities[0].splitlines()) & set(identities[1].splitlines())


def test_packages_are_available_after_an_update_and_not_before(host: Host) -> None:
    assert host.run("apt-cache policy coturn").stdout == ""
    host.run("apt-get -q update", timeout=120)
    assert "Candidate: 4" in host.run("apt-cache policy coturn").stdout


def test_directories_of_a_host_are_a_layer_of_another(bed: Testbed, new: Host, tmp_path: Path) -> None:
    new.run("install -d -m 750 -o admin /opt/made && echo first >/opt/made/file && touch -d 2020-01-01 /opt/made/*")
    new.copy_directories(["/opt/made"], tmp_path)
    host = bed.up("tb-layered", layers=[tmp_path])
    try:
        about = "stat -c '%n %a %U %Y' /opt /opt/made /opt/made/file; cat /opt/made/file"
        assert host.run(about).stdout == new.run(about).stdout
        host.run("echo second >/opt/made/file; sync")
        host.kill()
        host.start()
        assert host.run("cat /opt/made/file").stdout == "second\n"
    finally:
        host.down()
    assert (tmp_path / "opt/made/file").read_text() == "first\n"


def test_hosts_find_one_another_by_name(bed: Testbed, new: Host, old: Host) -> None:
    for name in ("tb-new.test", "any.tb-new.test", "much.further.tb-new.test", "tb-exact.test", "a.tb-below.test"):
        assert old.run(f"getent ahostsv4 {name}").stdout.split()[0] == new.address == bed.resolve(name)
        assert old.run(f"getent ahostsv6 {name}").stdout.split()[0] == new.address6 == bed.resolve(name, ipv6=True)
    assert new.run("getent ahostsv4 any.tb-old.test").stdout.split()[0] == old.address
    for name in bed.controller_names:
        assert bed.resolve(name.replace("*", "any")) == bed.bridge_address
    for name in ("below.tb-exact.test", "tb-below.test", "tb-nobody.test"):
        assert old.run(f"getent hosts {name}", check=False).returncode == 2
        with pytest.raises(TestbedError, match="knows no address"):
            bed.resolve(name)


@pytest.mark.parametrize("version", [4, 6])
def test_hosts_reach_one_another(new: Host, old: Host, version: int) -> None:
    old.run(f"ping -{version} -c 1 -W 2 below.{new.domain}")
    new.run(f"ping -{version} -c 1 -W 2 {old.domain}")
    new.run(f"ping -{version} -c 1 -W 2 controller.test")


def test_the_next_host_of_an_address_is_found_at_once(bed: Testbed, new: Host) -> None:
    """New systems remember for a while at which Ethernet address the last one was."""
    one, other = _names_of_one_number()
    for name in (one, other):
        host = bed.up(name)
        try:
            for address in (host.address, host.address6):
                # The first packet of IPv6 may come before the host has the address.
                socket.create_connection((address, 22), timeout=5).close()
                new.run(f"timeout 5 bash -c ': </dev/tcp/{address}/22'")
        finally:
            host.down()


def _names_of_one_number() -> tuple[str, str]:
    seen: dict[int, str] = {}
    for name in (f"tb-number{each}" for each in range(len(NUMBERS) + 1)):
        if (number := first_number(name)) in seen:
            return seen[number], name
        seen[number] = name
    raise AssertionError


def test_a_name_belongs_to_one_host(bed: Testbed, new: Host) -> None:
    with pytest.raises(TestbedError, match=r"tb-exact\.test belongs to the running host tb-new"):
        bed.up("tb-other", names=["tb-exact.test"])
    assert bed.resolve("tb-exact.test") == new.address


def test_commands_run_over_ssh(host: Host) -> None:
    assert host.run("cat; id -un", stdin="Grüße\n").stdout == "Grüße\nroot\n"
    assert host.run("id -un; sudo id -un", user="admin").stdout == "admin\nroot\n"
    assert host.run("id -un; echo $((1 + 1))", user="nobody").stdout == "nobody\n2\n"
    assert host.run("exit 3", check=False).returncode == 3
    with pytest.raises(CommandFailed, match="exited 4: the reason") as failure:
        host.run("echo the reason >&2; exit 4")
    assert failure.value.result.returncode == 4
    with pytest.raises(TestbedError, match=r"took longer than 0\.2 s"):
        host.run("sleep 5", timeout=0.2)


def test_files_are_copied_byte_by_byte(host: Host, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096
    (tmp_path / "there").write_bytes(content)
    host.put(tmp_path / "there", "/root/a file", mode="640")
    assert host.run("stat -c '%a %U' '/root/a file'").stdout == "640 root\n"
    host.get("/root/a file", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    with pytest.raises(TestbedError, match="No such file"):
        host.get("/root/none", tmp_path / "none")


def test_services_can_be_confined(host: Host) -> None:
    host.run("echo secret > /root/word")
    assert host.run(CONFINED).stdout == "secret\n"
    ping = "systemd-run --quiet --wait --collect --pipe -p IPAddressDeny=any ping -c 1 -W 1 127.0.0.1"
    assert host.run(ping, check=False).returncode != 0
    assert host.run("systemd-run --wait --collect -p LimitNOFILE=infinity sh -c '[ $(ulimit -n) -ge 16384 ]'")


def test_a_power_failure_keeps_the_disk(host: Host) -> None:
    host.run("echo kept > /var/lib/mark; systemd-run --unit=tb-sleeper sleep 1000")
    machine = host.run("cat /etc/machine-id").stdout
    host.kill()
    assert not host.running
    with pytest.raises(TestbedError, match="is stopped"):
        host.run("true")
    assert "tb-sleeper" in host.journal(lines=1000)
    host.start()
    assert host.run("cat /var/lib/mark /etc/machine-id").stdout == f"kept\n{machine}"
    assert host.run("systemctl is-active tb-sleeper", check=False).stdout == "inactive\n"


def test_a_reboot_is_a_new_boot_of_the_same_host(host: Host) -> None:
    host.run("touch /etc/mark /run/mark")
    before = host.run("cat /proc/sys/kernel/random/boot_id").stdout
    host.reboot()
    assert host.run("cat /proc/sys/kernel/random/boot_id").stdout != before
    assert host.run("ls /etc/mark /run/mark", check=False).stdout == "/etc/mark\n"
    assert host.run("systemctl is-system-running", check=False).stdout == "running\n"
    assert host.uptime < 30


def test_a_stopped_host_starts_again_with_its_disk(bed: Testbed, new: Host) -> None:
    new.run("touch /root/mark")
    new.stop()
    with pytest.raises(TestbedError, match="tb-new is stopped"):
        bed.get("tb-new")
    # A clean shutdown: systemd has logged it.
    assert "Reached target" in new.journal(lines=20)
    assert bed.up("tb-new", wipe=False).run("ls /root/mark").stdout == "/root/mark\n"
    before = new.container.process
    assert bed.up("tb-new", wipe=False).container.process == before


def test_a_host_can_be_cut_off(new: Host, old: Host) -> None:
    new.cut_off()
    assert old.run(f"ping -c 1 -W 1 {new.domain}", check=False).returncode == 1
    assert new.running
    assert "tb-new" in new.inside(["hostname"])
    assert "ssh" in new.journal("ssh.service")
    new.reconnect()
    old.run(f"ping -c 1 -W 2 {new.domain}")


def test_a_host_can_rest(bed: Testbed) -> None:
    host = bed.up("tb-resting")
    host.run("systemd-run --unit=tb-counter sh -c 'while sleep 0.1; do date >> /run/counted; done'")
    host.run("until [ -s /run/counted ]; do sleep 0.1; done")
    counted = Path(f"/proc/{host.container.init}/root/run/counted")
    host.container.rest(True)
    before = counted.stat().st_size
    time.sleep(1)
    assert counted.stat().st_size == before
    host.container.rest(False)
    assert int(host.run("sleep 1; stat -c %s /run/counted").stdout) > before
    host.container.rest(True)
    host.down()
    assert not host.running


def test_remains_of_a_crash_are_removed(bed: Testbed) -> None:
    host = bed.up("tb-crash")
    host.run("touch /root/mark")
    number = host.container.process
    assert number
    os.kill(number, signal.SIGKILL)
    partial = bed.directory / "roots/trixie-0.1.partial"
    partial.mkdir()
    again = bed.up("tb-crash")
    assert again.run("ls /root/mark", check=False).returncode == 2
    assert not partial.exists()
    again.down()
    assert bed.bridge + "-tb-crash" not in subprocess.run(["ip", "link"], capture_output=True, text=True).stdout
    assert "tb-crash" not in Path("/proc/self/mounts").read_text()


def test_a_network_whose_checkout_was_deleted_is_made_again(tmp_path: Path) -> None:
    network = Network(f"mm-{os.getpid()}", tmp_path / "run", tmp_path / "network.json")
    try:
        network.ensure()
        network.state.unlink()
        network.ensure()
        assert network.exists() and network.address in run(["ip", "address", "show", "dev", network.bridge]).stdout
    finally:
        network.remove()


def test_the_command_line_works_beside_the_tests(new: Host) -> None:
    def testbed(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "tests.testbed", *words], capture_output=True, text=True)

    line = next(line for line in testbed("list").stdout.splitlines() if line.startswith("tb-new "))
    assert new.address in line
    assert "trixie" in line
    assert " up 0:0" in line
    assert testbed("shell", "tb-new", "echo", "two  words").stdout == "two  words\n"
    assert testbed("shell", "tb-new", "echo $((1 + 1)) >&2; exit 3").returncode == 3
    for words in (["shell", "tb-nobody"], ["down", "tb-nobody"], ["up", "Bad.Name"]):
        failed = testbed(*words)
        assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (1, "", 1)
