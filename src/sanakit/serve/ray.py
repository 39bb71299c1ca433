"""The same server with its drawing on a Ray cluster: replicas that come and go with the queue.

Each owns a process with the model. One that is lost costs time only: another draws the same anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException

from sanakit.serve.messages import Message
from sanakit.serve.worker_process import Told, WorkerProcess

TRIES = 2
"""Replicas that may be lost over one request: it may be the request that ends them."""
ENDS = ("done", "failed", "cancelled")
logger = logging.getLogger(__name__)
Said = tuple[Message, bytes]


def _failed(job: str, error: str) -> Said:
    return {"kind": "failed", "job": job, "code": "worker_lost", "error": error}, b""


class Replica:
    """A process with the model, and the requests that it draws."""

    def __init__(self, wanted: Message) -> None:
        self._worker = WorkerProcess(wanted)
        self._streams: dict[str, asyncio.Queue[Said]] = {}
        self._able: asyncio.Future[Message] | None = None

    async def able(self) -> Message:
        """Give the ``ready`` of the model, or its ``unloadable``, when it has come."""
        if self._able is None:
            self._able = asyncio.get_running_loop().create_future()
            await self._worker.start(self._told)
        return await asyncio.shield(self._able)

    async def draw(self, message: Message) -> AsyncIterator[Said]:
        """Draw, and give all that is told of it; who stops listening cancels it."""
        job = message["job"]
        if (able := await self.able())["kind"] == "unloadable":
            yield _failed(job, able["error"])
            return
        told = self._streams[job] = asyncio.Queue()
        self._worker.send(message)
        kind = ""
        try:
            while kind not in ENDS:
                said, data = await told.get()
                kind = said["kind"]
                yield said, data
        finally:
            del self._streams[job]
            if kind not in ENDS:
                self._worker.send({"do": "cancel", "job": job})

    def _told(self, message: Message, data: bytes) -> None:
        kind = message["kind"]
        if kind in ("ready", "unloadable"):
            if self._able is not None and not self._able.done():
                self._able.set_result(message)
        elif kind == "lost":
            if self._able is not None and self._able.done():  # it loads again: no request before
                self._able = asyncio.get_running_loop().create_future()
            for job, told in self._streams.items():
                told.put_nowait(_failed(job, message["error"]))
        elif (told_of := self._streams.get(message["job"])) is not None:
            told_of.put_nowait((message, data))


class RayWorker:
    """Who draws for a `JobService`, on as many replicas as its queue needs."""

    def __init__(self, wanted: Message, *, least: int, most: int, at_once: int) -> None:
        """Join the cluster of RAY_ADDRESS, or begin one here; Ray takes SIGTERM for itself."""
        ray.init(ignore_reinit_error=True, log_to_driver=False, include_dashboard=False)
        self.wanted, self.least, self.most, self.at_once = wanted, least, most, at_once
        self._drawing: dict[str, asyncio.Task[None]] = {}

    async def start(self, told: Told) -> None:
        """Bring replicas up; their models load meanwhile."""
        self._told = told
        self._handle = await asyncio.to_thread(self._deploy)
        self._first = asyncio.create_task(self._tell_ready())

    def _deploy(self) -> Any:
        serve.start(http_options={"location": "NoServer"})
        on_gpu = self.wanted["device"] in (None, "cuda") and "GPU" in ray.cluster_resources()
        scaling = {"min_replicas": self.least, "max_replicas": self.most, "upscale_delay_s": 5}
        scaling["target_ongoing_requests"] = self.at_once
        replica: Any = serve.deployment(
            Replica,
            max_ongoing_requests=self.at_once,
            autoscaling_config=scaling,
            ray_actor_options={"num_cpus": 1, "num_gpus": int(on_gpu)},
        )
        return serve.run(replica.bind(self.wanted), name="sanakit", route_prefix=None)

    async def _tell_ready(self) -> None:
        try:
            self._told(await self._handle.able.remote(), b"")
        except (RayActorError, RayServeException) as error:
            said = f"no replica came up: {type(error).__name__}"
            self._told({"kind": "unloadable", "error": said}, b"")

    def send(self, message: Message) -> None:
        """Hand over a ``draw`` or a ``cancel``."""
        job = message["job"]
        if message["do"] == "draw":
            task = self._drawing[job] = asyncio.create_task(self._draw(message))
            task.add_done_callback(lambda task: self._ended(job, task))
        elif job in self._drawing:
            self._drawing[job].cancel()

    def _ended(self, job: str, task: asyncio.Task[None]) -> None:
        del self._drawing[job]
        if task.cancelled():
            self._told({"kind": "cancelled", "job": job}, b"")

    async def _draw(self, message: Message) -> None:
        places: set[int] = set()
        for _ in range(TRIES):
            stream = self._handle.options(stream=True).draw.remote(message)
            try:
                async for said, data in stream:
                    if said["kind"] != "image" or said["place"] not in places:
                        self._told(said, data)
                    places |= {said["place"]} if said["kind"] == "image" else set()
                return
            except (RayActorError, RayServeException) as lost:
                error = f"{TRIES} replicas were lost over it ({type(lost).__name__})"
                logger.warning("a replica was lost while it drew job %s", message["job"])
            finally:
                stream.cancel()
        self._told(*_failed(message["job"], error))

    async def stop(self) -> None:
        """Leave the cluster; replicas end when what they draw is done or given up."""
        for task in [*self._drawing.values()]:
            task.cancel()
        await asyncio.gather(*self._drawing.values(), return_exceptions=True)
        await asyncio.to_thread(serve.delete, "sanakit")
