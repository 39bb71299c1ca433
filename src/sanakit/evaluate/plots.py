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
from sanakit.pipeline.images import Pixels
from sanakit.weights.atomic import replacing

WIDE, TALL = 720, 400
BINS = 40
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 64, 52
_COLOURS = ((74, 111, 165), (200, 85, 61), (88, 129, 87), (142, 108, 138))
_INK, _PALE, _PAPER, _FAINT = (34, 34, 34), (221, 221, 221), (255, 255, 255), (236, 236, 240)
_GAP, _LINE = 12, 16


@dataclass(frozen=True, kw_only=True)
class Mark:
    """An upright line in a plot, with what it means."""

    at: float
    label: str


def histograms(
    samples: Mapping[str, npt.ArrayLike],
    *,
    title: str,
    axis: str,
    marks: Sequence[Mark] = (),
    bins: int = BINS,
) -> Image.Image:
    """Distributions in equal bins over one axis, each as shares of its own samples.

    Raises:
        ConfigError: a value that is not finite, or no samples.
    """
    values = {name: np.asarray(some, dtype=np.float64).ravel() for name, some in samples.items()}
    for name, some in values.items():
        if not len(some) or not np.isfinite(some).all():
            raise ConfigError(f"{name}: {len(some)} samples, not all of them finite numbers")
    every = np.concatenate([*values.values(), [mark.at for mark in marks]])
    low, high = float(every.min()), float(every.max())
    step = _round_step(max(high - low, 1e-9 * abs(high), 1e-12) / 6)
    low, high = math.floor(low / step) * step, math.ceil(high / step + 1e-9) * step
    edges = np.linspace(low, high, bins + 1)
    shares = {name: np.histogram(some, edges)[0] / len(some) for name, some in values.items()}
    most = max(float(some.max()) for some in shares.values())

    image = Image.new("RGB", (WIDE, TALL), _PAPER)
    draw = ImageDraw.Draw(image, "RGBA")
    right, floor = WIDE - _RIGHT, TALL - _BOTTOM

    def across(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (right - _LEFT)

    def up(share: float) -> float:
        return floor - share / most * (floor - _TOP)

    for share in np.arange(0, most + 1e-9, _round_step(most / 4)):
        draw.line((_LEFT, up(share), right, up(share)), _PALE)
        draw.text((_LEFT - 6, up(share)), f"{share:.3g}", _INK, _font(11), anchor="rm")
    for tick in np.arange(low, high + step / 2, step):
        draw.line((across(tick), floor, across(tick), floor + 4), _INK)
        text = f"{0.0 if abs(tick) < step / 2 else tick:.6g}"
        draw.text((across(tick), floor + 6), text, _INK, _font(11), anchor="ma")
    draw.line((_LEFT, floor, right, floor), _INK)
    x = float(_LEFT)
    for number, (name, heights) in enumerate(shares.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        outline: list[tuple[float, float]] = [(_LEFT, floor)]
        for height, left, after in zip(heights, edges[:-1], edges[1:], strict=True):
            outline += [(across(left), up(height)), (across(after), up(height))]
        outline.append((right, floor))
        draw.polygon(outline, (*colour, 70))
        draw.line(outline, (*colour, 255), 2)
        label = f"{name} ({len(values[name]):,})"
        draw.rectangle((x, 38, x + 11, 49), (*colour, 160))
        draw.text((x + 16, 44), label, _INK, _font(12), anchor="lm")
        x += 34 + _font(12).getlength(label)
    for number, mark in enumerate(marks):
        draw.line((across(mark.at), _TOP, across(mark.at), floor), (*_INK, 160), 2)
        beside = across(mark.at) > (_LEFT + right) / 2
        place = (across(mark.at) + (-5 if beside else 5), _TOP + 8 + number * _LINE)
        draw.text(place, mark.label, _INK, _font(12), anchor="rm" if beside else "lm")
    draw.text((_LEFT, 12), title, _INK, _font(15))
    draw.text(((_LEFT + right) / 2, TALL - 20), axis, _INK, _font(12), anchor="mm")
    draw.text((8, _TOP - 12), "share", _INK, _font(11), anchor="lm")
    return image


def sheet(
    rows: Sequence[tuple[str, Pixels]],
    labels: Mapping[int, Sequence[str]] | None = None,
    *,
    title: str,
    side: int = 128,
) -> Image.Image:
    """Rows of pictures, each row with its name above it; all are shown at one size.

    ``labels`` are texts under the pictures of a row, by its number; too long ones are cut.

    Raises:
        ConfigError: there are no pictures.
    """
    labels = labels or {}
    columns = max((len(pixels) for _, pixels in rows), default=0)
    if not columns:
        raise ConfigError("a sheet of no pictures", hint="evaluate at least one")
    heights = [_LINE + side + (_LINE if number in labels else 0) + 6 for number in range(len(rows))]
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
            if number in labels:
                text = _cut(labels[number][column], side)
                draw.text((left, under + side + 3), text, _INK, _font(11))
        top += heights[number]
    return image


def save(image: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        image.save(file, "PNG", optimize=True)


def _font(size: int) -> ImageFont.FreeTypeFont:
    found = ImageFont.load_default(size)
    assert isinstance(found, ImageFont.FreeTypeFont)
    return found


def _cut(text: str, wide: int) -> str:
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    if _font(11).getlength(plain) <= wide:
        return plain
    while plain and _font(11).getlength(plain + "...") > wide:
        plain = plain[:-1]
    return plain.rstrip() + "..."


def _round_step(step: float) -> float:
    """The next of 1, 2, 5, 10, ... times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))
