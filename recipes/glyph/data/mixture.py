"""What training draws: pictures by weight and composites by their share, each with one caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from recipes.glyph.data.backgrounds import BACKGROUNDS, captioned
from recipes.glyph.data.composites import SceneSplit, SceneTable, draw_composite
from recipes.glyph.data.pictures import GlyphPictures, Record, compose
from recipes.glyph.data.rasterize import Pixels
from recipes.glyph.data.scenes import Scene, caption, facts
from recipes.glyph.data.split import PROTECTED
from sanakit.errors import ConfigError, DataError
from sanakit.shapes import Image

COMPOSITE_SHARE = 0.2
WHITE_SHARE = 0.5
WHITE_SAID = 0.1  # of captions of pictures on white; any other background is always said
WHITE_SAID_OF_SCENE = 0.25
STYLE_SAID = 0.5
"""Of captions of composites; the captions of pictures have their own shares of style words."""
EVERYDAY = 3.0
"""How much more often than its weight says a thing comes that people ask for first."""
SILHOUETTE = "silhouette"  # so many that they need no help


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One thing to train on: picture ``number`` or a composite, its background, its caption."""

    caption: str
    background: str
    number: int | None = None
    scene: Scene | None = None


class Mixture:
    """Draws samples of one split; the same generator state gives the same samples.

    Drawing is cheap and reads no pictures; :meth:`rgba` and :meth:`images` read them.
    """

    def __init__(
        self,
        pictures: GlyphPictures,
        *,
        split: str = "train",
        composites: float = COMPOSITE_SHARE,
        white: float = WHITE_SHARE,
        everyday: float = EVERYDAY,
    ) -> None:
        """Take a data set; ``composites`` and ``white`` are shares in [0, 1].

        ``everyday`` multiplies the weight of the things that no split holds back (`PROTECTED`).

        Composites hold known things only, so that of a held-out split there are none: give
        ``composites=0``. :meth:`held_scenes` draws what is new in composites.

        Raises:
            ConfigError: a share is not one, or composites of a held-out split are asked for.
            DataError: the split holds no pictures, or no composite can be made.
        """
        for name, share in (("composites", composites), ("white", white)):
            if not 0 <= share <= 1:
                raise ConfigError(f"{name}={share} is no share", hint=f"give {name} in [0, 1]")
        if composites and split != "train":
            raise ConfigError(f"composites={composites} of {split}", hint="give composites=0")
        self.pictures = pictures
        self.composites = composites
        self.white = white
        self.numbers = pictures.indices(split)
        weights = np.array(
            [
                record.weight * (everyday if is_everyday(record) else 1.0)
                for record in (pictures.records[i] for i in self.numbers.tolist())
            ]
        )
        if not weights.sum() > 0:
            raise DataError(f"split {split} holds no picture to draw")
        self._upto = np.cumsum(weights)
        self._table = SceneTable(pictures.records) if composites else None

    def draw(self, count: int, rng: np.random.Generator) -> list[Sample]:
        """So many samples."""
        kinds = rng.random(count) < self.composites
        places = np.searchsorted(self._upto, rng.random(count) * self._upto[-1], side="right")
        places = np.minimum(places, len(self.numbers) - 1)
        return [
            self._composite(rng) if kind else self.sample_of(int(self.numbers[place]), rng)
            for kind, place in zip(kinds.tolist(), places.tolist(), strict=True)
        ]

    def held_scenes(self, count: int, rng: np.random.Generator) -> list[Sample]:
        """Composites of known things in relations and numbers that training never shows."""
        return [self._composite(rng, "held_scene") for _ in range(count)]

    def rgba(self, samples: Sequence[Sample]) -> Pixels:
        """Their pictures without background: ``b S S 4`` uint8, straight alpha."""
        size = self.pictures.size
        found = np.empty((len(samples), size, size, 4), dtype=np.uint8)
        for picture, one in zip(found, samples, strict=True):
            if one.scene is not None:
                picture[:] = draw_composite(one.scene, self.pictures)
            else:
                assert one.number is not None
                picture[:] = self.pictures.rgba([one.number])[0]
        return found

    def images(self, samples: Sequence[Sample]) -> Image:
        """Their pictures on their backgrounds: ``b 3 S S`` in [-1, 1]."""
        behind = np.array([BACKGROUNDS[one.background] for one in samples])
        return compose(self.rgba(samples), behind)

    def words(self, sample: Sample, rng: np.random.Generator) -> str:
        """Another caption of a sample, as likely as the one it was drawn with."""
        if sample.scene is not None:
            return self._words_of_scene(sample.scene, rng)
        assert sample.number is not None
        record = self.pictures.records[sample.number]
        text = record.captions[int(rng.integers(len(record.captions)))]
        said = sample.background != "white" or rng.random() < WHITE_SAID
        return captioned(text, sample.background) if said else text

    def sample_of(self, number: int, rng: np.random.Generator) -> Sample:
        """Picture ``number`` on a background, with a caption."""
        record = self.pictures.records[number]
        names = [name for name in BACKGROUNDS if name not in record.hidden_on] or list(BACKGROUNDS)
        if names[0] == "white" and (rng.random() < self.white or len(names) == 1):
            background = "white"
        else:
            others = [name for name in names if name != "white"]
            background = others[int(rng.integers(len(others)))]
        sample = Sample(caption="", background=background, number=number)
        return replace(sample, caption=self.words(sample, rng))

    def _composite(self, rng: np.random.Generator, split: SceneSplit = "train") -> Sample:
        if self._table is None:
            self._table = SceneTable(self.pictures.records)
        scene = self._table.draw(rng, split)
        words = self._words_of_scene(scene, rng)
        return Sample(caption=words, background=scene.background, scene=scene)

    def _words_of_scene(self, scene: Scene, rng: np.random.Generator) -> str:
        options = facts(scene)
        fact = options[int(rng.integers(len(options)))]
        said = scene.background != "white" or rng.random() < WHITE_SAID_OF_SCENE
        with_style = bool(rng.random() < STYLE_SAID)
        return caption(scene, fact, with_background=bool(said), with_style=with_style)


def is_everyday(record: Record) -> bool:
    """Whether a picture shows what people ask for first; silhouettes are many as it is."""
    return record.name in PROTECTED and record.style != SILHOUETTE
