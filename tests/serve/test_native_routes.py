from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from sanakit.serve import answers
from sanakit.serve.job import JobEvent
from tiny_server import ColorWorker, Server, listening


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with listening(tmp_path_factory.mktemp("native")) as one:
        yield one


@pytest.fixture
def ask(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def done(ask: httpx.Client, **values: object) -> dict:
    answer = ask.post("/jobs", json={"prompt": "a red apple", **values})
    assert answer.status_code == 202, answer.text
    job = answer.json()
    ask.get(f"/jobs/{job['id']}/events")
    return ask.get(f"/jobs/{job['id']}").json()


def test_a_stream_of_events_goes_on_after_the_last_one_that_was_seen(ask: httpx.Client) -> None:
    job = done(ask, seed=3)
    whole = ask.get(f"/jobs/{job['id']}/events")
    assert whole.headers["content-type"].startswith("text/event-stream")
    events = whole.text.strip().split("\n\n")
    seen = re.search(r"id: (\d+)", events[-3])
    assert seen is not None
    rest = ask.get(f"/jobs/{job['id']}/events", headers={"Last-Event-ID": seen[1]})
    assert rest.text.strip().split("\n\n") == events[-2:]
    assert events[-1].startswith("event: done")


def test_a_key_sent_twice_draws_once_and_for_something_else_is_a_conflict(
    ask: httpx.Client, server: Server
) -> None:
    headers = {"Idempotency-Key": "mine"}
    drawn = len(server.worker.requests)
    first, again = (ask.post("/jobs", json={"prompt": "x"}, headers=headers) for _ in range(2))
    assert first.json()["id"] == again.json()["id"]
    assert len(server.worker.requests) == drawn + 1
    assert ask.post("/jobs", json={"prompt": "y"}, headers=headers).status_code == 409


@pytest.mark.parametrize(
    ("path", "sent", "said"),
    [
        ("/jobs", '{"prompt": ', "the body is no JSON"),
        ("/jobs", '{"prompt": "x", "stepz": 1}', "stepz is unknown here"),
        ("/v1/images/generations", '{"prompt": "x", "quality": "hd"}', "quality='hd' has no"),
    ],
)
def test_what_is_wrong_with_a_body_is_said_in_a_sentence(
    ask: httpx.Client, path: str, sent: str, said: str
) -> None:
    answer = ask.post(path, content=sent, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(said)


def test_a_body_of_another_type_is_told_which_one_is_taken(ask: httpx.Client) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = ask.post("/jobs", content='{"prompt": "x"}', headers=form)
    assert "Content-Type: application/json" in answer.json()["error"]["message"]


def test_a_job_that_is_deleted_is_gone_with_its_pictures(ask: httpx.Client) -> None:
    job = done(ask, seed=3)
    url = job["images"][0]["url"]
    assert ask.get(url).headers["content-type"] == "image/png"
    assert ask.get(url, params={"format": "jpeg"}).content[:2] == b"\xff\xd8"
    assert ask.delete(f"/jobs/{job['id']}").status_code == 204
    assert ask.get(url).status_code == ask.get(f"/jobs/{job['id']}").status_code == 404


def test_the_list_of_jobs_goes_back_page_by_page(ask: httpx.Client) -> None:
    made = [done(ask, seed=seed)["id"] for seed in range(3)]
    page = [job["id"] for job in ask.get("/jobs", params={"limit": 2}).json()]
    assert page == made[:0:-1]
    rest = ask.get("/jobs", params={"limit": 1, "before": page[-1]}).json()
    assert [job["id"] for job in rest] == made[:1]


def test_the_reference_needs_no_network_and_names_every_route(ask: httpx.Client) -> None:
    page = ask.get("/docs").text
    assert "://" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page
    for path in ask.get("/openapi.json").json()["paths"]:
        assert path in page
    assert ask.get("/docs/style.css").headers["content-type"].startswith("text/css")


def test_a_server_without_its_page_has_all_the_rest(tmp_path: Path) -> None:
    from sanakit.serve.settings import ServeSettings

    settings = ServeSettings(model="glyph", ui=False)
    with listening(tmp_path, settings=settings) as one, httpx.Client(base_url=one.url) as ask:
        assert ask.get("/").status_code == 404
        assert done(ask)["state"] == "done"
        assert ask.get("/readyz").json() == {"status": "ready"}
        assert 'sanakit_jobs_total{code="",state="done"} 1.0' in ask.get("/metrics").text


def test_health_is_answered_without_a_model_and_readiness_is_not(tmp_path: Path) -> None:
    class Loading(ColorWorker):
        def ready(self) -> None:
            pass

    with listening(tmp_path, Loading()) as one, httpx.Client(base_url=one.url) as ask:
        assert ask.get("/healthz").status_code == 200
        assert (ask.get("/readyz").status_code, ask.get("/capabilities").status_code) == (503, 503)


def test_a_silent_stream_says_that_it_stands_and_none_lasts_forever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answers, "HEARTBEAT", 0.01)
    monkeypatch.setattr(answers, "LONGEST", 0.2)
    ended: list[bool] = []

    async def never() -> AsyncIterator[JobEvent]:
        try:
            await asyncio.Event().wait()
            yield JobEvent("done", {}, 1)
        finally:
            ended.append(True)

    async def whole() -> list[str]:
        return [part async for part in answers.server_sent(never())]

    parts = asyncio.run(asyncio.wait_for(whole(), 10))
    assert set(parts) == {": still here\n\n"}
    assert ended == [True]
