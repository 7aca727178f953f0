"""When security updates are installed, and which."""

from pathlib import Path

import pytest

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
