"""docs/reliability.md, from what the faults did."""

from collections import Counter
from typing import Any

HEAD = """\
# What happens when something breaks

`make faults` writes this page. It deploys to throw-away hosts of both Debian releases, and breaks them while three clients write
as fast as they can. A daemon has to serve again within 10 seconds and a machine within 60, nothing that was accepted may be lost,
and nobody does anything: no step by hand, no restart. Last run: {date}, of version {version}, on two processors
that also ran the clients.

"A stand-in for the program" means that a program of the tests was killed in the place of the real one. It has the same unit: how
that comes back is seen, and not how long the real program takes.

**Serves again** is the time until messages are accepted again, counted from the fault, or from the moment that is named.
**Accepted** are the messages that clients were told are stored, before, during and after the fault; all of them are read again
afterwards.

| what breaks | Debian | serves again after | at most | accepted | lost | |
| --- | --- | --- | --- | --- | --- | --- |
"""

TAIL = """
What was not tried by this command, and why:

- **A power failure.** The hosts share the kernel of the computer that runs them: what they wrote before they were killed is in
  its memory, and is not lost. PostgreSQL and SQLite write to the disk before anything is acknowledged, as on any machine.
- **A clock that jumps.** The clock of these hosts cannot be set: what a jump does to the daemons was not tried at all. What
  a wrong clock does to backups is tested with dates of files; `status` and the verification report a backup from the future.
- **An expired certificate** is in `tests/e2e/test_certificates.py`: once the issuer answers again, Caddy gets a new one by
  itself, and coturn presents its own. There the issuer is away for a moment, and it takes a minute. If it was away for days,
  Caddy asks every few hours; a restart of Caddy has it ask at once. The verification and `status` report what is not valid,
  and for how long the others are (`tests/e2e/test_verify.py`, `tests/e2e/test_status.py`).
- **The real MAS.** The stand-in has accounts and tokens, and no log-ins. That MAS is up within 3 seconds of a restart, and
  10 of a kill -9, is tested in `tests/e2e/test_mas.py`, with the real program if a variable names it.
- **What goes away in the middle of a later deploy.** It downloads less than a first one, by the same operations.
"""


RELEASES = {"trixie": "13", "bookworm": "12"}


def written(results: list[dict[str, Any]]) -> str:
    """The page. What was not run on the last day, or with another version than the most, says so, as does what was not run."""
    day = max(each["date"] for each in results)
    [(version, _)] = Counter(each["version"] for each in results if each["date"] == day).most_common(1)
    last = day, version
    order = list(dict.fromkeys(each["fault"] for each in results))
    found = {(each["fault"], each["release"]): each for each in results}
    rows = [
        _cells(found[fault, release], last) if (fault, release) in found else _not_run(fault, release)
        for fault in order
        for release in RELEASES
    ]
    return HEAD.format(date=day, version=version) + "".join(f"| {' | '.join(row)} |\n" for row in rows) + TAIL


def _not_run(fault: str, release: str) -> list[str]:
    return [fault, RELEASES[release], "", "", "", "", "not run"]


def _cells(result: dict[str, Any], last: tuple[str, str]) -> list[str]:
    measured = result["seconds"] is not None
    wrong = result["failed"] or ("messages are lost" if result["lost"] else "too late")
    remark = f"**wrong**: {wrong}" if result["wrong"] else result["remark"]
    if (result["date"], result["version"]) != last:
        remark = f"{remark} (run on {result['date']}, version {result['version']})".strip()
    return [
        result["fault"],
        RELEASES[result["release"]],
        f"{result['seconds']:.1f} s" if measured else "",
        f"{result['bound']:.0f} s" if measured else "",
        str(result["accepted"]) if measured else "",
        str(result["lost"]) if measured else "",
        remark.replace("|", "/"),
    ]
