"""Pictures with all that is truly said of them, and what a judge sees of them, kept on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from recipes.glyph.data.backgrounds import captioned
from recipes.glyph.data.mixture import COMPOSITE_SHARE, WHITE_SAID, Mixture, Sample
from recipes.glyph.data.pictures import RECORDS, GlyphPictures, Record
from recipes.glyph.data.scenes import caption, facts
from recipes.glyph.evaluate.visual_features import Sight
from sanakit.errors import DataError
from sanakit.files import replacing, sha256_of

CHUNK = 256
"""Pictures in a file of the cache: what an interruption loses at most."""
BATCH = 32

LooksArray = npt.NDArray[np.float16]
"""``n k``, what `Sight` gives."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A picture of the mixture: ``texts`` are all its captions without the background.

    ``ids`` are the records that it shows: one, or those of a composite's things.
    """

    sample: Sample
    texts: tuple[str, ...]
    ids: tuple[str, ...]
    concept: str = ""
    """Empty for composites, which differ from all else."""
    style: str = ""

    @property
    def clause(self) -> str:
        """What its own caption says of the background; may be nothing, on white."""
        end = captioned("", self.sample.background)
        return end if self.sample.caption.endswith(end) else ""

    @property
    def text(self) -> str:
        """Its own caption without the background."""
        return self.sample.caption.removesuffix(self.clause)

    def draw_caption(self, choice: float, said: float) -> tuple[str, str]:
        """One of its texts and a clause, by numbers in [0, 1); on white it is often left out."""
        text = self.texts[int(choice * len(self.texts))]
        plain = self.sample.background == "white" and said >= WHITE_SAID
        return text, "" if plain else captioned("", self.sample.background)


def data_revision(folder: Path) -> str:
    """What tells one build of the data from another: a hash of its records."""
    path = folder / RECORDS
    if not path.is_file():
        raise DataError(f"{path} is missing", hint="build the data set first")
    return sha256_of(path)[:16]


def draw_shown(pictures: GlyphPictures, *, split: str, count: int, seed: int) -> list[Shown]:
    """At most ``count`` different samples of the mixture; of the training split a part composites.

    Pictures come by weight and none twice, so that in the end the rare ones come up. A larger count
    begins with the samples of a smaller one.
    """
    mixture = Mixture(pictures, split=split, composites=0)
    scenes = Mixture(pictures, composites=1) if split == "train" else None
    weights = np.array([pictures.records[number].weight for number in mixture.numbers.tolist()])
    rng = np.random.default_rng(seed)
    # By weight without repeats: Efraimidis and Spirakis 2006. No weight is never drawn.
    keys = rng.exponential(size=len(weights)) / np.maximum(weights, 1e-300)
    numbers = mixture.numbers[np.argsort(keys, kind="stable")[: np.count_nonzero(weights)]]
    waiting = iter(numbers.tolist())
    found: list[Shown] = []
    while len(found) < count:
        if scenes is not None and rng.random() < COMPOSITE_SHARE:
            (sample,) = scenes.draw(1, rng)
        elif (number := next(waiting, None)) is None:
            break
        else:
            sample = mixture.sample_of(number, rng)
        found.append(_shown(sample, pictures.records))
    return found


def looks_of(
    sight: Sight,
    shown: Sequence[Shown],
    pictures: GlyphPictures,
    *,
    cache: Path | None = None,
    revision: str = "",
    report: Callable[[str], object] = lambda line: None,
) -> LooksArray:
    """What is seen of the real pictures; what ``cache`` has of them is read again.

    ``revision`` is that of the data: numbers in a cache are those of its pictures.
    """
    mixture = Mixture(pictures, composites=0)

    def seen(first: int, last: int) -> LooksArray:
        parts = [
            sight(mixture.images([one.sample for one in shown[at : min(at + BATCH, last)]]))
            for at in range(first, last, BATCH)
        ]
        return torch.cat(parts).half().numpy()

    found = []
    for first in range(0, len(shown), CHUNK):
        last = min(first + CHUNK, len(shown))
        path = None
        if cache is not None:
            told = [sight.fingerprint, pictures.size, revision]
            told += [asdict(one.sample) for one in shown[first:last]]
            key = sha256_of(json.dumps(told))[:16]
            path = cache / f"looks-{key}.npy"
        if path is not None and path.is_file():
            found.append(np.load(path))
            continue
        found.append(seen(first, last))
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, found[-1])
        report(f"looked at {last} of {len(shown)} pictures")
    return np.concatenate(found)


def _shown(sample: Sample, records: Sequence[Record]) -> Shown:
    if sample.scene is None:
        assert sample.number is not None
        record = records[sample.number]
        return Shown(
            sample=sample,
            texts=tuple(record.captions),
            ids=(record.id,),
            concept=record.name,
            style=record.style,
        )
    scene = sample.scene
    texts = [
        caption(scene, fact, with_style=styled, with_background=False)
        for fact in facts(scene)
        for styled in (False, True)
    ]
    ids = tuple(records[thing.number].id for thing in scene.things)
    return Shown(sample=sample, texts=tuple(dict.fromkeys(texts)), ids=ids)
