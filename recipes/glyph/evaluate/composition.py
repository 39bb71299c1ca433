"""Whether pictures show what words state: prompts with their truth, rules, figures."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from recipes.glyph.data.backgrounds import BACKGROUNDS, captioned
from recipes.glyph.data.captions import coloured
from recipes.glyph.data.colours import HUES, UNNAMED, WORDS, name_pixels
from recipes.glyph.data.composites import SceneTable
from recipes.glyph.data.layout import Arrangement
from recipes.glyph.data.mixture import Mixture, Sample
from recipes.glyph.data.pictures import GlyphPictures, Record
from recipes.glyph.data.scenes import Scene, caption, facts
from recipes.glyph.data.shades import SHADES
from recipes.glyph.evaluate.composition_judge import (
    SURE,
    Describe,
    KnownThings,
    Part,
    Seen,
    copies,
    crop,
    known_things,
    take_apart,
    two_things,
)
from recipes.glyph.evaluate.pages import Group, Tile, bars, sheet
from sanakit.charts import save
from sanakit.errors import ConfigError, DataError
from sanakit.evaluate.features import BATCH
from sanakit.evaluate.figures import Evaluation, Figure, mean_figure
from sanakit.evaluate.pictures import GenerationSettings, generate_pictures
from sanakit.evaluate.restoration import restored
from sanakit.models.autoencoder import Autoencoder
from sanakit.pipeline.pipeline import Pipeline
from sanakit.pipeline.pixels import Pixels, from_pixels, to_pixels

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

    Which is which is decided by likeness to these two alone: things that would not be recognised
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


PLOT, SHEET, COLOURS = "composition.png", "compositions.png", "colours.png"
SHOWN = 8
REAL, RESTORED, FLOOR = "real pictures", "real, through the autoencoder", "other prompts"
OTHER_ART = "real, known by other art alone"


@dataclass(frozen=True)
class Measure:
    """A question about the pictures of one kind of prompt."""

    name: str
    kind: Kind
    rule: Rule


MEASURES = (
    Measure("background colour", "background", is_right),
    Measure("object colour", "colour", is_right),
    Measure("two-object relation", "relation", is_right),
    Measure("both objects are there", "relation", both_found),
    Measure(f"both are among the {FEW} nearest", "relation", both_near),
    Measure("objects stand right, whatever they are", "relation", placed),
    Measure("count of 1 to 4", "count", is_right),
    Measure("what is counted is the object", "count", thing_found),
)


@dataclass(frozen=True)
class Judged:
    """What was found in pictures of the prompts: the model's, real ones, restored ones."""

    prompts: Sequence[Wanted]
    drawn: Sequence[Finding]
    real: Sequence[Finding]
    restored: Sequence[Finding]


def evaluate_composition(
    pipeline: Pipeline,
    pictures: GlyphPictures,
    describe: Describe,
    *,
    model: str,
    data: str,
    out: Path,
    cache: Path,
    count: int = 100,
    kinds: Sequence[Kind] = KINDS,
    prompts_seed: int = 0,
    settings: GenerationSettings | None = None,
    report: Callable[[str], object] = lambda line: None,
) -> Evaluation:
    """Draw ``count`` prompts of each kind, judge, and write figures, a plot and two sheets.

    Real pictures of the same prompts, at the model's size, are judged beside: as they are (the
    ceiling of the judge), through the model's autoencoder (the ceiling of the model), and with
    things known by other art alone (what recognising them costs). The floor is what the model's
    pictures get for the other prompts of their kind.

    Raises:
        ConfigError: no such kind, a count below 1, or as `Pipeline.generate`.
        DataError: the data set has nothing of a kind.
    """
    settings = settings or GenerationSettings()
    prompts = wanted_prompts(pictures.records, count, seed=prompts_seed, kinds=kinds)
    texts = [one.prompt for one in prompts]
    drawn = generate_pictures(pipeline, texts, settings, cache=cache, report=report)
    if drawn.shape[1] != drawn.shape[2]:
        raise ConfigError(
            f"pictures of {drawn.shape[1]} x {drawn.shape[2]} px", hint="compositions are squares"
        )
    real = real_pictures(pictures, prompts, side=drawn.shape[1])
    report(f"{len(real)} real pictures of the same prompts")
    again = _restored(pipeline.components.autoencoder, real)
    known = known_of(pictures, prompts, describe)

    def found(what: str, some: Pixels) -> list[Finding]:
        report(f"looking at {what}")
        return find(some, prompts, known, describe)

    judged = Judged(
        prompts, found("drawn pictures", drawn), found(REAL, real), found(RESTORED, again)
    )
    figures = figures_of(judged)
    evaluation = Evaluation(
        family="composition",
        model=model,
        data=data,
        settings={
            "prompts": f"{count} of each kind: {', '.join(kinds)}; list {prompts_seed}",
            "pictures": f"one a prompt, {drawn.shape[1]} px; real ones at {pictures.size} px, "
            "resized to that (Lanczos)",
            "known things": "none" if known is None else _told(known),
            "drawing": asdict(settings),
        },
        figures=figures,
        details={"breakdown": breakdown(judged), "prompts": _details(judged)},
    )
    out.mkdir(parents=True, exist_ok=True)
    evaluation.save(out)
    _draw(judged, figures, drawn, model=model, out=out)
    return evaluation


def real_pictures(pictures: GlyphPictures, prompts: Sequence[Wanted], *, side: int) -> Pixels:
    """A real picture of each prompt, ``n side side 3``."""
    mixture = Mixture(pictures, composites=0)
    found = np.empty((len(prompts), side, side, 3), dtype=np.uint8)
    for picture, one in zip(found, prompts, strict=True):
        pixels = to_pixels(mixture.images([one.sample]))[0]
        if pictures.size != side:
            shown = Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS)
            pixels = np.asarray(shown, dtype=np.uint8)
        picture[:] = pixels
    return found


def known_of(
    pictures: GlyphPictures, prompts: Sequence[Wanted], describe: Describe
) -> KnownThings | None:
    """All things that relations and counts of the list name; None if it has no such prompts."""
    concepts = {name for one in prompts if one.kind in ("relation", "count") for name in one.things}
    return known_things(pictures, concepts, describe) if concepts else None


def figures_of(judged: Judged) -> list[Figure]:
    """Each measure of the model, with its floor and its ceilings."""
    figures: list[Figure] = []
    for measure in MEASURES:
        rows = [at for at, one in enumerate(judged.prompts) if one.kind == measure.kind]
        if not rows:
            continue
        prompts = [judged.prompts[at] for at in rows]
        sets = [("", judged.drawn), (REAL, judged.real), (RESTORED, judged.restored)]
        for name, findings in sets:
            some = [findings[at] for at in rows]
            right = [measure.rule(one, prompt) for one, prompt in zip(some, prompts, strict=True)]
            figures.append(_figure(measure, name, right))
            if name == "" and (floor := shuffled(some, prompts, measure.rule)):
                figures.append(_figure(measure, FLOOR, floor))
        if measure.kind == "relation":
            some = [judged.real[at].by_other_art() for at in rows]
            right = [measure.rule(one, prompt) for one, prompt in zip(some, prompts, strict=True)]
            figures.append(_figure(measure, OTHER_ART, right))
    return figures


def _figure(measure: Measure, name: str, right: Sequence[float | bool]) -> Figure:
    better: Literal["higher", ""] = "" if name else "higher"
    title = f"{measure.name}: {name}" if name else measure.name
    return mean_figure(title, np.asarray(right, dtype=float), better=better)


def breakdown(judged: Judged) -> dict[str, dict[str, float]]:
    """The part that is right of each background, colour, number and axis; drawn and real."""
    found: dict[str, dict[str, float]] = {}
    for name, findings in (("drawn", judged.drawn), ("real", judged.real)):
        groups: dict[str, list[bool]] = {}
        for one, prompt in zip(findings, judged.prompts, strict=True):
            of = prompt.truth[-1]
            groups.setdefault(f"{prompt.kind}: {of}", []).append(is_right(one, prompt))
        found[name] = {key: round(float(np.mean(some)), 4) for key, some in groups.items()}
    return found


def _restored(autoencoder: Autoencoder, pixels: Pixels) -> Pixels:
    parts = [
        to_pixels(restored(autoencoder, from_pixels(pixels[first : first + BATCH])))
        for first in range(0, len(pixels), BATCH)
    ]
    return np.concatenate(parts)


def _told(known: KnownThings) -> str:
    return f"{len(set(known.concepts))} concepts by {len(known.concepts)} training pictures"


def _details(judged: Judged) -> list[dict[str, Any]]:
    return [
        {
            "kind": prompt.kind,
            "prompt": prompt.prompt,
            "right": is_right(one, prompt),
            "seen": verdict(one, prompt),
            "right of real": is_right(real, prompt),
            "seen of real": verdict(real, prompt),
        }
        for prompt, one, real in zip(judged.prompts, judged.drawn, judged.real, strict=True)
    ]


def verdict(finding: Finding, wanted: Wanted) -> str:
    """What was seen of what the prompt's kind is about, in words."""
    if wanted.kind == "background":
        return finding.background or "no plain background"
    if wanted.kind == "colour":
        return finding.colour or "no clear colour"
    names = [one.concept for one in finding.things]
    if wanted.kind == "count":
        return f"{len(names)}: {', '.join(dict.fromkeys(names))}" if names else "nothing"
    if len(names) < 2:
        return "fewer than two things"
    one, other = finding.things
    (x, y), (u, v) = one.centre, other.centre
    words = ("left of", "right of") if abs(x - u) > abs(y - v) else ("above", "below")
    first = x < u if words[0] == "left of" else y < v
    return f"{one.concept} {words[0] if first else words[1]} {other.concept}"


def _draw(
    judged: Judged, figures: Sequence[Figure], drawn: Pixels, *, model: str, out: Path
) -> None:
    by_name = {figure.name: figure for figure in figures}
    others = (FLOOR, REAL, RESTORED)
    groups = [
        Group(
            name=one.name,
            figures=[by_name[one.name], *(by_name.get(f"{one.name}: {other}") for other in others)],
        )
        for one in MEASURES
        if one.name in by_name
    ]
    title = f"{model}: compositions that are right"
    save(bars(groups, ("the model", *others), title=title), out / PLOT)
    for file, kinds in ((SHEET, ("relation", "count")), (COLOURS, ("background", "colour"))):
        here = [kind for kind in kinds if any(one.kind == kind for one in judged.prompts)]
        rows = [
            at
            for kind in here
            for at in [n for n, one in enumerate(judged.prompts) if one.kind == kind][
                : SHOWN // len(here)
            ]
        ]
        if rows:
            tiles = []
            for at in rows:
                finding, prompt = judged.drawn[at], judged.prompts[at]
                mark = "right" if is_right(finding, prompt) else "wrong"
                seen = f"{mark}: {verdict(finding, prompt)}"
                tiles.append(Tile(pixels=drawn[at], caption=prompt.prompt, seen=seen))
            title = f"{model}: the first prompts of each kind"
            save(sheet([("", tiles)], title=title), out / file)
