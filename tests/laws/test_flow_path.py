"""Laws of the path, its shift, and the levels drawn for training."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sanakit.errors import ConfigError
from sanakit.flow.grids import (
    flow_dpm_sigmas,
    flow_euler_sigmas,
    levels_at,
    shift_sigmas,
)
from sanakit.flow.path import (
    flow_matching_loss,
    interpolate,
    noise_from_velocity,
    velocity_between,
    x0_from_velocity,
)

levels = st.floats(0, 1)
shifts = st.floats(0.1, 10)


def ends(seed: int, batch: int = 3) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, batch, 2, 3, 4, generator=rng, dtype=torch.float64)
    return x0, noise


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@given(st.integers(0, 99), st.lists(levels, min_size=3, max_size=3))
def test_both_ends_are_found_again_from_anywhere_on_the_path(
    seed: int, sigmas: list[float]
) -> None:
    x0, noise = ends(seed)
    sigma = torch.tensor(sigmas, dtype=torch.float64)
    x, velocity = interpolate(x0, noise, sigma), velocity_between(x0, noise)
    close(x0_from_velocity(x, velocity, sigma), x0)
    close(noise_from_velocity(x, velocity, sigma), noise)


@given(st.integers(0, 99), levels, levels)
def test_the_velocity_carries_any_level_to_any_other(seed: int, here: float, there: float) -> None:
    x0, noise = ends(seed)
    at_here, at_there = (
        interpolate(x0, noise, torch.full((3,), sigma, dtype=torch.float64))
        for sigma in (here, there)
    )
    close(at_here + (there - here) * velocity_between(x0, noise), at_there)


def test_level_zero_is_data_and_level_one_is_noise() -> None:
    x0, noise = ends(0, batch=2)
    x = interpolate(x0, noise, torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert torch.equal(x, torch.stack([x0[0], noise[1]]))


def test_the_loss_is_zero_at_the_velocity_and_the_square_of_any_offset() -> None:
    x0, noise = ends(1)
    offset = torch.tensor([0.0, 1.0, -3.0], dtype=torch.float64).view(3, 1, 1, 1)
    predicted = velocity_between(x0, noise) + offset
    loss = flow_matching_loss(predicted, x0, noise)
    torch.testing.assert_close(loss, torch.tensor([0.0, 1.0, 9.0]), rtol=0, atol=1e-5)


@given(levels, shifts, shifts)
def test_shifts_undo_and_compose(sigma: float, first: float, second: float) -> None:
    assert shift_sigmas(shift_sigmas(sigma, first), 1 / first) == pytest.approx(sigma, abs=1e-10)
    twice = shift_sigmas(shift_sigmas(sigma, first), second)
    assert twice == pytest.approx(shift_sigmas(sigma, first * second), abs=1e-10)


@given(shifts, levels)
def test_a_shift_keeps_the_ends_and_multiplies_the_odds_of_noise(s: float, sigma: float) -> None:
    assert shift_sigmas(0.0, s) == 0
    assert shift_sigmas(1.0, s) == pytest.approx(1, abs=1e-14)
    shifted = shift_sigmas(sigma, s)
    assert shifted * (1 - sigma) == pytest.approx(s * sigma * (1 - shifted), abs=1e-10)


@given(st.integers(1, 60), st.floats(1, 10), st.sampled_from([flow_dpm_sigmas, flow_euler_sigmas]))
def test_a_grid_falls_to_zero_without_a_stop(num_steps: int, flow_shift: float, grid: type) -> None:
    sigmas, timesteps = grid(num_steps, flow_shift)
    assert sigmas.shape == (num_steps + 1,)
    assert timesteps.shape == (num_steps,)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
    assert ((1000 * sigmas[:-1] - timesteps).abs() <= 1).all()


@given(shifts)
def test_training_timesteps_are_integers_just_below_their_sigma(flow_shift: float) -> None:
    sigma, timestep = levels_at(torch.linspace(0, 1, 501), flow_shift)
    assert torch.equal(timestep, timestep.trunc())
    assert timestep.min() >= 0
    assert timestep.max() <= 999
    below = 1000 * sigma.double() - timestep
    assert (below > -1e-3).all()  # sigma is fp32 here
    assert (below < 1 + 1e-3).all()


def test_unshifted_training_levels_are_the_thousandths() -> None:
    sigma, timestep = levels_at((torch.arange(1000) + 0.5) / 1000, 1.0)
    assert torch.equal(timestep, torch.arange(1000.0))
    assert torch.equal(sigma, torch.arange(1000) / 1000)


def test_a_shift_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"flow_shift=0 must be positive\n.*1 is no shift"):
        shift_sigmas(0.5, 0)
