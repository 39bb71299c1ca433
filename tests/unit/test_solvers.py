"""Solver steps on flows whose solution is known, and the loop that drives them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sanakit.errors import ConfigError, Interrupted
from sanakit.flow.grids import NoiseLevel, SigmaGrid, flow_dpm_sigmas, flow_euler_sigmas
from sanakit.flow.solvers import (
    SOLVERS,
    SolverStep,
    Stepped,
    dpmpp_1_step,
    dpmpp_2m_step,
    euler_step,
    heun_step,
    integrate,
)

STEPS = {
    "euler": euler_step,
    "heun": heun_step,
    "dpmpp_1": dpmpp_1_step,
    "dpmpp_2m": dpmpp_2m_step,
}
S = 0.5


def exact_velocity(x: Tensor, level: NoiseLevel) -> Tensor:
    """Velocity for data ~ N(0, S^2), whose best denoiser is linear."""
    sigma = level.sigma
    alpha = 1 - sigma
    denoised = x * alpha * S**2 / (alpha**2 * S**2 + sigma**2)
    return (x - denoised) / sigma


def error(step: SolverStep, steps: int) -> float:
    """Distance from x(sigma) = x(1) * sqrt((1 - sigma)^2 S^2 + sigma^2), the exact solution."""
    start, stop = 1.0, 0.05
    sigmas = torch.linspace(start, stop, steps + 1, dtype=torch.float64)
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    arrived = integrate(step, exact_velocity, x, SigmaGrid(sigmas, 1000 * sigmas[:-1]))
    return abs(arrived.item() - math.hypot((1 - stop) * S, stop))


@pytest.mark.parametrize(
    ("name", "order"), [("euler", 1), ("dpmpp_1", 1), ("heun", 2), ("dpmpp_2m", 2)]
)
def test_the_error_shrinks_at_the_promised_order(name: str, order: int) -> None:
    measured = math.log2(error(STEPS[name], 64) / error(STEPS[name], 128))
    assert measured == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("grid", [flow_dpm_sigmas, flow_euler_sigmas])
@pytest.mark.parametrize("name", STEPS)
def test_one_clean_latent_is_reached_exactly_from_any_start(
    name: str, grid: type, rng: torch.Generator
) -> None:
    """All data is one point, so x0 is known at once; ends at sigma 1 and 0 must not spoil it."""
    x0 = torch.randn(2, 3, 4, 5, generator=rng)
    x = torch.randn(2, 3, 4, 5, generator=rng)
    arrived = integrate(
        STEPS[name], lambda x, level: (x - x0) / level.sigma.clamp_min(1e-6), x, grid(7, 3.0)
    )
    torch.testing.assert_close(arrived, x0, rtol=0, atol=1e-5)


def test_dpmpp_of_first_order_is_euler(rng: torch.Generator) -> None:
    x = torch.randn(1, 1, 2, 2, generator=rng, dtype=torch.float64)
    grid = flow_dpm_sigmas(9, 3.0)
    grid = SigmaGrid(grid.sigmas.double(), grid.timesteps)
    first = integrate(dpmpp_1_step, exact_velocity, x, grid)
    torch.testing.assert_close(
        first, integrate(euler_step, exact_velocity, x, grid), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("name", SOLVERS)
def test_the_network_is_asked_at_the_levels_of_the_grid(name: str) -> None:
    step, grid_of = SOLVERS[name]
    grid = grid_of(6, 3.0)
    asked: list[tuple[float, float]] = []

    def velocity(x: Tensor, level: NoiseLevel) -> Tensor:
        asked.append((level.sigma.item(), level.timestep.item()))
        return torch.zeros_like(x)

    integrate(step, velocity, torch.ones(1, 1, 1, 1), grid)
    levels = list(zip(grid.sigmas[:-1].tolist(), grid.timesteps.tolist(), strict=True))
    if name == "flow-heun":  # both ends of every step but the last, which ends at no noise
        levels = [level for level in levels for _ in range(2)][1:]
    assert asked == levels


def test_the_state_stays_fp32_whatever_the_network_answers(rng: torch.Generator) -> None:
    for step, grid_of in SOLVERS.values():
        seen: list[torch.dtype] = []

        def velocity(x: Tensor, level: NoiseLevel, seen: list[torch.dtype] = seen) -> Tensor:
            seen.append(x.dtype)
            return x.bfloat16()

        x = torch.randn(1, 1, 2, 2, generator=rng).bfloat16()
        assert integrate(step, velocity, x, grid_of(3, 1.0)).dtype == torch.float32
        assert set(seen) == {torch.float32}


def test_each_step_is_reported_and_may_stop_the_run() -> None:
    reported: list[tuple[int, float]] = []

    def stop_after_two(index: int, stepped: Stepped) -> None:
        reported.append((index, stepped.denoised.item()))
        if index == 1:
            raise Interrupted("stopped")

    x = torch.ones(1, 1, 1, 1)
    grid = flow_dpm_sigmas(5, 1.0)
    with pytest.raises(Interrupted):
        integrate(euler_step, lambda x, level: x / level.sigma, x, grid, on_step=stop_after_two)
    assert reported == [(0, pytest.approx(0, abs=1e-6)), (1, pytest.approx(0, abs=1e-6))]


def test_a_grid_can_begin_later() -> None:
    grid = flow_dpm_sigmas(10, 3.0)
    late = grid.after(4)
    assert torch.equal(late.sigmas, grid.sigmas[4:])
    assert torch.equal(late.timesteps, grid.timesteps[4:])
    assert [level.sigma.item() for level in late.levels()] == grid.sigmas[4:].tolist()
    assert late.levels()[-1].timestep == 0


@pytest.mark.parametrize("grid", [flow_dpm_sigmas, flow_euler_sigmas])
def test_impossible_grids_are_refused(grid: type) -> None:
    with pytest.raises(ConfigError, match="num_steps=0 must be at least 1"):
        grid(0, 3.0)
    with pytest.raises(ConfigError, match=r"flow_shift=-1\.0 must be positive"):
        grid(5, -1.0)
