"""The official client against a server that really listens: it reads what it is answered."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from sanakit.serve import answers
from tiny_server import MODEL, ColorWorker, Server, b64, color_of, listening, png, until


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with listening(tmp_path_factory.mktemp("serve")) as one:
        yield one


@pytest.fixture
def server(started: Server) -> Server:
    started.worker.fail_with = None
    return started


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as one:
        yield one


def picture(b64_json: str | None) -> Image.Image:
    assert b64_json is not None
    return Image.open(io.BytesIO(base64.b64decode(b64_json)))


def test_a_prompt_gives_pictures_of_the_seeds_that_are_answered(client: openai.OpenAI) -> None:
    answer = client.images.generate(
        model=MODEL, prompt="a red apple", n=2, size="96x64", extra_body={"seed": 5, "steps": 3}
    )
    assert [one.model_extra for one in answer.data or []] == [{"seed": 5}, {"seed": 6}]
    for one, seed in zip(answer.data or [], (5, 6), strict=True):
        found = picture(one.b64_json)
        assert found.format == "PNG"
        np.testing.assert_array_equal(np.asarray(found), color_of(seed, 64, 96))
    assert answer.size == "96x64"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (3, 2 * 2 * 3)


def test_a_seed_that_is_left_out_is_drawn_and_answered(client: openai.OpenAI) -> None:
    first, second = (client.images.generate(prompt="x").data or [None] for _ in range(2))
    seeds = [(one.model_extra or {})["seed"] for one in (*first, *second) if one]
    assert len(set(seeds)) == 2


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"steps": 2}, {"num_steps": 2}),
        ({"num_inference_steps": 2}, {"num_steps": 2}),
        ({"guidance": 2.5}, {"guidance_scale": 2.5}),
        ({"guidance_scale": 3}, {"guidance_scale": 3.0}),
        ({"cfg_scale": 1.5}, {"guidance_scale": 1.5}),
        ({"negative_prompt": "blur"}, {"negative_prompt": "blur"}),
        ({"seed": 2**40}, {"seed": 2**40}),
    ],
)
def test_settings_beside_the_shape_reach_the_model(
    server: Server, client: openai.OpenAI, said: dict[str, object], meant: dict[str, object]
) -> None:
    client.images.generate(prompt="x", extra_body=said)
    drawn = server.worker.requests[-1]["request"]
    assert {name: drawn[name] for name in meant} == meant


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_pictures_come_in_the_format_asked_for(client: openai.OpenAI, kind: str) -> None:
    answer = client.images.generate(prompt="x", output_format=kind)  # type: ignore[call-overload]
    assert picture(answer.data[0].b64_json).format == kind.upper()
    assert answer.output_format == kind


def test_a_url_is_of_this_server_and_gives_the_picture(
    client: openai.OpenAI, server: Server
) -> None:
    answer = client.images.generate(prompt="x", response_format="url", output_format="webp")
    url = (answer.data or [])[0].url
    assert url is not None
    assert url.startswith(str(client.base_url).removesuffix("/v1/"))
    found = server.http.get(url)
    assert (found.headers["content-type"], found.content[8:12]) == ("image/webp", b"WEBP")


def test_a_stream_shows_previews_then_each_picture(client: openai.OpenAI) -> None:
    stream = client.images.generate(prompt="x", n=2, stream=True, partial_images=2)
    told = list(stream)
    partial = [one for one in told if one.type == "image_generation.partial_image"]
    whole = [one for one in told if one.type == "image_generation.completed"]
    assert len(told) == len(partial) + len(whole)
    assert [one.partial_image_index for one in partial] == [0, 1, 0, 1]
    assert picture(partial[0].b64_json).format == "JPEG"
    assert len(whole) == 2
    assert all(picture(one.b64_json).size == (64, 64) for one in whole)
    assert all(one.usage.total_tokens == 5 for one in whole)


def test_a_failure_in_mid_stream_is_raised_by_the_client(
    server: Server, client: openai.OpenAI
) -> None:
    server.worker.fail_with = {"error": "memory did not suffice", "code": "out_of_memory"}
    stream = client.images.generate(prompt="x", stream=True, partial_images=1)
    with pytest.raises(openai.APIError, match="memory did not suffice"):
        list(stream)


def test_a_failure_is_an_error_of_the_server(server: Server, client: openai.OpenAI) -> None:
    server.worker.fail_with = {"error": "memory did not suffice", "code": "out_of_memory"}
    with pytest.raises(openai.InternalServerError, match="memory did not suffice") as told:
        client.images.generate(prompt="x")
    assert told.value.code == "out_of_memory"


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_an_edit_begins_with_the_picture_and_its_mask(
    server: Server, client: openai.OpenAI, name: str
) -> None:
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
    out = io.BytesIO()
    mask.save(out, "png")
    given = png()
    image = [("a.png", given)] if name == "image[]" else ("a.png", given)
    answer = client.images.edit(
        image=image,  # type: ignore[arg-type]
        mask=("m.png", out.getvalue()),
        prompt="a blue cup",
        extra_body={"strength": 0.5, "seed": 3},
    )
    assert len(answer.data or []) == 1
    edit = server.worker.requests[-1]["request"]["edit"]
    assert edit["strength"] == 0.5
    inputs = server.service.history.inputs
    assert (inputs / edit["image"].removeprefix("sha256:")).read_bytes() == given
    white = Image.open(inputs / edit["mask"].removeprefix("sha256:")).convert("L")
    assert white.crop((0, 0, 32, 64)).getextrema() == (255, 255)
    assert white.crop((32, 0, 64, 64)).getextrema() == (0, 0)


def test_an_edit_streams_too(client: openai.OpenAI) -> None:
    stream = client.images.edit(image=png(), prompt="x", stream=True, partial_images=1)
    assert [one.type for one in stream] == ["image_edit.partial_image", "image_edit.completed"]


def test_no_url_is_fetched(client: openai.OpenAI, server: Server) -> None:
    for place in (f"{server.url}/healthz", "file:///etc/passwd", "http://169.254.169.254/"):
        answer = server.http.post(
            f"{server.url}/v1/images/edits", files={"image": (None, place), "prompt": (None, "x")}
        )
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "url_not_fetched"


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [one.id for one in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("dall-e-2")


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"model": "dall-e-3"}, "model"),
        ({"size": "huge"}, "size"),
        ({"size": "9000x9000"}, "size"),
        ({"size": "4096x4096"}, "size"),
        ({"n": 11}, "n"),
        ({"n": 0}, "n"),
        ({"prompt": "x" * 9000}, "prompt"),
        ({"quality": "high"}, None),
        ({"background": "transparent"}, None),
        ({"style": "natural"}, None),
        ({"output_compression": 40}, None),
        ({"partial_images": 2}, None),
        ({"extra_body": {"sampler": "x"}}, "sampler"),
        ({"extra_body": {"steps": 100000}}, "steps"),
        ({"extra_body": {"steps": 2, "num_inference_steps": 3}}, None),
        ({"extra_body": {"seed": -1}}, "seed"),
        ({"extra_body": {"seed": 1.5}}, "seed"),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    client: openai.OpenAI, asked: dict[str, object], param: str | None
) -> None:
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as told:
        client.images.generate(**{"prompt": "x", **asked})  # type: ignore[call-overload]
    assert told.value.param == param
    assert told.value.type == "invalid_request_error"
    assert len(told.value.message) > 20
    assert "num_steps" not in told.value.message


@pytest.mark.parametrize("quality", ["auto", "standard"])
def test_what_is_usual_is_taken(client: openai.OpenAI, quality: str) -> None:
    client.images.generate(
        prompt="x", quality=quality, background="auto", moderation="auto", user="me"
    )  # type: ignore[call-overload]


def test_a_client_that_leaves_ends_its_job(tmp_path: Path) -> None:
    with listening(tmp_path, ColorWorker(seconds=0.2, steps=50)) as server:
        for stream in (False, True):
            with pytest.raises(httpx.ReadTimeout):
                server.http.post(
                    f"{server.url}/v1/images/generations",
                    json={"prompt": "x", "stream": stream},
                    timeout=0.5 if not stream else httpx.Timeout(5, read=0.5),
                )
            until(lambda: not server.service._running, 3)
        assert [job["state"] for job in server.http.get(f"{server.url}/jobs").json()] == [
            "cancelled"
        ] * 2


def test_a_stream_that_waits_shows_that_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "HEARTBEAT", 0.05)
    with listening(tmp_path, ColorWorker(seconds=0.3, steps=1)) as server:
        place, body = f"{server.url}/v1/images/generations", {"prompt": "x", "stream": True}
        assert ": still here\n\n" in server.http.post(place, json=body).text
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
            (told,) = client.images.generate(prompt="x", stream=True)
    assert told.type == "image_generation.completed"


def test_a_server_that_goes_down_says_so_to_those_who_wait(tmp_path: Path) -> None:
    with listening(tmp_path, ColorWorker(seconds=0.2, steps=50), at_once=1) as server:
        place, body = f"{server.url}/v1/images/generations", {"prompt": "x", "stream": True}
        server.http.post(f"{server.url}/jobs", json={"prompt": "x"}).raise_for_status()
        with server.http.stream("POST", place, json=body) as waiting:
            server.service.draining = True
            for job in server.service._jobs.values():
                server.worker.loop.call_soon_threadsafe(job.news.set)
            said = "".join(waiting.iter_text())
        assert '"code": "draining"' in said
        assert "[DONE]" not in said


def test_a_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    worker = ColorWorker(seconds=0.2, steps=50)
    with listening(tmp_path, worker, queue=1, at_once=1) as server:
        for _ in range(2):
            server.http.post(f"{server.url}/jobs", json={"prompt": "x"}).raise_for_status()
        answer = server.http.post(f"{server.url}/v1/images/generations", json={"prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (429, "rate_limit_error")
    assert int(answer.headers["retry-after"]) >= 1


def test_a_picture_in_base64_is_no_other_than_that_at_its_url(server: Server) -> None:
    body = {"prompt": "x", "seed": 9}
    first = server.http.post(f"{server.url}/v1/images/generations", json=body).json()
    url = server.http.post(
        f"{server.url}/v1/images/generations", json={**body, "response_format": "url"}
    ).json()["data"][0]["url"]
    assert b64(server.http.get(url).content) == first["data"][0]["b64_json"]
