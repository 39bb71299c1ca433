"""Grids and solvers against the schedulers the published pipelines are configured with."""

from __future__ import annotations

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from sanakit.flow.grids import NoiseLevel, flow_dpm_sigmas, flow_euler_sigmas
from sanakit.flow.solvers import dpmpp_2m_step, euler_step, integrate

NUM_STEPS = (1, 2, 3, 5, 10, 14, 20, 28, 50)
SHIFTS = (1.0, 3.0, 4.0, 6.0)

# From the reference inventory, section 3.9, which ran the published scheduler.
PUBLISHED_TIMESTEPS = {
    (20, 3.0): "999 982 963 944 922 899 874 847 817 785 749 710 666 617 562 499 428 345 249 136",
    (14, 3.0): "999 974 947 916 881 843 799 749 691 624 545 449 333 187",
    (20, 6.0): "999 991 981 971 959 947 933 917 899 879 856 830 799 763 719 666 599 513 399 239",
    (20, 4.0): "999 986 972 957 940 922 902 881 856 829 799 765 726 682 631 571 499 413 307 173",
}


def network(x: Tensor, timestep: Tensor) -> Tensor:
    """A velocity that bends with the state and turns with the timestep it is told."""
    return torch.tanh(1.5 * x.roll(1, 3)) + x * torch.cos(timestep / 150)


def dpm(num_steps: int, flow_shift: float) -> DPMSolverMultistepScheduler:
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=flow_shift
    )
    scheduler.set_timesteps(num_steps)
    return scheduler


def euler(num_steps: int, flow_shift: float) -> FlowMatchEulerDiscreteScheduler:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=flow_shift)
    scheduler.set_timesteps(num_steps)
    return scheduler


SOLVER_PAIRS = {
    "dpm": (dpm, flow_dpm_sigmas, dpmpp_2m_step),
    "euler": (euler, flow_euler_sigmas, euler_step),
}


@pytest.mark.parametrize("flow_shift", SHIFTS)
@pytest.mark.parametrize("num_steps", NUM_STEPS)
@pytest.mark.parametrize("name", SOLVER_PAIRS)
def test_every_step_agrees_with_the_scheduler(
    name: str, num_steps: int, flow_shift: float, rng: torch.Generator
) -> None:
    scheduler_of, grid_of, step = SOLVER_PAIRS[name]
    scheduler = scheduler_of(num_steps, flow_shift)
    grid = grid_of(num_steps, flow_shift)
    torch.testing.assert_close(grid.sigmas, scheduler.sigmas, rtol=0, atol=1e-7)
    torch.testing.assert_close(grid.timesteps, scheduler.timesteps.float(), rtol=0, atol=0)

    x = start = torch.randn(2, 3, 4, 6, generator=rng)
    expected = []
    for timestep in scheduler.timesteps:
        x = scheduler.step(network(x, timestep), timestep, x, return_dict=False)[0]
        expected.append(x)

    def velocity(x: Tensor, level: NoiseLevel) -> Tensor:
        return network(x, level.timestep)

    got: list[Tensor] = []
    integrate(step, velocity, start, grid, on_step=lambda index, stepped: got.append(stepped.x))
    torch.testing.assert_close(torch.stack(got), torch.stack(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", PUBLISHED_TIMESTEPS)
def test_timesteps_are_the_published_integers(settings: tuple[int, float]) -> None:
    expected = [float(number) for number in PUBLISHED_TIMESTEPS[settings].split()]
    assert flow_dpm_sigmas(*settings).timesteps.tolist() == expected
