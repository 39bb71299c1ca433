"""Compositions as facts: which things, how many, where, on which background; and true captions.

A scene is drawn from a generator alone and knows nothing of pixels; `composites` draws it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from recipes.glyph.data.backgrounds import captioned
from recipes.glyph.data.captions import article
from recipes.glyph.data.layout import Arrangement
from recipes.glyph.data.plurals import counted
from recipes.glyph.data.rasterize import Box
from recipes.glyph.data.split import HELD_PART, fraction

Kind = Literal["count", "relation", "pair", "row", "groups"]


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One kind of thing in a scene, and how many there are of it.

    ``number`` is its picture; ``colour`` is a word to say before the concept, or empty;
    ``shade`` (hexadecimal) repaints the picture; ``size`` is "big", "small" or empty.
    """

    number: int
    concept: str
    colour: str = ""
    shade: str = ""
    size: str = ""
    count: int = 1

    @property
    def name(self) -> str:
        """What it is called, without an article: "small red key"."""
        return " ".join(word for word in (self.size, self.colour, self.concept) if word)

    def __str__(self) -> str:
        return article(self.name)

    @property
    def counted(self) -> str:
        """Its name after a number: "three red keys"."""
        return counted(self.count, self.name)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Things in reading order, where each of them stands, and what is behind them.

    ``boxes`` are ``(index into things, box of what is visible)``, one for every single object.
    ``style`` are words true of all pictures in it.
    """

    kind: Kind
    things: tuple[Thing, ...]
    arrangement: Arrangement
    boxes: tuple[tuple[int, Box], ...]
    background: str
    style: str

    @property
    def keys(self) -> tuple[str, ...]:
        """What is new in it, for holding combinations out: relations of things, and counts."""
        found = [f"count:{one.count}:{one.concept}" for one in self.things if one.count > 1]
        if self.kind == "groups":
            names = sorted(f"{one.count}:{one.concept}" for one in self.things)
            found.append(f"groups:{'|'.join(names)}")
        elif self.arrangement != "scattered":
            found += [
                f"{self.arrangement}:{one.concept}|{other.concept}"
                for one, other in combinations(self.things, 2)
            ]
        return tuple(found)

    @property
    def is_held(self) -> bool:
        """Whether no training picture may show this combination."""
        return any(fraction(f"scene:{key}") < HELD_PART for key in self.keys)


def facts(scene: Scene) -> tuple[str, ...]:
    """All ways of saying what is in a scene, the plainest first; each exactly true."""
    if scene.kind == "count":
        return _counts(scene)
    if scene.kind == "groups":
        one, other = (thing.counted for thing in scene.things)
        return (f"{one} and {other}", f"{other} and {one}")
    names = [str(thing) for thing in scene.things]
    if scene.kind == "row":
        return _rows(names, scene.arrangement)
    one, other = names
    if scene.kind == "pair":
        beside = (f"{one} next to {other}",) if scene.arrangement == "across" else ()
        return (f"{one} and {other}", f"{other} and {one}", *beside)
    if scene.arrangement == "across":
        return (
            f"{one} to the left of {other}",
            f"{other} to the right of {one}",
            f"{one} on the left and {other} on the right",
            f"{one} left of {other}",
            f"{other} right of {one}",
        )
    return (
        f"{one} above {other}",
        f"{other} below {one}",
        f"{one} at the top and {other} at the bottom",
        f"{other} under {one}",
        f"{one} over {other}",
    )


def _counts(scene: Scene) -> tuple[str, ...]:
    (thing,) = scene.things
    if thing.count == 1:
        return (f"one {thing.name}", f"a single {thing.name}", f"just one {thing.name}")
    plain = (thing.counted, f"exactly {thing.counted}")
    words = {"across": "in a row", "down": "in a column", "scattered": ""}[scene.arrangement]
    return (*plain, f"{thing.counted} {words}") if words else plain


def _rows(names: list[str], arrangement: Arrangement) -> tuple[str, ...]:
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    if arrangement == "across":
        return (f"from left to right: {listed}", f"{listed} in a row")
    return (f"from top to bottom: {listed}", f"{listed} in a column", f"{listed}, top to bottom")


def caption(scene: Scene, fact: str, *, with_style: bool, with_background: bool) -> str:
    """A fact about a scene with its style and its background."""
    text = f"{fact}, {scene.style} style" if with_style and scene.style else fact
    return captioned(text, scene.background) if with_background else text
