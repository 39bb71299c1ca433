"""The family "names": is a drawn emoji found by its looks, among all emoji?

The gallery is what three sets agree that a name looks like: of each name the mean feature of its
three pictures, centred on all names and of length one. A picture's rank is that of the name it was
drawn for. The features are those of a classifier of photographs, which no training here has met.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from recipes.glyph.data.captions import phrase
from recipes.glyph.data.mixture import Sample
from recipes.glyph.data.pictures import GlyphPictures
from recipes.glyph.data.word_lists import word_list
from recipes.glyph.evaluate.pages import Tile, sheet
from recipes.glyph.evaluate.pictures import WHITE, GlyphSamples
from recipes.glyph.evaluate.retrieval import Ranks, hits
from sanakit.charts import save
from sanakit.errors import ConfigError, DataError
from sanakit.evaluate.features import NAME, Describer, Features, features_of
from sanakit.evaluate.figures import Evaluation, Figure, mean_figure
from sanakit.evaluate.pictures import GenerationSettings
from sanakit.evaluate.restoration import Restored
from sanakit.pipeline.pipeline import Pipeline
from sanakit.pipeline.pixels import Pixels

Stratum: TypeAlias = Literal["names", "words"]
STRATA: tuple[Stratum, ...] = ("names", "words")
"""Names of emoji, drawn at random; and what a child would type, all of it."""
SOURCES = ("noto", "fluent-emoji-flat", "twemoji")
"""The sets that the gallery is made of."""
UNSEEN = "emojione"
"""A set beside them, whose pictures say how often a real one is found."""
ASKED = "{name}, flat emoji, white background"
WORDS = tuple(re.split(r"\s*[|\n]\s*", word_list("evaluation-words").strip()))
COUNT, SEED = 200, 1
AT = (1, 5)
SHOWN = 10
"""Pictures abreast on a sheet."""
# Hands of each tone, people of each trade and buttons with letters are told apart by details alone.
_LEFT_OUT = re.compile(
    r"(?:^|-)(skin|flags?|person|people|man|woman|clock|thirty|arrows?|button|keycap)(?:-|$)"
)

Report = Callable[[str], object]
Look = Callable[..., Features]
"""`features_of` with its network, its cache and its report."""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Names in order, the rows of their looks ``n d``, and the centre ``d`` that was taken off.

    ``concepts`` are what the set calls the things, by name: "dog" of "dog-face".
    """

    names: tuple[str, ...]
    concepts: tuple[str, ...]
    looks: Features
    centre: npt.NDArray[np.float32]

    def ranks(self, features: Features, places: Sequence[int]) -> Ranks:
        """How many other names are at least as near to each picture as its own; 0 is best."""
        agreement = _unit(features - self.centre) @ self.looks.T
        own = agreement[np.arange(len(places)), places]
        return np.asarray((~(agreement < own[:, None])).sum(axis=1) - 1, dtype=np.int64)

    def nearest(self, features: Features) -> list[str]:
        """The name that each picture looks like most."""
        best = np.argmax(_unit(features - self.centre) @ self.looks.T, axis=1)
        return [self.names[place] for place in best.tolist()]


def pictures_of_names(pictures: GlyphPictures, source: str) -> dict[str, int]:
    """The numbers of one set's pictures by the set's own names for them, without those left out."""
    start = f"{source}/"
    return {
        name: number
        for number, record in enumerate(pictures.records)
        if record.id.startswith(start)
        and not _LEFT_OUT.search(name := record.id.removeprefix(start))
    }


def shared_names(pictures: GlyphPictures) -> tuple[str, ...]:
    """The names that all sets of the gallery have, in order.

    Raises:
        DataError: there are fewer than two.
    """
    each = [pictures_of_names(pictures, source).keys() for source in SOURCES]
    names = tuple(sorted(set.intersection(*map(set, each))))
    if len(names) < 2:
        raise DataError(
            f"{len(names)} names that {', '.join(SOURCES)} share, and two are the fewest",
            hint="build the set with the row emoji and without --limit",
        )
    return names


def gallery_of(pictures: GlyphPictures, look: Look) -> Gallery:
    """Look at all pictures of the gallery, on white.

    Raises:
        DataError: as `shared_names`.
    """
    names = shared_names(pictures)
    looks = []
    for source in SOURCES:
        numbers = pictures_of_names(pictures, source)
        shown = _on_white(pictures, [numbers[name] for name in names])
        looks.append(look(shown, asked=shown.asked))
    mean = np.mean(looks, axis=0)
    centre = mean.mean(axis=0)
    first = pictures_of_names(pictures, SOURCES[0])
    concepts = tuple(pictures.records[first[name]].name for name in names)
    return Gallery(names=names, concepts=concepts, looks=_unit(mean - centre), centre=centre)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is drawn: a word, its prompt, and where the gallery has it, if it does."""

    word: str
    prompt: str
    place: int | None


def random_names(gallery: Gallery, *, count: int, seed: int) -> list[Asked]:
    """So many names at random; the first of a longer list are the shorter list."""
    chosen = np.random.default_rng(seed).permutation(len(gallery.names))[:count]
    names = {place: gallery.names[place].replace("-", " ") for place in chosen.tolist()}
    return [
        Asked(word=name, prompt=ASKED.format(name=name), place=place)
        for place, name in names.items()
    ]


def everyday_words(gallery: Gallery) -> list[Asked]:
    """The list of words as people type them; a word is found as a concept, or as a name."""
    places = {name.replace("-", " "): place for place, name in enumerate(gallery.names)}
    places |= {concept: place for place, concept in reversed(list(enumerate(gallery.concepts)))}
    return [Asked(word=word, prompt=phrase(word), place=places.get(word)) for word in WORDS]


def evaluate_names(
    pipeline: Pipeline,
    pictures: GlyphPictures,
    network: Describer,
    *,
    model: str,
    data: str,
    out: Path,
    cache: Path,
    count: int = COUNT,
    names_seed: int = 0,
    strata: Sequence[Stratum] = STRATA,
    settings: GenerationSettings | None = None,
    report: Report = lambda line: None,
) -> Evaluation:
    """Draw, find, and write figures with a sheet of all pictures for each stratum into ``out``.

    All prompts have the seed of ``settings``, 1 if there are none. Ceilings are real pictures of a
    set that the gallery has not, of the same names where it draws them: as they are, and
    through the model's autoencoder.

    Raises:
        ConfigError: ``count`` is less than 1, no such stratum. DataError: too few names.
    """
    if count < 1:
        raise ConfigError(f"count={count} is less than 1", hint="200 is usual")
    if unknown := [one for one in strata if one not in STRATA]:
        raise ConfigError(f"no stratum {unknown[0]!r}", hint=f"strata: {', '.join(STRATA)}")
    settings = settings or GenerationSettings(seed=SEED)
    look = partial(features_of, network, cache=cache, report=report)
    gallery = gallery_of(pictures, look)
    out.mkdir(parents=True, exist_ok=True)
    figures: list[Figure] = []
    details: dict[str, object] = {}
    for stratum in strata:
        title = _TITLES[stratum]
        if stratum == "names":
            asked = random_names(gallery, count=count, seed=names_seed)
        else:
            asked = everyday_words(gallery)
        drawn = _draw(pipeline, [one.prompt for one in asked], settings, report=report)
        features = look(drawn)
        rows = [row for row, one in enumerate(asked) if one.place is not None]
        places = [one.place for one in asked if one.place is not None]
        ranks = gallery.ranks(features[rows], places)
        figures += _figures(title, ranks, drawn=True)
        if stratum == "names":
            figures += _ceilings(pipeline, pictures, gallery, look, places, drawn.shape[1])
        found = dict(zip(rows, (ranks + 1).tolist(), strict=True))
        details[title] = [
            {"prompt": one.prompt, "rank": found.get(row), "looks like": near}
            for row, (one, near) in enumerate(zip(asked, gallery.nearest(features), strict=True))
        ]
        tiles = [
            Tile(pixels=drawn[row], caption=one.word, seen=str(found.get(row, "")))
            for row, one in enumerate(asked)
        ]
        told = f"{model}: {title} with their ranks, unselected, seed {settings.seed}"
        save(sheet([("", tiles)], title=told, columns=SHOWN), out / f"{stratum}.png")
    evaluation = Evaluation(
        family="names",
        model=model,
        data=data,
        settings={
            "gallery": f"{len(gallery.names):,} names of {', '.join(SOURCES)}",
            "features": f"{NAME}, mean over the sets, centred, by cosine",
            "names": f"{count} by seed {names_seed}",
            "drawing": asdict(settings),
        },
        figures=figures,
        details=details,
    )
    evaluation.save(out)
    return evaluation


_TITLES: Mapping[Stratum, str] = {"names": "emoji names", "words": "everyday words"}


def _draw(
    pipeline: Pipeline, prompts: Sequence[str], settings: GenerationSettings, *, report: Report
) -> Pixels:
    """One picture a prompt, all of the same seed."""
    found = []
    for number, prompt in enumerate(prompts):
        found.append(pipeline.generate(settings.request(prompt, 0)).pictures[0].pixels)
        if number % SHOWN == SHOWN - 1:
            report(f"generated {number + 1} of {len(prompts)}")
    return np.stack(found)


def _ceilings(
    pipeline: Pipeline,
    pictures: GlyphPictures,
    gallery: Gallery,
    look: Look,
    places: Sequence[int],
    side: int,
) -> list[Figure]:
    """Of the other set's pictures, as they are and as the model could draw them at best."""
    numbers = pictures_of_names(pictures, UNSEEN)
    there = [place for place in places if gallery.names[place] in numbers]
    if not there:
        return []
    real = _on_white(pictures, [numbers[gallery.names[place]] for place in there])
    again = Restored(pipeline.components.autoencoder, real, side)
    told = [*real.asked, pipeline.components.fingerprint, side]
    return [
        *_figures(f"real pictures of {UNSEEN}", gallery.ranks(look(real, asked=real.asked), there)),
        *_figures(
            "the same through the autoencoder", gallery.ranks(look(again, asked=told), there)
        ),
    ]


def _figures(title: str, ranks: Ranks, *, drawn: bool = False) -> list[Figure]:
    if not len(ranks):
        return []
    up: Literal["higher", ""] = "higher" if drawn else ""
    down: Literal["lower", ""] = "lower" if drawn else ""
    found = [mean_figure(f"R@{at}, {title}", hits(ranks, at), better=up) for at in AT]
    return [*found, mean_figure(f"median rank, {title}", ranks + 1, _median, better=down)]


def _median(ranks: npt.NDArray[np.int64]) -> float:
    return float(np.median(ranks))


def _on_white(pictures: GlyphPictures, numbers: Sequence[int]) -> GlyphSamples:
    samples = [Sample(caption="", background=WHITE, number=number) for number in numbers]
    return GlyphSamples(pictures, samples)


def _unit(rows: Features) -> Features:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-12), dtype=np.float32)
