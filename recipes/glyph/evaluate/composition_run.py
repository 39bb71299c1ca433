"""The family "composition": a model's pictures judged by program, between a floor and ceilings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from recipes.glyph.data.mixture import Mixture
from recipes.glyph.data.pictures import GlyphPictures
from recipes.glyph.evaluate.composition import (
    FEW,
    Finding,
    both_found,
    both_near,
    find,
    is_right,
    placed,
    shuffled,
    thing_found,
)
from recipes.glyph.evaluate.composition_judge import Describe, KnownThings, known_things
from recipes.glyph.evaluate.composition_prompts import KINDS, Kind, Wanted, wanted_prompts
from recipes.glyph.evaluate.pages import Group, Tile, bars, sheet
from sanakit.charts import save
from sanakit.errors import ConfigError
from sanakit.evaluate.features import BATCH
from sanakit.evaluate.figures import Evaluation, Figure, mean_figure
from sanakit.evaluate.pictures import GenerationSettings, generate_pictures
from sanakit.evaluate.restoration import restored
from sanakit.models.autoencoder import Autoencoder
from sanakit.pipeline.images import Pixels, from_pixels, to_pixels
from sanakit.pipeline.pipeline import Pipeline

PLOT, SHEET, COLOURS = "composition.png", "compositions.png", "colours.png"
SHOWN = 8
REAL, RESTORED, FLOOR = "real pictures", "real, through the autoencoder", "other prompts"
OTHER_ART = "real, known by other art alone"
Rule = Callable[[Finding, Wanted], bool]


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
