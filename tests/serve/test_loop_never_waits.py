"""/healthz is answered while pictures are read, written and made, since no loop does any of it."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tiny_server import ColorWorker, Server, b64, listening, png

CLEAR = png(mode="RGBA", color=(9, 9, 9, 0))
HOLDS = 5.0
"""Seconds that slow work takes unless /healthz is answered meanwhile."""


def drawn(server: Server, **values: Any) -> httpx.Response:
    """Have a drawing made, and give its first picture as a JPEG."""
    url = server.http.post(f"{server.url}/jobs", json={"prompt": "x", "seed": 1, **values}).json()
    server.http.get(f"{server.url}/jobs/{url['id']}/events")
    return server.http.get(f"{server.url}/jobs/{url['id']}/images/0?format=jpeg")


def edited(server: Server) -> httpx.Response:
    files = {"image": ("a.png", png(), "image/png"), "mask": ("m.png", CLEAR, "image/png")}
    return server.http.post(f"{server.url}/v1/images/edits", data={"prompt": "x"}, files=files)


def a1111(name: str, **body: Any) -> Callable[[Server], httpx.Response]:
    return lambda server: server.http.post(f"{server.url}/sdapi/v1/{name}", json=body)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with listening(tmp_path_factory.mktemp("loop"), ColorWorker(), fit=lambda png: True) as one:
        yield one


@pytest.mark.parametrize(
    ("work", "asked"),
    [
        ("sanakit.serve.history:History.add", drawn),
        ("sanakit.serve.history:History.update", drawn),
        ("sanakit.serve.history:History.job", lambda s: s.http.get(f"{s.url}/jobs/{'0' * 32}")),
        ("sanakit.serve.history:History.recent", lambda s: s.http.get(f"{s.url}/jobs")),
        ("sanakit.serve.jobs:JobService._keep", drawn),
        ("pathlib:Path.read_bytes", drawn),
        ("sanakit.serve.jobs:_as", drawn),
        ("sanakit.serve.pictures:decode", lambda s: drawn(s, edit={"image": b64(png())})),
        (
            "sanakit.serve.history:History.hold_input",
            lambda s: drawn(s, edit={"image": b64(png())}),
        ),
        (
            "sanakit.serve.app:read_settings",
            lambda s: s.http.post(f"{s.url}/settings", content=b""),
        ),
        ("sanakit.serve.a1111:read_settings", a1111("png-info", image=b64(png()))),
        ("sanakit.serve.a1111:read_settings", a1111("txt2img", prompt="x")),
        (
            "sanakit.serve.a1111:inverted",
            a1111("img2img", init_images=[b64(png())], mask=b64(png()), inpainting_mask_invert=1),
        ),
        ("sanakit.serve.openai:mask_of_alpha", edited),
    ],
)
def test_health_is_answered_while_something_slow_is_done(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    work: str,
    asked: Callable[[Server], httpx.Response],
) -> None:
    begun, answered = threading.Event(), threading.Event()
    in_time: list[bool] = []
    module, _, names = work.partition(":")
    owner: Any = importlib.import_module(module)
    *inner, name = names.split(".")
    for one in inner:
        owner = getattr(owner, one)
    original = getattr(owner, name)

    def slow(*given: Any, **named: Any) -> Any:
        if not begun.is_set():
            begun.set()
            in_time.append(answered.wait(HOLDS))
        return original(*given, **named)

    monkeypatch.setattr(owner, name, slow)
    with ThreadPoolExecutor(1) as client:
        coming = client.submit(asked, server)
        assert begun.wait(HOLDS)
        assert httpx.get(f"{server.url}/healthz", timeout=30).status_code == 200
        answered.set()
        assert coming.result(30).status_code < 500
    assert in_time == [True]
