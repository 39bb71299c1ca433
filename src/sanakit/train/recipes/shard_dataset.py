"""Built shards as recipes read them: pictures or their latents, captions or their states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, get_args

import torch
from torch import Tensor

from sanakit.data.captions.choice import CaptionChoice
from sanakit.data.encode import ENDING, NULL, CachedStates, autoencoder_hash, text_encoder_hash
from sanakit.data.loader.batches import Batch
from sanakit.data.loader.folders import open_folder
from sanakit.data.loader.loader import Loader
from sanakit.data.shards import INDEX, read_index
from sanakit.data.training_set import LATENTS, SHARDS, TEXT, TrainingSet
from sanakit.errors import ConfigError, DataError
from sanakit.files import expanded
from sanakit.shapes import Image
from sanakit.train.sample_schedule import SampleSchedule

States = Literal["auto", "live", "cached"]


@dataclass(frozen=True, kw_only=True)
class ShardDataset:
    """Where pictures come from; ``latents`` and ``text`` are folders of cached states, or None."""

    shards: str
    captions: CaptionChoice = field(default_factory=CaptionChoice)
    latents: Path | None = None
    text: Path | None = None
    workers: int = 0

    def batches(self, schedule: SampleSchedule) -> Iterator[Batch]:
        """A rank's part of each batch from where ``schedule`` stands, without end.

        Raises:
            ConfigError: ``schedule`` does not stand between two batches.
        """
        if schedule.images_seen % schedule.batch_size:
            raise ConfigError(
                f"{schedule.images_seen} images are no whole number of batches of "
                f"{schedule.batch_size}",
                hint="resume with the batch_size that the run was started with",
            )
        loader = self.loader(schedule)
        loader.restore({**loader.state(), "next": schedule.images_seen // schedule.batch_size})
        return iter(loader)

    def loader(self, schedule: SampleSchedule) -> Loader:
        """The loader of a rank's part.

        Raises:
            DataError: there are no shards. ConfigError: as `Loader`.
        """
        return Loader(
            self.shards,
            batch_size=schedule.batch_size,
            seed=schedule.seed,
            rank=schedule.rank,
            world=schedule.ranks,
            workers=self.workers,
            captions=self.captions,
            latents=self.latents,
            text=self.text,
        )


def shards_of(data: str) -> str:
    """The shards of a set's folder, of a folder of shards, or an address of one.

    Raises:
        DataError: the folder is a set without shards, or nothing of that kind.
    """
    folder = expanded(data)
    if (folder / SHARDS / INDEX).is_file():
        return str(folder / SHARDS)
    if (folder / INDEX).is_file() or "://" in data:
        return data
    if folder.is_dir():
        TrainingSet.open(folder)
        raise DataError(f"{data} holds no built shards", hint=f"run: sanakit data build {data}")
    raise DataError(
        f"{data}: no such folder", hint="make it: sanakit data build my-pictures --out my-set"
    )


def resolution_of(shards: str) -> int:
    """About the side of the pictures, px.

    Raises:
        DataError: there is no index, or it is damaged.
    """
    return open_folder(shards).index().resolution


def cached_of(shards: str, model: str | None, states: States) -> tuple[Path | None, Path | None]:
    """Folders of the latents and the text states that the networks of ``model`` made of all shards.

    Raises:
        DataError: ``states`` is "cached" and there are none of this model.
        ConfigError: ``states`` is unknown.
    """
    if states not in get_args(States):
        raise ConfigError(f"--states {states!r} is unknown", hint="auto, live or cached")
    found: tuple[Path | None, Path | None] = (None, None)
    if states != "live" and "://" not in shards and model is not None:
        root = Path(shards).parent
        found = (
            _complete(root / LATENTS, Path(shards), autoencoder_hash(model), ()),
            _complete(root / TEXT, Path(shards), text_encoder_hash(model), (NULL,)),
        )
    if states == "cached" and None in found:
        what = "latents" if found[0] is None else "text states"
        raise DataError(
            f"{shards}: no {what} of {model or 'these networks'} beside them",
            hint=f"make them: sanakit data encode {Path(shards).parent} --model {model}",
        )
    return found


def _complete(folder: Path, shards: Path, encoder: str, more: tuple[str, ...]) -> Path | None:
    """The folder in ``folder`` whose states are of this encoder and of these very shards."""
    index = read_index(shards)
    assert index is not None
    for states in sorted(folder.iterdir()) if folder.is_dir() else ():
        units = [*more, *(shard.unit for shard in index.shards)]
        if not all((states / f"{unit}{ENDING}").is_file() for unit in units):
            continue
        found = {shard.unit: CachedStates(states, shard.unit).about for shard in index.shards}
        wanted = {shard.unit: (encoder, shard.sha256) for shard in index.shards}
        if wanted == {u: (a.get("encoder"), a.get("shard_sha256")) for u, a in found.items()}:
            return states
    return None


Pixels: TypeAlias = Tensor
"""``b 3 H W``, uint8, or fp32 in [-1, 1]."""
AT_A_TIME = 32


class PictureSource(Protocol):
    """Pictures without end to train on, and some to measure on."""

    @property
    def unseen(self) -> bool:
        """Whether held pictures are kept from training."""
        ...

    def batches(self, schedule: SampleSchedule) -> Iterator[Pixels]:
        """Pictures to train on, one tensor for each of ``schedule.spans()``; sizes may change.

        A function of ``schedule`` alone, as `Recipe.stream` asks.
        """
        ...

    def held(self, count: int) -> Iterator[Pixels]:
        """At most ``count`` pictures to measure on, some at a time, the same each time."""
        ...


def as_image(pixels: Pixels) -> Image:
    """Pixels as networks read them: fp32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1 if pixels.dtype == torch.uint8 else pixels


Batches: TypeAlias = Callable[[SampleSchedule], Iterable[Batch]]
"""A rank's part of each global batch, from the one that ``schedule`` stands at, without end."""


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

    def batches(self, schedule: SampleSchedule) -> Iterator[Pixels]:
        """A rank's pictures of each batch, in parts; those of a batch are of one size."""
        for batch in self._batches(schedule):
            yield from _channels_first(batch).split(schedule.size)

    def held(self, count: int) -> Iterator[Pixels]:
        """The first ``count`` pictures of the shards in another order than that of training."""
        fixed = SampleSchedule(seed=0, batch_size=min(count, AT_A_TIME))
        for batch in (self._held or self._batches)(fixed):
            pixels = _channels_first(batch)[:count]
            yield pixels
            count -= len(pixels)
            if count <= 0:
                return


def _channels_first(batch: Batch) -> Pixels:
    if batch.pixels is None:
        raise DataError("the loader gives latents, and an autoencoder trains on pictures")
    return batch.pixels.movedim(-1, 1)
