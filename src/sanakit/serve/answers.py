"""How a client hears of its job: by events as they come, or by the pictures at the end.

Who waits for pictures ends the job by leaving; clients of jobs ask by themselves.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from sanakit.serve.job import Job, JobEvent
from sanakit.serve.jobs import JobService
from sanakit.serve.refusals import Refused, refusal_of
from sanakit.serve.requests import DrawRequest

HEARTBEAT = 15.0
"""Seconds of silence after which a comment says that the connection stands."""
LONGEST = 3600.0
"""Seconds after which a stream ends; a client resumes it with ``Last-Event-ID``."""
STILL_HERE = ": still here\n\n"
"""A comment, which clients read over."""
STATUS = {
    "invalid_request": 400,
    "blocked": 400,
    "deadline": 504,
    "cancelled": 409,
}
"""Status for the word that a failed job has; 500 for any other."""


def owner_of(request: Request) -> str:
    """Give the name of the key that a request came with; empty where none is needed."""
    return getattr(request.state, "owner", "")


async def until_gone(request: Request) -> None:
    """Wait until the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def submitted(
    service: JobService, wanted: Mapping[str, Any], request: Request, names: Mapping[str, str]
) -> Job:
    """Queue what a `DrawRequest` is built of; ``names`` are the client's for its parameters.

    Raises:
        Refused: it is not accepted, told in those names.
    """
    try:
        return await service.submit(DrawRequest(**wanted), owner=owner_of(request))
    except (Refused, ValidationError) as error:
        raise refusal_of(error).named(names) from None


async def drawn(service: JobService, job: Job, request: Request) -> Job:
    """Wait for a job's pictures; a client that leaves ends it.

    Raises:
        Refused: it failed or was cancelled.
    """
    gone = asyncio.ensure_future(until_gone(request))
    done = asyncio.ensure_future(service.wait(job.id, job.owner))
    try:
        await asyncio.wait({gone, done}, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise Refused(499, "the client is gone", code="cancelled")
        finished = done.result()
    finally:
        gone.cancel()
        if not done.done():
            done.cancel()
            await service.cancel(job.id, job.owner)
    if finished.state != "done":
        raise failure(finished)
    return finished


class EventStream(StreamingResponse):
    """Server-sent events, which no proxy holds back."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str]) -> None:
        """Take the events to send."""
        super().__init__(events, headers={"X-Accel-Buffering": "no"})


class PictureStream(EventStream):
    """The events of a job; when they end before it does, for whatever reason, it ends."""

    def __init__(self, events: AsyncIterator[str], service: JobService, job: Job) -> None:
        """Take the events to send, and whose they are."""
        super().__init__(events)
        self._service, self._job = service, job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._service.cancel(self._job.id, self._job.owner)


def failure(job: Job) -> Refused:
    """Give what is answered for a job that has no pictures."""
    if not job.over:  # the server is going down, and draws it when it is back
        return Refused(503, "the server is going down", code="draining")
    code = "cancelled" if job.state == "cancelled" else job.code or "internal_error"
    said = job.error or ("the job was cancelled" if code == "cancelled" else "the job failed")
    return Refused(STATUS.get(code, 500), said, code=code)


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
