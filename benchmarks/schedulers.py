"""Speed against quality of the schedulers, on the embedded model; draws the figures of the docs.

`python -m benchmarks.schedulers --figures docs`: quality is the distance to one reference of many
steps, from the same noise. Seconds are ratios of runs taken in turn, for a busy machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from benchmarks import ROOT
from sanakit import SanaPipeline
from sanakit.bench.record import append, facts
from sanakit.pipeline.pixels import to_pixels
from sanakit.pipeline.schedulers import NAMED, scheduler_named

RESULTS = ROOT / "benchmarks" / "results" / "schedulers.jsonl"
PROMPTS = ROOT / "benchmarks" / "prompts"
REFERENCE = "flow-dpm-solver"
STEPS = (4, 6, 8, 10, 14, 20, 28, 50)
SHOWN_STEPS = (4, 8, 14, 20)
SHOWN_SOLVERS = ("flow-dpm-solver", "flow-unipc", "flow-heun", "flow-euler")
SHOWN_PROMPTS = ("a cat face", "a blue car")
TICKS = (4, 6, 8, 10, 14, 20, 28, 39, 55, 99)
DISTANCES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
Curve = list[dict[str, float]]


def prompts(count: int) -> list[str]:
    """The fixed prompts: named things first, then compositions never met in training."""
    files = (PROMPTS / "named.txt", PROMPTS / "unseen.txt")
    lines = [line for file in files for line in file.read_text().splitlines() if line]
    return lines[:count]


def draw(pipe: SanaPipeline, solver: str, steps: int, asked: list[str]) -> torch.Tensor:
    """Latents of all prompts, from the same noise for every solver and number of steps."""
    shift = pipe.scheduler.flow_shift
    pipe.scheduler = scheduler_named(solver, shift)
    return pipe(
        asked,
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(asked))],
        height=pipe.core.default_size,
        width=pipe.core.default_size,
        output_type="latent",
        # A callback makes one batch of all prompts, which is all it is here for.
        callback_on_step_end=lambda pipe, step, timestep, tensors: {},
    ).images


def pictures(pipe: SanaPipeline, latents: torch.Tensor) -> np.ndarray:
    return np.asarray(to_pixels(pipe.core.decode(latents)))


def evaluations(solver: str, steps: int) -> int:
    """How often the network is asked."""
    return 2 * steps - 1 if solver == "flow-heun" else steps


def quality(found: torch.Tensor, pixels: np.ndarray, best: torch.Tensor, goal: np.ndarray) -> Any:
    """Relative distance of latents, and PSNR of pixels in dB: medians over the prompts."""
    apart = (found - best).flatten(1).norm(dim=1) / best.flatten(1).norm(dim=1)
    squared = (pixels.astype(float) - goal.astype(float)) ** 2
    psnr = 10 * np.log10(255**2 / squared.mean(axis=(1, 2, 3)).clip(1e-6))
    return {"distance": round(float(apart.median()), 5), "psnr": round(float(np.median(psnr)), 2)}


def seconds(pipe: SanaPipeline, steps: int, repeats: int) -> dict[str, float]:
    """Time of one picture by each solver over that of the default, the lowest of runs in turn."""
    best = dict.fromkeys(NAMED, float("inf"))
    for _ in range(repeats):
        for solver in best:
            started = time.perf_counter()
            draw(pipe, solver, steps, ["a red apple"])
            best[solver] = min(best[solver], time.perf_counter() - started)
    return {solver: round(value / best[REFERENCE], 3) for solver, value in best.items()}


def plot(curves: Mapping[str, Curve], path: Path) -> None:
    """Quality over evaluations of the network, one line a solver."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    titles = {"psnr": "pixels: PSNR to the reference, dB", "distance": "latent: relative distance"}
    for panel, (key, title) in zip(panels, titles.items(), strict=True):
        for solver, curve in curves.items():
            places = [point["evaluations"] for point in curve]
            panel.plot(places, [point[key] for point in curve], marker="o", ms=3.5, label=solver)
        panel.set_xscale("log")
        most = max(point["evaluations"] for curve in curves.values() for point in curve)
        ticks = [tick for tick in TICKS if tick <= most]
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.set_xlabel("evaluations of the network a picture")
        panel.minorticks_off()
        panel.set_title(title, fontsize=10)
        panel.grid(alpha=0.3)
    panels[1].set_yscale("log")
    panels[1].set_yticks(DISTANCES, [f"{distance:g}" for distance in DISTANCES])
    panels[1].minorticks_off()
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def gallery(pipe: SanaPipeline, reference_steps: int, path: Path) -> None:
    """Two prompts by four solvers at four numbers of steps, and by the reference."""
    asked = list(SHOWN_PROMPTS)
    goal = pictures(pipe, draw(pipe, REFERENCE, reference_steps, asked))
    rows: list[tuple[str, list[np.ndarray]]] = []
    drawn = {
        (solver, steps): pictures(pipe, draw(pipe, solver, steps, asked))
        for solver in SHOWN_SOLVERS
        for steps in SHOWN_STEPS
    }
    for which in range(len(asked)):
        for solver in SHOWN_SOLVERS:
            row = [drawn[solver, steps][which] for steps in SHOWN_STEPS]
            rows.append((solver, [*row, goal[which]]))
    sheet(rows, [f"{steps} steps" for steps in SHOWN_STEPS] + ["reference"], path)


def sheet(
    rows: Sequence[tuple[str, Sequence[np.ndarray]]], columns: Sequence[str], path: Path
) -> None:
    """Rows of pictures, each with its solver's name, under the names of the columns."""
    side, left, top, gap = rows[0][1][0].shape[0], 118, 20, 4
    size = (left + len(columns) * (side + gap), top + len(rows) * (side + gap))
    page = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for column, name in enumerate(columns):
        pen.text((left + column * (side + gap) + 4, 3), name, "black", font)
    for row, (name, shown) in enumerate(rows):
        pen.text((4, top + row * (side + gap) + side // 2), name, "black", font)
        for column, picture in enumerate(shown):
            place = (left + column * (side + gap), top + row * (side + gap))
            page.paste(Image.fromarray(picture), place)
    page.quantize(256).save(path, optimize=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.schedulers", description=__doc__)
    parser.add_argument("--model", default="glyph", help="embedded model or folder")
    parser.add_argument("--prompts", type=int, default=16, help="how many of the fixed prompts")
    parser.add_argument("--reference-steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each solver")
    parser.add_argument("--figures", type=Path, help="folder for the two figures; none by default")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure, print a table, append one line of JSON, draw."""
    settings = parse()
    pipe = SanaPipeline.from_pretrained(settings.model)
    asked = prompts(settings.prompts)
    best = draw(pipe, REFERENCE, settings.reference_steps, asked)
    goal = pictures(pipe, best)
    curves: dict[str, Curve] = {}
    for solver in NAMED:
        curves[solver] = []
        for steps in settings.steps:
            latents = draw(pipe, solver, steps, asked)
            pixels = pictures(pipe, latents)
            point = {"steps": steps, "evaluations": evaluations(solver, steps)}
            curves[solver].append(point | quality(latents, pixels, best, goal))
        cells = (f"{point['steps']}: {point['psnr']:.1f} dB" for point in curves[solver])
        print(f"{solver:<18}", *cells, sep="  ", flush=True)
    ratios = seconds(pipe, 20, settings.repeats)
    print("seconds, over the default's:", ratios)
    record = {
        **facts(),
        "settings": {key: str(value) for key, value in vars(settings).items()},
        "curves": curves,
        "seconds_over_default": ratios,
    }
    append(RESULTS, record)
    if settings.figures:
        plot(curves, settings.figures / "schedulers.png")
        gallery(pipe, settings.reference_steps, settings.figures / "schedulers-pictures.png")


if __name__ == "__main__":
    main()
