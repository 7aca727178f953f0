"""A phone without Google's services: what the role `ntfy` does on a machine with a homeserver."""

import asyncio
import json
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.client import Outside, create_shared_room, expect_json, new_user, send_message
from tests.testbed import Host

GATEWAY = "/_matrix/push/v1/notify"
# What ntfy can do besides, for everybody who has its address.
NOT_FOR_PHONES = (
    ("GET", "/"),
    ("POST", "/"),
    ("GET", "/secret/json?poll=1"),
    ("POST", "/secret"),
    ("GET", "/up1,secret/json?poll=1"),
    ("GET", "/upsomebody/publish?message=x"),
    ("GET", "/UP1/json?poll=1"),
    ("GET", "/v1/account"),
    ("GET", "/v1/config"),
    ("PUT", "/v1/users"),
    ("GET", "/file/up1.jpg"),
)


def _next(lines: Any, event: str) -> dict[str, Any]:
    """The next line of a connection that stays open that is about such an event."""
    for line in lines:
        found: dict[str, Any] = json.loads(line)
        if found["event"] == event:
            return found
    raise AssertionError(f"the connection ended without {event}")


def _notified(found: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(found["message"])["notification"]
    return told


def assert_notified(host: Host, directory: Path) -> None:
    outside = Outside(host, directory)
    anna, ben = (new_user(outside, f"{name}{secrets.token_hex(3)}") for name in ("anna", "ben"))
    topic = f"up{secrets.token_urlsafe(9)}"

    async def share() -> str:
        async with outside.matrix(anna) as hers, outside.matrix(ben) as his:
            return await create_shared_room(hers, his)

    async def write(room: str) -> None:
        async with outside.matrix(ben) as his:
            await send_message(his, room, "Are you there?")

    room = asyncio.run(share())
    with outside.http() as http, ThreadPoolExecutor() as pool:
        # So a client finds out that Matrix may notify it here.
        assert expect_json(http.get(outside.url("push", GATEWAY))) == {"unifiedpush": {"gateway": "matrix"}}
        pusher = {
            "kind": "http",
            "app_id": "io.element.android.x",
            "app_display_name": "Element X",
            "device_display_name": "a phone",
            "lang": "en",
            "pushkey": outside.url("push", f"/{topic}?up=1"),
            "data": {"url": outside.url("push", GATEWAY), "format": "event_id_only"},
        }
        set_pusher = outside.url("matrix", "/_matrix/client/v3/pushers/set")
        expect_json(http.post(set_pusher, json=pusher, headers=anna.authorization))
        with http.stream("GET", outside.url("push", f"/{topic}/json"), timeout=httpx.Timeout(60)) as phone:
            lines = phone.iter_lines()
            _next(lines, "open")
            writing = pool.submit(asyncio.run, write(room))
            told = _notified(_next(lines, "message"))
            writing.result()
        assert told["room_id"] == room and told["event_id"].startswith("$") and "Are you there" not in str(told)
        # A phone that was off asks later.
        missed = http.get(outside.url("push", f"/{topic}/json?poll=1&since=all")).text.splitlines()
        assert [_notified(json.loads(line))["event_id"] for line in missed] == [told["event_id"]]
        for method, path in NOT_FOR_PHONES:
            answer = http.request(method, outside.url("push", path), content=b'{"topic": "secret", "message": "x"}')
            assert answer.status_code == 404, f"{method} {path}: {answer.status_code} {answer.text[:200]}"
    # The homeserver has as many notifications as there are.
    url = f"{outside.url('push', f'/up{secrets.token_hex(5)}')}?number=[1-400]"
    statuses = host.run(f"curl -qs -o /dev/null -w '%{{http_code}}\\n' -d x '{url}'", timeout=120).stdout.split()
    assert set(statuses) == {"200"} and len(statuses) == 400, statuses[-3:]
