"""A full deploy to a fresh host, against a script that only installs the same things on another fresh host."""

import io
import shlex
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench.figures import Figure
from bench.trial import SIX, every_role, fresh_host, load, say
from operations.virtualenvs import REQUIREMENTS
from roles import PACKAGES, ROLES
from settings.postgres import OF_DEBIAN
from tests.deployment import EVERYTHING
from tests.testbed import RELEASES, Host

FLOOR = Path(__file__).parent / "floor.sh"

# Debian packages, Python distributions, and how many modules are compiled.
INSTALLED = (
    "dpkg-query --show --showformat '${Package} ${Version} ${db:Status-Status}\\n'; "
    "cd /opt && for program in matrix-synapse sydent; do "
    "ls $program/current/lib/python3*/site-packages | grep -F .dist-info | sed s,^,$program/,; "
    "echo \"$program $(find $program/current/ -name '*.pyc' | wc -l) compiled\"; done"
)


# Seconds that it takes on a host, with these roles.
_Do = Callable[[Host, Sequence[str]], float]


class Incomparable(Exception):
    """The floor and the deploy did not install the same."""


def measure(pairs: int) -> Iterator[Figure]:
    """pairs: how often both are run, with six roles, and with all of them."""
    with fresh_host("bench-warm") as host, every_role(host) as deployment:
        # The very first run compiles modules and reads them from the disk; later ones need not.
        deployment.run("--dry")
    yield from _compared(pairs, SIX, ", six roles")
    yield from _compared(pairs, tuple(EVERYTHING), "")


def _compared(pairs: int, roles: Sequence[str], about: str) -> Iterator[Figure]:
    """They alternate, also in which is first, so that other load affects both equally. about: for the figures' names."""
    deploys: list[float] = []
    floors: list[float] = []
    turns: list[tuple[list[float], _Do]] = [(deploys, _deploy), (floors, _floor)]
    for pair in range(pairs):
        left: list[set[str]] = []
        for seconds, do in turns if pair % 2 == 0 else turns[::-1]:
            seconds.append(_timed(do, roles, left))
        say(f"pair {pair + 1} of {pairs}{about}: deploy {deploys[-1]:.1f} s, floor {floors[-1]:.1f} s; {load()}")
        if left[0] != left[1]:
            raise Incomparable(f"only one of deploy and floor.sh installs {', '.join(sorted(left[0] ^ left[1]))}")
    deploy, floor = Figure(f"full deploy{about}", deploys, "s"), Figure(f"floor{about}", floors, "s")
    yield from (deploy, floor)
    yield Figure(f"deploy / floor, of the medians{about}", [deploy.median / floor.median])
    yield Figure(
        f"deploy / floor, median of the pairs{about}", [one / other for one, other in zip(deploys, floors, strict=True)]
    )


def _timed(do: _Do, roles: Sequence[str], left: list[set[str]]) -> float:
    with fresh_host("bench-fresh") as host:
        seconds = do(host, roles)
        left.append(set(host.run(INSTALLED).stdout.splitlines()))
        return seconds


def _deploy(host: Host, roles: Sequence[str]) -> float:
    with every_role(host) as deployment:
        deployment.assign({role: [host.name] for role in roles})
        begin = time.monotonic()
        deployment.run("-y")
        return time.monotonic() - begin


def _floor(host: Host, roles: Sequence[str]) -> float:
    # A new connection, made within the measured time, because pyinfra makes one as well.
    ssh = host.ssh(f"tar -x && sh floor.sh {shlex.join(_packages(host, roles))}")
    ssh[1:1] = ["-o", "ControlPath=none"]
    content = _files()
    begin = time.monotonic()
    done = subprocess.run(ssh, input=content, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900)
    seconds = time.monotonic() - begin
    if done.returncode:
        raise AssertionError(f"floor.sh exited {done.returncode}:\n{done.stdout.decode(errors='replace')}")
    return seconds


def _packages(host: Host, roles: Sequence[str]) -> list[str]:
    """The Debian packages of a machine with these roles."""
    version = OF_DEBIAN[str(RELEASES[host.release])]
    needed = [*PACKAGES, *(package for role in roles for package in ROLES[role].packages)]
    return list(dict.fromkeys(package.format(version=version) for package in needed))


def _files() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(FLOOR, FLOOR.name)
        archive.add(REQUIREMENTS, "requirements")
    return packed.getvalue()
