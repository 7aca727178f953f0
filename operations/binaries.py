"""Programs that exist only as a binary on their project's release page.

The controller downloads a program once, checks it, and keeps it in its cache; the machine gets it under
/opt/<program>/<version>-<sha12>/, and /opt/<program>/current switches to it once it has arrived complete. Where
upstream publishes no checksum, the first download is recorded beside the inventory, to be committed, and every later
one must match.

A task says what it wants, sees to it that it can be had before anything is touched, and installs it:

    proxy = settings_of(host).sliding_sync
    release = binaries.Release(
        program="sliding-sync",
        version=proxy.version,
        arch=proxy.architecture,
        url=proxy.url,
        file=proxy.file,
        sha256=proxy.sha256,
        record=proxy.record,
        file_setting="sliding_sync_binary",
        sha256_setting="sliding_sync_sha256",
    )
    binaries.installed(name="Install the Sliding Sync proxy", binary=binaries.obtain(release))
    units.running(name="Run the Sliding Sync proxy", unit="sliding-sync.service", reads=[release.executable, ...], ...)

A machine that already has the program needs neither a download nor a cache.
"""

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import re
import shlex
import socket
import ssl
import struct
import tempfile
import threading
import time
import tomllib
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from pyinfra.api.arguments import ConnectorArguments
from pyinfra.api.command import FileUploadCommand, FunctionCommand, PyinfraCommand
from pyinfra.api.host import Host
from pyinfra.api.state import State
from pyinfra.context import host as current_host

from operations.look import operation
from operations.refusal import Refused
from operations.shell import Fact, quoted, script

# ELF's e_machine numbers (elf.h), in Debian's words.
_MACHINES = {3: "i386", 21: "ppc64el", 22: "s390x", 40: "armhf", 62: "amd64", 183: "arm64", 243: "riscv64"}
# What a mistake in an address or a path mostly leads to.
_OTHERS = {b"\x1f\x8b": "a gzip archive", b"PK": "a zip archive", b"\xfd7zXZ": "an xz archive", b"<": "a web page"}
_DIRECTORY = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_~-]*-[0-9a-f]{12}")
_CHUNK = 1 << 20


class BinaryError(Refused):
    """What is wrong, where, and what to set or do about it, in one line."""


@dataclass(frozen=True)
class Timeouts:
    """Seconds to wait for a connection, its TLS handshake included, and for each piece of the answer."""

    connect: float = 15
    read: float = 60


@dataclass(frozen=True)
class Release:
    """A program of a project's release page for one kind of machine, and what the settings say about it.

    program: its name below /opt.
    version: as upstream writes it; part of a directory's name.
    arch: the machine's architecture in Debian's words, amd64 or arm64.
    url: https address of the release asset; None where there is none to download.
    record: file with the sha256 of every first download, `inventories/<name>.lock`.
    file: path on the controller to install instead of upstream's asset.
    sha256: what the program must be; beats the record.
    file_setting, sha256_setting: what the last two are called in group_data, for messages.
    root: directory on the machine that the program's own directory lies in.
    """

    program: str
    version: str
    arch: str
    url: str | None
    record: Path
    file_setting: str
    sha256_setting: str
    file: Path | None = None
    sha256: str | None = None
    root: str = "/opt"

    def __post_init__(self) -> None:
        for value in (self.program, self.version):
            if not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z.+_~-]*", value) or value == "current":
                raise BinaryError(f"{value!r} cannot be a directory's name: letters, digits and . + _ ~ - are allowed")
        if self.arch not in ("amd64", "arm64"):
            raise BinaryError(f"{self} cannot be installed on {self.arch}: amd64 and arm64 are allowed")

    def __str__(self) -> str:
        return f"{self.program} {self.version}"

    @property
    def executable(self) -> str:
        """Where the program lies on the machine, whichever version is in use."""
        return f"{self.root}/{self.program}/current/{self.program}"

    def directory(self, sha256: str) -> str:
        """Name of the directory below /opt/<program> that holds exactly this file."""
        return f"{self.version}-{sha256[:12]}"


@dataclass(frozen=True)
class Binary:
    """One file to install.

    path: where it lies on the controller; None if the machine has it already, so that it was not fetched.
    new: nothing said what it should be; `installed` records it once it is on a machine.
    """

    release: Release
    sha256: str
    path: Path | None = None
    new: bool = False

    @property
    def directory(self) -> str:
        return self.release.directory(self.sha256)


# --- on the controller ----------------------------------------------------------------------------


def default_cache() -> Path:
    """Where downloads are kept: `matrix-metal` below XDG_CACHE_HOME or ~/.cache."""
    # The specification ignores relative paths.
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if given.startswith("/") else Path.home() / ".cache") / "matrix-metal"


def wanted_sha256(release: Release) -> str | None:
    """What the program must be, known without a download: from a given file, the settings or the record; else None.

    Raises BinaryError if the given file, the setting or the record is not usable.
    """
    if release.file is not None:
        return _given(release, release.file).sha256
    return _set_sha256(release) or read_record(release.record).get(_key(release))


def resolve(release: Release, cache: Path | None = None, timeouts: Timeouts | None = None) -> Binary:
    """The program as a checked file on the controller: the given one, or upstream's, downloaded if the cache lacks it.

    Writes nothing but the cache, so that a dry run may call it.
    Raises BinaryError: not downloadable, not what the settings or the record say, not for this architecture.
    """
    if release.file is not None:
        return _given(release, release.file)
    if release.url is None:
        raise BinaryError(f"{release} is not published for download: set {release.file_setting} = '/path/to/file'")
    url = release.url
    if not _is_https(url):
        raise BinaryError(f"{release} would be downloaded from {url}: only https:// is allowed, {_instead(release)}")
    wanted = wanted_sha256(release)
    cache = cache or default_cache()
    # The address is part of the name: what a mirror or a test served is never taken for upstream's first download.
    stem = f"{release.program}-{release.version}-{release.arch}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    timeouts = timeouts or Timeouts()
    # Machines are prepared side by side, and the first one downloads for all.
    with _downloading:
        path = _cached(cache, stem, wanted) or _download(release, url, wanted, cache, stem, timeouts)
    sha256 = path.name.rpartition("-")[2]
    _check_runs_on(path, release.arch, f"{url} is", _instead(release))
    return Binary(release, sha256, path, new=wanted is None)


_downloading = threading.Lock()


def _instead(release: Release) -> str:
    return f"set {release.file_setting} = '/path/to/file' instead, or try again"


def _given(release: Release, file: Path) -> Binary:
    setting = f"{release.file_setting} = {str(file)!r}"
    path = file.expanduser()
    try:
        if not path.is_file():
            problem = "is not a regular file" if path.exists() else "does not exist"
            raise BinaryError(f"{setting}: {path} {problem} on this machine, from which you deploy")
        sha256 = _sha256(path)
        _check_runs_on(path, release.arch, f"{setting} is", f"set {release.file_setting} to another program")
    except OSError as error:
        raise BinaryError(f"{setting}: it cannot be read: {error.strerror}") from error
    wanted = _set_sha256(release)
    if wanted not in (None, sha256):
        raise BinaryError(
            f"{setting} has the sha256 {sha256}, not installed: {release.sha256_setting} for {release.arch} is {wanted}"
        )
    return Binary(release, sha256, path)


def _key(release: Release) -> tuple[str, str, str]:
    return release.program, release.version, release.arch


def _set_sha256(release: Release) -> str | None:
    value = release.sha256
    if value is None:
        return None
    if not _is_sha256(value.lower()):
        raise BinaryError(
            f"{release.sha256_setting} for {release.arch} is {value!r}: 64 hexadecimal digits are allowed"
        )
    return value.lower()


def _is_sha256(text: object) -> bool:
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text) is not None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_runs_on(path: Path, arch: str, subject: str, remedy: str) -> None:
    """Refuse what the machine could not execute: another architecture, a web page, an archive, half a program.

    subject: what it is, with its verb: `https://... is`.
    """

    def refuse(what: str) -> NoReturn:
        raise BinaryError(f"{subject} {what}: {remedy}")

    with path.open("rb") as file:
        head = file.read(64)
        if head.startswith(b"#!"):
            return
        if not head.startswith(b"\x7fELF"):
            kind = next((kind for magic, kind in _OTHERS.items() if head.lstrip().startswith(magic)), "something else")
            refuse(f"{kind if head else 'an empty file'}, neither a Linux program nor a script")
        if len(head) < 64 or head[4] not in (1, 2) or head[5] not in (1, 2):
            refuse("a damaged program: its header is incomplete")
        order = "<" if head[5] == 1 else ">"
        kind_number, machine = struct.unpack_from(f"{order}HH", head, 16)
        name = _MACHINES.get(machine, f"foreign (ELF machine {machine})")
        if name != arch or head[4] != 2:
            article = "an" if name[0] in "ais" else "a"
            refuse(f"{article} {name} program{'' if head[4] == 2 else ' for 32 bits'}, the machine is {arch}")
        # Executables, position-independent or not; not objects, core dumps.
        if kind_number not in (2, 3):
            refuse("an ELF file that cannot be executed")
        # A copy that broke off has a good header all the same; what is to be loaded must be there.
        (offset,) = struct.unpack_from(f"{order}Q", head, 32)
        size, count = struct.unpack_from(f"{order}HH", head, 54)
        file.seek(offset)
        table = file.read(size * count)
        ends = [sum(struct.unpack_from(f"{order}Q16xQ", table, at + 8)) for at in range(0, len(table) - 55, size or 56)]
        if size < 56 or len(table) < size * count or max(ends, default=0) > path.stat().st_size:
            refuse("a program that is cut short")


def _cached(cache: Path, stem: str, wanted: str | None) -> Path | None:
    """The file of an earlier download, if it is still what its name says. A damaged one is removed."""
    for path in sorted(cache.glob(f"{stem}-{wanted or '*'}")):
        with contextlib.suppress(OSError):
            if path.name == f"{stem}-{_sha256(path)}":
                return path
            path.unlink()
    return None


def _download(release: Release, url: str, wanted: str | None, cache: Path, stem: str, timeouts: Timeouts) -> Path:
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in cache.glob("*.part"):
            # Of a run that was killed; a younger one may be somebody's download.
            if leftover.stat().st_mtime < time.time() - 86400:
                leftover.unlink(missing_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache, suffix=".part") as part:
            sha256 = _fetch(release, url, part, timeouts)
            part.flush()
            if wanted not in (None, sha256):
                says = (
                    f"{release.sha256_setting} says"
                    if release.sha256
                    else f"{release.record} recorded at the first download"
                )
                raise BinaryError(
                    f"{url} has the sha256 {sha256}, but {says} {wanted}: not installed; if you know why it differs, "
                    f"set {release.sha256_setting}, or set {release.file_setting} = '/path/to/file' instead"
                )
            _check_runs_on(Path(part.name), release.arch, f"{url} is", _instead(release))
            path = cache / f"{stem}-{sha256}"
            # A link, not a rename: the temporary file then cleans itself up in every case.
            path.unlink(missing_ok=True)
            path.hardlink_to(part.name)
            return path
    except OSError as error:
        raise BinaryError(
            f"{release} cannot be kept in {cache}: {error.strerror}: set XDG_CACHE_HOME to a directory with room, "
            f"or set {release.file_setting} = '/path/to/file' instead"
        ) from error


def _fetch(release: Release, url: str, into: IO[bytes], timeouts: Timeouts) -> str:
    """Download; return the sha256 of what came."""

    def fail(reason: str, cause: BaseException | None = None) -> NoReturn:
        raise BinaryError(f"{release} could not be downloaded: {url}: {reason}: {_instead(release)}") from cause

    digest, received = hashlib.sha256(), 0
    response: http.client.HTTPResponse | None = None
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "matrix-metal"})  # noqa: S310 (https only)
        response = _opener(timeouts).open(request, timeout=timeouts.connect)
        assert response is not None
        expected = response.length
        # The end of the connection alone would not tell a complete file from half of one.
        if expected is None and not response.chunked:
            fail("the server does not say how long the file is")
        while chunk := response.read(_CHUNK):
            digest.update(chunk)
            received += len(chunk)
            try:
                into.write(chunk)
            except OSError as error:
                raise _NotWritten(error) from error
    except _NotWritten as error:
        raise error.cause from error
    except urllib.error.HTTPError as error:
        error.close()
        fail(f"the server answered {error.code} {error.reason}", error)
    except http.client.IncompleteRead as error:
        fail(f"the connection ended after {received + len(error.partial)} bytes, before the file was complete", error)
    except (OSError, http.client.HTTPException) as error:
        fail(_reason(error, url, timeouts, response is not None), error)
    finally:
        if response is not None:
            response.close()
    if expected is not None and received != expected:
        fail(f"the connection ended after {received} of {expected} bytes")
    return digest.hexdigest()


class _NotWritten(Exception):
    """The cache's own error, told apart from those of the network, which are OSErrors too."""

    def __init__(self, cause: OSError) -> None:
        self.cause = cause


def _reason(error: BaseException, url: str, timeouts: Timeouts, answered: bool) -> str:
    cause = getattr(error, "reason", None)
    if isinstance(error, urllib.error.URLError) and isinstance(cause, BaseException):
        return _reason(cause, url, timeouts, answered)
    name = urllib.parse.urlsplit(url).hostname
    match error:
        case ssl.SSLCertVerificationError():
            return f"the server's certificate is not trusted ({error.verify_message})"
        case ssl.SSLError():
            return f"no TLS connection ({error.reason or error})"
        case socket.gaierror():
            return f"the name cannot be resolved ({error.strerror})" if name else str(error)
        case TimeoutError():
            return f"nothing came for {timeouts.read:g} s" if answered else f"no answer within {timeouts.connect:g} s"
        case ConnectionRefusedError():
            return "connection refused"
        case ConnectionError():
            return "the server closed the connection"
        case OSError() if error.strerror:
            return error.strerror
    return str(error) or type(error).__name__


def _is_https(url: str) -> bool:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme == "https" and bool(parts.hostname)


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    """Follows redirects, as release pages answer with, but never to where the answer could be forged."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if not _is_https(newurl):
            raise urllib.error.URLError(f"it redirects to {newurl}, and only https:// is allowed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(timeouts: Timeouts) -> urllib.request.OpenerDirector:
    """https and nothing else, through the proxy of the environment if there is one, trusting what OpenSSL trusts."""

    class Connection(http.client.HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            # Up to here the socket waited as long as a connection may take.
            self.sock.settimeout(timeouts.read)

    class Handler(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Connection, req, context=context)

    context = ssl.create_default_context()
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _OnlyHttps(),
        urllib.request.HTTPErrorProcessor(),
        Handler(context=context),
    ):
        opener.add_handler(handler)
    return opener


# --- the record -----------------------------------------------------------------------------------

_HEADER = """\
# sha256 of each program from a release page, as it was when it was first downloaded. Commit this file: every later
# download must match it.
"""


def read_record(record: Path) -> dict[tuple[str, str, str], str]:
    """(program, version, architecture) -> sha256; empty if there is no record yet.

    Raises BinaryError if it cannot be read, so that a damaged record is never taken for none.
    """
    try:
        content = tomllib.loads(record.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BinaryError(f"{record} cannot be read ({error}): restore it from version control") from error
    sums: dict[tuple[str, str, str], str] = {}
    for program, versions in content.items():
        for version, architectures in versions.items() if isinstance(versions, dict) else [("", None)]:
            if not isinstance(architectures, dict) or not all(map(_is_sha256, architectures.values())):
                raise BinaryError(f"{record}: {program} {version} has no sha256 in it: restore it from version control")
            sums |= {(program, version, arch): sha256 for arch, sha256 in architectures.items()}
    return sums


def remember(binary: Binary) -> bool:
    """Record what was downloaded; whether there was something to record.

    Raises BinaryError if the record came to say something else in the meantime.
    """
    if not binary.new:
        return False
    record, key = binary.release.record, _key(binary.release)
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        # Locks the directory, for a file that is replaced cannot carry a lock.
        directory = os.open(record.parent, os.O_RDONLY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            sums = read_record(record)
            if sums.get(key) == binary.sha256:
                return False
            if key in sums:
                raise BinaryError(
                    f"{record} says {sums[key]} for {binary.release} on {binary.release.arch} by now, but "
                    f"{binary.sha256} was downloaded: run again"
                )
            _replace(record, _as_text({**sums, key: binary.sha256}))
        finally:
            os.close(directory)
    except OSError as error:
        raise BinaryError(f"{record} cannot be written: {error.strerror}") from error
    return True


def _as_text(sums: Mapping[tuple[str, str, str], str]) -> str:
    lines = [_HEADER]
    table: tuple[str, str] | None = None
    for (program, version, arch), sha256 in sorted(sums.items()):
        if table != (program, version):
            table = (program, version)
            lines.append(f"\n[{json.dumps(program)}.{json.dumps(version)}]\n")
        lines.append(f"{json.dumps(arch)} = {json.dumps(sha256)}\n")
    return "".join(lines)


def _replace(path: Path, text: str) -> None:
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


# --- on the machine -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Installation:
    """current: directory in use; sha256, mode: of the program in the directory asked about, empty if it is not there;
    versions: directories of every version kept, last used first."""

    current: str = ""
    sha256: str = ""
    mode: str = ""
    versions: tuple[str, ...] = ()


class Installed(Fact[Installation]):
    """What a machine has of a program, in the directory in use unless another one is asked about."""

    def question(self, program: str, root: str = "/opt", directory: str = "current") -> str:
        file = shlex.quote(f"{directory}/{program}")
        return (
            f"if cd {quoted(f'{root}/{program}')} 2>/dev/null; then "
            'echo "current=$(readlink current)"; '
            f'echo "mode=$(stat -c %a -- {file} 2>/dev/null)"; '
            f'echo "sha256=$(sha256sum <{file} 2>/dev/null)"; '
            "ls -1dt -- */ 2>/dev/null | sed 's/^/version=/'; "
            "fi 2>/dev/null; true"
        )

    @staticmethod
    def default() -> Installation:
        return Installation()

    def answer(self, lines: list[str]) -> Installation:
        values: dict[str, str] = {}
        versions: list[str] = []
        for line in lines:
            key, _, value = line.partition("=")
            if key == "version":
                versions.append(value.rstrip("/"))
            else:
                values[key] = value
        return Installation(
            current=values.get("current", ""),
            sha256=values.get("sha256", "").partition(" ")[0],
            mode=values.get("mode", ""),
            # Nothing but our own directories is ever counted, and so ever removed.
            versions=tuple(version for version in versions if _DIRECTORY.fullmatch(version)),
        )


def _ask(host: Host, release: Release, directory: str = "current") -> Installation:
    return host.get_fact(Installed, program=release.program, root=release.root, directory=directory)


def needs(host: Host, release: Release, sha256: str) -> bool:
    """Whether the file would have to be uploaded to this machine."""
    return _ask(host, release, release.directory(sha256)).sha256 != sha256


def obtain(release: Release, cache: Path | None = None) -> Binary:
    """The program for the current machine: checked, and on the controller unless the machine has it already.

    To be called by a task before it installs, so that a wrong setting or a dead server stops the run early.
    Raises BinaryError.
    """
    if release.file is None:
        wanted = wanted_sha256(release)
        if wanted is not None and not needs(current_host, release, wanted):
            return Binary(release, wanted)
    return resolve(release, cache)


@operation()
def installed(binary: Binary, mode: str = "755") -> Generator[PyinfraCommand, None, None]:
    """The program lies in a directory of its own, complete, and `current` leads to it.

    It gets its name only after the machine itself has checked it, so neither an upload that broke off nor a full disk
    leaves a wrong program behind. The version before is kept, older ones are removed. A first download is recorded.
    """
    release = binary.release
    host: Host = current_host
    now = _ask(host, release)
    in_use = now.current == binary.directory
    there = now if in_use else _ask(host, release, binary.directory)
    whole = there.sha256 == binary.sha256

    others = [version for version in now.versions if version != binary.directory]
    before = others[:1] if in_use or now.current not in others else [now.current]
    surplus = [version for version in others if version not in before]

    if whole and in_use and there.mode == mode and not surplus and not binary.new:
        host.noop(f"{release} is installed")
        return
    home = f"{release.root}/{release.program}"
    if not whole:
        yield from _upload(binary, home, mode)
    if not (whole and in_use and there.mode == mode):
        yield script(
            f"cd {quoted(home)}",
            f"chmod {mode} {quoted(f'{binary.directory}/{release.program}')}",
            # Says when the version before was last in use: what to keep is told by that.
            *([f"touch -c {quoted(now.current)}"] if before == [now.current] else []),
            # A unit that watches the program must see a switch back to an older file as a change, too.
            f"touch {quoted(binary.directory, f'{binary.directory}/{release.program}')}",
            f"ln -sfn {quoted(binary.directory)} .current.new",
            "mv -fT .current.new current",
        )
    if surplus:
        yield script(f"cd {quoted(home)}", f"rm -rf -- {quoted(*surplus)}")
    if binary.new:
        yield FunctionCommand(_remember_and_say, (binary,), {})


class _Upload(FileUploadCommand):
    """An upload that takes away what it left when it fails: half a program would fill a full disk for good."""

    def execute(self, state: State, host: Host, connector_arguments: ConnectorArguments) -> bool:
        done = False
        try:
            done = bool(super().execute(state, host, connector_arguments.copy()))
        finally:
            if not done:
                # Without a connection this fails too; then the next run does it.
                with contextlib.suppress(Exception):
                    left = quoted(self.dest, str(self.remote_temp_filename))
                    script(f"rm -f -- {left}").execute(state, host, connector_arguments)
        return done


def _upload(binary: Binary, home: str, mode: str) -> Iterator[PyinfraCommand]:
    release = binary.release
    if binary.path is None:
        raise BinaryError(f"{release} was on {current_host.name} when this run began, and is damaged now: run again")
    # A name of its own: two people who deploy at once must not write into each other's file.
    token = uuid.uuid4().hex
    arriving = f"{home}/.arriving-{token}"
    # Where pyinfra puts it first when it must then copy it through sudo.
    handover = current_host.get_temp_filename(f"{release.program}-", hash_filename=False)
    size = binary.path.stat().st_size
    yield script(
        f"install -d -m 755 {quoted(home)}",
        f"rm -f -- {quoted(home)}/.arriving-* {quoted(handover)}*",
        f'if [ "$(df -B1 --output=avail {quoted(home)} | tail -n 1)" -lt {size} ]; then',
        f"  echo {quoted(f'{release}: {home} has no room for {size} bytes: not installed')} >&2",
        "  exit 1",
        "fi",
    )
    yield _Upload(str(binary.path), arriving, remote_temp_filename=f"{handover}{token}")
    yield script(
        f"trap {quoted(f'rm -f -- {quoted(arriving)}')} EXIT",
        f"got=$(sha256sum <{quoted(arriving)}); got=${{got%% *}}",
        f'if [ "$got" != {binary.sha256} ]; then',
        f'  echo {quoted(str(release))}": $got arrived instead of {binary.sha256}: not installed, run again" >&2',
        "  exit 1",
        "fi",
        f"chmod {mode} {quoted(arriving)}",
        f"install -d -m 755 {quoted(f'{home}/{binary.directory}')}",
        # Else a power cut could leave the name without the content.
        f"sync {quoted(arriving)}",
        f"mv -fT {quoted(arriving, f'{home}/{binary.directory}/{release.program}')}",
    )


def _remember_and_say(binary: Binary) -> None:
    if remember(binary):
        current_host.log(f"{binary.release.record} now holds the sha256 of {binary.release}: commit it")
