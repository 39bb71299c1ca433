"""Which samples make batch number N: a pure function of seed, contents and batch size.

Neither ranks nor workers nor what was read before have a say. An epoch of a bucket is a stream:
its shards are shuffled, and the samples of each window of a few shards among one another, so that
what is read soon lies in few shards. A stream is cut into batches; the batches of all buckets are
then interleaved at random. Nothing is stored but a few windows, so any batch is found at once.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from sanakit.data.loader.folders import BucketShards, Contents

Remainder: TypeAlias = Literal["repeat", "drop"]
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Plan:
    """One global batch: its number, its epoch, its bucket and the stream position of each slot."""

    number: int
    epoch: int
    bucket: int
    positions: tuple[int, ...]


def shuffled(count: int, *key: Hashable) -> NDArray[np.int64]:
    """The numbers below ``count`` in an order that depends on ``key`` alone.

    Sorts raw bits of a counter-based generator, whose stream is fixed for all versions of numpy.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    bits = np.random.Philox(key=int.from_bytes(digest, "big")).random_raw(count)
    return np.argsort(bits, kind="stable")


def batches_of(samples: int, batch_size: int, remainder: Remainder) -> int:
    """How many batches a stream gives in an epoch."""
    return samples // batch_size if remainder == "drop" else -(-samples // batch_size)


def positions_of(batch: int, samples: int, batch_size: int) -> tuple[int, ...]:
    """The stream positions of a bucket's batch number ``batch``.

    The last one reaches back to be full; a stream shorter than a batch goes round.
    """
    if samples < batch_size:
        return tuple(slot % samples for slot in range(batch_size))
    start = min(batch * batch_size, samples - batch_size)
    return tuple(range(start, start + batch_size))


@dataclass(frozen=True, kw_only=True)
class Order:
    """The endless sequence of global batches of a set."""

    contents: Contents
    seed: int
    batch_size: int
    shuffle_shards: int
    remainder: Remainder
    _kept: OrderedDict[Hashable, Any] = field(
        default_factory=OrderedDict, init=False, repr=False, compare=False
    )

    @property
    def batches_per_epoch(self) -> int:
        """The number of batches in an epoch, the same for all epochs; may be 0."""
        return sum(self._batches(bucket) for bucket in self.contents.buckets)

    @property
    def repeated(self) -> int:
        """How many samples of an epoch are shown again to fill last batches."""
        return max(0, self._shown - self.contents.samples)

    @property
    def dropped(self) -> int:
        """How many samples an epoch leaves out; others in each epoch."""
        return max(0, self.contents.samples - self._shown)

    def plan(self, number: int) -> Plan:
        """Say what batch ``number`` holds, counted from 0 over all epochs."""
        epoch, place = divmod(number, self.batches_per_epoch)
        sequence, ordinals = self._recall(("epoch", epoch), lambda: self._interleaved(epoch))
        bucket = int(sequence[place])
        samples = self.contents.buckets[bucket].samples
        positions = positions_of(int(ordinals[place]), samples, self.batch_size)
        return Plan(number=number, epoch=epoch, bucket=bucket, positions=positions)

    def place(self, epoch: int, bucket: int, position: int) -> tuple[int, int]:
        """Where the sample at a position of a bucket's stream lies: shard and row."""
        shards, ends = self._recall(
            ("shards", epoch, bucket), lambda: self._windows(epoch, self.contents.buckets[bucket])
        )
        window = int(np.searchsorted(ends, position, side="right"))
        inside = self._recall(
            ("window", epoch, bucket, window),
            lambda: self._mixed(epoch, self.contents.buckets[bucket], shards, window),
        )
        shard, row = inside[position - (int(ends[window - 1]) if window else 0)]
        return int(shard), int(row)

    @property
    def _shown(self) -> int:
        return self.batches_per_epoch * self.batch_size

    def _batches(self, bucket: BucketShards) -> int:
        return batches_of(bucket.samples, self.batch_size, self.remainder)

    def _interleaved(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The bucket of each batch of an epoch, and which batch of that bucket it is."""
        counts = [self._batches(bucket) for bucket in self.contents.buckets]
        ordered = np.repeat(np.arange(len(counts)), counts)
        sequence = ordered[shuffled(len(ordered), self.seed, epoch, "batches")]
        ordinals = np.empty_like(sequence)
        ordinals[np.argsort(sequence, kind="stable")] = np.concatenate(
            [np.arange(count) for count in counts]
        )
        return sequence, ordinals

    def _windows(
        self, epoch: int, bucket: BucketShards
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """A bucket's shards in this epoch's order, and where in the stream each window ends."""
        shards = shuffled(len(bucket.shards), *self._key(epoch, bucket), "shards")
        ends = np.cumsum([bucket.shards[shard].samples for shard in shards])
        last = np.arange(
            self.shuffle_shards, len(shards) + self.shuffle_shards, self.shuffle_shards
        )
        return shards, ends[np.minimum(last, len(shards)) - 1]

    def _mixed(
        self, epoch: int, bucket: BucketShards, shards: NDArray[np.int64], window: int
    ) -> NDArray[np.int64]:
        """Shard and row of each sample of a window, mixed."""
        first = window * self.shuffle_shards
        chosen = shards[first : first + self.shuffle_shards]
        counts = [bucket.shards[shard].samples for shard in chosen]
        rows = np.concatenate([np.arange(count) for count in counts])
        places = np.stack([np.repeat(chosen, counts), rows], axis=1)
        return places[shuffled(len(places), *self._key(epoch, bucket), "window", window)]

    def _key(self, epoch: int, bucket: BucketShards) -> tuple[int, int, int, int]:
        return self.seed, epoch, bucket.height, bucket.width

    def _recall(self, key: Hashable, make: Callable[[], _Value]) -> _Value:
        """Make a value or find it again; the least recently used are forgotten."""
        if key not in self._kept:
            self._kept[key] = make()
            while len(self._kept) > 4 + 4 * len(self.contents.buckets):
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        value: _Value = self._kept[key]
        return value
