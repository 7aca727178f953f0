"""How long a message takes from one homeserver to a user of another, and the answer back, and the CPU that both use.

Two hosts with every role, one user on each, who wait in /sync as clients do. One sends, the other answers as soon as the
message arrives; the next is sent PAUSE later, so that Synapse's rate limits for federation (rc_federation) do not matter.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory

import nio

from bench.figures import Figure
from bench.trial import every_role, fresh_host, load, say
from tests.deployment import Deployment
from tests.e2e import client as clients
from tests.e2e.client import Account, Outside, expect, new_user, receive_message
from tests.testbed import Host

MESSAGES, WARM_UP, PAUSE = 100, 10, 0.2
# A user may not send as fast as this by default.
LIMITS = "rc_message: {per_second: 1000, burst_count: 1000}\n"
Side = tuple[Host, Outside, Account]


def measure(host: Host, deployment: Deployment) -> Iterator[Figure]:
    """host: one with every role, that deployment has deployed to. A second one is made."""
    with ExitStack() as stack:
        other = stack.enter_context(fresh_host("bench-neighbour"))
        neighbour = stack.enter_context(every_role(other))
        say(f"deploying everything to {other.name}")
        neighbour.run("-y")
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
        pairs = [(host, deployment), (other, neighbour)]
        outsides = []
        for machine, _ in pairs:
            (directory / machine.name).mkdir()
            outsides.append(Outside(machine, directory / machine.name))
        for (machine, own), remote in zip(pairs, reversed(outsides), strict=True):
            machine.put(remote.root, "/usr/local/share/ca-certificates/neighbour.crt")
            machine.run(f"update-ca-certificates && echo '{LIMITS}' > /etc/matrix-synapse/conf.d/bench.yaml")
            machine.run("chgrp matrix-synapse /etc/matrix-synapse/conf.d/bench.yaml")
            own.run("-y")
        sides = [
            (machine, outside, new_user(outside, "bench"))
            for (machine, _), outside in zip(pairs, outsides, strict=True)
        ]
        before, begin = [_cpu(machine) for machine, _ in pairs], time.monotonic()
        there, round_trips = asyncio.run(_talk(sides[0], sides[1]))
        seconds = time.monotonic() - begin
        spent = [_cpu(machine) - first for (machine, _), first in zip(pairs, before, strict=True)]
    say(f"federation measured; {load()}")
    for name, values in (("message to the other homeserver", there), ("message there and answer back", round_trips)):
        cuts = quantiles(values, n=20)
        yield Figure(f"{name}, p50", [1000 * cuts[9]], "ms")
        yield Figure(f"{name}, p95", [1000 * cuts[18]], "ms")
    yield Figure("    Synapse meanwhile, of one core, on either side", [100 * each / seconds for each in spent], "%")


async def _talk(one: Side, two: Side) -> tuple[list[float], list[float]]:
    """Seconds to the other side, and seconds to the other side and back."""
    there, round_trips = [], []
    async with one[1].matrix(one[2]) as first, two[1].matrix(two[2]) as second:
        made = expect(await first.room_create(invite=[two[2].user_id]), nio.RoomCreateResponse)
        room = made.room_id
        await clients.sync_until(second, lambda sync: room in sync.rooms.invite, "the invitation does not arrive")
        expect(await second.join(room), nio.JoinResponse)
        # So that both sides have synced everything before the measurement begins.
        await clients.send_message(second, room, "hello")
        await receive_message(first, room, two[2].user_id, "hello")
        for number in range(WARM_UP + MESSAGES):
            heard = asyncio.create_task(receive_message(second, room, one[2].user_id, f"ping {number}"))
            answer = asyncio.create_task(receive_message(first, room, two[2].user_id, f"pong {number}"))
            await asyncio.sleep(PAUSE)
            begin = time.monotonic()
            await clients.send_message(first, room, f"ping {number}")
            await heard
            arrived = time.monotonic()
            await clients.send_message(second, room, f"pong {number}")
            await answer
            if number >= WARM_UP:
                there.append(arrived - begin)
                round_trips.append(time.monotonic() - begin)
    return there, round_trips


def _cpu(host: Host) -> float:
    """CPU seconds that Synapse has taken since its start."""
    return int(host.run("systemctl show -p CPUUsageNSec --value matrix-synapse").stdout) / 1e9
