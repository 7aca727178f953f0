"""The tests' commands in a prepared process do what they do in one of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import prepared


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, prepared.MANAGE, "nothing.py", "status"],
        [sys.executable, prepared.MANAGE, "--help"],
        [sys.executable, prepared.MANAGE, "nothing.py", "state"],
        [prepared.PYINFRA, "--json", str(prepared.ROOT / "inventories/prod.py"), "deploy.py", "--dry"],
    ],
)
def test_a_command_answers_the_same(command: list[str], tmp_path: Path) -> None:
    directory = tmp_path if command[0] == sys.executable else prepared.ROOT
    assert prepared.can_run(command, prepared.ROOT, os.environ)
    done = prepared.run(command, cwd=directory, env=os.environ, timeout=60)
    alone = subprocess.run(command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (alone.returncode, alone.stdout, alone.stderr)


def test_another_version_or_another_language_gets_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, prepared.MANAGE, "--help"]
    assert not prepared.can_run(command, tmp_path, os.environ)
    assert not prepared.can_run(command, prepared.ROOT, {**os.environ, "LANG": "tr_TR.UTF-8"})
    assert not prepared.can_run([sys.executable, str(tmp_path / "manage.py")], prepared.ROOT, os.environ)


def test_a_command_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        prepared.run([sys.executable, prepared.MANAGE, "--help"], cwd=tmp_path, env=os.environ, timeout=0)
