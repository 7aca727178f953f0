"""Which ports of a machine answer. Also a program for a host: `scan.py ADDRESS...` prints a JSON object.

Standard library only. On all TCP ports a connection is begun. To all UDP ports go a STUN request and a packet of a version of
QUIC that does not exist: whoever speaks one of these protocols answers. What answers nothing to
unauthenticated clients is not found.
"""

import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Collection
from contextlib import ExitStack, suppress

ALL = range(1, 65536)
STUN = struct.pack(">HHI", 0x0001, 0, 0x2112A442) + os.urandom(12)
QUIC = struct.pack(">BIB8sB8s", 0xC0, 0x1A2A3A4A, 8, os.urandom(8), 8, os.urandom(8)).ljust(1200, b"\0")


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def tcp(address: str, without: Collection[int] = (), seconds: float = 0.3) -> tuple[set[int], set[int]]:
    """The ports that accept a connection, and those that refuse one. From the others nothing comes within so many seconds."""
    accepting: set[int] = set()
    refusing: set[int] = set()
    step = 800
    for begin in range(ALL.start, ALL.stop, step):
        with select.epoll() as poll, ExitStack() as links:
            ports = {}
            for port in range(begin, min(begin + step, ALL.stop)):
                if port in without:
                    continue
                link = links.enter_context(socket.socket(family(address), socket.SOCK_STREAM))
                link.setblocking(False)
                link.connect_ex((address, port))
                poll.register(link, select.EPOLLOUT)
                ports[link.fileno()] = (port, link)
            time.sleep(seconds)
            for number, _ in poll.poll(0, step):
                port, link = ports[number]
                (refusing if link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) else accepting).add(port)
    return accepting, refusing


def udp(address: str) -> set[int]:
    """The ports that answer. Asked three times, because packets get lost."""
    found: set[int] = set()
    with socket.socket(family(address), socket.SOCK_DGRAM) as link:
        link.setblocking(False)
        for packet in (STUN, QUIC) * 3:
            for port in ALL:
                with suppress(OSError):
                    link.sendto(packet, (address, port))
                if port % 50 == 0:
                    time.sleep(0.001)
                    found |= _heard(link)
            time.sleep(0.5)
            found |= _heard(link)
    return found


def _heard(link: socket.socket) -> set[int]:
    found = set()
    with suppress(BlockingIOError):
        while True:
            found.add(int(link.recvfrom(2048)[1][1]))
    return found


def main() -> None:
    found = {}
    for address in sys.argv[1:]:
        accepting, refusing = tcp(address)
        found[address] = {"tcp": sorted(accepting), "refused": len(refusing), "udp": sorted(udp(address))}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
