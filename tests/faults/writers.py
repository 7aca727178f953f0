"""Clients that write messages while something breaks, and read afterwards what they were told was accepted."""

import threading
import time
from dataclasses import dataclass
from urllib.parse import quote

import httpx

from tests.e2e.client import Account, Outside, expect_json

WRITERS = 3
# Seconds after which a client gives a request up.
PATIENCE = 5
# A homeserver serves again with the first of so many messages in a row that were accepted.
IN_A_ROW = 20


@dataclass(frozen=True)
class Attempt:
    """A message. begin, end: by time.monotonic(). event: its ID; "" if it was not accepted."""

    begin: float
    end: float
    event: str


class Writers:
    """They write for as long as the block."""

    def __init__(self, outside: Outside, account: Account, room: str) -> None:
        self.outside, self.account, self.room = outside, account, room
        self.attempts: list[Attempt] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._write, daemon=True) for _ in range(WRITERS)]

    def __enter__(self) -> "Writers":
        for thread in self._threads:
            thread.start()
        time.sleep(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE)

    def _write(self) -> None:
        path = f"/_matrix/client/v3/rooms/{quote(self.room)}/send/m.room.message"
        with self.outside.http() as http:
            while not self._over.is_set():
                begin, event = time.monotonic(), ""
                url = self.outside.url("matrix", f"{path}/{time.time_ns()}-{threading.get_ident()}")
                try:
                    answer = http.put(
                        url,
                        json={"msgtype": "m.text", "body": "Still here."},
                        headers=self.account.authorization,
                        timeout=PATIENCE,
                    )
                    event = answer.json()["event_id"] if answer.status_code == 200 else ""
                except (httpx.HTTPError, OSError, ValueError):
                    pass
                self.attempts.append(Attempt(begin, time.monotonic(), event))
                time.sleep(0.03 if event else 0.1)

    def serves_again(self, since: float, timeout: float) -> float:
        """Seconds from `since` (time.monotonic()) to the first message of many in a row. Raises AssertionError."""
        while time.monotonic() - since < timeout:
            later = sorted((each for each in list(self.attempts) if each.begin >= since), key=lambda each: each.begin)
            failed = [number for number, each in enumerate(later) if not each.event]
            row = later[failed[-1] + 1 :] if failed else later
            if len(row) >= IN_A_ROW:
                return row[0].end - since
            time.sleep(0.1)
        raise AssertionError(f"no messages are accepted {timeout:.0f} s later")

    @property
    def accepted(self) -> list[str]:
        return [each.event for each in list(self.attempts) if each.event]

    def lost(self) -> int:
        """How many messages were accepted and are not in the room."""
        missing, token = set(self.accepted), ""
        with self.outside.http() as http:
            while missing:
                path = f"/_matrix/client/v3/rooms/{quote(self.room)}/messages?dir=b&limit=1000{token}"
                page = expect_json(http.get(self.outside.url("matrix", path), headers=self.account.authorization))
                missing -= {event["event_id"] for event in page["chunk"]}
                if not page.get("end"):
                    break
                token = f"&from={quote(page['end'])}"
        return len(missing)
