"""The figures that `make security` writes into docs/security.md, and which of them break a promise."""

import re
from typing import Any

import pytest

from tests.deployment import ROOT
from tests.security.report import TABLES, written

PAGE = (ROOT / "docs" / "security.md").read_text()
PROBED = {"tried": 9, "refused": 7, "own": 2, "wrong": []}
SEEN = {"tcp": [22, 443], "refused": 0, "udp": [443]}
PORTS = {"IPv4": SEEN, "IPv6": SEEN, "documented": {"tcp": [22, 443], "udp": [443, 7882]}}
USERS = {"answered": 180, "median": 0.1, "slowest": 4.0}
SLOW = {"alone": USERS, "besides": USERS, "held": {"slow headers": {"made": 75, "ended": [20.1]}}, "holding": 299}
GRADES = {
    "clients": {"grade": "A+", "score": "96", "reason": ""},
    "homeservers": {"grade": "A", "score": "96", "reason": "HSTS is not offered"},
    "relay": {"grade": "A", "score": "96", "reason": ""},
}


@pytest.mark.parametrize(
    ("part", "found", "cell", "wrong"),
    [
        ("scores", {"postgresql@17-main": {"score": 2.0, "bound": 2.0}}, "| `postgresql@*-main` | 2.0 | 2.0 |", ""),
        ("scores", {"caddy": {"score": 2.1, "bound": 2.0}}, "| 2.1 |", "caddy on Debian 13 has the score 2.1"),
        ("probes", {"caddy": PROBED}, "| `caddy` | 9 | 7 | 2 |", ""),
        ("probes", {"caddy": PROBED | {"wrong": ["read /root"]}}, "| 9 |", "caddy on Debian 13 reaches: read /root"),
        ("ports", {"with": PORTS}, "| 22, 443 | the same | 0 | 65533 | 443 |", ""),
        ("ports", {"with": PORTS | {"IPv6": SEEN | {"tcp": [22]}}}, "| 22 | 22, 443 |", "13 with the firewall, IPv6"),
        ("ports", {"with": PORTS | {"IPv6": SEEN | {"udp": [53]}}}, "| 53 |", "13 with the firewall, IPv6"),
        ("slow", SLOW, "| 13 | slow headers | 75 | 1 | 20 to 20 s |", ""),
        ("slow", SLOW | {"besides": USERS | {"answered": 179}}, "| 179 of 200 |", "179 of 200 requests"),
        ("slow", SLOW | {"holding": 200}, "200 open connections", "only 200 connections"),
        ("requests", {"nonsense": ["400", "000"]}, "| nonsense | 400, the connection ends |", ""),
        ("requests", {"nonsense": ["200"]}, "| nonsense | 200 |", "nonsense: "),
        ("tls", GRADES, "| 13 | A | 96 | HSTS is not offered |", ""),
        ("tls", GRADES | {"relay": {"grade": "B", "score": "80", "reason": ""}}, "| B |", "relay: graded B"),
    ],
)
def test_what_breaks_a_promise_is_wrong(part: str, found: dict[str, Any], cell: str, wrong: str) -> None:
    page, said = written(PAGE, {"trixie": {part: found}}, "2027-01-31")
    assert cell in page and "Measured on 2027-01-31" in page
    assert len(said) == bool(wrong) and all(wrong in each for each in said)


def test_a_service_that_one_release_does_not_have_leaves_its_cells_empty() -> None:
    found = {"trixie": {"probes": {"caddy": PROBED}}, "bookworm": {"probes": {"caddy": PROBED, "other": PROBED}}}
    page, said = written(PAGE, found, "2027-01-31")
    assert "| `caddy` | 9 | 7 | 2 | 9 | 7 | 2 |" in page and "| `other` |  |  |  | 9 | 7 | 2 |" in page and not said


def test_the_page_has_figures_of_both_releases() -> None:
    assert written(PAGE, {}, "2027-01-31")[1] == []
    for part in TABLES:
        figures = PAGE.partition(f"<!-- {part}: ")[2].partition(f"<!-- end of {part} -->")[0]
        assert re.search(r"\b13\b", figures) and re.search(r"\b12\b", figures), f"{part} was not measured"
