"""Events of a job over a connection that may break."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from sanakit.serve.jobs import JobEvent

HEARTBEAT = 15.0
"""Seconds of silence after which a comment says that the connection stands."""
LONGEST = 3600.0
"""Seconds after which a stream ends; a client resumes it with ``Last-Event-ID``."""


async def server_sent(events: AsyncIterator[JobEvent]) -> AsyncIterator[bytes]:
    """Give events as server-sent ones, with heartbeats between."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + LONGEST
    coming: asyncio.Future[JobEvent] | None = None
    try:
        while loop.time() < ends:
            coming = coming or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait([coming], timeout=HEARTBEAT)
            if not done:
                yield b": still here\n\n"
                continue
            try:
                event = coming.result()
            except StopAsyncIteration:
                return
            finally:
                coming = None
            data = json.dumps(event.data)
            yield f"event: {event.kind}\nid: {event.number}\ndata: {data}\n\n".encode()
    finally:
        if coming is not None:
            coming.cancel()
