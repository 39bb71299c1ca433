"""R-precision to look at: bars with their intervals, and a sheet of hits and misses."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sanakit.evaluate.figures import Figure
from sanakit.pipeline.images import Pixels

_WIDE, _TALL, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 360, 50, 16, 56, 44
_COLOURS = ((74, 111, 165), (88, 129, 87), (160, 160, 164))
_INK, _PALE, _PAPER = (34, 34, 34), (221, 221, 221), (255, 255, 255)
_SIDE, _GAP, _LINE, _LINES, _COLUMNS, _LETTERS = 144, 12, 13, 4, 8, 25


@dataclass(frozen=True, kw_only=True)
class Group:
    """Bars that stand together: a figure of the model, of real pictures, of shuffled captions."""

    name: str
    figures: Sequence[Figure]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A picture ``h w 3`` with its own caption and, of a miss, the one that was preferred."""

    pixels: Pixels
    caption: str
    preferred: str = ""


def bars(groups: Sequence[Group], names: Sequence[str], *, title: str) -> Image.Image:
    """Shares in [0, 1] as upright bars, with whiskers for their 95 % intervals."""
    image = Image.new("RGB", (_WIDE, _TALL), _PAPER)
    draw = ImageDraw.Draw(image)
    right, floor = _WIDE - _RIGHT, _TALL - _BOTTOM

    def up(share: float) -> float:
        return floor - share * (floor - _TOP)

    for tenth in range(0, 11, 2):
        draw.line((_LEFT, up(tenth / 10), right, up(tenth / 10)), _PALE)
        draw.text((_LEFT - 6, up(tenth / 10)), f"{tenth / 10:.1f}", _INK, _font(11), anchor="rm")
    span = (right - _LEFT) / max(1, len(groups))
    wide = span / (len(names) + 1)
    for place, group in enumerate(groups):
        begin = _LEFT + place * span + wide / 2
        for number, figure in enumerate(group.figures):
            left, centre = begin + number * wide, begin + (number + 0.5) * wide
            top = up(figure.value)
            draw.rectangle((left + 2, top, left + wide - 2, floor), _COLOURS[number])
            low = figure.value if figure.low is None else figure.low
            high = figure.value if figure.high is None else figure.high
            draw.line((centre, up(low), centre, up(high)), _INK, 2)
            for end in (low, high):
                draw.line((centre - 5, up(end), centre + 5, up(end)), _INK, 2)
            text = f"{figure.value:.2f}"
            draw.text((centre, min(top, up(high)) - 8), text, _INK, _font(11), anchor="mm")
        centre = _LEFT + (place + 0.5) * span
        draw.text((centre, floor + 8), group.name, _INK, _font(12), anchor="ma")
    draw.line((_LEFT, floor, right, floor), _INK)
    draw.text((_LEFT, 8), title, _INK, _font(15))
    x = float(_LEFT)
    for number, name in enumerate(names):
        draw.rectangle((x, 33, x + 11, 44), _COLOURS[number])
        draw.text((x + 16, 39), name, _INK, _font(12), anchor="lm")
        x += 34 + _font(12).getlength(name)
    return image


def sheet(rows: Sequence[tuple[str, Sequence[Tile]]], *, title: str) -> Image.Image:
    """Named rows of pictures, eight abreast, each with what it should show below it."""
    lines = [(name, tiles[at : at + _COLUMNS]) for name, tiles in rows for at in _starts(tiles)]
    text = 2 * _LINES * _LINE + 6
    tall = _LINE + 4 + _SIDE + text + _GAP
    size = (_COLUMNS * (_SIDE + _GAP) + _GAP, 40 + len(lines) * tall + _GAP)
    image = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((_GAP, 10), title, _INK, _font(15))
    for number, (name, tiles) in enumerate(lines):
        top = 40 + number * tall
        draw.text((_GAP, top), name, _INK, _font(12))
        for column, tile in enumerate(tiles):
            left, under = _GAP + column * (_SIDE + _GAP), top + _LINE + 4
            shown = Image.fromarray(np.ascontiguousarray(tile.pixels))
            image.paste(shown.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), (left, under))
            draw.rectangle((left - 1, under - 1, left + _SIDE, under + _SIDE), outline=_PALE)
            told = _wrapped(tile.caption)
            if tile.preferred:
                told += _wrapped(f"judged: {tile.preferred}")
            for line, words in enumerate(told):
                draw.text((left, under + _SIDE + 4 + line * _LINE), words, _INK, _font(11))
    return image


def _starts(tiles: Sequence[Tile]) -> range:
    return range(0, len(tiles), _COLUMNS)


def _wrapped(text: str) -> list[str]:
    # Signs that no font has, and ends of lines, would break the layout.
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return textwrap.wrap(plain, _LETTERS, max_lines=_LINES, placeholder=" ...")


def _font(size: int) -> ImageFont.FreeTypeFont:
    found = ImageFont.load_default(size)
    assert isinstance(found, ImageFont.FreeTypeFont)
    return found
