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

import psutil

from sanakit.serve.messages import Message, packed, read_async
from sanakit.serve.requests import FINISHED

Told = Callable[[Message, bytes], None]
MOST_STARTS = 3
"""In a row without a model that was ready."""
COMMAND = (sys.executable, "-m", "sanakit.serve.worker")
STUCK_AFTER = 600.0
"""Seconds without progress that end it; more where the largest picture, at `SLACK`, needs more."""
SLACK = 4.0
LOOKS = 20
"""Within that time. They are counted, not seconds: where this process was stopped, so was that."""
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
    """A child process that owns the model.

    It is ended when it neither draws on nor loads on. A thread of it that beats would tell nothing:
    progress is a message while there are jobs, and time on the processor while the model loads.
    """

    def __init__(self, wanted: dict[str, Any]) -> None:
        """Take what the process loads, and when it counts as stuck: None is as long as it needs."""
        self.wanted, self.stuck_after = wanted, wanted.get("stuck_after")
        self.process: Process | None = None
        self._patience: float = self.stuck_after or STUCK_AFTER
        self._drawing: set[str] = set()
        self._heard = 0
        self._why: str | None = None
        self._upkeep: asyncio.Task[None] | None = None

    async def start(self, told: Told) -> None:
        """Start the process and keep it up."""
        self._upkeep = asyncio.create_task(self._keep_up(told))

    def send(self, message: Message) -> None:
        """Send a message; one to a process that just died is lost with it."""
        if message.get("do") == "draw":
            self._drawing.add(message["job"])
        if self.process is not None and self.process.stdin is not None:
            with suppress(ConnectionError, RuntimeError):
                self.process.stdin.write(packed(message))

    async def stop(self) -> None:
        """End the process."""
        if self._upkeep is not None:
            self._upkeep.cancel()
            with suppress(asyncio.CancelledError):
                await self._upkeep
        if self.process is not None and self.process.returncode is None:
            self._end_over("the server ended")
            await self.process.wait()

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
        self._drawing.clear()
        self._why, self._heard = None, 0
        self.process = await asyncio.create_subprocess_exec(*COMMAND, stdin=PIPE, stdout=PIPE)
        assert self.process.stdout is not None
        self.send(self.wanted)
        said = ""
        watching = asyncio.create_task(self._watch(self.process))
        try:
            while True:
                message, data = await read_async(self.process.stdout)
                self._heard += 1
                kind = message["kind"]
                if kind in ("ready", "unloadable"):
                    said = kind
                    slow = SLACK * message.pop("largest_seconds", 0.0)
                    self._patience = self.stuck_after or max(STUCK_AFTER, slow)
                elif kind in FINISHED:
                    self._drawing.discard(message["job"])
                told(message, data)
        except (asyncio.IncompleteReadError, ConnectionError):
            return said
        except Exception:
            logger.exception("the drawing process is ended over what it told")
            self._end_over("the drawing process told what the server could not take")
            return said
        finally:
            watching.cancel()

    async def _watch(self, process: Process) -> None:
        """End the process where it has something to do and makes no progress."""
        silent, before = 0, None
        while silent < LOOKS:
            await asyncio.sleep(self._patience / LOOKS)
            now = self._progress(process)
            silent = silent + 1 if now is not None and now == before else 0
            before = now
        self._end_over(f"the drawing process made no progress for {self._patience:g} s")

    def _end_over(self, why: str) -> None:
        assert self.process is not None
        self._why = f"{why} and was ended"
        with suppress(ProcessLookupError):
            self.process.kill()

    def _progress(self, process: Process) -> float | None:
        """What differs from before where it goes on; None where there is nothing to do."""
        if self._heard:
            return self._heard if self._drawing else None
        with suppress(psutil.Error):
            spent = psutil.Process(process.pid).cpu_times()
            return round(spent.user + spent.system, 1)
        return None

    async def _reason(self) -> str:
        assert self.process is not None
        code = await self.process.wait()
        if self._why is not None:
            return self._why
        if code >= 0:
            return f"the drawing process ended with code {code}"
        name = signal.Signals(-code).name
        about = ", as the system does where memory ran out" if name == "SIGKILL" else ""
        return f"the drawing process was ended by {name}{about}"
