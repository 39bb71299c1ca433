"""Noise levels: the grid of a sampling run, and those of training; docs/maths/flow.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sanakit.errors import ConfigError
from sanakit.flow.path import interpolate
from sanakit.shapes import Latent

TRAIN_STEPS = 1000
# Timestep 1000 is none that a network was trained with: whole timesteps begin below it.
ALMOST_NOISE = 1 - 1e-6
Levels = TypeVar("Levels", float, np.ndarray, Tensor)


class NoiseLevel(NamedTuple):
    """How noisy a state is, and what the network is told about it."""

    sigma: Tensor  # in [0, 1]
    timestep: Tensor  # about 1000 * sigma, in [0, 1000]


class Leg(NamedTuple):
    """One step of a grid: between which levels, and which of how many."""

    here: NoiseLevel
    there: NoiseLevel
    position: int
    total: int
    fresh: Latent | None = None
    """Noise that the step adds, where its solver adds any."""

    @property
    def remaining(self) -> int:
        """Steps still to do, this one included."""
        return self.total - self.position


class SigmaGrid(NamedTuple):
    """A falling run of noise levels that owns both ends; lives on the CPU."""

    sigmas: Float[Tensor, " steps_and_one"]
    timesteps: Float[Tensor, " steps"]  # the level of no noise has none: no network is asked there

    def levels(self) -> tuple[NoiseLevel, ...]:
        """Give every level of the grid, the last with its plain 1000 * sigma truncated."""
        last = (TRAIN_STEPS * self.sigmas[-1:]).floor()
        timesteps = torch.cat([self.timesteps, last.to(self.timesteps.dtype)])
        return tuple(NoiseLevel(*pair) for pair in zip(self.sigmas, timesteps, strict=True))

    def after(self, steps: int) -> SigmaGrid:
        """Give what is left of the grid when its first ``steps`` are left out."""
        return type(self)(self.sigmas[steps:], self.timesteps[steps:])

    def cut(self, strength: float) -> SigmaGrid:
        """Give the last ``int(steps * strength)`` steps, as published.

        Raises:
            ConfigError: a strength that leaves no step.
        """
        total = len(self.timesteps)
        count = min(int(total * strength), total)
        return self._last(count, strength)

    def _last(self, count: int, strength: float) -> SigmaGrid:
        total = len(self.timesteps)
        if count < 1:
            raise ConfigError(
                f"strength={strength} of {total} steps leaves none to run",
                hint=f"strength={1 / total:.2g} runs one, or take more steps",
            )
        return self.after(total - count)

    def mixed(self, position: int, x0: Latent, noise: Latent) -> Latent:
        """Give the state that the path from ``x0`` to ``noise`` has at a level of the grid."""
        return interpolate(x0, noise, self.sigmas[position].to(x0).expand(len(x0)))

    def legs(self) -> Iterator[Leg]:
        """Give the steps between neighbouring levels."""
        for position, (here, there) in enumerate(pairwise(self.levels())):
            yield Leg(here, there, position, len(self.timesteps))


def shift_sigmas(sigma: Levels, flow_shift: float) -> Levels:
    """Move levels in [0, 1] towards noise for ``flow_shift`` above 1; both ends stay. (F6)."""
    if not flow_shift > 0:
        raise ConfigError(f"flow_shift={flow_shift} must be positive", hint="1 is no shift")
    return flow_shift * sigma / (1 + (flow_shift - 1) * sigma)


def flow_dpm_sigmas(num_steps: int, flow_shift: float) -> SigmaGrid:
    """Give the grid of the published Flow-DPM-Solver: shifted 0.999 down to 0. (S1), (S2).

    Timesteps are integers, truncated; sigmas are fp32.
    """
    check_steps(num_steps)
    # Truncation makes the last bit of fp64 visible where 1000 * sigma is all but whole, so the
    # order of these operations is part of the published grid.
    alphas = np.linspace(1, 1 / TRAIN_STEPS, num_steps + 1)
    return _closed(shift_sigmas(1.0 - alphas, flow_shift)[:0:-1], whole_timesteps=True)


def flow_euler_sigmas(num_steps: int, flow_shift: float) -> SigmaGrid:
    """Give the default grid of the published flow-matching Euler scheduler. (S3), (S4).

    Timesteps are not truncated; everything is fp32.
    """
    check_steps(num_steps)
    lowest = shift_sigmas(torch.tensor(1 / TRAIN_STEPS), flow_shift).item()
    even = np.linspace(TRAIN_STEPS, lowest * TRAIN_STEPS, num_steps) / TRAIN_STEPS
    return _closed(shift_sigmas(even, flow_shift), whole_timesteps=False)


def flow_unipc_sigmas(num_steps: int, flow_shift: float) -> SigmaGrid:
    """Give the grid of the published UniPC for flows: all but 1, in even steps, shifted. (S12).

    Timesteps are integers, truncated; sigmas are fp32.
    """
    check_steps(num_steps)
    even = np.linspace(1, 1 / TRAIN_STEPS, num_steps + 1)[:-1]
    return _closed(shift_sigmas(even, flow_shift), whole_timesteps=True)


def sigmas_given(sigmas: Sequence[float], flow_shift: float, *, whole_timesteps: bool) -> SigmaGrid:
    """Give a grid through levels of the caller's own, which the shift then moves. (S13).

    A closing 0 is added where it is missing. ``whole_timesteps`` truncates what the network is told
    and keeps it below 1000, as the published grids of multistep solvers do.
    """
    levels = falling(sigmas, 1.0, "sigmas")
    return _closed(shift_sigmas(levels, flow_shift), whole_timesteps=whole_timesteps)


def timesteps_given(timesteps: Sequence[float]) -> SigmaGrid:
    """Give the grid whose network is told just these timesteps: nothing shifts them. (S14)."""
    told = falling(timesteps, float(TRAIN_STEPS), "timesteps")
    sigmas = np.minimum(told / TRAIN_STEPS, ALMOST_NOISE)
    return _closed(sigmas, whole_timesteps=False)._replace(
        timesteps=torch.from_numpy(told.astype(np.float32))
    )


def _closed(sigmas: np.ndarray, *, whole_timesteps: bool) -> SigmaGrid:
    """Round falling levels to fp32 and close them with 0."""
    if whole_timesteps:
        sigmas = np.minimum(sigmas, ALMOST_NOISE)
    levels = torch.from_numpy(np.append(sigmas, 0.0).astype(np.float32))
    if (levels.diff() >= 0).any():
        raise ConfigError(
            f"{len(sigmas)} steps do not fit between the levels {sigmas[0]:g} and {sigmas[-1]:g}",
            hint="take fewer steps, or a flow_shift nearer to 1",
        )
    if whole_timesteps:
        timesteps = torch.from_numpy(np.trunc(sigmas * TRAIN_STEPS).astype(np.float32))
    else:
        timesteps = levels[:-1] * TRAIN_STEPS
    return SigmaGrid(levels, timesteps)


def falling(values: Sequence[float], most: float, name: str) -> np.ndarray:
    """Give levels of the caller's without a closing 0, which fall from at most ``most``."""
    levels = np.asarray(values, dtype=np.float64).reshape(-1)
    if len(levels) and levels[-1] == 0:
        levels = levels[:-1]
    if (
        not len(levels)
        or not (np.diff(levels) < 0).all()
        or not 0 < levels[-1] <= levels[0] <= most
    ):
        raise ConfigError(
            f"{name}={list(values)} must fall, within (0, {most:g}]",
            hint="from noise to data; the closing 0 is added",
        )
    return levels


def check_steps(num_steps: int) -> None:
    """Refuse a run of no steps."""
    if num_steps < 1:
        raise ConfigError(f"num_steps={num_steps} must be at least 1", hint="20 is usual")


def levels_at(u: Tensor, flow_shift: float) -> NoiseLevel:
    """Give the training levels at positions ``u`` in [0, 1] of the unshifted path. (F9), (F10)."""
    index = (TRAIN_STEPS * u).floor().clamp(0, TRAIN_STEPS - 1)
    sigma = shift_sigmas(index.double() / TRAIN_STEPS, flow_shift)
    return NoiseLevel(sigma.float(), (TRAIN_STEPS * sigma).floor().float())
