"""One participant of a LiveKit call: it plays a tone, and says on standard output what it hears.

Reads {"url": ..., "token": ...} from standard input, one line, and stays in the call until standard input ends. Writes a line of
JSON for each event: {"event": name, "time": seconds since the epoch, ...}.
"""

import array
import asyncio
import json
import math
import sys
import time
from typing import Any

from livekit import rtc

RATE, TONE, LOUD = 48000, 400, 1000
# 10 ms, as WebRTC sends it.
SAMPLES = RATE // 100


def say(event: str, **more: Any) -> None:
    print(json.dumps({"event": event, "time": time.time(), **more}), flush=True)


async def play(source: rtc.AudioSource) -> None:
    # A whole number of periods, so that the same frame can be repeated.
    tone = array.array("h", (int(10000 * math.sin(2 * math.pi * TONE * each / RATE)) for each in range(SAMPLES)))
    while True:
        await source.capture_frame(rtc.AudioFrame(tone.tobytes(), RATE, 1, SAMPLES))


async def listen(track: rtc.Track, sender: str) -> None:
    said = 0.0
    async for event in rtc.AudioStream(track):
        samples = array.array("h", bytes(event.frame.data))
        level = math.sqrt(sum(each * each for each in samples) / len(samples))
        if level > LOUD and time.time() - said > 0.1:
            said = time.time()
            say("heard", sender=sender, level=round(level))


async def main() -> None:
    loop = asyncio.get_running_loop()
    read = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(read), sys.stdin)
    place = json.loads(await read.readline())
    room, tasks = rtc.Room(), set()

    def start(work: Any) -> None:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def subscribed(track: rtc.Track, _: Any, participant: rtc.RemoteParticipant) -> None:
        if track.kind == rtc.TrackKind.KIND_AUDIO:
            start(listen(track, participant.identity))

    room.on("track_subscribed", subscribed)
    room.on("disconnected", lambda reason: say("disconnected", reason=str(reason)))
    for event in ("reconnecting", "reconnected"):
        room.on(event, lambda event=event: say(event))
    try:
        await room.connect(place["url"], place["token"])
    except rtc.ConnectError as error:
        say("refused", reason=str(error))
        return
    say("connected")
    source = rtc.AudioSource(RATE, 1)
    track = rtc.LocalAudioTrack.create_audio_track("tone", source)
    await room.local_participant.publish_track(
        track, rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
    )
    start(play(source))
    await read.read()
    await room.disconnect()


asyncio.run(main())
