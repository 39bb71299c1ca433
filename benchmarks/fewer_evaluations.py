"""What guidance intervals, a step cache and fewer UniPC steps spare and cost, on glyph.

`python -m benchmarks.fewer_evaluations --figure docs/fewer-evaluations.png`: PSNR to the picture
that the default draws from the same noise, over the share of its work in blocks that is left, and
of its seconds. Pictures are drawn one by one, all ways in turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import ROOT
from benchmarks.schedulers import prompts
from sanakit.bench.record import append, facts
from sanakit.pipeline.pipeline import Pipeline
from sanakit.pipeline.request import GenerateRequest

RESULTS = ROOT / "benchmarks" / "results" / "fewer_evaluations.jsonl"
DEFAULT = "default"
WAYS: Mapping[str, list[dict[str, Any]]] = {
    DEFAULT: [{}],
    "guidance interval": [
        {"guidance_interval": interval}
        for interval in ((0.1, 1.0), (0.2, 1.0), (0.3, 1.0), (0.5, 1.0), (0.0, 0.9), (0.2, 0.9))
    ],
    "step cache": [{"step_cache": threshold} for threshold in (0.05, 0.1, 0.15, 0.2, 0.3)],
    "both": [
        {"step_cache": threshold, "guidance_interval": (0.2, 1.0)} for threshold in (0.1, 0.15)
    ],
    "UniPC": [{"solver": "flow-unipc", "num_steps": steps} for steps in (8, 10, 12, 14)],
    "fewer steps": [{"num_steps": steps} for steps in (8, 10, 12, 14)],
}


class Work:
    """Counts rows that went through blocks."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.rows = 0
        for block in pipeline.components.transformer.transformer_blocks:
            block.register_forward_hook(self._count)

    def _count(self, block: Any, given: tuple[Any, ...], made: Any) -> None:
        self.rows += len(made)


def psnr(found: np.ndarray, goal: np.ndarray) -> float:
    squared = (found.astype(float) - goal.astype(float)) ** 2
    return float(10 * np.log10(255**2 / max(float(squared.mean()), 1e-6)))


def measure(pipeline: Pipeline, asked: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Medians over the prompts, of every way."""
    work = Work(pipeline)
    ways = [(name, way) for name, several in WAYS.items() for way in several]
    found: list[list[tuple[float, float, float]]] = [[] for _ in ways]
    pipeline.generate(GenerateRequest(prompt="warm", num_steps=1))
    for seed, prompt in enumerate(asked):
        request = GenerateRequest(prompt=prompt, seed=seed)
        for place, (_, way) in enumerate(ways):
            work.rows = 0
            started = time.perf_counter()
            result = pipeline.generate(replace(request, **way))
            taken = result.seconds["denoise"], time.perf_counter() - started
            if place == 0:
                goal, whole, first = result.pictures[0].pixels, work.rows, taken[0]
            quality = psnr(result.pictures[0].pixels, goal)
            found[place].append((work.rows / whole, taken[0] / first, quality))
    points: dict[str, list[dict[str, Any]]] = {}
    for (name, way), rows in zip(ways, found, strict=True):
        left, spent, quality = (round(median(each), 3) for each in zip(*rows, strict=True))
        point = {"way": way, "work": left, "seconds": spent, "psnr": quality}
        points.setdefault(name, []).append(point)
        print(f"{name:18} {way!s:62} work {left:.2f}, seconds {spent:.2f}, {quality:.1f} dB")
    return points


def plot(points: Mapping[str, list[dict[str, Any]]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(7.2, 4.4), layout="constrained")
    for name, curve in points.items():
        if name == DEFAULT:
            continue
        places = [point["work"] for point in curve], [point["psnr"] for point in curve]
        panel.plot(*places, marker="o", ms=4, lw=1, label=name)
        for point in curve:
            told = "/".join(
                "-".join(f"{each:g}" for each in value) if isinstance(value, tuple) else f"{value}"
                for key, value in point["way"].items()
                if key != "solver"
            )
            panel.annotate(
                told, (point["work"], point["psnr"]), (4, 3), textcoords="offset points", size=7
            )
    panel.set_ylim(20, 56)
    panel.set_xlabel("share of the default's work in blocks")
    panel.set_ylabel("PSNR to the default's picture, dB")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def parse() -> argparse.Namespace:
    description = {"prog": "python -m benchmarks.fewer_evaluations", "description": __doc__}
    parser = argparse.ArgumentParser(**description)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--figure", type=Path, help="PNG to draw")
    return parser.parse_args()


def main() -> None:
    """Draw all prompts in every way, print a table, append one line of JSON."""
    settings = parse()
    points = measure(Pipeline.load("glyph"), prompts(settings.prompts))
    record = {
        **facts(("sanakit", "torch")),
        "settings": {"prompts": settings.prompts},
        "points": points,
    }
    append(RESULTS, record)
    if settings.figure:
        plot(points, settings.figure)


if __name__ == "__main__":
    main()
