"""manage.py without a machine: names, refusals, requests as curl gets them, and what is printed."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from compat import Refused
from manage import mas
from manage.accounts import Password
from manage.backends.moderation import Room
from manage.backends.synapse import TOKEN_FILE, is_service
from manage.commands import cli
from manage.deploying import Steps
from manage.homeserver import Account, Session, new_user_id, user_id_of
from manage.machines import inventory_path
from manage.output import plain, print_table
from manage.rooms import question_about
from manage.tokens import revoke
from manage.web import CURL, Answer, configuration
from operations.accounts import MIGRATION
from tests.deployment import ROOT, Deployment
from vault import Vault

SERVER = "example.org"

# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["anna", "@anna", "anna:example.org", "@anna:example.org"])
def test_an_account_has_one_name(name: str) -> None:
    assert user_id_of(name, SERVER) == new_user_id(name, SERVER) == "@anna:example.org"


@pytest.mark.parametrize("name", ["@anna:example.com", "anna:example.org:8448", "@anna:EXAMPLE.org"])
def test_accounts_of_other_homeservers_are_refused(name: str) -> None:
    with pytest.raises(Refused, match=r"is not of this homeserver, which has accounts such as @anna:example\.org"):
        user_id_of(name, SERVER)


@pytest.mark.parametrize("name", ["Anna", "änna", "_anna", "anna b", "12345", "", "@", "anna\n", "a!"])
def test_no_account_is_made_with_a_name_that_synapse_would_not_take(name: str) -> None:
    with pytest.raises(Refused, match=r"allowed are lower-case letters|is not the name of an account"):
        new_user_id(name, SERVER)


def test_a_name_that_is_too_long_is_refused() -> None:
    assert len(new_user_id("a" * 242, SERVER)) == 255
    with pytest.raises(Refused, match="has 256 characters, and 255 are allowed"):
        new_user_id("a" * 243, SERVER)


@pytest.mark.parametrize("name", ["_slack_u1", "Old.Name", "a/b+c=d", "1"])
def test_accounts_that_exist_may_have_other_names(name: str) -> None:
    assert user_id_of(name, SERVER) == f"@{name}:example.org"


def test_only_synapses_type_makes_an_account_that_of_the_commands() -> None:
    def service(localpart: str, kind: str | None) -> bool:
        return is_service({"name": f"@{localpart}:{SERVER}", "user_type": kind})

    assert service("matrix-metal", "support") and service("matrix-metal-2", "support")
    assert not service("matrix-metal", None) and not service("matrix-metal", "bot")
    assert not service("matrix-metal-anna", "support") and not service("anna", "support")
    for name in ("matrix-metal", "matrix-metal-2"):
        with pytest.raises(Refused, match="use themselves"):
            new_user_id(name, SERVER)


def test_an_inventory_is_a_name_or_a_path(tmp_path: Path) -> None:
    inventories = tmp_path / "inventories"
    inventories.mkdir()
    for name in ("prod", "split"):
        (inventories / f"{name}.py").touch()
    assert inventory_path("prod", tmp_path) == inventory_path(str(inventories / "prod.py")) == inventories / "prod.py"
    with pytest.raises(Refused, match=r"no inventories/prdo\.py: did you mean prod\? There are: prod, split"):
        inventory_path("prdo", tmp_path)
    with pytest.raises(Refused, match=r"there is no inventory /nowhere/prod\.py"):
        inventory_path("/nowhere/prod.py")


# --- requests -------------------------------------------------------------------------------------


class Echo(BaseHTTPRequestHandler):
    """Answers with the request that it got."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        answer = json.dumps({"path": self.path, "headers": dict(self.headers), "body": body}).encode()
        self.send_response(201)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


AWKWARD = "\"quotes\" 'and' \\backslashes\\ \\n $HOME `id` #; {{ }} \u00e4\u2028\U0001f600 @file"


def test_curl_sends_exactly_what_is_asked_for(server: str) -> None:
    headers = {"Authorization": 'Bearer a"b\\c', "Content-Type": "application/json"}
    text = configuration("POST", f"{server}/a/%40b?c=d", headers, json.dumps({"password": AWKWARD}))
    assert AWKWARD not in CURL
    done = subprocess.run(["sh", "-c", CURL], input=text, capture_output=True, text=True, timeout=30)
    *body, status = done.stdout.splitlines()
    assert (done.returncode, status) == (0, "201"), done.stderr
    got = json.loads("".join(body))
    assert got["path"] == "/a/%40b?c=d"
    assert json.loads(got["body"]) == {"password": AWKWARD}
    assert {name: got["headers"][name] for name in headers} == headers


def test_curl_says_that_nobody_listens() -> None:
    text = configuration("GET", "http://127.0.0.1:1/", {}, None)
    done = subprocess.run(["sh", "-c", CURL], input=text, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout.split()) == (0, ["000"])


def test_why_a_request_was_refused() -> None:
    assert Answer(400, {"errcode": "M_UNKNOWN", "error": "Invalid name."}).error == "Invalid name"
    assert Answer(409, {"errors": [{"title": "User already exists"}]}).error == "User already exists"
    assert Answer(502, {}).error == "HTTP status 502"


# --- what is printed ------------------------------------------------------------------------------


def test_json_has_times_in_utc_and_nothing_internal() -> None:
    made = datetime(2027, 1, 31, 12, tzinfo=UTC)
    account = Account("@anna:example.org", "01ABC", admin=True, deactivated=False, created=made)
    assert plain([account]) == [
        {
            "user_id": "@anna:example.org",
            "admin": True,
            "deactivated": False,
            "created": "2027-01-31T12:00:00Z",
            "last_seen": None,
            "display_name": None,
            "emails": [],
            "locked": False,
        }
    ]
    session = Session("ABC", "phone", None, "192.0.2.1", device="ABC")
    assert set(plain(session)) == {"id", "name", "last_seen", "address", "device", "kind"}


def test_a_table_shows_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("ACCOUNT", "NAME"), [("@anna:example.org", "Anna\x1b[31m\n\u202e"), ("@b:example.org", None)])
    assert capsys.readouterr().out.splitlines() == [
        "ACCOUNT            NAME",
        "@anna:example.org  Anna [31m",
        "@b:example.org     -",
    ]


def test_generated_passwords_differ_and_are_long() -> None:
    made = {Password(stdin=False, generate=True).get("@anna:example.org") for _ in range(100)}
    assert len(made) == 100 and {len(each) for each in made} == {23}


# --- the command line -----------------------------------------------------------------------------

CHOSEN = {"server_name": "a.test", "tls": "internal"}


def refusal(deployment: Deployment, *arguments: str) -> str:
    """The only line that a command prints that fails."""
    done = deployment.manage(*arguments)
    assert (done.returncode, done.stdout) == (1, ""), done.stdout + done.stderr
    [line] = done.stderr.splitlines()
    return line


def test_a_mistake_is_one_line_and_no_machine_is_needed(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, [], CHOSEN, roles={})
    known_hosts = tmp_path / "known_hosts"
    known_hosts.touch()
    data = {"ssh_hostname": "127.0.0.1", "ssh_port": 1, "ssh_user": "root", "ssh_known_hosts_file": str(known_hosts)}
    unreachable = repr(("far", data))

    deployment.inventory.write_text(f"synapse = postgres = caddy = [{unreachable}]\n")
    assert refusal(deployment, "accounts", "list").startswith("manage: far cannot be reached: ")
    assert refusal(deployment, "remove", "coturn", "--yes").startswith("manage: far cannot be reached: ")
    assert "mas cannot be removed: it has the passwords" in refusal(deployment, "remove", "mas", "--yes")
    assert "there is no role cotrun: did you mean coturn?" in refusal(deployment, "remove", "cotrun")
    line = refusal(deployment, "tokens", "create", "--expires", "soon")
    assert "is no duration such as 30m" in line and line.endswith("see python manage.py NAME tokens create --help")
    line = refusal(deployment, "rooms", "purge", "garden")
    assert (
        "'garden' is no room: give its ID, such as '!dw4...', or an alias, such as '#garden:a.test', in quotes" in line
    )
    assert "'3' is no report: give one such as message-3" in refusal(deployment, "reports", "show", "3")
    deployment.choose(**CHOSEN, registration="no")
    assert "registration" in refusal(deployment, "accounts", "list")
    deployment.choose(**CHOSEN)
    deployment.inventory.write_text(f"caddy = [{unreachable}]\n")
    assert "trial.py gives no machine the role synapse" in refusal(deployment, "accounts", "list")
    for text, error in (("caddy = [\n", "SyntaxError: "), ("import os\nos.environ['NO']\n", "KeyError: 'NO'")):
        deployment.inventory.write_text(text)
        assert f"trial.py cannot be read: {error}" in refusal(deployment, "accounts", "list")


@pytest.mark.parametrize(
    ("members", "here", "block", "said"),
    [
        (
            2,
            2,
            False,
            "its 2 members of this homeserver are made to leave it, and its messages and aliases are removed",
        ),
        (5, 1, True, "and nobody of this homeserver can join it again. 4 members of other homeservers stay in it"),
        (1, 0, False, "it has no members of this homeserver, and its messages"),
    ],
)
def test_before_a_room_goes_it_is_said_what_becomes_of_its_members(
    members: int, here: int, block: bool, said: str
) -> None:
    room = Room("!a", "Bean\x1bpatch", None, members, here, encrypted=False, public=False, federated=True)
    question = question_about(room, block)
    assert question.startswith('"Bean patch" (!a): ') and said in question and question.isprintable()
    assert question.endswith("That cannot be undone. Go on?")


def test_where_providers_send_people_back_needs_no_machine_and_no_secret(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, [], CHOSEN, roles={role: ["a"] for role in ("postgres", "synapse", "mas")})
    provider = {"issuer": "https://id.b.test", "client_id": "matrix", "name": "Example"}
    deployment.choose(**CHOSEN, sso=[{"id": name, **provider} for name in ("example", "other")])
    done = deployment.manage("mas", "callbacks")
    shown = [line.split() for line in done.stdout.splitlines()]
    # MAS knows a provider by its ULID, for ever.
    assert shown == [
        ["example", "https://auth.a.test/upstream/callback/2GV1CE162YSHZP0GCANW6CBATR"],
        ["other", "https://auth.a.test/upstream/callback/6S56511MDGEDC3FQ2BV1ETRS0V"],
    ], done.stderr


def test_secrets_are_those_of_the_deployments_vault(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, [], CHOSEN, roles={"caddy": ["a"]})
    done = deployment.manage("secrets", "set", "smtp_password", stdin="hunter2\n")
    assert done.returncode == 0, done.stderr
    assert f"Now run: pyinfra {deployment.inventory} deploy.py" in done.stdout and "hunter2" not in done.stdout
    assert Vault.open(deployment.vault).get("smtp_password").reveal() == "hunter2"
    assert deployment.manage("secrets", "show", "smtp_password").stdout == "hunter2\n"
    line = refusal(deployment, "secrets", "set", "smtp_password", "--hunter3")
    assert "a value is asked for" in line and "hunter3" not in line


def test_every_command_says_what_it_does() -> None:
    def commands(group: click.Group, *path: str) -> Iterator[tuple[str, click.Command]]:
        for name, command in group.commands.items():
            yield " ".join((*path, name)), command
            if isinstance(command, click.Group):
                yield from commands(command, *path, name)

    found = dict(commands(cli))
    for group in (cli, *(command for command in found.values() if isinstance(command, click.Group))):
        shown = group.get_help(click.Context(group, terminal_width=80))
        assert "..." not in shown.partition("\nCommands:\n")[2], shown
    assert {"accounts", "accounts reset-password", "tokens revoke", "rooms purge", "secrets set"} <= set(found)
    for name, command in found.items():
        # What lists of commands show is a whole sentence.
        assert command.get_short_help_str(limit=75).endswith((".", ")")) and command.help, name
        assert all(each.help for each in command.params if isinstance(each, click.Option)), name


# --- deploys --------------------------------------------------------------------------------------


def test_of_a_deploy_its_steps_are_shown_and_why_it_fails() -> None:
    printed = """
\x1b[34m--> Starting operation:\x1b[0m \x1b[1mtasks/mas.py | Configure MAS\x1b[0m
    [\x1b[1mm.example.org\x1b[0m] \x1b[36mNo changes\x1b[0m
--> Starting operation: tasks/mas.py | Move the accounts
    [m.example.org] Success
--> Starting operation: tasks/mas.py | Run MAS
    [m.example.org] Error: it says why
    [m.example.org] Error: executed 0 commands
--> Starting operation: tasks/mas.py | Another
    [m.example.org] Skipped
--> pyinfra error: m.example.org: Run MAS failed: it does not answer. When that is fixed, run the same command again: it goes
"""
    steps = Steps()
    shown = [line for each in printed.splitlines() if (line := steps.read(each))]
    assert shown == ["  Move the accounts, on m.example.org", "  Run MAS, on m.example.org: failed"]
    assert steps.problem == "m.example.org: Run MAS failed: it does not answer"
    assert steps.shown == ["    [m.example.org] Error: it says why", "    [m.example.org] Error: executed 0 commands"]


def test_a_rotation_says_what_it_means_and_asks(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, [], CHOSEN, roles={"caddy": ["a"]})
    vault = Vault.open(deployment.vault)
    for name in ("turn_shared_secret", "synapse_form_secret", "sydent_signing_key"):
        vault.get(name)
    vault.set("smtp_password", "hunter2")
    vault.save()

    def value(name: str) -> str:
        return Vault.open(deployment.vault).get(name).reveal()

    relay, form = value("turn_shared_secret"), value("synapse_form_secret")
    for arguments, words in (
        ((), "name the secrets to rotate, or give --all"),
        (("turn_shared_secret", "--all"), "name the secrets to rotate, or give --all"),
        (("turn_shared_secrets",), "did you mean turn_shared_secret?"),
        (("turn_shared_secret", "sydent_signing_key", "--yes"), "sydent_signing_key must not change: clients pin it"),
        (("smtp_password",), "smtp_password is not generated but given: "),
        (("livekit_secret",), "livekit_secret is not set in "),
        (("--hunter3",), "a value is asked for"),
    ):
        assert words in refusal(deployment, "secrets", "rotate", *arguments), arguments
    stopped = deployment.manage("secrets", "rotate", "--all", "--no-deploy", stdin="n\n")
    assert stopped.returncode == 1 and stopped.stderr.splitlines()[-1].endswith("manage: stopped")
    assert (value("turn_shared_secret"), value("synapse_form_secret")) == (relay, form)
    unasked = deployment.manage("secrets", "rotate", "--all", "--no-deploy")
    assert unasked.returncode == 1
    assert unasked.stderr.endswith("manage: They are rotated. There is no terminal to ask: give --yes\n")
    assert "synapse_form_secret: forms that are open in a browser have to be opened again." in stopped.stderr
    assert "is accepted for 48 hours more." in stopped.stderr and "smtp_password" not in stopped.stderr

    done = deployment.manage("secrets", "rotate", "--all", "--no-deploy", "--yes")
    assert done.returncode == 0 and done.stdout.startswith("2 new secrets are in "), done.stderr
    assert relay != value("turn_shared_secret") and form != value("synapse_form_secret")
    assert [each.reveal() for each in Vault.open(deployment.vault).previous("turn_shared_secret")] == [relay]
    known = deployment.manage("secrets", "rotate", "turn_shared_secret", "--at-once", "--no-deploy", "--yes")
    assert "what was signed with the old one is not accepted any more." in known.stderr
    assert Vault.open(deployment.vault).previous("turn_shared_secret") == ()
    # The machine does not answer: the secrets are in the vault, and a deploy writes them there.
    deployment.environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    failed = deployment.manage("secrets", "rotate", "synapse_form_secret", "--yes")
    last = failed.stderr.splitlines()[-1]
    assert (
        failed.returncode == 1 and last.startswith("manage: synapse_form_secret is in ") and "deploy.py goes on" in last
    )
    [log] = (tmp_path / "cache" / "matrix-metal").glob("*.log")
    assert (log.stat().st_mode & 0o777, log.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    deployment.environment["XDG_CACHE_HOME"] = str(deployment.vault)
    failed = deployment.manage("secrets", "rotate", "synapse_form_secret", "--yes")
    assert "trial.log cannot be written: Not a directory; set XDG_CACHE_HOME to another directory. " in failed.stderr


def test_the_vault_gets_another_key(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, [], CHOSEN, roles={"caddy": ["a"]})
    assert "the first deploy makes it" in refusal(deployment, "secrets", "rekey", "--yes")
    assert deployment.manage("secrets", "set", "smtp_password", stdin="hunter2\n").returncode == 0
    key = deployment.vault.with_suffix(".key")
    before = key.read_bytes()
    done = deployment.manage("secrets", "rekey", "--yes")
    assert done.returncode == 0 and "trial.key has a new key" in done.stdout, done.stderr
    assert key.read_bytes() != before and deployment.manage("secrets", "show", "smtp_password").stdout == "hunter2\n"


def test_a_token_may_begin_like_an_option() -> None:
    context = revoke.make_context("revoke", ["-ghHFH7PpcK0wFu6", "--json"])
    assert context.params == {"token": "-ghHFH7PpcK0wFu6", "as_json": True}


def test_a_python_without_pyinfra_is_one_line() -> None:
    """As when .venv was not activated."""
    done = subprocess.run(
        [sys.executable, "-S", str(ROOT / "manage.py"), "prod", "status"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and ". .venv/bin/activate" in done.stderr, done.stderr


# --- the migration to MAS -------------------------------------------------------------------------


class Migrating:
    """A machine whose accounts are moved: what tells how far it has come, and a connection that may be lost."""

    name = "home"

    def __init__(self) -> None:
        self.state, self.lost = ["token"], False
        self.settings = SimpleNamespace(server_name=SERVER)

    def run(self, program: str) -> list[str]:
        if self.lost:
            raise Refused("home: the connection was lost")
        if program.startswith("rm -f "):
            self.state = [each for each in self.state if each != {MIGRATION: "begun", TOKEN_FILE: "token"}[program[6:]]]
        return self.state


class Auth:
    """MAS, which answers an error a number of times."""

    errors = 0
    deactivated: list[str]

    def __init__(self, machine: Migrating) -> None: ...

    def find_any(self, user_id: str) -> Account:
        if Auth.errors:
            Auth.errors -= 1
            raise Refused("MAS answers 503")
        return Account(user_id, "01ABC", admin=True, deactivated=False)

    def deactivate(self, account: Account, erase: bool) -> None:
        Auth.deactivated.append(account.user_id)

    def close(self) -> None: ...


@pytest.fixture
def migrating(monkeypatch: pytest.MonkeyPatch) -> Migrating:
    """manage.mas with this machine, on which a deploy moves the accounts and a log-in works."""
    machine, Auth.errors, Auth.deactivated = Migrating(), 0, []

    def deploy(*_: object) -> str:
        machine.state += ["begun", "delegated"]
        return ""

    for name, other in {"Mas": Auth, "_deploy": deploy, "_log_in": lambda machine: None}.items():
        monkeypatch.setattr(mas, name, other)
    return machine


def _migrate(machine: Migrating) -> None:
    deployment = SimpleNamespace(name="prod", machine=lambda role: machine)
    click.Context(mas.migrate, obj=deployment).invoke(mas.migrate, yes=True, back=False)


def test_what_is_left_of_a_migration_is_done_by_the_next(
    migrating: Migrating, capsys: pytest.CaptureFixture[str]
) -> None:
    Auth.errors = 1
    with pytest.raises(Refused) as refused:
        _migrate(migrating)
    assert str(refused.value) == (
        "MAS has the accounts of example.org, and a log-in works; only the account @matrix-metal:example.org, which these "
        "commands had at Synapse, is still there: MAS answers 503. To remove it, run: python manage.py prod mas migrate"
    )
    assert not Auth.deactivated
    _migrate(migrating)
    assert Auth.deactivated == ["@matrix-metal:example.org"] and migrating.state == ["delegated"]
    assert "what was left of the migration is done" in capsys.readouterr().out
    with pytest.raises(Refused, match=r"^MAS has the accounts already$"):
        _migrate(migrating)


def test_of_a_machine_that_is_lost_in_a_migration_nothing_is_said_that_is_not_known(
    migrating: Migrating, monkeypatch: pytest.MonkeyPatch
) -> None:
    def log_in(machine: Migrating) -> None:
        machine.lost = True
        raise Refused("home: the connection was lost")

    monkeypatch.setattr(mas, "_log_in", log_in)
    with pytest.raises(Refused) as refused:
        _migrate(migrating)
    assert "Synapse" not in str(refused.value)
    assert str(refused.value).endswith("When the machine is back, run: python manage.py prod mas migrate")
