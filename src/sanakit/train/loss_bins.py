"""The loss by noise level: which part of the path a run learns, and which it does not.

A mean over all levels hides a network that is perfect near the data and blind near the noise.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from sanakit.errors import ConfigError


class LossBins:
    """Means of per-sample losses in equal bins of sigma in [0, 1], summed over steps and ranks.

    ``sums`` is fp64 ``2 bins``, losses and counts, so that ranks need one message; it moves to the
    device of what is added first and never waits for it.

    Raises:
        ConfigError: no bin, or more than a hundred.
    """

    def __init__(self, bins: int = 10) -> None:
        if not 1 <= bins <= 100:
            raise ConfigError(f"bins={bins} must be between 1 and 100")
        self.sums = torch.zeros(2, bins, dtype=torch.float64)

    @torch.no_grad()
    def add(self, losses: Tensor, sigma: Tensor) -> None:
        """Count samples in: ``losses`` and ``sigma`` of shape ``b``; sigma 1 is in the last bin.

        A loss that is not finite is left out: its step is skipped, and it would hide all others.
        """
        self.sums = self.sums.to(losses.device)
        bins = self.sums.shape[1]
        index = (sigma.to(losses.device, torch.float64) * bins).long().clamp_(0, bins - 1)
        # A product and not a scatter: sums in a fixed order, on a GPU too.
        member = torch.nn.functional.one_hot(index, bins).double()
        finite = torch.isfinite(losses)
        values = torch.where(finite, losses, 0).double()
        self.sums += torch.stack([values, finite.double()]) @ member

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Sum over ranks, in one message; every rank has the same means afterwards."""
        dist.all_reduce(self.sums, group=group)

    def means(self) -> dict[str, float]:
        """The mean loss of each bin that had samples, by names such as ``loss_sigma_0.3``."""
        bins = self.sums.shape[1]
        losses, counts = self.sums.tolist()
        return {
            f"loss_sigma_{index / bins:.3g}": loss / count
            for index, (loss, count) in enumerate(zip(losses, counts, strict=True))
            if count
        }

    def reset(self) -> None:
        """Forget everything, as after a line of the log."""
        self.sums.zero_()
