"""The worker as the server sees it: started, spoken to, started again when it dies."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from sanakit.serve.messages import Message, packed, read_async

Told = Callable[[Message, bytes], None]
MOST_STARTS = 3
"""In a row without a model that was ready."""
logger = logging.getLogger(__name__)


class Worker(Protocol):
    """Who draws for a `JobService`: what it tells is called on the event loop.

    ``ready`` comes with what it can do, ``lost`` with an ``error`` when all that it drew is lost,
    ``unloadable`` with an ``error`` when it will not come back; of a ``job`` come ``started``,
    ``step``, ``preview``, ``image`` with a PNG, and at last ``done``, ``failed`` or ``cancelled``.
    """

    async def start(self, told: Told) -> None:
        """Begin to load."""

    def send(self, message: Message) -> None:
        """Hand over a ``draw`` or a ``cancel``."""

    async def stop(self) -> None:
        """End it now."""


class WorkerProcess:
    """A child process that owns the model."""

    def __init__(self, wanted: dict[str, Any]) -> None:
        self.wanted = wanted
        self.process: Process | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self, told: Told) -> None:
        """Start the process and keep it up."""
        self._watch = asyncio.create_task(self._keep_up(told))

    def send(self, message: Message) -> None:
        """Send a message; one to a process that just died is lost with it."""
        if self.process is not None and self.process.stdin is not None:
            with suppress(ConnectionError, RuntimeError):
                self.process.stdin.write(packed(message))

    async def stop(self) -> None:
        """End the process."""
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
        await self._end()

    async def _keep_up(self, told: Told) -> None:
        starts = 0
        while True:
            starts += 1
            said = await self._run(told)
            if said == "ready":
                starts = 0
            if said == "unloadable":
                return
            reason = await self._reason()
            if starts >= MOST_STARTS:
                told({"kind": "unloadable", "error": f"the model does not load: {reason}"}, b"")
                return
            logger.error("%s; it is started again", reason)
            told({"kind": "lost", "error": reason}, b"")

    async def _run(self, told: Told) -> str:
        """Tell all that one process says; give how far it came."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "sanakit.serve.worker", stdin=PIPE, stdout=PIPE
        )
        assert self.process.stdout is not None
        self.send(self.wanted)
        said = ""
        while True:
            try:
                message, data = await read_async(self.process.stdout)
            except (asyncio.IncompleteReadError, ConnectionError):
                return said
            if message["kind"] in ("ready", "unloadable"):
                said = message["kind"]
            told(message, data)

    async def _reason(self) -> str:
        assert self.process is not None
        code = await self.process.wait()
        if code >= 0:
            return f"the drawing process ended with code {code}"
        name = signal.Signals(-code).name
        about = ", as the system does where memory ran out" if name == "SIGKILL" else ""
        return f"the drawing process was ended by {name}{about}"

    async def _end(self) -> None:
        if self.process is not None and self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
