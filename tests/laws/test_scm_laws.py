"""Laws of sampling by consistency: arc and straight path, toys that are known exactly, grids."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from sanakit.errors import ConfigError
from sanakit.flow.grids import Leg, NoiseLevel, flow_euler_sigmas
from sanakit.flow.path import draw_noise, interpolate
from sanakit.flow.scm import (
    MAX_TIME,
    arc_grid,
    arc_prediction,
    distance,
    on_arc,
    scm_grid,
    scm_step,
    sigma_at,
)
from sanakit.flow.solvers import euler_step, integrate

MEAN, SPREAD = 0.7, 0.3
times = st.floats(0.01, MAX_TIME)


def ends(seed: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, batch, 2, 3, 4, generator=rng, dtype=torch.float64)
    return x0, noise


def close(got: Tensor, expected: Tensor) -> None:
    assert_close(got, expected, rtol=1e-9, atol=1e-9)


@given(times, st.integers(0, 99))
def test_the_arc_is_the_straight_path_seen_from_another_distance(time: float, seed: int) -> None:
    x0, noise = ends(seed)
    t = torch.tensor(time, dtype=torch.float64)
    sigma = sigma_at(t)
    straight = interpolate(x0, noise, sigma.expand(len(x0)))
    close(on_arc(x0, noise, t) * distance(sigma), straight)
    # What the network learns there, the straight path's velocity, is the way along the arc.
    prediction = arc_prediction(noise - x0, straight, sigma)
    close(prediction, t.cos() * noise - t.sin() * x0)
    close(t.cos() * on_arc(x0, noise, t) - t.sin() * prediction, x0)


@given(times, st.floats(0, 1.5), st.integers(0, 99))
def test_a_step_of_an_exact_denoiser_goes_through_the_data(
    time: float, there: float, seed: int
) -> None:
    x0, noise = ends(seed)
    fresh = ends(seed + 1)[1]
    here, then = (torch.tensor(at, dtype=torch.float64) for at in (time, there))
    leg = Leg(NoiseLevel(sigma_at(here), here), NoiseLevel(sigma_at(then), then), 0, 1, fresh)
    stepped = scm_step(lambda x, level: (x - x0) / level.sigma, on_arc(x0, noise, here), leg, ())
    close(stepped.denoised, x0)
    close(stepped.x, on_arc(x0, fresh, then))


def consistent(x: Tensor, level: NoiseLevel) -> Tensor:
    """The velocity of a perfect consistency model of Gaussian data: straight to the flow's end."""
    sigma = level.sigma.double()
    spread = torch.sqrt((SPREAD * (1 - sigma)) ** 2 + sigma**2)
    end = MEAN + SPREAD * (x - MEAN * (1 - sigma)) / spread
    return (x - end) / sigma


def marginal(x: Tensor, level: NoiseLevel) -> Tensor:
    """The velocity that a teacher of the same data learns: the mean over all that pass here."""
    sigma = level.sigma.double()
    variance = (SPREAD * (1 - sigma)) ** 2 + sigma**2
    x0 = MEAN + SPREAD**2 * (1 - sigma) / variance * (x - MEAN * (1 - sigma))
    return (x - x0) / sigma


def test_one_step_of_a_perfect_model_ends_where_the_flow_of_its_teacher_ends() -> None:
    noise = ends(0, batch=8)[1]
    one = integrate(scm_step, consistent, noise, scm_grid(1), fresh=lambda _: 0 * noise)
    assert_close(one, MEAN + SPREAD * noise, rtol=0, atol=1e-4)
    many = integrate(euler_step, marginal, noise, flow_euler_sigmas(4000, 1.0))
    assert_close(one, many, rtol=0, atol=2e-3)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_any_number_of_steps_of_a_perfect_model_draws_the_data(steps: int) -> None:
    noise = draw_noise(4000, (1, 2, 2), torch.Generator().manual_seed(0))

    def fresh(step: int) -> Tensor:
        return draw_noise(4000, (1, 2, 2), torch.Generator().manual_seed(1 + step))

    drawn = integrate(scm_step, consistent, noise.double(), scm_grid(steps), fresh=fresh)
    assert abs(drawn.mean().item() - MEAN) < 0.01
    assert abs(drawn.std().item() - SPREAD) < 0.01


@given(st.integers(1, 12), st.booleans())
def test_a_grid_falls_from_a_quarter_circle_to_nothing(steps: int, even: bool) -> None:
    grid = scm_grid(steps, second_time=None) if even else scm_grid(steps)
    assert len(grid.timesteps) == steps
    assert all(here > there for here, there in pairwise(grid.times.tolist()))
    assert all(here > there for here, there in pairwise(grid.sigmas.tolist()))
    assert grid.sigmas[-1] == 0
    assert abs(grid.times[0].item() - math.pi / 2) < 3e-3
    assert_close(grid.sigmas, sigma_at(grid.times))
    again = arc_grid(grid.timesteps.tolist())
    assert torch.equal(again.times, grid.times)


@given(st.integers(1, 8), st.floats(0.01, 1), st.floats(0.01, 1))
def test_less_strength_begins_no_noisier_and_below_one_never_in_noise(
    steps: int, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    grid = scm_grid(steps)
    less, more = grid.cut(low), grid.cut(high)
    assert 0 < len(less.timesteps) <= len(more.timesteps) <= steps
    assert 0 < less.timesteps[0] <= more.timesteps[0]
    if low < 0.999:
        assert less.timesteps[0] < grid.timesteps[0]
    assert torch.equal(grid.cut(1.0).times, grid.times)


def test_a_picture_is_mixed_in_where_the_grid_begins() -> None:
    x0, noise = (end.float() for end in ends(3))
    grid = scm_grid(2)
    for position, time in enumerate((MAX_TIME, 1.3, 0.0)):
        expected = math.cos(time) * x0 + math.sin(time) * noise
        assert_close(grid.mixed(position, x0, noise), expected, rtol=0, atol=1e-6)
    assert_close(grid.after(1).mixed(0, x0, noise), grid.mixed(1, x0, noise))
    with pytest.raises(ConfigError, match="leaves none to run"):
        grid.cut(1e-17)
