"""The real pictures that figures are of: of the glyph set, with captions, from its splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recipes.glyph.data.backgrounds import BACKGROUNDS
from recipes.glyph.data.mixture import Mixture, Sample
from recipes.glyph.data.pictures import RECORDS, SUMMARY, GlyphPictures, compose
from recipes.glyph.data.store import INDEX
from sanakit.errors import ConfigError, DataError
from sanakit.files import sha256_of
from sanakit.pipeline.pixels import Pixels, to_pixels

HELD = ("held_concept", "held_style")
WHITE = "white"
_SEEDS = {"train": 1, "held_concept": 2, "held_style": 3}


@dataclass(frozen=True)
class GlyphSamples:
    """Pictures of the glyph set on their backgrounds, at the size it was opened at."""

    pictures: GlyphPictures
    samples: Sequence[Sample]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, part: slice) -> Pixels:
        some = self.samples[part]
        behind = np.array([BACKGROUNDS[one.background] for one in some])
        return to_pixels(compose(self.pictures.rgba([_number(one) for one in some]), behind))

    @property
    def labels(self) -> list[str]:
        """What each picture shows: its concept and its style."""
        records = [self.pictures.records[_number(one)] for one in self.samples]
        return [f"{record.name}, {record.style}" for record in records]

    @property
    def asked(self) -> list[str]:
        """What tells these pictures from others: for the name of a cache."""
        index = (self.pictures.store.folder / INDEX).read_bytes()
        told = [f"{self.pictures.records[_number(s)].id} {s.background}" for s in self.samples]
        return [sha256_of(index), sha256_of("\n".join(told))]


def is_glyph_set(data: Path) -> bool:
    """Whether a folder is what `python -m recipes.glyph build` made."""
    return (data / SUMMARY).is_file() and (data / RECORDS).is_file()


def held_pictures(data: Path, *, size: int | None, count: int | None) -> GlyphSamples:
    """Held-out concepts on white, the same ones each time.

    Raises:
        DataError: there are none, or none of that size.
    """
    pictures = open_glyph_set(data, size)
    unseen = np.random.default_rng(0).permutation(pictures.indices("held_concept"))
    rows = np.sort(unseen[:count])
    if not len(rows):
        raise DataError(f"{data} holds no pictures of held-out concepts")
    white = [Sample(caption="", background=WHITE, number=int(row)) for row in rows]
    return GlyphSamples(pictures, white)


def open_glyph_set(data: Path, size: int | None) -> GlyphPictures:
    """The glyph set in a folder, for figures that need its captions and its splits.

    Raises:
        DataError: the folder is no glyph set, or has none of that size.
    """
    if not is_glyph_set(data):
        raise DataError(
            f"{data} is no glyph set: this figure needs captions, and splits that were never "
            "trained on",
            hint="name what `python -m recipes.glyph build` made",
        )
    return GlyphPictures.open(data, size)


def known_samples(pictures: GlyphPictures, count: int) -> list[Sample]:
    """At most ``count`` different pictures of the training split, each with a caption.

    They come by weight on the backgrounds of training; the same ones each time, and of a larger
    count the first are those of a smaller one. Composites are left out.

    Raises:
        ConfigError: ``count`` is not positive. DataError: the split is empty.
    """
    return _different(pictures, "train", count)


def held_samples(pictures: GlyphPictures, count: int) -> list[Sample]:
    """At most ``count`` different pictures that training never shows, each with a caption.

    Held-out concepts and held-out concept-style pairs, by how many there are of each, mixed.

    Raises:
        ConfigError: ``count`` is not positive. DataError: a split is empty.
    """
    sizes = {split: len(pictures.indices(split)) for split in HELD}
    whole = sum(sizes.values())
    first = min(sizes["held_concept"], round(count * sizes["held_concept"] / max(1, whole)))
    shares = {"held_concept": max(1, first), "held_style": max(1, count - first)}
    found = [one for split in HELD for one in _different(pictures, split, shares[split])][:count]
    return [found[place] for place in np.random.default_rng(0).permutation(len(found))]


def _different(pictures: GlyphPictures, split: str, count: int) -> list[Sample]:
    if count < 1:
        raise ConfigError(f"count={count} is not positive", hint="ask for at least one picture")
    mixture = Mixture(pictures, split=split, composites=0)
    weights = np.array([pictures.records[i].weight for i in mixture.numbers.tolist()])
    # By weight without repeats: Efraimidis and Spirakis 2006. No weight is never drawn.
    draws = np.random.default_rng([_SEEDS[split], 0]).exponential(size=len(weights))
    order = np.argsort(draws / np.maximum(weights, 1e-300), kind="stable")
    chosen = mixture.numbers[order[: min(count, np.count_nonzero(weights))]]
    rng = np.random.default_rng([_SEEDS[split], 1])
    return [mixture.sample_of(int(number), rng) for number in chosen]


def _number(sample: Sample) -> int:
    assert sample.number is not None
    return sample.number
