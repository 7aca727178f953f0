"""The identity server as clients use it: log in, validate an e-mail address, bind it to an account, look up an address."""

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

from tests.e2e.client import TIMEOUT, Account, Outside, expect_json

V2 = "/_matrix/identity/v2"

# Postfix for local mail only, as strict as mail servers became in 2024: it refuses bare line feeds (SMTP smuggling) even from
# this machine. Maildir has one file per mail, so no line of a mail is quoted.
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


def identity_login(outside: Outside, http: httpx.Client, account: Account) -> dict[str, str]:
    """Log in to the identity server with an OpenID token of the homeserver; returns the headers for its requests."""
    url = outside.url("matrix", f"/_matrix/client/v3/user/{account.user_id}/openid/request_token")
    openid = expect_json(http.post(url, headers=account.authorization, json={}))
    token = expect_json(http.post(outside.url("identity", f"{V2}/account/register"), json=openid))["token"]
    return {"Authorization": f"Bearer {token}"}


def request_validation(outside: Outside, http: httpx.Client, headers: dict[str, str], address: str) -> dict[str, str]:
    """Have the identity server send a validation mail to an address; returns the validation session."""
    secret = secrets.token_urlsafe(16)
    response = http.post(
        outside.url("identity", f"{V2}/validate/email/requestToken"),
        headers=headers,
        json={"client_secret": secret, "email": address, "send_attempt": 1},
    )
    return {"sid": expect_json(response)["sid"], "client_secret": secret}


def bind(
    outside: Outside, http: httpx.Client, account: Account, headers: dict[str, str], session: dict[str, str]
) -> httpx.Response:
    """Bind an address to an account. Clients ask their homeserver for it, which asks the identity server."""
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
    """The user to whom an address is bound: address -> user ID."""
    url = outside.url("identity", V2)
    details = expect_json(http.get(f"{url}/hash_details", headers=headers))
    assert "sha256" in details["algorithms"], details
    digest = hashlib.sha256(f"{address} email {details['lookup_pepper']}".encode()).digest()
    hashed = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    query = {"addresses": [hashed], "algorithm": "sha256", "pepper": details["lookup_pepper"]}
    found = expect_json(http.post(f"{url}/lookup", headers=headers, json=query))["mappings"]
    return {address: found[hashed]} if hashed in found else {}


def receive_mail(outside: Outside, mailbox: str, address: str, directory: Path) -> EmailMessage:
    """Wait for a mail to an address; it is read byte for byte and parsed strictly, any defect raises."""
    deadline = time.monotonic() + TIMEOUT
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
    raise AssertionError(f"no mail arrived after {TIMEOUT} s:\n{journal}")


def validation_link(mail: EmailMessage) -> str:
    """The link that the user has to open to validate the address."""
    plain = mail.get_body(("plain",))
    assert plain
    text = plain.get_content()
    found = re.search(r"https://\S+", text)
    assert found, f"there is no link in the mail: {text}"
    assert urlsplit(found[0]).path.endswith("/validate/email/submitToken"), found[0]
    return found[0]
