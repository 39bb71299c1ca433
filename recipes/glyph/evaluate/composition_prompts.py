"""The prompts that compositions are judged by: a fixed list of a data set, a seed and a number.

Every prompt comes with the truth that its words state, and with a real picture that meets it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from recipes.glyph.data.backgrounds import BACKGROUNDS, captioned
from recipes.glyph.data.captions import coloured
from recipes.glyph.data.composites import SceneTable
from recipes.glyph.data.layout import Arrangement
from recipes.glyph.data.mixture import Sample
from recipes.glyph.data.pictures import Record
from recipes.glyph.data.scenes import Scene, caption, facts
from recipes.glyph.data.shades import SHADES
from sanakit.errors import ConfigError, DataError

Kind = Literal["background", "colour", "relation", "count"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MOST = 4  # of one thing
TRIES = 1000
MORE = "the list is made of what training leaves out: build more rows of the glyph set"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One prompt, the truth it states, and what draws a real picture of it.

    ``things`` are concepts, for a relation in reading order along ``arrangement``; ``colour``
    and ``count`` are empty and 0 where they are not asked.
    """

    kind: Kind
    sample: Sample
    things: tuple[str, ...]
    colour: str = ""
    count: int = 0
    arrangement: Arrangement = "scattered"

    @property
    def prompt(self) -> str:
        """The words."""
        return self.sample.caption

    @property
    def background(self) -> str:
        """Its name; every prompt says it but for white, which only the kind "background" says."""
        return self.sample.background

    @property
    def truth(self) -> tuple[object, ...]:
        """What is judged: two prompts of one truth cannot be told apart."""
        return {
            "background": (self.background,),
            "colour": (self.colour,),
            "relation": (self.things, self.arrangement),
            "count": (self.count,),
        }[self.kind]


def wanted_prompts(
    records: Sequence[Record],
    count: int,
    *,
    seed: int = 0,
    kinds: Sequence[Kind] = KINDS,
) -> list[Wanted]:
    """``count`` prompts of each kind; the first of a longer list are a shorter list.

    - background: a picture of `held_style`, each named background as often as any other;
    - colour: "a red key": of `held_style`, each colour as often as any other; every second is
      painted, a pair of thing and colour that training never shows;
    - relation: two things in a relation that no training composite shows them in;
    - count: one to four of a thing, each as often; no training composite shows so many of it.

    Raises:
        ConfigError: a count below 1, or no such kind.
        DataError: the data set has nothing of a kind.
    """
    if count < 1:
        raise ConfigError(f"count={count} is less than 1", hint="100 of each kind are usual")
    makers = {"background": _backgrounds, "colour": _colours, "relation": _relations}
    found: list[Wanted] = []
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"no kind {kind!r} of composition", hint=f"kinds: {', '.join(KINDS)}")
        # A generator a kind: to ask for fewer kinds changes none of the others.
        rng = np.random.default_rng([seed, KINDS.index(kind)])
        found += itertools.islice(makers.get(kind, _counts)(records, rng), count)
    return found


def _held(records: Sequence[Record]) -> list[int]:
    """Pictures of known things in a style or colour that training never shows them in."""
    found = [
        number
        for number, one in enumerate(records)
        if one.split == "held_style" and one.cutout and not one.pale
    ]
    if not found:
        raise DataError(
            "no picture of the split held_style shows one whole thing",
            hint=MORE,
        )
    return found


def _backgrounds(records: Sequence[Record], rng: np.random.Generator) -> Iterator[Wanted]:
    numbers = _held(records)
    for name in itertools.cycle(BACKGROUNDS):
        shown = [n for n in numbers if name not in records[n].hidden_on]
        if not shown:
            raise DataError(f"no held picture shows on a {name} background", hint=MORE)
        number = int(rng.choice(shown))
        words = captioned(records[number].captions[0], name)
        sample = Sample(caption=words, background=name, number=number)
        yield Wanted(kind="background", sample=sample, things=(records[number].name,))


def _colours(records: Sequence[Record], rng: np.random.Generator) -> Iterator[Wanted]:
    pools: dict[tuple[bool, str], list[int]] = {}
    for number in _held(records):
        one = records[number]
        if one.colour in SHADES and coloured(one.colour, one.name) and "white" not in one.hidden_on:
            pools.setdefault((one.painted, one.colour), []).append(number)
    if not pools:
        raise DataError("no held picture has a colour word", hint=MORE)
    colours = [colour for colour in SHADES if {(True, colour), (False, colour)} & pools.keys()]
    said: set[tuple[str, str]] = set()
    for turn in itertools.count():
        colour = colours[turn // 2 % len(colours)]
        painted = bool(turn % 2)
        pair = [pools.get((which, colour), []) for which in (painted, not painted)]
        # No prompt twice, as long as there are others of its colour.
        fresh = [[n for n in pool if (colour, records[n].name) not in said] for pool in pair]
        number = int(rng.choice(next(pool for pool in (*fresh, *pair) if pool)))
        said.add((colour, records[number].name))
        one = records[number]
        # Painted pictures are only ever called icons; "a red apple" is any picture of one.
        words = one.captions[0] if one.painted else str(coloured(colour, one.name))
        sample = Sample(caption=words, background="white", number=number)
        yield Wanted(kind="colour", sample=sample, things=(one.name,), colour=colour)


def _relations(records: Sequence[Record], rng: np.random.Generator) -> Iterator[Wanted]:
    table = SceneTable(records)
    while True:
        scene = table.draw(rng, "held_scene", {"relation": 1.0})
        yield Wanted(
            kind="relation",
            sample=_said(scene, rng),
            things=tuple(one.concept for one in scene.things),
            arrangement=scene.arrangement,
        )


def _counts(records: Sequence[Record], rng: np.random.Generator) -> Iterator[Wanted]:
    table = SceneTable(records)
    waiting: dict[int, list[Scene]] = {number: [] for number in range(1, MOST + 1)}
    for number in itertools.cycle(waiting):
        for _ in range(TRIES):
            if waiting[number]:
                break
            # No number of one is new to training: any will do.
            scene = table.draw(rng, "train" if number == 1 else "held_scene", {"count": 1.0})
            if (scene.things[0].count == 1) == (number == 1):
                waiting[scene.things[0].count].append(scene)
        else:
            raise DataError(f"no held composite shows {number} of one thing", hint=MORE)
        scene = waiting[number].pop(0)
        yield Wanted(
            kind="count",
            sample=_said(scene, rng),
            things=(scene.things[0].concept,),
            count=number,
        )


def _said(scene: Scene, rng: np.random.Generator) -> Sample:
    """A scene in words, by the shares that training captions have."""
    options = facts(scene)
    text = caption(
        scene,
        options[int(rng.integers(len(options)))],
        with_style=bool(rng.random() < 0.5),
        with_background=scene.background != "white",
    )
    return Sample(caption=text, background=scene.background, scene=scene)
