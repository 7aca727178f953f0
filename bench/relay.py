"""Throughput of coturn: Mbit/s, loss and CPU, over UDP, TCP and TLS, at the rate of one video call and of many.

coturn's own client and its echo server run on a second host, where coturn's service is stopped: each message of SIZE bytes
goes from the client through the relay to the echo and back. Mbit/s counts what comes back, so the relay carries twice that.
The credentials are signed as Synapse signs them. Over TLS that client loses a message or two in most runs and then waits 10 s
for them, so the loss is also measured with a client of our own, at the same rate. Each load ends after MESSAGES. The time is
that of the whole client, so Mbit/s is a sustained rate. With MANY clients, each sends a message every CROWD ms: there the
client, the relay and the echo compete for the same processors, and UDP may lose messages.
"""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.figures import Figure
from bench.trial import fresh_host, load, say
from tests.e2e.client import Outside
from tests.protocols.turn import Address, Credentials, Relay, relay
from tests.testbed import Host

# The sender sends SIZE bytes every INTERVAL ms, 2.7 Mbit/s at most, for about 9 s.
SIZE, INTERVAL, MESSAGES = 1000, 3, 3000
ECHO = 3480  # turnutils_peer's port
TRANSPORTS = {"udp": "", "tcp": "-t", "tls": "-t -S"}
# MANY clients at once, each sends SIZE bytes every CROWD ms: 80 Mbit/s at most.
MANY, CROWD, CROWD_MESSAGES = 50, 5, 2000


class Unmeasured(Exception):
    """coturn's client did not print its counts."""


def measure(host: Host) -> Iterator[Figure]:
    """host: one with every role."""
    secret = host.run("cat /etc/matrix-synapse/secrets/turn_shared_secret").stdout.strip()
    with fresh_host("bench-relay-client") as client:
        client.run(
            "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends coturn "
            "&& systemctl stop coturn && systemd-run --quiet --unit=echo turnutils_peer",
            timeout=300,
        )
        for transport, options in TRANSPORTS.items():
            for clients, interval, messages in ((1, INTERVAL, MESSAGES), (MANY, CROWD, CROWD_MESSAGES)):
                name = f"relay over {transport}" + ("" if clients == 1 else f", {clients} clients")
                credentials = _credentials(host, secret, f"{transport}-{clients}")
                before, begin = _cpu(host), time.monotonic()
                shown = client.run(
                    f"turnutils_uclient {options} -c -m {clients} -n {messages} -l {SIZE} -z {interval} "
                    f"-u '{credentials.username}' -w '{credentials.password}' "
                    f"-e {client.address} turn.{host.domain} 2>&1 || exit 1",
                    timeout=120,
                ).stdout
                seconds, spent = time.monotonic() - begin, _cpu(host) - before
                counted = re.findall(r"tot_send_msgs=(\d+), tot_recv_msgs=(\d+)", shown)
                if not counted:
                    raise Unmeasured(f"{name}: {shown[-1000:]}")
                sent, received = map(int, counted[-1])
                megabits = received * SIZE * 8 / 1e6
                say(f"{name}: {sent} sent, {received} back, in {seconds:.1f} s")
                yield Figure(name, [megabits / seconds], "Mbit/s")
                if clients == 1:
                    yield Figure(f"{name}: messages lost", [sent - received])
                else:
                    yield Figure(f"{name}: messages lost", [100 * (sent - received) / sent], "%")
                yield Figure(f"    coturn over {transport}, ms of CPU for each Mbit", [1000 * spent / megabits], "ms")
        with TemporaryDirectory(prefix="bench-") as directory:
            context, name = Outside(host, Path(directory)).context(), f"turn.{host.domain}"
            for transport in TRANSPORTS:
                credentials = _credentials(host, secret, f"own-{transport}")
                with relay(host.address, transport, credentials, context=context, name=name) as own:
                    lost = _lost(own, (client.address, ECHO))
                yield Figure(f"relay over {transport}, our own client: messages lost", [lost])
    say(f"relay measured; {load()}")


def _credentials(host: Host, secret: str, user: str) -> Credentials:
    """For a new user for each load: allocations that a client does not end count against its quota for minutes."""
    return Credentials.signed(f"{int(time.time()) + 3600}:@{user}:{host.domain}", secret)


def _lost(own: Relay, peer: Address) -> int:
    """How many of MESSAGES do not come back from the echo."""
    own.allocate()
    own.permit(peer[0])
    missing = set(range(MESSAGES))

    def listen(until: float) -> None:
        while missing and (left := until - time.monotonic()) > 0:
            own.connection.settimeout(left)
            try:
                missing.discard(int.from_bytes(own.receive()[1][:4], "big"))
            except TimeoutError:
                return

    begin = time.monotonic()
    for number in range(MESSAGES):
        own.connection.settimeout(5)
        own.send(peer, number.to_bytes(4, "big") + bytes(SIZE - 4))
        listen(begin + (number + 1) * INTERVAL / 1000)
    listen(time.monotonic() + 5)
    own.connection.settimeout(5)
    return len(missing)


def _cpu(host: Host) -> float:
    """CPU seconds that coturn has taken since its start."""
    return int(host.run("systemctl show -p CPUUsageNSec --value coturn").stdout) / 1e9
