"""The pictures of a pack of stickers, in a directory or an archive of this computer.

What a picture is, its content says and not its name. Archives are never unpacked: nothing of them is written to this computer,
and no more of them is read than a pack may have.
"""

import hashlib
import re
import unicodedata
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from compat import Refused
from manage.output import printable

# Of a picture; of all of a pack; how many it has; width and height in pixels.
LARGEST, LARGEST_PACK, MOST, WIDEST = 4 * 1024**2, 64 * 1024**2, 200, 4096
KINDS = {"image/png": "png", "image/webp": "webp", "image/gif": "gif"}
ALLOWED = "PNG, WebP or GIF"


@dataclass(frozen=True)
class Picture:
    """A picture. body: what it is called where it cannot be shown. code: its shortcode, which no other of the pack has."""

    body: str
    code: str
    type: str
    width: int
    height: int
    content: bytes = field(repr=False)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def file(self) -> str:
        """What its copy for the picker is called."""
        return f"{self.sha256}.{KINDS[self.type]}"


def pictures_in(path: Path) -> tuple[list[Picture], list[str]]:
    """The pictures of a directory or archive, in the order of their names, and the files that are left out. Raises Refused."""
    files = _of_directory(path) if path.is_dir() else _of_archive(path)
    found: dict[str, Picture] = {}
    left_out, codes, total = [], set[str](), 0
    for name, content in files:
        kind = _type(content)
        if kind is None:
            left_out.append(printable(name))
            continue
        total += len(content)
        if total > LARGEST_PACK:
            raise Refused(f"{path}: the pictures have more than {LARGEST_PACK >> 20} MiB together: make several packs")
        size = _size(kind, content)
        if size is None:
            raise Refused(f"{path}: {printable(name)} is a damaged {KINDS[kind].upper()}; nothing was changed")
        if not all(1 <= each <= WIDEST for each in size):
            raise Refused(f"{path}: {printable(name)} has {size[0]} x {size[1]} pixels; {WIDEST} each way are allowed")
        body, code = _called(name, codes)
        picture = Picture(body, code, kind, *size, content)
        if found.setdefault(picture.sha256, picture) is picture:
            codes.add(code)
        if len(found) > MOST:
            raise Refused(f"{path}: a pack has at most {MOST} pictures: make several packs")
    if not found:
        why = f": {left_out[0]} is none, for example" if left_out else ""
        raise Refused(f"{path} has no pictures that are {ALLOWED}{why}")
    return list(found.values()), left_out


def _of_directory(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        files = [each for each in path.iterdir() if not each.name.startswith(".") and each.is_file()]
        for each in sorted(files, key=lambda file: _in_order(file.name)):
            if (size := each.stat().st_size) > LARGEST:
                raise _too_large(path, each.name, size)
            yield each.name, each.read_bytes()
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}") from None


def _of_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [each for each in archive.infolist() if not each.is_dir()]
            if len(members) > 10 * MOST:
                raise Refused(f"{path} has {len(members)} files; a pack has at most {MOST} pictures")
            for each in sorted(members, key=lambda member: _in_order(member.filename)):
                way = PurePosixPath(each.filename.replace("\\", "/"))
                if way.is_absolute() or ".." in way.parts:
                    raise Refused(f"{path}: {printable(each.filename)} leads out of the archive; nothing was changed")
                if way.name.startswith(".") or "__MACOSX" in way.parts:
                    continue
                if each.flag_bits & 1:
                    raise Refused(f"{path} is encrypted; nothing was changed")
                # What the archive says about its files may be wrong.
                with archive.open(each) as member:
                    content = member.read(LARGEST + 1)
                if len(content) > LARGEST:
                    raise _too_large(path, each.filename, max(each.file_size, len(content)))
                yield way.name, content
    except (zipfile.BadZipFile, NotImplementedError, EOFError, zipfile.zlib.error) as error:  # type: ignore[attr-defined]
        raise Refused(f"{path} is no directory and no ZIP archive, or a damaged one: {error}") from None
    except OSError as error:
        raise Refused(f"{path}: {error.strerror or error}") from None


def _too_large(path: Path, name: str, size: int) -> Refused:
    return Refused(
        f"{path}: {printable(name)} has {size / 1024**2:.1f} MiB; {LARGEST >> 20} MiB are allowed; nothing was changed"
    )


def _in_order(name: str) -> list[tuple[int, int, str]]:
    """Of 2.png and 10.png, the first is first."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name.lower()) if part
    ]


def _called(name: str, codes: set[str]) -> tuple[str, str]:
    """The body and the shortcode of a picture, from its file's name. codes: those that are taken."""
    stem = unicodedata.normalize("NFC", PurePosixPath(name).stem)
    body = " ".join(printable(stem).replace("_", " ").split())[:100] or "sticker"
    plain = re.sub(r"[^a-z0-9-]+", "_", body.lower()).strip("_-")[:80] or "sticker"
    code, number = plain, 1
    while code in codes:
        number += 1
        code = f"{plain}-{number}"
    return body, code


def _type(content: bytes) -> str | None:
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if content[:6] in (b"GIF87a", b"GIF89a"):
        return "image/gif"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return None


def _size(kind: str, content: bytes) -> tuple[int, int] | None:
    """Width and height; None if the file is not complete."""
    if kind == "image/png":
        # https://www.w3.org/TR/png-3/#5Chunk-layout: the first chunk has the size, the last one nothing.
        whole = content[12:16] == b"IHDR" and content.endswith(b"\0\0\0\0IEND\xaeB`\x82")
        return (int.from_bytes(content[16:20]), int.from_bytes(content[20:24])) if whole else None
    if kind == "image/gif":
        # Some programs write zeros behind the end.
        whole = len(content) > 13 and content.rstrip(b"\0").endswith(b";")
        return (int.from_bytes(content[6:8], "little"), int.from_bytes(content[8:10], "little")) if whole else None
    return _size_of_webp(content)


def _size_of_webp(content: bytes) -> tuple[int, int] | None:
    """https://developers.google.com/speed/webp/docs/riff_container"""
    if len(content) < 30 or int.from_bytes(content[4:8], "little") + 8 > len(content):
        return None
    chunk, data = content[12:16], content[20:]
    if chunk == b"VP8X":
        return 1 + int.from_bytes(data[4:7], "little"), 1 + int.from_bytes(data[7:10], "little")
    if chunk == b"VP8L" and data[0] == 0x2F:
        bits = int.from_bytes(data[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 " and data[3:6] == b"\x9d\x01\x2a":
        return int.from_bytes(data[6:8], "little") & 0x3FFF, int.from_bytes(data[8:10], "little") & 0x3FFF
    return None
