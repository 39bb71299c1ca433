"""The noise levels a network is trained at, one a sample; docs/maths/flow.md."""

from __future__ import annotations

import torch
from torch import Tensor

from sanakit.flow.grids import TRAIN_STEPS, NoiseLevel, shift_sigmas


def logit_normal_levels(
    count: int,
    *,
    flow_shift: float,
    generator: torch.Generator,
    mean: float = 0.0,
    std: float = 1.0,
) -> NoiseLevel:
    """Draw levels whose logit is normal: most of them in the middle of the path. (F8)-(F10).

    ``mean`` above 0 leans towards noise before the shift does. Both fields are fp32 of shape
    ``count``, on the generator's device; sigma is in [0, 1), timestep an integer in [0, 999].
    Source: reference 4.2.
    """
    normal = torch.randn(count, generator=generator, device=generator.device)
    return levels_at(torch.sigmoid(mean + std * normal), flow_shift)


def uniform_levels(count: int, *, flow_shift: float, generator: torch.Generator) -> NoiseLevel:
    """Draw levels uniformly before the shift. (F9), (F10)."""
    return levels_at(torch.rand(count, generator=generator, device=generator.device), flow_shift)


def levels_at(u: Tensor, flow_shift: float) -> NoiseLevel:
    """Give the training levels at positions ``u`` in [0, 1] of the unshifted path. (F9), (F10)."""
    index = (TRAIN_STEPS * u).floor().clamp(0, TRAIN_STEPS - 1)
    sigma = shift_sigmas(index.double() / TRAIN_STEPS, flow_shift)
    return NoiseLevel(sigma.float(), (TRAIN_STEPS * sigma).floor().float())
