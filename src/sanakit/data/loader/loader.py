"""Batches of a built training set, from any place, in an order that no machine changes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

import torch

from sanakit.data.captions.choice import CaptionChoice
from sanakit.data.loader.batches import Batch, BatchReader, Share
from sanakit.data.loader.folders import contents_of, open_folder
from sanakit.data.loader.order import Order, Remainder
from sanakit.data.loader.reading import open_states
from sanakit.data.loader.workers import received, started
from sanakit.errors import ConfigError, DataError, SanakitError

FORMAT = 1
_DEFAULT_CHOICE = CaptionChoice()


class Loader:
    """Endless batches of built shards; :meth:`state` and :meth:`restore` go on from any of them.

    The sequence of global batches, their captions included, depends on the shards, ``seed`` and
    ``batch_size`` alone; ranks share each batch, workers take turns. A worker decodes whole
    batches. One set of workers lives at a time: until the iteration is closed, dropped, or begun
    anew.

    Args:
        shards: The folder `SET/shards`, or its address for fsspec, such as ``s3://bucket/shards``.
        batch_size: Samples of a global batch; a multiple of ``world``.
        seed: Of order and captions.
        rank: Which share of each batch is ours, below ``world``.
        world: How many loaders share each batch.
        workers: Processes that decode; 0 decodes in this one, when a batch is asked for.
        prefetch: Batches that each worker has ready or in work; without workers none is.
        captions: How a caption is chosen, and how often none.
        latents: A folder `SET/latents/KEY` of `sanakit data encode`; batches hold latents then, and
            no pixels.
        text: A folder `SET/text/KEY` of it; batches hold the states of their captions then, too.
        remainder: ``repeat`` fills a bucket's last batch with samples of the epoch before it,
            ``drop`` leaves it out; :attr:`repeated` and :attr:`dropped` count them.
        shuffle_shards: Shards of a bucket whose samples are mixed, and read, at a time.
        pin_memory: For quick copies to a GPU; None: if there is one.
        cache: Where shards of an address are kept; None: the user's cache folder.
        cache_gb: What they may take there, in 10^9 bytes, 50 by default; where a window of shards
            of each bucket needs more, they are fetched again and again.
        max_bad: Share of an epoch's samples that may be damaged; others stand in for them.
            More is an error, though one is always allowed unless it is 0.

    Raises:
        ConfigError: an option breaks a rule.
        DataError: there are no shards, or their index is damaged.
    """

    def __init__(
        self,
        shards: str | Path,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        prefetch: int = 2,
        captions: CaptionChoice = _DEFAULT_CHOICE,
        latents: str | Path | None = None,
        text: str | Path | None = None,
        remainder: Remainder = "repeat",
        shuffle_shards: int = 8,
        pin_memory: bool | None = None,
        cache: Path | None = None,
        cache_gb: float | None = None,
        max_bad: float = 0.01,
    ) -> None:
        _check(
            batch_size=batch_size,
            rank=rank,
            world=world,
            workers=workers,
            prefetch=prefetch,
            shuffle_shards=shuffle_shards,
        )
        if remainder not in get_args(Remainder):
            raise ConfigError(f"remainder={remainder!r} must be one of {get_args(Remainder)}")
        if not 0 <= max_bad <= 1:
            raise ConfigError(f"max_bad={max_bad} must be a share, from 0 to 1")
        if pin_memory and not torch.cuda.is_available():
            raise ConfigError("pin_memory=True needs a GPU that torch can use", hint="leave it out")
        folder = open_folder(shards, cache=cache, cache_gb=cache_gb)
        self._order = Order(
            contents=contents_of(folder.index(), source=folder.name),
            seed=int(seed),
            batch_size=batch_size,
            shuffle_shards=shuffle_shards,
            remainder=remainder,
        )
        if self._order.batches_per_epoch == 0:
            largest = max(bucket.samples for bucket in self._order.contents.buckets)
            raise ConfigError(
                f"remainder='drop' leaves nothing: no bucket has batch_size={batch_size} samples",
                hint=f"batch_size={largest}, or remainder='repeat'",
            )
        self._reader = BatchReader(
            folder=folder,
            order=self._order,
            share=Share(rank=rank, world=world),
            captions=captions,
            latents=open_states(latents),
            text=open_states(text),
            doing=torch.zeros(workers, 3, dtype=torch.int64).share_memory_(),
        )
        self._digest = self._order.contents.digest
        self._workers = workers
        self._prefetch = prefetch
        self._pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        share = max_bad * self._order.contents.samples / world
        self._allowed = max(1, math.floor(share)) if max_bad > 0 else 0
        self._next = 0
        self._iteration = 0
        self._running: Iterator[Batch | SanakitError] | None = None
        self._bad: dict[int, dict[str, str]] = {}

    @property
    def batches_per_epoch(self) -> int:
        """Global batches in an epoch: the same for every epoch and every rank."""
        return self._order.batches_per_epoch

    @property
    def samples(self) -> int:
        """Samples of the set."""
        return self._order.contents.samples

    @property
    def repeated(self) -> int:
        """Samples that an epoch shows again to fill the last batches of buckets."""
        return self._order.repeated

    @property
    def dropped(self) -> int:
        """Samples that an epoch leaves out because they do not fill a batch; others each time."""
        return self._order.dropped

    @property
    def replaced(self) -> dict[str, str]:
        """The damaged samples that this loader met since it was made, and what is wrong."""
        return {id: reason for bad in self._bad.values() for id, reason in bad.items()}

    @property
    def report(self) -> str:
        """One line: what an epoch is, and what of the set it shows twice or not at all."""
        return (
            f"{self.samples} samples in {len(self._order.contents.buckets)} buckets: "
            f"{self.batches_per_epoch} batches of {self._order.batch_size} an epoch, "
            f"{self.repeated} samples repeated, {self.dropped} dropped, "
            f"{len(self.replaced)} damaged and replaced"
        )

    def state(self) -> dict[str, Any]:
        """Where the sequence stands after the last batch that was given, as JSON values."""
        return {**self._identity(), "next": self._next}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on after the batch at which ``state`` was taken; begin a new iteration then.

        Ranks and workers may have changed, and all that leaves the order as it is.

        Raises:
            DataError: the state is of other shards, or of options that give another order.
        """
        ours = self._identity()
        for key, value in ours.items():
            if key not in state or state[key] != value:
                raise DataError(
                    f"{key}={value!r}, but the saved state has {state.get(key)!r}: the order of "
                    "samples would be another",
                    hint="give the options that the run began with, or begin without its state",
                )
        number = state.get("next")
        if not isinstance(number, int) or number < 0:
            raise DataError(f"the saved state's next={number!r} must be a number of at least 0")
        self.close()
        self._next = number

    def __iter__(self) -> Iterator[Batch]:
        """Go on from where the loader stands, without end; an iteration begun before is over.

        Raises:
            DataError: shards cannot be read, too many samples are damaged, or a worker died.
        """
        self.close()
        return self._batches(self._iteration)

    def close(self) -> None:
        """End the workers, and the iteration."""
        self._iteration += 1
        self._running = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _batches(self, iteration: int) -> Iterator[Batch]:
        try:
            if self._iteration == iteration:
                self._running = started(
                    self._reader,
                    self._next,
                    workers=self._workers,
                    prefetch=self._prefetch,
                    pin_memory=self._pin_memory,
                )
            while self._iteration == iteration and self._running is not None:
                batch = received(self._running, self._reader, self._next)
                self._count(batch)
                self._next = batch.number + 1
                yield batch
        finally:
            if self._iteration == iteration:
                self._running = None
        if self._iteration != iteration:
            raise DataError(
                "this iteration is over: the loader was closed, restored or iterated anew",
                hint="call iter(loader) again",
            )

    def _count(self, batch: Batch) -> None:
        """Note damaged samples; an epoch may have some."""
        if not batch.replaced:
            return
        bad = self._bad.setdefault(batch.epoch, {})
        bad.update(batch.replaced)
        if len(bad) > self._allowed:
            id, reason = next(iter(batch.replaced.items()))
            raise DataError(
                f"{self._reader.folder.name}: {len(bad)} damaged samples in epoch {batch.epoch}, "
                f"and {self._allowed} are allowed; the last one is {id!r} ({reason})",
                hint="build again: sanakit data build, or allow more: max_bad=",
            )

    def _identity(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "index": self._digest,
            "seed": self._order.seed,
            "batch_size": self._order.batch_size,
            "shuffle_shards": self._order.shuffle_shards,
            "remainder": self._order.remainder,
        }


def _check(**counts: int) -> None:
    """Refuse counts that cannot be."""
    for name, value in counts.items():
        least = 0 if name in ("rank", "workers") else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name}={value!r} must be a whole number of at least {least}")
    world, batch_size = counts["world"], counts["batch_size"]
    if counts["rank"] >= world:
        raise ConfigError(
            f"rank={counts['rank']} must be below world={world}", hint=f"ranks are 0 to {world - 1}"
        )
    if batch_size % world:
        near = max(1, round(batch_size / world)) * world
        raise ConfigError(
            f"batch_size={batch_size} is of all ranks together, and no multiple of world={world}",
            hint=f"try {near}",
        )
