"""Where an autoencoder's pictures come from: shards of one's own pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from sanakit.data.loader.loader import Loader
from sanakit.errors import DataError
from sanakit.shapes import Image
from sanakit.train.sample_schedule import Share

Pixels: TypeAlias = Tensor
"""``b 3 H W``, uint8, or fp32 in [-1, 1]."""
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
