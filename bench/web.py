"""How many requests per second reach Synapse through Caddy, against how many reach it directly.

wrk runs on the host itself, with CONNECTIONS kept-alive HTTP/1.1 connections, and sends the same requests alternately to
Synapse's port of 127.0.0.1 and to https://matrix.<name> (TLS, Caddy, the same Synapse). Synapse is one Python process and so
limited to one core; wrk and Caddy run on the others. With fewer than three cores they compete, and the CPU that wrk itself
spends on TLS counts against Caddy.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.figures import Figure
from bench.trial import load, say
from roles import SYNAPSE_PORT
from tests.e2e.client import Outside, new_user
from tests.testbed import Host

CONNECTIONS, ROUNDS = 10, 20
SECONDS = 1  # of each load; there are four in a round
# The most frequent request of clients; and the two cheapest ones, the worst case for a reverse proxy.
PATHS = ("v3/sync?timeout=0", "v3/account/whoami", "versions")
UNITS = ("matrix-synapse", "caddy")


class Failed(Exception):
    """Not every request succeeded: the figure would mean something else."""


def measure(host: Host) -> Iterator[Figure]:
    """host: one with every role."""
    host.run("DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends wrk", timeout=300)
    with TemporaryDirectory(prefix="bench-") as directory:
        token = new_user(Outside(host, Path(directory)), "web").access_token
    ways = {"directly": f"http://127.0.0.1:{SYNAPSE_PORT}", "through Caddy": f"https://matrix.{host.domain}"}
    for path in PATHS:
        rates: dict[str, list[float]] = {way: [] for way in ways}
        shares: dict[str, list[float]] = {unit: [] for unit in UNITS}
        for turn in range(ROUNDS + 1):
            for way in ways if turn % 2 else reversed(ways):
                before = _cpu(host)
                rate = _load(host, f"{ways[way]}/_matrix/client/{path}", token if path != "versions" else "")
                after = _cpu(host)
                if turn == 0:  # warms up
                    continue
                rates[way].append(rate)
                if way == "through Caddy":
                    for unit in UNITS:
                        shares[unit].append(100 * (after[unit] - before[unit]) / SECONDS)
        name = path.rpartition("/")[2].partition("?")[0]
        for way in ways:
            yield Figure(f"{name} {way}", rates[way], "1/s")
        for unit in UNITS:
            yield Figure(f"    {unit} meanwhile, of one core", shares[unit], "%")
        ratios = [through / direct for direct, through in zip(*rates.values(), strict=True)]
        yield Figure(f"{name}: through Caddy / directly, median of the pairs", ratios)
    say(f"requests measured; {load()}")


def _load(host: Host, url: str, token: str) -> float:
    """Requests per second; it stops by itself."""
    header = ["-H", f"Authorization: Bearer {token}"] if token else []
    shown = host.run(shlex.join(["wrk", "-t", "1", "-c", str(CONNECTIONS), "-d", f"{SECONDS}s", *header, url])).stdout
    rate = re.search(r"^Requests/sec: +([\d.]+)", shown, re.MULTILINE)
    if not rate or not float(rate[1]) or "Non-2xx" in shown or "Socket errors" in shown:
        raise Failed(f"not every request to {url} succeeded:\n{shown}")
    return float(rate[1])


def _cpu(host: Host) -> dict[str, float]:
    """CPU seconds that each unit has taken since its start, all its processes together."""
    shown = host.run(f"for unit in {' '.join(UNITS)}; do systemctl show -p CPUUsageNSec --value $unit; done").stdout
    return {unit: int(spent) / 1e9 for unit, spent in zip(UNITS, shown.split(), strict=True)}
