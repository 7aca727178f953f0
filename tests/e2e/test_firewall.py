"""The firewall: exactly the ports of the deployment answer, and the administrator is never locked out."""

import re
import resource
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import pytest

from operations import firewall
from operations.filters import FIREWALL
from operations.machine import Machine, MachineState
from settings.firewall import OWN_RULES
from tests.built import built
from tests.conftest import own
from tests.deployment import Deployment
from tests.e2e import scan
from tests.protocols.turn import relay
from tests.testbed import Host, Testbed, TestbedError

pytestmark = pytest.mark.role("firewall")

OPEN = {80, 443, 3478, 5349}
# ICMP's echo request, with its checksum.
ECHO = bytes.fromhex("0800f7fd00010001")
# What listens besides: a program of the administrator's.
FOREIGN = 9100
PROGRAM = """
import socket, threading
def echo(link):
    while True:
        link.sendto(b"there", link.recvfrom(100)[1])
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.bind(("::", PORT))
threading.Thread(target=echo, args=(udp,)).start()
tcp = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    tcp.accept()[0].sendall(b"there")
""".replace("PORT", str(FOREIGN))


@dataclass(frozen=True)
class Guarded:
    """A machine with the relay behind a firewall, on which a program listens that is not the deployment's."""

    host: Host
    deployment: Deployment

    def rule(self, text: str) -> None:
        """The administrator's only rule."""
        self.host.run(f"cat >{OWN_RULES}/mine.nft", stdin=f"{text}\n")

    def console(self, *lines: str) -> str:
        """What the lines of shell print on the machine's console. They may call the functions that try new rules."""
        return self.host.inside(["sh", "-c", "\n".join(["set -eu", firewall.functions(OWN_RULES), *lines])])

    def confirm(self, rule: str = "") -> None:
        """Have the administrator's only rule confirmed, from wherever he is."""
        self.rule(rule)
        for step in ("try_new", "confirm", "confirmed"):
            self.console(step)

    def state(self, connection: str = "") -> MachineState:
        """What a run finds that comes by such a connection of SSH, or by none."""
        command = f"export SSH_CONNECTION='{connection}'\n{Machine().command()}"
        return Machine().process(self.host.inside(["sh", "-c", command]).splitlines())

    @property
    def addresses(self) -> tuple[str, str]:
        return self.host.address, self.host.address6


@pytest.fixture(scope="module", params=["trixie", "bookworm"], ids=["debian13", "debian12"])
def guarded(
    request: pytest.FixtureRequest, testbed: Testbed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    layers = built(testbed, request.param)
    host = testbed.up(own(f"wall{request.param[0]}"), release=request.param, layers=layers)
    host.run(
        "apt-get update -qq && apt-get install -qq -y --no-install-recommends python3 nftables dropbear-bin >/dev/null",
        timeout=300,
    )
    host.run(f"systemd-run --quiet --unit=foreign python3 -c '{PROGRAM}'")
    # As fail2ban's.
    host.run("nft add table inet other; nft add chain inet other input '{ type filter hook input priority -1; }'")
    settings = {
        "server_name": host.domain,
        "tls": "internal",
        "private_networks": [str(testbed.network.subnet), str(testbed.network.subnet6)],
    }
    roles = {role: [host.name] for role in ("caddy", "coturn", "firewall")}
    deployment = Deployment(tmp_path_factory.mktemp("wall"), [host], settings, roles)
    first = deployment.run("-y")
    assert f"keeps others from {FOREIGN}/tcp (python3)" in first.output
    assert f"put a rule into {OWN_RULES}" in first.output
    yield Guarded(host, deployment)
    host.down()


# What takes its minute, and is nftables' and systemd's alone.
once = pytest.mark.parametrize("guarded", ["trixie"], ids=["debian13"], indirect=True)
# What is ours. That rules are tried, confirmed and in force is nftables' and systemd's, and tested on both.
ours = pytest.mark.once("debian13")


def answers(address: str, port: int, seconds: float = 1.0) -> bool:
    with suppress(OSError), socket.create_connection((address, port), timeout=seconds):
        return True
    return False


def answering(*addresses: str) -> list[set[int]]:
    """All TCP ports of each address that answer, be it by a refusal, but SSH's: its server penalises who connects without
    logging in.
    """
    # A scan has 800 connections at once.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with ThreadPoolExecutor() as pool:
        return [set().union(*found) for found in pool.map(lambda address: scan.tcp(address, without={22}), addresses)]


def test_a_second_run_changes_nothing(guarded: Guarded) -> None:
    run = guarded.deployment.run("-y")
    assert run.changed == [] and "keeps others from" not in run.output


@ours
def test_exactly_the_ports_of_the_deployment_answer(guarded: Guarded) -> None:
    assert answering(*guarded.addresses) == [OPEN, OPEN]
    for address in guarded.addresses:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as link:
            link.settimeout(1)
            link.sendto(b"anybody?", (address, FOREIGN))
            with pytest.raises(TimeoutError):
                link.recv(100)
        with relay(address, "udp") as client:
            assert client.bind()[0] in (guarded.host.bed.bridge_address, guarded.host.bed.bridge_address6)
        # The machine itself reaches everything.
        guarded.host.run(f"python3 -c 'import socket; socket.create_connection((\"{address}\", {FOREIGN}))'")
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as link:
        link.settimeout(5)
        link.connect((guarded.host.address, 0))
        link.send(ECHO)
        assert link.recv(100)[20:22] == b"\0\0", "it does not answer a ping"
    assert "other" in guarded.host.run("nft list tables").stdout


# ICMPv6 -> whether it has to pass (RFC 4890, 4.4): "packet too big", "echo request"; "redirect", "node information".
TYPES = {2: True, 128: True, 137: False, 139: False}


@ours
def test_icmpv6_passes_as_far_as_it_has_to(guarded: Guarded) -> None:
    host = guarded.host
    for kind, passes in TYPES.items():
        host.run(
            f"nft add table inet seen; nft add chain inet seen input '{{ type filter hook input priority 10; }}'; "
            f"nft flush chain inet seen input; nft add rule inet seen input icmpv6 type {kind} counter"
        )
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as link:
            # The kernel adds the checksum.
            link.sendto(bytes([kind, 0, 0, 0, 0, 1, 0, 1]) + bytes(40), (host.address6, 0))
        end = time.monotonic() + (5 if passes else 1)
        while "packets 0 " in (seen := host.run("nft list chain inet seen input").stdout) and time.monotonic() < end:
            time.sleep(0.1)
        assert ("packets 0 " not in seen) == passes, (kind, seen)
    host.run("nft delete table inet seen")


def test_the_administrators_own_rules_are_loaded_with_ours(guarded: Guarded) -> None:
    guarded.rule(f"tcp dport {FOREIGN} accept")
    assert guarded.deployment.run("-y").changed == ["Load the firewall"]
    assert all(answers(address, FOREIGN) for address in guarded.addresses)
    assert guarded.deployment.run("-y").changed == []

    # One that nft does not understand is named, and changes nothing.
    guarded.rule(f"tcp dprt {FOREIGN} accept")
    run = guarded.deployment.run("-y", check=False)
    assert run.status == 1
    assert f"the rules of the firewall are refused, and those before stay: {OWN_RULES}/mine.nft:1:" in run.refusal
    assert all(answers(address, FOREIGN) for address in guarded.addresses)


@once
def test_rules_that_keep_the_administrator_out_are_taken_back(guarded: Guarded) -> None:
    guarded.rule("tcp dport 22 drop")
    run = guarded.deployment.run("-y", check=False)
    assert run.status == 1 and "the new rules of the firewall were taken back, because no new" in run.refusal
    assert answers(guarded.host.address, 22) and answers(guarded.host.address, FOREIGN)


@once
def test_they_are_taken_back_though_the_administrator_is_gone(guarded: Guarded) -> None:
    """The run is killed as soon as it has locked itself out."""
    guarded.rule("tcp dport 22 drop")
    running = guarded.deployment.start("-y")
    try:
        end = time.monotonic() + 120
        while "dport 22 drop" not in guarded.host.inside(["nft", "list", "table", "inet", FIREWALL.table]):
            assert time.monotonic() < end, "the new rules were not loaded"
            time.sleep(0.2)
        running.send_signal(signal.SIGKILL)
        begin = time.monotonic()
        assert not answers(guarded.host.address, 22)
        while not answers(guarded.host.address, 22):
            assert time.monotonic() - begin < 75, "the new rules are still there"
    finally:
        running.kill()
        running.communicate()
    guarded.rule("")
    assert "Load the firewall" in guarded.deployment.run("-y").changed
    assert not answers(guarded.host.address, FOREIGN)


@once
def test_confirmed_rules_are_tried_if_they_are_not_in_force(guarded: Guarded) -> None:
    """They were confirmed from another address than that of today."""
    guarded.confirm("tcp dport 22 ip saddr != 203.0.113.9 drop")
    guarded.host.inside(["nft", "flush", "ruleset"])
    run = guarded.deployment.run("-y", check=False)
    assert answers(guarded.host.address, 22)
    assert run.status == 1 and "the new rules of the firewall were taken back, because no new" in run.refusal
    guarded.confirm()


@once
@pytest.mark.parametrize("program", ["nft", "systemctl"])
def test_what_is_taken_back_meanwhile_is_not_confirmed(guarded: Guarded, program: str) -> None:
    """The minute is over while the new rules are being confirmed, when a program is called."""
    guarded.rule(f"tcp dport {FOREIGN} accept")
    guarded.console("try_new")
    over = f"case $1 in is-active) ;; *) command systemctl start {firewall.UNDO}.service 2>/dev/null || true ;; esac"
    with suppress(TestbedError):
        guarded.console(f'{program}() {{ {over}; command {program} "$@"; }}', "confirm")
    confirmed = True
    try:
        guarded.console("confirmed")
    except TestbedError:
        confirmed = False
    assert answers(guarded.host.address, FOREIGN) == confirmed
    assert (f"dport {FOREIGN} accept" in guarded.host.inside(["cat", FIREWALL.path])) == confirmed
    guarded.confirm()


@once
def test_rules_that_cannot_be_kept_are_taken_back(guarded: Guarded) -> None:
    """The disk is full."""
    kept = FIREWALL.path.rpartition("/")[0]
    small = f"cp -a {kept} /run/kept && mount -t tmpfs -o size=4M tmpfs {kept} && cp -a /run/kept/. {kept}"
    guarded.host.run(small)
    try:
        guarded.rule(f"tcp dport {FOREIGN} accept")
        guarded.host.run(f"! dd if=/dev/zero of={kept}/large 2>/dev/null")
        run = guarded.deployment.run("-y", check=False)
    finally:
        guarded.host.run(f"umount {kept}; rm -r /run/kept")
    assert run.status == 1 and "the new rules of the firewall were taken back, because" in run.refusal
    assert not answers(guarded.host.address, FOREIGN)
    assert f"could not be written to {FIREWALL.path}" in run.refusal


def test_ssh_stays_open_whatever_listens_for_it(guarded: Guarded) -> None:
    try:
        guarded.host.inside(["sh", "-c", "systemctl disable --now ssh.service; systemctl enable --now ssh.socket"])
        guarded.host.run("mkdir -p /etc/dropbear; systemd-run --quiet --unit=dropbear dropbear -F -R -p 2222")
        guarded.host.run("until ss -Hlnt sport = :2222 | grep -q .; do sleep 0.1; done")
        ports = {listener.port for listener in guarded.state().listeners if listener.is_ssh}
    finally:
        guarded.host.inside(
            [
                "sh",
                "-c",
                "systemctl stop dropbear; systemctl disable --now ssh.socket; systemctl enable --now ssh.service",
            ]
        )
    assert ports == {22, 2222}


# A VPN between the machine and an administrator's laptop, which is a network of its own there; no packet was sent yet. Its
# port is none of the relay's, as WireGuard's usual one is.
VPN = """
ip netns add laptop && ip link add out type veth peer name in netns laptop
ip address add 10.8.0.1/30 dev out && ip link set out up
ip -n laptop address add 10.8.0.2/30 dev in && ip -n laptop link set in up
wireguard-go wg0 && ip netns exec laptop wireguard-go wg1
umask 077 && wg genkey >/run/machine.key && wg genkey >/run/laptop.key
wg set wg0 listen-port 5182 private-key /run/machine.key peer "$(wg pubkey </run/laptop.key)" allowed-ips 10.9.0.2/32
wg set wg1 private-key /run/laptop.key peer "$(wg pubkey </run/machine.key)" allowed-ips 10.9.0.1/32 endpoint 10.8.0.1:5182
ip address add 10.9.0.1/30 dev wg0 && ip link set wg0 up
ip -n laptop address add 10.9.0.2/30 dev wg1 && ip -n laptop link set wg1 up
"""


@once
def test_a_vpn_of_the_administrators_stays_open(guarded: Guarded) -> None:
    """Also for its first packet, which is what comes when it was idle. Of IPsec, its program is only a name here."""
    host = guarded.host
    guarded.rule("ip protocol gre accept")
    host.run("ln -sf /usr/bin/python3 /run/charon")
    listening = "import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); s.bind((str(), 500)); time.sleep(999)"
    host.run(f"systemd-run --quiet --unit=charon /run/charon -c '{listening}'")
    host.run(f"apt-get install -qq -y --no-install-recommends wireguard-go wireguard-tools >/dev/null\nset -e\n{VPN}")
    guarded.deployment.run("-y")
    program = "import socket; print(socket.create_connection(('10.9.0.1', 22), timeout=10).getsockname()[0])"
    reached = host.run(f'ip netns exec laptop python3 -c "{program}"', check=False)
    assert reached.stdout == "10.9.0.2\n", reached.stderr
    table = host.run(f"nft list table inet {FIREWALL.table}").stdout
    assert "udp dport 500 accept" in table and "meta l4proto { esp, ah } accept" in table, table
    through = guarded.state("10.9.0.2 50000 10.9.0.1 22")
    assert through.tunnel == ("wg0", "tun") and ("wg0", 5182) in through.wireguard
    assert guarded.state(f"{host.bed.bridge_address} 50000 {host.address} 22").tunnel is None
    host.run(
        "systemctl stop charon; ip link delete wg0; ip -n laptop link delete wg1; ip netns delete laptop; ip link delete out",
        check=False,
    )
    guarded.rule("")
    guarded.deployment.run("-y")
    assert "5182" not in host.run(f"cat {FIREWALL.path}").stdout


@ours
@pytest.mark.parametrize(
    "way",
    [
        "nft flush ruleset",
        "systemctl stop matrix-metal-firewall && nft flush ruleset",
    ],
)
def test_a_deploy_heals_it(guarded: Guarded, way: str) -> None:
    guarded.rule("")
    guarded.host.run(way)
    assert answers(guarded.host.address, FOREIGN)
    assert "Load the firewall" in guarded.deployment.run("-y").changed
    assert not answers(guarded.host.address, FOREIGN)
    assert guarded.deployment.run("-y").changed == []


def test_it_is_there_after_a_boot_and_a_reload_of_nftables(guarded: Guarded) -> None:
    guarded.confirm()
    guarded.host.reboot()
    guarded.host.run(f"systemd-run --quiet --unit=foreign python3 -c '{PROGRAM}'")
    guarded.host.run(f"until ss -Hlnt sport = :{FOREIGN} | grep -q .; do sleep 0.1; done")
    assert not answers(guarded.host.address, FOREIGN) and answers(guarded.host.address, 443)
    # What loads it may do nothing else.
    rated = guarded.host.run(f"systemd-analyze security --no-pager {FIREWALL.unit} | tail -n 1").stdout
    found = re.search(r"exposure level for .*: ([0-9.]+)", rated)
    assert found and float(found[1]) <= 1.5, rated
    guarded.host.run("systemctl restart nftables")
    assert not answers(guarded.host.address, FOREIGN) and answers(guarded.host.address, 443)
    assert guarded.deployment.run("-y").changed == []


@once
def test_whoever_tries_passwords_is_slowed_down(guarded: Guarded) -> None:
    """From one address; another one connects meanwhile."""
    made = sum(answers(guarded.host.address6, 22, 0.2) for _ in range(45))
    assert 20 <= made <= 35, made
    assert answers(guarded.host.address, 22)


@ours
def test_the_verification_finds_nothing_wrong(guarded: Guarded) -> None:
    status, report = guarded.deployment.verify()
    assert status == 0, report
    guarded.host.run(f"nft add rule inet {FIREWALL.table} input accept")
    status, report = guarded.deployment.verify("tests/host/test_firewall.py")
    assert status == 1 and re.search("the packet filter .* is missing or was changed", report), report
