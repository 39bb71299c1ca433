"""Compositions to look at: bars between floor and ceiling, and pictures with their verdicts."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from sanakit.errors import ConfigError
from sanakit.evaluate.figures import Figure
from sanakit.pipeline.images import Pixels

SIDE = 192
_COLUMNS, _MARGIN, _LINE, _LETTERS, _LINES = 4, 12, 15, 32, 3
_WIDE, _NAMES, _BAR, _STEP, _TOP = 800, 250, 20, 46, 64
_INK, _PAPER, _FAINT, _FILL = (34, 34, 34), (255, 255, 255), (225, 225, 230), (74, 111, 165)
_RIGHT, _WRONG, _CEILING, _SOFTER = (46, 125, 60), (190, 50, 40), (88, 129, 87), (142, 108, 138)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A measure with the marks that it stands between."""

    name: str
    figure: Figure
    floor: Figure | None
    ceiling: Figure
    softer: Figure


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A picture, its prompt, what was seen in it, and whether that is right."""

    picture: Pixels
    prompt: str
    seen: str
    right: bool


def bars(shown: Sequence[Bar], *, title: str) -> Image.Image:
    """Shares in [0, 1] with their intervals; floor and ceilings are upright marks."""
    image = Image.new("RGB", (_WIDE, _TOP + len(shown) * _STEP + 30), _PAPER)
    draw = ImageDraw.Draw(image)
    floor_y = _TOP + len(shown) * _STEP - 8

    def across(value: float) -> float:
        return _NAMES + value * (_WIDE - _NAMES - 40)

    draw.text((12, 10), title, _INK, _font(15))
    legend = (("floor: other prompts", _INK), ("ceiling: real", _CEILING), ("restored", _SOFTER))
    left = float(_NAMES)
    for text, colour in legend:
        draw.line((left, 38, left, 52), colour, 3)
        draw.text((left + 7, 45), text, _INK, _font(11), anchor="lm")
        left += 28 + _font(11).getlength(text)
    for tick in range(0, 101, 20):
        x = across(tick / 100)
        draw.line((x, _TOP - 4, x, floor_y), _FAINT)
        draw.text((x, floor_y + 6), f"{tick} %", _INK, _font(11), anchor="ma")
    for number, one in enumerate(shown):
        top = _TOP + number * _STEP
        middle, value = top + _BAR / 2, one.figure.value
        draw.text((_NAMES - 8, middle), one.name, _INK, _font(12), anchor="rm")
        draw.rectangle((across(0), top, across(value), top + _BAR), _FILL)
        if one.figure.low is not None and one.figure.high is not None:
            draw.line((across(one.figure.low), middle, across(one.figure.high), middle), _INK, 2)
        inside = value >= 0.08
        place = (across(0) + 6 if inside else across(value) + 8, middle)
        ink = _PAPER if inside else _INK
        draw.text(place, f"{100 * value:.0f} %", ink, _font(11), anchor="lm")
        marks = ((one.floor, _INK), (one.softer, _SOFTER), (one.ceiling, _CEILING))
        for figure, colour in marks:
            if figure is not None:
                x = across(figure.value)
                draw.line((x, top - 4, x, top + _BAR + 4), colour, 3)
    return image


def page(items: Sequence[Shown], *, title: str) -> Image.Image:
    """Pictures in rows of four; below each its prompt and, in green or red, what was seen.

    Raises:
        ConfigError: there are no pictures.
    """
    if not items:
        raise ConfigError("a sheet of no pictures", hint="evaluate at least one prompt")
    columns = min(_COLUMNS, len(items))
    rows = -(-len(items) // columns)
    cell = (SIDE + _MARGIN, SIDE + 2 * _LINES * _LINE + 4)
    size = (columns * cell[0] + _MARGIN, 40 + rows * cell[1] + _MARGIN)
    image = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((_MARGIN, 10), title, _INK, _font(15))
    for number, one in enumerate(items):
        left = _MARGIN + number % columns * cell[0]
        top = 40 + number // columns * cell[1]
        shown = Image.fromarray(one.picture).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        image.paste(shown, (left, top))
        draw.rectangle((left - 1, top - 1, left + SIDE, top + SIDE), outline=_FAINT)
        mark = "right" if one.right else "wrong"
        lines = [(text, _INK) for text in _wrapped(one.prompt)]
        colour = _RIGHT if one.right else _WRONG
        lines += [(text, colour) for text in _wrapped(f"{mark}: {one.seen}")]
        for line, (text, ink) in enumerate(lines):
            draw.text((left, top + SIDE + 4 + line * _LINE), text, ink, _font(12))
    return image


def _font(size: int) -> ImageFont.FreeTypeFont:
    found = ImageFont.load_default(size)
    assert isinstance(found, ImageFont.FreeTypeFont)
    return found


def _wrapped(text: str) -> list[str]:
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return textwrap.wrap(plain, _LETTERS, max_lines=_LINES, placeholder=" ...")
