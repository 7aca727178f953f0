"""How roles reach a database: connection strings, password verifiers, and which machines may connect."""

import base64
import ctypes
import ctypes.util
import hashlib
import hmac
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from click.testing import CliRunner, Result

from compat import Refused
from manage.postgres import postgres
from operations import databases, preflight, same_data, templating
from operations.databases import Database, Existing, Tables, exist, matches, verifier
from operations.machine import Listener, Machine, MachineState
from roles import ROLES
from settings import Neighbour, SettingError, Settings
from settings.postgres import DATABASE_AUTHORITY, DatabaseAccess, Postgres, database_server
from settings.sliding_sync import SlidingSync
from settings.synapse import Synapse
from tests.unit.test_operations import FakeHost, at, commands
from tests.unit.test_settings import MACHINE, chosen
from vault import Secret

PRINTABLE = string.digits + string.ascii_letters + string.punctuation + " "
PASSWORDS = [
    PRINTABLE,
    *string.punctuation,
    "'",
    "\\",
    "\\'",
    "'\\",
    "\\\\''",
    "a b",
    "x\\",
    " = ",
    "host=elsewhere",
    "*:*",
]
# The example of RFC 7677, 3: the salt, the client's proof, the server's signature, and the messages that both are made over.
SALT, PROOF, SIGNATURE = (
    base64.b64decode(text)
    for text in (
        "W22ZaJ0SNY7soEsUEjb6gQ==",
        "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
        "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
    )
)
NONCE = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
AUTH_MESSAGE = f"n=user,r=rOprNGfwEbeRWgbNEkqO,r={NONCE},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r={NONCE}".encode()


def access(password: str) -> DatabaseAccess:
    return DatabaseAccess("synapse", "matrix-synapse", "10.1.2.3", Secret(password), DATABASE_AUTHORITY)


# --- connection strings ---------------------------------------------------------------------------


def parsed(dsn: str) -> dict[str, str]:
    """A connection string, parsed as by libpq (documentation, 34.1.1.1) and lib/pq: 'value' with \\' and \\\\ in it."""
    found, rest = {}, dsn
    while rest:
        word = re.match(r"(\w+)='((?:[^'\\]|\\.)*)'(?: |$)", rest)
        assert word, "no client can read the rest"
        found[word[1]] = re.sub(r"\\(.)", r"\1", word[2])
        rest = rest[word.end() :]
    return found


@pytest.mark.parametrize("password", PASSWORDS)
def test_clients_read_back_the_password(password: str) -> None:
    assert parsed(access(password).dsn) == {
        "user": "matrix-synapse",
        "dbname": "synapse",
        "host": "10.1.2.3",
        "sslmode": "verify-full",
        "sslrootcert": DATABASE_AUTHORITY,
        "password": password,
    }


class _Option(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_char_p) for name in ("keyword", "envvar", "compiled", "val", "label", "dispchar")],
        ("dispsize", ctypes.c_int),
    ]


@pytest.mark.skipif(not ctypes.util.find_library("pq"), reason="libpq is not on this computer")
@pytest.mark.parametrize("password", PASSWORDS)
def test_libpq_reads_back_the_password(password: str) -> None:
    library = ctypes.CDLL(ctypes.util.find_library("pq"))
    library.PQconninfoParse.restype = ctypes.POINTER(_Option)
    library.PQconninfoParse.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_char_p)]
    problem = ctypes.c_char_p()
    options = library.PQconninfoParse(access(password).dsn.encode(), ctypes.byref(problem))
    assert options, problem.value
    found, at = {}, 0
    while options[at].keyword:
        if options[at].val is not None:
            found[options[at].keyword.decode()] = options[at].val.decode()
        at += 1
    assert found == parsed(access(password).dsn)


def test_on_the_same_machine_no_password_is_needed() -> None:
    local = DatabaseAccess("synapse", "matrix-synapse")
    assert parsed(local.dsn)["host"] == "/run/postgresql"
    assert "password" not in parsed(local.dsn)


@pytest.mark.parametrize("password", PASSWORDS)
def test_password_file_is_read_back(password: str) -> None:
    """libpq, 34.16: fields end with a colon; a backslash takes the next character literally."""
    [line] = access(password).password_file.splitlines()
    fields = re.findall(r"((?:[^:\\]|\\.)*)(?::|$)", line)
    assert [re.sub(r"\\(.)", r"\1", field) for field in fields[:5]] == ["*", "*", "*", "matrix-synapse", password]


def test_password_is_not_shown() -> None:
    assert "pencil" not in repr(access("pencil")) + str(access("pencil"))


# --- what the server stores -----------------------------------------------------------------------


def test_verifier_matches_the_example_of_the_standard() -> None:
    kind, salt, keys = verifier("pencil", SALT, 4096).split("$")
    assert (kind, salt) == ("SCRAM-SHA-256", f"4096:{base64.b64encode(SALT).decode()}")
    stored, server = map(base64.b64decode, keys.split(":"))
    # With the first the server authenticates the client, with the second it authenticates itself to the client.
    signature = hmac.digest(stored, AUTH_MESSAGE, "sha256")
    client = bytes(one ^ other for one, other in zip(signature, PROOF, strict=True))
    assert hashlib.sha256(client).digest() == stored
    assert hmac.digest(server, AUTH_MESSAGE, "sha256") == SIGNATURE


def found(password: str, iterations: int = 4096) -> str:
    """What `Existing` answers for a role with this password, in the format of its query."""
    stored = verifier(password, b"0123456789abcdef", iterations)
    return f"{stored.split('$')[1]} {hashlib.sha256(stored.encode()).hexdigest()}"


@pytest.mark.parametrize("password", PASSWORDS)
def test_password_is_recognised_by_its_verifier(password: str) -> None:
    assert matches(password, found(password))
    assert matches(password, found(password, 10000)), "an administrator may have asked for more iterations"
    assert not matches(f"{password}x", found(password))


@pytest.mark.parametrize("stored", ["", " ", "md5", "4096: 00", ":c2FsdA== 00", "x:c2FsdA== 00"])
def test_password_matches_nothing_but_a_verifier(stored: str) -> None:
    """A role without a password, with an md5 password, and malformed answers."""
    assert not matches("pencil", stored)


def executed(monkeypatch: pytest.MonkeyPatch, existing: Mapping[str, str], needed: bool = True) -> list[str]:
    """The commands that are run on a server on which these exist."""
    at(monkeypatch, databases, FakeHost(existing))
    wanted = Database("synapse", "matrix-synapse", Secret("pencil") if needed else None)
    return commands(exist, cluster="17/main", databases=[wanted])


def test_new_password_is_sent_as_a_verifier_and_not_on_a_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"database synapse": "matrix-synapse UTF8 C C"}
    [command] = executed(monkeypatch, {**there, "role matrix-synapse": found("another")})
    assert "psql" in command
    assert "pencil" not in command and "SCRAM" not in command
    assert executed(monkeypatch, {**there, "role matrix-synapse": found("pencil")}) == []


def test_password_that_is_not_needed_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"database synapse": "matrix-synapse UTF8 C C", "role matrix-synapse": ""}
    assert executed(monkeypatch, there, needed=False) == []


@pytest.mark.parametrize(("answer", "recreated"), [("t", True), ("f", False), ("", False)])
def test_only_an_incomplete_database_is_created_again(
    monkeypatch: pytest.MonkeyPatch, answer: str, recreated: bool
) -> None:
    """And never one whose state is unknown."""
    there = {"database synapse": "matrix-synapse UTF8 C C", "role matrix-synapse": "", "incomplete synapse": answer}
    assert any("\nrecreate synapse" in command for command in executed(monkeypatch, there, needed=False)) is recreated


def test_connecting_to_the_database_is_revoked_from_other_roles(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"database synapse": "matrix-synapse UTF8 C C", "role matrix-synapse": ""}
    [command] = executed(monkeypatch, {**there, "open synapse": "", "open postgres": ""}, needed=False)
    assert "\nclose synapse" in command
    [_, made] = executed(monkeypatch, {}, needed=False)
    assert "\ncreate synapse matrix-synapse" in made


def test_existing_roles_and_databases_are_read_without_verifiers() -> None:
    read = Existing().answer(["role postgres\t", "role a\t4096:c2FsdA== 00", "database b\ta UTF8 C C"])
    assert read == {"role postgres": "", "role a": "4096:c2FsdA== 00", "database b": "a UTF8 C C"}
    assert "sha256" in Existing().question("17/main")


# --- which machines may connect -------------------------------------------------------------------

SPLIT = {"postgres": ["db"], "synapse": ["home"], "sliding_sync": ["home"], "caddy": ["home"]}


def settings(
    tmp_path: Path,
    name: str = "db",
    neighbours: Mapping[str, Neighbour] | None = None,
    roles: Mapping[str, Sequence[str]] | None = None,
    **choices: Any,
) -> Settings:
    near = neighbours or {"home": Neighbour("10.1.2.4", ("10.1.2.4", "2001:db8::4")), "db": Neighbour("10.1.2.3")}
    return Settings(chosen(**choices), "prod", roles or SPLIT, name, MACHINE, near, inventories=tmp_path)


def test_only_the_machines_of_its_clients_may_connect(tmp_path: Path) -> None:
    postgres = settings(tmp_path).view(Postgres)
    assert [(client.user, client.addresses) for client in postgres.clients] == [
        ("matrix-synapse", ("10.1.2.4", "2001:db8::4")),
        ("sliding-sync", ("10.1.2.4", "2001:db8::4")),
    ]
    assert all(database.password for database in postgres.databases)


def test_a_further_role_of_the_same_machine_restarts_nothing(tmp_path: Path) -> None:
    """It changes who may connect, which is only read again, and nothing that PostgreSQL reads when it starts."""
    before, after = (
        settings(tmp_path, roles={"postgres": ["db"], "synapse": ["home"], **more}).view(Postgres)
        for more in ({}, {"sliding_sync": ["home"]})
    )
    assert before.access not in before.files
    for name in ("override", "matrix-metal"):
        texts = [
            templating.render(f"postgres/{name}.conf.j2", {"postgres": each, "backup": None})
            for each in (before, after)
        ]
        assert texts[0] == texts[1]
    assert before.clients != after.clients


@pytest.mark.parametrize(
    ("reached", "sources"),
    [
        ("198.51.100.7", ("10.1.2.4", "198.51.100.7")),
        ("10.1.2.4", ("10.1.2.4",)),
        ("127.0.0.1", ("10.1.2.4",)),
        ("home.x.test", ("10.1.2.4",)),
    ],
    ids=["behind 1:1 NAT", "its own", "through a tunnel", "a name"],
)
def test_machine_may_connect_from_the_address_where_it_is_reached(reached: str, sources: tuple[str, ...]) -> None:
    assert Neighbour(reached, ("10.1.2.4",)).sources == sources


def test_both_sides_have_the_same_password(tmp_path: Path) -> None:
    home, db = settings(tmp_path, "home"), settings(tmp_path, "db")
    db.vault = home.vault
    passwords = [home.view(Synapse).database.password, home.view(SlidingSync).database.password]
    assert [database.password for database in db.view(Postgres).databases] == passwords
    assert home.view(Synapse).database.host == "10.1.2.3"
    assert database_server(home) == "db" and database_server(db) is None


def test_roles_beside_the_database_have_no_password(tmp_path: Path) -> None:
    together = {role: ["db"] for role in SPLIT}
    made = settings(tmp_path, roles=together)
    assert made.view(Postgres).clients == () and made.view(Synapse).database.password is None
    assert database_server(made) is None
    assert not made.vault.has("postgres_synapse_password")


def test_relay_does_not_use_the_database(tmp_path: Path) -> None:
    roles = {**SPLIT, "coturn": ["relay"], "caddy": ["home", "relay"]}
    assert database_server(settings(tmp_path, "relay", roles=roles)) is None


def test_password_that_some_clients_cannot_send_is_refused(tmp_path: Path) -> None:
    made = settings(tmp_path, "home")
    made.vault.set("postgres_synapse_password", "pässword")
    with pytest.raises(SettingError, match="postgres_synapse_password must be ASCII") as caught:
        _ = made.view(Synapse)
    assert "pässword" not in str(caught.value)


def test_location_of_synapses_database_is_read_from_the_machine() -> None:
    assert Machine().answer(["user root", "database /run/postgresql"]).database == "/run/postgresql"
    assert Machine().answer(["user root"]) == MachineState(user="root")


# --- other clusters -------------------------------------------------------------------------------

SHOP = ("17/shop", 5432)
FOREIGN = Listener("tcp", 5432, "shopd", 7, "shop.service")


@pytest.mark.parametrize(
    ("machine", "port"),
    [
        (MachineState(release="13"), 5432),
        (MachineState(release="13", clusters=(SHOP,)), 5433),
        (MachineState(release="13", clusters=(SHOP, ("17/more", 5433))), 5434),
        (MachineState(release="13", listeners=(FOREIGN,)), 5433),
        (MachineState(release="13", postgresql=("17",), clusters=(SHOP, ("17/main", 5433))), 5433),
        (MachineState(release="13", postgresql=("17",), clusters=(("17/main", 5432),), listeners=(FOREIGN,)), 5432),
        (MachineState(release="13", postgresql=("15",), clusters=(("15/main", 5432), ("17/shop", 5433))), 5432),
        (MachineState(release="13", postgresql=("17",)), 5432),
    ],
)
def test_every_role_uses_the_port_of_our_cluster(tmp_path: Path, machine: MachineState, port: int) -> None:
    together = settings(tmp_path, roles={role: ["db"] for role in SPLIT})
    together.machine = replace(machine, architecture="amd64", memory=4096)
    assert {
        together.view(Postgres).port,
        together.view(Synapse).database.port,
        together.view(SlidingSync).database.port,
    } == {port}
    assert parsed(together.view(SlidingSync).database.dsn).get("port") == (None if port == 5432 else str(port))

    home = settings(tmp_path, "home", neighbours={"db": Neighbour("10.1.2.3", database_port=port)})
    assert home.view(Synapse).database.port == home.view(SlidingSync).database.port == port


def test_port_for_other_machines_is_checked(tmp_path: Path) -> None:
    db = settings(tmp_path)
    db.machine = replace(MACHINE, postgresql=("17",), clusters=(("17/main", 5432),), listeners=(FOREIGN,))
    [line] = preflight._ports_in_use(db)
    assert "tcp port 5432, which postgres needs, is taken by shopd (process 7)" in line
    alone = settings(tmp_path, roles={role: ["db"] for role in SPLIT})
    alone.machine = db.machine
    assert list(preflight._ports_in_use(alone)) == [], "no other machine uses it"


def test_port_of_a_unit_that_is_not_here_is_not_checked(tmp_path: Path) -> None:
    """8448 is Caddy's; an administrator's own proxy may have it where Caddy is not."""
    listener = Listener("tcp", 8448, "nginx", 7, "nginx.service")
    for roles, lines in ((("postgres", "synapse"), 0), (("postgres", "synapse", "caddy"), 1)):
        made = settings(tmp_path, roles={role: ["db"] for role in roles}, federation_port_8448=True)
        made.machine = replace(MACHINE, listeners=(listener,))
        assert len(list(preflight._ports_in_use(made))) == lines


def test_only_our_cluster_is_queried() -> None:
    for command in (Existing().question("17/main"), Tables().question("17/main", "synapse")):
        assert command.count("cluster=17/main") == command.count("psql") > 0
        # What the user postgres may write is not read as root.
        assert command.index("setpriv") < command.index(".pid")
        assert command.count("setpriv") == command.count("env -i") == command.count('PGPORT="$port"') > 0


# --- another database, or an older one ------------------------------------------------------------

RUNS = {"database postgres": "postgres UTF8 C C"}
OURS = {**RUNS, "of synapse": "x.test", "newest synapse": "5120"}


@pytest.mark.parametrize(
    ("found", "counted", "chosen", "words"),
    [
        (OURS, "5120 2027-01-31", {}, ""),
        (OURS, "5121 2027-01-31", {}, "is older than it was on 2027-01-31: "),
        (RUNS, "5120 2027-01-31", {}, "is empty or gone, and had data on 2027-01-31: "),
        (
            {**OURS, "of synapse": "other.test"},
            "",
            {},
            "is that of the homeserver other.test, and server_name is x.test: ",
        ),
        # Nothing was counted so far, or by an earlier version.
        (OURS, "", {}, ""),
        (OURS, "2027-01-31", {}, ""),
        # PostgreSQL does not run, and will; or there is none any more.
        ({}, "5120 2027-01-31", {}, ""),
        ({}, "5120 2027-01-31", {"postgresql": ()}, "is empty or gone"),
        # The data are being put back.
        (OURS, "5121 2027-01-31", {"restoring": "done"}, ""),
        # Who uses it.
        ({**OURS, "used synapse here": ""}, "", {}, ""),
        (
            {**OURS, "used synapse 10.1.2.4": ""},
            "",
            {},
            "the Synapse at 10.1.2.4 uses the database synapse, and that of db",
        ),
        # Synapse has never run here.
        (OURS, "", {"signing_key": "none"}, "is that of x.test, and db has no signing key"),
        (RUNS, "", {"signing_key": "none"}, ""),
        (OURS, "", {"signing_key": "none", "database": "/run/postgresql"}, ""),
    ],
)
def test_another_or_an_older_database_of_synapse_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    found: Mapping[str, str],
    counted: str,
    chosen: Mapping[str, Any],
    words: str,
) -> None:
    made = settings(tmp_path, roles={role: ["db"] for role in ("postgres", "synapse", "caddy")})
    made.machine = replace(MACHINE, **{"postgresql": ("17",), "counted": counted, **chosen})
    monkeypatch.setattr(same_data, "settings_of", lambda _: made)
    monkeypatch.setattr(same_data, "looked", lambda *_: found)
    monkeypatch.setattr(same_data, "inventory", MagicMock())
    lines = same_data.wrong_database(MagicMock())
    assert len(lines) == bool(words) and words in "".join(lines), lines


@pytest.mark.parametrize(("address", "words"), [("10.1.2.4", ""), ("2001:db8::4", ""), ("here", "on this machine")])
def test_a_second_synapse_at_a_database_for_other_machines_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, words: str
) -> None:
    db, home = settings(tmp_path), settings(tmp_path, "home")
    monkeypatch.setattr(same_data, "settings_of", lambda host: home if host == "home" else db)
    monkeypatch.setattr(same_data, "looked", lambda *_: {**OURS, f"used synapse {address}": ""})
    monkeypatch.setattr(same_data, "inventory", SimpleNamespace(get_host=lambda name: name))
    lines = same_data.wrong_database(MagicMock())
    assert len(lines) == bool(words) and words in "".join(lines), lines


@pytest.mark.parametrize(
    ("release", "found", "words"),
    [
        ("13", {"postgresql": ("17",), "data": ("15", "17"), "servers": ("17",)}, ""),
        ("13", {"postgresql": ("15",), "data": ("15",), "servers": ()}, ""),
        ("13", {"data": ("18",)}, "18/main has data of PostgreSQL 18, and a deploy would make an empty cluster"),
        ("12", {"postgresql": ("17",), "data": ("17",), "servers": ("15",)}, "Debian 12 has only PostgreSQL 15"),
        # Somebody has installed it from elsewhere.
        ("12", {"postgresql": ("17",), "data": ("17",), "servers": ("17",)}, ""),
    ],
)
def test_a_postgresql_that_is_older_than_the_data_is_refused(
    tmp_path: Path, release: str, found: Mapping[str, Any], words: str
) -> None:
    db = settings(tmp_path)
    db.machine = replace(MACHINE, release=release, **found)
    lines = preflight._newer_data(db)
    assert len(lines) == bool(words) and words in "".join(lines), lines


# --- a database that was moved --------------------------------------------------------------------

MARK = {"server_name": "x.test", "vault": "0"}


@pytest.mark.parametrize(
    ("earlier", "mark", "tables", "refused"),
    [
        ("/run/postgresql", MARK, 0, "on this machine"),
        ("10.9.9.9", MARK, 0, "at 10.9.9.9"),
        ("/run/postgresql", MARK, 170, None),
        ("10.1.2.3", MARK, 0, None),
        ("", MARK, 0, None),
        ("/run/postgresql", None, 0, None),
    ],
    ids=["from here", "from elsewhere", "moved", "not moved", "new", "not deployed before"],
)
def test_homeserver_gets_no_empty_database_instead_of_its_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    earlier: str,
    mark: dict[str, str] | None,
    tables: int,
    refused: str | None,
) -> None:
    home, db = settings(tmp_path, "home"), settings(tmp_path, "db")
    home.machine = replace(MACHINE, database=earlier, deployment=mark)
    server = FakeHost(tables)
    server.name = "db"
    monkeypatch.setattr(preflight, "inventory", SimpleNamespace(get_host=lambda name: server))
    monkeypatch.setattr(preflight, "settings_of", lambda host: db)
    lines = preflight._database_left_behind(home)
    assert len(lines) == (1 if refused else 0)
    assert all(f"{refused}, and on db" in line and "empty" in line for line in lines)


def test_homeserver_whose_database_is_in_another_cluster_gets_no_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As deployed by 0.1.0 when another cluster had the default port."""
    home = settings(tmp_path, "db", roles={role: ["db"] for role in SPLIT})
    home.machine = replace(
        MACHINE, deployment=MARK, database="/run/postgresql", postgresql=("17",), clusters=(SHOP, ("17/main", 5433))
    )
    server = FakeHost(0)
    server.name = "db"
    monkeypatch.setattr(preflight, "inventory", SimpleNamespace(get_host=lambda name: server))
    monkeypatch.setattr(preflight, "settings_of", lambda host: home)
    [line] = preflight._database_left_behind(home)
    assert "on this machine, port 5432" in line and "17/main" in line
    home.machine = replace(home.machine, database_port=5433)
    assert preflight._database_left_behind(home) == []


def test_tables_are_counted_even_without_postgresql() -> None:
    assert [Tables().answer(output) for output in (["170"], ["0"], [], ["psql: error"])] == [170, 0, 0, 0]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "not JSON", '{"server_name": "x.test"}', '{"server_name": 1, "vault": "0"}']
)
def test_damaged_marker_is_reported(tmp_path: Path, text: str) -> None:
    """Also a directory in its place, which is read as an empty text."""
    home = settings(tmp_path, "home")
    home.machine = Machine().answer(["user root", f"deployment {text}"])
    assert home.machine.marker_damaged and home.machine.deployment is None
    [line] = preflight._of_another_deployment(home)
    assert "deployment.json does not say which deployment the machine belongs to" in line and "\n" not in line


# --- manage.py NAME postgres ----------------------------------------------------------------------


@dataclass
class FarMachine:
    """Stands in for a machine. answers: what it prints for a command with a text in it; None: the command fails."""

    name: str
    settings: Settings
    answers: Mapping[str, str | None] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)

    def run(self, script: str) -> list[str]:
        command = script.rpartition("}\n")[2].strip()
        self.commands.append(command)
        for text, answer in self.answers.items():
            if text in command:
                if answer is None:
                    raise Refused("the copy failed")
                return answer.splitlines()
        return []


def manage_postgres(db: FarMachine, *others: FarMachine, command: str) -> Result:
    machines = {
        role.name: machine for machine in (db, *others) for role in ROLES.values() if machine.settings.here(role.name)
    }
    deployment = SimpleNamespace(name="prod", machine=lambda role: machines[role])
    return CliRunner().invoke(postgres, [command, "--yes"], obj=deployment)


ABOUT = "release {release}\nversion 15\nactive 15\nsize 15 3000\nfree 15 9000\n"
LEFT = "release 13\nversion 15\nversion 17\nactive 17\nsize 15 3000\nfree 15 9000\nsize 17 3000\nfree 17 9000\n"


@pytest.mark.parametrize(
    ("command", "about", "why"),
    [
        (
            "upgrade",
            ABOUT.replace("9000", "4023").format(release=13),
            "db has 4023 MiB free beside the data of PostgreSQL 15; 4024 MiB are needed, because the data are copied",
        ),
        (
            "upgrade",
            ABOUT.replace("active 15\n", "").format(release=13),
            "PostgreSQL 15 does not run on db: start it, or deploy, before its data are moved",
        ),
        ("upgrade", ABOUT.format(release=14), "db runs Debian 14; only 12 and 13 are supported"),
        ("upgrade", "release 13", "db has no PostgreSQL cluster main: deploy first"),
        ("upgrade", ABOUT.format(release=12), None),
        ("drop-old", f"{LEFT}active 15\n", "PostgreSQL 15 runs on db: it may be in use, and is not removed"),
        (
            "drop-old",
            f"{LEFT}begun 15 17 5432\n",
            "an upgrade has begun and is not complete: python manage.py prod postgres upgrade",
        ),
        ("drop-old", ABOUT.format(release=12), None),
    ],
    ids=[
        "too little space",
        "stopped",
        "an unknown Debian",
        "no cluster",
        "nothing to do",
        "the old one runs",
        "half done",
        "no old one",
    ],
)
def test_upgrade_and_drop_old_are_refused_before_anything_is_touched(
    tmp_path: Path, command: str, about: str, why: str | None
) -> None:
    """Also with --yes. Where there is nothing to do, they say so."""
    db = FarMachine("db", settings(tmp_path, roles={role: ["db"] for role in SPLIT}), {"about": about})
    done = manage_postgres(db, command=command)
    if why is None:
        assert done.exit_code == 0 and done.output.startswith("db has PostgreSQL 15, ")
    else:
        assert (done.exit_code, done.output) == (1, f"Error: {why}\n")
    assert db.commands == ["about"]


def test_what_uses_the_database_from_another_machine_is_stopped_for_an_upgrade_that_fails_and_started_again(
    tmp_path: Path,
) -> None:
    home = FarMachine("home", settings(tmp_path, "home"))
    db = FarMachine(
        "db", settings(tmp_path), {"about": ABOUT.format(release=13), "&& watch": None, "told": "no space left"}
    )
    done = manage_postgres(db, home, command="upgrade")
    assert done.exit_code == 1
    assert done.output.endswith("    no space left\nError: the copy failed. PostgreSQL 15 goes on, with all data\n")
    units = ("matrix-synapse.service", "sliding-sync.service")
    stopped, started = zip(
        *((f"systemctl stop {unit}", f"systemctl start --no-block {unit}") for unit in units), strict=True
    )
    assert home.commands == [*stopped, *started]
    # Nothing of the database's own machine is stopped from here: the job there does that.
    assert not [command for command in db.commands if command.startswith("systemctl")]
