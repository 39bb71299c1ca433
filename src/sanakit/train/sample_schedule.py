"""Which samples a rank computes, and all randomness as a function of their numbers.

Sample number k of a run is the same whatever ranks, parts and interruptions there are: its noise
comes from a generator of its own, keyed by the run's seed and k (docs/decisions/0005).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from sanakit.errors import ConfigError

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class SampleSchedule:
    """A rank's part of every batch, and where the run stands.

    A batch is split over the ranks in contiguous parts of one size, and a rank's part into
    ``parts`` micro-batches.
    """

    seed: int
    batch_size: int
    images_seen: int = 0
    rank: int = 0
    ranks: int = 1
    parts: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % (self.ranks * self.parts):
            raise ConfigError(
                f"batch_size={self.batch_size} does not split over {self.ranks} ranks"
                + (f" in {self.parts} parts each" if self.parts > 1 else ""),
                hint=f"use a multiple of {self.ranks * self.parts}",
            )

    @property
    def size(self) -> int:
        """Samples in one micro-batch."""
        return self.batch_size // (self.ranks * self.parts)

    def spans(self) -> Iterator[range]:
        """The numbers of the samples of each micro-batch, from ``images_seen`` on, without end."""
        first = self.images_seen
        while True:
            for part in range(self.parts):
                start = first + (self.rank * self.parts + part) * self.size
                yield range(start, start + self.size)
            first += self.batch_size


def generator_of(seed: int, number: int) -> torch.Generator:
    """The generator of one sample, on the CPU: the same on every machine."""
    return torch.Generator().manual_seed((seed * 1_000_003 + number) & 0x7FFF_FFFF_FFFF_FFFF)


def normal_of(generators: list[torch.Generator], *shape: int) -> Tensor:
    """Standard normal noise, one generator a sample: ``b *shape`` in fp32."""
    return torch.stack([torch.randn(shape, generator=one) for one in generators])


def uniform_of(generators: list[torch.Generator], *shape: int) -> Tensor:
    """Numbers in [0, 1), one generator a sample: ``b *shape`` in fp32."""
    return torch.stack([torch.rand(shape, generator=one) for one in generators])


class Prefetched(Generic[Item]):
    """Draws items in a thread, ``ahead`` of the one that consumes them, in order.

    An error of the source is raised where its item would have come.
    """

    def __init__(self, source: Callable[[], Iterator[Item]], *, ahead: int = 2) -> None:
        self._queue: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(ahead)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._draw, args=(source,), daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        item, error = self._queue.get()
        if error is not None:
            self._queue.put((None, error))  # for the next call
            raise error
        assert item is not None
        return item

    def close(self, *, timeout: float | None = None) -> None:
        """End the thread after the item that it is drawing; wait so many seconds for it, or until.

        A process that ends while a thread is in the midst of torch's code is aborted.
        """
        self._ended.set()
        while not self._queue.empty():
            self._queue.get_nowait()
        self._thread.join(timeout)

    def _draw(self, source: Callable[[], Iterator[Item]]) -> None:
        try:
            for item in source():
                if not self._put((item, None)):
                    return
            self._put((None, StopIteration()))
        except BaseException as error:  # it belongs to the thread that trains
            self._put((None, error))

    def _put(self, pair: tuple[Item | None, BaseException | None]) -> bool:
        while not self._ended.is_set():
            try:
                self._queue.put(pair, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False
