"""The queue: jobs accepted, drawn by the worker, told of, kept. Knows no HTTP and no torch."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import logging
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

from PIL import Image as PILImage

from sanakit.errors import ConfigError
from sanakit.serve.fairness import FairQueue
from sanakit.serve.history import DIGEST, History
from sanakit.serve.job import (
    Job,
    JobEvent,
    KeyConflict,
    NotShown,
    NotTaken,
    QueueFull,
    UnknownJob,
)
from sanakit.serve.messages import Message
from sanakit.serve.metrics import Metrics
from sanakit.serve.requests import (
    FINISHED,
    DrawRequest,
    ImageView,
    JobState,
    JobView,
    check_model,
)
from sanakit.serve.worker_process import Worker

ImageFormat = Literal["png", "jpeg", "webp"]
REMEMBERED = 256
"""Finished jobs in memory; older ones are read from the history."""
T = TypeVar("T")
Check = Callable[[DrawRequest, dict[str, Any], Callable[[str], Path]], Awaitable[None]]
logger = logging.getLogger(__name__)


class JobService:
    """The queue of one server, and all that is known of its jobs."""

    def __init__(
        self,
        worker: Worker,
        history: History,
        *,
        queue: int = 64,
        at_once: int = 4,
        deadline: float | None = None,
        check: Check | None = None,
        most_of: Callable[[str], int] = lambda owner: 0,
        fit: Callable[[bytes], bool] | None = None,
    ) -> None:
        """Take who draws and where it is kept.

        Args:
            worker: who draws.
            history: where jobs and pictures are kept.
            queue: requests that may wait.
            at_once: requests that advance together.
            deadline: seconds that a request gets which names none.
            check: refuses what the server's limits or the model, as ``capabilities`` tells, forbid;
                its third value says where a picture is that was handed in before.
            most_of: how many of an owner's jobs may be under way; 0 is any number.
            fit: whether a PNG may be shown; with it, there are no previews.
        """
        self.worker, self.history, self.check = worker, history, check
        self.most_of, self.fit = most_of, fit
        self.most_waiting, self.at_once, self.deadline = queue, at_once, deadline
        self.capabilities: dict[str, Any] = {}
        self.broken: str | None = None
        self.unloadable = asyncio.Event()
        self.draining = False
        self.metrics = Metrics()
        self._jobs: dict[str, Job] = {}
        self._waiting: FairQueue[Job] = FairQueue()
        self._running: dict[str, Job] = {}
        self._keys: dict[tuple[str, str], Job] = {}
        self.metrics.waiting.set_function(lambda: len(self._waiting))
        self.metrics.running.set_function(lambda: len(self._running))
        self._step_seconds = 0.0
        self._last_step = 0.0
        self._disk = ThreadPoolExecutor(1, "history")
        self._background: set[asyncio.Future[Any]] = set()
        self._idle = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether a model is loaded and requests are taken."""
        return bool(self.capabilities) and not self.draining

    async def start(self) -> None:
        """Take up what the last server left, and start the worker."""
        for row in await self._on_disk(self.history.unfinished):
            job = Job.of_row(row)
            if job.state == "queued":
                self._enqueue(job)
            else:
                said = "the server ended while it was drawn"
                self._finish(job, "failed", said, code="server_lost")
        await self.worker.start(self._told)

    async def stop(self, *, patience: float = 0.0) -> None:
        """Take nothing more, wait for what is being drawn, end; the queue is kept for the next."""
        self._stopping = self._stopping or asyncio.create_task(self._stop(patience))
        await self._stopping

    async def _stop(self, patience: float) -> None:
        self.draining = True
        if self._running:
            self._idle.clear()
            try:
                await asyncio.wait_for(self._idle.wait(), patience)
            except asyncio.TimeoutError:
                logger.warning("%d jobs are put back into the queue", len(self._running))
        left = [job for job in self._running.values() if not job.over]
        self._running.clear()
        await self.worker.stop()
        for job in left:
            self._write(job, state="queued")
        for job in self._jobs.values():
            job.news.set()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._on_disk(self.history.close)
        self._disk.shutdown()

    async def submit(
        self, request: DrawRequest, *, owner: str = "", idempotency_key: str | None = None
    ) -> Job:
        """Accept a request; once this returns, a kill does not lose it.

        Raises:
            QueueFull, NotTaken, KeyConflict, ConfigError: it is not accepted.
        """
        if self.draining or self.broken:
            raise NotTaken(self.broken or "the server is going down", hint="try again later")
        key = None if idempotency_key is None else (owner, idempotency_key)
        before = await self._of_key(key)
        if before is None:
            self._refuse_if_full(owner)  # before anything of it is decoded or kept
        if self.check is not None:
            await self.check(request, self.capabilities, self.history.input_file)
        check_model(request, self.capabilities)
        held: list[str] = []
        try:
            request = await self._with_inputs(request, held)
            return await self._accepted(request, owner, key, before)
        finally:
            if held:
                await self._on_disk(self.history.release_inputs, held)

    async def _accepted(
        self, request: DrawRequest, owner: str, key: tuple[str, str] | None, before: Job | None
    ) -> Job:
        """Queue what was judged and write it down, unless it was before."""
        # Asked again: the same request may have come in, and been written down, meanwhile.
        if (before := before or await self._of_key(key)) is not None:
            return self._same(request, before)
        self._refuse_if_full(owner)
        if request.seed is None:
            request = request.model_copy(update={"seed": secrets.randbelow(1 << 32)})
        job = Job(secrets.token_hex(16), owner, request, time.time())
        row = {
            "id": job.id,
            "owner": owner,
            "key": key and key[1],
            "request": request.model_dump(mode="json"),
            "state": "queued",
            "created": job.created,
        }
        self._enqueue(job)
        if key is not None:
            self._keys[key] = job
        try:
            await self._on_disk(self.history.add, row)
        except (OSError, sqlite3.Error) as error:
            self._cancel(job, "failed", f"the history cannot be written: {error}", "disk")
            raise NotTaken(job.error or "", hint="make room on its disk") from error
        finally:
            if key is not None:
                del self._keys[key]
        self._dispatch()
        return job

    async def _of_key(self, key: tuple[str, str] | None) -> Job | None:
        """The job that an owner asked for under a key, if any."""
        if key is None or (known := self._keys.get(key)) is not None:
            return None if key is None else known
        row = await self._on_disk(self.history.of_key, *key)
        return self._keys.get(key) if row is None else Job.of_row(row)

    def _refuse_if_full(self, owner: str) -> None:
        most = self.most_of(owner)
        # One that was given up is, too, until the worker has let it go.
        under_way = (*self._waiting, *self._running.values())
        said = None
        if len(self._waiting) >= self.most_waiting:
            said = f"{len(self._waiting)} requests are waiting, and no more are taken"
        elif most and sum(one.owner == owner for one in under_way) >= most:
            said = f"{owner} has {most} drawings under way"
        if said is not None:
            self.metrics.refused.inc()
            raise QueueFull(said, self._retry_after())

    async def get(self, job: str, owner: str = "") -> Job:
        """Give a job of an owner.

        Raises:
            UnknownJob: there is none.
        """
        found = self._jobs.get(job)
        if found is None:
            row = await self._on_disk(self.history.job, job)
            found = None if row is None else Job.of_row(row)
        if found is None or found.owner != owner:
            raise UnknownJob(f"no job {job}", hint="old ones make room for new ones")
        return found

    async def cancel(self, job: str, owner: str = "") -> Job:
        """Have a job end: at once where it waits, after its step where it is drawn."""
        found = await self.get(job, owner)
        self._cancel(found, "cancelled", None, None)
        return found

    def interrupt_all(self, owner: str = "") -> None:
        """Cancel what is being drawn for an owner."""
        for job in [job for job in self._running.values() if job.owner == owner]:
            self._cancel(job, "cancelled", None, None)

    async def remove(self, job: str, owner: str = "") -> None:
        """Cancel and forget a job with its pictures."""
        found = await self.cancel(job, owner)
        self._jobs.pop(found.id, None)
        await self._on_disk(self.history.remove, found.id)

    async def wait(self, job: str, owner: str = "") -> Job:
        """Wait until a job is over, or the server is."""
        found = await self.get(job, owner)
        while not found.over and not self.draining_done(found):
            await found.news.wait()
        return found

    def draining_done(self, job: Job) -> bool:
        """Whether the server ends before the job runs."""
        return self.draining and job.id not in self._running

    async def events(self, job: str, after: int = 0, owner: str = "") -> AsyncIterator[JobEvent]:
        """Tell what happened after an event's number and what happens, to the job's end."""
        found = await self.get(job, owner)
        if found.over and not found.log:
            yield found.end(after + 1)
            return
        while True:
            news = found.news
            for event in [event for event in found.log if event.number > after]:
                if event in found.log:
                    yield event
                after = event.number
            if found.over and after >= found.numbered:
                return
            if news is found.news:
                if self.draining_done(found):
                    return
                await news.wait()

    async def recent(
        self, limit: int = 50, before: str | None = None, owner: str = ""
    ) -> list[Job]:
        """Give an owner's jobs, the newest first, those before another one."""
        rows = await self._on_disk(self.history.recent, owner, limit, before)
        return [self._jobs.get(row["id"]) or Job.of_row(row) for row in rows]

    async def image_bytes(
        self, job: Job, index: int, format: ImageFormat = "png", quality: int = 100
    ) -> bytes:
        """Give a finished picture as a file of a kind; only PNG carries its settings.

        Raises:
            UnknownJob: it is not there, or no more.
        """
        path = self.history.picture(job.id, index)
        try:
            data = await asyncio.to_thread(path.read_bytes)
        except OSError as error:
            raise UnknownJob(f"job {job.id} has no picture {index}") from error
        return data if format == "png" else await asyncio.to_thread(_as, data, format, quality)

    def view(self, job: Job) -> JobView:
        """Give a job as it is answered."""
        return JobView(
            id=job.id,
            state=job.state,
            position=self.position(job),
            step=job.step,
            steps=job.steps,
            eta_seconds=self.eta_seconds(job),
            request=job.request,
            seeds=job.seeds,
            images=job.images,
            error=job.error,
            code=job.code,
            created_at=job.created,
            finished_at=job.finished,
        )

    def position(self, job: Job) -> int | None:
        """How many come before it; None where it does not wait."""
        if job.state != "queued" or job.id in self._running:
            return None
        return next((at for at, one in enumerate(self._waiting) if one is job), None)

    def eta_seconds(self, job: Job) -> float | None:
        """Seconds until it is done, as far as steps so far tell."""
        if job.over or not self._step_seconds:
            return None
        running = [self._left(one) for one in self._running.values()]
        own = self._left(job)
        if job.id in self._running:
            return self._step_seconds * sum(min(own, left) for left in running)
        before: list[int] = []
        for one in self._waiting:
            before.append(self._left(one))
            if one is job:
                break
        return self._step_seconds * (sum(running) + sum(before))

    def progress(self, owner: str = "") -> dict[str, Any]:
        """Tell how far an owner's oldest running job is, and what waits."""
        job = next((one for one in self._running.values() if one.owner == owner), None)
        return {
            "job": job,
            "eta_seconds": None if job is None else self.eta_seconds(job),
            "running": len(self._running),
            "queued": len(self._waiting),
        }

    def preview(self, job: Job) -> bytes | None:
        """Give the newest preview of a job as JPEG."""
        shown = [event for event in job.log if event.kind == "preview"]
        return base64.b64decode(shown[-1].data["image"]) if shown else None

    # What the worker tells.

    def _told(self, message: Message, data: bytes) -> None:
        kind = message["kind"]
        if kind == "ready":
            self.capabilities = {k: v for k, v in message.items() if k != "kind"}
            self._dispatch()
        elif kind in ("lost", "unloadable"):
            self._worker_ended(message["error"], for_good=kind == "unloadable")
        elif (job := self._running.get(message["job"])) is not None and (
            # Of one that was given up nothing counts but that the worker let it go.
            not job.over or kind in FINISHED
        ):
            getattr(self, f"_on_{kind}")(job, message, data)

    def _worker_ended(self, error: str, *, for_good: bool) -> None:
        self.capabilities = {}
        self.metrics.restarts.inc()
        failing = list(self._running.values())
        if for_good:
            self.broken = error
            self.unloadable.set()
            failing += list(self._waiting)
        for job in failing:
            self._finish(job, "failed", error, code="worker_lost")

    def _on_started(self, job: Job, message: Message, data: bytes) -> None:
        job.state = "running"
        self._write(job, state="running")
        job.tell("started", seeds=job.seeds)

    def _on_step(self, job: Job, message: Message, data: bytes) -> None:
        now = time.monotonic()
        seconds = now - self._last_step
        if self._last_step:
            known = self._step_seconds or seconds
            self._step_seconds = 0.9 * known + 0.1 * min(seconds, 10 * known)
            self.metrics.step_seconds.observe(seconds)
        self._last_step = now
        job.steps = message["steps"] * job.request.count
        job.step = message["index"] * message["steps"] + message["step"]
        job.tell(
            "step",
            step=job.step,
            steps=job.steps,
            index=message["index"],
            eta_seconds=self.eta_seconds(job),
        )

    def _on_preview(self, job: Job, message: Message, data: bytes) -> None:
        if self.fit is not None:
            return
        shown = {key: value for key, value in message.items() if key not in ("kind", "job")}
        job.tell("preview", format="jpeg", **shown)

    def _on_image(self, job: Job, message: Message, data: bytes) -> None:
        place, seed = message["place"], message["seed"]
        height, width = message["height"], message["width"]
        size = {"width": width, "height": height}
        kept = self._later(self._keep, job.id, place, data, seed=seed, **size)
        # Told of when it is on the disk: whoever asks then finds it.
        kept.add_done_callback(lambda done: self._kept(job, done, place, seed, size))

    def _keep(self, job: str, place: int, png: bytes, **about: int) -> None:
        if self.fit is not None and not self.fit(png):
            raise NotShown("the output checker holds the picture back")
        self.history.keep(job, place, png, **about)

    def _kept(
        self, job: Job, done: asyncio.Future[Any], place: int, seed: int, size: dict[str, int]
    ) -> None:
        if isinstance(error := done.exception(), NotShown):
            self._cancel(job, "failed", error.message, "blocked")
        elif error is not None:
            self._cancel(job, "failed", f"the picture could not be kept: {error}", "disk")
        elif not job.over:
            view = ImageView.of(job.id, place, seed, **size)
            job.images.append(view)
            job.tell("image", index=place, **view.model_dump())

    def _on_done(self, job: Job, message: Message, data: bytes) -> None:
        self.metrics.pictures.inc(job.request.count)
        # After the pictures, which the same thread is writing.
        written = self._later(lambda: None)
        written.add_done_callback(lambda _: self._finish(job, "done"))

    def _on_failed(self, job: Job, message: Message, data: bytes) -> None:
        self._finish(job, "failed", message["error"], code=message["code"])

    def _on_cancelled(self, job: Job, message: Message, data: bytes) -> None:
        self._finish(job, "cancelled")

    # Inside.

    def _enqueue(self, job: Job) -> None:
        self._jobs[job.id] = job
        self._waiting.put(job.owner, job)
        job.tell("queued")
        seconds = job.request.deadline or self.deadline
        if seconds is not None:
            said = f"it was not done within {seconds:g} s"
            job.timer = asyncio.get_running_loop().call_later(
                seconds, self._cancel, job, "failed", said, "deadline"
            )

    def _dispatch(self) -> None:
        while self.ready and len(self._running) < self.at_once:
            job = self._waiting.first()
            if job is None or any(
                one.request.lora != job.request.lora for one in self._running.values()
            ):
                return  # a network wears one set of LoRA at a time
            self._waiting.take()
            self._running[job.id] = job
            self.worker.send(
                {
                    "do": "draw",
                    "job": job.id,
                    "request": job.request.drawing(),
                    "seeds": job.seeds,
                    "lora": job.request.lora,
                    "partial_images": job.request.partial_images,
                }
            )

    def _cancel(self, job: Job, state: JobState, error: str | None, code: str | None) -> None:
        if job.over:
            return
        if self._waiting.remove(job.owner, job):
            self._finish(job, state, error, code=code)
        elif job.id in self._running:
            # Over for whoever asked; its place is free when the worker says so.
            self.worker.send({"do": "cancel", "job": job.id})
            self._finish(job, state, error, code=code, leaves=False)

    def _finish(
        self,
        job: Job,
        state: JobState,
        error: str | None = None,
        *,
        code: str | None = None,
        leaves: bool = True,
    ) -> None:
        if leaves:
            self._running.pop(job.id, None)
            self._waiting.remove(job.owner, job)
            if not self._running:
                self._last_step = 0.0
                self._idle.set()
        if not job.over:
            if job.timer is not None:
                job.timer.cancel()
            job.state, job.error, job.code, job.finished = state, error, code, time.time()
            self._write(job, state=state, error=error, code=code, finished=job.finished)
            event = job.end(0)
            job.tell(event.kind, **event.data)
            self.metrics.jobs.labels(state, code or "").inc()
            self._forget()
        self._dispatch()

    def _forget(self) -> None:
        old = [job.id for job in self._jobs.values() if job.over and job.id not in self._running]
        for job in old[: max(0, len(old) - REMEMBERED)]:
            del self._jobs[job]

    def _left(self, job: Job) -> int:
        steps = job.steps or job.request.count * (
            job.request.num_steps or self.capabilities.get("default_steps", 20)
        )
        return max(steps - job.step, 0)

    def _retry_after(self) -> int:
        steps = sum(self._left(job) for job in (*self._running.values(), *self._waiting))
        share = self._step_seconds * steps / max(len(self._waiting), 1)
        return max(1, min(600, round(share)))

    async def _with_inputs(self, request: DrawRequest, held: list[str]) -> DrawRequest:
        """Pictures that came along are kept as files, and named by their digests from there on.

        These are added to ``held``, to be released when a job names them, or none will.
        """
        changed: dict[str, Any] = {}
        for part in ("edit", "control"):
            given = getattr(request, part)
            if given is None:
                continue
            named = {}
            for name in ("image", "mask"):
                value = getattr(given, name, None)
                if value is not None:
                    named[name] = await self._on_disk(self._hold_input, value)
                    held.append(named[name])
            changed[part] = given.model_copy(update=named)
        return request.model_copy(update=changed)

    def _hold_input(self, given: str) -> str:
        if DIGEST.fullmatch(given):
            return self.history.hold_input(given)
        text = given.partition(",")[2] if given.startswith("data:") else given
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ConfigError(
                "a picture is not base64", hint="nothing is fetched by URL"
            ) from error
        return self.history.hold_input(data)

    def _same(self, request: DrawRequest, before: Job) -> Job:
        known = before.request
        if request.seed is None:
            known = known.model_copy(update={"seed": None})
        if known != request:
            raise KeyConflict("this Idempotency-Key was used for another request")
        return self._jobs.get(before.id, before)

    async def _on_disk(self, function: Callable[..., T], *values: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, function, *values)

    def _later(
        self, function: Callable[..., Any], *values: Any, **named: Any
    ) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._disk, lambda: function(*values, **named))
        self._background.add(future)
        future.add_done_callback(self._background.discard)
        return future

    def _write(self, job: Job, **values: Any) -> None:
        self._later(self.history.update, job.id, **values)


def _as(png: bytes, format: str, quality: int) -> bytes:
    buffer = io.BytesIO()
    with PILImage.open(io.BytesIO(png)) as image:
        image.save(buffer, format, quality=quality)
    return buffer.getvalue()
