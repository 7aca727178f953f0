"""docs/reliability.md, from what the faults did."""

from typing import Any

HEAD = """\
# What happens when something breaks

`make faults` writes this page. It deploys to throw-away hosts of both Debian releases, and breaks them while three clients write
as fast as they can. A daemon has to serve again within 10 seconds and a machine within 60, nothing that was accepted may be lost,
and nobody does anything: no step by hand, no restart. Last run: {date}, on two processors that also ran the clients.

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
- **A clock that jumps.** The clock of these hosts cannot be set. What a wrong clock does to backups is tested with dates of
  files; `status` and the verification report a backup from the future.
- **An expired certificate.** Caddy renews certificates after two thirds of their time; the verification reports how long each is
  still valid, and one that is not (`tests/e2e/test_verify.py`, `tests/e2e/test_status.py`).
- **Two administrators at once**: the second is told who is at work and since when, and nothing is touched
  (`tests/e2e/test_runs.py`).
- **MAS**: these clients log in with passwords at Synapse. That it is up within 3 seconds of a restart, and 10 of a kill -9, is
  tested in `tests/e2e/test_mas.py`.
"""


RELEASES = {"trixie": "13", "bookworm": "12"}


def written(results: list[dict[str, Any]]) -> str:
    """The page. What was not run on the last day says when it was, and what was run on one release only says so."""
    last = max(each["date"] for each in results)
    order = list(dict.fromkeys(each["fault"] for each in results))
    found = {(each["fault"], each["release"]): each for each in results}
    rows = [
        _cells(found[fault, release], last) if (fault, release) in found else _not_run(fault, release)
        for fault in order
        for release in RELEASES
    ]
    return HEAD.format(date=last) + "".join(f"| {' | '.join(row)} |\n" for row in rows) + TAIL


def _not_run(fault: str, release: str) -> list[str]:
    return [fault, RELEASES[release], "", "", "", "", "not run"]


def _cells(result: dict[str, Any], last: str) -> list[str]:
    measured = result["seconds"] is not None
    wrong = result["failed"] or ("messages are lost" if result["lost"] else "too late")
    remark = f"**wrong**: {wrong}" if result["wrong"] else result["remark"]
    if result["date"] != last:
        remark = f"{remark} (run on {result['date']})".strip()
    return [
        result["fault"],
        RELEASES[result["release"]],
        f"{result['seconds']:.1f} s" if measured else "",
        f"{result['bound']:.0f} s" if measured else "",
        str(result["accepted"]) if measured else "",
        str(result["lost"]) if measured else "",
        remark.replace("|", "/"),
    ]
