"""The identity server as clients use it: who they are, which e-mail address is theirs, who has another."""

import base64
import hashlib
import re
import secrets
import time
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from urllib.parse import urlsplit

import httpx

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


def identify(outside: Outside, http: httpx.Client, account: Account) -> dict[str, str]:
    """Show the identity server who we are, with a token of the homeserver for it; the headers of an account there."""
    url = outside.url("matrix", f"/_matrix/client/v3/user/{account.user_id}/openid/request_token")
    proof = answered(http.post(url, headers=account.authorization, json={}))
    token = answered(http.post(outside.url("identity", f"{V2}/account/register"), json=proof))["token"]
    return {"Authorization": f"Bearer {token}"}


def ask(outside: Outside, http: httpx.Client, headers: dict[str, str], address: str) -> dict[str, str]:
    """Have the identity server send a mail to an address; what identifies the request."""
    secret = secrets.token_urlsafe(16)
    asked = http.post(
        outside.url("identity", f"{V2}/validate/email/requestToken"),
        headers=headers,
        json={"client_secret": secret, "email": address, "send_attempt": 1},
    )
    return {"sid": answered(asked)["sid"], "client_secret": secret}


def bind(
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


def look_up(outside: Outside, http: httpx.Client, headers: dict[str, str], address: str) -> dict[str, str]:
    """Who has an address: address -> user."""
    url = outside.url("identity", V2)
    details = answered(http.get(f"{url}/hash_details", headers=headers))
    assert "sha256" in details["algorithms"], details
    digest = hashlib.sha256(f"{address} email {details['lookup_pepper']}".encode()).digest()
    hashed = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    wish = {"addresses": [hashed], "algorithm": "sha256", "pepper": details["lookup_pepper"]}
    found = answered(http.post(f"{url}/lookup", headers=headers, json=wish))["mappings"]
    return {address: found[hashed]} if hashed in found else {}


def delivered(outside: Outside, mailbox: str, address: str, directory: Path) -> EmailMessage:
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


def link(mail: EmailMessage) -> str:
    plain = mail.get_body(("plain",))
    assert plain
    text = plain.get_content()
    found = re.search(r"https://\S+", text)
    assert found, f"there is no link in the mail: {text}"
    assert urlsplit(found[0]).path.endswith("/validate/email/submitToken"), found[0]
    return found[0]
