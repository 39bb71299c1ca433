"""The figures of docs/research/claims.md as Markdown, from the results alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from recipes.glyph.research.attention_time import NAME as TIME
from recipes.glyph.research.autoencoders import runs as autoencoder_runs
from recipes.glyph.research.compression import SYSTEMS
from recipes.glyph.research.figures import Difference, held, paired
from recipes.glyph.research.sampling import apart
from recipes.glyph.research.short_run import is_done, read
from recipes.glyph.research.solvers import GUIDED, STEPS
from sanakit.evaluate.figures import bootstrap

Row = tuple[str, str, str]
"""What is said, a run, and the one it is compared with."""
BLOCKS: Sequence[Row] = (
    ("softmax attention, Mix-FFN", "block-softmax-mix", "block-linear-mix"),
    ("linear, plain FFN + positions", "block-linear-plain", "block-linear-mix"),
    ("softmax, plain FFN + positions", "block-softmax-plain", "block-linear-mix"),
    ("linear, Mix-FFN + positions", "block-linear-mix-positions", "block-linear-mix"),
    ("another seed", "block-linear-mix-seed-1", "block-linear-mix"),
)
WORDS: Sequence[Row] = (
    ("always the plain caption", "words-plain", "words-anew"),
    ("instruction, encoder frozen", "instruction-frozen", "words-anew"),
    ("instruction, encoder tuned*", "instruction-tuned", "tuned"),
    ("middle layer", "layer-middle", "words-anew"),
    ("input embeddings", "layer-embeddings", "words-anew"),
    ("encoder tuned along", "tuned", "words-anew"),
    ("another seed", "words-anew-seed-1", "words-anew"),
)
LEVELS: Sequence[Row] = (
    ("shift 0.5", "levels-shift-0.5", "block-linear-mix"),
    ("shift 3", "levels-shift-3", "block-linear-mix"),
    ("uniform", "levels-uniform", "block-linear-mix"),
)
AGAIN: Sequence[Row] = (
    ("softmax attention, Mix-FFN", "block-softmax-mix-seed-1", "block-linear-mix-seed-1"),
    ("always the plain caption", "words-plain-seed-1", "words-anew-seed-1"),
    ("instruction, encoder frozen", "instruction-frozen-seed-1", "words-anew-seed-1"),
    ("middle layer", "layer-middle-seed-1", "words-anew-seed-1"),
    ("encoder tuned along", "tuned-seed-1", "words-anew-seed-1"),
)
"""The same with another seed, of weights, data and noise."""
THIRDS = ("near the data", "middle", "near the noise")


def differences(
    rows: Sequence[Row], results: Path, *, third: int | None = None
) -> list[tuple[str, Difference]]:
    """Of those that are finished."""
    return [
        (
            label,
            paired(
                held(one, third=third, results=results), held(base, third=third, results=results)
            ),
        )
        for label, one, base in rows
        if is_done(one, results) and is_done(base, results)
    ]


def tables(results: Path) -> Iterator[str]:
    """Lines of Markdown; what is not finished is left out."""
    yield "| variant | held error | difference (95 %) | near data | middle | near noise |"
    yield "|---|---|---|---|---|---|"
    for row in (*BLOCKS, *WORDS, *LEVELS, *AGAIN):
        if not differences([row], results):
            continue
        found = differences([row], results)[0][1]
        parts = [differences([row], results, third=third)[0][1] for third in (0, 1, 2)]
        own = held(row[1], results=results).mean()
        told = " | ".join(f"{part.relative:+.1%}" for part in parts)
        yield f"| {row[0]} | {own:.4f} | {found} | {told} |"
    pair = "words-plain", "words-anew"
    if all(is_done(name, results) for name in pair):
        asked = [held(name, key="held_plain", results=results) for name in pair]
        yield f"| {pair[0]}, asked plainly | {asked[0].mean():.4f} | {paired(*asked)} | | | |"
    yield ""
    for name in {row[1] for row in WORDS} | {"words-anew"}:
        if is_done(name, results):
            null, own = (held(name, key=key, results=results) for key in ("held_null", "held"))
            yield f"- {name}: the null prompt instead of the caption {paired(null, own)}"
    if is_done("words-anew", results):
        run = read("words-anew", results)
        for key in ("before_decay", "after_decay"):
            base = run[key]["0"]
            for length in sorted(map(int, run[key])):
                yield f"- {key}, half-life {length}: {paired(run[key][str(length)], base)}"
    if is_done(TIME, results):
        for row in read(TIME, results)["blocks"]:
            linear, softmax = (1000 * row[kind]["seconds"] for kind in ("linear", "softmax"))
            times = f"{linear:.2f} ms, {softmax:.2f} ms, x{softmax / linear:.2f}"
            yield f"- {row['tokens']} tokens: {times}"
    for name in autoencoder_runs():
        if is_done(name, results):
            run = read(name, results)
            low, high = bootstrap(run["psnr"])
            mean, work = np.mean(run["psnr"]), run["operations"] / 1e9
            yield (
                f"- {name}: {mean:.2f} dB ({low:.2f} to {high:.2f}), {work:.2f} Gop, "
                f"{run['parameters'] / 1e6:.2f} M, {run['samples']} samples, {run['cpu_seconds']} s"
            )
    wide = [name for name in autoencoder_runs() if "f32" in name and is_done(name, results)]
    for one, other in pairwise(wide):
        values = (read(name, results)["psnr"] for name in (other, one))
        yield f"- {other} against {one}: {paired(*values)} dB"
    if is_done("solvers-distance", results):
        for name, way in read("solvers-distance", results)["ways"].items():
            low, high = bootstrap(way["rms"])
            yield f"- {name}: RMS {np.mean(way['rms']):.4f} ({low:.4f} to {high:.4f})"
    base = f"fd-{STEPS[-1].name}"
    for way in (*STEPS, *GUIDED):
        if is_done(f"fd-{way.name}", results) and is_done(base, results):
            run = read(f"fd-{way.name}", results)
            value, low, high = apart(run, read(base, results))
            yield f"- {way.name}: FD {run['fd']:.1f}, {value:+.1f} ({low:+.1f} to {high:+.1f})"
    if is_done("fd-real", results):
        yield f"- real: FD {read('fd-real', results)['fd']:.1f}"
    for name in SYSTEMS:
        if is_done(name, results):
            run = read(name, results)
            told = ", ".join(
                f"{key} {run[key]['fd']:.1f} (±{1.96 * np.std(run[key]['resampled']):.1f})"
                for key in ("real", "restored", "drawn", "drawn_against_restored")
            )
            yield (
                f"- {name}: {run['samples']} samples of {run['tokens']} tokens, "
                f"{run['cpu_seconds']} s: {told}"
            )
