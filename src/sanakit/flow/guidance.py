"""Guidance as a value: which passes it needs, how it merges them; docs/maths/guidance.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from sanakit.errors import ConfigError
from sanakit.flow.grids import TRAIN_STEPS, NoiseLevel
from sanakit.flow.projection import AdaptiveProjectedGuidance
from sanakit.shapes import Latent


class Passes(NamedTuple):
    """Which passes are needed besides the conditional one."""

    uncond: bool
    perturbed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Guidance:
    """Strengths of guidance. The defaults of all scales mean *off*, and off costs nothing."""

    guidance_scale: float = 1.0
    """Classifier-free guidance; 1 is off. Extrapolates from unconditional to conditional."""
    pag_scale: float = 0.0
    """Perturbed-attention guidance; 0 is off. Pushes away from the perturbed prediction."""
    pag_adaptive_scale: float = 0.0
    """How fast ``pag_scale`` falls, per timestep below 1000; 0 keeps it. It never goes below 0."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Noise levels at which guidance acts; elsewhere the conditional prediction stands."""
    guider: AdaptiveProjectedGuidance | None = None
    """What classifier-free guidance makes of its difference; None takes it as it is."""

    def __post_init__(self) -> None:
        low, high = self.guidance_interval
        if not 0 <= low <= high <= 1:
            raise ConfigError(
                f"guidance_interval={self.guidance_interval} must be two rising levels in [0, 1]",
                hint="(0, 1) guides at every level",
            )
        for name in ("guidance_scale", "pag_scale", "pag_adaptive_scale"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}={getattr(self, name)} must be a number from 0 up")

    def pag_scale_at(self, level: NoiseLevel) -> float:
        """Give the strength of perturbed-attention guidance at one level. (G3)."""
        elapsed = TRAIN_STEPS - float(level.timestep)
        return max(0.0, self.pag_scale - self.pag_adaptive_scale * elapsed)

    def passes(self, level: NoiseLevel) -> Passes:
        """Say whether the unconditional and the perturbed pass are needed at ``level``. (G4)."""
        low, high = self.guidance_interval
        acts = low <= float(level.sigma) <= high
        return Passes(acts and self.guidance_scale != 1.0, acts and self.pag_scale_at(level) != 0.0)

    def combine(
        self, level: NoiseLevel, cond: Latent, *, uncond: Latent | None, perturbed: Latent | None
    ) -> Latent:
        """Merge the predictions that were made; a missing one contributes nothing. (G1), (G2).

        The result is at least fp32, and exactly ``cond`` where no other pass was made.
        """
        cond = cond.to(torch.promote_types(cond.dtype, torch.float32))
        guided = cond
        if uncond is not None:
            guided = torch.lerp(uncond.to(cond.dtype), cond, self.guidance_scale)
        if perturbed is not None:
            guided = guided + self.pag_scale_at(level) * (cond - perturbed.to(cond.dtype))
        return guided
