"""Solver steps as pure functions, and the one loop that serves them all; docs/maths/solvers.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from sanakit.flow.grids import NoiseLevel, SigmaGrid, flow_dpm_sigmas, flow_euler_sigmas
from sanakit.shapes import Latent

Velocity: TypeAlias = Callable[[Latent, NoiseLevel], Latent]


class Stepped(NamedTuple):
    """Where a step arrived, and what it learned on the way."""

    x: Latent  # state at the next level
    denoised: Latent  # estimate of x0 made at this level: previews are drawn from it
    lam: Tensor  # half log-SNR at this level


SolverStep: TypeAlias = Callable[
    [Velocity, Latent, NoiseLevel, NoiseLevel, "Stepped | None"], Stepped
]


OnStep: TypeAlias = Callable[[int, Stepped], "Latent | None"]


def half_log_snr(sigma: Tensor) -> Tensor:
    """Give lambda: plus infinity at sigma 0, minus infinity at sigma 1."""
    return torch.log(1 - sigma) - torch.log(sigma)


def euler_step(
    velocity: Velocity, x: Latent, here: NoiseLevel, there: NoiseLevel, last: Stepped | None
) -> Stepped:
    """Go straight on. First order, one evaluation. (S5)."""
    v = velocity(x, here).to(x.dtype)
    return Stepped(x + (there.sigma - here.sigma) * v, x - here.sigma * v, half_log_snr(here.sigma))


def heun_step(
    velocity: Velocity, x: Latent, here: NoiseLevel, there: NoiseLevel, last: Stepped | None
) -> Stepped:
    """Go straight on, look again, go by the mean. Second order, two evaluations. (S6).

    The second look is told the timestep of ``there``. Into sigma 0 it is Euler's step.
    """
    v = velocity(x, here).to(x.dtype)
    width = there.sigma - here.sigma
    slope = v
    if there.sigma > 0:
        slope = 0.5 * (v + velocity(x + width * v, there).to(x.dtype))
    return Stepped(x + width * slope, x - here.sigma * v, half_log_snr(here.sigma))


def dpmpp_1_step(
    velocity: Velocity, x: Latent, here: NoiseLevel, there: NoiseLevel, last: Stepped | None
) -> Stepped:
    """DPM-Solver++ of the first order, data prediction. One evaluation. (S7)."""
    return dpmpp_2m_step(velocity, x, here, there, None)


def dpmpp_2m_step(
    velocity: Velocity, x: Latent, here: NoiseLevel, there: NoiseLevel, last: Stepped | None
) -> Stepped:
    """DPM-Solver++(2M), data prediction. Second order, one evaluation. (S8).

    Falls to first order where the extrapolation has no ground to stand on: on the first step, and
    into sigma 0, where lambda is infinite.
    """
    lam = half_log_snr(here.sigma)
    h = half_log_snr(there.sigma) - lam
    denoised = target = x - here.sigma * velocity(x, here).to(x.dtype)
    if last is not None and there.sigma > 0:
        target = denoised + 0.5 * h / (lam - last.lam) * (denoised - last.denoised)
    x_next = there.sigma / here.sigma * x - (1 - there.sigma) * torch.expm1(-h) * target
    return Stepped(x_next, denoised, lam)


def integrate(
    step: SolverStep,
    velocity: Velocity,
    x: Latent,
    grid: SigmaGrid,
    *,
    on_step: OnStep = lambda index, stepped: None,
) -> Latent:
    """Carry ``x`` down the grid, which owns both ends; the state is at least fp32.

    ``velocity`` gets that state and a `NoiseLevel` of two scalars on the CPU; it may answer in any
    dtype. ``on_step`` is told of every finished step; the latent it returns, if any, takes the
    place of the state, and what it raises stops the run.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    last: Stepped | None = None
    for index, (here, there) in enumerate(pairwise(grid.levels())):
        last = step(velocity, x, here, there, last)
        replaced = on_step(index, last)
        x = last.x if replaced is None else replaced
    return x


class Solver(NamedTuple):
    """A step and the grid it is published with; ``grid`` takes (num_steps, flow_shift)."""

    step: SolverStep
    grid: Callable[[int, float], SigmaGrid]


SOLVERS: Mapping[str, Solver] = MappingProxyType(
    {
        "flow-dpm-solver": Solver(dpmpp_2m_step, flow_dpm_sigmas),
        "flow-euler": Solver(euler_step, flow_euler_sigmas),
        "flow-heun": Solver(heun_step, flow_dpm_sigmas),  # not published: the truer grid
    }
)
