"""The program that the kernel asks whenever a port is bound. What the kernel does with it: tests/e2e/test_confinement.py."""

import runpy
import socket
import struct
from typing import Any

import pytest

from operations.templating import TEMPLATES

NETWORK = 2**40 + 7
RULES = [("tcp", 8090, 101), ("udp", 7882, 102), ("udp", 3478, 0)]
UID_GID, NETWORK_COOKIE = 15, 122


@pytest.fixture(scope="module")
def steps() -> list[tuple[int, ...]]:
    program = runpy.run_path(str(TEMPLATES / "ports/reserve-ports"))["program"]
    code: bytes = program(RULES, NETWORK)
    return list(struct.iter_unpack("<BBhI", code))


def allowed(steps: list[tuple[int, ...]], protocol: str, port: int, user: int, network: int = NETWORK) -> bool:
    """What the program answers, step by step as the kernel does it."""
    context = {24: socket.htons(port), 36: {"tcp": 6, "udp": 17}[protocol]}
    registers: dict[int, Any] = {1: "context"}
    at = 0
    while True:
        code, which, distance, number = steps[at]
        first, second = which & 15, which >> 4
        at += 1
        match code:
            case 0xBF | 0xBC:
                registers[first] = registers[second]
            case 0xB7:
                registers[first] = number
            case 0x18:
                registers[first] = number | steps[at][3] << 32
                at += 1
            case 0x61:
                assert registers[second] == "context"
                registers[first] = context[distance]
            case 0x85:
                # A call destroys these.
                registers = {key: value for key, value in registers.items() if key > 5}
                registers[0] = {UID_GID: user, NETWORK_COOKIE: network}[number]
            case 0x1D | 0x16 | 0x56:
                same = registers[first] == (registers[second] if code == 0x1D else number)
                at += distance if same != (code == 0x56) else 0
            case 0x95:
                return bool(registers[0])
            case _:
                raise AssertionError(f"unknown instruction {code:#x}")


@pytest.mark.parametrize(
    ("protocol", "port", "user", "expected"),
    [
        ("tcp", 8090, 101, True),
        ("tcp", 8090, 0, True),
        ("tcp", 8090, 102, False),
        ("tcp", 8090, 65534, False),
        ("udp", 8090, 65534, True),
        ("udp", 7882, 102, True),
        ("udp", 7882, 101, False),
        ("tcp", 7882, 101, True),
        ("udp", 3478, 0, True),
        ("udp", 3478, 101, False),
        ("tcp", 8091, 65534, True),
        ("udp", 65535, 65534, True),
    ],
)
def test_a_port_is_for_its_user_and_root(
    steps: list[tuple[int, ...]], protocol: str, port: int, user: int, expected: bool
) -> None:
    assert allowed(steps, protocol, port, user) == expected
    # Who has another network takes nothing away.
    assert allowed(steps, protocol, port, user, NETWORK + 1)
