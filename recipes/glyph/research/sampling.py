"""Drawing many pictures at once by any solver and guidance, and how far they lie from real ones."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recipes.glyph.research.short_run import economy
from sanakit.evaluate.features import FeatureNetwork, Features, features_of
from sanakit.evaluate.frechet import Reference
from sanakit.flow.guidance import Guidance
from sanakit.flow.path import seeded_noise
from sanakit.flow.solvers import integrate
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.pixels import Pixels, to_pixels
from sanakit.pipeline.prompts import EncodedText
from sanakit.pipeline.sampler import Denoiser
from sanakit.pipeline.schedulers import NAMED
from sanakit.shapes import Latent

AT_A_TIME = 64
RESAMPLES = 200


@dataclass(frozen=True, kw_only=True)
class Way:
    """How to go from noise to a latent."""

    solver: str = "flow-dpm-solver"
    steps: int = 20
    scale: float = 5.0
    interval: tuple[float, float] = (0.0, 1.0)
    flow_shift: float = 1.0

    @property
    def name(self) -> str:
        """Short, and different for each way that an experiment has."""
        low, high = self.interval
        kind = {"flow-dpm-solver": "dpm", "flow-euler": "euler"}[self.solver]
        return f"{kind}-{self.steps}-scale-{self.scale:g}-from-{low:g}-to-{high:g}"


@torch.inference_mode()
def latents_by(
    way: Way,
    model: LinearDiT,
    text: EncodedText,
    null: EncodedText,
    shape: tuple[int, int, int],
    *,
    exact: bool = False,
) -> Latent:
    """A latent for each text; number i begins with the noise of seed i, whatever the way.

    ``exact`` computes in fp32, else products are in bf16.
    """
    solver = NAMED[way.solver].solver
    guidance = Guidance(guidance_scale=way.scale, guidance_interval=way.interval)
    count, found = len(text.mask), []
    for first in range(0, count, AT_A_TIME):
        rows = slice(first, first + AT_A_TIME)
        some, none = _rows(text, rows), _rows(null, rows)
        noise = torch.cat([seeded_noise(seed, *shape) for seed in range(count)[rows]])
        with nullcontext() if exact else economy():
            negative = none if way.scale != 1 else None
            denoiser = Denoiser.prepare(model, some, negative, guidance)
            grid = solver.grid(way.steps, way.flow_shift)
            found.append(integrate(solver.step, denoiser, noise, grid))
    return torch.cat(found)


def _rows(text: EncodedText, rows: slice) -> EncodedText:
    mask = text.mask[rows]
    width = int(mask.sum(dim=1).max())
    return EncodedText(
        text=text.text[rows, :width], mask=mask[:, :width], dropped=text.dropped[rows]
    )


@torch.inference_mode()
def decoded(autoencoder: Autoencoder, latents: Latent, scaling_factor: float) -> Pixels:
    """Pictures ``n H W 3`` uint8 of scaled latents."""
    parts = []
    for some in latents.split(16):
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(autoencoder.decode(some / scaling_factor).sample.float())
    return to_pixels(torch.cat(parts))


def distances(latents: Latent, best: Latent) -> list[float]:
    """Root mean square distance of each latent to the best one."""
    apart: Tensor = (latents - best).square().flatten(1).mean(dim=1).sqrt()
    return [round(value, 5) for value in apart.tolist()]


def frechet(features: Features, reference: Reference) -> dict[str, Any]:
    """FD-EffNetLite0 with its bootstrap samples: rows of two sets of one size are drawn alike."""
    resampled = reference.resampled(features, resamples=RESAMPLES)
    return {
        "fd": round(resampled.value, 3),
        "resampled": [round(value, 3) for value in resampled.found.tolist()],
        "count": resampled.count,
    }


def apart(one: dict[str, Any], other: dict[str, Any]) -> tuple[float, float, float]:
    """The difference of two distances of paired sets, and 1.96 standard deviations around it."""
    spread = 1.96 * float(np.std(np.subtract(one["resampled"], other["resampled"])))
    value = one["fd"] - other["fd"]
    return value, value - spread, value + spread


def described(network: FeatureNetwork, pixels: Pixels) -> Features:
    """Features of pictures in memory."""
    return features_of(network, pixels)
