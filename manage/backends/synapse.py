"""Accounts of a homeserver without MAS, by Synapse's admin API.

It takes the access token of an administrator. These commands have an account of their own for that, which the vault's secret
for registration entitles to: it is made by the first command, its password is forgotten, and its token is kept on the machine,
in a file that only root can read. (A token of its own for every run would need a log-in, of which Synapse allows five and then
one in five minutes, or one account more for every run.) It is of Synapse's type "support", which nobody gets by themselves.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

from compat import Refused
from manage.homeserver import OUR_NAMES, SERVICE_NAME, Account, Session, Token, from_milliseconds
from manage.machines import Machine
from manage.web import Answer, send
from roles import SYNAPSE
from vault import VaultError

TOKEN_FILE = "/etc/matrix-metal/admin_token"  # noqa: S105
_READ = f"[ ! -e {TOKEN_FILE} ] || cat {TOKEN_FILE}"
_WRITE = f"umask 077 && cat >{TOKEN_FILE}.new && mv {TOKEN_FILE}.new {TOKEN_FILE}"
REGISTRATION_SECRET = "synapse_registration_shared_secret"  # noqa: S105
# How many accounts one answer may list.
PAGE = 1000
# Seconds for which a token of somebody's account is valid at most.
BORROWED = 300
# How many messages of a room are redacted at most.
EVERYTHING = 1_000_000


class Synapse:
    """The accounts of the Synapse on a machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._token = ""

    # Requests.

    def send(self, method: str, path: str, content: Any = None, token: str = "") -> Answer:
        """The answer to any request."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        url = f"http://127.0.0.1:{SYNAPSE.port}{path}"
        return send(self.machine, "matrix-synapse", method, url, headers, content)

    def ask(self, method: str, path: str, content: Any = None, missing: bool = False) -> Any:
        """The answer to a request to the admin API. missing: None is returned for what does not exist. Raises Refused."""
        self._token = self._token or self._kept_token()
        answer = self.send(method, f"/_synapse/admin/{path}", content, self._token) if self._token else None
        if answer is None or answer.status == 401 or answer.error == "You are not a server admin":
            self._register()
            answer = self.send(method, f"/_synapse/admin/{path}", content, self._token)
        if missing and answer.status == 404:
            return None
        if answer.status not in (200, 201):
            raise Refused(f"Synapse refuses: {answer.error}")
        return answer.content

    def usable_token(self) -> str:
        """The token of the account of these commands, which Synapse has just taken. Raises Refused."""
        self.ask("GET", "v1/rooms?limit=1")
        return self._token

    def _kept_token(self) -> str:
        """That of earlier runs; "" if there is none."""
        return "".join(self.machine.run(_READ)).strip()

    def _register(self) -> None:
        """Make the account of these commands, and keep its token on the machine."""
        vault = self.machine.settings.vault
        if not vault.has(REGISTRATION_SECRET):
            raise VaultError(f"{REGISTRATION_SECRET} is not set in {vault.path}: the first deploy makes it")
        secret = vault.get(REGISTRATION_SECRET).reveal().encode()
        # It is taken if its token was lost: by a restored database or file system.
        names = [SERVICE_NAME, *(f"{SERVICE_NAME}-{number}" for number in range(2, 100))]
        for name in names:
            nonce = self.send("GET", "/_synapse/admin/v1/register").content.get("nonce", "")
            password = secrets.token_urlsafe(48)
            mac = hmac.new(secret, "\0".join((nonce, name, password, "admin", "support")).encode(), hashlib.sha1)
            content = {"nonce": nonce, "username": name, "password": password, "mac": mac.hexdigest()}
            content |= {"admin": True, "user_type": "support", "displayname": "matrix-metal"}
            content |= {"initial_device_display_name": "manage.py"}
            answer = self.send("POST", "/_synapse/admin/v1/register", content)
            found = answer.content if isinstance(answer.content, dict) else {}
            if found.get("errcode") != "M_USER_IN_USE":
                break
        if answer.error == "HMAC incorrect":
            raise Refused(
                f"{self.machine.name}: Synapse has another {REGISTRATION_SECRET} than {vault.path}: deploy, then try again"
            )
        if answer.status != 200:
            raise Refused(f"Synapse does not register the account {name} for these commands: {answer.error}")
        self._token = answer.content["access_token"]
        self.machine.run(_WRITE, self._token)
        # Those whose token was lost.
        for each in self._users(user_id=SERVICE_NAME):
            old = is_service(each) and not each["name"].startswith(f"@{SERVICE_NAME}-reports:")
            if old and not each["deactivated"] and each["name"] != answer.content["user_id"]:
                self.ask("POST", f"v1/deactivate/{in_path(each['name'])}", {"erase": True})

    def _users(self, **parameters: str) -> list[dict[str, Any]]:
        """Every user but guests, with what Synapse knows about them."""
        found: list[dict[str, Any]] = []
        start: str | None = "0"
        while start is not None:
            given = {"from": start, "limit": str(PAGE), "guests": "false", "deactivated": "true", "locked": "true"}
            page = self.ask("GET", f"v2/users?{urlencode({**given, **parameters})}")
            found += page["users"]
            start = page.get("next_token")
        return found

    @contextmanager
    def session_of(self, user_id: str) -> Iterator[str]:
        """A token of an account, which is ended afterwards. It is no session: people do not see it among theirs."""
        content = {"valid_until_ms": int((time.time() + BORROWED) * 1000)}
        token = str(self.ask("POST", f"v1/users/{in_path(user_id)}/login", content)["access_token"])
        try:
            yield token
        finally:
            answer = self.send("POST", "/_matrix/client/v3/logout", {}, token)
            if answer.status != 200:
                raise Refused(f"Synapse refuses: {answer.error}")

    def close(self) -> None:
        """Nothing: the token is for later runs as well."""

    def room_id(self, alias: str) -> str | None:
        """The room that an alias leads to, here or at another homeserver. Raises Refused."""
        answer = self.send("GET", f"/_matrix/client/v3/directory/room/{in_path(alias)}")
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise Refused(f"Synapse does not find out where {alias} leads: {answer.error}")
        return str(answer.content["room_id"])

    # Accounts.

    def find(self, user_id: str) -> Account | None:
        found = self.ask("GET", f"v2/users/{in_path(user_id)}", missing=True)
        if found is None:
            return None
        if is_service(found):
            raise Refused(f"{user_id} is the account that these commands use themselves: leave it as it is")
        # Seconds here, milliseconds in the list.
        return _account({**found, "creation_ts": found["creation_ts"] * 1000})

    def all(self) -> Sequence[Account]:
        return [_account(each) for each in self._users() if not is_service(each)]

    def create(self, user_id: str, password: str, admin: bool, display_name: str | None) -> None:
        content: dict[str, Any] = {"password": password, "admin": admin}
        if display_name:
            content["displayname"] = display_name
        self.ask("PUT", f"v2/users/{in_path(user_id)}", content)

    def set_password(self, account: Account, password: str, keep_sessions: bool) -> None:
        content = {"new_password": password, "logout_devices": not keep_sessions}
        self.ask("POST", f"v1/reset_password/{in_path(account.id)}", content)

    def set_admin(self, account: Account, admin: bool) -> None:
        self.ask("PUT", f"v1/users/{in_path(account.id)}/admin", {"admin": admin})

    def deactivate(self, account: Account, erase: bool) -> None:
        self.ask("POST", f"v1/deactivate/{in_path(account.id)}", {"erase": erase})

    def redact(self, account: Account) -> int:
        # Also those that it has left or was banned from: Synapse redacts a message as if that were sent just after it.
        rooms = list(self.ask("GET", f"v1/users/{in_path(account.id)}/memberships")["memberships"])
        if not rooms:
            return 0
        content = {"rooms": rooms, "limit": EVERYTHING}
        task = self.ask("POST", f"v1/user/{in_path(account.id)}/redact", content)["redact_id"]
        while True:
            now = self.ask("GET", f"v1/user/redact_status/{in_path(task)}")
            if now["status"] == "complete":
                return len(now["failed_redactions"])
            if now["status"] == "failed":
                raise Refused(f"Synapse has not removed all messages of {account.user_id}: {now['error']}")
            time.sleep(0.5)

    def quarantine(self, account: Account) -> int:
        return int(self.ask("POST", f"v1/user/{in_path(account.id)}/media/quarantine")["num_quarantined"])

    def reactivate(self, account: Account, password: str) -> None:
        self.ask("PUT", f"v2/users/{in_path(account.id)}", {"deactivated": False, "password": password})

    def sessions(self, account: Account) -> Sequence[Session]:
        devices = self.ask("GET", f"v2/users/{in_path(account.id)}/devices")["devices"]
        return [
            Session(
                id=each["device_id"],
                name=each.get("display_name") or "",
                last_seen=from_milliseconds(each.get("last_seen_ts")),
                address=each.get("last_seen_ip"),
                device=each["device_id"],
            )
            for each in devices
            # Keys for encryption that an application left; nobody is logged in with it.
            if not each.get("dehydrated")
        ]

    def end_sessions(self, account: Account, sessions: Sequence[Session]) -> None:
        content = {"devices": [each.id for each in sessions]}
        self.ask("POST", f"v2/users/{in_path(account.id)}/delete_devices", content)

    # Registration tokens.

    def tokens(self) -> Sequence[Token]:
        usable = self.ask("GET", "v1/registration_tokens?valid=true")["registration_tokens"]
        found = self.ask("GET", "v1/registration_tokens")["registration_tokens"]
        return [_token(each, each["token"] in [other["token"] for other in usable]) for each in found]

    def create_token(self, uses: int | None, expires: datetime | None) -> Token:
        content = {"uses_allowed": uses, "expiry_time": int(expires.timestamp() * 1000) if expires else None}
        return _token(self.ask("POST", "v1/registration_tokens/new", content), True)

    def revoke_token(self, token: Token) -> None:
        self.ask("DELETE", f"v1/registration_tokens/{in_path(token.id)}")


def is_service(user: dict[str, Any]) -> bool:
    """Whether a user as Synapse lists it is an account of ours. Its type tells it from one of a person's choice."""
    localpart = user["name"][1:].partition(":")[0]
    return user["user_type"] == "support" and re.fullmatch(OUR_NAMES, localpart) is not None


def in_path(text: str) -> str:
    """A text as one part of a path."""
    return quote(text, safe="")


def _account(user: dict[str, Any]) -> Account:
    return Account(
        user_id=user["name"],
        id=user["name"],
        admin=bool(user["admin"]),
        deactivated=bool(user["deactivated"]),
        created=from_milliseconds(user["creation_ts"]),
        last_seen=from_milliseconds(user["last_seen_ts"]),
        display_name=user["displayname"],
        locked=bool(user["locked"]),
        emails=tuple(each["address"] for each in user.get("threepids", ()) if each["medium"] == "email"),
    )


def _token(token: dict[str, Any], usable: bool) -> Token:
    return Token(
        token=token["token"],
        id=token["token"],
        uses=token["uses_allowed"],
        used=token["completed"],
        pending=token["pending"],
        expires=from_milliseconds(token["expiry_time"]),
        usable=usable,
    )
