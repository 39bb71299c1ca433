"""A data set of things that no two look alike, with held-out styles and colours and new scenes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from sanakit.data.glyph.backgrounds import BACKGROUNDS
from sanakit.data.glyph.colours import CLOSE, distance
from sanakit.data.glyph.pictures import GlyphPictures, Record
from sanakit.data.glyph.shades import SHADES
from sanakit.data.glyph.split import HELD_PART, fraction
from tiny_pictures import tiny_record
from tiny_scenes import write_art

SIZE = 96


def _is_held(key: str) -> bool:
    return fraction(f"scene:{key}") < HELD_PART


def _held_words() -> list[str]:
    """Names of which no training composite shows two, three or four, nor some of them together."""
    words = ["".join(x) for x in itertools.product("bdfgklmnprstvz", "aeiou", "bdgkmnprt")]
    numbers = [[w for w in words if _is_held(f"count:{n}:{w}")] for n in (2, 3, 4)]
    rng = np.random.default_rng(0)
    while True:
        found = [str(word) for some in numbers for word in rng.choice(some, 2, replace=False)]
        pairs = list(itertools.permutations(found, 2))
        if len({*found}) == 6 and all(
            sum(_is_held(f"{axis}:{one}|{other}") for one, other in pairs) >= 2
            for axis in ("across", "down")
        ):
            return found


def _shapes() -> Iterator[np.ndarray]:
    """Six outlines that no scaling makes alike."""
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j] / 0.9
    yield x**2 + y**2 <= 1
    yield (abs(x) <= 0.25) | (abs(y) <= 0.25)
    yield (abs(y) <= 1) & (abs(x) <= (y + 1) / 2)
    yield (abs(x) + abs(y) <= 1) & ~((abs(x) < 0.3) & (abs(y) < 0.3))
    yield (abs(x) <= 1) & (abs(y) <= 0.3)
    yield (x <= -0.4) | (y >= 0.4)


NAMES = _held_words()


def _rgb(shade: str) -> tuple[int, ...]:
    return tuple(int(shade[at : at + 2], 16) for at in (1, 3, 5))


def _art() -> Iterator[tuple[np.ndarray, Record]]:
    for index, (name, shape) in enumerate(zip(NAMES, _shapes(), strict=True)):
        inside = shape & (np.abs(np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]) <= 0.9).all(
            axis=0
        )
        for turn, (colour, shades) in enumerate(SHADES.items()):
            picture = np.zeros((SIZE, SIZE, 4), np.uint8)
            picture[inside] = (*_rgb(shades[turn % 3]), 255)
            paint = np.array(_rgb(shades[turn % 3])) / 255
            hidden = tuple(n for n, rgb in BACKGROUNDS.items() if distance(paint, rgb) <= CLOSE)
            yield picture, replace(
                tiny_record(index), id=f"set/{name}/{colour}", name=name, style="silhouette",
                style_words=["solid one-color icon"], colour=colour, cutout=True, painted=True,
                captions=[f"a {colour} {name}, solid one-color icon"], hidden_on=hidden,
                split="held_style" if (turn + index) % 2 else "train",
            )  # fmt: skip


def tiny_compositions(folder: Path) -> GlyphPictures:
    """Six shapes in ten colours, of which half the pairs are held out."""
    return write_art(folder, _art())
