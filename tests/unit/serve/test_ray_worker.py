"""What Ray hands on, without a cluster: lost replicas, cancelling, repeated pictures."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any

import pytest

ray = pytest.importorskip("ray")


class Lost(ray.exceptions.RayActorError):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        Exception.__init__(self, "lost")


class Stream:
    """What a replica tells, and where it is lost."""

    def __init__(self, *said: dict[str, Any] | type[Exception]) -> None:
        self.said, self.cancelled = said, False

    async def __aiter__(self) -> AsyncIterator[tuple[dict[str, Any], bytes]]:
        for one in self.said:
            if isinstance(one, type):
                raise one
            yield one, b""
        if not self.said:
            await asyncio.sleep(60)

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """A deployment's handle, whose calls are answered by streams in turn."""

    def __init__(self, *streams: Stream) -> None:
        self.streams, self.draw = iter(streams), self

    def options(self, *, stream: bool) -> Handle:
        return self

    def remote(self, message: dict[str, Any]) -> Stream:
        return next(self.streams)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`sanakit.serve.ray`, with or without what Ray Serve itself needs."""
    serve, exceptions = ModuleType("ray.serve"), ModuleType("ray.serve.exceptions")
    exceptions.RayServeException = type("RayServeException", (Exception,), {})  # type: ignore[attr-defined]
    serve.delete = lambda name: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray.serve", serve)
    monkeypatch.setattr(ray, "serve", serve, raising=False)
    monkeypatch.setitem(sys.modules, "ray.serve.exceptions", exceptions)
    monkeypatch.delitem(sys.modules, "sanakit.serve.ray", raising=False)
    monkeypatch.setattr(ray, "init", lambda **settings: None)
    import sanakit.serve.ray as found

    monkeypatch.delitem(sys.modules, "sanakit.serve.ray")
    return found


def told_of(module: Any, *streams: Stream, cancel: bool = False) -> list[tuple[str, Any]]:
    async def run() -> list[tuple[str, Any]]:
        worker = module.RayWorker({"device": None}, least=1, most=2, at_once=1)
        told: list[tuple[str, Any]] = []
        worker._told = lambda message, data: told.append((message["kind"], message.get("place")))
        worker._handle = Handle(*streams)
        worker.send({"do": "draw", "job": "a"})
        if cancel:
            worker.send({"do": "cancel", "job": "a"})
        while worker._drawing:
            await asyncio.sleep(0.01)
        return told

    return asyncio.run(run())


def test_another_replica_goes_on_and_tells_no_picture_twice(module: Any) -> None:
    pictures = [{"kind": "image", "place": place, "job": "a"} for place in range(2)]
    first = Stream({"kind": "started", "job": "a"}, pictures[0], Lost)
    second = Stream(*pictures, {"kind": "done", "job": "a"})
    told = told_of(module, first, second)
    assert told == [("started", None), ("image", 0), ("image", 1), ("done", None)]


def test_a_request_that_ends_every_replica_fails(module: Any) -> None:
    assert told_of(module, Stream(Lost), Stream(Lost)) == [("failed", None)]


@pytest.mark.parametrize("said", [(), ({"kind": "started", "job": "a"},)])
def test_one_that_is_cancelled_at_once_is_told_of(module: Any, said: Any) -> None:
    assert told_of(module, Stream(*said), cancel=True) == [("cancelled", None)]


def test_a_replica_stops_what_nobody_listens_to(module: Any) -> None:
    async def run() -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []
        replica = module.Replica({})
        replica._worker.send = sent.append
        replica._able = asyncio.get_running_loop().create_future()
        replica._told({"kind": "ready"}, b"")
        drawing = replica.draw({"do": "draw", "job": "a"})
        replica_says = asyncio.get_running_loop().call_soon
        replica_says(lambda: replica._told({"kind": "step", "job": "a"}, b""))
        await anext(drawing)
        await drawing.aclose()
        return sent

    assert [one["do"] for one in asyncio.run(run())] == ["draw", "cancel"]


def test_a_process_that_ends_fails_its_requests(module: Any) -> None:
    async def run() -> dict[str, Any]:
        replica = module.Replica({})
        replica._worker.send = lambda message: None
        replica._able = asyncio.get_running_loop().create_future()
        replica._told({"kind": "ready"}, b"")
        drawing = replica.draw({"do": "draw", "job": "a"})
        lost = {"kind": "lost", "error": "memory ran out"}
        asyncio.get_running_loop().call_later(0.05, replica._told, lost, b"")
        said, _ = await anext(drawing)
        return dict(said)

    assert asyncio.run(run())["error"] == "memory ran out"


def test_a_process_that_is_started_again_is_asked_when_it_is_ready(module: Any) -> None:
    async def run() -> None:
        sent: list[dict[str, Any]] = []
        replica = module.Replica({})
        replica._worker.send = sent.append
        replica._able = asyncio.get_running_loop().create_future()
        replica._told({"kind": "ready"}, b"")
        replica._told({"kind": "lost", "error": "memory ran out"}, b"")
        said = asyncio.ensure_future(anext(replica.draw({"do": "draw", "job": "a"})))
        await asyncio.sleep(0.05)
        assert sent == []  # nobody would have read it
        replica._told({"kind": "ready"}, b"")
        await asyncio.sleep(0.05)
        assert [one["do"] for one in sent] == ["draw"]
        replica._told({"kind": "done", "job": "a"}, b"")
        assert (await said)[0]["kind"] == "done"

    asyncio.run(run())
