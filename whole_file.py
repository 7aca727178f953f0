"""Files of this computer that are written whole or not at all: the vault, its key, the record of release files."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One writer at a time between a look at a file and its replacement.

    The directory is locked, for a file that is replaced cannot carry a lock.
    """
    handle = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # NFS does not lock directories; then the look alone has to do
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
        os.fsync(handle)  # names that were made or replaced in it outlive a power cut
    finally:
        os.close(handle)


@contextlib.contextmanager
def temporary(target: Path, content: bytes, mode: int = 0o600) -> Iterator[Path]:
    """Content safely on disk beside its target; gone afterwards. The suffix stays: git ignores by it."""
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
    """The file holds this from now on. A link stays one: it may lead into a private repository."""
    target = path.resolve()
    with temporary(target, content, mode) as new:
        new.replace(target)
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
