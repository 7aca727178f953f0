"""A second run that changes nothing, with low and with high latency; and `manage.py NAME status`."""

import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from statistics import median

from bench.delay import Delay
from bench.figures import Figure
from bench.trial import SIX, load, say
from tests.deployment import PYINFRA, Deployment
from tests.testbed import Host

RUNS, LOOKS = 5, 9
RUNS_WITH_MAS = 9
ROUND_TRIP = 0.05


class Changed(Exception):
    """A second run changed something."""


def measure_six(host: Host, deployment: Deployment) -> Iterator[Figure]:
    """With the roles that 0.1.0 has. host: a new one, to which deployment is not deployed yet."""
    before = deployment.inventory.read_text()
    deployment.assign({role: [host.name] for role in SIX})
    say(f"deploying six roles to {host.name}")
    deployment.run("-y")
    for figure in measure(host, deployment):
        if figure.name != "status":
            yield replace(figure, name=f"{figure.name}, six roles")
    deployment.inventory.write_text(before)


def measure(host: Host, deployment: Deployment) -> Iterator[Figure]:
    """host: one that deployment has deployed to."""
    with Delay((host.address, 22), ROUND_TRIP) as delay:
        known_hosts = deployment.directory / "known_hosts"
        _, key = host.known_hosts.read_text().split(maxsplit=1)
        known_hosts.write_text(f"[127.0.0.1]:{delay.port} {key}")
        data = {"ssh_hostname": "127.0.0.1", "ssh_port": str(delay.port), "ssh_known_hosts_file": str(known_hosts)}
        through = [word for name, value in data.items() for word in ("--data", f"{name}={value}")]
        _timed(deployment)
        near: list[float] = []
        far: list[float] = []
        own: list[float] = []
        looks = [_status(deployment) for _ in range(LOOKS)]
        for _ in range(RUNS):
            near.append(_timed(deployment))
            far.append(_timed(deployment, *through))
            own.append(_pyinfras_own(deployment))
    commands = _commands(deployment)
    say(f"re-runs measured; {load()}")
    yield Figure("status", looks, "s")
    yield Figure("re-run without changes", near, "s")
    yield Figure("re-run, 50 ms of round trip added", far, "s")
    yield Figure("pyinfra's own start and one connection", own, "s")
    yield Figure("re-run / pyinfra's own, of the medians", [median(near) / median(own)])
    yield Figure("remote commands of a re-run", [commands])


def measure_with_mas(deployment: Deployment, roles: str) -> Iterator[Figure]:
    """roles: which the deployment has, for the figures' names."""
    _timed(deployment)
    near, own = [], []
    for _ in range(RUNS_WITH_MAS):
        near.append(_timed(deployment))
        own.append(_pyinfras_own(deployment))
    commands = _commands(deployment)
    say(f"re-runs measured; {load()}")
    yield Figure(f"re-run without changes, {roles}", near, "s")
    yield Figure(f"pyinfra's own start and one connection, {roles}", own, "s")
    yield Figure(f"remote commands of a re-run, {roles}", [commands])


def _timed(deployment: Deployment, *options: str) -> float:
    begin = time.monotonic()
    run = deployment.run("-y", *options)
    seconds = time.monotonic() - begin
    if run.changed:
        raise Changed(f"a second run changed something: {', '.join(run.changed)}")
    return seconds


def _status(deployment: Deployment) -> float:
    """`manage.py NAME status`; what it finds does not matter."""
    begin = time.monotonic()
    shown = deployment.manage("status").stdout
    seconds = time.monotonic() - begin
    if "database" not in shown:
        raise Changed(f"status was not shown: {shown}")
    return seconds


def _pyinfras_own(deployment: Deployment) -> float:
    """The same machine, and a deploy of nothing: what no deploy can be faster than."""
    directory = deployment.directory / "empty"
    directory.mkdir(exist_ok=True)
    (directory / "nothing.py").touch()
    begin = time.monotonic()
    subprocess.run(
        [PYINFRA, deployment.inventory, "nothing.py", "-y"],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
    return time.monotonic() - begin


def _commands(deployment: Deployment) -> int:
    """How many commands a re-run sends to the machine; each costs two round trips."""
    shown, _ = deployment.start("-y", "-vvv").communicate(timeout=120)
    return len(re.findall(r"^\S*\[\S+\]\S* >>> ", shown, re.MULTILINE))
