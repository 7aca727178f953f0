"""Checks of a release's file. Only what was checked here is sent to a machine.

An archive is not sent as it was downloaded: its files are packed again, so that the machine's tar cannot read it differently
than we do. Modes are 755 for directories and executables, 644 for the rest; everything belongs to root. Links are refused:
upstream's archives have none.
"""

import base64
import gzip
import hashlib
import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from releases import Archive, Release

# Element Web, the largest, has 133 MB in some thousand files.
SIZE, MEMBERS = 1 << 30, 50_000

# ELF's e_machine numbers (elf.h), as Debian names them.
_MACHINES = {3: "i386", 21: "ppc64el", 22: "s390x", 40: "armhf", 62: "amd64", 183: "arm64", 243: "riscv64"}
# What a file usually is if the address or the path is wrong.
_OTHER_KINDS = {b"\x1f\x8b": "a gzip archive", b"PK": "a zip archive", b"\xfd7zXZ": "an xz archive", b"<": "a web page"}


class Unusable(Exception):
    """What is wrong with a file, as a sentence that begins with the file's name."""


def check(release: Release, path: Path) -> int:
    """Bytes it takes on a machine. Raises Unusable if a machine could not use it, OSError if it cannot be read."""
    return sum(member.size for member, _ in _members(release, path))


def pack(release: Release, path: Path) -> bytes:
    """The files in a tar.gz of our own, for a machine; to be called with a file that `check` accepts."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as tar:
        for member, content in _members(release, path):
            tar.addfile(member, content)
    return packed.getvalue()


def _members(release: Release, path: Path) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """Each file and directory with its content; names, modes and owners are ours."""
    if release.archive is not None:
        yield from _archived(release.archive, release.arch, path)
        return
    with path.open("rb") as program:
        size = path.stat().st_size
        if problem := not_runnable(program.read(64), size, release.arch):
            raise Unusable(f"is {problem}")
        program.seek(0)
        yield _member(release.name, size, executable=True), program


def _member(name: str, size: int, executable: bool, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.size, member.mode = kind, size, 0o755 if executable else 0o644
    return member


class _BoundedStream:
    """A decompressed stream, read forwards and up to SIZE: a few kilobytes can unpack to terabytes."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream, self.last = stream, b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= 1 << 20:  # contents are read in smaller pieces
            raise Unusable("has an entry with a description of more than 1 MiB: not unpacked")
        self.last = self._stream.read(size)
        _check_size(self._stream.tell())
        return self.last

    def seek(self, position: int) -> None:
        if position < self._stream.tell():
            raise Unusable("is damaged: an entry claims a negative size")
        _check_size(position)
        self._stream.seek(position)

    def tell(self) -> int:
        return self._stream.tell()


def _check_size(size: int) -> None:
    if size > SIZE:
        raise Unusable(f"unpacks to more than {SIZE >> 20} MiB: not unpacked")


def _archived(archive: Archive, arch: str, path: Path) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    kinds: dict[str, str] = {}  # name -> "directory" or "file"
    stripped: set[tuple[str, ...]] = set()  # the leading folders that are removed
    try:
        with gzip.open(path) as plain:
            stream = _BoundedStream(plain)
            with tarfile.open(fileobj=stream, mode="r:") as tar:  # type: ignore[call-overload]
                for number, member in enumerate(tar, 1):
                    if number > MEMBERS:
                        raise Unusable(f"has more than {MEMBERS} entries: not unpacked")
                    parts = _parts(member)
                    name = "/".join(parts[archive.strip :])
                    if not name and member.isdir():
                        continue
                    stripped.add(parts[: archive.strip])
                    if not name or len(stripped) > 1:
                        raise Unusable(
                            f"is not the expected archive: {member.name!r} is not in the folder of the others"
                        )
                    _add_entry(name, member.isdir(), kinds)
                    if member.isdir():
                        yield _member(name, 0, True, tarfile.DIRTYPE), None
                        continue
                    content = cast(io.BufferedReader, tar.extractfile(member))
                    program = name in archive.programs
                    if program and (problem := not_runnable(content.peek(64)[:64], member.size, arch)):
                        raise Unusable(f"contains {name}, which is {problem}")
                    if name == "index.html" and archive.scripts is not None:
                        if member.size > 1 << 20:
                            raise Unusable("contains a page of more than 1 MiB: not unpacked")
                        page = content.read()
                        if others := set(_scripts(page)) - set(archive.scripts):
                            raise Unusable(
                                f"contains a page with a script that is not known, {others.pop()}: not unpacked"
                            )
                        content = cast(io.BufferedReader, io.BytesIO(page))
                    yield _member(name, member.size, program or bool(member.mode & 0o111)), content
            # tarfile takes anything that is no header for the end.
            if stream.last != bytes(tarfile.BLOCKSIZE):
                raise Unusable("is damaged: its list of files breaks off")
            while stream.read(1 << 20):  # gzip's checksum is at the end
                pass
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, OverflowError) as error:
        with path.open("rb") as file:
            head = file.read(64)
        if head.startswith(b"\x1f\x8b"):
            raise Unusable(f"is a damaged or incomplete archive ({error})") from error
        raise Unusable(f"is {_kind(head)}, no tar.gz archive") from error
    missing = [name for name in (*archive.programs, *archive.contains) if kinds.get(name) != "file"]
    if missing:
        raise Unusable(f"is not the expected archive: there is no {missing[0]} in it")


def _scripts(page: bytes) -> list[str]:
    """The scripts in a page itself, as a Content-Security-Policy names them."""
    found = re.findall(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script", page, re.S | re.I)
    return [f"sha256-{base64.b64encode(hashlib.sha256(each).digest()).decode()}" for each in found]


def _parts(member: tarfile.TarInfo) -> tuple[str, ...]:
    """The folders and the name of an entry that may be unpacked."""
    name = member.name
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if name.startswith("/") or ".." in parts:
        raise Unusable(f"contains {name!r}, which would leave its directory: not unpacked")
    if not name.isprintable():
        raise Unusable(f"contains a file whose name is not text, {name!r}: not unpacked")
    if member.issym() or member.islnk():
        raise Unusable(f"contains a link, {name!r} to {member.linkname!r}: not unpacked")
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise Unusable(f"contains {name!r}, which is neither a file nor a directory: not unpacked")
    _check_size(member.size)
    return parts


def _add_entry(name: str, directory: bool, kinds: dict[str, str]) -> None:
    """Add an entry to the list; refuse one that would overwrite another."""
    above = name.rpartition("/")[0]
    while above:
        if kinds.setdefault(above, "directory") != "directory":
            raise Unusable(f"contains {name!r} below the file {above!r}: not unpacked")
        above = above.rpartition("/")[0]
    if name in kinds and not (directory and kinds[name] == "directory"):
        raise Unusable(f"contains {name!r} twice: not unpacked")
    kinds[name] = "directory" if directory else "file"


def _kind(head: bytes) -> str:
    if not head:
        return "an empty file"
    return next((kind for magic, kind in _OTHER_KINDS.items() if head.lstrip().startswith(magic)), "something else")


def not_runnable(head: bytes, size: int, arch: str) -> str | None:
    """Why a machine could not execute a file with these first 64 bytes: what it is instead; None if it could.

    A program for another architecture, a web page, an archive, a truncated program; scripts run on every machine.
    """
    if head.startswith(b"#!"):
        return None
    if not head.startswith(b"\x7fELF"):
        return f"{_kind(head)}, neither a Linux program nor a script"
    if len(head) < 64:
        return "a damaged program: its header is incomplete"

    def number(at: int, length: int) -> int:
        return int.from_bytes(head[at : at + length], "little" if head[5] == 1 else "big")

    name = _MACHINES.get(number(18, 2), f"foreign (ELF machine {number(18, 2)})")
    bits = "" if head[4] == 2 else " for 32 bits"
    if (name != arch and arch != "all") or bits:
        return f"{'an' if name[0] in 'ais' else 'a'} {name} program{bits}, the machine is {arch}"
    # Executables, position-independent or not; not objects, core dumps.
    if number(16, 2) not in (2, 3):
        return "an ELF file that cannot be executed"
    # A truncated copy has an intact header; the table of sections, mostly last in a file, must be there.
    if number(40, 8) + number(58, 2) * number(60, 2) > size:
        return "a program that is cut short"
    return None
