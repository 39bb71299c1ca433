"""The straight path from a clean latent (sigma = 0) to noise (sigma = 1); docs/maths/flow.md.

Nothing here divides, so both ends of the path are ordinary points.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sanakit.errors import ConfigError
from sanakit.shapes import Latent, PerSample

Generators = torch.Generator | Sequence[torch.Generator]


def seeded_noise(seed: int, channels: int, height: int, width: int) -> Latent:
    """Noise ``1 c h w`` of one picture, drawn on the CPU in fp32: the same on every machine."""
    return draw_noise(1, (channels, height, width), torch.Generator().manual_seed(seed))


def draw_noise(count: int, shape: Sequence[int], generator: Generators | None) -> Latent:
    """Noise ``count c h w``: one generator draws all of it, a list one picture each.

    Raises:
        ConfigError: not as many generators as pictures.
    """
    if generator is None or isinstance(generator, torch.Generator):
        device = "cpu" if generator is None else generator.device
        return torch.randn(count, *shape, generator=generator, device=device)
    if len(generator) != count:
        raise ConfigError(
            f"{len(generator)} generators for {count} pictures", hint="pass one a picture"
        )
    return torch.cat([torch.randn(1, *shape, generator=g, device=g.device) for g in generator])


def interpolate(x0: Latent, noise: Latent, sigma: PerSample) -> Latent:
    """Give the point of the path at ``sigma`` in [0, 1], one level a sample. (F1)."""
    level = _per_sample(sigma)
    return (1 - level) * x0 + level * noise


def velocity_between(x0: Latent, noise: Latent) -> Latent:
    """Give what the network learns to predict; the same all along the path. (F2)."""
    return noise - x0


def x0_from_velocity(x: Latent, velocity: Latent, sigma: PerSample) -> Latent:
    """Follow the velocity to the clean end. (F3)."""
    return x - _per_sample(sigma) * velocity


def noise_from_velocity(x: Latent, velocity: Latent, sigma: PerSample) -> Latent:
    """Follow the velocity to the noisy end. (F4)."""
    return x + (1 - _per_sample(sigma)) * velocity


def flow_matching_loss(predicted: Latent, x0: Latent, noise: Latent) -> PerSample:
    """Squared velocity error per sample in fp32; the caller reduces, weights or bins it. (F5).

    ``predicted`` is the network's answer at ``interpolate(x0, noise, sigma)``. Randomness and the
    network stay outside: the trainer draws and calls, a test writes down.
    """
    error = predicted.float() - velocity_between(x0, noise).float()
    return error.square().flatten(1).mean(dim=1)


def _per_sample(sigma: PerSample) -> Float[Tensor, "b 1 1 1"]:
    return sigma.view(-1, 1, 1, 1)
