"""Files of this computer: what is written whole or not at all (vault, key, record of release files), the cache, logs."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


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


def cache_directory() -> Path:
    """Where is kept what can be had again (downloads, compiled templates): `matrix-metal` below XDG_CACHE_HOME or ~/.cache."""
    # The specification ignores relative paths.
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if given.startswith("/") else Path.home() / ".cache") / "matrix-metal"


def made_cache() -> Path:
    """The same, which only its owner can enter from now on. Raises OSError."""
    directory = cache_directory()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_mode & 0o077:  # an earlier version has made it
        directory.chmod(0o700)
    return directory


def private_log(path: Path) -> TextIO:
    """A new file for lines that only its owner can read, instead of what was there. Raises OSError."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.fchmod(handle, 0o600)  # an earlier version has made it
    return os.fdopen(handle, "w", buffering=1)
