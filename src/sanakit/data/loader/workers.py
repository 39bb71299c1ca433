"""The processes that decode: how they start, what they are fed, how they end."""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Iterator
from multiprocessing import get_context, parent_process
from typing import Any

import psutil
import torch
from torch.utils.data import DataLoader

from sanakit.data.loader.batches import Batch, BatchReader
from sanakit.errors import DataError, SanakitError

# Not fork: a copy of a process that has run threads (torch's, CUDA's, a progress bar's) may hang.
# A fork server is a fresh process that imports what workers need once and then copies itself, so
# that all workers but the first start in milliseconds; Windows has spawn alone.
_START = "spawn" if sys.platform == "win32" else "forkserver"


def started(
    reader: BatchReader, first: int, *, workers: int, prefetch: int, pin_memory: bool
) -> Iterator[Batch | SanakitError]:
    """Batches from number ``first`` on, without end, by torch's worker processes; 0: by this one.

    The processes end when the iterator is dropped.
    """
    context = None
    if workers:
        context = get_context(_START)
        if _START == "forkserver":
            context.set_forkserver_preload([__name__])
    return iter(
        DataLoader(
            reader,  # type: ignore[arg-type]  # it has no length, and numbers without end
            batch_size=None,
            sampler=_From(first),
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            multiprocessing_context=context,
            pin_memory=pin_memory,
            collate_fn=_as_it_is,
            worker_init_fn=_end_with_parent,
            generator=torch.Generator(),  # else it would draw a number from the user's
        )
    )


def received(running: Iterator[Batch | SanakitError], reader: BatchReader, expected: int) -> Batch:
    """The next batch, number ``expected``."""
    try:
        batch = next(running)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        last_words = _last_words(reader) or f"batch {expected} or a later one"
        raise DataError(
            f"a worker process ended unexpectedly while it read {last_words}",
            hint="memory or /dev/shm may be too small: fewer workers or a lower prefetch need "
            "less; workers=0 shows what else goes wrong",
        ) from error
    if isinstance(batch, SanakitError):
        raise batch
    return batch


def _last_words(reader: BatchReader) -> str:
    found = []
    for process, number, slot in reader.doing.tolist():
        if process and not _lives(process):
            shard, row = reader.where(reader.order.plan(number), slot)
            found.append(f"sample {row} of {shard.file} (batch {number})")
    return ", ".join(found)


def _lives(process: int) -> bool:
    try:
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _end_with_parent(worker: int) -> None:
    """Have a worker process end at once if the main process is killed.

    Torch's own watch looks at the process that forked it, and a fork server lives as long as its
    workers do.
    """

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True, name=f"parent of worker {worker}").start()


class _From:
    """All whole numbers from a first one."""

    def __init__(self, first: int) -> None:
        self._first = first

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self._first)

    def __len__(self) -> int:
        return sys.maxsize


def _as_it_is(batch: Any) -> Any:
    return batch
