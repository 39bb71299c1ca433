"""What the loop asks of a way to train: batches, losses, evaluations; no ranks, no files."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import numpy.typing as npt
import torch
from torch import Tensor, nn

from sanakit.errors import ConfigError
from sanakit.train.sample_schedule import SampleSchedule

NAMES = ("data", "text", "autoencoder", "model")


class Timers:
    """Adds up seconds by name; a name inside another takes its time out of the outer one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(NAMES, 0.0)
        self._open: list[tuple[str, float]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the block's time under ``name``, one of `NAMES`."""
        self._switch(name)
        try:
            yield
        finally:
            self._switch(None)

    def shares(self) -> dict[str, float]:
        """Each name's part of the time since the last call, as ``time_NAME``; then from 0 again."""
        total = sum(self.seconds.values())
        shares = {f"time_{name}": value / total for name, value in self.seconds.items() if total}
        self.seconds = dict.fromkeys(NAMES, 0.0)
        return shares

    def _switch(self, name: str | None) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.monotonic()
        if self._open:
            outer, since = self._open[-1]
            self.seconds[outer] += now - since
        if name is None:
            self._open.pop()
        else:
            self._open.append((name, now))
        if self._open:
            self._open[-1] = (self._open[-1][0], now)


Batch = TypeVar("Batch")


class Recipe(ABC, Generic[Batch]):
    """One way to train one module."""

    module: nn.Module
    """What is trained, with whatever is frozen inside it."""
    shards: str | None = None
    """Where its pictures come from, if they do, for a plan to look at."""

    @abstractmethod
    def stream(self, schedule: SampleSchedule) -> Iterator[Batch]:
        """Give micro-batches without end, on the CPU: those of ``schedule.spans()``, in order.

        A function of ``schedule`` alone: all randomness of sample k, of its noise too, comes from
        ``generator_of(schedule.seed, k)`` or something as fixed.
        """

    @abstractmethod
    def prepare(self, batch: Batch, device: torch.device, timers: Timers) -> Batch:
        """Bring a batch to a device and run what is frozen and not part of the module."""

    @abstractmethod
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Give scalars; ``loss``, a mean over samples, is minimised, the others are logged.

        Deterministic given the batch and the weights.
        """

    @abstractmethod
    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Measure ``module`` (the average, where there is one) on held-out data.

        Every rank does all of it: a sharded module needs them all.
        """

    def blocks(self) -> Iterator[nn.Module]:
        """Give the sub-modules worth compiling, sharding and recomputing one by one."""
        return iter(())

    def checkpoint_gradients(self) -> None:
        """Recompute blocks in the backward pass instead of keeping what they computed.

        Raises:
            ConfigError: this recipe cannot.
        """
        raise ConfigError(
            "gradient_checkpointing=true: this recipe has nothing to recompute",
            hint="leave it out, or use a smaller batch_size or accumulation=2",
        )

    def log_extras(self) -> dict[str, float]:
        """Give further numbers for a line of the log, and forget them; all ranks do it together."""
        return {}

    def validation_grid(self, module: nn.Module) -> npt.NDArray[Any] | None:
        """Draw the validation grid ``H W 3`` uint8: fixed prompts, fixed seeds."""
        return None

    def flops(self) -> float:
        """Floating-point operations of one sample's forward pass; 0 if it was not counted."""
        return 0.0
