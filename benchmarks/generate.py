"""Time one picture end to end, stage by stage: as a cold process and in a warm one.

A cold run is what a user of the command waits for, Python's start and all imports included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "generate.jsonl"
STAGES = ("load", "text", "denoise", "decode", "total")
PACKAGES = ("sanakit", "torch", "transformers", "numpy")

Run = Mapping[str, float]
Summary = dict[str, dict[str, float]]


def summarise(runs: Sequence[Run]) -> Summary:
    """Lowest, middle and highest value of every key, in the order of the first run."""
    return {
        key: {
            "min": round(min(run[key] for run in runs), 4),
            "median": round(statistics.median(run[key] for run in runs), 4),
            "max": round(max(run[key] for run in runs), 4),
        }
        for key in runs[0]
    }


def stages(seconds: Mapping[str, float]) -> dict[str, float]:
    """The known stages that were measured, in their order."""
    return {name: float(seconds[name]) for name in STAGES if name in seconds}


def cold(settings: argparse.Namespace) -> dict[str, float]:
    """One process that draws one picture; ``process`` is its whole life in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sanakit", "generate", settings.prompt]
        command += ["-o", str(Path(folder) / "picture.png"), "--seed", str(settings.seed)]
        command += ["--model", settings.model, "--json"]
        if settings.steps is not None:
            command += ["--steps", str(settings.steps)]
        started = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        process = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command)} ended with {done.returncode}")
    report = json.loads(done.stdout)
    run = {**stages(report["seconds"]), "process": process}
    if report["peak_memory_mb"] is not None:
        run["peak_memory_mb"] = float(report["peak_memory_mb"])
    return run


def warm(settings: argparse.Namespace) -> list[dict[str, float]]:
    """Pictures drawn one after another by one loaded pipeline, the first one not counted."""
    from sanakit.pipeline.pipeline import Pipeline
    from sanakit.pipeline.request import GenerateRequest

    pipeline = Pipeline.load(settings.model)
    chosen = {} if settings.steps is None else {"num_steps": settings.steps}
    runs = []
    for _ in range(settings.warm + 1):
        request = GenerateRequest(prompt=settings.prompt, seed=settings.seed, **chosen)
        started = time.perf_counter()
        seconds = pipeline.generate(request).seconds
        runs.append(stages({**seconds, "total": time.perf_counter() - started}))
    return runs[1:]


def commit() -> str | None:
    """The commit that is measured, with ``+`` if the tree differs from it; None outside git."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Python and the packages that decide the speed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def cores() -> int:
    """Cores that this process may use, which in a container is fewer than there are."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def table(title: str, summary: Summary) -> str:
    """A summary as aligned text."""
    rows = [f"{title:<16}{'min':>10}{'median':>10}{'max':>10}"]
    for key, values in summary.items():
        places = 0 if key.endswith("_mb") else 3
        cells = (f"{values[name]:>10.{places}f}" for name in ("min", "median", "max"))
        rows.append(f"{key:<16}{''.join(cells)}")
    return "\n".join(rows)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; what is not given is the command's own default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generate", description=__doc__)
    parser.add_argument("--model", default="glyph", help="embedded model or folder")
    parser.add_argument("--prompt", default="a red apple")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, help="solver steps; default: the model's")
    parser.add_argument("--cold", type=int, default=3, help="processes to start; 0: none")
    parser.add_argument("--warm", type=int, default=5, help="pictures to draw warm; 0: none")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure, print two tables, append one line of JSON."""
    settings = parse()
    record: dict[str, Any] = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": versions(),
        "machine": platform.machine(),
        "cores": cores(),
        "load_average": round(os.getloadavg()[0], 2),
        "settings": vars(settings),
    }
    if settings.cold > 0:
        record["cold"] = summarise([cold(settings) for _ in range(settings.cold)])
        print(table("cold, seconds", record["cold"]))
    if settings.warm > 0:
        record["warm"] = summarise(warm(settings))
        print(table("warm, seconds", record["warm"]))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    print(f"appended to {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
