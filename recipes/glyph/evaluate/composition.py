"""Whether pictures show what their words compose: background, colour, relation, number."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from recipes.glyph.data.colours import HUES, UNNAMED, WORDS, name_pixels
from recipes.glyph.evaluate.composition_judge import Describe, KnownThings, crop
from recipes.glyph.evaluate.composition_prompts import Kind, Wanted
from recipes.glyph.evaluate.grouping import copies, two_things
from recipes.glyph.evaluate.segmentation import SURE, Part, Pixels, Seen, take_apart

NAMED = 0.08  # Oklab: a background farther from every known one has no name
PLAIN_BORDER = 0.5  # part of the border that must have one colour to be a background
FEW = 5  # concepts nearest to a thing that pass for its own, where that is asked
HUE = 0.3  # part of a thing's named pixels that one hue must have: outlines may have the rest


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """A thing in a picture: how like it is to each known concept, and where its centre is.

    ``likeness`` has the most like first; ``other`` is the same, if the very art of the prompt's
    real picture is not known. ``centre`` is in parts of the sides.
    """

    likeness: Mapping[str, float]
    other: Mapping[str, float] = field(default_factory=dict)
    centre: tuple[float, float]

    @property
    def concept(self) -> str:
        """The nearest."""
        return next(iter(self.likeness))

    def is_near(self, concept: str) -> bool:
        """Whether a concept is among the few nearest."""
        return concept in itertools.islice(self.likeness, FEW)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a picture shows, whatever its prompt was; ``background`` and ``colour`` may be empty.

    ``things`` are two for a relation; for a count they are all of them.
    """

    background: str
    colour: str
    things: tuple[Sighting, ...] = ()
    pieces: int = 0
    """Parts that the background does not connect."""

    def by_other_art(self) -> Finding:
        """The same, with things known by other art than that of the prompt's real picture."""
        return replace(self, things=tuple(replace(one, likeness=one.other) for one in self.things))


@dataclass
class _Looked:
    """A picture taken apart; its options are ways to see things in it."""

    seen: Seen
    options: list[list[Part]] = field(default_factory=list)


def find(
    pictures: Iterable[Pixels],
    prompts: Sequence[Wanted],
    known: KnownThings | None,
    describe: Describe,
) -> list[Finding]:
    """What each picture shows. Of its prompt only the kind is used: what to look for.

    ``known`` may be None if no prompt is of a relation or a count. Of several ways to see two
    things the one is taken in which they are most like known ones.
    """
    looked = [_look(picture, one.kind) for picture, one in zip(pictures, prompts, strict=True)]
    crops = [crop(one.seen, thing) for one in looked for option in one.options for thing in option]
    features = iter(describe(np.stack(crops)) if crops else ())
    found = []
    for one, prompt in zip(looked, prompts, strict=True):
        things: tuple[Sighting, ...] = ()
        for option in one.options:
            assert known is not None, "relations and counts are of known things"
            sighted = tuple(_sight(one.seen, part, known, features, prompt) for part in option)
            if not things or _sure(sighted) > _sure(things):
                things = sighted
        background = one.seen.background
        plain = background.share >= PLAIN_BORDER and background.apart <= NAMED
        found.append(
            Finding(
                background=background.name if plain else "",
                colour=colour_word(one.seen) if prompt.kind == "colour" else "",
                things=things,
                pieces=len(one.seen.parts),
            )
        )
    return found


def _look(picture: Pixels, kind: Kind) -> _Looked:
    seen = take_apart(picture)
    if kind == "relation":
        return _Looked(seen, two_things(seen.parts))
    if kind == "count" and seen.parts:
        return _Looked(seen, [copies(seen.parts, min(picture.shape[:2]))])
    return _Looked(seen)


def _sight(
    seen: Seen,
    part: Part,
    known: KnownThings,
    features: Iterator[npt.NDArray[np.float32]],
    prompt: Wanted,
) -> Sighting:
    own = [] if prompt.sample.scene is None else [one.number for one in prompt.sample.scene.things]
    of = next(features)
    height, width = seen.strength.shape
    across, down = part.centre
    return Sighting(
        likeness=known.likeness(of),
        other=known.likeness(of, without=own),
        centre=(across / width, down / height),
    )


def _sure(things: Sequence[Sighting]) -> float:
    return sum(one.likeness[one.concept] for one in things) / len(things)


def colour_word(seen: Seen) -> str:
    """The basic colour word of most of what is drawn; empty if no word is clear.

    Only what is well inside is asked, where anything is: edges are mixed with the background. A
    hue needs fewer pixels than black, gray and white, which outlines and lights have too.
    """
    drawn = seen.strength >= SURE
    inside = drawn.copy()
    for axis in (0, 1):
        inside &= np.roll(drawn, 1, axis) & np.roll(drawn, -1, axis)
    asked = inside if inside.sum() >= 0.2 * drawn.sum() else drawn
    if not asked.any():
        return ""
    counts = np.bincount(name_pixels(seen.pixels[asked]), minlength=UNNAMED + 1)
    named = counts[:UNNAMED]
    if named.sum() < 0.2 * counts.sum():
        return ""
    hue = int(named[:HUES].argmax())
    return WORDS[hue if named[hue] >= HUE * named.sum() else int(named.argmax())]


def is_right(finding: Finding, wanted: Wanted) -> bool:
    """Whether what was found is what the prompt says of the one thing that its kind is about.

    Of a relation: both things are there, the first is before the other along its axis, and they
    stand along this axis rather than across it. Of a count: so many things, whatever they are.
    """
    if wanted.kind == "background":
        return finding.background == wanted.background
    if wanted.kind == "colour":
        return finding.colour == wanted.colour
    if wanted.kind == "count":
        return len(finding.things) == wanted.count
    names = [one.concept for one in finding.things]
    return both_found(finding, wanted) and _in_order(finding, names, wanted)


def both_found(finding: Finding, wanted: Wanted) -> bool:
    """Whether the things that were found are those of a relation, in any place."""
    return sorted(one.concept for one in finding.things) == sorted(wanted.things)


def both_near(finding: Finding, wanted: Wanted) -> bool:
    """Whether both things of a relation are among the few that are nearest to what was found."""
    one, other = wanted.things
    pairs = itertools.permutations(finding.things, 2)
    return any(first.is_near(one) and second.is_near(other) for first, second in pairs)


def placed(finding: Finding, wanted: Wanted) -> bool:
    """Whether two things stand as the relation says, if they are the two that it names.

    Which is which is decided by likeness to these two alone: things that nobody would recognise
    may still stand right. A quarter is chance, for pictures of two things.
    """
    if len(finding.things) != 2:
        return False
    ways = [list(wanted.things), list(wanted.things[::-1])]
    sums = [
        sum(one.likeness.get(name, -1.0) for one, name in zip(finding.things, way, strict=True))
        for way in ways
    ]
    return _in_order(finding, ways[int(sums[1] > sums[0])], wanted)


def _in_order(finding: Finding, names: Sequence[str], wanted: Wanted) -> bool:
    axis = 0 if wanted.arrangement == "across" else 1
    centres = [one.centre for one in finding.things]
    (start, first), (end, second) = sorted(
        zip(centres, names, strict=True), key=lambda one: one[0][axis]
    )
    apart = [abs(one - other) for one, other in zip(start, end, strict=True)]
    return (first, second) == wanted.things and apart[axis] > apart[1 - axis]


def thing_found(finding: Finding, wanted: Wanted) -> bool:
    """Whether most things that were counted are the one that the prompt names."""
    names = Counter(one.concept for one in finding.things)
    return bool(names) and names.most_common(1)[0][0] == wanted.things[0]


Rule = Callable[[Finding, Wanted], bool]


def shuffled(findings: Sequence[Finding], prompts: Sequence[Wanted], rule: Rule) -> list[float]:
    """For each picture, the part of all other pictures' prompts that it answers: the floor."""
    if len(prompts) < 2:
        return []
    return [
        float(np.mean([rule(one, other) for at, other in enumerate(prompts) if at != number]))
        for number, one in enumerate(findings)
    ]
