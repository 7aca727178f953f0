"""The page that `make faults` writes, and what counts as a success."""

from dataclasses import asdict

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
    assert words in written([{**asdict(result), "wrong": result.wrong}], "2027-01-31")
