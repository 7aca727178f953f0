"""Files of this computer that are written whole or not at all: the vault, its key, the record of release files."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """A lock for reading a file and replacing it: one writer at a time.

    The directory is locked, because a lock on the file would be lost with its replacement.
    """
    handle = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # NFS does not lock directories; there the writers do without a lock
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
        os.fsync(handle)  # names that were made or replaced in it survive a power failure
    finally:
        os.close(handle)


@contextlib.contextmanager
def temporary(target: Path, content: bytes, mode: int = 0o600) -> Iterator[Path]:
    """A temporary file beside its target, synced to disk, deleted afterwards. It has the target's suffix, for .gitignore."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix=target.suffix)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(handle, mode)
            os.fsync(handle)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def replace(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace the content of a file. A link is followed and kept: it may lead into a private repository."""
    target = path.resolve()
    with temporary(target, content, mode) as new:
        new.replace(target)
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
