"""A TCP proxy that adds latency to a server: every byte is delayed, none is lost or reordered, and bandwidth is not limited.

with Delay(("192.0.2.1", 22), round_trip=0.05) as delay:
    ... connect to 127.0.0.1, port delay.port ...

Slow start and congestion are not simulated: they matter for large transfers, not for the small commands of a deploy.
"""

import asyncio
import contextlib
import threading
from types import TracebackType
from typing import Self

CHUNK = 1 << 18


class Delay:
    """target: address and port of the server. round_trip: seconds added, half in each direction."""

    def __init__(self, target: tuple[str, int], round_trip: float) -> None:
        self.target, self.round_trip = target, round_trip
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._listening = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._listening.wait(5):
            raise RuntimeError("the delaying proxy does not listen")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        server = self._loop.run_until_complete(asyncio.start_server(self._connected, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The client's connect() would have returned one round trip later, and the server's accept() half a one after that.
        await asyncio.sleep(self.round_trip)
        upward: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        downward: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        reading = asyncio.create_task(self._receive(reader, upward))
        try:
            await asyncio.sleep(self.round_trip / 2)
            server_reader, server_writer = await asyncio.open_connection(*self.target)
        except OSError:
            reading.cancel()
            writer.close()
            return
        await asyncio.gather(
            reading,
            self._send(upward, server_writer),
            self._receive(server_reader, downward),
            self._send(downward, writer),
        )

    async def _receive(self, reader: asyncio.StreamReader, queue: "asyncio.Queue[tuple[float, bytes]]") -> None:
        """Queue each piece with the time when it is due; the queue is unbounded, so that waiting pieces do not delay others."""
        while True:
            try:
                data = await reader.read(CHUNK)
            except ConnectionError:
                data = b""
            queue.put_nowait((self._loop.time() + self.round_trip / 2, data))
            if not data:
                return

    async def _send(self, queue: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
        """Send each piece when it is due; an empty one is the end. asyncio sets TCP_NODELAY."""
        with contextlib.suppress(ConnectionError):
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0, due - self._loop.time()))
                if not data:
                    break
                writer.write(data)
                await writer.drain()
        writer.close()
