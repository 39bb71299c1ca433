"""What waiting clients sent is on the disk, not in memory, and keeps nobody else out."""

from __future__ import annotations

import gc
import logging
import socket
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from sanakit.pipeline.png import encode_png
from sanakit.serve.limits import Limits
from sanakit.serve.settings import ServeSettings
from tiny_server import MODEL, ColorWorker, b64, listening, png, until

WAITING = 6


def form(picture: bytes) -> httpx.Request:
    files = {"image": ("a.png", picture, "image/png")}
    return httpx.Request("POST", "http://any/v1/images/edits", data={"prompt": "x"}, files=files)


def json(picture: bytes) -> httpx.Request:
    body = {"prompt": "x", "init_images": [b64(picture)]}
    return httpx.Request("POST", "http://any/sdapi/v1/img2img", json=body)


@pytest.mark.parametrize("made", [form, json])
def test_a_client_that_leaves_while_it_sends_is_no_failure_of_the_server(
    tmp_path: Path, made: Callable[[bytes], httpx.Request], caplog: pytest.LogCaptureFixture
) -> None:
    request = made(png())
    head = f"POST {request.url.path} HTTP/1.1\r\nHost: localhost\r\n" + "".join(
        f"{name}: {request.headers[name]}\r\n" for name in ("content-type", "content-length")
    )
    with listening(tmp_path) as server:
        place = server.url.removeprefix("http://").split(":")
        with socket.create_connection((place[0], int(place[1]))) as client:
            client.sendall(head.encode() + b"\r\n" + request.read()[:20])
            time.sleep(0.3)
        time.sleep(0.3)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("made", [form, json])
def test_large_edits_that_wait_are_held_by_nobody_and_let_others_in(
    tmp_path: Path, made: Callable[[bytes], httpx.Request]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1100, 1000, 3), np.uint8)
    request = made(encode_png(noise, {}))
    body, kind = request.read(), request.headers["content-type"]
    settings = ServeSettings(model=MODEL, limits=Limits(all_bodies=2 * len(body)))
    with listening(tmp_path, ColorWorker(seconds=60), settings, at_once=1) as server:

        def post(_: object = None) -> httpx.Response:
            url = f"{server.url}{request.url.path}"
            return httpx.post(url, content=body, headers={"Content-Type": kind}, timeout=60)

        def in_all() -> int:
            return len(server.service._waiting) + len(server.service._running)

        with ThreadPoolExecutor(WAITING + 1) as clients:
            clients.submit(post)
            until(lambda: in_all() == 1)
            gc.collect()
            tracemalloc.start()
            try:
                for count in range(2, WAITING + 2):
                    clients.submit(post)
                    until(lambda count=count: in_all() == count)
                gc.collect()
                held = tracemalloc.get_traced_memory()[0]
            finally:
                tracemalloc.stop()
            assert held < len(body)
            for job in list(server.service._jobs):
                server.http.post(f"{server.url}/jobs/{job}/cancel")
