"""Plots of an evaluation as PNG: distributions over each other, and sheets of pictures.

Drawn by hand: they need no plotting library, and the same numbers give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from sanakit.errors import ConfigError
from sanakit.files import replacing
from sanakit.pipeline.images import Pixels

WIDE, TALL = 720, 400
BINS = 40
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 76, 52
_COLOURS = ((74, 111, 165), (200, 85, 61), (88, 129, 87), (142, 108, 138))
_INK, _PALE, _PAPER, _FAINT = (34, 34, 34), (221, 221, 221), (255, 255, 255), (236, 236, 240)
_GAP, _LINE, _LINES = 12, 16, 3


@dataclass(frozen=True, kw_only=True)
class Mark:
    """An upright line in a plot, with what it means."""

    at: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Point:
    """A value with the ends of its interval, where it has one."""

    at: float
    value: float
    low: float | None = None
    high: float | None = None


def histograms(
    samples: Mapping[str, npt.ArrayLike],
    *,
    title: str,
    axis: str,
    marks: Sequence[Mark] = (),
    bins: int | None = None,
) -> Image.Image:
    """Distributions in equal bins over one axis, each as shares of its own samples.

    Of few samples there are few bins, unless ``bins`` says how many.

    Raises:
        ConfigError: a value that is not finite, or no samples.
    """
    values = {name: np.asarray(some, dtype=np.float64).ravel() for name, some in samples.items()}
    for name, some in values.items():
        if not len(some) or not np.isfinite(some).all():
            raise ConfigError(f"{name}: {len(some)} samples, not all of them finite numbers")
    every = np.concatenate([*values.values(), [mark.at for mark in marks]])
    across = _Axis.over(float(every.min()), float(every.max()))
    least = min(len(some) for some in values.values())
    bins = bins or min(BINS, 8 + 2 * math.isqrt(least))
    edges = np.linspace(across.low, across.high, bins + 1)
    shares = {name: np.histogram(some, edges)[0] / len(some) for name, some in values.items()}
    most = max(float(some.max()) for some in shares.values())
    legend = [f"{name} ({len(some):,})" for name, some in values.items()]
    frame = _Frame(across, _Axis.over(0.0, most), title=title, names=(axis, "share"), legend=legend)
    for colour, heights in zip(_cycle(len(shares)), shares.values(), strict=True):
        outline = [frame.place(across.low, 0)]
        for height, left, right in zip(heights, edges[:-1], edges[1:], strict=True):
            outline += [frame.place(left, height), frame.place(right, height)]
        outline.append(frame.place(across.high, 0))
        frame.draw.polygon(outline, (*colour, 70))
        frame.draw.line(outline, (*colour, 255), 2)
    for number, mark in enumerate(marks):
        x, top = frame.place(mark.at, frame.up.high)
        frame.draw.line((x, top, *frame.place(mark.at, 0)), (*_INK, 160), 2)
        beyond = x > WIDE / 2
        place = (x + (-5 if beyond else 5), top + 8 + number * _LINE)
        frame.draw.text(place, mark.label, _INK, _font(12), anchor="rm" if beyond else "lm")
    return frame.image


def lines(
    series: Mapping[str, Sequence[Point]], *, title: str, across: str, up: str
) -> Image.Image:
    """Values over positive numbers in steps of two, with whiskers where there are intervals.

    Raises:
        ConfigError: there is nothing to draw.
    """
    every = [point for points in series.values() for point in points]
    if not every:
        raise ConfigError("a plot of no points", hint="evaluate at least one")
    counts = sorted({point.at for point in every})
    axis = _Axis(
        math.log2(counts[0]) - 0.25,
        math.log2(counts[-1]) + 0.25,
        [(math.log2(at), f"{at:,g}") for at in counts],
    )
    tall = _Axis.over(0.0, max(max(p.value, p.high or p.value) for p in every))
    frame = _Frame(axis, tall, title=title, names=(across, up), legend=list(series))
    for colour, points in zip(_cycle(len(series)), series.values(), strict=True):
        places = [frame.place(math.log2(point.at), point.value) for point in points]
        frame.draw.line(places, (*colour, 255), 2)
        for point, (x, y) in zip(points, places, strict=True):
            frame.draw.ellipse((x - 3, y - 3, x + 3, y + 3), (*colour, 255))
            if point.low is not None and point.high is not None:
                ends = [
                    frame.place(math.log2(point.at), each)[1] for each in (point.low, point.high)
                ]
                frame.draw.line((x, ends[0], x, ends[1]), (*colour, 255), 2)
                for end in ends:
                    frame.draw.line((x - 4, end, x + 4, end), (*colour, 255), 2)
    return frame.image


def sheet(
    rows: Sequence[tuple[str, Pixels]],
    labels: Mapping[int, Sequence[str]] | None = None,
    *,
    title: str,
    side: int = 128,
) -> Image.Image:
    """Rows of pictures, each row with its name above it; all are shown at one size.

    ``labels`` are texts under the pictures of a row, by its number; too long ones are cut after
    three lines.

    Raises:
        ConfigError: there are no pictures.
    """
    labels = labels or {}
    columns = max((len(pixels) for _, pixels in rows), default=0)
    if not columns:
        raise ConfigError("a sheet of no pictures", hint="evaluate at least one")
    texts = {number: [_wrapped(text, side) for text in labels[number]] for number in labels}
    deep = {number: max(map(len, each), default=0) * _LINE for number, each in texts.items()}
    heights = [_LINE + side + deep.get(number, 0) + 6 for number in range(len(rows))]
    size = (columns * (side + _GAP) + _GAP, 40 + sum(heights) + _GAP)
    image = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((_GAP, 10), title, _INK, _font(15))
    top = 40
    for number, (name, pixels) in enumerate(rows):
        draw.text((_GAP, top), name, _INK, _font(12))
        for column, picture in enumerate(pixels):
            left, under = _GAP + column * (side + _GAP), top + _LINE
            shown = Image.fromarray(picture)
            if shown.size != (side, side):
                shown = shown.resize((side, side), Image.Resampling.LANCZOS)
            image.paste(shown, (left, under))
            draw.rectangle((left - 1, under - 1, left + side, under + side), outline=_FAINT)
            for place, line in enumerate(texts[number][column] if number in texts else ()):
                draw.text((left, under + side + 3 + place * _LINE), line, _INK, _font(11))
        top += heights[number]
    return image


def save(image: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        image.save(file, "PNG", optimize=True)


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]

    @classmethod
    def over(cls, low: float, high: float) -> _Axis:
        """Round numbers below, between and above two values, which may be equal."""
        step = _round_step(max(high - low, 1e-6 * abs(high), 1e-12) / 6)
        first, last = math.floor(low / step + 1e-9), max(1, math.ceil(high / step - 1e-9))
        last = max(last, first + 1)
        ticks = [(number * step, f"{number * step:.6g}") for number in range(first, last + 1)]
        return cls(first * step, last * step, ticks)

    def share(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)


class _Frame:
    """Title, axes, names and legend; what is drawn inside is placed by :meth:`place`."""

    def __init__(
        self, across: _Axis, up: _Axis, *, title: str, names: tuple[str, str], legend: Sequence[str]
    ) -> None:
        self.across, self.up = across, up
        self.image = Image.new("RGB", (WIDE, TALL), _PAPER)
        self.draw = ImageDraw.Draw(self.image, "RGBA")
        for value, text in up.ticks:
            (left, y), (right, _) = self.place(across.low, value), self.place(across.high, value)
            self.draw.line((left, y, right, y), _PALE)
            self.draw.text((left - 6, y), text, _INK, _font(11), anchor="rm")
        floor = self.place(across.low, up.low)[1]
        for value, text in across.ticks:
            x = self.place(value, up.low)[0]
            self.draw.line((x, floor, x, floor + 4), _INK)
            self.draw.text((x, floor + 6), text, _INK, _font(11), anchor="ma")
        self.draw.line((_LEFT, floor, WIDE - _RIGHT, floor), _INK)
        self.draw.text((_LEFT, 12), title, _INK, _font(15))
        middle = (_LEFT + WIDE - _RIGHT) / 2
        self.draw.text((middle, TALL - 18), names[0], _INK, _font(12), anchor="mm")
        self.draw.text((8, _TOP - 14), names[1], _INK, _font(11), anchor="lm")
        x = WIDE - _RIGHT
        for colour, name in reversed(list(zip(_cycle(len(legend)), legend, strict=True))):
            x -= int(_font(12).getlength(name)) + 34
            self.draw.rectangle((x, 42, x + 11, 53), (*colour, 160))
            self.draw.text((x + 16, 48), name, _INK, _font(12), anchor="lm")

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point is, px."""
        wide, tall = WIDE - _RIGHT - _LEFT, TALL - _BOTTOM - _TOP
        return _LEFT + self.across.share(x) * wide, _TOP + (1 - self.up.share(y)) * tall


def _cycle(count: int) -> list[tuple[int, int, int]]:
    return [_COLOURS[number % len(_COLOURS)] for number in range(count)]


def _font(size: int) -> ImageFont.FreeTypeFont:
    found = ImageFont.load_default(size)
    assert isinstance(found, ImageFont.FreeTypeFont)
    return found


def _wrapped(text: str, wide: int) -> list[str]:
    """Lines of at most so many px; what does not fit in the last one is cut."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    found, fits = [""], _font(11).getlength
    for word in plain.split():
        longer = f"{found[-1]} {word}".strip()
        if not found[-1] or fits(longer) <= wide or len(found) == _LINES:
            found[-1] = longer
        else:
            found.append(word)
    return [_cut(line, wide) for line in found]


def _cut(line: str, wide: int) -> str:
    fits = _font(11).getlength
    if fits(line) <= wide:
        return line
    while line and fits(line + "...") > wide:
        line = line[:-1]
    return line.rstrip() + "..."


def _round_step(step: float) -> float:
    """The next of 1, 2, 5, 10, ... times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))
