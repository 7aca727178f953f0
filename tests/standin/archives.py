"""Release archives with stand-ins in them."""

import io
import os
import tarfile
from pathlib import Path

import yaml

HERE = Path(__file__).parent
# What the archive of MAS has besides the program: nothing that the stand-in could show, only what it has to find.
MAS_SHARE = {
    "policy.wasm": b"\0asm",
    "manifest.json": b"{}",
    "assets/stand-in.css": b"",
    "templates/stand-in.html": b"",
    "translations/en.json": b"{}",
}


def real_mas() -> Path | None:
    """The archive of the real MAS, if MAS_BINARY names it; None: the stand-in is deployed."""
    named = os.environ.get("MAS_BINARY")
    return Path(named).expanduser().resolve() if named else None


def mas_archive(directory: Path) -> Path:
    """An archive like that of MAS, made in the directory, with tests/standin/mas-cli in it and the library that it needs."""
    path = directory / "mas-cli-stand-in.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        _add(archive, "mas-cli", (HERE / "mas-cli").read_bytes(), 0o755)
        for name, content in MAS_SHARE.items():
            _add(archive, f"share/{name}", content)
        for file in Path(yaml.__file__).parent.glob("*.py"):
            _add(archive, f"lib/yaml/{file.name}", file.read_bytes())
    return path


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))
