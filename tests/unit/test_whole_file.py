"""Files are replaced as a whole, by one process at a time."""

import os
import threading
from pathlib import Path

import pytest

import whole_file


def test_it_replaces_with_the_mode_and_keeps_a_link(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    target, link = tmp_path / "private" / "file.x", tmp_path / "file.x"
    target.write_text("old")
    link.symlink_to(target)
    whole_file.replace(link, b"new", 0o640)
    assert link.is_symlink()
    assert (target.read_text(), target.stat().st_mode & 0o777) == ("new", 0o640)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file.x", "file.x", "private"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file.x"
    file.write_text("old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        whole_file.replace(file, b"new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file.x", "old")]


def test_a_temporary_file_is_private_and_has_the_targets_suffix(tmp_path: Path) -> None:
    with whole_file.temporary(tmp_path / "prod.key", b"secret") as temporary:
        assert temporary.stat().st_mode & 0o777 == 0o600
        assert temporary.suffix == ".key"
    assert list(tmp_path.iterdir()) == []


def test_the_cache_and_logs_are_private_also_where_they_were_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = whole_file.cache_directory()
    for existing in (False, True):
        if existing:
            cache.chmod(0o755)
            (cache / "a.log").chmod(0o644)
        with whole_file.private_log(whole_file.made_cache() / "a.log") as log:
            log.write("a line\n")
        assert cache.stat().st_mode & 0o777 == 0o700
        assert ((cache / "a.log").read_text(), (cache / "a.log").stat().st_mode & 0o777) == ("a line\n", 0o600)


def test_writers_wait_for_each_other(tmp_path: Path) -> None:
    file = tmp_path / "count"
    file.write_text("0")

    def count() -> None:
        for _ in range(20):
            with whole_file.locked(tmp_path):
                whole_file.replace(file, str(int(file.read_text()) + 1).encode())

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.read_text() == "80"
