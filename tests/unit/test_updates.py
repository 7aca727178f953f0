"""When security updates are installed, which, and that nothing else changes the machine meanwhile."""

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from pyinfra.api.host import Host

from operations import lock
from operations.shell import shell_file
from settings import SettingError, Settings
from settings.updates import Updates
from tests.unit.test_settings import MACHINE, chosen


def view(directory: Path, **choices: object) -> Updates:
    made = Settings(chosen(**choices), "prod", {"updates": ["one"]}, "one", MACHINE, {}, inventories=directory)
    return made.view(Updates)


@pytest.mark.parametrize(
    ("time", "lists"), [("04:00", "*-*-* 03:00 UTC"), ("00:30", "*-*-* 23:30 UTC"), ("23:59", "*-*-* 22:59 UTC")]
)
def test_the_lists_are_read_before(tmp_path: Path, time: str, lists: str) -> None:
    updates = view(tmp_path, updates_time=time)
    assert updates.when("apt-daily-upgrade") == f"*-*-* {time} UTC" and updates.when("apt-daily") == lists


def test_only_security_updates_unless_others_are_wanted(tmp_path: Path) -> None:
    assert all(origin.endswith("label=Debian-Security") for origin in view(tmp_path).origins)
    more = view(tmp_path, updates_point_releases=True).origins
    assert "origin=Debian,codename=${distro_codename},label=Debian" in more


@pytest.mark.parametrize("time", ["4:00", "24:00", "04:00:00", "4", None])
def test_a_time_that_is_none_is_refused(time: object) -> None:
    with pytest.raises(
        SettingError, match=r'updates_time = .* is not allowed: it must be a time of day in UTC, such as "04:00"'
    ):
        chosen(updates_time=time)


# --- nobody changes a machine beside the job that installs updates -----------------------------------


def locking(directory: Path, program: str, *, interpreter: str = "bash", **active: str) -> str:
    """What a program with the functions of lock.sh prints, in a directory of its own. active: the states of units."""
    tools = directory / "tools"
    tools.mkdir()
    answers = "".join(f"{name}.service) echo {state} ;; " for name, state in active.items())
    (tools / "systemctl").write_text(
        f'#!/bin/sh\nshift\nfor unit; do case $(echo "$unit" | tr - _) in {answers}*) echo inactive ;; esac; done\n'
    )
    (tools / "systemctl").chmod(0o755)
    text = shell_file("lock").replace("/run/matrix-metal", str(directory / "run"))
    return subprocess.run(
        [interpreter, "-c", f"{text}\n{program}"],
        env={"PATH": f"{tools}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    ).stdout


@pytest.mark.parametrize("job", ["apt_daily_upgrade", "matrix_metal_updates"])
@pytest.mark.parametrize("state", ["activating", "inactive"])
def test_a_deploy_that_has_asked_before_does_not_begin_beside_updates(tmp_path: Path, job: str, state: str) -> None:
    said = locking(tmp_path, "hold anna@laptop ''", **{job: state})
    assert said == ("updating\n" if state == "activating" else "locked\n")
    # Nobody is told that this one has been at work.
    assert bool((tmp_path / "run/run").read_text()) == (state == "inactive")


def test_a_deploy_says_that_updates_have_begun(tmp_path: Path) -> None:
    """In one line, with what to do."""
    host = SimpleNamespace(name="one")
    line = lock._why_not(cast(Host, host), lock.Lock("updating"))
    assert line.startswith("one: ") and "\n" not in line
    assert "security updates (apt-daily-upgrade.service); nothing was touched; run the same command again" in line


@pytest.mark.parametrize(
    ("active", "other", "said"),
    [
        ({}, "", "taken"),
        (
            {},
            "flock run/run sleep 1 >/dev/null 2>&1 & sleep 0.3; echo the other >run/run;",
            "another run is at work: the other",
        ),
        (
            {"matrix_metal_updates": "activating"},
            "",
            "security updates are being installed (apt-daily-upgrade.service): ",
        ),
    ],
    ids=["nobody", "a deploy", "updates"],
)
def test_a_job_takes_the_lock_unless_somebody_is_at_work(
    tmp_path: Path, active: dict[str, str], other: str, said: str
) -> None:
    (tmp_path / "run").mkdir()
    program = 'if take_lock "the job"; then echo taken; else echo "$refused"; fi'
    assert locking(tmp_path, f"set -eu; cd {tmp_path}; {other} {program}", interpreter="sh", **active).startswith(said)
    assert ("the job, since " in (tmp_path / "run/run").read_text()) == (said == "taken")
