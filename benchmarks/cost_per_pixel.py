"""Seconds a pixel of the transformer's blocks from 512 to 4096 px, beside softmax attention.

`python -m benchmarks.cost_per_pixel --figure docs/cost-per-pixel.png`: two blocks of the 0.6B width
with random weights, a guided step's two rows, scaled to 28 blocks. The other curve is the same
block with `F.scaled_dot_product_attention` in the place of linear self-attention; at the largest
size one row of one block is run, and scaled.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import ROOT
from benchmarks.transformer_step import PIXELS, PLACES, model_of
from sanakit.bench.record import append, facts
from sanakit.models.config import TRANSFORMERS
from sanakit.nn import linear_attention
from sanakit.nn.processor import tune_process

RESULTS = ROOT / "benchmarks" / "results" / "cost_per_pixel.jsonl"
PRESET = "sana-0.6b"
SIZES = (512, 1024, 2048, 4096)
LAYERS = 28
LINEAR = linear_attention.trained_linear_attention


def softmax(q: Tensor, k: Tensor, v: Tensor, *, eps: float = 0.0) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def seconds(size: int, *, attention: object, layers: int, rows: int, rounds: int) -> float:
    """Of so many blocks for so many rows, the middle of the rounds, scaled to a whole step."""
    linear_attention.trained_linear_attention = attention  # type: ignore[assignment]
    config = replace(TRANSFORMERS[PRESET], num_layers=layers)
    model, side = model_of(config, torch.float32), size // PIXELS
    x = torch.randn(rows, side * side, config.width)
    time_rows = torch.randn(rows, 6 * config.width)
    text = model.prepare_text(torch.randn(rows, PLACES, config.caption_channels))
    taken = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        model._through_blocks(x, text, None, time_rows, (side, side))
        taken.append(time.perf_counter() - started)
    return median(taken[1:] or taken) * LAYERS / layers * 2 / rows


def plot(curves: dict[str, dict[int, float]], path: Path) -> None:
    """Microseconds a pixel over the side of a picture, one line an attention."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(6.2, 4), layout="constrained")
    for name, curve in curves.items():
        values = [1e6 * taken / size**2 for size, taken in curve.items()]
        panel.plot(list(curve), values, marker="o", label=name)
        for size, value in zip(curve, values, strict=True):
            panel.annotate(f"{value:.0f}", (size, value), (0, 6), textcoords="offset points")
    panel.set_xscale("log", base=2)
    panel.set_xticks(list(SIZES), [str(size) for size in SIZES])
    panel.set_ylim(bottom=0)
    panel.set_xlabel("side of the picture, px")
    panel.set_title("microseconds a pixel and guided step, 0.6B in fp32", fontsize=10)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost_per_pixel", description=__doc__
    )
    parser.add_argument("--figure", type=Path, help="PNG to draw")
    parser.add_argument("--rounds", type=int, default=5, help="of the smallest size")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    """Measure both attentions at all sizes, append one line of JSON, draw."""
    settings = parse()
    torch.manual_seed(0)
    tune_process()  # as our commands do
    curves: dict[str, dict[int, float]] = {"linear attention": {}, "softmax attention": {}}
    for size in SIZES:
        rounds = max(1, settings.rounds * SIZES[0] // size)
        whole = {"layers": 2, "rows": 2, "rounds": rounds}
        part = {"layers": 1, "rows": 1, "rounds": 0}
        curves["linear attention"][size] = seconds(size, attention=LINEAR, **whole)
        fits = whole if size < SIZES[-1] else part
        curves["softmax attention"][size] = seconds(size, attention=softmax, **fits)
        for name, curve in curves.items():
            print(
                f"{size:5} {name:18} {curve[size]:9.2f} s, {1e6 * curve[size] / size**2:7.2f} us/px"
            )
    per_pixel = [taken / size**2 for size, taken in curves["linear attention"].items()]
    print(f"linear attention: highest over lowest {max(per_pixel) / min(per_pixel):.3f}")
    record = {
        **facts(("sanakit", "torch")),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "settings": {"rounds": settings.rounds, "preset": PRESET},
        "seconds": curves,
    }
    append(RESULTS, record)
    if settings.figure:
        plot(curves, settings.figure)


if __name__ == "__main__":
    main()
