"""Files that exist only on a project's release page: downloaded, checked, cached and recorded on this computer.

`Release` describes the file, `store` gets it, operations/releases.py installs it on a machine. pyinfra is not needed here.

    store.py     the file, from the cache or downloaded, and checked
    download.py  the transfer
    signed.py    the signature of a first download
    contents.py  what may be in a program or an archive, and how either is packed for a machine
    record.py    inventories/<name>.lock, the sha256 of every first download
"""

import re
from dataclasses import dataclass
from pathlib import Path


class ReleaseError(Exception):
    """What is wrong, where, and what to set or do about it, in one line."""


@dataclass(frozen=True)
class Archive:
    """What a tar.gz must contain. Paths are those on the machine, without the stripped folders.

    programs: executables, which must be built for the machine's architecture.
    contains: further files that must be there, to recognise a wrong or incomplete archive.
    strip: how many leading folders are removed from each path, as in tar's --strip-components.
    scripts: those that may be in index.html itself, as a Content-Security-Policy names them; None: that is not looked at.
    """

    programs: tuple[str, ...] = ()
    contains: tuple[str, ...] = ()
    strip: int = 0
    scripts: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Signature:
    """How a first download is recognised as its authors' by OpenPGP, if they publish no checksum.

    url, key_url: https addresses of the detached signature and of the public keys, both as ASCII armour.
    fingerprint: that of the very key that has to have signed, 40 hexadecimal digits. Not that of the key which it belongs to:
    gpgv does not look at how the two are bound to each other.
    """

    url: str
    key_url: str
    fingerprint: str


@dataclass(frozen=True)
class Release:
    """A file of a project's release page for one architecture, and the settings about it.

    name: its directory below /opt; a single program has the same name.
    title: what it is called, if it is neither what a unit runs nor what the role is called after.
    version: as upstream writes it; part of a directory's name.
    arch: the machine's architecture as Debian names it, amd64 or arm64; "all" if every machine gets the same file.
    url: https address of the file; None if there is none to download.
    record: file with the sha256 of every first download, `inventories/<name>.lock`.
    file_setting, sha256_setting: what `file` and `sha256` are called in group_data, for messages.
    file: path on this computer to install instead of upstream's.
    sha256: what the file must have; takes precedence over the record.
    archive: what is in it; None for a single program.
    checksums: https address of upstream's list of sha256 sums, as sha256sum writes it: what a first download must match.
    signature: how a first download is recognised otherwise.
    root: directory on the machine in which its own directory is made.
    licence: what upstream says, as an expression of SPDX; "" if that is not known.
    """

    name: str
    version: str
    arch: str
    url: str | None
    record: Path
    file_setting: str
    sha256_setting: str
    file: Path | None = None
    sha256: str | None = None
    archive: Archive | None = None
    checksums: str | None = None
    signature: Signature | None = None
    root: str = "/opt"
    licence: str = ""
    title: str = ""

    def __post_init__(self) -> None:
        for value in (self.name, self.version):
            if not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z.+_~-]*", value) or value == "current":
                raise ReleaseError(f"{value!r} cannot be a directory's name: letters, digits and . + _ ~ - are allowed")
        if self.arch not in ("amd64", "arm64", "all"):
            raise ReleaseError(f"{self} cannot be installed on {self.arch}: amd64 and arm64 are allowed")

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    @property
    def home(self) -> str:
        """Its directory on the machine, which has one directory for each version."""
        return f"{self.root}/{self.name}"

    @property
    def distribution(self) -> str:
        """It is none of Python's distributions."""
        return ""

    @property
    def programs(self) -> tuple[str, ...]:
        """Paths of its executables, within a version's directory."""
        return (self.name,) if self.archive is None else self.archive.programs

    @property
    def executable(self) -> str:
        """Path on the machine of its first program, in the version in use."""
        return self.path(self.programs[0])

    def path(self, relative: str) -> str:
        """Path on the machine of one of its files, in the version in use."""
        return f"{self.home}/current/{relative}"

    def directory(self, sha256: str) -> str:
        """Name of the directory below its home that has exactly this file."""
        return f"{self.version}-{sha256[:12]}"


@dataclass(frozen=True)
class ReleaseFile:
    """One file to install.

    path: its path on this computer; None if the machine has it already, so that it was not downloaded.
    size: bytes it takes on the machine.
    new: its sha256 is neither in the settings nor in the record yet; it is recorded once it is on a machine.
    """

    release: Release
    sha256: str
    path: Path | None = None
    size: int = 0
    new: bool = False

    @property
    def directory(self) -> str:
        return self.release.directory(self.sha256)
