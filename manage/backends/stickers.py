"""What stickers need of Synapse: media, the packs of rooms, and the widgets of accounts.

Media is uploaded, and packs are written, by the account of these commands. The widgets of an account are its own data, which
Synapse gives to its user alone: for that, an administrator can have a token of any user.
"""

import base64
import json
import secrets
from collections.abc import Mapping
from typing import Any

from compat import Refused
from manage.backends.synapse import Synapse, in_path
from manage.web import TIMEOUT, Answer, configuration
from roles import SYNAPSE

CLIENT = "/_matrix/client/v3"
# The name of the specification (1.19), and that which clients have used before and still do.
PACKS = ("m.room.image_pack", "im.ponies.room_emotes")
# Bytes. An event has at most 65,536, with what the homeserver adds.
LARGEST_EVENT = 60_000
# The file is in memory, and nobody but root can read it. The request comes first on standard input, then an empty line.
_UPLOAD = (
    "dir=$(mktemp --directory --tmpdir=/run) && trap 'rm -rf \"$dir\"' EXIT && sed -u '/^$/q' >\"$dir/request\" && "
    "base64 --decode >\"$dir/body\" && curl -q --silent --show-error --noproxy '*' "
    f'--max-time {TIMEOUT} --write-out \'\\n%{{http_code}}\' --config "$dir/request" --data-binary @"$dir/body"'
)


class Stickers:
    """Stickers at the Synapse of a machine. Every method raises Refused with a line."""

    def __init__(self, synapse: Synapse) -> None:
        self.synapse = synapse
        self._own: tuple[str, str] | None = None

    @property
    def own(self) -> tuple[str, str]:
        """The user ID and the token of the account of these commands."""
        if self._own is None:
            token = self.synapse.usable_token()
            user = self._ask("GET", "/account/whoami", token)["user_id"]
            self._own = user, token
        return self._own

    def _ask(self, method: str, path: str, token: str, content: Any = None) -> Any:
        answer = self.synapse.send(method, f"{CLIENT}{path}", content, token)
        if answer.status != 200:
            raise Refused(f"Synapse refuses: {answer.error}")
        return answer.content

    # Media.

    def upload(self, content: bytes, kind: str) -> str:
        """Upload a file, which the housekeeping then keeps; returns its mxc address."""
        url = f"http://127.0.0.1:{SYNAPSE.port}/_matrix/media/v3/upload"
        headers = {"Authorization": f"Bearer {self.own[1]}", "Content-Type": kind}
        request = configuration("POST", url, headers, None)
        lines = self.synapse.machine.run(_UPLOAD, f"{request}\n{base64.encodebytes(content).decode()}")
        try:
            answer = Answer(int(lines[-1]), json.loads("\n".join(lines[:-1])))
        except (IndexError, ValueError):
            raise Refused("Synapse does not answer an upload") from None
        if answer.status != 200:
            raise Refused(f"Synapse does not take the upload: {answer.error}")
        address = str(answer.content["content_uri"])
        # Neither local_media_days nor the quarantine of an account takes it.
        self.synapse.ask("POST", f"v1/media/protect/{in_path(address.rpartition('/')[2])}")
        return address

    # Packs of rooms.

    def write_pack(self, room_id: str, name: str, content: Mapping[str, Any]) -> None:
        """Write a pack into a room; empty content takes it out. The account of these commands is in the room meanwhile only."""
        user, token = self.own
        room = f"/rooms/{in_path(room_id)}"
        self.synapse.ask("POST", f"v1/rooms/{in_path(room_id)}/make_room_admin", {"user_id": user})
        self._ask("POST", f"/join/{in_path(room_id)}", token, {})
        try:
            for kind in PACKS:
                self._ask("PUT", f"{room}/state/{kind}/{in_path(name)}", token, content)
        finally:
            levels = self._ask("GET", f"{room}/state/m.room.power_levels", token)
            if levels.get("users", {}).pop(user, None) is not None:
                self._ask("PUT", f"{room}/state/m.room.power_levels", token, levels)
            self._ask("POST", f"{room}/leave", token, {})

    # Widgets of accounts.

    def set_picker(self, user_id: str, address: str, wanted: bool) -> str:
        """Add the picker at this address to an account's widgets, or take it away; the others stay as they are.

        Returns "changed", "unchanged", or "other" if there is another picker, of which clients show one only.
        """
        with self.synapse.session_of(user_id) as token:
            path = f"/user/{in_path(user_id)}/account_data/m.widgets"
            answer = self.synapse.send("GET", f"{CLIENT}{path}", token=token)
            if answer.status not in (200, 404):
                raise Refused(f"Synapse refuses: {answer.error}")
            widgets = dict(answer.content) if answer.status == 200 and isinstance(answer.content, dict) else {}
            ours = {key for key, each in widgets.items() if _address(each).startswith(f"{address}/")}
            if wanted and any(_kind(each) == "m.stickerpicker" for key, each in widgets.items() if key not in ours):
                return "other"
            changed = {key: each for key, each in widgets.items() if key not in ours}
            if wanted:
                key = min(ours, default="") or f"stickers-{secrets.token_hex(6)}"
                changed[key] = picker(key, user_id, address)
            if changed == widgets:
                return "unchanged"
            self._ask("PUT", path, token, changed)
            return "changed"


def picker(key: str, user_id: str, address: str) -> dict[str, Any]:
    """The widget as clients expect it. They put the theme in."""
    content = {
        "type": "m.stickerpicker",
        "url": f"{address}/?theme=$theme",
        "name": "Stickers",
        "creatorUserId": user_id,
        "data": {},
    }
    return {"id": key, "type": "m.widget", "state_key": key, "sender": user_id, "content": content}


def _content(widget: Any) -> Mapping[str, Any]:
    found = widget.get("content") if isinstance(widget, dict) else None
    return found if isinstance(found, dict) else {}


def _address(widget: Any) -> str:
    return str(_content(widget).get("url"))


def _kind(widget: Any) -> str:
    return str(_content(widget).get("type"))
