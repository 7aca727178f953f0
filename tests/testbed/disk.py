"""A file system of the hosts' own, where the controller's is slow for them.

ext4 without a journal looks at every inode that was deleted in the last minutes before it takes a free one. Where hosts come and
go, a deployment takes a sixth more processor time from that.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from .tools import TestbedError, delete, run

# Bytes. The file has holes, and takes as much as was written at most.
SIZE = 64 << 30
OPTIONS = "loop,noatime,nobarrier,noinit_itable,data=writeback,commit=300"


def ensure(directory: Path) -> None:
    """Mount one at this directory if it helps, and the directory has nothing yet. It is in a file beside it."""
    image = directory.with_suffix(".img")
    used = directory.is_mount() or (directory.exists() and any(directory.iterdir()))
    if used or not _has_no_journal(directory.parent):
        return
    directory.mkdir(exist_ok=True)
    try:
        # Or it is there, and the controller was started again.
        if not image.exists():
            with image.open("wb") as file:
                file.truncate(min(SIZE, shutil.disk_usage(directory).free * 9 // 10))
            run(["mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1", image])
        run(["mount", "-o", OPTIONS, image, directory])
        delete(directory / "lost+found")
    except TestbedError:
        # As in a container that has no loop devices. It works without.
        image.unlink(missing_ok=True)


def remove(directory: Path) -> None:
    """Unmount it and delete it."""
    if directory.is_mount():
        run(["umount", "--lazy", directory])
    directory.with_suffix(".img").unlink(missing_ok=True)


def _has_no_journal(directory: Path) -> bool:
    source = run(["findmnt", "--noheadings", "--output", "SOURCE", "--target", directory], check=False).stdout.strip()
    device = Path(source).resolve().name
    return Path(f"/proc/fs/ext4/{device}").exists() and not any(Path("/proc/fs/jbd2").glob(f"{device}-*"))
