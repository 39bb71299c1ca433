"""`sanakit serve` under many small requests, some of them given up; figures of docs/serving.md.

python -m benchmarks.serve_load --requests 10000

Each request is drawn by the embedded model at 64 x 64; what comes back is compared bit for bit with
what its seed draws alone, in this process. One in ten is given up: cancelled, or its connection is
dropped. Meanwhile /healthz is asked all the time and the memory of both processes is read.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import io
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from statistics import median, quantiles
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

PROMPTS = ("a red apple", "two blue cars", "a green tree", "three stars")
SEEDS, STEPS = range(4), (1, 2)
CONCURRENCY = (1, 4, 16, 48)
WARM = 0.2
"""Share of the requests after which memory is expected to stand still."""


def digest(png: bytes) -> str:
    return hashlib.sha256(np.asarray(Image.open(io.BytesIO(png))).tobytes()).hexdigest()


def alone() -> dict[tuple[str, int, int], str]:
    import torch

    from sanakit.pipeline.pipeline import Pipeline
    from sanakit.pipeline.request import GenerateRequest

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    pipeline, found = Pipeline.load("glyph"), {}
    for prompt in PROMPTS:
        for seed in SEEDS:
            for steps in STEPS:
                request = GenerateRequest(
                    prompt=prompt, seed=seed, num_steps=steps, height=64, width=64
                )
                pixels = pipeline.generate(request).pictures[0].pixels
                found[prompt, seed, steps] = hashlib.sha256(pixels.tobytes()).hexdigest()
    return found


class Load:
    """Clients of one server, what became of their requests, and what was seen meanwhile."""

    def __init__(self, url: str, process: int, wanted: dict[Any, str], aborts: float) -> None:
        self.client = httpx.AsyncClient(
            base_url=url, timeout=120, limits=httpx.Limits(max_connections=200)
        )
        self.wanted, self.aborts = wanted, aborts
        self.process = psutil.Process(process)
        self.ends: Counter[str] = Counter()
        self.errors: list[str] = []
        self.health: list[float] = []
        self.memory: list[tuple[int, float, float]] = []
        self.random = random.Random(0)
        self.done = 0

    async def one(self) -> None:
        key = self.random.choice(list(self.wanted))
        prompt, seed, steps = key
        given_up = self.random.random() < self.aborts
        try:
            if self.random.random() < 0.5:
                end = await self._job(prompt, seed, steps, given_up, self.wanted[key])
            else:
                end = await self._waiting(prompt, seed, steps, given_up, self.wanted[key])
        except Exception as error:
            end = "error"
            self.errors.append(f"{type(error).__name__}: {error}"[:200])
        self.ends[end] += 1
        self.done += 1

    async def _job(self, prompt: str, seed: int, steps: int, given_up: bool, right: str) -> str:
        body = {"prompt": prompt, "seed": seed, "num_steps": steps, "height": 64, "width": 64}
        answer = await self.client.post("/jobs", json=body)
        assert answer.status_code == 202, answer.text
        job = answer.json()["id"]
        if given_up:
            await asyncio.sleep(self.random.random() * 0.2)
            await self.client.post(f"/jobs/{job}/cancel")
            return "cancelled"
        last = ""
        async with self.client.stream("GET", f"/jobs/{job}/events") as events:
            async for line in events.aiter_lines():
                last = line.removeprefix("event: ") if line.startswith("event: ") else last
        assert last == "done", last
        image = await self.client.get(f"/jobs/{job}/images/0")
        return "right" if digest(image.content) == right else "wrong"

    async def _waiting(self, prompt: str, seed: int, steps: int, given_up: bool, right: str) -> str:
        body = {"prompt": prompt, "seed": seed, "steps": steps, "size": "64x64"}
        asking = asyncio.ensure_future(self.client.post("/v1/images/generations", json=body))
        if given_up:
            await asyncio.wait([asking], timeout=self.random.random() * 0.2)
            asking.cancel()
            return "dropped"
        answer = await asking
        assert answer.status_code == 200, answer.text
        png = base64.b64decode(answer.json()["data"][0]["b64_json"])
        return "right" if digest(png) == right else "wrong"

    async def watch(self) -> None:
        async with httpx.AsyncClient(base_url=self.client.base_url, timeout=30) as client:
            while True:
                asked = time.perf_counter()
                await client.get("/healthz")
                self.health.append(time.perf_counter() - asked)
                if len(self.health) % 20 == 0:
                    worker = self.process.children()[0]
                    mine, its = (one.memory_info().rss / 1e6 for one in (self.process, worker))
                    self.memory.append((self.done, mine, its))
                await asyncio.sleep(0.05)

    async def many(self, count: int) -> float:
        watching = asyncio.create_task(self.watch())
        started = time.perf_counter()
        for share, most in enumerate(CONCURRENCY):
            left = iter(range(count * share // 4, count * (share + 1) // 4))

            async def client(left: Any = left) -> None:
                for _ in left:
                    await self.one()

            await asyncio.gather(*(client() for _ in range(most)))
        seconds = time.perf_counter() - started
        watching.cancel()
        await self.client.aclose()
        return seconds


def spread(values: list[float]) -> str:
    return f"{median(values):.0f} MB, {min(values):.0f} to {max(values):.0f}"


def run(count: int, at_once: int, aborts: float, wanted: dict[Any, str]) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sanakit", "serve", "--port", str(port), "--no-ui"]
        command += ["--history", folder, "--history-size", "0.002", "--at-once", str(at_once)]
        server = subprocess.Popen(command)
        url = f"http://127.0.0.1:{port}"
        try:
            while True:
                try:
                    if httpx.get(f"{url}/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
            load = Load(url, server.pid, wanted, aborts)
            seconds = asyncio.run(load.many(count))
        finally:
            server.terminate()
            server.wait(90)
    after = [one for one in load.memory if one[0] > WARM * count] or load.memory
    return {
        "requests": count,
        "at_once": at_once,
        "ends": dict(load.ends),
        "errors": Counter(load.errors).most_common(5),
        "seconds": round(seconds, 1),
        "requests_per_second": round(count / seconds, 2),
        "healthz_ms": {
            "median": round(1000 * median(load.health), 1),
            "p99": round(1000 * quantiles(load.health, n=100)[98], 1),
            "max": round(1000 * max(load.health), 1),
            "asked": len(load.health),
        },
        "memory_after_warm_up": {
            "server": spread([one[1] for one in after]),
            "worker": spread([one[2] for one in after]),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10000)
    parser.add_argument("--aborts", type=float, default=0.1)
    parser.add_argument("--at-once", type=int, nargs="+", default=[4])
    given = parser.parse_args()
    wanted = alone()
    for at_once in given.at_once:
        print(json.dumps(run(given.requests, at_once, given.aborts, wanted)), flush=True)


if __name__ == "__main__":
    main()
