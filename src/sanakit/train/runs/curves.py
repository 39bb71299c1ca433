"""A run's log as one SVG of panels: losses, held-out figures, rate, gradient norm, time, bins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from sanakit.charts import svg
from sanakit.errors import DataError
from sanakit.train.runs.summary import loss_names, standing

Points = npt.NDArray[np.float64]
"""``n 2``: images seen and a value; NaN was not finite, and breaks the line."""
SPREAD = 30
"""A panel whose values reach over more than this factor is drawn in powers of ten."""
MANY = 20
"""Lines of more points are drawn pale, beside their running mean."""
BIN = "loss_sigma_"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One diagram; ``smooth`` adds a running mean, ``ordered`` colors lines by their place."""

    title: str
    series: Mapping[str, Points]
    smooth: bool = False
    ordered: bool = False
    zero: bool = False
    """Begin the axis at 0, in equal steps."""


def curves(lines: Sequence[Mapping[str, Any]], *, title: str, log_x: bool = False) -> str:
    """Draw all that a log holds, as an SVG.

    Raises:
        DataError: the log holds no number yet.
    """
    return svg(figure_of(lines, title=title, log_x=log_x))


def figure_of(lines: Sequence[Mapping[str, Any]], *, title: str, log_x: bool = False) -> Figure:
    """The panels of a log in two columns.

    Raises:
        DataError: the log holds no number yet.
    """
    found = [panel for panel in panels(standing(lines)) if panel.series]
    if not found:
        raise DataError(f"{title}: its log holds nothing to draw", hint="wait for a first line")
    columns = min(2, len(found))
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(5.2 * columns, 2.5 * rows + 0.3), layout="constrained")
    figure.suptitle(title, parse_math=False)
    for number, panel in enumerate(found, start=1):
        draw_panel(figure.add_subplot(rows, columns, number), panel, log_x=log_x)
    return figure


def panels(lines: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """What belongs into one diagram; a panel without a line has no series."""

    def of(*names: str) -> dict[str, Points]:
        found = {
            name: np.array([(li["images"], li[name]) for li in lines if name in li], dtype=float)
            for name in names
        }
        return {n: p for n, p in found.items() if len(p) and not np.isnan(p[:, 1]).all()}

    keys = list(dict.fromkeys(key for line in lines for key in line))
    held = [key for key in keys if key.startswith("held_")]
    held_losses = [key for key in held if key.endswith("loss")]
    bins = sorted((k for k in keys if k.startswith(BIN)), key=lambda k: float(k[len(BIN) :]))
    others = [name for name in loss_names(lines) if name != "loss"]
    times = [key for key in keys if key.startswith("time_")]
    return [
        Panel(title="loss", series=of("loss", *held_losses), smooth=True),
        *(Panel(title=k, series=of(k)) for k in held if k not in held_losses),
        Panel(title="parts of the loss", series=of(*others)),
        Panel(title="loss by noise level", series=of(*bins), smooth=True, ordered=True),
        Panel(title="learning rate", series=of("lr"), zero=True),
        Panel(title="norm of the gradients", series=of("grad_norm"), smooth=True),
        Panel(title="shares of the time", series=of(*times), zero=True),
        Panel(title="images a second", series=of("per_second"), zero=True),
        Panel(title="MFU", series=of("mfu"), zero=True),
    ]


def draw_panel(axes: Axes, panel: Panel, *, log_x: bool) -> None:
    """Draw one diagram."""
    axes.set_title(panel.title)
    axes.set_xlabel("images seen")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(visible=True, axis="y", alpha=0.4)
    if log_x:
        axes.set_xscale("log", nonpositive="mask")
    ramp = colormaps["plasma"](np.linspace(0, 0.85, len(panel.series)))
    for number, (name, points) in enumerate(panel.series.items()):
        color = ramp[number] if panel.ordered else f"C{number}"
        faint = panel.smooth and len(points) > MANY
        pale = 0.1 if panel.ordered else 0.3
        label = name.removeprefix(BIN).removeprefix("time_")
        axes.plot(*points.T, color=color, alpha=pale if faint else 1.0, label=label)
        if faint:
            axes.plot(*smoothed(points).T, color=color)
        axes.plot(*lone(points).T, color=color, marker=".", linestyle="none")
    values = np.concatenate([points[:, 1] for points in panel.series.values()])
    low, high = np.nanmin(values), np.nanmax(values)
    if panel.zero:
        axes.set_ylim(bottom=min(0.0, low))
    elif low > 0 and high > SPREAD * low:
        axes.set_yscale("log")
    if len(panel.series) > 1:
        for handle in axes.legend(fontsize="small").get_lines():
            handle.set_alpha(1.0)


def lone(points: Points) -> Points:
    """The points without a neighbour to draw a line to."""
    there = np.pad(np.isfinite(points[:, 1]), 1)
    alone: Points = points[there[1:-1] & ~there[:-2] & ~there[2:]]
    return alone


def smoothed(points: Points) -> Points:
    """The mean around each point, over a tenth of the line; less at its ends, so it never lags."""
    count, values = len(points), points[:, 1]
    place = np.arange(count)
    reach = np.minimum(np.minimum(place, count - 1 - place), max(1, count // 20))
    missing = np.isnan(values)
    sums, seen = (
        np.concatenate([[0.0], np.cumsum(each)])
        for each in (np.where(missing, 0.0, values), ~missing)
    )
    first, last = place - reach, place + reach + 1
    with np.errstate(invalid="ignore"):
        means = (sums[last] - sums[first]) / (seen[last] - seen[first])
    return np.stack([points[:, 0], np.where(missing, np.nan, means)], axis=1)
