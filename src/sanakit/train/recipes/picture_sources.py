"""Where an autoencoder's pictures come from: the glyph set, or shards of one's own pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from recipes.glyph.data.backgrounds import BACKGROUNDS
from recipes.glyph.data.pictures import GlyphPictures, compose
from torch import Tensor

from sanakit.data.loader.loader import Loader
from sanakit.errors import DataError
from sanakit.shapes import Image
from sanakit.train.sample_schedule import Share, chances, drawn_by_weight, generator_of, uniform_of

Pixels: TypeAlias = Tensor
"""``b 3 H W``, uint8, or fp32 in [-1, 1]."""
WHITE_SHARE = 0.5
AT_A_TIME = 32


class PictureSource(Protocol):
    """Pictures without end to train on, and some to measure on."""

    @property
    def unseen(self) -> bool:
        """Whether held pictures are kept from training."""
        ...

    def batches(self, share: Share) -> Iterator[Pixels]:
        """Pictures to train on, one tensor for each of ``share.spans()``; sizes may change.

        A function of ``share`` alone, as `Recipe.stream` asks.
        """
        ...

    def held(self, count: int) -> Iterator[Pixels]:
        """At most ``count`` pictures to measure on, some at a time, the same each time."""
        ...


def as_image(pixels: Pixels) -> Image:
    """Pixels as networks read them: fp32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1 if pixels.dtype == torch.uint8 else pixels


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


class PixelBatch(Protocol):
    """What is needed of a loader's batch."""

    @property
    def pixels(self) -> Tensor | None:
        """Pictures, uint8 ``b h w 3``."""
        ...


Batches: TypeAlias = Callable[[Share], Iterable[PixelBatch]]
"""A rank's part of each global batch, from the one that ``share`` stands at, without end."""


class ShardSource:
    """Pictures that were built into shards, in the order of their loader.

    Without shards of their own, held pictures are the first ones trained on, and measures say so.
    """

    def __init__(self, batches: Batches, held: Batches | None = None) -> None:
        self._batches = batches
        self._held = held

    @property
    def unseen(self) -> bool:
        """Whether held pictures have shards of their own."""
        return self._held is not None

    def batches(self, share: Share) -> Iterator[Pixels]:
        """A rank's pictures of each batch, in parts; those of a batch are of one size."""
        for batch in self._batches(share):
            yield from _channels_first(batch).split(share.size)

    def held(self, count: int) -> Iterator[Pixels]:
        """The first ``count`` pictures of the shards in another order than that of training."""
        fixed = Share(seed=0, batch_size=min(count, AT_A_TIME))
        for batch in (self._held or self._batches)(fixed):
            pixels = _channels_first(batch)[:count]
            yield pixels
            count -= len(pixels)
            if count <= 0:
                return


def open_shards(
    shards: str | Path, *, held: str | Path | None = None, workers: int = 0
) -> ShardSource:
    """Read what `sanakit data build` made: a folder `SET/shards`, or its address.

    ``held`` are shards of other pictures, to measure on; ``workers`` are processes that decode.

    Raises:
        DataError: there are no shards. ConfigError: a batch that does not split over the ranks.
    """

    def batches_of(place: str | Path) -> Batches:
        def batches(share: Share) -> Iterable[PixelBatch]:
            reading = Loader(
                place,
                batch_size=share.batch_size,
                seed=share.seed,
                rank=share.rank,
                world=share.ranks,
                workers=workers,
            )
            reading.restore({**reading.state(), "next": share.images_seen // share.batch_size})
            return reading

        return batches

    return ShardSource(batches_of(shards), None if held is None else batches_of(held))


def _channels_first(batch: PixelBatch) -> Pixels:
    if batch.pixels is None:
        raise DataError("the loader gives latents, and an autoencoder trains on pictures")
    return batch.pixels.movedim(-1, 1)
