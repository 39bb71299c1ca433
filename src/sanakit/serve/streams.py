"""Events of a job over a connection that may break."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from sanakit.serve.job import JobEvent

HEARTBEAT = 15.0
"""Seconds of silence after which a comment says that the connection stands."""
LONGEST = 3600.0
"""Seconds after which a stream ends; a client resumes it with ``Last-Event-ID``."""


STILL_HERE = ": still here\n\n"
"""A comment, which clients read over."""


async def server_sent(events: AsyncIterator[JobEvent]) -> AsyncIterator[str]:
    """Give events as server-sent ones, with heartbeats between."""
    async with aclosing(with_silence(events)) as coming:
        async for event in coming:
            if event is None:
                yield STILL_HERE
            else:
                data = json.dumps(event.data)
                yield f"event: {event.kind}\nid: {event.number}\ndata: {data}\n\n"


async def with_silence(events: AsyncIterator[JobEvent]) -> AsyncGenerator[JobEvent | None, None]:
    """Give events, and None after each while in which there was none."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + LONGEST
    coming: asyncio.Future[JobEvent] | None = None
    try:
        while loop.time() < ends:
            coming = coming or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait([coming], timeout=HEARTBEAT)
            if not done:
                yield None
                continue
            try:
                event = coming.result()
            except StopAsyncIteration:
                return
            finally:
                coming = None
            yield event
    finally:
        if coming is not None:
            coming.cancel()
