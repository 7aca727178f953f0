"""The administrator makes and looks after accounts with manage.py, as a user with sudo; their owners notice it.

By a file of the administrator's in conf.d, the homeserver asks for a registration token, and at the end for a captcha instead.
On one release of Debian, because all that runs on the machine is curl.
"""

import asyncio
import contextlib
import io
import json
import os
import pty
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nio
import pytest

from manage.backends.synapse import TOKEN_FILE
from roles import ALERTS_PORT, SYNAPSE
from settings.synapse import CAPTCHA_SECRET
from tests.conftest import Deployed
from tests.deployment import Deployment
from tests.e2e.client import Account, Outside, create_shared_room, expect, expect_json, send_message
from tests.e2e.test_secrets import assert_none_in
from tests.e2e.watching import command_lines
from vault import Vault

pytestmark = [
    pytest.mark.role("synapse"),
    pytest.mark.parametrize("deployed", ["trixie"], ids=["debian13"], indirect=True),
]

# Synapse allows five log-ins from one address, and then one in five minutes.
LIMITS = """
rc_login: {address: {per_second: 1000, burst_count: 1000}, account: {per_second: 1000, burst_count: 1000}}
rc_registration: {per_second: 1000, burst_count: 1000}
rc_registration_token_validity: {per_second: 1000, burst_count: 1000}
"""
OWN = f"registration_requires_token: true\nenable_registration_captcha: false\n{LIMITS}"
SITE_KEY = "6Lc-the_key_of_the_site"
# In place of Google: it prints what it is asked, and has one solution.
VERIFIER_URL = "http://127.0.0.1:18099/siteverify"
VERIFIER = """
import http.server, json, urllib.parse
class Answers(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        print(json.dumps([self.path, asked]), flush=True)
        answer = json.dumps({"success": asked["response"] == ["solved"]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", 18099), Answers).serve_forever()
"""
FILE = "/etc/matrix-synapse/conf.d/accounts.yaml"
# Web clients show the captcha, and the page at the server name says how to get an account.
CHANGED = [
    *("Configure Caddy", "Run Caddy", "Configure Synapse", "Run Synapse"),
    *("Write the page about joining", "Configure Element Web"),
]
PASSWORD = "a password of anna"  # noqa: S105
MODERATOR, REPORTER = "moderator", "reporter"
SYNAPSE_URL = f"http://127.0.0.1:{SYNAPSE.port}"
RESTART = (
    f"systemctl restart matrix-synapse; timeout 60 sh -c 'until curl -qsf {SYNAPSE_URL}/health; do sleep 0.2; done'"
)


@dataclass(frozen=True)
class Managed:
    """A deployment whose accounts are managed. deployment: its inventory, which connects as a user with sudo."""

    deployment: Deployment
    outside: Outside

    def run(self, *arguments: str, stdin: str | None = None) -> str:
        """Run a command that succeeds; returns what it prints."""
        done = self.deployment.manage(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def json(self, *arguments: str, stdin: str | None = None) -> Any:
        return json.loads(self.run(*arguments, "--json", stdin=stdin))

    def refusal(self, *arguments: str, stdin: str | None = None) -> str:
        """Run a command that fails; returns the only line that it prints."""
        done = self.deployment.manage(*arguments, stdin=stdin)
        assert (done.returncode, done.stdout) == (1, ""), done.stdout + done.stderr
        [line] = done.stderr.splitlines()
        return line

    def user_id(self, name: str) -> str:
        return f"@{name}:{self.outside.server_name}"

    def log_in(self, name: str, password: str) -> Account:
        return asyncio.run(self.outside.log_in(name, password))

    def refused_log_in(self, name: str, password: str) -> bool:
        """Whether the homeserver refuses a log-in."""

        async def attempt() -> object:
            async with self.outside.matrix() as client:
                client.user = self.user_id(name)
                return await client.login(password)

        answer = asyncio.run(attempt())
        return isinstance(answer, nio.LoginError) and answer.status_code == "M_FORBIDDEN"

    def logged_in(self, account: Account) -> bool:
        """Whether the session of an account is still accepted."""
        with self.outside.http() as http:
            url = self.outside.url("matrix", "/_matrix/client/v3/account/whoami")
            return http.get(url, headers=account.authorization).status_code == 200


@pytest.fixture(scope="module")
def managed(deployed: Deployed, outside: Outside, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Managed]:
    settings = {"server_name": deployed.server_name, "tls": "internal", "admin_email": "admin@example.com"}
    directory = tmp_path_factory.mktemp("accounts")
    deployment = Deployment(directory, [deployed.host], settings, user="admin")
    deployment.choose(**settings, registration="token", vault=str(deployed.deployment.vault))
    deployed.host.run(f"cat >{FILE}; chmod 644 {FILE}", stdin=OWN)
    whole = deployed.deployment
    before = whole.settings
    told = {"reports_to": MODERATOR, "alerts_to": REPORTER}
    whole.choose(
        **before,
        **{setting: [f"@{name}:{deployed.server_name}"] for setting, name in told.items()},
        registration="open",
        captcha={"service": "recaptcha_v2", "site_key": SITE_KEY},
    )
    done = whole.manage("secrets", "set", CAPTCHA_SECRET, stdin="the secret of the captcha\n")
    assert done.returncode == 0, done.stderr
    assert whole.run("-y").changed == CHANGED
    # As Prometheus would: it takes half a minute until it is told.
    where = f"--alertmanager.url=http://127.0.0.1:{ALERTS_PORT}"
    deployed.host.run(f"amtool alert add {where} Trial --annotation=summary='A trial' --annotation=todo='Do nothing.'")
    yield Managed(deployment, outside)
    deployed.host.run(f"rm {FILE}")
    whole.choose(**before)
    vault = Vault.open(whole.vault)
    vault.remove(CAPTCHA_SECRET)
    vault.save()
    assert whole.run("-y").changed == CHANGED


@dataclass(frozen=True)
class Reported:
    """What was reported by whom."""

    reporter: Account
    moderator: Account
    room: str
    event: str


@pytest.fixture(scope="module", autouse=True)
def reported(managed: Managed) -> Reported:
    """Somebody reports at the beginning: it takes half a minute until it is told, in which the other tests are made."""
    return report(managed, told=True)


def report(managed: Managed, *, told: bool) -> Reported:
    """Somebody reports a message, its room and who has written it. told: what is reported is also written to a moderator."""
    reporter, moderator = (
        managed.log_in(each, managed.json("accounts", "create", each, "--generate")["password"])
        for each in (REPORTER, MODERATOR)
    )

    async def said() -> str:
        async with managed.outside.matrix(moderator) as hers, managed.outside.matrix(reporter) as his:
            room = await create_shared_room(hers, his)
            await send_message(hers, room, "Buy this!")
            return room

    room = asyncio.run(said())
    if told:
        # Once the module has begun: what was reported before is not told.
        invitations(managed, moderator)
    [event] = [each["event_id"] for each in timeline(managed, reporter, room) if "body" in each["content"]]
    for path in (
        f"rooms/{quote(room)}/report/{quote(event)}",
        f"rooms/{quote(room)}/report",
        f"users/{quote(moderator.user_id)}/report",
    ):
        with managed.outside.http() as http:
            url = managed.outside.url("matrix", f"/_matrix/client/v3/{path}")
            reason = {"reason": "This is\nspam"}
            assert expect_json(http.post(url, headers=reporter.authorization, json=reason)) == {}
    return Reported(reporter, moderator, room, event)


def invitations(managed: Managed, account: Account) -> list[str]:
    """The rooms that it is invited into, one at least."""
    deadline = time.monotonic() + 60
    with managed.outside.http() as http:
        url = managed.outside.url("matrix", "/_matrix/client/v3/sync")
        while True:
            # Synapse has the same answer to the same question for two minutes.
            params = {"timeout": secrets.randbelow(1_000_000)}
            rooms = expect_json(http.get(url, params=params, headers=account.authorization)).get("rooms", {})
            if found := list(rooms.get("invite", ())):
                return found
            assert time.monotonic() < deadline, "no invitation came"
            time.sleep(0.5)


def timeline(managed: Managed, account: Account, room: str) -> list[dict[str, Any]]:
    """The last events of a room, the newest first."""
    with managed.outside.http() as http:
        url = managed.outside.url("matrix", f"/_matrix/client/v3/rooms/{quote(room)}/messages?dir=b&limit=50")
        events: list[dict[str, Any]] = expect_json(http.get(url, headers=account.authorization))["chunk"]
        return events


def test_reports_are_listed(managed: Managed, reported: Reported) -> None:
    user, message = managed.json("reports", "list", "--limit", "2")
    about = {"reporter": reported.reporter.user_id, "user_id": reported.moderator.user_id, "reason": "This is\nspam"}
    assert about.items() <= user.items() and user["room_id"] is None
    assert about.items() <= message.items() and message["event_id"] == reported.event
    shown = managed.run("reports", "show", message["id"])
    assert "Buy this!" in shown and "Garden" in shown and "This is spam" in shown


def test_a_room_is_blocked_and_purged(managed: Managed, reported: Reported) -> None:
    alice, bob = reported.moderator, reported.reporter
    alias = f"beans-{secrets.token_hex(3)}"

    def ask(who: Account, method: str, path: str, body: Any = None) -> int:
        with managed.outside.http() as http:
            url = managed.outside.url("matrix", f"/_matrix/client/v3/{path}")
            return http.request(method, url, headers=who.authorization, json=body).status_code

    async def created() -> str:
        async with managed.outside.matrix(alice) as hers:
            made = await hers.room_create(name="Beans", alias=alias, preset=nio.RoomPreset.public_chat)
            return str(expect(made, nio.RoomCreateResponse).room_id)

    room = asyncio.run(created())
    join = f"join/{quote(room)}"
    [listed] = managed.json("rooms", "list", "--search", alias)
    assert (listed["room_id"], listed["alias"]) == (room, f"#{alias}:{managed.outside.server_name}")
    assert (listed["name"], listed["members"], listed["local_members"], listed["encrypted"]) == ("Beans", 1, 1, False)

    # Blocked: nobody can join it, until it is not blocked any more.
    assert managed.json("rooms", "block", f"#{alias}")["changed"] is True
    assert managed.json("rooms", "show", room)["blocked"] is True
    assert ask(bob, "POST", join, {}) == 403
    managed.run("rooms", "unblock", room)
    assert ask(bob, "POST", join, {}) == 200

    # Purged: everybody has left it, and it is gone.
    done = managed.run("rooms", "purge", f"#{alias}", "--block", "--yes")
    assert "is removed: 2 members of this homeserver have left it; nobody of this homeserver can join it again" in done
    assert ask(alice, "GET", f"rooms/{quote(room)}/messages?dir=b") == 403
    assert ask(bob, "POST", join, {}) == 403
    assert "there is no room" in managed.refusal("rooms", "show", room)


# A purge that PostgreSQL refuses once, as it does where Synapse changes the same rows meanwhile.
REFUSED_ONCE = """
CREATE SEQUENCE asked;
CREATE FUNCTION refuse_once() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF nextval('asked') = 1 THEN RAISE EXCEPTION 'refused once'; END IF;
    RETURN OLD;
END $$;
CREATE TRIGGER refuse_once BEFORE DELETE ON events FOR EACH ROW EXECUTE FUNCTION refuse_once();
"""


def test_a_purge_that_fails_once_goes_on(managed: Managed, deployed: Deployed, reported: Reported) -> None:
    async def created() -> str:
        async with managed.outside.matrix(reported.moderator) as hers:
            return str(expect(await hers.room_create(name="Peas"), nio.RoomCreateResponse).room_id)

    def database(sql: str) -> str:
        asked = "cd / && runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 -d synapse"
        return deployed.host.run(asked, stdin=sql).stdout.strip()

    room = asyncio.run(created())
    try:
        database(REFUSED_ONCE)
        done = managed.run("rooms", "purge", room, "--yes")
        assert int(database("SELECT last_value FROM asked")) > 1
    finally:
        database("DROP FUNCTION IF EXISTS refuse_once CASCADE; DROP SEQUENCE IF EXISTS asked")
    assert "is removed: 1 member of this homeserver has left it" in done
    assert "there is no room" in managed.refusal("rooms", "show", room)


@pytest.fixture
def name() -> str:
    return f"anna-{secrets.token_hex(3)}"


def test_life_of_an_account(managed: Managed, deployed: Deployed, name: str) -> None:
    user_id = managed.user_id(name)
    made = managed.json("accounts", "create", name, "--password-stdin", "--display-name", "Anna", stdin="first one\n")
    assert (made["user_id"], made["admin"], made["display_name"]) == (user_id, False, "Anna")
    account = managed.log_in(name, "first one")

    # Where it is logged in.
    [session] = managed.json("accounts", "sessions", user_id)
    assert session["id"] == account.device_id and session["name"] == "matrix-metal's tests"
    assert account.device_id in managed.run("accounts", "sessions", name)
    assert managed.json("accounts", "show", name)["sessions"] == 1

    # Another password: the old session ends, unless it is to stay.
    reset = managed.json("accounts", "reset-password", name, "--generate", "--keep-sessions")
    assert managed.logged_in(account) and managed.refused_log_in(name, "first one")
    managed.run("accounts", "reset-password", name, "--password-stdin", stdin="third one")
    assert not managed.logged_in(account) and managed.refused_log_in(name, reset["password"])
    account = managed.log_in(name, "third one")

    # Server administrator: Synapse's admin API takes the account's own token.
    def is_admin() -> bool:
        question = f"curl -qs --config - {SYNAPSE_URL}/_synapse/admin/v2/users/{user_id}"
        header = f'header = "Authorization: Bearer {account.access_token}"'
        return "creation_ts" in deployed.host.run(question, stdin=header).stdout

    assert not is_admin()
    assert managed.json("accounts", "promote", name)["changed"] is True
    assert managed.json("accounts", "promote", name)["changed"] is False
    assert is_admin() and user_id in [each["user_id"] for each in managed.json("accounts", "list", "--admins")]
    managed.run("accounts", "demote", user_id)
    assert not is_admin()

    # Logged out: one session, then all.
    second, third = managed.log_in(name, "third one"), managed.log_in(name, "third one")
    managed.run("accounts", "log-out", name, "--session", second.device_id)
    assert [managed.logged_in(each) for each in (account, second, third)] == [True, False, True]
    assert managed.json("accounts", "log-out", name)["logged_out"] == 2
    assert not managed.logged_in(account) and not managed.logged_in(third)
    assert "has no session NOSUCH" in managed.refusal("accounts", "log-out", name, "--session", "NOSUCH")

    # Out of use, and in use again.
    account = managed.log_in(name, "third one")
    assert managed.refusal("accounts", "deactivate", name).endswith("give --yes")
    assert managed.logged_in(account)
    assert managed.json("accounts", "deactivate", name, "--yes")["deactivated"] is True
    assert managed.json("accounts", "deactivate", name)["changed"] is False
    assert not managed.logged_in(account) and managed.refused_log_in(name, "third one")
    assert user_id not in [each["user_id"] for each in managed.json("accounts", "list")]
    assert user_id in [each["user_id"] for each in managed.json("accounts", "list", "--deactivated")]
    assert "reactivate" in managed.refusal("accounts", "reset-password", name, "--generate")
    again = managed.json("accounts", "reactivate", name, "--generate")
    assert managed.log_in(name, again["password"]).user_id == user_id
    assert managed.json("accounts", "deactivate", name, "--erase", "--yes")["deactivated"] is True


async def abuse(managed: Managed, abuser: Account, victim: Account) -> tuple[list[str], str]:
    """Spam in rooms, of which the account has left one, and is banned from one; returns them and the address of media."""
    async with managed.outside.matrix(abuser) as his, managed.outside.matrix(victim) as hers:
        rooms = [await create_shared_room(hers, his) for _ in range(3)]
        for room in rooms:
            await send_message(his, room, "Buy this!")
        await his.room_leave(rooms[1])
        await hers.room_ban(rooms[2], abuser.user_id)
        picture, _ = await his.upload(io.BytesIO(b"spam"), "image/png", "spam.png", filesize=4)
        return rooms, expect(picture, nio.UploadResponse).content_uri


def test_what_an_abuser_has_left_is_removed(managed: Managed, name: str) -> None:
    abuser, victim = (
        managed.log_in(each, managed.json("accounts", "create", each, "--generate")["password"])
        for each in (name, f"{name}-2")
    )
    rooms, media = asyncio.run(abuse(managed, abuser, victim))

    def seen() -> list[str]:
        events = (event for room in rooms for event in timeline(managed, victim, room))
        return [each["event_id"] for each in events if each["sender"] == abuser.user_id and "body" in each["content"]]

    def download() -> int:
        with managed.outside.http() as http:
            url = managed.outside.url("matrix", f"/_matrix/client/v1/media/download/{media.removeprefix('mxc://')}")
            return http.get(url, headers=victim.authorization).status_code

    assert len(seen()) == 3 and download() == 200
    question = managed.refusal("accounts", "deactivate", name, "--redact", "--quarantine")
    assert (
        "its messages are removed from all rooms, and nobody can download its media. That cannot be undone" in question
    )
    done = managed.run("accounts", "deactivate", name, "--erase", "--redact", "--quarantine", "--yes")
    assert done == (
        f"{abuser.user_id} is deactivated and erased; media files that nobody can download any more: 1; "
        "its messages are removed.\n"
    )
    assert seen() == [] and download() == 404 and not managed.logged_in(abuser)
    # Once more, and with nothing left to do.
    again = managed.json("accounts", "deactivate", name, "--redact", "--quarantine", "--yes")
    assert (again["not_redacted"], again["quarantined"]) == (0, 0)
    assert "whose administrators alone can" in managed.refusal("accounts", "deactivate", "@x:other.test", "--yes")


def test_an_administrator_is_made(managed: Managed, name: str) -> None:
    made = managed.json("accounts", "create", name, "--admin", "--generate")
    assert made["admin"] is True
    assert managed.log_in(name, made["password"]).user_id == managed.user_id(name)


def test_an_account_that_exists_is_left_alone(managed: Managed, name: str) -> None:
    made = managed.json("accounts", "create", name, "--generate")
    assert managed.refusal("accounts", "create", name, "--generate") == f"manage: {made['user_id']} exists already"
    # It asks for no password.
    assert managed.json("accounts", "create", name, "--exists-ok")["changed"] is False
    managed.log_in(name, made["password"])


def test_an_unknown_account_suggests_the_nearest(managed: Managed, name: str) -> None:
    managed.run("accounts", "create", name, "--generate")
    misspelt = name.replace("anna", "ana")
    assert managed.refusal("accounts", "show", misspelt).endswith(f"did you mean {managed.user_id(name)}?")


def test_the_list_has_people_and_nobody_else(managed: Managed, name: str) -> None:
    managed.run("accounts", "create", name, "--generate", "--display-name", "Anna\N{RIGHT-TO-LEFT OVERRIDE}\x1b[31m")
    listed = managed.json("accounts", "list", "--deactivated")
    assert [each["user_id"] for each in listed] == sorted(each["user_id"] for each in listed)
    assert not [each for each in listed if "matrix-metal" in each["user_id"]]
    rows = managed.run("accounts", "list").splitlines()
    assert rows[0].split()[:2] == ["ACCOUNT", "NAME"]
    [row] = [row for row in rows if name in row]
    assert row.isprintable() and "active" in row
    assert "use themselves" in managed.refusal("accounts", "create", "matrix-metal", "--generate")


def test_the_account_of_the_commands_is_left_alone(managed: Managed) -> None:
    """With MAS there is none."""
    assert "use themselves" in managed.refusal("accounts", "deactivate", "matrix-metal", "--yes")


def test_the_password_is_asked_for_twice_and_not_echoed(managed: Managed, name: str) -> None:
    command = [sys.executable, "manage.py", str(managed.deployment.inventory), "accounts", "create", name]
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        command, cwd=managed.deployment.root, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
    ) as process:
        os.close(terminal)
        screen = b""
        for question in (b"Password of ", b"The same again: "):
            while question not in screen:
                screen += os.read(controller, 1000)
            os.write(controller, b"typed by hand\n")
        while True:
            try:
                screen += os.read(controller, 1000)
            except OSError:  # how Linux reports the end of a terminal's output
                break
    os.close(controller)
    assert process.returncode == 0, screen
    assert b"typed" not in screen
    managed.log_in(name, "typed by hand")
    assert "--password-stdin or --generate" in managed.refusal("accounts", "create", f"{name}-2")
    assert "the password is empty" in managed.refusal("accounts", "create", f"{name}-2", "--password-stdin", stdin="")


def test_registration_tokens(managed: Managed, name: str) -> None:
    async def register(user: str, token: str, password: str = PASSWORD) -> object:
        async with managed.outside.matrix() as client:
            return await client.register_with_token(user, password, token)

    created = managed.json("tokens", "create", "--expires", "7d")
    token = created["token"]
    assert (created["uses"], created["used"], created["usable"]) == (1, 0, True)
    assert created["expires"].endswith("Z")
    # Synapse's own rule.
    short = expect(asyncio.run(register(name, token, "seven 7")), nio.ErrorResponse)
    assert short.status_code == "M_PASSWORD_TOO_SHORT", short
    expect(asyncio.run(register(name, token)), nio.RegisterResponse)
    assert isinstance(asyncio.run(register(f"{name}-2", token)), nio.ErrorResponse)
    assert managed.json("accounts", "show", name)["admin"] is False

    # Used up.
    assert token not in managed.run("tokens", "list")
    [listed] = [each for each in managed.json("tokens", "list", "--all") if each["token"] == token]
    assert (listed["used"], listed["usable"]) == (1, False)
    assert token in managed.run("tokens", "list", "--all")
    managed.run("tokens", "revoke", token)
    assert token not in managed.run("tokens", "list", "--all")
    assert "no such registration token" in managed.refusal("tokens", "revoke", token)

    # Taken back before it is used.
    token = managed.run("tokens", "create", "--unlimited").strip()
    with managed.outside.http() as http:
        url = managed.outside.url(
            "matrix", f"/_matrix/client/v1/register/m.login.registration_token/validity?token={token}"
        )
        assert expect_json(http.get(url)) == {"valid": True}
        managed.run("tokens", "revoke", token)
        assert expect_json(http.get(url)) == {"valid": False}


def test_a_registration_token_that_is_of_no_use_says_so(managed: Managed, deployed: Deployed) -> None:
    settings = {"server_name": deployed.server_name, "tls": "internal", "admin_email": "admin@example.com"}
    other = Deployment(managed.deployment.directory / "closed", [deployed.host], settings, user="admin")
    other.choose(**settings, vault=str(deployed.deployment.vault))
    done = other.manage("tokens", "list", "--json")
    assert done.returncode == 0 and isinstance(json.loads(done.stdout), list)
    [line] = done.stderr.splitlines()
    assert 'registration is "closed"' in line and 'set registration = "token" and deploy' in line


def test_who_solves_a_captcha_gets_an_account(managed: Managed, deployed: Deployed, name: str) -> None:
    """As deployed, but for where Synapse asks about solutions. From here on, no token is asked for."""
    host, outside = deployed.host, managed.outside
    host.run(
        "systemd-run --quiet --collect --unit=verifier -p StandardOutput=file:/run/verifier.log "
        f"python3 -Ic {shlex.quote(VERIFIER)}; cat >{FILE}; {RESTART}",
        stdin=f"recaptcha_siteverify_api: {VERIFIER_URL}\n{LIMITS}",
    )
    account = {"username": name, "password": PASSWORD}
    with outside.http() as http:
        begun = expect_json(http.post(outside.url("matrix", "/_matrix/client/v3/register"), json=account), 401)
        assert begun["flows"] == [{"stages": ["m.login.recaptcha", "m.login.dummy"]}]
        assert begun["params"]["m.login.recaptcha"] == {"public_key": SITE_KEY}

        def then(status: int, **stage: str) -> Any:
            auth = {**stage, "session": begun["session"]}
            url = outside.url("matrix", "/_matrix/client/v3/register")
            return expect_json(http.post(url, json={**account, "auth": auth}), status)

        assert then(401, type="m.login.dummy")["completed"] == ["m.login.dummy"]
        assert then(401, type="m.login.recaptcha", response="guessed")["errcode"] == "M_UNAUTHORIZED"
        assert then(200, type="m.login.recaptcha", response="solved")["user_id"] == managed.user_id(name)

        # Apps show it in a page of Synapse's.
        page = http.get(
            outside.url("matrix", "/_matrix/client/v3/auth/m.login.recaptcha/fallback/web"),
            params={"session": begun["session"]},
        )
        assert f'data-sitekey="{SITE_KEY}"' in page.text
        [policy] = page.headers.get_list("Content-Security-Policy")
        assert "script-src" not in policy and "default-src" not in policy
    asked = [json.loads(line) for line in host.run("cat /run/verifier.log").stdout.splitlines()]
    host.run("systemctl stop verifier")
    told = {"secret": ["the secret of the captcha"], "remoteip": [host.bed.bridge_address]}
    assert asked == [["/siteverify", {**told, "response": [each]}] for each in ("guessed", "solved")]


def descendants(pid: int) -> Iterator[Path]:
    """The directories in /proc of a process and of those that it started."""
    yield Path(f"/proc/{pid}")
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in file.read_text().split():
            yield from descendants(int(child))


def set_passwords(managed: Managed, name: str) -> tuple[list[str], dict[str, str]]:
    """Make an account, then give it another password; returns both, and what others can read: where -> text."""
    host, password = managed.outside.host, secrets.token_hex(16)
    here: set[bytes] = set()
    with command_lines(host) as there:
        command = [sys.executable, "manage.py", str(managed.deployment.inventory), "accounts", "create", name]
        with subprocess.Popen(
            [*command, "--password-stdin"],
            cwd=managed.deployment.root,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        ) as process:
            assert process.stdin is not None
            process.stdin.write(f"{password}\n".encode())
            process.stdin.close()
            while process.poll() is None:
                # A process may end while it is looked at.
                with contextlib.suppress(OSError):
                    for directory in descendants(process.pid):
                        here |= {(directory / file).read_bytes() for file in ("cmdline", "environ")}
        generated = managed.json("accounts", "reset-password", name, "--generate")["password"]
    assert process.returncode == 0
    assert any("curl" in line for line in there) and any(name.encode() in line for line in here)
    journal = host.run("journalctl --all --no-pager -o verbose --since -10min", timeout=120).stdout
    return [password, generated], {
        "the command lines of the machine": "".join(there),
        "the command lines of this computer": b"".join(here).decode(errors="replace"),
        "the journal": journal,
    }


def test_no_secret_is_on_a_command_line_or_in_the_journal(managed: Managed, deployed: Deployed, name: str) -> None:
    # So that the account of these commands is made again.
    deployed.host.run(f"rm -f {TOKEN_FILE}")
    passwords, found = set_passwords(managed, name)
    token = deployed.host.run(f"cat {TOKEN_FILE}").stdout.strip()
    assert deployed.host.run(f"stat -c '%a %U:%G' {TOKEN_FILE}").stdout == "600 root:root\n"
    assert "COMMAND=" in found["the journal"]
    for where, text in found.items():
        assert_none_in([*passwords, token], text, where)


def test_the_account_of_the_commands_is_replaced_when_its_token_is_lost(managed: Managed, deployed: Deployed) -> None:
    managed.run("accounts", "list")
    lost = deployed.host.run(f"cat {TOKEN_FILE}").stdout
    deployed.host.run(f"echo wrong >{TOKEN_FILE}")
    managed.run("accounts", "list")
    assert deployed.host.run(f"cat {TOKEN_FILE}").stdout != lost
    header = f'header = "Authorization: Bearer {lost.strip()}"'
    question = f"curl -qs --config - {SYNAPSE_URL}/_matrix/client/v3/account/whoami"
    assert "M_UNKNOWN_TOKEN" in deployed.host.run(question, stdin=header).stdout
    found = deployed.host.run(
        "cd / && psql -XAtqc \"SELECT name FROM users WHERE user_type = 'support' AND deactivated = 0\" synapse",
        user="postgres",
    ).stdout.split()
    # The other one tells moderators about reports, and stays.
    [_] = [name for name in found if not name.startswith("@matrix-metal-reports:")]
    assert len(found) == 2


def test_a_homeserver_that_does_not_run(managed: Managed, deployed: Deployed) -> None:
    deployed.host.run("systemctl stop matrix-synapse")
    try:
        assert "matrix-synapse does not run on" in managed.refusal("accounts", "list")
    finally:
        deployed.host.run(RESTART)


def test_moderators_read_what_is_reported(managed: Managed, reported: Reported) -> None:
    """Each report once, though Synapse was restarted meanwhile."""
    moderator, reporter = reported.moderator, reported.reporter.user_id
    [reports] = invitations(managed, moderator)
    with managed.outside.http() as http:
        url = managed.outside.url("matrix", f"/_matrix/client/v3/join/{quote(reports)}")
        expect_json(http.post(url, headers=moderator.authorization, json={}))

    def told() -> list[str]:
        events = timeline(managed, moderator, reports)[::-1]
        return [each["content"]["body"] for each in events if "body" in each["content"]]

    deadline = time.monotonic() + 60
    while len(told()) < 3:
        assert time.monotonic() < deadline, told()
        time.sleep(0.5)
    via, link = f"?via={managed.outside.server_name}", "https://matrix.to/#/"
    room, event = reported.room, reported.event
    assert told() == [
        f"{reporter} reports a message of {moderator.user_id} in Garden: This is spam\n{link}{room}/{event}{via}",
        f"{reporter} reports the room Garden: This is spam\n{link}{room}{via}",
        f"{reporter} reports {moderator.user_id}: This is spam\n{link}{moderator.user_id}",
    ]
    # It is an account of ours, not of a person.
    names = [each["user_id"] for each in managed.json("accounts", "list", "--deactivated")]
    assert not [each for each in names if "reports" in each]


def test_administrators_read_what_the_monitoring_finds(managed: Managed, reported: Reported) -> None:
    administrator = reported.reporter
    [alerts] = invitations(managed, administrator)
    with managed.outside.http() as http:
        url = managed.outside.url("matrix", f"/_matrix/client/v3/join/{quote(alerts)}")
        expect_json(http.post(url, headers=administrator.authorization, json={}))
    deadline = time.monotonic() + 60
    while True:
        said = [each["content"].get("body") for each in timeline(managed, administrator, alerts)]
        if "A trial.\nDo nothing." in said:
            break
        assert time.monotonic() < deadline, said
        time.sleep(0.5)
    assert said.count("A trial.\nDo nothing.") == 1


def test_moderators_are_invited_where_only_administrators_may_invite(managed: Managed, reported: Reported) -> None:
    host, bob = managed.outside.host, reported.reporter
    host.run(f"echo block_non_admin_invites: true >>{FILE}")
    host.run("cat >/etc/matrix-synapse/reports.json", stdin=json.dumps([reported.moderator.user_id, bob.user_id]))
    host.run(RESTART)
    with managed.outside.http() as http:
        url = managed.outside.url("matrix", f"/_matrix/client/v3/rooms/{quote(reported.room)}/invite")
        body = {"user_id": managed.user_id("nobody")}
        refused = expect_json(http.post(url, headers=reported.moderator.authorization, json=body), 403)
    assert refused["error"] == "Invites have been disabled on this server"
    assert len(invitations(managed, bob)) == 1


# The last one: who reads reports is chosen anew.
def test_all_administrators_read_reports_by_default_and_nobody_if_that_is_switched_off(
    managed: Managed, deployed: Deployed, reported: Reported
) -> None:
    whole = deployed.deployment
    chosen = {name: value for name, value in whole.settings.items() if name != "reports_to"}
    whole.choose(**chosen)
    assert whole.run("-y").changed == ["Configure Synapse", "Run Synapse"]
    # Also who becomes one later.
    made = managed.json("accounts", "create", "chief", "--admin", "--generate")
    chief = managed.log_in("chief", made["password"])
    [reports] = invitations(managed, chief)
    # Who was in the list, and administers nothing, is out.
    deadline = time.monotonic() + 20
    with managed.outside.http() as http:
        url = managed.outside.url("matrix", "/_matrix/client/v3/joined_rooms")
        while reports in expect_json(http.get(url, headers=reported.moderator.authorization))["joined_rooms"]:
            assert time.monotonic() < deadline
            time.sleep(0.5)

    whole.choose(**{**chosen, "alerts_to": [], "reports_to": []})
    assert whole.run("-y").changed == ["Configure Synapse", "Run Synapse"]
    assert deployed.host.run("ls /usr/local/lib/synapse-reports", check=False).returncode
