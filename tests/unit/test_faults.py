"""The page that `make faults` writes, and what counts as a success."""

from dataclasses import asdict, replace

import pytest

from tests.faults.__main__ import Result
from tests.faults.report import written


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (Result("it is killed", "trixie", 1.24, 10, 320), "| it is killed | 13 | 1.2 s | 10 s | 320 | 0 |  |"),
        (Result("it is killed", "bookworm", 10.1, 10, 320), "| 12 | 10.1 s | 10 s | 320 | 0 | **wrong**: too late |"),
        (Result("it is killed", "trixie", 1, 10, 320, lost=1), "| 320 | 1 | **wrong**: messages are lost |"),
        (Result("a mirror is away", "trixie", failed="no reason"), "|  |  |  |  | **wrong**: no reason |"),
    ],
)
def test_what_is_late_or_lost_is_wrong(result: Result, words: str) -> None:
    assert words in written([{**asdict(result), "wrong": result.wrong}])


def test_what_was_not_run_or_not_on_the_last_day_says_so() -> None:
    old = asdict(Result("it is killed", "trixie", 1.2, 10, 320, version="1 (a)")) | {
        "date": "2027-01-30",
        "wrong": False,
    }
    new = asdict(Result("it is killed", "bookworm", 1.2, 10, 320, version="2 (b)")) | {
        "date": "2027-01-31",
        "wrong": False,
    }
    page = written([old, new])
    assert "Last run: 2027-01-31, of version 2 (b)," in page
    assert "| 13 | 1.2 s | 10 s | 320 | 0 | (run on 2027-01-30, version 1 (a)) |" in page
    assert "| 12 | 1.2 s | 10 s | 320 | 0 |  |" in page
    assert "| it is killed | 12 |  |  |  |  | not run |" in written([old])


def test_most_of_the_last_day_say_which_version_it_was() -> None:
    """A part can be run again after a change."""
    results = [Result(f"{each} is killed", "trixie", 1.2, 10, 320, version="1 (a)") for each in ("it", "another")]
    results.append(replace(results[0], fault="the last is killed", version="1 (b)"))
    page = written([asdict(each) | {"wrong": False} for each in results])
    assert "of version 1 (a)," in page and page.count(", version 1 (b))") == 1
