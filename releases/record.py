"""The record: `inventories/<name>.lock`, with the sha256 of every file as it was when it was first downloaded."""

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import whole_file
from releases import Release, ReleaseError, ReleaseFile

_HEADER = """\
# sha256 of each program from a release page, as it was when it was first downloaded. Commit this file: every later
# download must match it.
"""

Key = tuple[str, str, str]


def key(release: Release) -> Key:
    return release.name, release.version, release.arch


def is_sha256(text: object) -> bool:
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text) is not None


def read(record: Path) -> dict[Key, str]:
    """(name, version, architecture) -> sha256; empty if there is no record yet.

    Raises ReleaseError if it cannot be read, so that a damaged record is never taken for an empty one.
    """
    try:
        content = tomllib.loads(record.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ReleaseError(f"{record} cannot be read ({error}): restore it from version control") from error
    sums: dict[Key, str] = {}
    for name, versions in content.items():
        for version, architectures in versions.items() if isinstance(versions, dict) else [("", None)]:
            if not isinstance(architectures, dict) or not all(map(is_sha256, architectures.values())):
                raise ReleaseError(f"{record}: {name} {version} has no sha256 in it: restore it from version control")
            sums |= {(name, version, arch): sha256 for arch, sha256 in architectures.items()}
    return sums


def add(file: ReleaseFile) -> bool:
    """Record the sha256 of a download; returns whether the record was changed.

    Raises ReleaseError if another sha256 was recorded in the meantime.
    """
    record, entry = file.release.record, key(file.release)
    if not file.new:
        return False
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        with whole_file.locked(record.parent):
            sums = read(record)
            if sums.get(entry) == file.sha256:
                return False
            if entry in sums:
                raise ReleaseError(
                    f"{record} says {sums[entry]} for {file.release} on {file.release.arch} by now, but "
                    f"{file.sha256} was downloaded: run again"
                )
            mode = record.stat().st_mode & 0o777 if record.exists() else 0o644
            whole_file.replace(record, _as_text({**sums, entry: file.sha256}).encode(), mode)
    except OSError as error:
        raise ReleaseError(f"{record} cannot be written: {error.strerror}") from error
    return True


def _as_text(sums: Mapping[Key, str]) -> str:
    lines, table = [_HEADER], None
    for (name, version, arch), sha256 in sorted(sums.items()):
        if table != (name, version):
            table = name, version
            lines.append(f"\n[{json.dumps(name)}.{json.dumps(version)}]\n")
        lines.append(f"{json.dumps(arch)} = {json.dumps(sha256)}\n")
    return "".join(lines)
