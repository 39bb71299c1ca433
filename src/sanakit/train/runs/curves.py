"""A run's log as one SVG of panels, drawn by hand: it needs no plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from sanakit.errors import DataError
from sanakit.train.runs.summary import loss_names, standing

Point = tuple[float, float | None]
"""Images seen and a value; None was not finite, and breaks the line."""
Series = Mapping[str, Sequence[Point]]
WIDE, TALL = 520, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 50, 34
_POINTS = 600
_COLOURS = ("#4a6fa5", "#c8553d", "#588157", "#8e6c8a", "#d19c1d", "#2a9d8f", "#6b705c", "#9d4edd")
_FROM, _TO = (68, 44, 130), (240, 150, 40)
"""Of lines that have an order, such as bins of sigma: the first and the last colour."""
_SPREAD = 30
"""A panel whose values reach over more than this factor is drawn in powers of ten."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One diagram; ``smooth`` adds a running mean, ``ordered`` colours lines by their place."""

    title: str
    series: Series
    smooth: bool = False
    ordered: bool = False
    zero: bool = False
    """Begin the axis at 0, in equal steps."""
    colours: Sequence[str] = field(default=_COLOURS)


def curves(lines: Sequence[Mapping[str, Any]], *, title: str, log_x: bool = False) -> str:
    """Draw all that a log holds: losses, held-out figures, rate, gradient norm, time, bins.

    Raises:
        DataError: the log holds no number yet.
    """
    found = [panel for panel in panels(standing(lines)) if panel.series]
    if not found:
        raise DataError(f"{title}: its log holds nothing to draw", hint="wait for a first line")
    columns = min(2, len(found))
    rows = math.ceil(len(found) / columns)
    width, height = columns * WIDE, 28 + rows * TALL
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{escape(title)}" font-size="11" '
        'font-family="sans-serif" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="14" y="20" font-size="14" font-weight="bold">{escape(title)}</text>',
    ]
    for number, panel in enumerate(found):
        row, column = divmod(number, columns)
        drawn = draw_panel(panel, log_x=log_x)
        parts.append(f'<g transform="translate({column * WIDE} {28 + row * TALL})">{drawn}</g>')
    return "".join((*parts, "</svg>\n"))


def panels(lines: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """What belongs into one diagram; a panel without a line has no series."""

    def of(*names: str) -> dict[str, list[Point]]:
        found = {name: [(li["images"], li[name]) for li in lines if name in li] for name in names}
        return {n: p for n, p in found.items() if any(value is not None for _, value in p)}

    keys = list(dict.fromkeys(key for line in lines for key in line))
    held = [key for key in keys if key.startswith("held_")]
    held_losses = [key for key in held if key.endswith("loss")]
    bins = sorted((k for k in keys if k.startswith("loss_sigma_")), key=lambda k: float(k[11:]))
    others = [name for name in loss_names(lines) if name != "loss"]
    return [
        Panel(title="loss", series=of("loss", *held_losses), smooth=True),
        *(Panel(title=k, series=of(k)) for k in held if k not in held_losses),
        Panel(title="parts of the loss", series=of(*others)),
        Panel(title="loss by noise level", series=of(*bins), smooth=True, ordered=True),
        Panel(title="learning rate", series=of("lr"), zero=True),
        Panel(title="norm of the gradients", series=of("grad_norm"), smooth=True),
        Panel(
            title="shares of the time",
            series=of(*(key for key in keys if key.startswith("time_"))),
            zero=True,
        ),
        Panel(title="images a second", series=of("per_second"), zero=True),
        Panel(title="MFU", series=of("mfu"), zero=True),
    ]


def draw_panel(panel: Panel, *, log_x: bool) -> str:
    """One diagram as SVG elements in a field of `WIDE` x `TALL`."""
    every = [point for points in panel.series.values() for point in points]
    values = [value for _, value in every if value is not None]
    images = [x for x, value in every if value is not None and (x > 0 or not log_x)]
    powers = not panel.zero and min(values) > 0 and max(values) > _SPREAD * min(values)
    across = Axis.over(images or [1.0], powers=log_x, zero=not log_x)
    up = Axis.over(values, powers=powers, zero=panel.zero)
    right, floor = WIDE - _RIGHT, TALL - _BOTTOM

    def place(x: float, y: float) -> str:
        across_px = _LEFT + across.share(x) * (right - _LEFT)
        return f"{across_px:.1f},{floor - up.share(y) * (floor - _TOP):.1f}"

    parts = [f'<text x="{_LEFT}" y="16" font-weight="bold">{escape(panel.title)}</text>']
    for tick in up.ticks():
        y = float(place(across.low, tick).split(",")[1])
        parts.append(f'<line stroke="#ddd" x1="{_LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
        spot = f'x="{_LEFT - 6}" y="{y + 4:.1f}"'
        parts.append(f'<text {spot} text-anchor="end">{short(tick)}</text>')
    for tick in across.ticks():
        x = float(place(tick, up.low).split(",")[0])
        parts.append(f'<line stroke="#999" x1="{x}" x2="{x}" y1="{floor}" y2="{floor + 4}"/>')
        parts.append(f'<text x="{x}" y="{floor + 16}" text-anchor="middle">{short(tick)}</text>')
    parts.append(f'<line stroke="#999" x1="{_LEFT}" x2="{right}" y1="{floor}" y2="{floor}"/>')
    parts.append(
        f'<text x="{right}" y="{floor + 30}" text-anchor="end" fill="#777">images seen</text>'
    )
    colours = _ramp(len(panel.series)) if panel.ordered else panel.colours
    pale = 0.1 if panel.ordered else 0.3
    legend = float(_LEFT)
    for number, (name, points) in enumerate(panel.series.items()):
        colour = colours[number % len(colours)]
        seen = thinned([(x, y) for x, y in points if x > 0 or not log_x])
        faint = panel.smooth and len(seen) > 20
        parts.append(_lines(seen, place, colour, opacity=pale if faint else 1.0))
        if faint:
            parts.append(_lines(smoothed(seen), place, colour, opacity=1.0))
        label = name.removeprefix("loss_sigma_").removeprefix("time_")
        if len(panel.series) > 1:
            parts.append(f'<rect x="{legend:.0f}" y="27" width="9" height="9" fill="{colour}"/>')
            parts.append(f'<text x="{legend + 12:.0f}" y="36">{escape(label)}</text>')
            legend += 24 + 6.3 * len(label)
    return "".join(parts)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A range of numbers, in equal steps or in powers of ten."""

    low: float
    high: float
    powers: bool

    @classmethod
    def over(cls, values: Sequence[float], *, powers: bool, zero: bool) -> Axis:
        """The axis that holds all values; never empty."""
        low, high = min(values), max(values)
        if zero:
            low, high = min(0.0, low), max(0.0, high)
        if low == high:
            low, high = (low / 2, high * 2) if powers else (low - 0.5, high + 0.5)
        return cls(low=low, high=high, powers=powers)

    def share(self, value: float) -> float:
        """Where a value lies, from 0 to 1."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        return (self._scaled(value) - low) / (high - low)

    def ticks(self) -> list[float]:
        """Round numbers on the axis, about five."""
        if self.powers:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            factors = (1, 2, 5) if last - first <= 2 else (1, 3) if last - first <= 3 else (1,)
            every = max(1, (last - first) // 6)
            found = [f * 10.0**p for p in range(first, last + 1, every) for f in factors]
            return [tick for tick in found if self.low <= tick <= self.high]
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.powers else value


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most `_POINTS` points, means of neighbours; a gap stays a gap."""
    size = math.ceil(len(points) / _POINTS) if points else 1
    found: list[Point] = []
    for start in range(0, len(points), size):
        some = points[start : start + size]
        values = [value for _, value in some if value is not None]
        whole = len(values) == len(some)
        found.append((some[-1][0], sum(values) / len(values) if whole else None))
    return found


def smoothed(points: Sequence[Point]) -> list[Point]:
    """The mean around each point, over a tenth of the line; less at its ends, so it never lags."""
    found: list[Point] = []
    for number, (x, value) in enumerate(points):
        reach = min(number, len(points) - 1 - number, max(1, len(points) // 20))
        around = points[number - reach : number + reach + 1]
        seen = [y for _, y in around if y is not None]
        found.append((x, None if value is None else sum(seen) / len(seen)))
    return found


def short(value: float) -> str:
    """A number for an axis: 20k, 1.5M, 0.001."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:.6g}"


def _lines(points: Sequence[Point], place: Any, colour: str, *, opacity: float) -> str:
    """Polylines, a new one behind each gap; a point alone is a dot."""
    runs: list[list[str]] = [[]]
    for x, y in points:
        if y is None:
            runs.append([])
        else:
            runs[-1].append(place(x, y))
    parts = []
    for run in runs:
        if len(run) == 1:
            x_px, y_px = run[0].split(",")
            parts.append(f'<circle cx="{x_px}" cy="{y_px}" r="2.5" fill="{colour}"/>')
        elif run:
            parts.append(
                f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" '
                f'stroke-opacity="{opacity:g}" points="{" ".join(run)}"/>'
            )
    return "".join(parts)


def _ramp(count: int) -> list[str]:
    shares = [number / max(1, count - 1) for number in range(count)]
    mixed = [[round(a + (b - a) * s) for a, b in zip(_FROM, _TO, strict=True)] for s in shares]
    return ["#" + "".join(f"{part:02x}" for part in one) for one in mixed]
