from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from sanakit.serve import worker_process
from sanakit.serve.jobs import JobService
from sanakit.serve.requests import DrawRequest
from sanakit.serve.worker_process import WorkerProcess
from serving import ABLE, png, service

SCRIPT = f"""
import os, sys, threading, time
from pathlib import Path
from sanakit.serve.messages import packed, read

def tell(kind, data=b"", **values):
    sys.stdout.buffer.write(packed({{"kind": kind, **values}}, data))
    sys.stdout.buffer.flush()

def beat():  # of a thread that is well, beside one that is stuck
    while True:
        time.sleep(0.01)

threading.Thread(target=beat, daemon=True).start()
wanted, _ = read(sys.stdin.buffer)
load = wanted["load"].pop(0) if wanted["load"] else ""
marks = Path(wanted["marks"])
marks.write_text(marks.read_text() + "x" if marks.exists() else "x")
if load == "stuck" and len(marks.read_text()) == 1:
    time.sleep(60)
if load == "slow":
    ends = time.monotonic() + 3 * wanted["stuck_after"]
    while time.monotonic() < ends:
        sum(range(100))
tell("ready", **{ABLE!r}, largest_seconds=wanted["largest"])
while (message := read(sys.stdin.buffer)) is not None:
    job, prompt = message[0]["job"], message[0]["request"]["prompt"]
    tell("started", job=job)
    if prompt == "stuck":
        time.sleep(60)
    if prompt == "odd":
        tell("step", job=job, index=0, step="first", steps=8)
    if prompt == "torn":
        sys.stdout.buffer.write(bytes([0, 0, 0, 2, 0, 0, 0, 0, 9, 9]))
        sys.stdout.buffer.flush()
    for step in range(8 if prompt == "slow" else 1):
        time.sleep(0.4 * wanted["stuck_after"] if prompt == "slow" else 0)
        tell("step", job=job, index=0, step=step + 1, steps=8)
    tell("image", {png()!r}, job=job, place=0, seed=1, width=64, height=64)
    tell("done", job=job)
"""
Body = Callable[[JobService, WorkerProcess], Awaitable[None]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setattr(worker_process, "COMMAND", (sys.executable, "-c", SCRIPT))

    def run(body: Body, *, stuck_after: float | None = 1.0, load: str = "", **more: Any) -> None:
        wanted = {"stuck_after": stuck_after, "load": [load], "largest": 0.0}
        worker = WorkerProcess({**wanted, "marks": str(tmp_path / "marks"), **more})

        async def all_of_it() -> None:
            jobs = service(tmp_path / "history", worker, at_once=2)
            await jobs.start()
            try:
                await asyncio.wait_for(body(jobs, worker), 40)
            finally:
                await jobs.stop()

        asyncio.run(all_of_it())

    return run


async def state(jobs: JobService, prompt: str) -> tuple[str, str | None]:
    job = await jobs.submit(DrawRequest(prompt=prompt, seed=1))
    await jobs.wait(job.id)
    return job.state, job.error


def test_a_worker_that_is_stuck_in_a_step_is_ended_and_the_queue_goes_on(
    run: Callable[..., None],
) -> None:
    async def body(jobs: JobService, worker: WorkerProcess) -> None:
        assert await state(jobs, "well") == ("done", None)
        drawn = [asyncio.create_task(state(jobs, name)) for name in ("stuck", "well", "well")]
        said = "the drawing process made no progress for 1 s and was ended"
        assert await drawn[0] == ("failed", said)
        assert await drawn[1] == ("failed", said)  # it advanced together with the first
        assert await drawn[2] == ("done", None)

    run(body)


@pytest.mark.parametrize("prompt", ["odd", "torn"])
def test_a_worker_that_talks_nonsense_is_started_again(
    run: Callable[..., None], prompt: str
) -> None:
    async def body(jobs: JobService, worker: WorkerProcess) -> None:
        said = "the drawing process told what the server could not take and was ended"
        assert await state(jobs, prompt) == ("failed", said)
        assert await state(jobs, "well") == ("done", None)

    run(body, stuck_after=20.0)


def test_a_stuck_job_that_was_cancelled_gives_its_place_back(run: Callable[..., None]) -> None:
    async def body(jobs: JobService, worker: WorkerProcess) -> None:
        stuck = await jobs.submit(DrawRequest(prompt="stuck", seed=1))
        while stuck.state == "queued":
            await asyncio.sleep(0.01)
        await jobs.cancel(stuck.id)
        assert jobs._running
        while jobs._running:
            await asyncio.sleep(0.01)
        assert stuck.state == "cancelled"
        assert await state(jobs, "well") == ("done", None)

    run(body)


def test_a_worker_that_is_stuck_while_it_loads_is_started_again(run: Callable[..., None]) -> None:
    async def body(jobs: JobService, worker: WorkerProcess) -> None:
        assert await state(jobs, "well") == ("done", None)  # waits for the second start
        assert jobs.metrics.restarts._value.get() == 1

    run(body, load="stuck")


def test_slow_progress_and_idleness_end_no_worker(run: Callable[..., None]) -> None:
    async def body(jobs: JobService, worker: WorkerProcess) -> None:
        assert await state(jobs, "slow") == ("done", None)
        await asyncio.sleep(1.5)
        assert await state(jobs, "well") == ("done", None)
        assert jobs.metrics.restarts._value.get() == 0

    run(body, load="slow")


@pytest.mark.parametrize(
    ("asked", "largest", "seconds"), [(None, 2.0, 600), (None, 500.0, 2000), (1.0, 500.0, 1)]
)
def test_a_machine_that_draws_slowly_is_given_longer(
    run: Callable[..., None], asked: float | None, largest: float, seconds: float
) -> None:
    async def body(jobs: JobService, worker: WorkerProcess) -> None:
        assert await state(jobs, "well") == ("done", None)
        assert worker._patience == seconds
        assert "largest_seconds" not in jobs.capabilities

    run(body, stuck_after=asked, largest=largest)
