"""The embedded model's autoencoder: the glyph set on random backgrounds, and its losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from recipes.glyph.data.backgrounds import BACKGROUNDS
from recipes.glyph.data.pictures import GlyphPictures, compose
from sanakit.models.config import AUTOENCODERS
from sanakit.train.config import LoopConfig
from sanakit.train.recipes.autoencoder import AutoencoderSettings, Phase
from sanakit.train.recipes.autoencoder_run import AutoencoderRun, put_together
from sanakit.train.recipes.picture_sources import AT_A_TIME, Pixels
from sanakit.train.sample_schedule import (
    Share,
    chances,
    drawn_by_weight,
    generator_of,
    uniform_of,
)

WHITE_SHARE = 0.5
GLYPH_LOSSES = AutoencoderSettings(pooled=1.0, l2=1.0)
GLYPH_PHASES: Mapping[Phase, tuple[AutoencoderSettings, Mapping[str, Any]]] = {
    "full": (GLYPH_LOSSES, {"peak_lr": 1e-3, "warmup_images": 6_400, "decay_share": 0.33}),
    "latent": (replace(GLYPH_LOSSES, phase="latent"), {}),
    "decoder": (replace(GLYPH_LOSSES, phase="decoder", latent_noise=0.15), {}),
    "refine": (
        replace(GLYPH_LOSSES, phase="refine", perceptual=1.0, adversarial=0.1),
        {"betas": (0.5, 0.9), "peak_lr": 2e-4},
    ),
}
"""Losses, and what of the loop differs from phase to phase."""


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

    def batches(self, share: Share) -> Iterator[Pixels]:
        """Pictures of the training split."""
        for span in share.spans():
            uniform = uniform_of([generator_of(share.seed, k) for k in span], 6)
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


def glyph_autoencoder(
    data: Path,
    *,
    phase: Phase = "full",
    start: str | Path | None = None,
    size: int | None = None,
    settings: Sequence[str] = (),
) -> AutoencoderRun:
    """The embedded model's DC-AE: 256 px to 8 x 8 x 32, 17.5 M parameters.

    ``start`` is what `start_autoencoder` takes: the weights to begin with; ``size`` is which of the
    data set's sizes to train on, where there are several; ``settings`` are
    ``key=value``, of `AutoencoderSettings` and `LoopConfig`.
    """
    source = GlyphSource(GlyphPictures.open(data, size))
    losses, changes = GLYPH_PHASES[phase]
    usual: dict[str, Any] = {"peak_lr": 5e-4, "warmup_images": 1_600, "decay_share": 0.7}
    usual |= {"batch_size": 32, "total_images": 66_000, "evaluate_every": 300}
    loop = LoopConfig(**(usual | {"compile_blocks": True} | dict(changes)))
    return put_together(source, losses, loop, start, AUTOENCODERS["glyph"], settings)
