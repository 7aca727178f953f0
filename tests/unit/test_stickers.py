"""Packs of stickers: what is taken for a picture, what is refused, and what is remembered. Without a machine."""

import base64
import json
import zipfile
from pathlib import Path

import pytest

from compat import Refused
from manage import pictures
from manage.backends.stickers import picker
from manage.pictures import pictures_in
from manage.stickers import Index, Pack, Sticker

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
GIF = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
WEBP = base64.b64decode("UklGRhoAAABXRUJQVlA4TA0AAAAvAAAAEAcQERGIiP4HAA==")


def wide(width: int) -> bytes:
    """A PNG that says it is so wide."""
    return PNG[:16] + width.to_bytes(4) + PNG[20:]


def folder(path: Path, **files: bytes) -> Path:
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def zipped(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_what_a_picture_is_its_content_says(tmp_path: Path) -> None:
    files = {"Happy_Cat.jpg": PNG, "wave 10.png": GIF, "wave 2": WEBP, "theirs.tgs": b"\x1f\x8b", ".hidden.png": PNG}
    found, left_out = pictures_in(folder(tmp_path / "pack", **files))
    assert [(each.body, each.code, each.type) for each in found] == [
        ("Happy Cat", "happy_cat", "image/png"),
        ("wave 2", "wave_2", "image/webp"),
        ("wave 10", "wave_10", "image/gif"),
    ]
    assert all((each.width, each.height) == (1, 1) for each in found) and left_out == ["theirs.tgs"]
    assert found[0].file == f"{found[0].sha256}.png"


def test_the_sizes_of_each_kind_of_webp(tmp_path: Path) -> None:
    def webp(chunk: bytes, data: bytes) -> bytes:
        body = b"WEBP" + chunk + len(data).to_bytes(4, "little") + data
        return b"RIFF" + len(body).to_bytes(4, "little") + body

    extended = webp(b"VP8X", b"\x02\0\0\0" + (511).to_bytes(3, "little") + (383).to_bytes(3, "little"))
    lossy = webp(b"VP8 ", b"\x10\0\0\x9d\x01\x2a" + (320).to_bytes(2, "little") + (240).to_bytes(2, "little"))
    found, _ = pictures_in(folder(tmp_path / "pack", a=extended, b=lossy))
    assert [(each.width, each.height) for each in found] == [(512, 384), (320, 240)]


def test_each_picture_of_a_pack_has_a_code_of_its_own(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", **{"a/cat.png": PNG, "b/cat.png": GIF, "c/CAT.webp": WEBP, "d/again.png": PNG})
    found, _ = pictures_in(path)
    # The same picture is in it once.
    assert [each.code for each in found] == ["cat", "cat-2", "cat-3"]
    found, _ = pictures_in(folder(tmp_path / "pack", **{"猫.png": PNG, "🙂.gif": GIF}))
    assert sorted((each.body, each.code) for each in found) == [("猫", "sticker"), ("🙂", "sticker-2")]


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"../../etc/cron.d/x.png": PNG}, "../../etc/cron.d/x.png leads out of the archive"),
        ({"..\\x.png": PNG}, "leads out of the archive"),
        ({"/etc/x.png": PNG}, "/etc/x.png leads out of the archive"),
        ({"cat.png": PNG[:-4]}, "cat.png is a damaged PNG"),
        ({"cat.gif": GIF[:-1]}, "cat.gif is a damaged GIF"),
        ({"cat.webp": WEBP[:-2]}, "cat.webp is a damaged WEBP"),
        ({"cat.png": wide(5000)}, "cat.png has 5000 x 1 pixels; 4096 each way are allowed"),
        ({"cat.png": wide(0)}, "cat.png has 0 x 1 pixels"),
        ({"bomb.png": PNG + bytes(5 * 1024**2)}, "bomb.png has 5.0 MiB; 4 MiB are allowed"),
        ({"page.svg": b"<svg>"}, "has no pictures that are PNG, WebP or GIF: page.svg is none, for example"),
        ({}, "has no pictures that are PNG, WebP or GIF"),
    ],
)
def test_what_is_refused(files: dict[str, bytes], why: str, tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        pictures_in(zipped(tmp_path / "x.zip", **files))
    assert why in str(refused.value) and "\n" not in str(refused.value)


def test_an_archive_may_lie_about_the_size_of_a_file(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", **{"bomb.png": PNG + bytes(5 * 1024**2)})
    told = path.read_bytes().replace((len(PNG) + 5 * 1024**2).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    path.write_bytes(told)
    with pytest.raises(Refused):
        pictures_in(path)


def test_what_is_no_archive_and_what_is_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cat.png").write_bytes(PNG)
    with pytest.raises(Refused, match="no directory and no ZIP archive"):
        pictures_in(tmp_path / "cat.png")
    monkeypatch.setattr(pictures, "MOST", 2)
    with pytest.raises(Refused, match="a pack has at most 2 pictures"):
        pictures_in(folder(tmp_path / "pack", a=PNG, b=GIF, c=WEBP))
    monkeypatch.setattr(pictures, "LARGEST_PACK", len(PNG))
    with pytest.raises(Refused, match="make several packs"):
        pictures_in(tmp_path / "pack")


def test_what_everybody_sees_says_nothing_about_rooms() -> None:
    sticker = Sticker("cat", "cat", "mxc://x.test/a", "0.png", {"w": 1, "h": 1})
    index = Index((Pack("Garden", (sticker,), ("!secret:x.test",)),), {"0": "mxc://x.test/a"})
    assert Index.read(index.written) == index and Index.read("") == Index()
    assert "!secret" not in index.shown and json.loads(index.shown)["packs"][0]["stickers"][0]["picture"] == "0.png"
    other = Pack("Garden", (), ())
    assert index.with_pack(other).packs == (other,) and index.with_pack(Pack("B", ())).packs[1].name == "B"
    assert picker("k", "@a:x.test", "https://s.test")["content"]["url"] == "https://s.test/?theme=$theme"
