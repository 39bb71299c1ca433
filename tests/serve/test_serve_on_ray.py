"""The server with its drawing on a local Ray cluster: replicas, one lost under load, a drain."""

from __future__ import annotations

import io
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from command_line import sanakit

# What `pip install "sanakit[serve-ray]"` brings beside Ray itself.
pytestmark = [
    pytest.mark.skipif(not find_spec("ray") or not find_spec("grpc"), reason="no Ray Serve"),
    pytest.mark.slow,
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    call = [sys.executable, "-m", "sanakit", "serve", "--ray", "--replicas", "2", "--at-once", "1"]
    call += ["--port", str(port), "--history", str(tmp_path / "history"), "--no-ui", "--offline"]
    call += ["--queue", "12", "--drain", "110"]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    environment.pop("RAY_ADDRESS", None)
    with (
        open(tmp_path / "log", "w") as log,
        subprocess.Popen(call, stdout=log, stderr=log, text=True, env=environment) as run,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        for _ in range(240):
            assert run.poll() is None, (tmp_path / "log").read_text()
            try:
                if client.get("/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        children = psutil.Process(run.pid).children(recursive=True)
        try:
            yield run, client
        finally:
            run.kill()
            for child in children:
                with suppress(psutil.NoSuchProcess):
                    child.kill()


def replicas(run: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(run.pid).children(recursive=True)
    return [one for one in children if "ServeReplica" in " ".join(one.cmdline())]


def test_a_replica_lost_under_load_costs_no_picture(
    server: tuple[subprocess.Popen[str], httpx.Client], tmp_path: Path
) -> None:
    run, client = server
    assert len(replicas(run)) == 2
    wanted = [{"prompt": "a red apple", "seed": seed, "num_steps": 6} for seed in range(8)]
    jobs = [client.post("/jobs", json=one).json()["id"] for one in wanted]
    while not any(client.get(f"/jobs/{job}").json()["step"] for job in jobs):
        time.sleep(0.1)
    replicas(run)[0].kill()
    for job in jobs:
        while (found := client.get(f"/jobs/{job}").json())["state"] in ("queued", "running"):
            time.sleep(0.2)
        assert found["state"] == "done", found
        assert client.get("/healthz").status_code == 200
    sanakit("generate", "a red apple", "--seed", 5, "--steps", 6, "-o", tmp_path / "5.png", "-q")
    png = client.get(f"/jobs/{jobs[5]}/images/0").content
    assert np.array_equal(Image.open(io.BytesIO(png)), Image.open(tmp_path / "5.png"))

    # More than waits is refused, and what is drawn is finished before the server ends.
    long = {"prompt": "a cat", "seed": 1, "num_steps": 15}
    answers = [client.post("/jobs", json=long) for _ in range(20)]
    refused = [one for one in answers if one.status_code == 429]
    assert refused
    assert int(refused[0].headers["Retry-After"]) > 0
    first = answers[0].json()["id"]
    while client.get(f"/jobs/{first}").json()["state"] == "queued":
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=120) == 0
    with sqlite3.connect(next((tmp_path / "history").glob("history.db"))) as kept:
        [state] = kept.execute("select state from jobs where id = ?", [first]).fetchone()
    assert state == "done"
