from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from sanakit.errors import ConfigError, DataError
from sanakit.serve.job import KeyConflict, NotTaken, QueueFull, UnknownJob
from sanakit.serve.jobs import JobService
from sanakit.serve.requests import DrawRequest
from serving import ByHand, png, service

Body = Callable[[JobService, ByHand], Awaitable[None]]
APPLE = DrawRequest(prompt="an apple", seed=7)


def run(folder: Path, body: Body, **options: Any) -> None:
    async def all_of_it() -> None:
        worker = options.pop("worker", None) or ByHand()
        jobs = service(folder, worker, **options)
        await jobs.start()
        try:
            await asyncio.wait_for(body(jobs, worker), 20)
        finally:
            await jobs.stop()

    asyncio.run(all_of_it())


async def told(jobs: JobService, job: str, after: int = 0) -> list[tuple[str, int]]:
    return [(event.kind, event.number) async for event in jobs.events(job, after)]


def test_a_request_becomes_a_picture_that_is_told_of_when_it_is_on_the_disk(tmp_path: Path) -> None:
    async def body(jobs: JobService, worker: ByHand) -> None:
        job = await jobs.submit(APPLE)
        assert worker.drawing == [job.id]
        worker.draw(job.id, previews=(1, 3))
        async for event in jobs.events(job.id):
            if event.kind == "image":
                assert await jobs.image_bytes(job, 0) == png()
        assert job.state == "done"
        view = jobs.view(job)
        assert (view.step, view.steps, view.seeds, view.position) == (4, 4, [7], None)
        assert view.images[0].url == f"/jobs/{job.id}/images/0"
        assert (await jobs.image_bytes(job, 0, "webp"))[8:12] == b"WEBP"

    run(tmp_path, body)


def test_events_go_on_after_the_last_number_and_leave_out_what_is_out_of_date(
    tmp_path: Path,
) -> None:
    async def body(jobs: JobService, worker: ByHand) -> None:
        job = await jobs.submit(APPLE)
        worker.draw(job.id, previews=(1, 3))
        whole = await told(jobs, job.id)
        kinds = [kind for kind, _ in whole]
        assert kinds == ["queued", "started", "preview", "step", "image", "done"]
        numbers = [number for _, number in whole]
        assert numbers == sorted(set(numbers))
        for place, number in enumerate(numbers):
            assert await told(jobs, job.id, number) == whole[place + 1 :]

    run(tmp_path, body)


def test_a_listener_that_comes_early_hears_every_step(tmp_path: Path) -> None:
    async def body(jobs: JobService, worker: ByHand) -> None:
        job = await jobs.submit(APPLE)
        heard = asyncio.create_task(told(jobs, job.id))
        worker.say("started", job=job.id)
        for step in (1, 2, 3):
            worker.say("step", job=job.id, index=0, step=step, steps=3)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        worker.say("done", job=job.id)
        assert [kind for kind, _ in await heard].count("step") == 3

    run(tmp_path, body)


def test_cancelling_a_queued_job_ends_it_at_once_and_it_is_never_drawn(tmp_path: Path) -> None:
    async def body(jobs: JobService, worker: ByHand) -> None:
        first = await jobs.submit(APPLE)
        second = await jobs.submit(APPLE)
        assert jobs.position(second) == 0
        assert (await jobs.cancel(second.id)).state == "cancelled"
        worker.draw(first.id)
        await jobs.wait(first.id)
        assert worker.drawing == [first.id]
        assert worker.cancelled == []

    run(tmp_path, body, at_once=1)


def test_a_cancelled_job_holds_its_place_until_the_worker_has_let_go(tmp_path: Path) -> None:
    async def body(jobs: JobService, worker: ByHand) -> None:
        first, second = await jobs.submit(APPLE), await jobs.submit(APPLE)
        worker.say("started", job=first.id)
        assert (await jobs.cancel(first.id)).state == "cancelled"
        assert worker.cancelled == [first.id]
        assert worker.drawing == [first.id]
        worker.image(first.id)  # it had finished by then; nobody wants it
        worker.say("cancelled", job=first.id)
        assert worker.drawing == [first.id, second.id]
        assert [kind for kind, _ in await told(jobs, first.id)] == [
            "queued",
            "started",
            "cancelled",
        ]
        assert first.images == []

    run(tmp_path, body, at_once=1)


@pytest.mark.parametrize("give_up", ["cancel", "remove"])
def test_who_cancels_and_asks_again_gets_no_more_places_than_the_key_has(
    tmp_path: Path, give_up: str
) -> None:
    async def body(jobs: JobService, worker: ByHand) -> None:
        drawn, waiting = [await jobs.submit(APPLE, owner="alice") for _ in range(2)]
        for job in (drawn, waiting):
            await getattr(jobs, give_up)(job.id, "alice")
        again = await jobs.submit(APPLE, owner="alice")  # what waited has no place any more
        with pytest.raises(QueueFull, match="alice has 2 drawings under way"):
            await jobs.submit(APPLE, owner="alice")
        await jobs.submit(APPLE, owner="bob")
        worker.say("cancelled", job=drawn.id)
        assert worker.drawing == [drawn.id, again.id]
        await jobs.submit(APPLE, owner="alice")

    run(tmp_path, body, at_once=1, most_of=lambda owner: 2)


def test_a_job_that_was_given_up_never_comes_back_to_life(tmp_path: Path) -> None:
    async def body(jobs: JobService, worker: ByHand) -> None:
        job = await jobs.submit(APPLE)
        await jobs.remove(job.id)
        worker.draw(job.id)  # it had not heard of it
        assert job.state == "cancelled"
        assert [event.kind for event in job.log] == ["queued", "cancelled"]
        await asyncio.sleep(0.05)
        assert list(jobs.history.pictures.iterdir()) == []
        with pytest.raises(UnknownJob):
            await jobs.get(job.id)

    run(tmp_path, body)


def test_a_deadline_ends_what_waits_and_what_is_drawn(tmp_path: Path) -> None:
    async def body(jobs: JobService, worker: ByHand) -> None:
        soon = DrawRequest(prompt="", seed=0, deadline=0.05)
        drawn, waiting = await jobs.submit(soon), await jobs.submit(soon)
        for job in (drawn, waiting):
            await jobs.wait(job.id)
            assert (job.state, job.code) == ("failed", "deadline")
        assert worker.cancelled == [drawn.id]
        assert worker.drawing == [drawn.id]

    run(tmp_path, body, at_once=1)


def test_a_full_queue_refuses_and_says_when_to_come_back(tmp_path: Path) -> None:
    async def body(jobs: JobService, worker: ByHand) -> None:
        for _ in range(3):
            await jobs.submit(APPLE)
        with pytest.raises(QueueFull) as refused:
            await jobs.submit(APPLE)
        assert refused.value.retry_after >= 1
        worker.draw(worker.drawing[0])
        await jobs.wait(worker.drawing[0])
        await jobs.submit(APPLE)

    run(tmp_path, body, at_once=1, queue=2)


def test_nothing_is_kept_of_what_a_full_queue_refuses(tmp_path: Path) -> None:
    async def body(jobs: JobService, worker: ByHand) -> None:
        await jobs.submit(APPLE, idempotency_key="k")
        await jobs.submit(APPLE)
        given = base64.b64encode(png()).decode()
        with pytest.raises(QueueFull):
            await jobs.submit(DrawRequest(prompt="", edit={"image": given}))
        assert list(jobs.history.inputs.iterdir()) == []
        again = await jobs.submit(APPLE, idempotency_key="k")  # is there, and takes no room
        assert again.id == worker.drawing[0]

    run(tmp_path, body, at_once=1, queue=1)


def test_nothing_is_kept_of_what_is_refused_after_its_pictures_came(tmp_path: Path) -> None:
    async def body(jobs: JobService, worker: ByHand) -> None:
        await jobs.submit(APPLE, idempotency_key="k")
        given, kept = (base64.b64encode(png(color)).decode() for color in ("red", "blue"))
        known = await jobs.submit(DrawRequest(prompt="", edit={"image": kept}))
        assert known.request.edit is not None
        for edit in ({"image": given}, {"image": given, "mask": "no picture"}):
            for named in (edit, edit | {"image": known.request.edit.image}):
                with pytest.raises((KeyConflict, ConfigError)):
                    await jobs.submit(DrawRequest(prompt="", edit=named), idempotency_key="k")
        assert [f"sha256:{path.name}" for path in jobs.history.inputs.iterdir()] == [
            known.request.edit.image
        ]

    run(tmp_path, body)


def test_a_disk_that_refuses_is_told_of_and_nothing_is_drawn_unseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(jobs: JobService, worker: ByHand) -> None:
        drawn = await jobs.submit(APPLE)

        def full(*_: Any, **__: Any) -> None:
            raise OSError("No space left on device")

        for name in ("add", "keep"):
            monkeypatch.setattr(jobs.history, name, full)
        with pytest.raises(NotTaken, match="No space left"):
            await jobs.submit(APPLE, idempotency_key="k")
        worker.draw(drawn.id)
        await jobs.wait(drawn.id)
        assert (drawn.state, drawn.code) == ("failed", "disk")
        assert (worker.drawing, jobs._keys) == ([drawn.id], {})

    run(tmp_path, body, at_once=1)


def test_owners_are_served_in_turns_and_none_sees_another_ones(tmp_path: Path) -> None:
    async def body(jobs: JobService, worker: ByHand) -> None:
        flood = [await jobs.submit(APPLE, owner="flood") for _ in range(4)]
        late = await jobs.submit(APPLE, owner="late")
        assert jobs.position(late) == 1  # the round began before it came
        for _ in range(5):
            worker.draw(worker.drawing[-1])
            await jobs.get(worker.drawing[-1], "flood" if worker.drawing[-1] != late.id else "late")
            await asyncio.sleep(0.05)
        order = [late.id if job == late.id else "flood" for job in worker.drawing]
        assert order == ["flood", "flood", late.id, "flood", "flood"]
        with pytest.raises(UnknownJob):
            await jobs.get(flood[0].id, "late")
        with pytest.raises(UnknownJob):
            await jobs.cancel(flood[0].id)
        assert [job.id for job in await jobs.recent(owner="late")] == [late.id]

    run(tmp_path, body, at_once=1)


def test_one_key_is_one_job_however_often_and_fast_it_is_sent(tmp_path: Path) -> None:
    async def body(jobs: JobService, worker: ByHand) -> None:
        anything = DrawRequest(prompt="an apple")
        same = [jobs.submit(anything, idempotency_key="k") for _ in range(5)]
        assert len({job.id for job in await asyncio.gather(*same)}) == 1
        again = await jobs.submit(anything, idempotency_key="k")
        assert again.id == worker.drawing[0]
        with pytest.raises(KeyConflict):
            await jobs.submit(APPLE.model_copy(update={"prompt": "a pear"}), idempotency_key="k")
        other = await jobs.submit(anything, owner="another", idempotency_key="k")
        assert other.id != again.id

    run(tmp_path, body)


def test_a_key_that_comes_again_while_the_first_is_judged_is_one_job(tmp_path: Path) -> None:
    async def body(jobs: JobService, worker: ByHand) -> None:
        waits, judged = asyncio.Event(), asyncio.Event()

        async def slow(*_: Any) -> None:
            waits.set()
            await judged.wait()

        jobs.check = slow
        late = asyncio.create_task(jobs.submit(APPLE, idempotency_key="k"))
        await waits.wait()
        jobs.check = None
        quick = await jobs.submit(APPLE, idempotency_key="k")  # it is on the disk now
        judged.set()
        assert await late is quick
        assert worker.drawing == [quick.id]

    run(tmp_path, body)


def test_requests_with_other_lora_never_share_the_network(tmp_path: Path) -> None:
    async def body(jobs: JobService, worker: ByHand) -> None:
        red = APPLE.model_copy(update={"lora": ("red",)})
        plain, dressed, plain_too = [await jobs.submit(one) for one in (APPLE, red, APPLE)]
        assert worker.drawing == [plain.id]
        worker.draw(plain.id)
        await jobs.wait(plain.id)
        assert worker.drawing == [plain.id, dressed.id]
        worker.draw(dressed.id)
        await jobs.wait(dressed.id)
        assert worker.drawing[-1] == plain_too.id

    run(tmp_path, body)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"lora": ("red", "red")}, "twice"),
        ({"lora": ("rde",)}, "red"),
        ({"solver": "flow-eulr"}, "flow-euler"),
        ({"height": 100}, "64 and 128"),
        ({"control": {"image": base64.b64encode(png()).decode()}}, "leave it out"),
        ({"edit": {"image": "file:///etc/passwd"}}, "fetched"),
    ],
)
def test_what_the_model_cannot_do_is_refused_at_once(
    tmp_path: Path, values: dict[str, Any], names: str
) -> None:
    async def body(jobs: JobService, worker: ByHand) -> None:
        with pytest.raises(ConfigError) as refused:
            await jobs.submit(DrawRequest(prompt="", **values))
        assert names in str(refused.value)
        assert worker.sent == []

    run(tmp_path, body)


def test_a_server_without_lora_says_so(tmp_path: Path) -> None:
    async def body(jobs: JobService, worker: ByHand) -> None:
        jobs.capabilities["loras"] = []
        with pytest.raises(ConfigError, match="started without --lora"):
            await jobs.submit(DrawRequest(prompt="", lora=("red",)))

    run(tmp_path, body)


def test_pictures_that_come_along_are_named_by_digest_and_can_be_named_again(
    tmp_path: Path,
) -> None:
    async def body(jobs: JobService, worker: ByHand) -> None:
        given = base64.b64encode(png()).decode()
        first = await jobs.submit(DrawRequest(prompt="", edit={"image": given}))
        assert first.request.edit is not None
        name = first.request.edit.image
        assert name.startswith("sha256:")
        assert jobs.history.input_file(name).read_bytes() == png()
        await jobs.submit(DrawRequest(prompt="", edit={"image": name}))
        with pytest.raises(DataError):
            await jobs.submit(DrawRequest(prompt="", edit={"image": "sha256:" + "0" * 64}))

    run(tmp_path, body)


def test_a_lost_worker_fails_its_jobs_and_the_next_one_draws_the_rest(tmp_path: Path) -> None:
    async def body(jobs: JobService, worker: ByHand) -> None:
        lost, waiting = await jobs.submit(APPLE), await jobs.submit(APPLE)
        worker.say("started", job=lost.id)
        worker.say("lost", error="the drawing process was ended by SIGKILL")
        assert (lost.state, lost.code) == ("failed", "worker_lost")
        assert "SIGKILL" in (lost.error or "")
        assert not jobs.ready
        assert worker.drawing == [lost.id]
        worker.say("ready", loras=[], solvers=[], any_size=True, multiple=64, supports={})
        assert worker.drawing == [lost.id, waiting.id]

    run(tmp_path, body, at_once=1)


def test_a_model_that_does_not_load_fails_what_waits_and_refuses_more(tmp_path: Path) -> None:
    async def body(jobs: JobService, worker: ByHand) -> None:
        job = await jobs.submit(APPLE)
        worker.say("unloadable", error="no such model")
        assert (job.state, job.error) == ("failed", "no such model")
        with pytest.raises(NotTaken, match="no such model"):
            await jobs.submit(APPLE)

    run(tmp_path, body, worker=ByHand(ready=False))


def test_what_waited_is_drawn_by_the_next_server_and_what_was_drawn_has_failed(
    tmp_path: Path,
) -> None:
    ids: list[str] = []

    async def killed() -> None:
        jobs = service(tmp_path, at_once=1)
        await jobs.start()
        ids.extend([(await jobs.submit(APPLE)).id for _ in range(3)])
        jobs.worker.say("started", job=ids[0])  # type: ignore[attr-defined]
        await asyncio.sleep(0.1)
        jobs.history._owned.release()  # as the system does where the process is gone

    async def body(jobs: JobService, worker: ByHand) -> None:
        assert worker.drawing == [ids[1]]
        first = await jobs.get(ids[0])
        assert (first.state, first.code) == ("failed", "server_lost")
        worker.draw(ids[1])
        assert (await jobs.wait(ids[1])).state == "done"
        assert worker.drawing == ids[1:]

    asyncio.run(killed())
    run(tmp_path, body, at_once=1)


def test_going_down_finishes_what_is_drawn_and_keeps_the_queue(tmp_path: Path) -> None:
    kept: list[str] = []

    async def first() -> None:
        worker = ByHand()
        jobs = service(tmp_path, worker, at_once=1)
        await jobs.start()
        drawn, waiting = await jobs.submit(APPLE), await jobs.submit(APPLE)
        kept.append(waiting.id)
        waiter = asyncio.create_task(jobs.wait(waiting.id))
        ending = asyncio.create_task(jobs.stop(patience=5))
        await asyncio.sleep(0.01)
        with pytest.raises(NotTaken):
            await jobs.submit(APPLE)
        worker.draw(drawn.id)
        await ending
        assert drawn.state == "done"
        assert worker.stopped
        assert (await waiter).state == "queued"

    async def body(jobs: JobService, worker: ByHand) -> None:
        assert worker.drawing == kept

    asyncio.run(first())
    run(tmp_path, body)


def test_going_down_without_patience_puts_back_what_is_drawn(tmp_path: Path) -> None:
    kept: list[str] = []

    async def first() -> None:
        worker = ByHand()
        jobs = service(tmp_path, worker)
        await jobs.start()
        kept.append((await jobs.submit(APPLE)).id)
        worker.say("started", job=kept[0])
        await jobs.stop(patience=0.01)

    async def body(jobs: JobService, worker: ByHand) -> None:
        assert worker.drawing == kept

    asyncio.run(first())
    run(tmp_path, body)


def test_going_down_puts_back_nothing_that_was_cancelled(tmp_path: Path) -> None:
    async def first() -> None:
        worker = ByHand()
        jobs = service(tmp_path, worker)
        await jobs.start()
        job = await jobs.submit(APPLE)
        worker.say("started", job=job.id)
        await jobs.cancel(job.id)
        await jobs.stop(patience=0.01)  # before the worker has let go of it

    async def body(jobs: JobService, worker: ByHand) -> None:
        assert worker.drawing == []
        assert [job.state for job in await jobs.recent()] == ["cancelled"]

    asyncio.run(first())
    run(tmp_path, body)


def test_what_is_remembered_in_memory_is_bounded_and_the_rest_is_read_from_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sanakit.serve.jobs.REMEMBERED", 2)

    async def body(jobs: JobService, worker: ByHand) -> None:
        for _ in range(5):
            job = await jobs.submit(APPLE)
            worker.draw(job.id)
            await jobs.wait(job.id)
        assert len(jobs._jobs) == 2
        oldest = await jobs.get(worker.drawing[0])
        assert (oldest.state, len(oldest.images)) == ("done", 1)
        assert await told(jobs, oldest.id, 9) == [("done", 10)]
        assert len(await jobs.recent(3)) == 3

    run(tmp_path, body)
