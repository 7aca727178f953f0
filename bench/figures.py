"""Figures: a measured quantity, its bound, and a table of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

# Upper bounds, by name of the figure. deploy: times the floor. rerun: seconds. memory: MiB. relay: messages.
BOUNDS = {
    "deploy / floor, of the medians": 0.95,
    "deploy / floor, median of the pairs": 0.95,
    "deploy / floor, of the medians, six roles": 0.95,
    "deploy / floor, median of the pairs, six roles": 0.95,
    "status": 3.0,
    "re-run without changes": 1.2,
    "re-run, 50 ms of round trip added": 2.5,
    "remote commands of a re-run": 12,
    "re-run without changes, six roles": 1.2,
    "re-run, 50 ms of round trip added, six roles": 2.5,
    "remote commands of a re-run, six roles": 12,
    "memory when idle, trixie": 450.0,
    "memory when idle, bookworm": 450.0,
    "memory when idle, six roles, mas and rtc": 600.0,
    "memory after use, six roles, mas and rtc": 600.0,
    "memory when idle, all roles": 600.0,
    "memory after use, all roles": 600.0,
    "re-run without changes, six roles, mas and rtc": 1.2,
    "re-run without changes, all roles": 1.2,
    "remote commands of a re-run, six roles, mas and rtc": 12,
    "remote commands of a re-run, all roles": 12,
    "log-in: through MAS / through Synapse alone, of the medians": 1.5,
    "MAS: from a restart to healthy": 3.0,
    "upgrade of Synapse: longest request": 10.0,
    "upgrade of Synapse: failed requests": 0.0,
    "upgrade of Synapse that is put back: longest request": 10.0,
    "upgrade of Synapse that is put back: failed requests": 0.0,
    "relay over udp: messages lost": 0.0,
    "relay over tcp: messages lost": 0.0,
    "relay over udp, our own client: messages lost": 0.0,
    "relay over tcp, our own client: messages lost": 0.0,
    "relay over tls, our own client: messages lost": 0.0,
}
# Lower bounds, by name of the figure. web: times what Synapse does without Caddy.
MINIMA = {
    "sync: through Caddy / directly, median of the pairs": 0.85,
    "whoami: through Caddy / directly, median of the pairs": 0.85,
}


@dataclass(frozen=True)
class Figure:
    """Something measured, once or several times. unit: "s", "ms", "MiB", "Mbit/s", "1/s", "%" or "" (a ratio, a number)."""

    name: str
    values: Sequence[float]
    unit: str = ""

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def bound(self) -> float | None:
        return BOUNDS.get(self.name, MINIMA.get(self.name))

    @property
    def missed(self) -> bool:
        if self.bound is None:
            return False
        return self.median < self.bound if self.name in MINIMA else self.median > self.bound

    def cells(self) -> tuple[str, str, str, str, str]:
        counted = not self.unit and all(value == int(value) for value in self.values)
        digits = 0 if counted or self.unit in ("MiB", "1/s", "%") else 2
        spread = f"{min(self.values):.{digits}f} - {max(self.values):.{digits}f}" if len(self.values) > 1 else ""
        sign = ">=" if self.name in MINIMA else "<="
        bound = "" if self.bound is None else f"{sign} {self.bound:g}{' MISSED' if self.missed else ''}"
        return self.name, f"{self.median:.{digits}f} {self.unit}".strip(), spread, str(len(self.values)), bound


def table(figures: Iterable[Figure]) -> str:
    rows = [("", "median", "min - max", "n", "bound"), *(figure.cells() for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
