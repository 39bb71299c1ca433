"""The plots of docs/research/claims.md, from the results alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recipes.glyph.research.attention_time import NAME as TIME
from recipes.glyph.research.figures import Difference
from recipes.glyph.research.sampling import apart
from recipes.glyph.research.short_run import is_done, read
from recipes.glyph.research.solvers import GUIDED, STEPS, Way
from recipes.glyph.research.tables import AGAIN, BLOCKS, LEVELS, THIRDS, WORDS, differences
from sanakit.evaluate.figures import bootstrap

BLUE, RED, GREEN, PLUM, INK = "#4a6fa5", "#c8553d", "#588157", "#8e6c8a", "#333333"
DPI = 90
DISTANCES = (0.02, 0.05, 0.1, 0.2)


def forest(
    panel: Axes,
    rows: Sequence[tuple[str, Difference]],
    again: Sequence[tuple[str, Difference]],
    *,
    title: str,
) -> None:
    """Differences with their intervals, one below the other; left is better.

    ``again`` are those of another seed, shown as rings.
    """
    places = {label: place for place, (label, _) in enumerate(reversed(rows))}
    for label, found in again:
        if label in places:
            at, scale = places[label] - 0.25, 100 * found.relative / found.value
            panel.plot([found.low * scale, found.high * scale], [at, at], color="#999999", lw=1)
            panel.plot([100 * found.relative], [at], "o", color="#777777", mfc="white", ms=5)
    for place, (label, found) in enumerate(reversed(rows)):
        scale = 100 * found.relative / found.value if found.value else 0.0
        colour = INK if label == "another seed" else GREEN if found.high < 0 else RED
        colour = colour if found.told_apart else PLUM
        panel.plot([found.low * scale, found.high * scale], [place, place], color=colour, lw=2)
        panel.plot([100 * found.relative], [place], "o", color=colour, ms=5)
    panel.axvline(0, color=INK, lw=0.8)
    panel.set_yticks(range(len(rows)), [label for label, _ in reversed(rows)], fontsize=8)
    panel.set_ylim(-0.6, len(rows) - 0.4)
    panel.set_xlabel("held-out error against the base, % (left is better)", fontsize=8)
    panel.set_title(title, fontsize=9)
    panel.grid(alpha=0.3, axis="x")
    panel.tick_params(labelsize=8)


def attention(results: Path) -> Figure:
    """Time over tokens, and quality of blocks."""
    figure, panels = pyplot.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
    if is_done(TIME, results):
        rows = read(TIME, results)["blocks"]
        for kind, colour in (("linear", BLUE), ("softmax", RED)):
            middle = np.array([1000 * row[kind]["seconds"] for row in rows])
            ends = [[1000 * row[kind][end] for row in rows] for end in ("least", "most")]
            errors = [middle - ends[0], ends[1] - middle]
            tokens = [row["tokens"] for row in rows]
            panels[0].errorbar(
                tokens, middle, yerr=errors, fmt="o-", ms=4, color=colour, label=kind
            )
        panels[0].set_xscale("log", base=2)
        panels[0].set_yscale("log")
        names = [f"{row['tokens']:,}\n{32 * round(row['tokens'] ** 0.5)} px" for row in rows]
        panels[0].set_xticks([row["tokens"] for row in rows], names, fontsize=8)
        panels[0].set_ylabel("ms a block, one thread", fontsize=8)
        panels[0].set_title("forward pass of a block, 256 wide", fontsize=9)
        panels[0].legend(fontsize=8)
        panels[0].grid(alpha=0.3)
    again = differences(AGAIN, results)
    forest(
        panels[1],
        differences(BLOCKS, results),
        again,
        title="64 tokens: against linear + Mix-FFN; ring: seed 1",
    )
    return figure


def words(results: Path) -> Figure:
    """Captions, instruction, layers."""
    figure, panel = pyplot.subplots(figsize=(6.6, 3.2), layout="constrained")
    title = "against frozen last layer, captions anew (* against tuned)"
    forest(panel, differences(WORDS, results), differences(AGAIN, results), title=title)
    return figure


def levels(results: Path) -> Figure:
    """Noise levels by thirds of the path, and lengths of the average."""
    figure, panels = pyplot.subplots(1, 2, figsize=(9.5, 3.3), layout="constrained")
    rows = [row for row in LEVELS if is_done(row[1], results)]
    panels[0].axhline(0, color=INK, lw=0.8)
    for number, (label, *_) in enumerate(rows):
        found = [
            differences([rows[number]], results, third=third)[0][1] for third in (0, 1, 2, None)
        ]
        middle = np.array([100 * each.relative for each in found])
        scales = [100 * each.relative / each.value for each in found]
        ends = [
            [getattr(each, end) * scale for each, scale in zip(found, scales, strict=True)]
            for end in ("low", "high")
        ]
        colour = (BLUE, RED, GREEN)[number]
        places = np.arange(4) + 0.12 * (number - 1)
        errors = [middle - ends[0], ends[1] - middle]
        panels[0].errorbar(places, middle, yerr=errors, fmt="o", ms=4, color=colour, label=label)
    panels[0].set_xticks(range(4), [*THIRDS, "all levels"], fontsize=8)
    panels[0].set_ylabel("held-out error, %", fontsize=8)
    panels[0].set_title("against logit-normal levels, shift 1 (lower is better)", fontsize=9)
    panels[0].legend(fontsize=8)
    if is_done("words-anew", results):
        run = read("words-anew", results)
        for key, colour, label in (
            ("before_decay", RED, "at the full rate, 60 % of the run"),
            ("after_decay", BLUE, "at the end, after the decay"),
        ):
            lengths = sorted(int(length) for length in run[key])
            means = [float(np.mean(run[key][str(length)])) for length in lengths]
            panels[1].plot(range(len(lengths)), means, "o-", ms=4, color=colour, label=label)
        panels[1].set_xticks(
            range(len(lengths)), ["none", *(f"{length:,}" for length in lengths[1:])], fontsize=8
        )
        panels[1].set_xlabel("half-life of the average, samples", fontsize=8)
        panels[1].set_ylabel("held-out error", fontsize=8)
        panels[1].set_title("length of the average", fontsize=9)
        panels[1].legend(fontsize=8)
    for panel in panels:
        panel.grid(alpha=0.3, axis="y")
        panel.tick_params(labelsize=8)
    return figure


def solvers(results: Path) -> Figure:
    """Distances over steps, FD over steps, FD over guidance."""
    figure, panels = pyplot.subplots(1, 3, figsize=(11, 3.3), layout="constrained")
    kinds = (("flow-dpm-solver", BLUE, "Flow-DPM-Solver"), ("flow-euler", RED, "Euler"))
    if is_done("solvers-distance", results):
        ways = read("solvers-distance", results)["ways"].values()
        for solver, colour, label in kinds:
            some = [way for way in ways if way["solver"] == solver]
            steps = [way["steps"] for way in some]
            middle = np.array([np.mean(way["rms"]) for way in some])
            ends = np.array([bootstrap(way["rms"]) for way in some]).T
            errors = [middle - ends[0], ends[1] - middle]
            panels[0].errorbar(
                steps, middle, yerr=errors, fmt="o-", ms=4, color=colour, label=label
            )
        panels[0].set_xscale("log")
        panels[0].set_yscale("log")
        ticks = sorted({way["steps"] for way in ways})
        panels[0].set_xticks(ticks, [str(tick) for tick in ticks])
        panels[0].set_yticks(DISTANCES, [f"{each:g}" for each in DISTANCES])
        panels[0].minorticks_off()
        panels[0].set_xlabel("steps", fontsize=8)
        panels[0].set_title("RMS distance to 200 steps, latents", fontsize=9)
    for solver, colour, label in kinds:
        some = [way for way in STEPS if way.solver == solver]
        fd_panel(panels[1], some, [way.steps for way in some], colour, label, results)
    panels[1].set_xlabel("steps", fontsize=8)
    panels[1].set_title("FD-EffNetLite0 minus that of Euler, 50 steps", fontsize=9)
    scales = sorted(
        (w for w in (*GUIDED, Way(steps=14)) if w.interval == (0, 1)), key=lambda w: w.scale
    )
    fd_panel(panels[2], scales, [way.scale for way in scales], BLUE, "at all levels", results)
    parts = [way for way in GUIDED if way.interval != (0, 1)]
    for way, colour in zip(parts, (RED, GREEN, PLUM), strict=False):
        low, high = way.interval
        label = f"sigma {low:g} to {high:g}"
        fd_panel(panels[2], [way], [way.scale + 0.15], colour, label, results)
    panels[2].set_xlabel("guidance scale (14 steps)", fontsize=8)
    panels[2].set_title("FD-EffNetLite0 minus that of Euler, 50 steps", fontsize=9)
    for panel in panels:
        if panel.lines:
            panel.legend(fontsize=8)
        panel.grid(alpha=0.3)
        panel.tick_params(labelsize=8)
    return figure


def fd_panel(
    panel: Axes,
    ways: Sequence[Way],
    places: Sequence[float],
    colour: str,
    label: str,
    results: Path,
) -> None:
    """Differences of distances of the same prompts and noise to those of the finest way."""
    base = f"fd-{STEPS[-1].name}"
    done = [
        (place, apart(read(f"fd-{way.name}", results), read(base, results)))
        for place, way in zip(places, ways, strict=True)
        if is_done(f"fd-{way.name}", results) and is_done(base, results)
    ]
    if not done:
        return
    middle = np.array([found[0] for _, found in done])
    errors = [[v - low for _, (v, low, _) in done], [high - v for _, (v, _, high) in done]]
    at = [place for place, _ in done]
    panel.errorbar(at, middle, yerr=errors, fmt="o-", ms=4, color=colour, label=label)


def compression(results: Path) -> Figure:
    """Autoencoders by width and factor, and what is drawn in their latents."""
    figure, panels = pyplot.subplots(1, 2, figsize=(9.5, 3.2), layout="constrained")
    names = [f"autoencoder-{kind}" for kind in ("f32-8", "f32-12", "f32-16", "f8-12")]
    for place, name in enumerate(names):
        if is_done(name, results):
            values = read(name, results)["psnr"]
            ends = bootstrap(values)
            colour = RED if "f8" in name else BLUE
            panels[0].plot([place, place], ends, color=colour, lw=2)
            panels[0].plot([place], [np.mean(values)], "o", color=colour)
    labels = ["f32\n8 wide", "f32\n12 wide", "f32\n16 wide", "f8\n12 wide"]
    panels[0].set_xticks(range(4), labels, fontsize=8)
    panels[0].set_ylabel("PSNR, dB", fontsize=8)
    panels[0].set_title("autoencoders after 1,600 pictures, held-out concepts", fontsize=9)
    systems = ("system-f32p1", "system-f8p2", "system-f8p1", "system-f32p1-glyph")
    shown: list[tuple[str, dict[str, Any]]] = [
        (name, read(name, results)) for name in systems if is_done(name, results)
    ]
    for offset, key, colour, label in (
        (-0.2, "restored", GREEN, "restored / real"),
        (0.0, "drawn", BLUE, "drawn / real"),
        (0.2, "drawn_against_restored", RED, "drawn / restored"),
    ):
        for place, (_, found) in enumerate(shown):
            spread = 1.96 * float(np.std(found[key]["resampled"]))
            value = found[key]["fd"]
            panels[1].bar(
                [place + offset],
                [value],
                0.18,
                color=colour,
                yerr=[spread],
                label=label if not place else None,
            )
    told = {
        "system-f32p1": "f32, 16 tokens",
        "system-f8p2": "f8, 64 tokens",
        "system-f8p1": "f8, 256 tokens",
        "system-f32p1-glyph": "f32 of glyph\n(long trained)",
    }
    panels[1].set_xticks(range(len(shown)), [told[name] for name, _ in shown], fontsize=8)
    panels[1].set_title("FD-EffNetLite0, transformers of equal compute", fontsize=9)
    if shown:
        panels[1].legend(fontsize=8)
    for panel in panels:
        panel.grid(alpha=0.3, axis="y")
        panel.tick_params(labelsize=8)
    return figure


def draw_all(results: Path, docs: Path) -> None:
    """Write every plot to ``docs/research/claims-NAME.png``."""
    mpl.use("Agg")
    for make in (attention, words, levels, solvers, compression):
        figure = make(results)
        figure.savefig(docs / f"claims-{make.__name__}.png", dpi=DPI)
        pyplot.close(figure)
