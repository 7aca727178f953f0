"""The hosts' network: a bridge with an address, access to the internet by NAT, and a name server."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .tools import TestbedError, last_line, run

CONTROLLER_NAME = "controller.test"

# Host numbers, the last byte of an address: the bridge has 1.
NUMBERS = range(10, 250)

# While the name server restarts, a query is dropped instead of rejected (raw bytes: the destination port inside the rejected
# packet), so that the resolver asks again a second later instead of giving up.
FIREWALL = """\
table inet {bridge}
delete table inet {bridge}
table inet {bridge} {{
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {subnet} oifname != "{bridge}" masquerade
    }}
    chain output {{
        type filter hook output priority filter; policy accept;
        oifname "{bridge}" icmp type destination-unreachable icmp code port-unreachable @th,240,16 53 drop
    }}
}}
"""

NAME_SERVER = """\
user=root
pid-file={run}/dnsmasq.pid
listen-address={address}
bind-interfaces
no-hosts
no-negcache
local=/test/
"""


@dataclass(frozen=True)
class Network:
    """The network of one checkout; `bridge` is the interface's name, and the prefix of all other names."""

    bridge: str
    run: Path
    state: Path

    @property
    def subnet(self) -> ipaddress.IPv4Network:
        """The /24 chosen when the bridge was made."""
        try:
            return ipaddress.IPv4Network(json.loads(self.state.read_text())["subnet"])
        except (OSError, ValueError, KeyError):
            raise TestbedError("the testbed has no network yet: start a host first") from None

    @property
    def subnet6(self) -> ipaddress.IPv6Network:
        """The unique local /64 of this checkout (RFC 4193)."""
        number = bytes([0xFD]) + hashlib.sha256(self.bridge.encode()).digest()[:5]
        return ipaddress.IPv6Network((number + bytes(10), 64))

    @property
    def address(self) -> str:
        return str(self.subnet[1])

    @property
    def address6(self) -> str:
        return str(self.subnet6[1])

    @property
    def mtu(self) -> int:
        """In bytes: the smallest of the controller's default routes, because hosts do not learn that a packet is too big."""
        return min((_mtu(route["dev"]) for route in _routes() if route["dst"] == "default"), default=1500)

    def exists(self) -> bool:
        return Path("/sys/class/net", self.bridge).exists()

    def ensure(self) -> None:
        """Make the bridge and the NAT if they are missing. Call with the testbed locked."""
        if self.exists() and not self.state.exists():
            # Its checkout, or what was in .cache, was deleted without `make demo-stop`.
            self.remove()
        if not self.exists():
            self._choose_subnet()
            run(["ip", "link", "add", self.bridge, "type", "bridge"])
            # Its own would be the lowest of the hosts', and change with them.
            run(["ip", "link", "set", self.bridge, "mtu", str(self.mtu), "address", self.link_address_of(1)])
            run(["ip", "address", "add", f"{self.address}/24", "dev", self.bridge])
            if Path("/proc/sys/net/ipv6").exists():
                run(["ip", "address", "add", f"{self.address6}/64", "dev", self.bridge, "nodad"])
            run(["ip", "link", "set", self.bridge, "up"])
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        # Every host's systemd takes about ten of root's inotify instances; the kernel's default of 128 is enough for a dozen.
        watches = Path("/proc/sys/fs/inotify/max_user_instances")
        if int(watches.read_text()) < 1024:
            watches.write_text("1024")
        run(["nft", "-f", "-"], stdin=FIREWALL.format(bridge=self.bridge, subnet=self.subnet))

    def remove(self) -> None:
        """Remove the network. Call with the testbed locked."""
        self._stop_name_server()
        if self.exists():
            run(["nft", "delete", "table", "inet", self.bridge], check=False)
            run(["ip", "link", "delete", self.bridge])

    def serve_names(self, names: Mapping[str, Iterable[str]]) -> None:
        """Configure the name server: address -> names; `*.example.test` means all names below example.test."""
        self.run.mkdir(parents=True, exist_ok=True)
        lines = NAME_SERVER.format(run=self.run, address=self.address).splitlines()
        for address, own in [(self.address, [CONTROLLER_NAME, f"*.{CONTROLLER_NAME}"]), *names.items()]:
            address6 = self.address6_of(address)
            for name in own:
                if name.startswith("*."):
                    lines += [f"address=/{name}/{address}", f"address=/{name}/{address6}"]
                else:
                    lines.append(f"host-record={name},{address},{address6}")
        content = "\n".join(lines) + "\n"
        configuration = self.run / "dnsmasq.conf"
        if self._name_server() and configuration.exists() and configuration.read_text() == content:
            return
        configuration.write_text(content)
        self._stop_name_server()
        deadline = time.monotonic() + 5
        while not self._name_server():
            # An ending dnsmasq disappears from /proc a moment before its address is free, so this may fail at first.
            started = run(["dnsmasq", f"--conf-file={configuration}"], check=False)
            if started.returncode and time.monotonic() > deadline:
                raise TestbedError(f"the hosts' name server does not start: {last_line(started.stderr)}")
            time.sleep(0.01)

    def address_of(self, number: int) -> str:
        return str(self.subnet[number])

    def link_address_of(self, number: int) -> str:
        """The MAC address of the machine with this number.

        With another of its own, a host would not be found for some seconds by whoever spoke to the last one of its number.
        """
        return f"02:00:00:00:00:{number:02x}"

    def address6_of(self, address: str) -> str:
        """The IPv6 address of the machine with this IPv4 address: the same last number, written in hexadecimal."""
        return str(self.subnet6[int(ipaddress.IPv4Address(address)) & 0xFF])

    def resolve(self, name: str, *, ipv6: bool = False) -> str:
        """Ask the hosts' name server for one address. Raises TestbedError when it knows none."""
        labels = b"".join(bytes([len(label)]) + label.encode("idna") for label in name.rstrip(".").split("."))
        kind, length = (28, 16) if ipv6 else (1, 4)
        query = struct.pack(">6H", 1, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", kind, 1)
        for _ in range(3):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(1)
                client.sendto(query, (self.address, 53))
                try:
                    answer = client.recv(4096)
                except TimeoutError:
                    continue
            if not struct.unpack_from(">H", answer, 6)[0]:
                break
            # The address comes last, after any aliases.
            return str(ipaddress.ip_address(answer[-length:]))
        raise TestbedError(f"the testbed's name server knows no address of {name}")

    def _choose_subnet(self) -> None:
        """Pick a free 10.x.y.0/24, the same one each time as far as the controller's routes allow."""
        taken = [ipaddress.IPv4Network(route["dst"], strict=False) for route in _routes() if route["dst"] != "default"]
        for attempt in range(100):
            seed = hashlib.sha256(f"{self.bridge} {attempt}".encode()).digest()
            subnet = ipaddress.IPv4Network((bytes([10, seed[0], seed[1], 0]), 24))
            if not any(subnet.overlaps(other) for other in taken):
                self.state.parent.mkdir(parents=True, exist_ok=True)
                self.state.write_text(json.dumps({"subnet": str(subnet)}))
                return
        raise TestbedError("no 10.x.y.0/24 is free for the hosts' bridge")

    def _name_server(self) -> int | None:
        """The process id of this testbed's own dnsmasq, if it runs."""
        try:
            number = int((self.run / "dnsmasq.pid").read_text())
        except (OSError, ValueError):
            return None
        return number if self._is_name_server(number) else None

    def _is_name_server(self, number: int) -> bool:
        try:
            return f"{self.run}/dnsmasq.conf" in Path(f"/proc/{number}/cmdline").read_text()
        except OSError:
            return False

    def _stop_name_server(self) -> None:
        if number := self._name_server():
            os.kill(number, signal.SIGTERM)
            deadline = time.monotonic() + 5
            while self._is_name_server(number) and time.monotonic() < deadline:
                time.sleep(0.005)


def _routes() -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(run(["ip", "-json", "-4", "route", "show"]).stdout or "[]")
    return found


def _mtu(device: str) -> int:
    return int(Path("/sys/class/net", device, "mtu").read_text())
