"""The file of a release, from the cache or downloaded, checked against the settings, the record or upstream's checksums."""

import contextlib
import hashlib
import io
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

from releases import Release, ReleaseError, ReleaseFile, contents, record, signed
from releases.download import DownloadError, Timeouts, download, is_https
from whole_file import cache_directory, made_cache


def wanted_sha256(release: Release) -> str | None:
    """The sha256 that the file must have, known without a download: from a given file, the settings or the record; else None.

    Raises ReleaseError if the given file, the setting or the record is not usable.
    """
    if release.file is not None:
        return _given_file_sha256(release)
    return _configured_sha256(release) or record.read(release.record).get(record.key(release))


def wanted_directory(release: Release) -> str:
    """The name of the directory that a deploy would put to use, or how it begins if the file is not known before its download.

    Raises ReleaseError, as wanted_sha256.
    """
    sha256 = wanted_sha256(release)
    return release.directory(sha256) if sha256 else f"{release.version}-"


def resolve(release: Release, timeouts: Timeouts | None = None) -> ReleaseFile:
    """A checked file on this computer: the given one, or upstream's, downloaded if it is not in the cache.

    Writes nothing but the cache, so that a dry run may call it.
    Raises ReleaseError: it cannot be downloaded, has the wrong sha256, or is not for this architecture.
    """
    wanted, timeouts = wanted_sha256(release), timeouts or Timeouts()
    if release.file is not None:
        file = release.file.expanduser()
        advice = f"set {release.file_setting} to another {_kind(release)}"
        return ReleaseFile(release, str(wanted), file, _size(release, file, _setting(release), advice))
    if release.url is None:
        raise ReleaseError(f"{release} is not published for download: set {release.file_setting} = '/path/to/file'")
    signature = (release.signature.url, release.signature.key_url) if release.signature else ()
    for url in filter(None, (release.url, release.checksums, *signature)):
        if not is_https(url):
            raise ReleaseError(
                f"{release} would be downloaded from {url}: only https:// is allowed, {_advice(release)}"
            )
    # Machines are prepared in parallel, and the first one downloads for all.
    with _downloading:
        expected = wanted or (_published_sha256(release, timeouts) if release.checksums else None)
        sha256, path, size = _cached_or_downloaded(release, release.url, expected, timeouts)
        if release.signature and wanted is None:
            _check_signature(release, path, timeouts)
    return ReleaseFile(release, sha256, path, size, new=wanted is None)


_downloading = threading.Lock()


def _kind(release: Release) -> str:
    return "program" if release.archive is None else "archive"


def _advice(release: Release) -> str:
    return f"set {release.file_setting} = '/path/to/file' instead, or try again"


def _setting(release: Release) -> str:
    return f"{release.file_setting} = {str(release.file)!r}"


def _sha256_setting(release: Release) -> str:
    return release.sha256_setting if release.arch == "all" else f"{release.sha256_setting} for {release.arch}"


def _size(release: Release, path: Path, subject: str, advice: str) -> int:
    """Bytes it takes on a machine. Raises ReleaseError if a machine cannot use it. subject: its name in the message."""
    try:
        return contents.check(release, path)
    except contents.Unusable as problem:
        raise ReleaseError(f"{subject} {problem}: {advice}") from problem


def _given_file_sha256(release: Release) -> str:
    assert release.file is not None
    path = release.file.expanduser()
    try:
        if not path.is_file():
            problem = "is not a regular file" if path.exists() else "does not exist"
            raise ReleaseError(f"{_setting(release)}: {path} {problem} on this machine, from which you deploy")
        sha256 = _sha256(path)
    except OSError as error:
        raise ReleaseError(f"{_setting(release)}: it cannot be read: {error.strerror}") from error
    wanted = _configured_sha256(release)
    if wanted not in (None, sha256):
        raise ReleaseError(
            f"{_setting(release)} has the sha256 {sha256}, not installed: {_sha256_setting(release)} is {wanted}"
        )
    return sha256


def _configured_sha256(release: Release) -> str | None:
    if release.sha256 is None:
        return None
    if not record.is_sha256(release.sha256.lower()):
        raise ReleaseError(f"{_sha256_setting(release)} is {release.sha256!r}: 64 hexadecimal digits are allowed")
    return release.sha256.lower()


def _published_sha256(release: Release, timeouts: Timeouts) -> str:
    """The file's sha256 in upstream's list."""
    assert release.url is not None and release.checksums is not None
    name, text = unquote(urlsplit(release.url).path.rpartition("/")[2]), io.BytesIO()
    try:
        download(release.checksums, text, timeouts, limit=1 << 20)
    except DownloadError as error:
        raise ReleaseError(
            f"{release} cannot be checked: {release.checksums}: {error}: {_advice(release)}, or set "
            f"{release.sha256_setting}"
        ) from error
    lines = [line.partition(" ") for line in text.getvalue().decode(errors="replace").splitlines()]
    found = {sha256.lower() for sha256, _, file in lines if file.strip().lstrip("*").removeprefix("./") == name}
    if len(found) != 1 or not all(map(record.is_sha256, found)):
        raise ReleaseError(
            f"{release} cannot be checked: {release.checksums} has no sha256 of {name}: {_advice(release)}, or set "
            f"{release.sha256_setting}"
        )
    return found.pop()


def _check_signature(release: Release, path: Path, timeouts: Timeouts) -> None:
    """Also of a file in the cache: it was not recorded yet, so an earlier check may have failed."""
    assert release.signature is not None
    try:
        signed.check(release.signature, path, timeouts)
    except signed.NotSigned as problem:
        raise ReleaseError(
            f"{release} cannot be checked: {problem}: not installed; try again, or set {release.sha256_setting} if you know what "
            f"{release.url} must have"
        ) from problem


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cached_or_downloaded(
    release: Release, url: str, expected: str | None, timeouts: Timeouts
) -> tuple[str, Path, int]:
    """sha256, path and size of the file in the cache, downloaded if it is not there."""
    # The address is part of the name, so that the file of a mirror or a test is never taken for upstream's.
    cache = cache_directory()
    stem = f"{release.name}-{release.version}-{release.arch}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    try:
        path = _cached(cache, stem, expected)
        if path is not None:
            return path.name.rpartition("-")[2], path, _size(release, path, url, _advice(release))
        made_cache()
        for leftover in cache.glob("*.part"):
            # Left by a run that was killed; a younger one may be a download that is still running.
            if leftover.stat().st_mtime < time.time() - 86400:
                leftover.unlink(missing_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache, suffix=".part") as part:
            try:
                sha256 = download(url, part, timeouts)
            except DownloadError as error:
                raise ReleaseError(f"{release} could not be downloaded: {url}: {error}: {_advice(release)}") from error
            part.flush()
            if expected not in (None, sha256):
                raise ReleaseError(_mismatch(release, sha256, str(expected)))
            size = _size(release, Path(part.name), url, _advice(release))
            path = cache / f"{stem}-{sha256}"
            # A link, not a rename, so that the temporary file can be deleted in every case.
            path.unlink(missing_ok=True)
            path.hardlink_to(part.name)
            return sha256, path, size
    except OSError as error:
        raise ReleaseError(
            f"{release} cannot be kept in {cache}: {error.strerror}: set XDG_CACHE_HOME to a directory with space, "
            f"or set {release.file_setting} = '/path/to/file' instead"
        ) from error


def _mismatch(release: Release, sha256: str, expected: str) -> str:
    if release.sha256:
        says = f"{release.sha256_setting} says"
    elif record.key(release) in record.read(release.record):
        says = f"{release.record} recorded at the first download"
    else:
        says = f"{release.checksums} says"
    return (
        f"{release.url} has the sha256 {sha256}, but {says} {expected}: not installed; if you know why it differs, "
        f"set {release.sha256_setting}, or set {release.file_setting} = '/path/to/file' instead"
    )


def _cached(cache: Path, stem: str, wanted: str | None) -> Path | None:
    """The file of an earlier download, if it still has the sha256 of its name. A damaged one is removed."""
    for path in sorted(cache.glob(f"{stem}-{wanted or '*'}")):
        with contextlib.suppress(OSError):
            if path.name == f"{stem}-{_sha256(path)}":
                return path
            path.unlink()
    return None
