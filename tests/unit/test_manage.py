"""manage.py without a machine: names, refusals, requests as curl gets them, and what is printed."""

import json
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import click
import pytest

from compat import Refused
from manage.accounts import Password
from manage.commands import cli
from manage.homeserver import Account, Session, new_user_id, user_id_of
from manage.machines import inventory_path
from manage.output import plain, print_table
from manage.synapse import is_service
from manage.web import CURL, Answer, configuration
from tests.deployment import Deployment
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
    deployment.choose(**CHOSEN, registration="no")
    assert "registration" in refusal(deployment, "accounts", "list")
    deployment.choose(**CHOSEN)
    deployment.inventory.write_text(f"caddy = [{unreachable}]\n")
    assert "trial.py gives no machine the role synapse" in refusal(deployment, "accounts", "list")
    for text, error in (("caddy = [\n", "SyntaxError: "), ("import os\nos.environ['NO']\n", "KeyError: 'NO'")):
        deployment.inventory.write_text(text)
        assert f"trial.py cannot be read: {error}" in refusal(deployment, "accounts", "list")


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
    assert {"accounts", "accounts reset-password", "tokens revoke", "secrets set"} <= set(found)
    for name, command in found.items():
        # What lists of commands show is a whole sentence.
        assert command.get_short_help_str(limit=75).endswith((".", ")")) and command.help, name
        assert all(each.help for each in command.params if isinstance(each, click.Option)), name
