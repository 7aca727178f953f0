"""The figures of docs/security.md, from what was measured, and what of it is not as promised."""

import re
import subprocess
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tests.deployment import ROOT

RELEASES = {"trixie": "13", "bookworm": "12"}
CLIENTS, REQUESTS, SHARE = 300, 200, 0.9
Found = Mapping[str, Mapping[str, Any]]


def written(page: str, known: Found, date: str) -> tuple[str, list[str]]:
    """The page with new figures between its marks, and what is wrong. What was not measured stays as it is."""
    wrong: list[str] = []
    for mark, table in TABLES.items():
        found = {RELEASES[name]: known[name][mark] for name in RELEASES if mark in known.get(name, {})}
        if found:
            page = _between(page, mark, table(found, wrong))
    return _between(page, "measured", f"Measured on {date}, with version {this_version()}."), wrong


def _between(page: str, mark: str, text: str) -> str:
    begin, end = f"<!-- {mark}: written by `make security` -->\n", f"<!-- end of {mark} -->"
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    assert re.search(pattern, page, re.DOTALL), f"docs/security.md has no marks for {mark}"
    return re.sub(pattern, lambda _: f"{begin}{text}\n{end}", page, flags=re.DOTALL)


def this_version() -> str:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    asked = ["git", "describe", "--always", "--exclude=*"]
    commit = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return f"{version} ({commit})" if commit else str(version)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)


def _names(found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Unit -> Debian -> its figures. PostgreSQL's unit has its version in its name."""
    units: dict[str, dict[str, Any]] = {}
    for debian, each in found.items():
        for name, figures in each.items():
            units.setdefault(re.sub(r"@\d+-", "@*-", name), {})[debian] = figures
    return units


def _scores(found: Mapping[str, Any], wrong: list[str]) -> str:
    rows = []
    for name, figures in _names(found).items():
        for debian, each in figures.items():
            if each["score"] > each["bound"]:
                wrong.append(f"{name} on Debian {debian} has the score {each['score']}, more than {each['bound']}")
        bound = max(each["bound"] for each in figures.values())
        rows.append([f"`{name}`", *(figures[debian]["score"] if debian in figures else "" for debian in found), bound])
    return _table(["unit", *(f"Debian {debian}" for debian in found), "at most"], rows)


def _probes(found: Mapping[str, Any], wrong: list[str]) -> str:
    rows = []
    for name, figures in _names(found).items():
        cells = []
        for debian in found:
            # Debian 12 has no ntfy.
            each = figures.get(debian, {"tried": "", "refused": "", "own": "", "wrong": ()})
            cells += [each["tried"], each["refused"], each["own"]]
            wrong += [f"{name} on Debian {debian} reaches: {reached}" for reached in each["wrong"]]
        rows.append([f"`{name}`" if name != "nobody" else "a user of the machine, no service", *cells])
    head = [f"{word} ({debian})" for debian in found for word in ("tried", "refused", "allowed")]
    return _table(["inside", *head], rows)


def _ports(found: Mapping[str, Any], wrong: list[str]) -> str:
    rows = []
    for debian, ways in found.items():
        for way, each in ways.items():
            wanted = each["documented"]
            for ip in ("IPv4", "IPv6"):
                seen = each[ip]
                if seen["tcp"] != wanted["tcp"] or not set(seen["udp"]) <= set(wanted["udp"]):
                    wrong.append(f"Debian {debian} {way} the firewall, {ip}: {seen}, documented are {wanted}")
                silent = 65535 - len(seen["tcp"]) - seen["refused"]
                if way == "with" and seen["refused"]:
                    wrong.append(f"Debian {debian}, {ip}: {seen['refused']} ports refuse in spite of the firewall")
                rows.append(
                    [
                        debian,
                        way,
                        ip,
                        _list(seen["tcp"]),
                        _list(wanted["tcp"]) if seen["tcp"] != wanted["tcp"] else "the same",
                        seen["refused"],
                        silent,
                        _list(seen["udp"]),
                    ]
                )
    head = ["Debian", "firewall", "", "TCP ports found", "documented", "refuse", "silent", "UDP ports that answer"]
    return _table(head, rows)


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _slow(found: Mapping[str, Any], wrong: list[str]) -> str:
    rows, held = [], []
    for debian, each in found.items():
        if each["holding"] < SHARE * CLIENTS:
            wrong.append(f"Debian {debian}: only {each['holding']} connections of slow clients were there meanwhile")
        for title, which in (("nobody else", "alone"), (f"{each['holding']} open connections", "besides")):
            users = each[which]
            times = [f"{users[name]:.2f} s" for name in ("median", "slowest")]
            rows.append([debian, title, f"{users['answered']} of {REQUESTS}", *times])
        if each["besides"]["answered"] < SHARE * REQUESTS:
            wrong.append(f"Debian {debian}: {each['besides']['answered']} of {REQUESTS} requests are answered in time")
        for kind, clients in each["held"].items():
            ended = clients["ended"]
            after = f"{ended[0]:.0f} to {ended[-1]:.0f} s" if ended else ""
            held.append([debian, kind, clients["made"], len(ended), after])
    first = _table(["Debian", "besides", "answered within 5 s", "median", "slowest"], rows)
    return f"{first}\n\n{_table(['Debian', 'slow clients', 'connections', 'ended by the server', 'after'], held)}"


def _requests(found: Mapping[str, Any], wrong: list[str]) -> str:
    rows = []
    for text in dict.fromkeys(text for each in found.values() for text in each):
        cells = [_statuses(each.get(text, ())) for each in found.values()]
        if any(status.startswith(("2", "3")) for each in found.values() for status in each.get(text, ())):
            wrong.append(f"{text}: {cells}")
        rows.append([text, *cells])
    return _table(["sent", *(f"answered (Debian {debian})" for debian in found)], rows)


def _statuses(found: Iterable[str]) -> str:
    return ", ".join("the connection ends" if status == "000" else status for status in found)


PLACES = {
    "clients": "`https://matrix.`server name, 443",
    "homeservers": "server name, 8448",
    "relay": "`turns:turn.`server name, 5349",
}


def _tls(found: Mapping[str, Any], wrong: list[str]) -> str:
    rows = []
    for place, title in PLACES.items():
        for debian, each in found.items():
            graded = each[place]
            rows.append([title, debian, graded["grade"], graded["score"], graded["reason"] or ""])
        grades = {each[place]["grade"] for each in found.values()}
        if grades != {"A+"} and (place == "clients" or not grades <= {"A", "A+"}):
            wrong.append(f"{place}: graded {', '.join(sorted(grades))}")
    return _table(["place", "Debian", "grade", "score", "why it is not A+"], rows)


# By the name of the marks, which is that of the part that is measured.
TABLES: dict[str, Callable[[Mapping[str, Any], list[str]], str]] = {
    "scores": _scores,
    "probes": _probes,
    "ports": _ports,
    "slow": _slow,
    "requests": _requests,
    "tls": _tls,
}
