"""Rooms, and what people have reported, by Synapse's admin API."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from compat import Refused
from manage.backends.synapse import Synapse, in_path
from manage.homeserver import from_milliseconds
from manage.output import printable

# Seconds between two looks at a room that is being removed.
PAUSE = 0.5
# How often Synapse is asked to remove a room.
ATTEMPTS = 3


@dataclass(frozen=True)
class Room:
    """A room that the homeserver knows. local_members: those of this homeserver. public: it is in the list of rooms here."""

    room_id: str
    name: str | None
    alias: str | None
    members: int
    local_members: int
    encrypted: bool
    public: bool
    federated: bool

    @property
    def title(self) -> str:
        """What to call it in a sentence."""
        called = self.alias or (f'"{printable(self.name)}"' if self.name else None)
        return f"{called} ({self.room_id})" if called else self.room_id


@dataclass(frozen=True)
class RoomDetails:
    """What else is known about a room. join_rule, history: as Matrix has them. blocked: nobody of this homeserver can join it."""

    room: Room
    kind: str
    topic: str | None
    version: str | None
    creator: str | None
    created: datetime | None
    last_event: datetime | None
    join_rule: str | None
    history: str | None
    replaced_by: str | None
    blocked: bool


@dataclass(frozen=True)
class Removal:
    """How many members have left a room before it was removed, and how many could not be made to."""

    left: int
    not_left: int


@dataclass(frozen=True)
class Report:
    """What somebody has reported. id: such as "message-3". user_id: who is reported. room: its alias or name."""

    id: str
    reported: datetime | None
    reporter: str
    user_id: str | None
    reason: str | None
    room_id: str | None = None
    room: str | None = None
    event_id: str | None = None
    score: int | None = None


@dataclass(frozen=True)
class Message:
    """A message that was reported. text: None if it has none, or is encrypted."""

    sent: datetime | None
    type: str
    text: str | None


class Moderation:
    """The rooms and reports of the Synapse on a machine. Every method raises Refused with a line."""

    def __init__(self, synapse: Synapse) -> None:
        self.synapse = synapse

    # Rooms.

    def rooms(self, limit: int, search: str | None = None) -> tuple[list[Room], int]:
        """The rooms with the most members, those first, and how many there are in all. search: a part of the name or alias."""
        given = {"order_by": "joined_members", "limit": str(limit)} | ({"search_term": search} if search else {})
        page = self.synapse.ask("GET", f"v1/rooms?{urlencode(given)}")
        return [_room(each) for each in page["rooms"]], page["total_rooms"]

    def find(self, room_id: str) -> Room | None:
        found = self._find(room_id)
        return _room(found) if found else None

    def _find(self, room_id: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.synapse.ask("GET", f"v1/rooms/{in_path(room_id)}", missing=True)
        return found

    def details(self, room_id: str) -> RoomDetails | None:
        found, path = self._find(room_id), f"v1/rooms/{in_path(room_id)}"
        if not found:
            return None
        created = self.synapse.ask("GET", f"{path}/state?type=m.room.create")["state"]
        last = self.synapse.ask("GET", f"{path}/messages?dir=b&limit=1")["chunk"]
        return RoomDetails(
            room=_room(found),
            topic=found.get("topic"),
            kind="space" if found.get("room_type") == "m.space" else "room",
            version=found["version"],
            creator=found["creator"],
            created=from_milliseconds(created[0]["origin_server_ts"]) if created else None,
            last_event=from_milliseconds(last[0]["origin_server_ts"]) if last else None,
            join_rule=found["join_rules"],
            history=found["history_visibility"],
            replaced_by=found.get("replacement_room"),
            blocked=self.blocked(room_id),
        )

    def blocked(self, room_id: str) -> bool:
        """Whether nobody of this homeserver can join it or be invited. It need not exist."""
        return bool(self.synapse.ask("GET", f"v1/rooms/{in_path(room_id)}/block")["block"])

    def block(self, room_id: str, block: bool) -> None:
        self.synapse.ask("PUT", f"v1/rooms/{in_path(room_id)}/block", {"block": block})

    def remove(self, room_id: str, block: bool, progress: Callable[[int], None]) -> Removal:
        """Remove a room from the homeserver. progress: called again and again with how many members have left so far.

        Synapse gives up where it meets its own other work, such as its statistics of the room. Asked again, it goes on.
        """
        left: set[str] = set()
        for attempt in range(1, ATTEMPTS + 1):
            removed, stayed = self._removed(room_id, block, left, progress)
            if removed:
                return Removal(left=len(left), not_left=len(stayed))
            if attempt < ATTEMPTS:
                time.sleep(PAUSE)
        why = f"it could not make {', '.join(stayed)} leave" if stayed else "the log of matrix-synapse says why"
        raise Refused(f"Synapse has not removed {room_id}: {why}")

    def _removed(
        self, room_id: str, block: bool, left: set[str], progress: Callable[[int], None]
    ) -> tuple[bool, Sequence[str]]:
        """Whether one attempt has removed a room, and who could not be made to leave it. Adds those who have to `left`."""
        asked = self.synapse.ask("DELETE", f"v2/rooms/{in_path(room_id)}", {"block": block, "purge": True})
        path = f"v2/rooms/delete_status/{in_path(asked['delete_id'])}"
        while True:
            now = self.synapse.ask("GET", path)
            result = now.get("shutdown_room") or {}
            left.update(result.get("kicked_users", []))
            if now["status"] not in ("scheduled", "active"):
                return now["status"] == "complete", result.get("failed_to_kick_users", [])
            progress(len(left))
            time.sleep(PAUSE)

    # Reports.

    def reports(self, limit: int) -> tuple[list[Report], int]:
        """The newest reports, newest first, and how many there are in all. Of whole rooms Synapse lists none."""
        query = urlencode({"limit": str(limit)})
        messages = self.synapse.ask("GET", f"v1/event_reports?{query}")
        users = self.synapse.ask("GET", f"v1/user_reports?{query}")
        found = [*map(_of_message, messages["event_reports"]), *map(_of_user, users["user_reports"])]
        found.sort(key=lambda each: str(each.reported), reverse=True)
        return found[:limit], messages["total"] + users["total"]

    def report(self, kind: str, number: int) -> tuple[Report, Message | None] | None:
        """One report, and the message if it is one of a message."""
        table = {"message": "event_reports", "user": "user_reports"}[kind]
        found = self.synapse.ask("GET", f"v1/{table}/{number}", missing=True)
        if not found:
            return None
        if kind == "user":
            return _of_user(found), None
        event = found["event_json"]
        return _of_message(found), Message(
            sent=from_milliseconds(event["origin_server_ts"]), type=event["type"], text=event["content"].get("body")
        )


def _room(room: dict[str, Any]) -> Room:
    return Room(
        room_id=room["room_id"],
        name=room["name"],
        alias=room["canonical_alias"],
        # Synapse counts a moment later.
        members=room["joined_members"] or 0,
        local_members=room["joined_local_members"] or 0,
        encrypted=bool(room["encryption"]),
        public=bool(room["public"]),
        federated=bool(room["federatable"]),
    )


def _of_message(report: dict[str, Any]) -> Report:
    return Report(
        id=f"message-{report['id']}",
        reported=from_milliseconds(report["received_ts"]),
        reporter=report["user_id"],
        user_id=report["sender"],
        room_id=report["room_id"],
        room=report["canonical_alias"] or report["name"],
        event_id=report["event_id"],
        reason=report["reason"],
        score=report["score"],
    )


def _of_user(report: dict[str, Any]) -> Report:
    return Report(
        id=f"user-{report['id']}",
        reported=from_milliseconds(report["received_ts"]),
        reporter=report["user_id"],
        user_id=report["target_user_id"],
        reason=report["reason"],
    )
