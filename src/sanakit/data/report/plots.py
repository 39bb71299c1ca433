"""Bars as SVG, drawn by hand: a page with them needs no other file and no plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH = 640
_BAR, _GAP, _LABELS, _VALUES = 18, 6, 130, 70
_FILL = "#4a6fa5"
_TALL, _AXIS, _WIDEST = 150, 22, 56


def bars(rows: Sequence[tuple[str, int]], *, label: str) -> str:
    """Horizontal bars, one a row, each with its name and its count."""
    most = max((count for _, count in rows), default=0) or 1
    height = len(rows) * (_BAR + _GAP)
    parts = [_open(height, label)]
    for number, (name, count) in enumerate(rows):
        top = number * (_BAR + _GAP)
        length = (WIDTH - _LABELS - _VALUES) * count / most
        middle = top + _BAR * 0.72
        parts.append(
            f'<text x="{_LABELS - 8}" y="{middle:.1f}" text-anchor="end">{escape(name)}</text>'
        )
        parts.append(_bar(_LABELS, top, max(1.0, length), _BAR, f"{name}: {count:,}"))
        parts.append(f'<text x="{_LABELS + length + 6:.1f}" y="{middle:.1f}">{count:,}</text>')
    return "".join((*parts, "</svg>"))


def histogram(bins: Sequence[tuple[str, int]], *, label: str) -> str:
    """Upright bars over an axis of names; of many names not all are written."""
    most = max((count for _, count in bins), default=0) or 1
    width = min(_WIDEST, WIDTH / max(1, len(bins)))
    # About 45 px for a name.
    every = max(1, math.ceil(45 / width))
    parts = [_open(_TALL + _AXIS + 14, label)]
    for number, (name, count) in enumerate(bins):
        tall = _TALL * count / most
        left, top = number * width, 14 + _TALL - tall
        if count:
            title = f"{name}: {count:,}"
            parts.append(_bar(left + 1, top, width - 2, max(1.0, tall), title))
        centre = left + width / 2
        if count == most:
            parts.append(
                f'<text x="{centre:.1f}" y="{top - 4:.1f}" text-anchor="middle">{count:,}</text>'
            )
        if number % every == 0:
            text = escape(name)
            parts.append(
                f'<text x="{centre:.1f}" y="{_TALL + 30}" text-anchor="middle">{text}</text>'
            )
    end = width * len(bins)
    parts.append(f'<line stroke="gray" x1="0" x2="{end:.1f}" y1="{14 + _TALL}" y2="{14 + _TALL}"/>')
    return "".join((*parts, "</svg>"))


def binned(
    values: Mapping[int, int] | Mapping[float, int], most: int = 24
) -> list[tuple[str, int]]:
    """Counts of numbers as counts of at most ``most`` equal, round ranges, by where they begin."""
    if not values:
        return []
    low, high = min(values), max(values)
    whole = all(value == int(value) for value in values)
    step = _round_step((high - low) / (most - 2), whole=whole)
    # 0.3 is the third tenth, though 0.3 / 0.1 is below 3 in binary.
    place = {value: math.floor(value / step + 1e-9) for value in values}
    first = place[low]
    counts = [0] * (place[high] - first + 1)
    for value, count in values.items():
        counts[place[value] - first] += count
    return [(f"{(first + number) * step:g}", count) for number, count in enumerate(counts)]


def _round_step(step: float, *, whole: bool) -> float:
    """The next of 1, 2, 5, 10, ... times a power of ten; at least 1 for whole numbers."""
    if whole:
        step = max(1.0, step)
    if step <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _open(height: int, label: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" aria-label="{escape(label)}" font-size="11">'
    )


def _bar(left: float, top: float, width: float, height: float, title: str) -> str:
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'rx="1.5" fill="{_FILL}">'
        f"<title>{escape(title)}</title></rect>"
    )
