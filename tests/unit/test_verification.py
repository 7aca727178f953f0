"""Which tests `pytest tests/host` runs for a role."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.host import test_monitoring

ROOT = Path(__file__).parent.parent.parent
PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")
# A plugin that gives Sydent a second unit.
TWO_UNITS = """
import dataclasses, roles
more = roles.Unit("more.service", user="more", health="true", exposure=1.5)
roles.ROLES["sydent"] = dataclasses.replace(roles.SYDENT, units=(*roles.SYDENT.units, more))
"""


def collected(*options: str, python_path: Path = ROOT) -> list[str]:
    """The tests of Sydent's module on Debian 13."""
    done = subprocess.run(
        [*PYTEST, *options, "--collect-only", "-q", "-k", "debian13", "tests/host/test_sydent.py"],
        cwd=ROOT,
        env={"PYTHONPATH": str(python_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line]


def test_the_tests_of_every_service_run_for_each_unit_of_a_role(tmp_path: Path) -> None:
    (tmp_path / "two_units.py").write_text(TWO_UNITS)
    one, two = collected(), collected("-p", "two_units", python_path=tmp_path)
    generic = {test.partition("[")[0] for test in one if "TestService" in test}
    assert "TestService::test_runs" in generic
    of_the_role = [test for test in one if "TestService" not in test]
    assert len(one) == len(generic) + len(of_the_role)
    assert sorted(two) == sorted(
        [*of_the_role, *(f"{test}[{unit}.service-debian13]" for test in generic for unit in ("sydent", "more"))]
    )


def test_files_may_vanish_while_they_are_looked_for() -> None:
    """PostgreSQL removes files, and the spool is emptied: without the option find ends with an error then."""
    for path in sorted((ROOT / "tests" / "host").glob("*.py")):
        for line in path.read_text().splitlines():
            assert not re.search(r"[\"']find [{%/]", line) or "-ignore_readdir_race" in line, f"{path.name}: {line}"


def target(health: str, asked: str, error: str = "") -> dict[str, str]:
    return {"scrapePool": "synapse", "health": health, "lastScrape": asked, "lastError": error}


@pytest.mark.parametrize(
    ("answers", "wrong"),
    [
        ([target("down", "1", "EOF"), target("down", "1", "EOF"), target("up", "2")], ""),
        ([target("down", "1", "EOF"), target("down", "2", "dial tcp: connect: connection refused")], ""),
        ([target("down", "1", "EOF"), target("down", "1", "EOF"), target("down", "2", "no such page")], "no such page"),
        ([target("unknown", "0")], ""),
    ],
)
def test_what_was_stopped_while_it_was_asked_is_asked_again(
    answers: list[dict[str, str]], wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Prometheus: a service that a deploy had just restarted was said not to say how it is."""
    left = iter([*answers, answers[-1]])
    monkeypatch.setattr(test_monitoring, "asked", lambda *_: {"activeTargets": [next(left)]})
    monkeypatch.setattr("time.sleep", lambda _: None)
    verify: Callable[..., Any] = test_monitoring.test_everything_says_how_it_is
    monitoring = type("", (), {"targets": ()})
    if wrong:
        with pytest.raises(AssertionError, match=wrong):
            verify(None, monitoring)
    else:
        verify(None, monitoring)
