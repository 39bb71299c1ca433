"""Solver steps on flows whose solution is known, and the loop that drives them."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sanakit.errors import ConfigError, Interrupted
from sanakit.flow.grids import (
    Leg,
    NoiseLevel,
    SigmaGrid,
    flow_dpm_sigmas,
    flow_euler_sigmas,
    flow_unipc_sigmas,
    sigmas_given,
    timesteps_given,
)
from sanakit.flow.solvers import (
    SolverStep,
    Stepped,
    dpmpp_step,
    euler_step,
    heun_step,
    integrate,
    node_weights,
    unipc_step,
)
from sanakit.pipeline.schedulers import NAMED

EVERY_STEP = frozenset(range(2000))
SOLVERS = {name: scheduler.solver for name, scheduler in NAMED.items()}
STEPS: dict[str, SolverStep] = {
    "euler": euler_step,
    "heun": heun_step,
    "dpmpp 1": partial(dpmpp_step, order=1),
    "dpmpp 2": dpmpp_step,
    "dpmpp 2, heun": partial(dpmpp_step, slope_weight="heun"),
    "dpmpp 3": partial(dpmpp_step, order=3),
    "unipc 1": partial(unipc_step, order=1),
    "unipc 2": unipc_step,
    "unipc 3": partial(unipc_step, order=3),
    "unip 2": partial(unipc_step, uncorrected=EVERY_STEP),
    "unip 3": partial(unipc_step, order=3, uncorrected=EVERY_STEP),
}
GRIDS = [flow_dpm_sigmas, flow_euler_sigmas, flow_unipc_sigmas]
S = 0.5


def exact_velocity(x: Tensor, level: NoiseLevel) -> Tensor:
    """Velocity for data ~ N(0, S^2), whose best denoiser is linear."""
    sigma = level.sigma
    alpha = 1 - sigma
    denoised = x * alpha * S**2 / (alpha**2 * S**2 + sigma**2)
    return (x - denoised) / sigma


def exact(sigma: Tensor) -> Tensor:
    """The solution through x(1) = 1: x(sigma) = sqrt((1 - sigma)^2 S^2 + sigma^2)."""
    return torch.hypot((1 - sigma) * S, sigma).view(1, 1, 1, 1)


def error(step: SolverStep, steps: int) -> float:
    """Distance from the exact solution where a run in even steps arrives."""
    start, stop = 1.0, 0.05
    sigmas = torch.linspace(start, stop, steps + 1, dtype=torch.float64)
    grid = SigmaGrid(sigmas, 1000 * sigmas[:-1])
    return abs(integrate(step, exact_velocity, exact(sigmas[0]), grid) - exact(sigmas[-1])).item()


@pytest.mark.parametrize(
    ("name", "order"),
    # A run's first and last steps are of lower orders, so none is above 2 as a whole.
    [(name, 1 if name in ("euler", "dpmpp 1") else 2) for name in STEPS],
)
def test_the_error_of_a_run_shrinks_at_the_promised_order(name: str, order: int) -> None:
    measured = math.log2(error(STEPS[name], 256) / error(STEPS[name], 512))
    assert measured == pytest.approx(order, abs=0.2)


def error_of_a_step(step: SolverStep, h: float) -> float:
    """Distance after one step from a past without error, at steps of ``h`` in lambda."""
    lam = 0.7 + h * torch.arange(-3, 2, dtype=torch.float64)
    levels = [NoiseLevel(sigma, 1000 * sigma) for sigma in torch.sigmoid(-lam)]
    past: tuple[Stepped, ...] = ()
    for here, there in pairwise(levels[:4]):
        x = exact(here.sigma)
        denoised = x - here.sigma * exact_velocity(x, here)
        past = (*past, Stepped(exact(there.sigma), denoised, x, here))
    leg = Leg(levels[3], levels[4], 3, 100)
    arrived = step(exact_velocity, past[-1].x.clone(), leg, past).x
    return abs(arrived - exact(levels[4].sigma)).item()


@pytest.mark.parametrize(
    ("name", "order"),
    # The published formula of "dpmpp 3" gives the curvature half of its weight.
    [("dpmpp 1", 1), ("dpmpp 2", 2), ("dpmpp 2, heun", 2), ("dpmpp 3", 2), ("unip 3", 3)],
)
def test_a_step_with_a_past_is_of_the_promised_order(name: str, order: int) -> None:
    measured = math.log2(error_of_a_step(STEPS[name], 0.02) / error_of_a_step(STEPS[name], 0.01))
    assert measured == pytest.approx(order + 1, abs=0.15)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_corrector_is_one_order_above_its_predictor(order: int) -> None:
    """The state that a step leaves from is the last one's, corrected."""

    def error_at(h: float) -> float:
        lam = 0.7 + h * torch.arange(-3, 3, dtype=torch.float64)
        levels = [NoiseLevel(sigma, 1000 * sigma) for sigma in torch.sigmoid(-lam)]
        past: tuple[Stepped, ...] = ()
        for here in levels[:3]:
            x = exact(here.sigma)
            past = (*past, Stepped(x, x - here.sigma * exact_velocity(x, here), x, here))
        predicted = unipc_step(exact_velocity, x, Leg(*levels[2:4], 2, 9), past[:2], order=order)
        leg = Leg(*levels[3:5], 3, 9)
        corrected = unipc_step(
            exact_velocity, predicted.x, leg, (*past[:2], predicted), order=order
        )
        return abs(corrected.start - exact(levels[3].sigma)).item()

    assert math.log2(error_at(0.04) / error_at(0.02)) == pytest.approx(order + 2, abs=0.2)


@pytest.mark.parametrize("grid", GRIDS)
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
    first = integrate(STEPS["dpmpp 1"], exact_velocity, x, grid)
    torch.testing.assert_close(
        first, integrate(euler_step, exact_velocity, x, grid), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("name", SOLVERS)
def test_the_network_is_asked_at_the_levels_of_the_grid(name: str) -> None:
    step, grid_of = SOLVERS[name][:2]
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
    for step, grid_of, *_ in SOLVERS.values():
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


@pytest.mark.parametrize("grid", GRIDS)
def test_impossible_grids_are_refused(grid: type) -> None:
    with pytest.raises(ConfigError, match="num_steps=0 must be at least 1"):
        grid(0, 3.0)
    with pytest.raises(ConfigError, match=r"flow_shift=-1\.0 must be positive"):
        grid(5, -1.0)


def test_a_shift_that_leaves_no_room_between_levels_is_refused() -> None:
    with pytest.raises(ConfigError, match="20 steps do not fit between the levels"):
        flow_dpm_sigmas(20, 1e9)


def test_a_state_that_was_replaced_is_not_corrected() -> None:
    """The corrector would undo what the caller did: it starts from the state before."""
    start, mine = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.3)
    met: list[Tensor] = []

    def replace_once(index: int, stepped: Stepped) -> Tensor | None:
        met.append(stepped.start)
        return mine if index == 2 else None

    integrate(unipc_step, exact_velocity, start, flow_unipc_sigmas(6, 3.0), on_step=replace_once)
    assert torch.equal(met[3], mine)


def test_the_loop_keeps_no_more_of_the_past_than_solvers_need() -> None:
    kept: list[int] = []

    def step(velocity: object, x: Tensor, leg: Leg, past: tuple[Stepped, ...]) -> Stepped:
        kept.append(len(past))
        return Stepped(x, x, x, leg.here)

    integrate(step, exact_velocity, torch.ones(1, 1, 1, 1), flow_dpm_sigmas(6, 1.0))
    assert kept == [0, 1, 2, 3, 3, 3]


def test_given_sigmas_are_shifted_closed_and_told_as_the_solver_tells_its_own() -> None:
    whole = sigmas_given([1.0, 0.5, 0.25], 3.0, whole_timesteps=True)
    assert whole.timesteps.tolist() == [999, 750, 500]
    assert whole.sigmas[1:].tolist() == [0.75, 0.5, 0]
    assert 0.99999 < whole.sigmas[0] < 1
    exactly = sigmas_given([1.0, 0.5, 0.0], 2.0, whole_timesteps=False)
    assert exactly.sigmas.tolist() == [1, pytest.approx(2 / 3), 0]
    assert exactly.timesteps.tolist() == [1000, pytest.approx(2000 / 3, abs=1e-4)]


def test_given_timesteps_are_what_the_network_is_told() -> None:
    told = list(range(999, 0, -1))
    grid = timesteps_given(told)
    assert grid.timesteps.tolist() == told
    torch.testing.assert_close(grid.sigmas[:-1] * 1000, grid.timesteps, rtol=0, atol=1e-3)


@pytest.mark.parametrize("levels", [[], [0.0], [0.5, 0.5], [0.2, 0.4], [1.5, 0.5], [0.5, -0.1]])
def test_levels_that_do_not_fall_are_refused(levels: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"sigmas=.* must fall, within \(0, 1\]"):
        sigmas_given(levels, 1.0, whole_timesteps=True)
    with pytest.raises(ConfigError, match=r"timesteps=.* must fall, within \(0, 1000\]"):
        timesteps_given([1000 * level for level in levels])


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize(
    "levels", [[1.0, 0.8, 0.6, 0.4, 0.2], [0.7], [1.0], [0.99, 0.98, 0.02, 0.01]]
)
def test_every_solver_stays_finite_on_any_grid(name: str, levels: list[float]) -> None:
    for whole in (True, False):
        grid = sigmas_given(levels, 1.0, whole_timesteps=whole)
        assert integrate(STEPS[name], exact_velocity, torch.ones(1, 1, 2, 2), grid).isfinite().all()


def test_no_polynomial_of_the_corrector_goes_through_an_estimate_made_at_pure_noise() -> None:
    """It is infinitely far off in lambda, where a linear solve may still give wrong numbers."""
    finished: list[Stepped] = []
    grid = sigmas_given([1.0, 0.8, 0.6, 0.4], 1.0, whole_timesteps=False)
    x = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    integrate(
        STEPS["unipc 3"], exact_velocity, x, grid, on_step=lambda _, step: finished.append(step)
    )
    before, after = finished[1:3]
    first, second = node_weights(after.lam - before.lam, [0.0, 1.0])
    ratio, alpha = float(after.level.sigma / before.level.sigma), 1 - float(after.level.sigma)
    expected = ratio * before.start + alpha * (first * before.denoised + second * after.denoised)
    torch.testing.assert_close(after.start, expected, rtol=0, atol=1e-6)
