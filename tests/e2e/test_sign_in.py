"""People create accounts and log in at the Matrix Authentication Service as Element X has them do, with a real browser.

For the real program only, which MAS_BINARY names.
PICTURES=DIRECTORY keeps a picture of every page.
"""

import base64
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from roles import MAS
from settings.mas import ADMIN_CLIENT, Provider
from tests.conftest import complete, own, real_rtc
from tests.deployment import Deployment
from tests.e2e.browser import DESKTOP, PHONE, Browser, Phone
from tests.e2e.call.browser import install
from tests.e2e.client import TIMEOUT, Account, Outside, expect_json
from tests.e2e.identity import MAIL_SERVER, receive_mail

# The commands for accounts, as without MAS.
from tests.e2e.test_accounts import (  # noqa: F401
    Managed,
    Reported,
    report,
    set_passwords,
    test_a_room_is_blocked_and_purged,
    test_an_account_that_exists_is_left_alone,
    test_an_administrator_is_made,
    test_an_unknown_account_suggests_the_nearest,
    test_reports_are_listed,
    test_the_list_has_people_and_nobody_else,
    test_the_password_is_asked_for_twice_and_not_echoed,
    test_what_an_abuser_has_left_is_removed,
)
from tests.e2e.test_element import PICTURES
from tests.e2e.test_rtc import calling, livekit_client
from tests.e2e.test_secrets import assert_none_in
from tests.standin.archives import real_mas
from tests.standin.release_server import ReleaseServer
from tests.testbed import Testbed
from vault import Vault

__all__ = ["livekit_client"]
pytestmark = [
    pytest.mark.role("mas"),
    pytest.mark.skipif(not real_mas(), reason="set MAS_BINARY to an archive of the real MAS"),
]

ROLES = ("postgres", "synapse", "caddy", "mas", "element", *(("coturn", "rtc") if real_rtc() else ()))
# Of Element X on Android: its redirect URI belongs to the application, not to a web site.
SCHEME = "io.element.android"
ELEMENT_X = {
    "client_name": "Element X",
    "client_uri": "https://element.io",
    "application_type": "native",
    "redirect_uris": [f"{SCHEME}:/"],
    "token_endpoint_auth_method": "none",
    "response_types": ["code"],
    "grant_types": ["authorization_code", "refresh_token"],
}
# A person makes three accounts at once at most, and the tests come from one address.
ENOUGH = "rate_limiting: {registration: {burst: 100, per_second: 10}, login: {per_ip: {burst: 100, per_second: 10}}}\n"
MACHINE = own("phone")
PROVIDER = Provider(id="example", issuer=f"https://id.{MACHINE}.test", client_id="matrix", name="Example Ltd.")
START_PROVIDER = """
set -e
install -d -m 700 /srv/provider && cd /srv/provider
cat >secret
printf '{{"type": "module"}}' >package.json
[ -d node_modules ] || npm install --silent --no-fund --no-audit oidc-provider@8.8.1
new="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
openssl req -x509 $new -days 2 -subj '/CN=authority of the provider' -keyout ca.key -out ca.crt 2>/dev/null
openssl req $new -subj /CN={name} -keyout key.pem -out request 2>/dev/null
echo subjectAltName=DNS:{name} >names
openssl x509 -req -in request -CA ca.crt -CAkey ca.key -days 2 -extfile names -out cert.pem 2>/dev/null
systemctl stop provider 2>/dev/null || true
systemd-run --quiet --collect --unit=provider -p WorkingDirectory=/srv/provider node provider.mjs {name} {client} secret {back}
until curl -sf --cacert ca.crt https://{name}/.well-known/openid-configuration >/dev/null; do sleep 0.2; done
"""


@dataclass(frozen=True)
class Homeserver:
    """A homeserver with MAS, mail, and a provider to sign in with. mailbox: gets mail to <mailbox>+anything@<server name>."""

    outside: Outside
    deployment: Deployment
    phone: Phone
    mailbox: str

    def choose(self, registration: str) -> None:
        file = self.deployment.directory / "group_data" / f"{self.deployment.name}.py"
        file.write_text(re.sub(r"registration = .*", f"registration = {registration!r}", file.read_text()))
        self.deployment.run("-y")


@pytest.fixture(scope="module")
def phone(testbed: Testbed) -> Iterator[Phone]:
    host = testbed.up(MACHINE)
    yield Phone(host, ["nodejs", "npm", "openssl"])
    host.down()


@pytest.fixture(scope="module", params=["trixie", "bookworm"], ids=["debian13", "debian12"])
def homeserver(
    request: pytest.FixtureRequest,
    testbed: Testbed,
    phone: Phone,
    release_page: ReleaseServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Homeserver]:
    host = testbed.up(own(f"sign{13 if request.param == 'trixie' else 12}"), release=request.param)
    directory = tmp_path_factory.mktemp("sign")
    deployment = complete(testbed, host, directory, release_page)
    deployment.assign({role: [host.name] for role in ROLES})
    with (deployment.directory / "group_data" / f"{deployment.name}.py").open("a") as settings:
        settings.write(f"registration = 'open'\nsmtp_host = 'mail.{host.domain}'\nsmtp_port = 25\nsmtp_tls = 'none'\n")
        settings.write("stickers = True\n")
        settings.write(f"sso = [{PROVIDER.model_dump(include={'id', 'issuer', 'client_id', 'name'})!r}]\n")
    vault = Vault.open(deployment.vault)
    client_secret = secrets.token_urlsafe(30)
    vault.set(PROVIDER.secret, client_secret)
    vault.save()

    phone.host.run("install -d -m 700 /srv/provider")
    phone.host.put(Path(__file__).with_name("provider.mjs"), "/srv/provider/provider.mjs")
    # As the README has the administrator tell the provider.
    shown = deployment.manage("mas", "callbacks")
    [(identifier, back)] = [line.split() for line in shown.stdout.splitlines()]
    assert identifier == PROVIDER.id and back.startswith(f"https://auth.{host.domain}/"), shown
    start = START_PROVIDER.format(name=f"id.{MACHINE}.test", client=PROVIDER.client_id, back=back)
    phone.host.run(start, stdin=client_secret, timeout=300)
    phone.host.get("/srv/provider/ca.crt", directory / "provider.crt")

    host.run("install -d /usr/local/share/ca-certificates")
    host.put(directory / "provider.crt", "/usr/local/share/ca-certificates/provider.crt")
    mailbox = "gardener"
    host.run("sh -s", stdin=MAIL_SERVER.format(domain=host.domain, user=mailbox), timeout=300)
    host.run("postconf -e inet_interfaces=all; systemctl restart postfix; update-ca-certificates", timeout=60)
    deployment.run("-y")
    host.run("umask 027; cat >/etc/mas/local.yaml; chgrp mas /etc/mas/local.yaml; systemctl restart mas", stdin=ENOUGH)
    host.run(f"until {MAS.units[0].health}; do sleep 0.1; done")
    outside = Outside(host, directory)
    phone.trust("homeserver", outside.root)
    phone.trust("provider", directory / "provider.crt")
    yield Homeserver(outside, deployment, phone, mailbox)
    host.down()


@dataclass
class ElementX:
    """What Element X does: it finds where to log in, registers itself, and sends the person there."""

    homeserver: Homeserver
    http: httpx.Client
    access: str = ""
    refresh: str = ""

    def __post_init__(self) -> None:
        outside = self.homeserver.outside
        found = expect_json(self.http.get(outside.url("", "/.well-known/matrix/client")))
        self.base = found["m.homeserver"]["base_url"]
        self.metadata = expect_json(self.http.get(f"{self.base}/_matrix/client/v1/auth_metadata"))
        registered = self.http.post(self.metadata["registration_endpoint"], json=ELEMENT_X)
        self.client = expect_json(registered, registered.status_code)["client_id"]
        self.verifier, self.state = secrets.token_urlsafe(48), secrets.token_urlsafe(16)
        self.device = secrets.token_hex(5).upper()

    def page(self, prompt: str = "") -> str:
        """The URL that it opens in the browser. prompt: "create" for "Create account"."""
        challenge = base64.urlsafe_b64encode(hashlib.sha256(self.verifier.encode()).digest()).decode().rstrip("=")
        matrix = "urn:matrix:org.matrix.msc2967.client"
        query = {
            "response_type": "code",
            "client_id": self.client,
            "redirect_uri": f"{SCHEME}:/",
            "scope": f"openid {matrix}:api:* {matrix}:device:{self.device}",
            "state": self.state,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
            **({"prompt": prompt} if prompt else {}),
        }
        return f"{self.metadata['authorization_endpoint']}?{urlencode(query)}"

    def come_back(self, sent: dict[str, str]) -> str:
        """Log in with what the browser has sent; returns the user ID that Synapse says."""
        assert sent["state"] == self.state, sent
        self._tokens(grant_type="authorization_code", code=sent["code"], code_verifier=self.verifier)
        return str(expect_json(self.ask("v3/account/whoami"))["user_id"])

    def refresh_token(self) -> None:
        self._tokens(grant_type="refresh_token", refresh_token=self.refresh)

    def _tokens(self, **form: str) -> None:
        form |= {"client_id": self.client, "redirect_uri": f"{SCHEME}:/"}
        answer = expect_json(self.http.post(self.metadata["token_endpoint"], data=form))
        self.access, self.refresh = answer["access_token"], answer["refresh_token"]

    def ask(self, path: str, token: str = "") -> httpx.Response:
        headers = {"Authorization": f"Bearer {token or self.access}"}
        return self.http.get(f"{self.base}/_matrix/client/{path}", headers=headers)

    def sync(self) -> httpx.Response:
        body = {"lists": {"all": {"ranges": [[0, 9]], "timeline_limit": 1, "required_state": []}}}
        url = f"{self.base}/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
        return self.http.post(url, headers={"Authorization": f"Bearer {self.access}"}, json=body)

    def revoke(self) -> None:
        form = {"token": self.access, "token_type_hint": "access_token", "client_id": self.client}
        self.http.post(self.metadata["revocation_endpoint"], data=form).raise_for_status()


@pytest.fixture
def element(homeserver: Homeserver) -> Iterator[ElementX]:
    with homeserver.outside.http() as http:
        yield ElementX(homeserver, http)


@pytest.fixture(scope="module")
def managed(homeserver: Homeserver) -> Managed:
    """The administrator's commands."""
    return Managed(homeserver.deployment, homeserver.outside)


@pytest.fixture(scope="module")
def reported(managed: Managed) -> Reported:
    return report(managed, told=False)


@pytest.fixture(name="name")
def account_name() -> str:
    return new_name("anna")


@pytest.fixture
def browser(homeserver: Homeserver) -> Iterator[Browser]:
    with homeserver.phone.browser() as browser:
        yield browser


Look = Callable[[str], None]


@pytest.fixture
def look(browser: Browser, request: pytest.FixtureRequest) -> Look:
    """Keep a picture of the page on a phone and on a desktop, if PICTURES names a directory."""
    directory, number = os.environ.get("PICTURES"), iter(range(100))

    def look(name: str) -> None:
        if directory:
            for kind, size in (("desktop", DESKTOP), ("phone", PHONE)):
                browser.resize(size)
                file = f"{request.node.originalname.removeprefix('test_')}-{next(number):02}-{name}-{kind}.png"
                browser.picture(Path(directory) / file)

    return look


def new_name(name: str) -> str:
    return f"{name}-{secrets.token_hex(3)}"


def mailed(homeserver: Homeserver, address: str, pattern: str, directory: Path) -> str:
    """What a pattern finds in the next mail to an address."""
    mail = receive_mail(homeserver.outside, homeserver.mailbox, address, directory)
    assert homeserver.outside.server_name in str(mail["From"]), mail["From"]
    plain = mail.get_body(("plain",))
    assert plain
    found = re.search(pattern, plain.get_content())
    assert found, plain.get_content()
    return found[1]


PASSWORD = "correct horse battery staple"  # noqa: S105
# The name, which the mail has before it, may end in six digits, too.
CODE = r": (\d{6})\b"


def create(browser: Browser, look: Look, name: str, password: str = PASSWORD, **more: str) -> None:
    """Fill in the first pages."""
    # Where people may also sign in with a provider, they first choose a name.
    browser.fill(username=name)
    look("name")
    browser.press()
    browser.fill(username=name, **more, password=password, password_confirm=password)
    look("password")
    browser.press()


def finish(browser: Browser, look: Look, element: ElementX) -> str:
    """The pages after those that ask something: the display name is left as it is, and Element X is let in."""
    browser.fill(display_name="Anna Müller")
    look("display-name")
    browser.press()
    look("consent")
    browser.press()
    return element.come_back(browser.sent_to(SCHEME))


def new_person(homeserver: Homeserver, element: ElementX, name: str, directory: Path) -> str:
    """Create an account with an address where everybody may; returns the address."""
    address = f"{homeserver.mailbox}+{secrets.token_hex(3)}@{homeserver.outside.server_name}"
    with homeserver.phone.browser() as browser:
        browser.open(element.page("create"))
        create(browser, lambda name: None, name, email=address)
        browser.fill(code=mailed(homeserver, address, CODE, directory))
        browser.press()
        finish(browser, lambda name: None, element)
    return address


def test_an_account_is_created_with_an_address(
    homeserver: Homeserver, element: ElementX, browser: Browser, look: Look, tmp_path: Path
) -> None:
    name, address = new_name("anna"), f"{homeserver.mailbox}+{secrets.token_hex(3)}@{homeserver.outside.server_name}"
    assert "create" in element.metadata["prompt_values_supported"]
    browser.open(element.page("create"))
    create(browser, look, name, email=address)
    look("code")
    browser.fill(code=mailed(homeserver, address, CODE, tmp_path))
    browser.press()
    assert finish(browser, look, element) == f"@{name}:{homeserver.outside.server_name}"

    assert "pos" in expect_json(element.sync())
    first = element.access
    element.refresh_token()
    assert element.access != first and "pos" in expect_json(element.sync())
    element.revoke()
    deadline = time.monotonic() + TIMEOUT
    while element.ask("v3/account/whoami").status_code == 200:
        assert time.monotonic() < deadline, "Synapse does not notice that the session was ended"
        time.sleep(0.2)
    assert expect_json(element.sync(), 401)["errcode"] == "M_UNKNOWN_TOKEN"


def test_a_forgotten_password_is_replaced(
    homeserver: Homeserver, element: ElementX, browser: Browser, look: Look, tmp_path: Path
) -> None:
    """MAS sends a link to the address of the account."""
    name = new_name("dora")
    address = new_person(homeserver, element, name, tmp_path)
    browser.open(homeserver.outside.url("auth", "/recover"))
    browser.fill(email=address)
    look("recover")
    browser.press()
    look("mail-sent")
    browser.open(mailed(homeserver, address, r"(https://\S+)", tmp_path))
    new = f"{PASSWORD} 2"
    # With the tab key at the end: once the field is left, a line about it moves the button away from under a click.
    browser.fill(new_password=new, new_password_again=f"{new}\ue004")
    look("new-password")
    browser.press()
    browser.wait_until_gone("input[name=new_password]")
    look("saved")
    again = ElementX(homeserver, element.http)
    with homeserver.phone.browser() as another:
        another.open(again.page())
        another.fill(username=name, password=PASSWORD)
        another.press()
        assert another.shows("input[name=password]"), "the old password is still good"
        another.fill(username=name, password=new)
        another.press()
        another.press()
        assert again.come_back(another.sent_to(SCHEME)) == f"@{name}:{homeserver.outside.server_name}"


def sign_in_there(browser: Browser, look: Look, name: str) -> None:
    """At the provider."""
    assert browser.shows("input[name=login]"), browser.text
    look("provider")
    browser.fill(login=name, password=PASSWORD)
    browser.press()
    browser.press()


def come_from_there(homeserver: Homeserver, browser: Browser, look: Look, element: ElementX, name: str) -> None:
    """The pages after the provider's, for who was not here before."""
    user_id = f"@{name}:{homeserver.outside.server_name}"
    assert browser.shows(f"input[value='{user_id}']"), browser.text
    look("back")
    browser.press()
    look("consent")
    browser.press()
    assert element.come_back(browser.sent_to(SCHEME)) == user_id


def test_a_person_signs_in_with_a_provider(
    homeserver: Homeserver, element: ElementX, browser: Browser, look: Look
) -> None:
    name = f"clara{secrets.token_hex(3)}"
    browser.open(element.page())
    look("log-in")
    assert PROVIDER.name in browser.text
    browser.press(f"a[href*='/upstream/authorize/{PROVIDER.ulid}']")
    sign_in_there(browser, look, name)
    come_from_there(homeserver, browser, look, element, name)
    profile = expect_json(element.ask(f"v3/profile/@{name}:{homeserver.outside.server_name}"))
    assert profile.get("displayname") == f"{name} of the provider"


def test_nobody_gets_somebody_elses_account_from_a_provider(
    homeserver: Homeserver, managed: Managed, element: ElementX, browser: Browser, look: Look
) -> None:
    name = f"emil{secrets.token_hex(3)}"
    managed.run("accounts", "create", name, "--generate")
    browser.open(element.page())
    browser.press(f"a[href*='/upstream/authorize/{PROVIDER.ulid}']")
    sign_in_there(browser, look, name)
    assert browser.says("User exists"), browser.text
    look("taken")
    assert managed.json("accounts", "show", name)["sessions"] == 0


@pytest.mark.skipif(not real_rtc(), reason="set LIVEKIT_BINARY and LK_JWT_BINARY to the real programs")
def test_two_people_who_have_just_made_accounts_call_each_other(
    homeserver: Homeserver, livekit_client: Path, tmp_path: Path
) -> None:
    """The first call of the README. It goes on while MAS is restarted."""
    outside, accounts = homeserver.outside, []
    with outside.http() as http:
        for each in ("anna", "ben"):
            element, name = ElementX(homeserver, http), new_name(each)
            new_person(homeserver, element, name, tmp_path)
            accounts.append(Account(f"@{name}:{outside.server_name}", PASSWORD, element.device, element.access))
    install(homeserver.phone.host)
    anna, ben = accounts
    with calling(homeserver.phone.host, outside, livekit_client, (anna, ben), outside.root) as callers:
        room = callers.pages[0].run("(other) => matrix.createRoom(other)", ben.user_id)
        callers.pages[1].run("(room) => matrix.request('POST', `/join/${room}`, {})", room)
        callers.join(room)
        callers.hear_each_other()
        outside.host.run(f"systemctl restart mas; until {MAS.units[0].health}; do sleep 0.1; done")
        callers.hear_each_other()
        assert not any("Disconnected" in event for events in callers.both("conference.events") for event in events)


def test_an_account_is_created_with_a_token(
    homeserver: Homeserver, element: ElementX, browser: Browser, look: Look
) -> None:
    homeserver.choose("token")
    token = homeserver.deployment.manage("tokens", "create").stdout.strip()
    name = new_name("berta")
    browser.open(element.page("create"))
    create(browser, look, name, "password1")
    assert browser.says("Password is too weak"), f"a password that is easy to guess is taken: {browser.text}"
    browser.fill(password=PASSWORD, password_confirm=PASSWORD)
    browser.press()
    browser.fill(**{"token": "another-one"})
    browser.press()
    assert browser.shows("[data-error-kind=invalid]"), f"a wrong token is accepted: {browser.text}"
    browser.fill(token=token)
    look("token")
    browser.press()
    assert finish(browser, look, element) == f"@{name}:{homeserver.outside.server_name}"


def test_nobody_creates_an_account_if_registration_is_closed(
    homeserver: Homeserver, element: ElementX, browser: Browser, look: Look
) -> None:
    homeserver.choose("closed")
    assert "create" not in ElementX(homeserver, element.http).metadata["prompt_values_supported"]
    browser.open(element.page())
    look("log-in")
    assert PROVIDER.name in browser.text and not browser.has("a[href^='/register']")
    answer = element.http.get(homeserver.outside.url("auth", "/register/password"))
    assert answer.status_code == 303 and "/login" in answer.headers["location"]

    # Whom the provider knows still gets one, and is sent there at once.
    name = f"frida{secrets.token_hex(3)}"
    browser.open(element.page("create"))
    sign_in_there(browser, look, name)
    come_from_there(homeserver, browser, look, element, name)
    status, output = homeserver.deployment.verify()
    assert status == 0, output


# --- the administrator's commands -----------------------------------------------------------------


def test_life_of_an_account(managed: Managed, name: str) -> None:
    user_id = managed.user_id(name)
    made = managed.json("accounts", "create", name, "--password-stdin", "--display-name", "Anna", stdin="first one\n")
    assert (made["user_id"], made["admin"], made["deactivated"]) == (user_id, False, False)
    account = managed.log_in(name, "first one")
    with managed.outside.http() as http:
        url = managed.outside.url("matrix", f"/_matrix/client/v3/profile/{user_id}")
        assert expect_json(http.get(url, headers=account.authorization))["displayname"] == "Anna"

    # Where it is logged in.
    [session] = managed.json("accounts", "sessions", user_id)
    assert session["device"] == account.device_id and managed.json("accounts", "show", name)["sessions"] == 1

    # Another password: the old session ends, unless it is to stay.
    reset = managed.json("accounts", "reset-password", name, "--generate", "--keep-sessions")
    assert managed.logged_in(account) and managed.refused_log_in(name, "first one")
    managed.run("accounts", "reset-password", name, "--password-stdin", stdin="third one")
    wait_until_logged_out(managed, account)
    assert managed.refused_log_in(name, reset["password"])
    account = managed.log_in(name, "third one")

    # Server administrator.
    assert managed.json("accounts", "promote", name)["changed"] is True
    assert managed.json("accounts", "promote", name)["changed"] is False
    assert user_id in [each["user_id"] for each in managed.json("accounts", "list")]
    assert managed.json("accounts", "show", name)["admin"] is True
    assert managed.json("accounts", "demote", user_id)["admin"] is False

    # Logged out: one session, then all.
    second = managed.log_in(name, "third one")
    [session] = [each for each in managed.json("accounts", "sessions", name) if each["device"] == second.device_id]
    managed.run("accounts", "log-out", name, "--session", session["id"])
    wait_until_logged_out(managed, second)
    assert managed.logged_in(account) and managed.json("accounts", "log-out", name)["logged_out"] == 1
    wait_until_logged_out(managed, account)
    assert "has no session NOSUCH" in managed.refusal("accounts", "log-out", name, "--session", "NOSUCH")

    # Out of use, and in use again.
    account = managed.log_in(name, "third one")
    assert managed.refusal("accounts", "deactivate", name).endswith("give --yes")
    assert managed.json("accounts", "deactivate", name, "--yes")["deactivated"] is True
    assert managed.json("accounts", "deactivate", name)["changed"] is False
    wait_until_logged_out(managed, account)
    assert managed.refused_log_in(name, "third one")
    assert user_id not in [each["user_id"] for each in managed.json("accounts", "list")]
    assert user_id in [each["user_id"] for each in managed.json("accounts", "list", "--deactivated")]
    again = managed.json("accounts", "reactivate", name, "--generate")
    assert managed.log_in(name, again["password"]).user_id == user_id
    assert managed.json("accounts", "deactivate", name, "--erase", "--yes")["deactivated"] is True


def wait_until_logged_out(managed: Managed, account: Account) -> None:
    """Synapse asks MAS about a token once in a while."""
    deadline = time.monotonic() + TIMEOUT
    while managed.logged_in(account):
        assert time.monotonic() < deadline, f"the session {account.device_id} is still accepted"
        time.sleep(0.2)


def test_registration_tokens(managed: Managed) -> None:
    """test_an_account_is_created_with_a_token uses one."""
    created = managed.deployment.manage("tokens", "create", "--uses", "3", "--expires", "7d", "--json")
    assert created.returncode == 0, created.stderr
    token = json.loads(created.stdout)
    assert (token["uses"], token["used"], token["usable"]) == (3, 0, True) and token["expires"].endswith("Z")
    assert token["token"] in [each["token"] for each in managed.json("tokens", "list")]
    managed.run("tokens", "revoke", token["token"])
    assert token["token"] not in managed.run("tokens", "list", "--all")
    assert "no such registration token" in managed.refusal("tokens", "revoke", token["token"])


def test_stickers(managed: Managed, name: str, tmp_path: Path) -> None:
    """They come into a room and into the widgets of an account, whose person sees no session of it."""
    for file, content in PICTURES.items():
        (tmp_path / file).write_bytes(content)
    alice = managed.log_in(name, managed.json("accounts", "create", name, "--generate")["password"])

    def ask(method: str, path: str, content: Any = None) -> Any:
        with managed.outside.http() as http:
            url = managed.outside.url("matrix", f"/_matrix/client/v3{path}")
            return expect_json(http.request(method, url, headers=alice.authorization, json=content))

    room, sessions = ask("POST", "/createRoom", {})["room_id"], managed.json("accounts", "sessions", name)
    done = managed.json("stickers", "import", str(tmp_path), "--name", "Garden", "--room", room)
    assert done["uploaded"] == done["stickers"] == 3
    pack = ask("GET", f"/rooms/{room}/state/m.room.image_pack/Garden")
    assert sorted(pack["images"]) == ["bean", "happy_cat", "wave"]
    media = pack["images"]["bean"]["url"].removeprefix("mxc://")
    with managed.outside.http() as http:
        url = managed.outside.url("matrix", f"/_matrix/client/v1/media/download/{media}")
        assert http.get(url, headers=alice.authorization).content == PICTURES["bean.webp"]
    assert list(ask("GET", f"/rooms/{room}/joined_members")["joined"]) == [alice.user_id]

    assert managed.json("stickers", "enable", name)["changed"] == [alice.user_id]
    assert alice.user_id in managed.json("stickers", "enable", "--all")["unchanged"]
    widgets = f"/user/{alice.user_id}/account_data/m.widgets"
    [widget] = ask("GET", widgets).values()
    assert widget["content"]["url"].startswith(managed.outside.url("stickers.chat", "/"))
    assert managed.json("accounts", "sessions", name) == sessions
    assert managed.json("stickers", "disable", name)["changed"] == [alice.user_id] and ask("GET", widgets) == {}
    managed.run("stickers", "remove", "Garden", "--yes")
    assert ask("GET", f"/rooms/{room}/state/m.room.image_pack/Garden") == {}


def test_no_password_is_on_a_command_line_or_in_the_journal(managed: Managed, name: str) -> None:
    passwords, found = set_passwords(managed, name)
    client = Vault.open(managed.deployment.vault).get("mas_admin_client_secret").reveal()
    pair = base64.b64encode(f"{ADMIN_CLIENT}:{client}".encode()).decode()
    for where, text in found.items():
        assert_none_in([*passwords, client, pair], text, where)
