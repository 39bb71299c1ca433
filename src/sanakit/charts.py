"""Charts by matplotlib, and sheets of pictures: PNG files, or SVG inside a page."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from sanakit.errors import ConfigError
from sanakit.files import replacing

WIDE, TALL = 720, 400
COLORS = ("#4a6fa5", "#c8553d", "#588157", "#8e6c8a")
_DPI = 100
_BINS = 40
_INK, _PAPER, _FAINT = (34, 34, 34), (255, 255, 255), (236, 236, 240)
_GREY = "#808088"
_GAP, _LINE, _LINES, _LETTER = 12, 16, 3, 6


@dataclass(frozen=True, kw_only=True)
class Mark:
    """An upright line in a chart, with what it means."""

    at: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Point:
    """A value with the ends of its interval, where it has one."""

    at: float
    value: float
    low: float | None = None
    high: float | None = None


def chart(
    *, title: str, across: str = "", up: str = "", size: tuple[int, int] = (WIDE, TALL)
) -> tuple[Figure, Axes]:
    """An empty chart of a size in px: title on the left, faint lines at the values upwards.

    It belongs to no window and no global state. A ``$`` in its texts is a dollar.
    """
    figure = Figure(figsize=(size[0] / _DPI, size[1] / _DPI), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_prop_cycle(color=COLORS)
    axes.set_title(title, loc="left", parse_math=False)
    axes.set_xlabel(across, parse_math=False)
    axes.set_ylabel(up, parse_math=False)
    axes.grid(visible=True, axis="y", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def histograms(
    samples: Mapping[str, npt.ArrayLike],
    *,
    title: str,
    axis: str,
    marks: Sequence[Mark] = (),
    bins: int | None = None,
) -> Figure:
    """Distributions in equal bins over one axis, each as shares of its own samples.

    Of few samples there are few bins, unless ``bins`` says how many.

    Raises:
        ConfigError: a value that is not finite, or no samples.
    """
    values = {name: np.asarray(some, dtype=np.float64).ravel() for name, some in samples.items()}
    for name, some in values.items():
        if not len(some) or not np.isfinite(some).all():
            raise ConfigError(f"{name}: {len(some)} samples, not all of them finite numbers")
    least = min(len(some) for some in values.values())
    bins = bins or min(_BINS, 8 + 2 * math.isqrt(least))
    every = np.concatenate([*values.values(), [mark.at for mark in marks]])
    edges = np.histogram_bin_edges(every, bins)
    figure, axes = chart(title=title, across=axis, up="share")
    for name, some in values.items():
        shares = np.histogram(some, edges)[0] / len(some)
        (line,) = axes.plot([], label=f"{name} ({len(some):,})")
        axes.stairs(shares, edges, fill=True, color=line.get_color(), alpha=0.3)
        axes.stairs(shares, edges, color=line.get_color(), linewidth=1.5)
    for mark in marks:
        axes.axvline(mark.at, color="#222222", label=mark.label)
    axes.legend(frameon=False)
    return figure


def lines(series: Mapping[str, Sequence[Point]], *, title: str, across: str, up: str) -> Figure:
    """Values over positive numbers in steps of two, with whiskers where there are intervals.

    Raises:
        ConfigError: there is nothing to draw.
    """
    counts = sorted({point.at for points in series.values() for point in points})
    if not counts:
        raise ConfigError("a plot of no points", hint="evaluate at least one")
    figure, axes = chart(title=title, across=across, up=up)
    for name, points in series.items():
        values = [point.value for point in points]
        ends = [
            (p.value if p.low is None else p.low, p.value if p.high is None else p.high)
            for p in points
        ]
        below, above = zip(*ends, strict=True) if ends else ((), ())
        spread = np.abs(np.array([below, above]) - values)
        axes.errorbar([p.at for p in points], values, spread, marker="o", capsize=4, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [f"{at:,g}" for at in counts])
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def bars(rows: Sequence[tuple[str, int]], *, upright: bool = True) -> Figure:
    """Counts by name, over one axis or, where names are long, below one another; no frame."""
    names, counts = [name for name, _ in rows], [count for _, count in rows]
    places = range(len(rows))
    height = 190 if upright else 20 + 24 * len(rows)
    figure = Figure((6.4, height / _DPI), dpi=_DPI, layout="constrained")
    figure.set_facecolor("none")
    axes = figure.add_subplot()
    axes.set_frame_on(False)
    # A grey that is read on a light page and on a dark one.
    axes.tick_params(bottom=False, left=False, labelsize=8, labelcolor=_GREY)
    if upright:
        written = [f"{count:,}" * (count == max(counts)) for count in counts]
        drawn = axes.bar(places, counts, width=0.9, color=COLORS[0], clip_on=False)
        every = math.ceil(max(1, len(rows)) / 14)  # of many names not all can be written
        axes.set_xticks(places[::every], names[::every], parse_math=False)
        axes.set_xlim(-0.5, max(11.5, len(rows) - 0.5))
        axes.set_yticks([])
    else:
        written = [f"{count:,}" for count in counts]
        drawn = axes.barh(places, counts, height=0.75, color=COLORS[0], clip_on=False)
        axes.set_yticks(places, names, parse_math=False)
        axes.invert_yaxis()
        axes.set_xticks([])
    axes.bar_label(drawn, written, padding=2, fontsize=8, color=_GREY)
    return figure


def sheet(
    rows: Sequence[tuple[str, npt.NDArray[np.uint8]]],
    labels: Mapping[int, Sequence[str]] | None = None,
    *,
    title: str,
    side: int = 128,
) -> Image.Image:
    """Rows of pictures ``n h w 3``, each row with its name above it; all are shown at one size.

    ``labels`` are texts under the pictures of a row, by its number; too long ones are cut after
    three lines.

    Raises:
        ConfigError: there are no pictures.
    """
    columns = max((len(pixels) for _, pixels in rows), default=0)
    if not columns:
        raise ConfigError("a sheet of no pictures", hint="evaluate at least one")
    texts = {
        number: [wrapped(text, side // _LETTER) for text in each]
        for number, each in (labels or {}).items()
    }
    deep = [max(map(len, texts.get(number, [])), default=0) * _LINE for number in range(len(rows))]
    size = (columns * (side + _GAP) + _GAP, 40 + sum(_LINE + side + 6 + d for d in deep) + _GAP)
    image = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((_GAP, 10), title, _INK, ImageFont.load_default(15))
    top = 40
    for number, (name, pixels) in enumerate(rows):
        draw.text((_GAP, top), name, _INK, ImageFont.load_default(12))
        for column, picture in enumerate(pixels):
            left, under = _GAP + column * (side + _GAP), top + _LINE
            shown = Image.fromarray(picture)
            if shown.size != (side, side):
                shown = shown.resize((side, side), Image.Resampling.LANCZOS)
            image.paste(shown, (left, under))
            draw.rectangle((left - 1, under - 1, left + side, under + side), outline=_FAINT)
            for place, line in enumerate(texts[number][column] if number in texts else ()):
                at = (left, under + side + 3 + place * _LINE)
                draw.text(at, line, _INK, ImageFont.load_default(11))
        top += _LINE + side + deep[number] + 6
    return image


def wrapped(text: str, letters: int) -> list[str]:
    """At most three lines of a text; signs that no font has become spaces."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return textwrap.wrap(plain, letters, max_lines=_LINES, placeholder=" ...")


def svg(figure: Figure, label: str = "") -> str:
    """A chart as an ``<svg>`` element that says what it is; the same chart gives the same text."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # Letters stay letters, and the names of parts depend on the chart alone.
    with mpl.rc_context({"svg.hashsalt": "sanakit", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    _, start, rest = buffer.getvalue().partition("<svg ")
    return f'{start}role="img" aria-label="{escape(label)}" {rest}' if label else start + rest


def save(image: Image.Image | Figure, path: Path) -> None:
    """Write a PNG, whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        if isinstance(image, Figure):
            image.savefig(file, format="png")
        else:
            image.save(file, "PNG", optimize=True)
