"""Adaptive projected guidance as a value: what of a difference guides; docs/maths/guidance.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from sanakit.errors import ConfigError
from sanakit.flow.grids import NoiseLevel
from sanakit.shapes import Latent

EACH = (1, 2, 3)
"""The axes of one latent: pictures of a batch are guided each by itself."""


class Projected(NamedTuple):
    """What the unconditional prediction becomes, and what the next evaluation is to be given."""

    uncond: Latent
    difference: Latent
    """Of the estimates of x0, with those of the evaluations before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptiveProjectedGuidance:
    """How classifier-free guidance keeps clear of burnt colours at high scales.

    All of it acts on estimates of x0, one picture at a time. Arguments and defaults are those of
    diffusers' guider of this name; the defaults only cap the norm. Its authors advise ``eta=0``
    with a momentum of -0.5.
    """

    eta: float = 1.0
    """Weight of the part along the conditional estimate, which saturates; 1 keeps it whole."""
    adaptive_projected_guidance_momentum: float | None = None
    """Weight of the differences before, from -1 to 1; negative damps, None and 0 are off."""
    adaptive_projected_guidance_rescale: float = 15.0
    """Norm that the difference is cut to; 0 is off."""
    guidance_rescale: float = 0.0
    """Share, up to 1, of a result with the standard deviation of the conditional estimate."""

    def __post_init__(self) -> None:
        ranges = {
            "eta": (0.0, float("inf")),
            "adaptive_projected_guidance_momentum": (-1.0, 1.0),
            "adaptive_projected_guidance_rescale": (0.0, float("inf")),
            "guidance_rescale": (0.0, 1.0),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is None and name == "adaptive_projected_guidance_momentum":
                continue
            ok = isinstance(value, int | float) and not isinstance(value, bool)
            if not (ok and low <= value <= high and abs(value) < float("inf")):
                raise ConfigError(f"{name}={value!r} must be a number from {low:g} to {high:g}")

    def project(
        self, level: NoiseLevel, x: Latent, cond: Latent, uncond: Latent, before: Latent | None
    ) -> Projected:
        """Give the unconditional velocity that guidance is to start from instead. (G5) to (G7).

        ``before`` is the difference that the last evaluation of the same run gave; latents are
        ``b c h w``, results at least fp32.
        """
        cond = cond.to(torch.promote_types(cond.dtype, torch.float32))
        sigma = level.sigma.to(cond)
        estimate = x.to(cond) - sigma * cond
        difference = sigma * (uncond.to(cond) - cond)
        if before is not None and (momentum := self.adaptive_projected_guidance_momentum):
            difference = difference + momentum * before
        update = difference
        if self.adaptive_projected_guidance_rescale:
            norm = torch.linalg.vector_norm(update, dim=EACH, keepdim=True)
            update = update * (self.adaptive_projected_guidance_rescale / norm).clamp(max=1)
        along = torch.nn.functional.normalize(estimate.flatten(1), dim=1).view_as(estimate)
        parallel = (update * along).sum(dim=EACH, keepdim=True) * along
        update = update + (self.eta - 1) * parallel
        return Projected(cond + update / sigma, difference)

    def rescaled(self, level: NoiseLevel, x: Latent, guided: Latent, cond: Latent) -> Latent:
        """Give a guided velocity the spread of the conditional estimate, in part. (G8).

        An estimate that is the same everywhere has no spread to change, and stays.
        """
        if not self.guidance_rescale:
            return guided
        sigma, x = level.sigma.to(guided), x.to(guided)
        ours = x - sigma * guided
        spread = ours.std(dim=EACH, keepdim=True)
        ratio = (x - sigma * cond.to(guided)).std(dim=EACH, keepdim=True) / spread
        ratio = torch.where(spread > torch.finfo(spread.dtype).eps, ratio, 1)
        return (x - torch.lerp(ours, ours * ratio, self.guidance_rescale)) / sigma
