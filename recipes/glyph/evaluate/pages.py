"""Figures to look at: bars of shares side by side, and sheets of pictures with what was said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure as Chart
from PIL import Image

from sanakit.charts import chart
from sanakit.charts import sheet as rows_of_pictures
from sanakit.evaluate.figures import Figure
from sanakit.pipeline.pixels import Pixels

SIDE = 192


@dataclass(frozen=True, kw_only=True)
class Group:
    """Bars that stand together: one figure a series; None where a series has none."""

    name: str
    figures: Sequence[Figure | None]


def bars(groups: Sequence[Group], names: Sequence[str], *, title: str) -> Chart:
    """Shares in [0, 1] as upright bars, with whiskers for their intervals."""
    drawn, axes = chart(title=title, up="share")
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        found = [(place, group.figures[number]) for place, group in enumerate(groups)]
        known = [(place, figure) for place, figure in found if figure is not None]
        at = [place + (number - (len(names) - 1) / 2) * width for place, _ in known]
        values = np.array([figure.value for _, figure in known])
        lows = [figure.value if figure.low is None else figure.low for _, figure in known]
        highs = [figure.value if figure.high is None else figure.high for _, figure in known]
        spread = np.abs(np.array([lows, highs]) - values)
        shown = axes.bar(at, values, width * 0.9, yerr=spread, capsize=3, label=name)
        axes.bar_label(shown, fmt="%.2f", fontsize=7, padding=1)
    axes.set_xticks(range(len(groups)), [group.name for group in groups], fontsize=8)
    axes.set_ylim(0, 1.15)
    axes.legend(frameon=False, ncols=len(names), fontsize=8)
    return drawn


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A picture ``h w 3`` with what was asked for and what was seen in it."""

    pixels: Pixels
    caption: str
    seen: str = ""


def sheet(
    rows: Sequence[tuple[str, Sequence[Tile]]], *, title: str, columns: int = 4
) -> Image.Image:
    """Named rows of pictures, so many abreast.

    Raises:
        ConfigError: there are no pictures.
    """
    cut = [
        (name, tiles[at : at + columns])
        for name, tiles in rows
        for at in range(0, len(tiles), columns)
    ]
    labels = {
        number: [" - ".join(filter(None, (one.caption, one.seen))) for one in tiles]
        for number, (_, tiles) in enumerate(cut)
    }
    pictures = [(name, np.stack([one.pixels for one in tiles])) for name, tiles in cut]
    return rows_of_pictures(pictures, labels, title=title, side=SIDE)
