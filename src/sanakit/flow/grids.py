"""The noise levels a sampler visits, as published schedulers lay them; docs/maths/solvers.md."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sanakit.errors import ConfigError

TRAIN_STEPS = 1000
Levels = TypeVar("Levels", float, np.ndarray, Tensor)


class NoiseLevel(NamedTuple):
    """How noisy a state is, and what the network is told about it."""

    sigma: Tensor  # in [0, 1]
    timestep: Tensor  # about 1000 * sigma, in [0, 1000]


class SigmaGrid(NamedTuple):
    """A falling run of noise levels that owns both ends; lives on the CPU."""

    sigmas: Float[Tensor, " steps_and_one"]
    timesteps: Float[Tensor, " steps"]  # the level of no noise has none: no network is asked there

    def levels(self) -> tuple[NoiseLevel, ...]:
        """Give every level of the grid, the last with its plain 1000 * sigma truncated."""
        last = (TRAIN_STEPS * self.sigmas[-1:]).floor()
        timesteps = torch.cat([self.timesteps, last.to(self.timesteps.dtype)])
        return tuple(NoiseLevel(*pair) for pair in zip(self.sigmas, timesteps, strict=True))

    def after(self, start: int) -> SigmaGrid:
        """Skip the first ``start`` steps, to begin from a partly noised latent."""
        return SigmaGrid(self.sigmas[start:], self.timesteps[start:])


def shift_sigmas(sigma: Levels, flow_shift: float) -> Levels:
    """Move levels in [0, 1] towards noise for ``flow_shift`` above 1; both ends stay. (F6).

    Raises:
        ConfigError: for a ``flow_shift`` that is not positive.
    """
    if not flow_shift > 0:
        raise ConfigError(f"flow_shift={flow_shift} must be positive", hint="1 is no shift")
    return flow_shift * sigma / (1 + (flow_shift - 1) * sigma)


def unshift_sigmas(sigma: Levels, flow_shift: float) -> Levels:
    """Undo `shift_sigmas`. (F7)."""
    if not flow_shift > 0:
        raise ConfigError(f"flow_shift={flow_shift} must be positive", hint="1 is no shift")
    return shift_sigmas(sigma, 1 / flow_shift)


def flow_dpm_sigmas(num_steps: int, flow_shift: float) -> SigmaGrid:
    """Give the grid of the published Flow-DPM-Solver: shifted 0.999 down to 0. (S1), (S2).

    Timesteps are integers, truncated; sigmas are fp32.

    Raises:
        ConfigError: for no steps, or a ``flow_shift`` that is not positive.
    """
    _check_steps(num_steps)
    # Truncation makes the last bit of fp64 visible where 1000 * sigma is all but whole, so the
    # order of these operations is part of the published grid.
    alphas = np.linspace(1, 1 / TRAIN_STEPS, num_steps + 1)
    sigmas = shift_sigmas(1.0 - alphas, flow_shift)[:0:-1]
    return SigmaGrid(
        torch.from_numpy(np.append(sigmas, 0.0).astype(np.float32)),
        torch.from_numpy(np.trunc(sigmas * TRAIN_STEPS).astype(np.float32)),
    )


def flow_euler_sigmas(num_steps: int, flow_shift: float) -> SigmaGrid:
    """Give the default grid of the published flow-matching Euler scheduler. (S3), (S4).

    Timesteps are not truncated; everything is fp32.

    Raises:
        ConfigError: for no steps, or a ``flow_shift`` that is not positive.
    """
    _check_steps(num_steps)
    lowest = shift_sigmas(torch.tensor(1 / TRAIN_STEPS), flow_shift).item()
    even = np.linspace(TRAIN_STEPS, lowest * TRAIN_STEPS, num_steps) / TRAIN_STEPS
    sigmas = torch.from_numpy(shift_sigmas(even, flow_shift).astype(np.float32))
    return SigmaGrid(torch.cat([sigmas, sigmas.new_zeros(1)]), sigmas * TRAIN_STEPS)


def _check_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ConfigError(f"num_steps={num_steps} must be at least 1", hint="20 is usual")
