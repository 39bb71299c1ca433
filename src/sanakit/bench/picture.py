"""Time one picture end to end, stage by stage: as a cold process and in a warm one.

A cold run is what a user of the command waits for, Python's start and all imports included.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from sanakit.errors import ConfigError
from sanakit.pipeline.pipeline import Pipeline
from sanakit.pipeline.request import GenerateRequest

STAGES = ("load", "text", "denoise", "decode", "total")
PROMPT = "a red apple"


def cold(model: str, *, steps: int | None) -> dict[str, float]:
    """One process that draws one picture; ``process`` is its whole life in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sanakit", "generate", PROMPT, "--seed", "1", "--json"]
        command += ["-o", str(Path(folder) / "picture.png"), "--model", model, "--offline"]
        command += [] if steps is None else ["--steps", str(steps)]
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        process = time.perf_counter() - started
    if done.returncode:
        raise ConfigError(f"drawing ended with {done.returncode}: {done.stderr.strip()[-400:]}")
    report = json.loads(done.stdout)
    run = {**_stages(report["seconds"]), "process": process}
    if report["peak_memory_mb"] is not None:
        run["peak_memory_mb"] = float(report["peak_memory_mb"])
    return run


def warm(model: str, runs: int, *, steps: int | None) -> list[dict[str, float]]:
    """Pictures drawn one after another by one loaded pipeline, the first one not counted."""
    pipeline = Pipeline.load(model, offline=True)
    found = []
    for _ in range(runs + 1):
        request = GenerateRequest(prompt=PROMPT, seed=1, num_steps=steps)
        started = time.perf_counter()
        seconds = pipeline.generate(request).seconds
        found.append(_stages({**seconds, "total": time.perf_counter() - started}))
    return found[1:]


def _stages(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: float(seconds[name]) for name in STAGES if name in seconds}
