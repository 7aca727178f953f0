"""What the commands for accounts need of a homeserver, with and without MAS."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from compat import Refused

# Of the account that these commands use at Synapse (manage/backends/synapse.py).
SERVICE_NAME = "matrix-metal"
# The same, and the account that tells moderators about reports (templates/synapse/synapse-reports).
OUR_NAMES = rf"{SERVICE_NAME}(-\d+|-reports)?"

ALLOWED = "lower-case letters, digits and any of . _ = - / +, not only digits, and no _ at the beginning"


@dataclass(frozen=True)
class Account:
    """An account of the homeserver. id: what the homeserver calls it in its API. created, last_seen: UTC, if known."""

    user_id: str
    id: str = field(repr=False)
    admin: bool
    deactivated: bool
    created: datetime | None = None
    last_seen: datetime | None = None
    display_name: str | None = None
    emails: tuple[str, ...] = ()
    locked: bool = False

    @property
    def state(self) -> str:
        return "deactivated" if self.deactivated else "locked" if self.locked else "active"


@dataclass(frozen=True)
class Session:
    """A session of an account. device: its device ID; None for a browser that is logged in at MAS. kind: what MAS calls it."""

    id: str
    name: str
    last_seen: datetime | None
    address: str | None
    device: str | None
    kind: str | None = None


@dataclass(frozen=True)
class Token:
    """A registration token. uses: how many accounts may be made with it, None: any number; used: how many have been.

    pending: how many are being made. usable: whether it can still be used. id: what the API calls it.
    """

    token: str
    id: str = field(repr=False)
    uses: int | None
    used: int
    pending: int
    expires: datetime | None
    usable: bool


class Homeserver(Protocol):
    """The accounts of a homeserver. Every method raises Refused with a line."""

    def find(self, user_id: str) -> Account | None: ...

    def all(self) -> Sequence[Account]:
        """Also deactivated ones, in the order of their names."""
        ...

    def create(self, user_id: str, password: str, admin: bool, display_name: str | None) -> None: ...

    def set_password(self, account: Account, password: str, keep_sessions: bool) -> None: ...

    def set_admin(self, account: Account, admin: bool) -> None: ...

    def deactivate(self, account: Account, erase: bool) -> None: ...

    def redact(self, account: Account) -> int:
        """Remove its messages, in all rooms that it was ever in; returns how many could not be."""
        ...

    def quarantine(self, account: Account) -> int:
        """Keep everybody from downloading its media; returns how many files that are."""
        ...

    def reactivate(self, account: Account, password: str) -> None: ...

    def sessions(self, account: Account) -> Sequence[Session]: ...

    def end_sessions(self, account: Account, sessions: Sequence[Session]) -> None: ...

    def tokens(self) -> Sequence[Token]: ...

    def create_token(self, uses: int | None, expires: datetime | None) -> Token: ...

    def revoke_token(self, token: Token) -> None: ...

    def close(self) -> None:
        """The end of a run."""
        ...


def user_id_of(name: str, server_name: str) -> str:
    """The user ID of an account that exists, perhaps: `anna` and `@anna:example.org` are the same. Raises Refused."""
    localpart, colon, server = name.removeprefix("@").partition(":")
    if colon and server != server_name:
        raise Refused(f"{name} is not of this homeserver, which has accounts such as @anna:{server_name}")
    # What Synapse ever allowed, so that old accounts and those of bridges can be named.
    if not re.fullmatch(r"[\x21-\x39\x3b-\x7e]+", localpart):
        raise Refused(f"{name!r} is not the name of an account: give one such as anna or @anna:{server_name}")
    return f"@{localpart}:{server_name}"


def new_user_id(name: str, server_name: str) -> str:
    """The user ID of an account to be made. Raises Refused if no account may be called so."""
    user_id = user_id_of(name, server_name)
    localpart = user_id[1:].partition(":")[0]
    if not re.fullmatch(r"[a-z0-9.=/+-][a-z0-9._=/+-]*", localpart) or localpart.isdigit():
        raise Refused(f"an account cannot be called {localpart!r}: allowed are {ALLOWED}")
    if len(user_id) > 255:
        raise Refused(f"the name is too long: {user_id[:20]}... has {len(user_id)} characters, and 255 are allowed")
    if re.fullmatch(OUR_NAMES, localpart):
        raise Refused(f"{localpart} is the name of the account that these commands use themselves: choose another")
    return user_id


def from_milliseconds(stamp: int | None) -> datetime | None:
    return datetime.fromtimestamp(stamp / 1000, UTC) if stamp else None
