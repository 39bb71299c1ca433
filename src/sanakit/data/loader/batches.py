"""One batch, read and decoded in one process; others stand in for damaged samples."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import get_worker_info

from sanakit.data.captions.choice import CaptionChoice
from sanakit.data.loader.folders import ShardFolder
from sanakit.data.loader.order import Order, Plan
from sanakit.data.loader.reading import (
    DamagedSample,
    ShardReader,
    StateReader,
    padded,
    stacked,
)
from sanakit.data.resize_and_crop import fit, fitted
from sanakit.data.samples import Caption
from sanakit.data.shards import ShardFile
from sanakit.errors import DataError, SanakitError
from sanakit.images.decode import BadPicture, decoded_image

_LONGEST_SEARCH = 64  # damaged samples in a row; a longer run is a damaged disk, not bad luck


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's share of a global batch; all samples have one size.

    Either ``pixels``, uint8 ``b h w 3``, or ``latents``, scaled, ``b c h w``. ``text``, where it
    was asked for, are the captions' states ``b l d``, and ``text_mask`` says which are real. The
    null prompt is the empty text by the captioner "". ``replaced`` says of each damaged sample
    why another one stands in its place.
    """

    number: int
    """Of the global batch, counted from 0 over all epochs."""
    epoch: int
    height: int
    width: int
    ids: list[str]
    captions: list[str]
    captioners: list[str]
    pixels: Tensor | None = None
    latents: Tensor | None = None
    text: Tensor | None = None
    text_mask: Tensor | None = None
    replaced: dict[str, str] = field(default_factory=dict)

    def pin_memory(self) -> Batch:
        """The same batch in memory that a GPU copies from while other work goes on."""
        return replace(
            self,
            pixels=_pinned(self.pixels),
            latents=_pinned(self.latents),
            text=_pinned(self.text),
            text_mask=_pinned(self.text_mask),
        )


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which slots of every global batch are ours: those of ``rank`` out of ``world``."""

    rank: int
    world: int

    def of(self, positions: tuple[int, ...]) -> tuple[int, ...]:
        """The contiguous part that is ours."""
        size = len(positions) // self.world
        return positions[self.rank * size : (self.rank + 1) * size]


@dataclass(kw_only=True)
class BatchReader:
    """Gives batches by number; the data set of a torch ``DataLoader`` whose workers decode.

    ``doing`` tells the main process what each worker is at: a row (process, batch, slot) a worker,
    0 while it waits.
    """

    folder: ShardFolder
    order: Order
    share: Share
    captions: CaptionChoice
    latents: StateReader | None
    text: StateReader | None
    doing: Tensor
    _shards: ShardReader | None = None

    def __getitem__(self, number: int) -> Batch | SanakitError:
        """Read a batch. Errors are values: raised here, a worker would bury them in its own."""
        plan = self.order.plan(number)
        try:
            return self._read(plan)
        except SanakitError as error:
            return error
        except Exception as error:
            return DataError(
                f"batch {number} cannot be read ({type(error).__name__}: {error})",
                hint=f"it reads {', '.join(self.files(plan))}",
            )

    def files(self, plan: Plan) -> list[str]:
        """The shards that our share of a batch is read from."""
        found = {self.where(plan, slot)[0].file for slot in range(self._slots(plan))}
        return sorted(found)

    def where(self, plan: Plan, slot: int, *, after: int = 0) -> tuple[ShardFile, int]:
        """The shard and row of one of our slots, or of the sample ``after`` it in the stream."""
        bucket = self.order.contents.buckets[plan.bucket]
        position = (self.share.of(plan.positions)[slot] + after) % bucket.samples
        shard, row = self.order.place(plan.epoch, plan.bucket, position)
        return bucket.shards[shard], row

    def _slots(self, plan: Plan) -> int:
        return len(self.share.of(plan.positions))

    def _read(self, plan: Plan) -> Batch:
        bucket = self.order.contents.buckets[plan.bucket]
        slots = self._slots(plan)
        pixels = _shared(slots, bucket.height, bucket.width, 3) if self.latents is None else None
        found: list[_Found] = []
        replaced: dict[str, str] = {}
        for slot in range(slots):
            self._tell(plan, slot)
            target = None if pixels is None else pixels[slot]
            found.append(self._usable(plan, slot, target, replaced))
        self._rest()
        latents = [one.latent for one in found if one.latent is not None]
        texts = [one.text for one in found if one.text is not None]
        text, mask = padded(texts) if texts else (None, None)
        return Batch(
            number=plan.number,
            epoch=plan.epoch,
            height=bucket.height,
            width=bucket.width,
            ids=[one.id for one in found],
            captions=["" if one.caption is None else one.caption.text for one in found],
            captioners=["" if one.caption is None else one.caption.captioner for one in found],
            pixels=pixels,
            latents=stacked(latents) if latents else None,
            text=text,
            text_mask=mask,
            replaced=replaced,
        )

    def _usable(
        self, plan: Plan, slot: int, target: Tensor | None, replaced: dict[str, str]
    ) -> _Found:
        """The slot's sample, or the next of its stream that is whole: the same for all ranks."""
        if self._shards is None:
            self._shards = ShardReader(self.folder)
        for after in range(_LONGEST_SEARCH):
            shard, row = self.where(plan, slot, after=after)
            try:
                return self._sample(self._shards, shard, row, plan.epoch, target)
            except (DamagedSample, BadPicture) as error:
                damaged = self._shards.id(shard, row)
                replaced[damaged] = f"{shard.file}: {error.message}"
        raise DataError(
            f"{self.folder.name}: {_LONGEST_SEARCH} samples in a row are damaged, the last one "
            f"{damaged!r} ({replaced[damaged]})",
            hint="build again: sanakit data build",
        )

    def _sample(
        self, shards: ShardReader, shard: ShardFile, row: int, epoch: int, target: Tensor | None
    ) -> _Found:
        """Read one sample with its caption; its picture goes to ``target``."""
        sample = shards.read(shard, row, image=target is not None)
        caption = self.captions.choose(
            sample.captions, seed=self.order.seed, epoch=epoch, id=sample.id
        )
        if target is not None:
            size = (target.shape[0], target.shape[1])
            fit_into(target, decoded_image(sample.image, cover=size)[0])
        latent = text = None
        if self.latents is not None:
            latent = self.latents.latent(shard, sample.id)
        if self.text is not None:
            text = self.text.text(shard, "" if caption is None else caption.text)
        return _Found(sample.id, caption, latent, text)

    def _tell(self, plan: Plan, slot: int) -> None:
        worker = get_worker_info()
        if worker is not None:
            self.doing[worker.id] = torch.tensor([os.getpid(), plan.number, slot])

    def _rest(self) -> None:
        worker = get_worker_info()
        if worker is not None:
            self.doing[worker.id] = 0


class _Found(NamedTuple):
    """A sample of a batch, and all of it but its pixels."""

    id: str
    caption: Caption | None
    latent: Tensor | None
    text: Tensor | None


def _pinned(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.pin_memory()


def _shared(*shape: int) -> Tensor:
    """An uninitialised uint8 tensor, in a worker where the main process sees it without a copy."""
    batch = torch.empty(shape, dtype=torch.uint8)
    return batch if get_worker_info() is None else batch.share_memory_()


def fit_into(slot: Tensor, image: Image.Image) -> None:
    """Write an RGB picture into its slot of a batch, uint8 ``h w 3``.

    A picture of the slot's size is copied. Others are as :func:`fitted` makes them,
    to within half a pixel of place and a few levels: torch's resize of uint8 takes a quarter
    of Pillow's time, but starts at whole pixels.
    """
    height, width = slot.shape[:2]
    if image.size == (width, height):
        slot.numpy()[...] = np.asarray(image)
        return
    how = fit(image.height, image.width, (height, width))
    if not _has_lanczos():
        slot.numpy()[...] = fitted(np.asarray(image), (height, width))
        return
    top, left = round(how.top), round(how.left)
    # Cut before it becomes an array: what is thrown away need not be copied. And not asarray, as
    # torch warns of arrays that it could write to but must not.
    kept = np.array(image.crop((left, top, image.width - left, image.height - top)))
    resized = F.interpolate(
        torch.from_numpy(kept).permute(2, 0, 1)[None],
        size=(height, width),
        mode="lanczos" if how.scale < 1 else "bicubic",
        antialias=True,
    )
    slot.copy_(resized[0].permute(1, 2, 0))


@cache
def _has_lanczos() -> bool:
    """Whether this version of torch resizes by Lanczos."""
    try:
        # Not to a single pixel: torch 2.13 fails there, by an assertion of its own.
        F.interpolate(
            torch.zeros(1, 3, 8, 8, dtype=torch.uint8), size=4, mode="lanczos", antialias=True
        )
    except (NotImplementedError, ValueError, RuntimeError):
        return False
    return True
