"""The embedded model's autoencoder: the glyph set on random backgrounds, and its losses."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from recipes.glyph.data.backgrounds import BACKGROUNDS
from recipes.glyph.data.pictures import GlyphPictures, compose
from sanakit.train.recipes.autoencoder import AutoencoderObjective
from sanakit.train.recipes.shard_dataset import AT_A_TIME, Pixels
from sanakit.train.sample_schedule import (
    SampleSchedule,
    generator_of,
    uniform_of,
)

WHITE_SHARE = 0.5
GLYPH_LOSSES = AutoencoderObjective(pooled=1.0, l2=1.0)


class GlyphSource:
    """The glyph set on random backgrounds; measured on concepts that are never trained on.

    A picture comes by the root of its weight: it evens out, so that rare weights still count for
    an autoencoder, which has no captions.
    """

    unseen = True

    def __init__(self, pictures: GlyphPictures) -> None:
        self.pictures = pictures
        self.train_indices = torch.from_numpy(pictures.indices("train"))
        weights = [pictures.records[i].weight for i in self.train_indices.tolist()]
        self.chances = chances(torch.tensor(weights, dtype=torch.float64).sqrt())

    def batches(self, schedule: SampleSchedule) -> Iterator[Pixels]:
        """Pictures of the training split."""
        for span in schedule.spans():
            uniform = uniform_of([generator_of(schedule.seed, k) for k in span], 6)
            rows = self.train_indices[drawn_by_weight(self.chances, uniform[:, 0])].numpy()
            yield compose(self.pictures.rgba(rows), backgrounds_of(uniform[:, 1:]))

    def held(self, count: int) -> Iterator[Pixels]:
        """Pictures of the held-out concepts, on white."""
        rows = self.held_rows(count)
        for some in np.array_split(rows, max(1, -(-len(rows) // AT_A_TIME))):
            yield compose(self.pictures.rgba(some), np.ones((len(some), 3), dtype=np.float32))

    def held_rows(self, count: int) -> npt.NDArray[np.int64]:
        """A fixed sample of them, in order."""
        unseen = np.random.default_rng(0).permutation(self.pictures.indices("held_concept"))
        return np.sort(unseen[:count])


def backgrounds_of(uniform: Float[Tensor, "b 5"]) -> npt.NDArray[np.float32]:
    """Half white, a quarter named colours, a quarter any colour; ``b 3`` in [0, 1]."""
    named = torch.tensor(list(BACKGROUNDS.values()), dtype=torch.float32)
    chosen = named[(uniform[:, 0] * len(named)).long()]
    anything, kind = uniform[:, 1:4], uniform[:, 4:]
    colour = torch.where(kind < 0.75, chosen, anything)
    return torch.where(kind < WHITE_SHARE, torch.ones_like(colour), colour).numpy()


def chances(weights: Tensor) -> Tensor:
    """Turn weights into what :func:`drawn_by_weight` looks up: their running share, fp64."""
    running = weights.double().cumsum(0)
    return running / running[-1]


def drawn_by_weight(chances: Tensor, uniform: Tensor) -> Tensor:
    """Choose by weight, one choice for each number in [0, 1)."""
    return torch.searchsorted(chances, uniform.double(), right=True).clamp_max(len(chances) - 1)
