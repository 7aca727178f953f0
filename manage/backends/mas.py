"""Accounts of a homeserver with MAS, by MAS's admin API.

MAS knows these commands as a client of its own, with a secret of the vault, and gives them an access token for each run, which
is revoked at the end: no account is needed for that. MAS does not tell what name others see, nor when an account was last used.
An administrator may ask for the rights of one: MAS gives them to a session that asks, such as a page for administration.

Rooms and what people have written are Synapse's, whose admin API takes a token of MAS's that has these rights. MAS gives one to
whoever administers it, for an account: one of ours, without a password, so that nobody can log in with it. It is made when it is
needed first. Each run ends its token.
"""

import base64
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

from compat import Refused
from manage.backends.synapse import BORROWED, Synapse
from manage.homeserver import OUR_NAMES, SERVICE_NAME, Account, Session, Token
from manage.machines import Machine
from manage.web import Answer, send
from roles import MAS_INTERNAL_PORT
from settings.mas import ADMIN_CLIENT

CLIENT_SECRET = "mas_admin_client_secret"  # noqa: S105
# How many items one answer may list.
PAGE = 1000
# The kinds of sessions: what a session is for, and how it is ended. Applications of old log in as they did at Synapse.
KINDS = {"oauth2": "finish", "compat": "finish", "user": "finish", "personal": "revoke"}
DEVICE = ("urn:matrix:client:device:", "urn:matrix:org.matrix.msc2967.client:device:")
# Seconds that MAS may take to end the sessions of a deactivated account, which it does a moment later.
PATIENCE = 20
# What an account may do at Synapse.
CLIENT_SCOPE = "urn:matrix:client:api:*"
# Seconds after which the token for Synapse's admin API ends if this run cannot end it: the removal of a large room takes long.
LASTS = 6 * 60 * 60


class Mas:
    """The accounts of the MAS on a machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.server_name = machine, machine.settings.server_name
        self._token, self.opened = "", ""
        self.synapse = SynapseOfMas(self)

    # Requests.

    def _send(
        self, method: str, path: str, authorization: str, content: Any = None, form: Mapping[str, str] | None = None
    ) -> Answer:
        url, headers = f"http://127.0.0.1:{MAS_INTERNAL_PORT}{path}", {"Authorization": authorization}
        return send(self.machine, "mas", method, url, headers, content, urlencode(form) if form else None)

    def _client(self) -> str:
        pair = f"{ADMIN_CLIENT}:{self.machine.settings.vault.get(CLIENT_SECRET).reveal()}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"

    def _ask(self, method: str, path: str, content: Any = None, missing: bool = False) -> Any:
        """The answer to a request. missing: None is returned for what does not exist. Raises Refused."""
        if not self._token:
            form = {"grant_type": "client_credentials", "scope": "urn:mas:admin"}
            answer = self._send("POST", "/oauth2/token", self._client(), form=form)
            if answer.status == 401:
                raise Refused(
                    f"{self.machine.name}: MAS has another {CLIENT_SECRET} than {self.machine.settings.vault.path}: "
                    "deploy, then try again"
                )
            if answer.status != 200:
                raise Refused(f"MAS refuses: {answer.error}")
            self._token = answer.content["access_token"]
        answer = self._send(method, f"/api/admin/v1/{path}", f"Bearer {self._token}", content)
        if missing and answer.status == 404:
            return None
        if not 200 <= answer.status < 300:
            raise Refused(f"MAS refuses: {answer.error}")
        return answer.content

    @contextmanager
    def session_of(self, username: str) -> Iterator[str]:
        """A token that Synapse takes for an account's, which is ended afterwards. Raises Refused."""
        user = self._ask("GET", f"users/by-username/{quote(username, safe='')}")["data"]
        session, token = self._personal_session(user["id"], CLIENT_SCOPE, BORROWED)
        try:
            yield token
        finally:
            self._end_personal_session(session)

    def _personal_session(self, user: str, scope: str, lasts: int) -> tuple[str, str]:
        content = {"actor_user_id": user, "human_name": "manage.py", "scope": scope, "expires_in": lasts}
        made = self._ask("POST", "personal-sessions", content)["data"]
        return made["id"], str(made["attributes"]["access_token"])

    def _end_personal_session(self, session: str) -> None:
        self._ask("POST", f"personal-sessions/{session}/revoke")

    def open_session(self) -> str:
        """A token that Synapse takes for an administrator's. Raises Refused."""
        for name in (SERVICE_NAME, *(f"{SERVICE_NAME}-{number}" for number in range(2, 100))):
            found = self._ask("GET", f"users/by-username/{name}", missing=True)
            if found is None:
                # Synapse may have it from a time without MAS.
                about = {"username": name, "displayname": "matrix-metal", "skip_homeserver_check": True}
                found = self._ask("POST", "users", about)
            user = found["data"]
            # One that was moved here from Synapse may have been deactivated there.
            if not user["attributes"]["deactivated_at"] and not user["attributes"]["locked_at"]:
                break
        self.opened, token = self._personal_session(user["id"], f"{CLIENT_SCOPE} urn:synapse:admin:*", LASTS)
        return token

    def close(self) -> None:
        if self.opened:
            self._end_personal_session(self.opened)
            self.opened = ""
        if self._token:
            self._send("POST", "/oauth2/revoke", self._client(), form={"token": self._token})
            self._token = ""

    def _list(self, kind: str, **filters: str) -> Iterator[dict[str, Any]]:
        """All items of a kind: what they have and, as `id`, what they are called."""
        given = {f"filter[{name}]": value for name, value in filters.items()}
        after: dict[str, str] = {}
        while True:
            query = urlencode({"page[first]": str(PAGE), "count": "false", **given, **after})
            page = self._ask("GET", f"{kind}?{query}")
            for each in page["data"]:
                yield {**each["attributes"], "id": each["id"]}
            if not page["links"].get("next"):
                return
            after = {"page[after]": page["data"][-1]["id"]}

    # Accounts.

    def _account(self, user: Mapping[str, Any], emails: Sequence[str] = ()) -> Account:
        return Account(
            user_id=f"@{user['username']}:{self.server_name}",
            id=user["id"],
            admin=user["admin"],
            deactivated=user["deactivated_at"] is not None,
            created=_time(user["created_at"]),
            locked=user["locked_at"] is not None,
            emails=tuple(emails),
        )

    def find(self, user_id: str) -> Account | None:
        found = self.find_any(user_id)
        if found and re.fullmatch(f"@{OUR_NAMES}:.*", user_id):
            raise Refused(f"{user_id} is the account that these commands use themselves: leave it as it is")
        return found

    def find_any(self, user_id: str) -> Account | None:
        """Also an account of these commands."""
        localpart = user_id[1:].partition(":")[0]
        found = self._ask("GET", f"users/by-username/{quote(localpart, safe='')}", missing=True)
        if found is None:
            return None
        user = {**found["data"]["attributes"], "id": found["data"]["id"]}
        return self._account(user, [each["email"] for each in self._list("user-emails", user=user["id"])])

    def all(self) -> Sequence[Account]:
        found = [self._account(each) for each in self._list("users", **{"legacy-guest": "false"})]
        # Without MAS these commands had an account, which was moved with the others (manage/backends/synapse.py). The migration
        # has logged in with another.
        people = [each for each in found if not re.fullmatch(f"@{OUR_NAMES}:.*", each.user_id)]
        return sorted(people, key=lambda each: each.user_id)

    def create(self, user_id: str, password: str, admin: bool, display_name: str | None) -> None:
        content = {"username": user_id[1:].partition(":")[0]}
        if display_name:
            content["displayname"] = display_name
        id = self._ask("POST", "users", content)["data"]["id"]
        self._set_password(id, password)
        if admin:
            self._ask("POST", f"users/{id}/set-admin", {"admin": True})

    def _set_password(self, id: str, password: str) -> None:
        # As without MAS, the administrator decides what is good enough. Else an account could be left without a password.
        self._ask("POST", f"users/{id}/set-password", {"password": password, "skip_password_check": True})

    def set_password(self, account: Account, password: str, keep_sessions: bool) -> None:
        self._set_password(account.id, password)
        if not keep_sessions:
            self.end_sessions(account, self.sessions(account))

    def set_admin(self, account: Account, admin: bool) -> None:
        self._ask("POST", f"users/{account.id}/set-admin", {"admin": admin})

    def deactivate(self, account: Account, erase: bool) -> None:
        self._ask("POST", f"users/{account.id}/deactivate", {"skip_erase": not erase})
        deadline = time.monotonic() + PATIENCE
        while self.sessions(account):
            if time.monotonic() > deadline:
                raise Refused(
                    f"{account.user_id} is deactivated, but MAS has not ended its sessions: see the log of mas"
                )
            time.sleep(0.5)

    def redact(self, account: Account) -> int:
        return self.synapse.redact(replace(account, id=account.user_id))

    def quarantine(self, account: Account) -> int:
        return self.synapse.quarantine(replace(account, id=account.user_id))

    def reactivate(self, account: Account, password: str) -> None:
        # First, because MAS has kept the old one.
        self._set_password(account.id, password)
        self._ask("POST", f"users/{account.id}/reactivate")

    def sessions(self, account: Account) -> Sequence[Session]:
        found = []
        for kind in KINDS:
            # A personal session acts for a user, and has an owner besides.
            whose = "actor_user" if kind == "personal" else "user"
            active = self._list(f"{kind}-sessions", **{whose: account.id, "status": "active"})
            found += [_session(kind, each) for each in active]
        return found

    def end_sessions(self, account: Account, sessions: Sequence[Session]) -> None:
        for each in sessions:
            assert each.kind is not None
            self._ask("POST", f"{each.kind}-sessions/{each.id}/{KINDS[each.kind]}")

    # Registration tokens.

    def tokens(self) -> Sequence[Token]:
        return [_token(each) for each in self._list("user-registration-tokens", revoked="false")]

    def create_token(self, uses: int | None, expires: datetime | None) -> Token:
        content: dict[str, Any] = {"usage_limit": uses}
        if expires:
            content["expires_at"] = expires.isoformat()
        made = self._ask("POST", "user-registration-tokens", content)["data"]
        return _token({**made["attributes"], "id": made["id"]})

    def revoke_token(self, token: Token) -> None:
        self._ask("POST", f"user-registration-tokens/{token.id}/revoke")


class SynapseOfMas(Synapse):
    """The admin API of a Synapse whose accounts MAS has: for what is not about accounts themselves."""

    def __init__(self, mas: Mas) -> None:
        super().__init__(mas.machine)
        self.mas = mas

    def _kept_token(self) -> str:
        return ""

    def _register(self) -> None:
        if self.mas.opened:
            raise Refused(
                "Synapse does not take the token that MAS has given for these commands: see journalctl -u mas"
            )
        self._token = self.mas.open_session()

    @contextmanager
    def session_of(self, user_id: str) -> Iterator[str]:
        with self.mas.session_of(user_id[1:].partition(":")[0]) as token:
            yield token

    def close(self) -> None:
        self.mas.close()


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _session(kind: str, session: Mapping[str, Any]) -> Session:
    scopes = session.get("scope", "").split()
    devices = [scope.removeprefix(each) for scope in scopes for each in DEVICE if scope.startswith(each)]
    return Session(
        id=session["id"],
        name=session.get("human_name") or session.get("user_agent") or "",
        last_seen=_time(session.get("last_active_at") or session.get("created_at")),
        address=session.get("last_active_ip"),
        device=session.get("device_id") or "".join(devices[:1]) or None,
        kind=kind,
    )


def _token(token: Mapping[str, Any]) -> Token:
    return Token(
        token=token["token"],
        id=token["id"],
        uses=token.get("usage_limit"),
        used=token["times_used"],
        pending=0,
        expires=_time(token.get("expires_at")),
        usable=token["valid"],
    )
