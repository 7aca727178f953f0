"""What was copied from the old homeserver, as the program beside this file finds it. All of it is only read."""

import contextlib
import gzip
import os
import re
import sqlite3
import subprocess
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

# How deep below a given directory files are looked for, and where they are not: in the media, which are many.
DEPTH = 6
MEDIA = {"local_content", "local_thumbnails", "remote_content", "remote_thumbnail", "url_cache", "url_cache_thumbnails"}
OWN_MEDIA = ("local_content", "url_cache")
# What is compared, and what one of it is called, and several.
TABLES = {
    "users": ("user", "users"),
    "access_tokens": ("access token", "access tokens"),
    "rooms": ("room", "rooms"),
    "events": ("event", "events"),
    "room_memberships": ("room membership", "room memberships"),
    "local_media_repository": ("local media file", "local media files"),
}
COPY = re.compile(rb'COPY (?:"?public"?\.)?"?(\w+)"? \((.*)\) FROM stdin;')
FAILURE = re.compile(r"\[Failure instance: Traceback: <class '[\w.]+'>: (.*)")
# In a dump: what only a superuser may do, or names owners and rights that are others here, or removes what is not here yet.
NOT_OURS = re.compile(
    rb"GRANT |REVOKE |DROP |CREATE EXTENSION |COMMENT ON (EXTENSION|SCHEMA|DATABASE) |CREATE SCHEMA |ALTER SCHEMA |"
    rb"ALTER DEFAULT PRIVILEGES |ALTER .* OWNER TO |ALTER TABLE .* DROP CONSTRAINT |SET transaction_timeout "
)


class Problem(Exception):
    """Why it cannot be done, in one line."""


def files_below(paths: Iterable[Path]) -> Iterator[Path]:
    """The files that were given, and those below directories that were given."""
    for given in paths:
        if not given.exists():
            raise Problem(f"there is no {given}")
        if given.is_file():
            yield given
        for directory, names, files in os.walk(given):
            depth = len(Path(directory).relative_to(given).parts)
            cluster = "PG_VERSION" in files
            names[:] = [] if depth == DEPTH or cluster else sorted(name for name in names if name not in MEDIA)
            yield from [Path(directory, "PG_VERSION")] if cluster else (Path(directory, name) for name in sorted(files))


def kind_of(path: Path) -> str:
    """What a file is, if it may be a database: "SQLite", "plain", "gzip" or "custom"; otherwise ""."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        start = file.read(4096)
    if start.startswith(b"SQLite format 3\0"):
        return "SQLite"
    if start.startswith(b"PGDMP"):
        return "custom"
    kind = "gzip" if start.startswith(b"\x1f\x8b") else "plain"
    if kind == "gzip":
        with contextlib.suppress(OSError, EOFError, zlib.error), gzip.open(path) as file:
            start = file.read(4096)
    return kind if b"-- PostgreSQL database dump" in start else ""


def last_line(text: str) -> str:
    """Why a program has failed, as it says at its end. Twisted names the cause first, and then shows where it was."""
    if causes := FAILURE.findall(text):
        return str(causes[-1])
    return (text.strip().splitlines() or ["it says nothing"])[-1]


def counted(rows: Mapping[str, int]) -> str:
    """Rows of each table, for people."""
    return ", ".join(f"{number} {TABLES[table][number != 1]}" for table, number in rows.items())


class Dump:
    """A dump of PostgreSQL's. Once its lines were read: rows of each table, bytes of SQL, the first rows of some tables."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind = path, kind
        self.rows: Counter[str] = Counter()
        self.size = 0
        self.first: dict[str, dict[str, str]] = {}

    def raw(self) -> Iterator[bytes]:
        if self.kind != "custom":
            try:
                with gzip.open(self.path) if self.kind == "gzip" else self.path.open("rb") as file:
                    yield from file
            except (OSError, EOFError, zlib.error) as error:
                raise Problem(f"{self.path} is damaged: {error}") from None
            return
        command = ["pg_restore", "--no-owner", "--no-privileges", "--no-comments", "--file=-", str(self.path)]
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process,
        ):
            assert process.stdout
            yield from process.stdout
            if process.wait():
                errors.seek(0)
                raise Problem(
                    f"pg_restore cannot read {self.path}: {last_line(errors.read().decode(errors='replace'))}"
                )

    def lines(self) -> Iterator[bytes]:
        """The SQL as the owner of the new database can run it. Raises Problem if the dump is not whole."""
        table, columns, complete = "", [""], False
        for line in self.raw():
            if line.endswith(b"\r\n") and not self.size:
                raise Problem(
                    f"{self.path} was written through a terminal: make it again, with docker's exec without -t"
                )
            self.size += len(line)
            if table:
                if line == b"\\.\n":
                    table = ""
                else:
                    self.rows[table] += 1
                    if table in ("users", "schema_version", "schema_compat_version") and table not in self.first:
                        values = line.decode(errors="replace").rstrip("\n").split("\t")
                        self.first[table] = dict(zip(columns, values, strict=False))
            elif copy := COPY.match(line):
                table, columns = copy[1].decode(), copy[2].decode().replace('"', "").split(", ")
                self.rows[table] += 0
            elif line.startswith(b"\\"):
                # psql runs these. Newer versions of pg_dump write the first two.
                if not line.startswith((b"\\restrict ", b"\\unrestrict ")):
                    what = line.split()[0].decode(errors="replace")
                    raise Problem(f"{self.path} has a command for psql, {what}: make it by pg_dump, of one database")
                continue
            elif NOT_OURS.match(line):
                continue
            complete = complete or line.startswith(b"-- PostgreSQL database dump complete")
            yield line
        if not complete:
            raise Problem(f"{self.path} is not whole: its end is missing")


def look_at_dump(path: Path, kind: str) -> dict[str, Any]:
    dump = Dump(path, kind)
    for _ in dump.lines():
        pass
    if not {"schema_version", *TABLES} <= dump.rows.keys():
        raise Problem(
            f"{path} has no data of Synapse's tables: it must be made by pg_dump, without --inserts or --schema-only"
        )
    version, compatible = (dump.first.get(name, {}) for name in ("schema_version", "schema_compat_version"))
    return {
        "size": dump.size,
        "counts": {table: dump.rows[table] for table in TABLES},
        "schema": int(version["version"]),
        "needs": int(compatible.get("compat_version") or version["version"]),
        "user": dump.first.get("users", {}).get("name", ""),
    }


def look_at_sqlite(path: Path) -> dict[str, Any]:
    for suffix in ("-journal", "-wal"):
        beside = path.with_name(path.name + suffix)
        if beside.exists() and beside.stat().st_size:
            raise Problem(
                f"{beside} shows that Synapse was at work when this was copied, or was killed: start it if it does not run, "
                "stop it, and copy again"
            )
    try:
        # immutable: SQLite makes no files beside it.
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)) as database:

            def one(query: str) -> Any:
                return (database.execute(query).fetchone() or [None])[0]

            if (state := one("PRAGMA quick_check(1)")) != "ok":
                raise Problem(f"{path} is damaged: {' '.join(str(state).split())}")
            schema = one("SELECT version FROM schema_version")
            has_compatible = one("SELECT count(*) FROM sqlite_master WHERE name = 'schema_compat_version'")
            return {
                "size": path.stat().st_size,
                "counts": {table: one(f"SELECT count(*) FROM {table}") for table in TABLES},  # noqa: S608 - a constant
                "schema": schema,
                "needs": (one("SELECT compat_version FROM schema_compat_version") if has_compatible else 0) or schema,
                "user": one("SELECT name FROM users LIMIT 1") or "",
            }
    except sqlite3.Error as error:
        raise Problem(f"{path} cannot be read as a database of Synapse's: {error}") from None


class Source:
    """What was copied from the old homeserver. Raises Problem if a part is missing, or there are several."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths = [Path(path) for path in paths]
        files = list(files_below(self.paths))
        given = [path for path in self.paths if path.is_file() and path.suffix == ".yaml"]
        self.file = only("homeserver.yaml", given or [path for path in files if path.name == "homeserver.yaml"])
        self.configuration = self._configuration()
        dumps = [path for path in files if kind_of(path) in ("plain", "gzip", "custom")]
        database = self.configuration.get("database") or {"name": "sqlite3"}
        sqlite = []
        if database.get("name") == "sqlite3":
            sqlite = self.resolve(str((database.get("args") or {}).get("database") or "homeserver.db"))
        clusters = [path for path in files if path.name == "PG_VERSION"]
        if clusters and not dumps and not sqlite:
            raise Problem(
                f"{clusters[0].parent} has PostgreSQL's own files: give a dump of the database, made by pg_dump, instead"
            )
        self.database = only("dump by pg_dump, or SQLite database that homeserver.yaml names,", [*dumps, *sqlite])
        self.kind = kind_of(self.database)
        if not self.kind:
            raise Problem(f"{self.database} is no SQLite database")
        named = str(self.configuration.get("media_store_path") or "media_store")
        self.media = only(f"directory {Path(named).name}, with the media,", self.resolve(named))
        self.signing_key = self._signing_key()

    def resolve(self, named: str) -> list[Path]:
        """Where a path of the old machine was copied to: the longest end of it that is below each given path."""
        parts = [part for part in Path(named).parts if part not in ("/", ".", "..")]
        found = []
        for root in (*self.paths, self.file.parent):
            ends = [root.joinpath(*parts[start:]) for start in range(len(parts))]
            if parts and root.name == parts[-1]:
                ends.append(root)
            found += [end for end in ends if end.exists()][:1]
        return list({path.resolve(): path for path in found}.values())

    def _configuration(self) -> dict[str, Any]:
        """As Synapse reads it: top-level keys of later files replace those of earlier ones."""
        found: dict[str, Any] = {}
        for file in (self.file, *sorted(self.file.parent.glob("conf.d/*.yaml"))):
            try:
                content = yaml.safe_load(file.read_text()) or {}
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise Problem(f"{file} is no YAML: {' '.join(str(error).split())}") from None
            if not isinstance(content, dict):
                raise Problem(f"{file} has no settings of Synapse's")
            found |= content
        return found

    def text(self, name: str) -> str:
        """A setting that may also be in a file, which NAME_path names."""
        if not (path := self.configuration.get(f"{name}_path")):
            return str(self.configuration.get(name) or "")
        return only(f"{Path(path).name}, which {name}_path names,", self.resolve(str(path))).read_text().strip()

    def _signing_key(self) -> str:
        name = "signing_key_path"
        if self.configuration.get("signing_key"):
            return str(self.configuration["signing_key"])
        named = str(self.configuration.get(name) or f"{self.configuration.get('server_name')}.signing.key")
        return only(f"signing key {Path(named).name}", self.resolve(named)).read_text()

    @property
    def secrets(self) -> dict[str, str]:
        """Those on which sessions, links and passwords depend."""
        passwords = self.configuration.get("password_config") or {}
        # Without the first, Synapse takes the second.
        macaroon = self.text("macaroon_secret_key") or self.text("registration_shared_secret")
        found = {
            "synapse_macaroon_secret_key": macaroon,
            "synapse_form_secret": self.text("form_secret"),
            "synapse_password_pepper": str(passwords.get("pepper") or ""),
        }
        return {name: value for name, value in found.items() if value}

    def media_files(self) -> list[Path]:
        return [path for path in self.media.rglob("*") if path.is_file()]

    def own_media(self, files: Iterable[Path]) -> int:
        """How many of them are in the database's table of local media."""
        return sum(path.relative_to(self.media).parts[0] in OWN_MEDIA for path in files)

    def look_at_database(self) -> dict[str, Any]:
        return look_at_sqlite(self.database) if self.kind == "SQLite" else look_at_dump(self.database, self.kind)


def only(what: str, found: list[Path]) -> Path:
    if not found:
        raise Problem(f"there is no {what} in what was given")
    if len(found) > 1:
        raise Problem(f"there are several: {', '.join(str(path) for path in found)}; give one {what} only")
    return found[0]
