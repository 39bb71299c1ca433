"""Composites: draws scenes at random from the pictures that can stand in one, and their pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from recipes.glyph.data.backgrounds import BACKGROUNDS
from recipes.glyph.data.captions import coloured
from recipes.glyph.data.colours import CLOSE, distance
from recipes.glyph.data.layout import Arrangement, cells, fill, largest, place, small_scale
from recipes.glyph.data.pictures import GlyphPictures, Record
from recipes.glyph.data.rasterize import Box, Pixels
from recipes.glyph.data.scenes import Kind, Scene, Thing
from recipes.glyph.data.shades import SHADES
from recipes.glyph.data.split import split_of
from sanakit.errors import DataError

_T = TypeVar("_T")

SceneSplit = Literal["train", "held_scene"]
"""`held_scene`: known things in a relation or number that no training composite shows."""

KINDS: Mapping[Kind, float] = {
    "relation": 0.40, "count": 0.28, "pair": 0.14, "row": 0.08, "groups": 0.10,
}  # fmt: skip
COUNTS = (0.16, 0.28, 0.28, 0.28)  # of one, two, three, four
PAINTED_SHARE = 0.4  # scenes of things whose colour is ours to choose
SIZED_SHARE = 0.15  # pairs of which one is big and one small
WHITE_SHARE = 0.4
COLOUR_SAID = 0.4  # of things with one colour of their own
TRIES = 1000


@dataclass(frozen=True)
class _Style:
    """The pictures of one style that can stand in a scene, with how often each is drawn."""

    numbers: npt.NDArray[np.int64]
    upto: npt.NDArray[np.float64]

    def draw(self, rng: np.random.Generator) -> int:
        found = np.searchsorted(self.upto, rng.random() * self.upto[-1], side="right")
        return int(self.numbers[min(int(found), len(self.numbers) - 1)])


class SceneTable:
    """Everything that can stand in a composite: cutouts of the training split, by style."""

    def __init__(self, records: Sequence[Record]) -> None:
        """Take the records of a data set.

        Raises:
            DataError: fewer than three things of one style can stand in a scene.
        """
        self.records = records
        by_style: dict[tuple[bool, str], list[int]] = {}
        for number, one in enumerate(records):
            if one.cutout and one.split == "train" and one.weight > 0:
                by_style.setdefault((one.painted, one.style), []).append(number)
        self.styles: dict[bool, tuple[list[_Style], npt.NDArray[np.float64]]] = {}
        for painted in (False, True):
            styles, totals = [], []
            for (kind, _), numbers in sorted(by_style.items()):
                if kind == painted and len({records[i].name for i in numbers}) >= 3:
                    # The root evens out: what is rare alone still comes up in company.
                    upto = np.cumsum([records[i].weight ** 0.5 for i in numbers])
                    styles.append(_Style(np.array(numbers), upto))
                    totals.append(float(upto[-1]))
            if styles:
                self.styles[painted] = styles, np.cumsum(totals)
        if not self.styles:
            raise DataError(
                "no style has three different things that can stand in a composite",
                hint="build more rows, or draw without composites",
            )

    def draw(
        self,
        rng: np.random.Generator,
        split: SceneSplit = "train",
        kinds: Mapping[Kind, float] = KINDS,
    ) -> Scene:
        """A scene, its layout and its background, by nothing but the generator.

        ``kinds`` may be fewer than all, or others' shares.
        """
        for _ in range(TRIES):
            scene = self._try(rng, kinds)
            if scene is not None and scene.is_held == (split == "held_scene"):
                return scene
        raise DataError(f"no {split} composite was found in {TRIES} tries")

    def _try(self, rng: np.random.Generator, kinds: Mapping[Kind, float]) -> Scene | None:
        """A scene, or None if what came up does not go together."""
        kind = _pick(list(kinds), list(kinds.values()), rng)
        style = self._style(rng)
        counts = _counts(kind, rng)
        things: list[Thing] = []
        for count in counts:
            thing = self._thing(style, rng)
            if thing is None or any(_alike(thing, one) for one in things):
                return None
            things.append(replace(thing, count=count))
        sized = kind in ("relation", "pair") and rng.random() < SIZED_SHARE
        if sized:
            sizes = rng.permutation(["big", "small"]).tolist()
            things = [replace(one, size=size) for one, size in zip(things, sizes, strict=True)]
        background = self._background(things, rng)
        if background is None:
            return None
        arrangement = _arrangement(kind, sum(counts), rng)
        words = self.records[things[0].number].style_words
        return Scene(
            kind=kind,
            things=tuple(things),
            arrangement=arrangement,
            boxes=self._layout(things, arrangement, rng),
            background=background,
            style=words[int(rng.integers(len(words)))],
        )

    def _style(self, rng: np.random.Generator) -> _Style:
        painted = bool(rng.random() < PAINTED_SHARE)
        styles, upto = self.styles.get(painted) or self.styles[not painted]
        return styles[int(np.searchsorted(upto, rng.random() * upto[-1], side="right"))]

    def _thing(self, style: _Style, rng: np.random.Generator) -> Thing | None:
        number = style.draw(rng)
        record = self.records[number]
        if record.painted:
            colour = _pick(list(SHADES), [1.0] * len(SHADES), rng)
            if split_of(record.name, f"{record.style}:{colour}") != "train":
                return None
            shade = _pick(list(SHADES[colour]), [1.0] * len(SHADES[colour]), rng)
            return Thing(number=number, concept=record.name, colour=colour, shade=shade)
        said = record.colour and coloured(record.colour, record.name) and rng.random() < COLOUR_SAID
        return Thing(number=number, concept=record.name, colour=record.colour if said else "")

    def _background(self, things: Sequence[Thing], rng: np.random.Generator) -> str | None:
        """A background on which every thing shows."""
        hidden = {name for one in things for name in self._hidden_on(one)}
        if "white" not in hidden and rng.random() < WHITE_SHARE:
            return "white"
        names = [name for name in BACKGROUNDS if name not in hidden and name != "white"]
        return _pick(names, [1.0] * len(names), rng) if names else None

    def _hidden_on(self, thing: Thing) -> Sequence[str]:
        if not thing.shade:
            return self.records[thing.number].hidden_on
        paint = np.array(_rgb(thing.shade)) / 255
        return [name for name, rgb in BACKGROUNDS.items() if distance(paint, rgb) <= CLOSE]

    def _layout(
        self, things: Sequence[Thing], arrangement: Arrangement, rng: np.random.Generator
    ) -> tuple[tuple[int, Box], ...]:
        order = [index for index, one in enumerate(things) for _ in range(one.count)]
        if arrangement == "scattered":
            order = rng.permutation(order).tolist()
        found = list(zip(order, cells(len(order), arrangement, rng), strict=True))
        # All of one kind are drawn at one scale: the one that fits the tightest of their cells.
        scales: dict[int, float] = {}
        for index, cell in found:
            scales[index] = min(scales.get(index, 9.0), largest(self._box(things[index]), cell))
        share = {index: fill(rng) if not things[index].size else 1.0 for index in scales}
        scales = {index: scale * share[index] for index, scale in scales.items()}
        by_size = {one.size: index for index, one in enumerate(things)}
        if "small" in by_size:
            small, big = by_size["small"], by_size["big"]
            cell = dict(found)[small]
            scales[small] = small_scale(
                self._box(things[small]), cell, self._box(things[big]), scales[big], rng
            )
        return tuple(
            (index, place(self._box(things[index]), cell, scales[index], rng))
            for index, cell in found
        )

    def _box(self, thing: Thing) -> Box:
        return self.records[thing.number].box


def draw_composite(scene: Scene, pictures: GlyphPictures) -> Pixels:
    """The objects of a scene on nothing: ``S S 4`` uint8 at the size of the pictures."""
    size = pictures.size
    canvas = np.zeros((size, size, 4), dtype=np.uint8)
    rgba = pictures.rgba([thing.number for thing in scene.things])
    for index, thing in enumerate(scene.things):
        if thing.shade:
            rgba[index, ..., :3] = _rgb(thing.shade)
        left, top, width, height = (part * size for part in pictures.records[thing.number].box)
        crop = Image.fromarray(rgba[index]).crop(
            (int(left), int(top), int(np.ceil(left + width)), int(np.ceil(top + height)))
        )
        drawn: dict[tuple[int, int], npt.NDArray[np.uint8]] = {}
        for at in (box for which, box in scene.boxes if which == index):
            x, y, wide, high = (round(part * size) for part in at)
            wide, high = max(wide, 1), max(high, 1)
            if (wide, high) not in drawn:
                resized = crop.resize((wide, high), Image.Resampling.LANCZOS)
                drawn[wide, high] = np.asarray(resized, dtype=np.uint8)
            canvas[y : y + high, x : x + wide] = drawn[wide, high]
    return canvas


def _counts(kind: Kind, rng: np.random.Generator) -> list[int]:
    if kind == "count":
        return [_pick([1, 2, 3, 4], list(COUNTS), rng)]
    if kind == "groups":
        return _pick([[1, 2], [2, 1], [1, 3], [3, 1], [2, 2]], [1.0] * 5, rng)
    return [1] * (3 if kind == "row" else 2)


def _arrangement(kind: Kind, count: int, rng: np.random.Generator) -> Arrangement:
    if kind in ("relation", "row", "pair"):
        return _pick(["across", "down"], [0.5, 0.5] if kind == "relation" else [0.7, 0.3], rng)
    if kind == "groups" and count == 3:
        return _pick(["across", "down", "scattered"], [0.4, 0.2, 0.4], rng)
    if count == 1:
        return "scattered"
    return _pick(["across", "down", "scattered"], [0.35, 0.15, 0.5], rng)


def _alike(one: Thing, other: Thing) -> bool:
    """Whether a caption could not tell two things apart, or would sound as if it could not."""
    return bool(set(one.concept.split()) & set(other.concept.split()))


def _rgb(shade: str) -> tuple[int, int, int]:
    return int(shade[1:3], 16), int(shade[3:5], 16), int(shade[5:7], 16)


def _pick(options: Sequence[_T], shares: Sequence[float], rng: np.random.Generator) -> _T:
    """One of the options, by its share."""
    upto = np.cumsum(shares)
    found = int(np.searchsorted(upto, rng.random() * upto[-1], side="right"))
    return options[min(found, len(options) - 1)]
