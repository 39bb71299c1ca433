"""Solver steps as pure functions, and the one loop that serves them all; docs/maths/solvers.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch

from sanakit.flow.grids import (
    Leg,
    NoiseLevel,
    SigmaGrid,
    sigmas_given,
)
from sanakit.shapes import Latent

SERIES_BELOW = 1.0  # the recurrence loses digits in h where h is small, the series is exact there
SERIES_TERMS = 20


def half_log_snr(sigma: float) -> float:
    """Give lambda: plus infinity at sigma 0, minus infinity at sigma 1."""
    if sigma == 0:
        return math.inf
    return math.log((1 - sigma) / sigma) if sigma < 1 else -math.inf


def moments(h: float, count: int) -> list[float]:
    """Give the weights of ``1, s, s^2, ...`` over a step of width ``h``, infinity included. (S9).

    ``s`` runs from 0 where the step begins to 1 where it ends.
    """
    if h < SERIES_BELOW:
        return [_series(h, power) for power in range(count)]
    found = [-math.expm1(-h)]
    for power in range(1, count):
        found.append(1 - power / h * found[-1])
    return found


def node_weights(h: float, nodes: Sequence[float]) -> list[float]:
    """Give the weights of values at ``nodes``, which a polynomial through all of them joins. (S10).

    Nodes are places ``s`` on the scale of `moments`, finite and different.
    """
    powers = np.vander(np.asarray(nodes, dtype=np.float64), increasing=True).T
    return np.linalg.solve(powers, np.asarray(moments(h, len(nodes)))).tolist()


def _series(h: float, power: int) -> float:
    term, total = h / (power + 1), 0.0
    for n in range(SERIES_TERMS):
        total += term
        term *= -h / (power + n + 2)
    return total


HISTORY = 3  # finished steps that the loop keeps for the multistep solvers
MANY_STEPS = 15  # from here on DPM-Solver of order 3 needs no care at the end
Velocity: TypeAlias = Callable[[Latent, NoiseLevel], Latent]


class Stepped(NamedTuple):
    """Where a step arrived, and what it learned on the way."""

    x: Latent  # state at the next level
    denoised: Latent  # estimate of x0 made at this level: previews are drawn from it
    start: Latent  # state at this level that the step left from
    level: NoiseLevel  # this level

    @property
    def lam(self) -> float:
        """Half log-SNR at this level."""
        return half_log_snr(float(self.level.sigma))


Past: TypeAlias = tuple[Stepped, ...]  # the last finished steps, the newest last
SolverStep: TypeAlias = Callable[[Velocity, Latent, Leg, Past], Stepped]
OnStep: TypeAlias = Callable[[int, Stepped], "Latent | None"]
Fresh: TypeAlias = Callable[[int], Latent]


def euler_step(velocity: Velocity, x: Latent, leg: Leg, past: Past) -> Stepped:
    """Go straight on. First order, one evaluation. (S5)."""
    here, there = leg.here, leg.there
    v = velocity(x, here).to(x.dtype)
    return Stepped(x + (there.sigma - here.sigma) * v, x - here.sigma * v, x, here)


def heun_step(velocity: Velocity, x: Latent, leg: Leg, past: Past) -> Stepped:
    """Go straight on, look again, go by the mean. Second order, two evaluations. (S6).

    The second look is told the timestep of the level it is taken at. Into sigma 0 it is Euler's.
    """
    here, there = leg.here, leg.there
    v = velocity(x, here).to(x.dtype)
    width = there.sigma - here.sigma
    slope = v
    if there.sigma > 0:
        slope = 0.5 * (v + velocity(x + width * v, there).to(x.dtype))
    return Stepped(x + width * slope, x - here.sigma * v, x, here)


def dpmpp_step(
    velocity: Velocity,
    x: Latent,
    leg: Leg,
    past: Past,
    *,
    order: int = 2,
    slope_weight: Literal["midpoint", "heun"] = "midpoint",
    lower_order_final: bool = True,
) -> Stepped:
    """DPM-Solver++ multistep, data prediction, order 1 to 3. One evaluation. (S7), (S8), (S15).

    The order is lower where the past is too short for it, and 1 into sigma 0, where lambda is
    infinite and an extrapolation has no ground to stand on. ``lower_order_final`` also keeps the
    step before that at order 2, in runs of fewer than 15. Order 3 is as published, and measures 2.
    """
    denoised = x - leg.here.sigma * velocity(x, leg.here).to(x.dtype)
    lam, h = _width(leg.here, leg.there)
    order = 1 if leg.there.sigma == 0 else min(order, len(past) + 1)
    if lower_order_final and leg.remaining == 2 and leg.total < MANY_STEPS:
        order = min(order, 2)
    level, rise, curve = moments(h, 3)
    change = level * denoised
    if order > 1:
        gap = (lam - past[-1].lam) / h
        slope = (denoised - past[-1].denoised) / gap
        if order == 2:
            change = change + (0.5 * level if slope_weight == "midpoint" else rise) * slope
        else:
            gap_before = (past[-1].lam - past[-2].lam) / h
            slope_before = (past[-1].denoised - past[-2].denoised) / gap_before
            bend = (slope - slope_before) / (gap + gap_before)
            change = change + rise * (slope + gap * bend) + 0.5 * curve * bend
    return Stepped(_carried(x, leg.here, leg.there, change), denoised, x, leg.here)


def unipc_step(
    velocity: Velocity,
    x: Latent,
    leg: Leg,
    past: Past,
    *,
    order: int = 2,
    uncorrected: frozenset[int] = frozenset(),
) -> Stepped:
    """UniPC (bh2), order 1 to 3: correct the last step, predict the next. (S16)-(S18).

    One evaluation serves both: made at the predicted state, it corrects that state and is the
    newest estimate of the next prediction. Steps named in ``uncorrected`` stay as predicted, and so
    does a state that the caller replaced. The last steps fall to order 2 and 1.
    """
    denoised = x - leg.here.sigma * velocity(x, leg.here).to(x.dtype)
    if past and x is past[-1].x and leg.position - 1 not in uncorrected:
        used = min(order, leg.remaining + 1, len(past))
        x = _corrected(past[-used:], leg.here, denoised)
    lam, h = _width(leg.here, leg.there)
    # An estimate made at sigma 1 is infinitely far off in lambda: no polynomial goes through it.
    near = [(step.lam, step.denoised) for step in past if step.level.sigma < 1]
    order = min(order, leg.remaining, len(near) + 1)
    if order == 2:
        slope = (denoised - near[-1][1]) * (h / (lam - near[-1][0]))
        change = moments(h, 1)[0] * (denoised + 0.5 * slope)
    else:
        known = [(lam, denoised), *near[::-1][: order - 1]]
        change = _interpolated(h, [((at - lam) / h, value) for at, value in known])
    return Stepped(_carried(x, leg.here, leg.there, change), denoised, x, leg.here)


def _corrected(past: Past, there: NoiseLevel, arrived: Latent) -> Latent:
    """Do the last step again, knowing the estimate of x0 where it arrived."""
    last = past[-1]
    lam, h = _width(last.level, there)
    if len(past) == 1:
        change = moments(h, 1)[0] * torch.lerp(last.denoised, arrived, 0.5)
    else:
        known = [((step.lam - lam) / h, step.denoised) for step in past if step.level.sigma < 1]
        change = _interpolated(h, [*known, (1.0, arrived)])
    return _carried(last.start, last.level, there, change)


def _interpolated(h: float, known: list[tuple[float, Latent]]) -> Latent:
    weights = node_weights(h, [place for place, _ in known])
    terms = [weight * value for weight, (_, value) in zip(weights, known, strict=True)]
    return torch.stack(terms).sum(dim=0)


def _width(here: NoiseLevel, there: NoiseLevel) -> tuple[float, float]:
    lam = half_log_snr(float(here.sigma))
    return lam, half_log_snr(float(there.sigma)) - lam


def _carried(x: Latent, here: NoiseLevel, there: NoiseLevel, change: Latent) -> Latent:
    return float(there.sigma) / float(here.sigma) * x + (1 - float(there.sigma)) * change


def integrate(
    step: SolverStep,
    velocity: Velocity,
    x: Latent,
    grid: SigmaGrid,
    *,
    on_step: OnStep = lambda index, stepped: None,
    fresh: Fresh | None = None,
) -> Latent:
    """Carry ``x`` down the grid, which owns both ends; the state is at least fp32.

    ``velocity`` gets that state and a `NoiseLevel` of two scalars on the CPU; it may answer in any
    dtype. ``on_step`` is told of every finished step; the latent it returns, if any, takes the
    place of the state, and what it raises stops the run. ``fresh`` gives the noise of a step by
    its number, when it comes.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    past: Past = ()
    for leg in grid.legs():
        if fresh is not None:
            leg = leg._replace(fresh=fresh(leg.position).to(x))
        stepped = step(velocity, x, leg, past)
        past = (*past, stepped)[-HISTORY:]
        replaced = on_step(leg.position, stepped)
        x = stepped.x if replaced is None else replaced
    return x


class Solver(NamedTuple):
    """A step and the grid it is published with; ``grid`` takes (num_steps, flow_shift)."""

    step: SolverStep
    grid: Callable[[int, float], SigmaGrid]
    whole_timesteps: bool
    adds_noise: bool = False
    """Whether each step needs fresh noise."""

    def grid_through(self, sigmas: Sequence[float], flow_shift: float) -> SigmaGrid:
        """Give the grid through a caller's own levels; as `sigmas_given`."""
        return sigmas_given(sigmas, flow_shift, whole_timesteps=self.whole_timesteps)
