"""Jobs over a connection that may break: events as they come, and pictures waited for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from fastapi import Request

from sanakit.serve.jobs import Job, JobEvent, JobService

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


async def drawn_for(service: JobService, job: Job, connection: Request) -> Job:
    """Wait for a job; cancel it when its client goes away."""
    over = asyncio.ensure_future(service.wait(job.id, job.owner))
    try:
        while not (await asyncio.wait([over], timeout=0.5))[0]:
            if await connection.is_disconnected():
                break
        return over.result() if over.done() else await service.cancel(job.id, job.owner)
    finally:
        if not over.done():
            over.cancel()
            await service.cancel(job.id, job.owner)
