"""Somebody confirms an e-mail address with the identity server and is found by it. A real mail server delivers the mail."""

import base64
import hashlib
import re
import secrets
import time
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.conftest import Deployed
from tests.e2e.client import PATIENCE, Account, Outside, answered

V2 = "/_matrix/identity/v2"

# Postfix for this machine alone, as strict as mail servers on the internet became in 2024: bare line feeds are refused even
# from itself. One file for each mail, so that nothing in it is quoted.
MAIL_SERVER = """\
set -e
export DEBIAN_FRONTEND=noninteractive
debconf-set-selections <<'END'
postfix postfix/main_mailer_type select Local only
postfix postfix/mailname string {domain}
END
apt-get update -qq
apt-get install -qq -y --no-install-recommends postfix
postconf -e inet_interfaces=loopback-only mydestination={domain},localhost home_mailbox=Maildir/ recipient_delimiter=+ \
    smtpd_forbid_bare_newline=reject smtpd_forbid_bare_newline_exclusions= strict_7bit_headers=yes
useradd --create-home {user}
systemctl restart postfix
"""
NO_MAIL_SERVER = """\
export DEBIAN_FRONTEND=noninteractive
# The instance by its own name: stopping postfix.service alone does not wait for it.
systemctl stop postfix@-.service postfix.service
apt-get purge -qq -y --autoremove postfix
systemctl reset-failed 'postfix*'
userdel --force --remove {user}
"""


@pytest.fixture(scope="module")
def mailbox(deployed: Deployed) -> Iterator[str]:
    """The name of somebody who gets mail at <name>@<server name> and <name>+anything@<server name>."""
    user = f"gardener-{secrets.token_hex(3)}"
    deployed.host.run("sh -s", stdin=MAIL_SERVER.format(domain=deployed.server_name, user=user), timeout=300)
    yield user
    deployed.host.run("sh -s", stdin=NO_MAIL_SERVER.format(user=user), timeout=300)


def test_a_user_is_found_by_a_confirmed_address(
    outside: Outside, alice: Account, bob: Account, mailbox: str, tmp_path: Path
) -> None:
    address = f"{mailbox}+found@{outside.server_name}"
    identity = outside.url("identity", V2)
    with outside.http() as http:
        hers, his = _register(outside, http, alice), _register(outside, http, bob)
        assert answered(http.get(f"{identity}/account", headers=hers))["user_id"] == alice.user_id
        assert _look_up(outside, http, his, address) == {}, "the address is found before anybody confirmed it"

        session = _ask(outside, http, hers, address)
        early = _bind(outside, http, alice, hers, session)
        assert early.status_code >= 400, "the address was bound without being confirmed"

        mail = _delivered(outside, mailbox, address, tmp_path)
        _check_mail(mail, outside, address)
        guessed = http.get(re.sub(r"\btoken=\w+", "token=guessed", _link(mail)))
        assert "successful" not in guessed.text, "the address can be confirmed without having got the mail"
        page = http.get(_link(mail))
        assert page.status_code == 200, page.text
        assert page.headers["content-type"].startswith("text/html")
        assert "Verification successful" in page.text, page.text

        answered(_bind(outside, http, alice, hers, session))
        assert _look_up(outside, http, his, address) == {address: alice.user_id}

        for headers in (hers, his):
            answered(http.post(f"{identity}/account/logout", headers=headers))
            answered(http.get(f"{identity}/account", headers=headers), 401)


def test_a_user_can_take_an_address_back(
    outside: Outside, alice: Account, bob: Account, mailbox: str, tmp_path: Path
) -> None:
    """The homeserver asks for it and signs the request, which the identity server verifies."""
    address = f"{mailbox}+back@{outside.server_name}"
    with outside.http() as http:
        hers, his = _register(outside, http, alice), _register(outside, http, bob)
        session = _ask(outside, http, hers, address)
        http.get(_link(_delivered(outside, mailbox, address, tmp_path)))
        answered(_bind(outside, http, alice, hers, session))
        assert _look_up(outside, http, his, address) == {address: alice.user_id}

        gone = {"medium": "email", "address": address, "id_server": f"identity.{outside.server_name}"}
        url = outside.url("matrix", "/_matrix/client/v3/account/3pid/unbind")
        answer = answered(http.post(url, headers=alice.authorization, json=gone))
        assert answer == {"id_server_unbind_result": "success"}
        assert _look_up(outside, http, his, address) == {}, "the address is still found after it was taken back"


def test_somebody_is_invited_by_address(
    outside: Outside, alice: Account, bob: Account, mailbox: str, tmp_path: Path
) -> None:
    """The invitation waits with the identity server until somebody shows that the address is theirs."""
    address = f"{mailbox}+invited@{outside.server_name}"
    with outside.http() as http:
        hers, his = _register(outside, http, alice), _register(outside, http, bob)
        room = _ask_homeserver(
            outside, http, alice, "POST", "createRoom", {"name": "Harvest", "preset": "private_chat"}
        )["room_id"]
        _invite(outside, http, alice, hers, room, address)

        mail = _delivered(outside, mailbox, address, tmp_path)
        plain = mail.get_body(("plain",))
        assert plain and "Harvest" in plain.get_content(), f"the mail does not say to which room: {plain}"
        assert alice.user_id.split(":")[0].removeprefix("@") in plain.get_content(), "the mail does not say by whom"

        session = _ask(outside, http, his, address)
        http.get(_link(_delivered(outside, mailbox, address, tmp_path)))
        answered(_bind(outside, http, bob, his, session))
        _wait_for_invitation(outside, http, bob, room)
        _ask_homeserver(outside, http, bob, "POST", f"rooms/{room}/join", {})

        # Whose address is known is invited at once, and gets no mail.
        second = _ask_homeserver(outside, http, alice, "POST", "createRoom", {"preset": "private_chat"})["room_id"]
        _invite(outside, http, alice, hers, second, address)
        _wait_for_invitation(outside, http, bob, second)


def _ask_homeserver(
    outside: Outside, http: httpx.Client, account: Account, method: str, path: str, body: dict[str, Any] | None = None
) -> Any:
    url = outside.url("matrix", f"/_matrix/client/v3/{path}")
    return answered(http.request(method, url, headers=account.authorization, json=body))


def _invite(
    outside: Outside, http: httpx.Client, account: Account, headers: dict[str, str], room: str, address: str
) -> None:
    wish = {
        "id_server": f"identity.{outside.server_name}",
        "id_access_token": headers["Authorization"].removeprefix("Bearer "),
        "medium": "email",
        "address": address,
    }
    _ask_homeserver(outside, http, account, "POST", f"rooms/{room}/invite", wish)


def _wait_for_invitation(outside: Outside, http: httpx.Client, account: Account, room: str) -> None:
    deadline, since = time.monotonic() + PATIENCE, ""
    while time.monotonic() < deadline:
        # From where the last one ended: Synapse answers the same question with the same, for two minutes.
        answer = _ask_homeserver(outside, http, account, "GET", f"sync?timeout=2000{since}")
        if room in answer.get("rooms", {}).get("invite", {}):
            return
        since = f"&since={answer['next_batch']}"
    raise AssertionError(f"{account.user_id} sees no invitation")


def test_strangers_get_nothing_from_the_identity_server(outside: Outside) -> None:
    with outside.http() as http:
        identity = outside.url("identity", V2)
        forged = {
            "access_token": "forged",
            "token_type": "Bearer",
            "matrix_server_name": outside.server_name,
            "expires_in": 3600,
        }
        refused = http.post(f"{identity}/account/register", json=forged)
        assert refused.status_code >= 400, "an account for somebody whom the homeserver does not know"
        for path in ("account", "hash_details", "lookup", "validate/email/requestToken", "3pid/bind", "store-invite"):
            response = http.request("GET" if path in ("account", "hash_details") else "POST", f"{identity}/{path}")
            assert response.status_code in (400, 401, 403), f"{path}: {response.status_code} {response.text}"


def _register(outside: Outside, http: httpx.Client, account: Account) -> dict[str, str]:
    """Show the identity server who we are, with a token of the homeserver for it; the headers of an account there."""
    url = outside.url("matrix", f"/_matrix/client/v3/user/{account.user_id}/openid/request_token")
    proof = answered(http.post(url, headers=account.authorization, json={}))
    token = answered(http.post(outside.url("identity", f"{V2}/account/register"), json=proof))["token"]
    return {"Authorization": f"Bearer {token}"}


def _ask(outside: Outside, http: httpx.Client, headers: dict[str, str], address: str) -> dict[str, str]:
    """Have the identity server send a mail to an address; what identifies the request."""
    secret = secrets.token_urlsafe(16)
    asked = http.post(
        outside.url("identity", f"{V2}/validate/email/requestToken"),
        headers=headers,
        json={"client_secret": secret, "email": address, "send_attempt": 1},
    )
    return {"sid": answered(asked)["sid"], "client_secret": secret}


def _bind(
    outside: Outside, http: httpx.Client, account: Account, headers: dict[str, str], session: dict[str, str]
) -> httpx.Response:
    """Make an address lead to an account: clients leave this to their homeserver, which asks the identity server."""
    return http.post(
        outside.url("matrix", "/_matrix/client/v3/account/3pid/bind"),
        headers=account.authorization,
        json={
            **session,
            "id_server": f"identity.{outside.server_name}",
            "id_access_token": headers["Authorization"].removeprefix("Bearer "),
        },
    )


def _look_up(outside: Outside, http: httpx.Client, headers: dict[str, str], address: str) -> dict[str, str]:
    """Who has an address: address -> user."""
    url = outside.url("identity", V2)
    details = answered(http.get(f"{url}/hash_details", headers=headers))
    assert "sha256" in details["algorithms"], details
    digest = hashlib.sha256(f"{address} email {details['lookup_pepper']}".encode()).digest()
    hashed = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    wish = {"addresses": [hashed], "algorithm": "sha256", "pepper": details["lookup_pepper"]}
    found = answered(http.post(f"{url}/lookup", headers=headers, json=wish))["mappings"]
    return {address: found[hashed]} if hashed in found else {}


def _delivered(outside: Outside, mailbox: str, address: str, directory: Path) -> EmailMessage:
    """The mail that arrives for an address, byte for byte, and parsed by one who forgives nothing."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if files := outside.host.run(
            f"grep -lrF 'To: {address}' /home/{mailbox}/Maildir/new", check=False
        ).stdout.split():
            outside.host.get(files[0], directory / "mail")
            outside.host.run(f"rm {files[0]}")
            parsed = message_from_bytes((directory / "mail").read_bytes(), policy=policy.strict)
            assert isinstance(parsed, EmailMessage)
            return parsed
        time.sleep(0.5)
    journal = outside.host.run("journalctl --no-pager -u 'postfix*' -u sydent -n 20").stdout
    raise AssertionError(f"no mail arrived after {PATIENCE} s:\n{journal}")


def _check_mail(mail: EmailMessage, outside: Outside, address: str) -> None:
    assert mail["To"] == address
    assert f"noreply@{outside.server_name}" in mail["From"]
    assert mail["Subject"] and mail["Date"].datetime and mail["Message-ID"].endswith(f"identity.{outside.server_name}>")
    assert mail.get_content_type() == "multipart/alternative"
    plain, html = mail.get_body(("plain",)), mail.get_body(("html",))
    assert plain and html, "the mail lacks a part"
    assert _link(mail) in _Links.of(html.get_content()), "the link of the text is not the button's"


def _link(mail: EmailMessage) -> str:
    plain = mail.get_body(("plain",))
    assert plain
    text = plain.get_content()
    found = re.search(r"https://\S+", text)
    assert found, f"there is no link in the mail: {text}"
    assert urlsplit(found[0]).path.endswith("/validate/email/submitToken"), found[0]
    return found[0]


class _Links(HTMLParser):
    """Where a page links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    @classmethod
    def of(cls, page: str) -> list[str]:
        parser = cls()
        parser.feed(page)
        return parser.found

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]
