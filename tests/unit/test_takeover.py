"""`manage.py NAME takeover`: what is found in the files of an older homeserver, what is refused, and what is said."""

import gzip
import importlib.util
import re
import sqlite3
from collections.abc import Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from manage.takeover import described, problems, settings_not_taken
from operations.templating import TEMPLATES

SERVER, DOMAIN = "example.org", "matrix.example.org"
CONFIGURATION = """
server_name: example.org
database: {name: psycopg2, args: {database: synapse}}
media_store_path: /data/media_store
signing_key_path: /data/example.org.signing.key
registration_shared_secret: registers
"""
OF_DEBIAN = """
pid_file: "/var/run/matrix-synapse.pid"
log_config: "/etc/matrix-synapse/log.yaml"
media_store_path: "/var/lib/matrix-synapse/media"
uploads_path: "/var/lib/matrix-synapse/uploads"
signing_key_path: "/etc/matrix-synapse/homeserver.signing.key"
tls_certificate_path: "/etc/matrix-synapse/homeserver.tls.crt"
tls_private_key_path: "/etc/matrix-synapse/homeserver.tls.key"
tls_dh_params_path: "/etc/matrix-synapse/homeserver.tls.dh"
no_tls: false
database: {name: "sqlite3", args: {database: "/var/lib/matrix-synapse/homeserver.db"}}
listeners:
  - {port: 8448, bind_addresses: ["::1", "127.0.0.1"], type: http, tls: true, resources: [{names: [client, federation]}]}
  - {port: 8008, bind_addresses: ["::1", "127.0.0.1"], type: http, tls: false, resources: [{names: [client, federation]}]}
max_upload_size: "100M"
turn_allow_guests: false
thumbnail_sizes: [{width: 32, height: 32, method: crop}, {width: 96, height: 96, method: crop}]
"""
DUMP = r"""--
-- PostgreSQL database dump
--
\restrict abc
SET transaction_timeout = 0;
CREATE EXTENSION IF NOT EXISTS plpgsql WITH SCHEMA pg_catalog;
CREATE TABLE public.users (name text);
ALTER TABLE public.users OWNER TO synapse_user;
ALTER SEQUENCE public.events_stream_seq OWNED BY public.events.stream;
COPY public.users (name, password_hash) FROM stdin;
@anna:example.org	\N
DROP TABLE users;	\\connect
\.
COPY public.schema_version (lock, version, upgraded) FROM stdin;
X	83	t
\.
COPY public.schema_compat_version (lock, compat_version) FROM stdin;
X	82
\.
COPY public.access_tokens (id) FROM stdin;
\.
COPY public.rooms (room_id) FROM stdin;
\.
COPY public.events (event_id) FROM stdin;
\.
COPY public.room_memberships (event_id) FROM stdin;
\.
COPY public.local_media_repository (media_id) FROM stdin;
\.
REVOKE ALL ON SCHEMA public FROM PUBLIC;
--
-- PostgreSQL database dump complete
--
\unrestrict abc
"""


@pytest.fixture(scope="module")
def program() -> ModuleType:
    loader = SourceFileLoader("takeover_source", str(TEMPLATES / "takeover/source.py"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """What was copied of a container's directory, and a dump."""
    directory = tmp_path / "old"
    (directory / "media_store/local_content/aa").mkdir(parents=True)
    (directory / "media_store/local_content/aa/picture").write_text("a picture")
    (directory / "homeserver.yaml").write_text(CONFIGURATION)
    (directory / "example.org.signing.key").write_text("ed25519 a_key seed\n")
    (directory / "synapse.sql").write_text(DUMP)
    return directory


# --- what is found --------------------------------------------------------------------------------


def test_a_containers_directory(program: ModuleType, old: Path) -> None:
    source = program.Source([str(old)])
    assert (source.database, source.kind, source.media) == (old / "synapse.sql", "plain", old / "media_store")
    assert source.signing_key == "ed25519 a_key seed\n"
    assert [path.name for path in source.media_files()] == ["picture"]
    assert source.own_media(source.media_files()) == 1
    # Without a secret for macaroons, Synapse takes the other.
    assert source.secrets == {"synapse_macaroon_secret_key": "registers"}


def test_debians_package(program: ModuleType, tmp_path: Path) -> None:
    """As matrix-synapse 1.160.0-1 is installed, with its settings that are in our way."""
    root, user = tmp_path / "root", {"registration_shared_secret": "registers"}
    etc, lib = root / "etc/matrix-synapse", root / "var/lib/matrix-synapse"
    (etc / "conf.d").mkdir(parents=True)
    (lib / "media/local_content/aa/bb").mkdir(parents=True)
    (etc / "homeserver.yaml").write_text(OF_DEBIAN)
    for name, settings in {
        "report_stats": {"report_stats": False},
        "server_name": {"server_name": SERVER},
        "registration": user,
    }.items():
        (etc / f"conf.d/{name}.yaml").write_text(yaml.safe_dump(settings))
    (etc / "homeserver.signing.key").write_text("ed25519 a_OXnI seed\n")
    sqlite_database(lib / "homeserver.db")
    source = program.Source([str(root)])
    assert (source.database, source.kind, source.media) == (lib / "homeserver.db", "SQLite", lib / "media")
    assert source.configuration["server_name"] == SERVER and source.signing_key == "ed25519 a_OXnI seed\n"
    ours = ["database", "listeners", "max_upload_size", "media_store_path", "report_stats"]
    # Caddy has the certificates, systemd the process; Synapse does not know the others any more.
    _, ignored = settings_not_taken(found(settings=sorted(source.configuration), passwords=[], ours=ours))
    assert ignored == ["thumbnail_sizes", "turn_allow_guests"]
    # With PostgreSQL, as its file says: what is in conf.d replaces the database of homeserver.yaml, which is still there.
    (etc / "conf.d/database.yaml").write_text("database: {name: psycopg2, args: {database: synapse}}\n")
    (lib / "synapse.dump").write_text(DUMP)
    source = program.Source([str(root)])
    assert (source.database, source.kind) == (lib / "synapse.dump", "plain")


def test_directories_of_a_package(program: ModuleType, old: Path, tmp_path: Path) -> None:
    etc, lib = tmp_path / "root/etc/matrix-synapse", tmp_path / "root/var/lib/matrix-synapse"
    (etc / "conf.d").mkdir(parents=True)
    lib.mkdir(parents=True)
    text = CONFIGURATION.replace("server_name: example.org\n", "").replace(
        "/data/media_store", "/var/lib/matrix-synapse/media"
    )
    (etc / "homeserver.yaml").write_text(text.replace("/data/example.org.", "/etc/matrix-synapse/homeserver."))
    (etc / "conf.d/server_name.yaml").write_text(
        "server_name: example.org\nform_secret_path: /etc/matrix-synapse/form\n"
    )
    (etc / "homeserver.signing.key").write_text("ed25519 a_key seed\n")
    (etc / "form").write_text("forms\n")
    (old / "media_store").rename(lib / "media")
    # One directory with both, as they were; or each of them.
    for paths in ([tmp_path / "root"], [etc, lib], [etc, lib / "media"]):
        source = program.Source([str(path) for path in (*paths, old / "synapse.sql")])
        assert source.configuration["server_name"] == SERVER and source.media == lib / "media", paths
        assert source.secrets["synapse_form_secret"] == "forms"  # noqa: S105


@pytest.mark.parametrize(
    ("file", "named", "given"),
    [
        ("homeserver.yaml", ("media_store", "", ""), ["synapse"]),
        ("homeserver.yaml", ("./media", "./own.key", "./own.db"), ["synapse"]),
        # They begin where Synapse was started, which need not be the directory of the configuration.
        ("etc/homeserver.yaml", ("data/media", "keys/own.key", "data/own.db"), ["synapse"]),
        ("etc/homeserver.yaml", ("../data/media", "../keys/own.key", "../data/own.db"), ["synapse"]),
        (
            "etc/homeserver.yaml",
            ("data/media", "keys/own.key", "data/own.db"),
            ["synapse/etc", "synapse/data", "synapse/keys"],
        ),
    ],
)
def test_a_virtualenv_with_paths_that_are_relative(
    program: ModuleType, tmp_path: Path, file: str, named: tuple[str, str, str], given: list[str]
) -> None:
    home = tmp_path / "synapse"
    configuration: dict[str, Any] = {"server_name": SERVER, "media_store_path": named[0]}
    if named[1]:
        configuration |= {"signing_key_path": named[1], "database": {"name": "sqlite3", "args": {"database": named[2]}}}
    defaults = ("", f"{SERVER}.signing.key", "homeserver.db")
    media, key, database = (
        home / (name or default).removeprefix("../") for name, default in zip(named, defaults, strict=True)
    )
    for directory in (home / "env/bin", (home / file).parent, media, key.parent, database.parent):
        directory.mkdir(parents=True, exist_ok=True)
    (home / "env/bin/python").symlink_to("/nowhere/python3.11")
    (home / file).write_text(yaml.safe_dump(configuration))
    key.write_text("ed25519 a_key seed\n")
    sqlite3.connect(database).execute("CREATE TABLE schema_version (version)")
    source = program.Source([str(tmp_path / path) for path in given])
    assert (source.file, source.media, source.database, source.kind) == (home / file, media, database, "SQLite")
    assert source.signing_key == "ed25519 a_key seed\n"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("rm homeserver.yaml", "there is no homeserver.yaml in what was given"),
        ("mkdir x && cp homeserver.yaml x", "there are several: .*x/homeserver.yaml; give one homeserver.yaml only"),
        ("rm *.key", "there is no signing key example.org.signing.key in what was given"),
        ("rm -r media_store", "there is no directory media_store, with the media, in what was given"),
        ("rm *.sql", "there is no dump by pg_dump, or SQLite database that homeserver.yaml names, in what was given"),
        ("cp synapse.sql other.sql", "there are several: .*other.sql, .*synapse.sql; give one dump by pg_dump"),
        ("rm *.sql; mkdir -p pg/base && touch pg/PG_VERSION", "pg has PostgreSQL's own files: give a dump"),
        ("echo '{' >homeserver.yaml", "homeserver.yaml is no YAML: "),
        ("echo 'text' >homeserver.yaml", "homeserver.yaml has no settings of Synapse's"),
        (
            "echo 'form_secret_path: /run/form' >>homeserver.yaml",
            "there is no form, which form_secret_path names, in what",
        ),
    ],
)
def test_what_is_missing_or_there_twice_is_refused(program: ModuleType, old: Path, change: str, problem: str) -> None:
    program.subprocess.run(["sh", "-c", change], cwd=old, check=True)
    with pytest.raises(program.Problem, match=problem):
        assert program.Source([str(old)]).secrets


def test_a_path_that_does_not_exist_is_refused(program: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(program.Problem, match=r"there is no .*/nothing"):
        program.Source([str(tmp_path / "nothing")])


def test_a_full_disk_is_named(program: ModuleType) -> None:
    """As synapse_port_db writes it."""
    cause = 'could not extend file "base/52215/52540": No space left on device'
    text = f"FirstError[#42, [Failure instance: Traceback: <class 'psycopg2.errors.DiskFull'>: {cause}\nHINT:  Check.\n]]\n"
    assert program.last_line(text) == cause and program.last_line("a\nb\n") == "b"


# --- dumps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "gzip"])
def test_a_dump_is_counted_and_loses_what_only_a_superuser_may_do(
    program: ModuleType, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "dump"
    path.write_bytes(gzip.compress(DUMP.encode()) if kind == "gzip" else DUMP.encode())
    assert program.kind_of(path) == kind
    found = program.look_at_dump(path, kind)
    assert found["counts"]["users"] == 2 and found["counts"]["events"] == 0
    assert (found["schema"], found["needs"], found["user"]) == (83, 82, "@anna:example.org")
    lines = b"".join(program.Dump(path, kind).lines()).decode()
    assert "DROP TABLE users;\t\\\\connect\n" in lines and "OWNED BY" in lines
    assert not [
        word for word in ("OWNER TO", "REVOKE", "EXTENSION", "transaction_timeout", "restrict") if word in lines
    ]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: text[: len(text) // 2], "dump is not whole: its end is missing"),
        (
            lambda text: text.replace("CREATE TABLE", "\\connect other\nCREATE TABLE"),
            r"command for psql, \\connect: make it",
        ),
        (lambda text: text.replace("CREATE TABLE", "\\! id\nCREATE TABLE"), r"has a command for psql, \\!: make it"),
        (lambda text: text.replace("\n", "\r\n"), "dump was written through a terminal: .* without -t"),
        (lambda text: text.replace("public.rooms", "public.spaces"), "has no data of Synapse's tables"),
    ],
)
def test_a_dump_that_is_damaged_or_of_another_kind(
    program: ModuleType, tmp_path: Path, change: Any, problem: str
) -> None:
    path = tmp_path / "dump"
    path.write_text(change(DUMP))
    with pytest.raises(program.Problem, match=problem):
        program.look_at_dump(path, "plain")


def test_a_compressed_dump_that_ends_early(program: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_bytes(gzip.compress(DUMP.encode() * 100)[:-200])
    with pytest.raises(program.Problem, match="dump is damaged: "):
        program.look_at_dump(path, program.kind_of(path))


# --- SQLite ---------------------------------------------------------------------------------------


def sqlite_database(path: Path) -> None:
    with sqlite3.connect(path) as database:
        for table in ("access_tokens", "rooms", "events", "room_memberships", "local_media_repository"):
            database.execute(f"CREATE TABLE {table} (id)")
        database.execute("CREATE TABLE users (name)")
        database.execute("CREATE TABLE schema_version (version)")
        database.execute("INSERT INTO users VALUES ('@anna:example.org')")
        database.execute("INSERT INTO schema_version VALUES (54)")
    database.close()


def test_sqlite(program: ModuleType, old: Path) -> None:
    (old / "synapse.sql").unlink()
    (old / "homeserver.yaml").write_text(
        CONFIGURATION.replace(
            "{name: psycopg2, args: {database: synapse}}", "{name: sqlite3, args: {database: /data/h.db}}"
        )
    )
    sqlite_database(old / "h.db")
    before = sorted(old.iterdir())
    found = program.Source([str(old)]).look_at_database()
    assert found["counts"]["users"] == 1 and (found["schema"], found["needs"]) == (54, 54)
    assert sorted(old.iterdir()) == before, "SQLite has made files beside the database"
    (old / "synapse.sql").write_text(DUMP)
    with pytest.raises(program.Problem, match=r"there are several: .*synapse\.sql, .*h\.db"):
        program.Source([str(old)])
    (old / "synapse.sql").unlink()
    (old / "h.db-wal").write_text("changes")
    with pytest.raises(
        program.Problem, match=r"h\.db-wal shows .* at work when this was copied, or was killed: start it"
    ):
        program.Source([str(old)]).look_at_database()
    (old / "h.db-wal").unlink()
    content = (old / "h.db").read_bytes()
    (old / "h.db").write_bytes(content[: len(content) // 2])
    with pytest.raises(program.Problem, match=r"h\.db (is damaged|cannot be read)"):
        program.Source([str(old)]).look_at_database()


# --- what is refused and said ---------------------------------------------------------------------


def found(**changes: Any) -> dict[str, Any]:
    database = {
        "path": "/old/synapse.sql",
        "kind": "plain",
        "size": 3 << 20,
        "counts": {"users": 2, "access_tokens": 3, "rooms": 1},
        "counted": "2 users, 3 access tokens, 1 room",
        "schema": 83,
        "needs": 82,
        "known": 94,
        "user": "@anna:example.org",
    }
    return {
        "server_name": SERVER,
        "delegated": False,
        "public_baseurl": "https://matrix.example.org/",
        "file": "/old/homeserver.yaml",
        "settings": [
            "database",
            "listeners",
            "modules",
            "password_config",
            "registration_shared_secret",
            "signing_key_path",
        ],
        "passwords": ["pepper", "policy"],
        "ours": ["database", "listeners", "registration_shared_secret_path", "signing_key_path"],
        "secrets": {"synapse_form_secret": "hidden"},
        "signing_keys": ["ed25519:a_key"],
        "old_signing_keys": ["ed25519:older"],
        "media": {"path": "/old/media_store", "files": 7, "size": 1 << 20, "own": 3},
        "database": {**database, **changes.pop("database", {})},
        "space": [{"at": "/var/lib", "needed": 1 << 30, "free": 2 << 30}],
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"server_name": "example.com"}, "is of example.com, and server_name of this deployment is example.org"),
        ({"server_name": None}, "is of no server_name"),
        ({"delegated": True}, "a Matrix Authentication Service has the accounts"),
        ({"database": {"counts": {"users": 0}}}, "/old/synapse.sql has no accounts"),
        ({"database": {"user": "@anna:example.com"}}, "has the account @anna:example.com, which is not of example.org"),
        ({"database": {"schema": 96, "needs": 95}}, r"by a newer Synapse \(schema 96\) than this one \(schema 94\)"),
        (
            {"space": [{"at": "/var/lib", "needed": 3 << 30, "free": 1 << 30}]},
            "3.0 GiB are needed in /var/lib, and 1.0 GiB",
        ),
    ],
)
def test_what_cannot_work_is_refused(changes: Mapping[str, Any], problem: str) -> None:
    [line] = problems(found(**changes), SERVER)
    assert re.search(problem, line), line


def test_a_newer_schema_that_this_synapse_can_use_is_taken() -> None:
    assert list(problems(found(database={"schema": 96, "needs": 94}), SERVER)) == []


def test_settings_are_named_and_secrets_are_not_shown() -> None:
    replaced, ignored = settings_not_taken(found())
    assert replaced == ["database", "listeners", "registration_shared_secret"]
    assert ignored == ["modules", "password_config.policy"]
    text = "\n".join(described(found(), DOMAIN))
    assert "hidden" not in text and "into the vault form_secret" in text and "ed25519:a_key" in text
    assert "2 users, 3 access tokens, 1 room\n" in text and "7 files, 1.0 MiB" in text


@pytest.mark.parametrize(("rows", "own", "told"), [(5, 0, "5 files"), (1, 0, "1 file"), (5, 1, ""), (0, 0, "")])
def test_media_that_were_not_copied_are_missed_before(rows: int, own: int, told: str) -> None:
    """The media of a container may be in a volume of their own, and are an empty directory in what is beside it."""
    media = {"path": "/old/media_store", "files": own, "size": 0, "own": own}
    counts = {"users": 2, "local_media_repository": rows}
    text = "\n".join(described(found(media=media, database={"counts": counts}), DOMAIN))
    assert (" of people, and none is there" in text) == bool(told)
    assert f"the database knows {told}" in text or not told
    assert re.search(rf"media_store: {own} file{'' if own == 1 else 's'}, 0 B$", text, re.M)


def test_rows_are_counted_in_plain_words(program: ModuleType) -> None:
    one = program.counted(dict.fromkeys(program.TABLES, 1))
    assert one == "1 user, 1 access token, 1 room, 1 event, 1 room membership, 1 local media file"
    several = program.counted(dict.fromkeys(program.TABLES, 2))
    assert several == "2 users, 2 access tokens, 2 rooms, 2 events, 2 room memberships, 2 local media files"


@pytest.mark.parametrize(
    ("url", "told"), [("https://chat.example.org:8448/", True), ("https://matrix.example.org", False), (None, False)]
)
def test_clients_that_know_it_by_another_name_are_no_surprise(url: str | None, told: bool) -> None:
    text = "\n".join(described(found(public_baseurl=url), DOMAIN))
    assert ("clients that are logged in know it as https://chat.example.org:8448/" in text) == told
