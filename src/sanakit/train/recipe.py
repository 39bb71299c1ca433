"""What the loop asks of a way to train: batches, losses, evaluations; no ranks, no files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import numpy.typing as npt
import torch
from torch import Tensor, nn

from sanakit.errors import ConfigError
from sanakit.train.shares import Share
from sanakit.train.timers import Timers

Batch = TypeVar("Batch")


class Recipe(ABC, Generic[Batch]):
    """One way to train one module."""

    module: nn.Module
    """What is trained, with whatever is frozen inside it."""

    @abstractmethod
    def stream(self, share: Share) -> Iterator[Batch]:
        """Give micro-batches without end, on the CPU: those of ``share.spans()``, in order.

        A function of ``share`` alone: all randomness of sample k, of its noise too, comes from
        ``generator_of(share.seed, k)`` or something as fixed.
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
