"""What Synapse removes by itself goes, what must stay stays byte for byte, and `manage.py NAME status` says what was freed.

Clocks cannot be changed here, so what the clients have made is made older in the database. Synapse looks once an hour or a day:
a few lines around it have it look every few seconds.
"""

# ruff: noqa: S608 - what is put into the queries comes from this file and from Synapse

import asyncio
import io
import json
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import nio
import pytest

from roles import HOUSEKEEPING, HOUSEKEEPING_REPORT
from tests.conftest import Deployed
from tests.e2e.client import Account, Side, expect, expect_json, send_message
from tests.testbed import Host

pytestmark = pytest.mark.role("synapse")

MEDIA = "/var/lib/matrix-synapse/media"
DAY = 24 * 60 * 60 * 1000
CHOSEN = """
remote_media_days = 30
local_media_days = 30
message_days = 30
stale_device_days = 60
"""
OFTEN = """
import runpy
from synapse.config import retention
from synapse.handlers import device
from synapse.media import media_repository
from synapse.util.duration import Duration
from synapse.util.task_scheduler import TaskScheduler

media_repository.MEDIA_RETENTION_CHECK_PERIOD = device.DELETE_STALE_DEVICES_INTERVAL = Duration(seconds=4)
TaskScheduler.SCHEDULE_INTERVAL = Duration(seconds=4)
read = retention.RetentionConfig.read_config


def read_config(self, *words, **more):
    read(self, *words, **more)
    self.retention_purge_jobs = [retention.RetentionPurgeJob(4000, None, None)]


retention.RetentionConfig.read_config = read_config
runpy.run_path("/usr/local/lib/run-synapse", run_name="__main__")
"""
DROP_IN = "/run/systemd/system/matrix-synapse.service.d/often.conf"


@dataclass(frozen=True)
class Made:
    """What the clients have made on a homeserver.

    old, new: files that were uploaded there. avatar: an old one in use. remote_old, remote_new: files of the other homeserver.
    forgotten, left: rooms that everybody has left. room: one with two messages. device: one that was not used.
    """

    contents: dict[str, bytes]
    old: str
    new: str
    avatar: str
    remote_old: str
    remote_new: str
    forgotten: str
    left: str
    room: str
    old_message: str
    new_message: str
    device: Account


def upload(side: Side, content: bytes) -> str:
    """Upload a file; returns its server name and ID."""

    async def uploaded() -> str:
        async with side.client() as client:
            answer, _ = await client.upload(
                io.BytesIO(content), content_type="application/octet-stream", filesize=len(content)
            )
            return str(expect(answer, nio.UploadResponse).content_uri)

    return asyncio.run(uploaded()).removeprefix("mxc://")


def download(side: Side, media: str, status: int = 200) -> bytes:
    with side.outside.http() as http:
        url = side.outside.url("matrix", f"/_matrix/client/v1/media/download/{media}")
        response = http.get(url, headers=side.user.authorization)
        assert response.status_code == status, f"{media}: {response.status_code} {response.text[:300]}"
        return response.content


def user_name(side: Side) -> str:
    return side.user.user_id.removeprefix("@").partition(":")[0]


def make(side: Side, other: Side) -> Made:
    names = ("old", "new", "avatar", "remote_old", "remote_new")
    # Of different sizes, by which they are counted.
    contents = {name: os.urandom(100_000 + 1000 * number) for number, name in enumerate(names)}
    media = {name: upload(other if "remote" in name else side, content) for name, content in contents.items()}
    for name, content in contents.items():
        assert download(side, media[name]) == content
    user = quote(side.user.user_id)
    side.request("PUT", f"v3/profile/{user}/avatar_url", json={"avatar_url": f"mxc://{media['avatar']}"})

    async def rooms() -> dict[str, str]:
        async with side.client() as client:
            made = {}
            for name in ("forgotten", "left", "room"):
                made[name] = str(expect(await client.room_create(name=name), nio.RoomCreateResponse).room_id)
                made[f"{name} old"] = await send_message(client, made[name], "Beans, long ago")
                made[f"{name} new"] = await send_message(client, made[name], "Beans, today")
            for name in ("forgotten", "left"):
                expect(await client.room_leave(made[name]), nio.RoomLeaveResponse)
            expect(await client.room_forget(made["forgotten"]), nio.RoomForgetResponse)
            return made

    found = asyncio.run(rooms())
    return Made(
        contents,
        **media,
        forgotten=found["forgotten"],
        left=found["left"],
        room=found["room"],
        old_message=found["room old"],
        new_message=found["room new"],
        device=asyncio.run(side.outside.log_in(user_name(side), side.user.password)),
    )


def sql(host: Host, *statements: str) -> list[str]:
    command = " ".join(f"-c {shlex.quote(each)}" for each in statements)
    return host.run(f"cd / && runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 -d synapse {command}").stdout.split()


def make_older(host: Host, made: Made) -> None:
    """Synapse must not run: it writes down after a while what was used."""
    for table, media in (
        ("local_media_repository", made.old),
        ("local_media_repository", made.avatar),
        ("remote_media_cache", made.remote_old),
    ):
        sql(
            host,
            f"UPDATE {table} SET created_ts = created_ts - {40 * DAY}, last_access_ts = created_ts - {40 * DAY} "
            f"WHERE media_id = '{media.partition('/')[2]}'",
        )
    sql(
        host,
        f"UPDATE scheduled_tasks SET timestamp = timestamp - {28 * DAY} "
        f"WHERE action = 'purge_room' AND resource_id = '{made.forgotten}'",
        # It was not used at all so far, and then Synapse knows no time.
        f"UPDATE devices SET last_seen = {time.time() * 1000 - 70 * DAY:.0f} WHERE device_id = '{made.device.device_id}'",
        # In order: whatever came before it is at least as old.
        f"UPDATE events SET received_ts = received_ts - {40 * DAY} "
        f"WHERE stream_ordering <= (SELECT stream_ordering FROM events WHERE event_id = '{made.old_message}')",
    )


def count(host: Host) -> dict[str, Any]:
    host.run(f"systemctl start {HOUSEKEEPING.service}", timeout=120)
    found: dict[str, Any] = json.loads(host.run(f"cat {HOUSEKEEPING_REPORT}").stdout)
    return found


def rows(host: Host, made: Made) -> dict[str, int]:
    """How many rows there are of what has to go."""
    queries = {
        "old": f"local_media_repository WHERE media_id = '{made.old.partition('/')[2]}'",
        "remote_old": f"remote_media_cache WHERE media_id = '{made.remote_old.partition('/')[2]}'",
        "forgotten": f"rooms WHERE room_id = '{made.forgotten}'",
        "device": f"devices WHERE device_id = '{made.device.device_id}'",
        "message": f"event_json WHERE event_id = '{made.old_message}'",
    }
    found = sql(host, *(f"SELECT count(*) FROM {query}" for query in queries.values()))
    return dict(zip(queries, map(int, found), strict=True))


@pytest.fixture(params=[0, 1], ids=["alices", "bobs"])
def side(request: pytest.FixtureRequest, sides: tuple[Side, Side]) -> Iterator[tuple[Side, Side]]:
    """A homeserver that removes, and the other one."""
    own, other = sides[request.param], sides[1 - request.param]
    deployment, host = own.deployed.deployment, own.host
    chosen = deployment.directory / "group_data" / f"{deployment.name}.py"
    before = chosen.read_text()
    chosen.write_text(f"{before}{CHOSEN}")
    try:
        assert deployment.run("-y").changed == [
            "Configure Synapse",
            "Run Synapse",
            "Configure the count of what was removed",
            "Run the timer of the count",
        ]
        yield own, other
    finally:
        host.run(f"rm -f {DROP_IN} /run/often.py; systemctl daemon-reload")
        chosen.write_text(before)
        deployment.run("-y")


def looks_often(host: Host) -> None:
    """Start Synapse, which removes within seconds what it would remove within a day."""
    host.run("cat >/run/often.py", stdin=OFTEN)
    host.run(
        f"mkdir -p {DROP_IN.rpartition('/')[0]} && sed -n 's|^ExecStart=\\(.*\\) /usr/local/lib/run-synapse|"
        "ExecStart=\\n&|p' /etc/systemd/system/matrix-synapse.service | "
        f"sed '1i[Service]' | sed 's|/usr/local/lib/run-synapse|/run/often.py|' >{DROP_IN} && systemctl daemon-reload"
    )
    host.run("systemctl start matrix-synapse", timeout=120)


def until(condition: Callable[[], bool], problem: Callable[[], str], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, problem()
        time.sleep(1)


def housekeeping(deployed: Deployed) -> tuple[dict[str, Any], str]:
    """What status says, for programs and for people."""
    [machine] = json.loads(deployed.deployment.manage("status", "--json").stdout)["machines"]
    printed = " ".join(deployed.deployment.manage("status").stdout.split())
    return machine["housekeeping"], printed


def test_what_nobody_uses_goes_and_all_else_stays(side: tuple[Side, Side]) -> None:
    own, other = side
    host, made = own.host, make(own, other)
    host.run("systemctl stop matrix-synapse", timeout=120)
    make_older(host, made)
    first = count(host)
    assert set(rows(host, made).values()) == {1}
    files = set(host.run(f"find {MEDIA} -type f").stdout.split())

    looks_often(host)
    until(lambda: not any(rows(host, made).values()), lambda: f"still there: {rows(host, made)}")
    # A connection that is idle tells PostgreSQL's statistics only after ten seconds.
    deleted = "SELECT n_tup_del FROM pg_stat_user_tables WHERE relname = 'events'"
    until(lambda: int(sql(host, deleted)[0]) > first["base"]["events"], lambda: "no event was counted")
    second = count(host)

    freed = {name: number for name, number in second["counts"][-1].items() if name != "at"}
    assert freed.pop("events") >= 1, freed
    assert freed == {
        "remote_media_files": 1,
        "remote_media_bytes": len(made.contents["remote_old"]),
        "local_media_files": 1,
        "local_media_bytes": len(made.contents["old"]),
        "rooms": 1,
        "devices": 1,
    }
    assert second["since"] == first["since"] and second["tables"][0]["bytes"] > 0
    gone = files - set(host.run(f"find {MEDIA} -type f").stdout.split())
    assert len(gone) == 2 and {f"{MEDIA}/local_content", f"{MEDIA}/remote_content"} == {
        "/".join(path.split("/")[:6]) for path in gone
    }, gone

    # What is gone is gone for people, and what must stay is there.
    download(own, made.old, status=404)
    for name in ("new", "avatar", "remote_new"):
        assert download(own, getattr(made, name)) == made.contents[name]
    assert download(own, made.remote_old) == made.contents["remote_old"], "it is not fetched again"
    with own.outside.http() as http:
        url = own.outside.url("matrix", "/_matrix/client/v3/account/whoami")
        assert expect_json(http.get(url, headers=made.device.authorization), 401)["errcode"] == "M_UNKNOWN_TOKEN"
    assert own.request("GET", "v3/account/whoami")["user_id"] == own.user.user_id
    event = f"v3/rooms/{quote(made.room)}/event/{quote(made.new_message)}"
    assert own.request("GET", event)["content"]["body"] == "Beans, today"
    own.request("GET", f"v3/rooms/{quote(made.room)}/event/{quote(made.old_message)}", status=404)
    [left] = sql(host, f"SELECT count(*) FROM rooms WHERE room_id = '{made.left}'")
    assert left == "1", "a room that was not forgotten is gone"

    assert sql(host, "SHOW autovacuum_analyze_scale_factor") == ["0.02"]
    host.run("journalctl --quiet --rotate --vacuum-files=1")
    found, printed = housekeeping(own.deployed)
    assert re.search(r"journal .* of at most 1G, .* back, [1-9][0-9,]* older entries removed", printed), printed
    assert found["last"]["rooms"] == found["last"]["devices"] == 1 and found["month"]["local_media_files"] >= 1
    assert found["tables"][0]["name"] and re.search(r"freed .*of other servers' media \(.* room.* device", printed)
