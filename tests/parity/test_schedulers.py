"""Grids and solvers against the schedulers the published pipelines are configured with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

import sanakit.pipeline.schedulers as ours
from sanakit.flow.grids import NoiseLevel, SigmaGrid, flow_dpm_sigmas
from sanakit.flow.solvers import SolverStep, integrate

NUM_STEPS = (1, 2, 3, 5, 14, 20)
SHIFTS = (1.0, 3.0, 6.0)

# As printed by diffusers' DPMSolverMultistepScheduler with flow sigmas.
PUBLISHED_TIMESTEPS = {
    (20, 3.0): "999 982 963 944 922 899 874 847 817 785 749 710 666 617 562 499 428 345 249 136",
    (14, 3.0): "999 974 947 916 881 843 799 749 691 624 545 449 333 187",
    (20, 6.0): "999 991 981 971 959 947 933 917 899 879 856 830 799 763 719 666 599 513 399 239",
    (20, 4.0): "999 986 972 957 940 922 902 881 856 829 799 765 726 682 631 571 499 413 307 173",
}


def network(x: Tensor, timestep: Tensor) -> Tensor:
    """A velocity that bends with the state and turns with the timestep it is told."""
    return torch.tanh(1.5 * x.roll(1, 3)) + x * torch.cos(timestep / 150)


FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
DPM, UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
EULER, HEUN = "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm 1": (DPM, {"solver_order": 1}),
    "dpm 2": (DPM, {}),
    "dpm 2, heun": (DPM, {"solver_type": "heun"}),
    "dpm 2, Euler at the end": (DPM, {"euler_at_final": True}),
    "dpm 3": (DPM, {"solver_order": 3}),
    "dpm 3, not lower at the end": (DPM, {"solver_order": 3, "lower_order_final": False}),
    "unipc 1": (UNIPC, {"solver_order": 1}),
    "unipc 2": (UNIPC, {}),
    "unipc 3": (UNIPC, {"solver_order": 3}),
    "unipc 3, partly corrected": (UNIPC, {"solver_order": 3, "disable_corrector": [0, 2]}),
    "euler": (EULER, {}),
    "heun": (HEUN, {}),
}


def pair(name: str, flow_shift: float) -> tuple[Any, ours.Scheduler]:
    """The published scheduler, and ours of the same class and settings."""
    kind, settings = SETTINGS[name]
    if kind in (DPM, UNIPC):
        settings = {**FLOW, "flow_shift": flow_shift, **settings}
    else:
        settings = {"shift": flow_shift, **settings}
    return getattr(diffusers, kind)(**settings), ours.CLASSES[kind](**settings)


def walk(scheduler: Any, x: Tensor) -> Tensor:
    """The states after every step of a published scheduler; a step of Heun's takes two calls."""
    states = []
    for timestep in scheduler.timesteps:
        x = scheduler.step(network(x, timestep), timestep, x, return_dict=False)[0]
        states.append(x)
    if scheduler.order == 2:
        states = [*states[1::2], states[-1]]
    return torch.stack(states)


def walk_ours(step: SolverStep, grid: SigmaGrid, x: Tensor) -> Tensor:
    states: list[Tensor] = []

    def velocity(x: Tensor, level: NoiseLevel) -> Tensor:
        return network(x, level.timestep)

    integrate(step, velocity, x, grid, on_step=lambda index, stepped: states.append(stepped.x))
    return torch.stack(states)


@pytest.mark.parametrize("flow_shift", SHIFTS)
@pytest.mark.parametrize("num_steps", NUM_STEPS)
@pytest.mark.parametrize("name", SETTINGS)
def test_every_step_agrees_with_the_scheduler(
    name: str, num_steps: int, flow_shift: float, rng: torch.Generator
) -> None:
    scheduler, own = pair(name, flow_shift)
    scheduler.set_timesteps(num_steps)
    grid = own.grid(num_steps)
    one_each = slice(None) if scheduler.order == 1 else [0, *range(1, 2 * num_steps - 1, 2)]
    torch.testing.assert_close(
        grid.timesteps, scheduler.timesteps[one_each].float(), rtol=0, atol=0
    )
    sigmas = torch.cat([scheduler.sigmas[:-1][one_each], scheduler.sigmas[-1:]])
    torch.testing.assert_close(grid.sigmas, sigmas, rtol=0, atol=1e-7)

    start = torch.randn(2, 3, 4, 6, generator=rng)
    # The published Heun divides rounding errors of the state by sigma, which ends at 0.001 here.
    atol = 1e-4 if name == "heun" else 1e-5
    found, expected = walk_ours(own.solver.step, grid, start), walk(scheduler, start)
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("flow_shift", SHIFTS)
@pytest.mark.parametrize("name", [name for name in SETTINGS if "unipc" in name or name == "euler"])
def test_sigmas_of_the_caller_agree_with_the_schedulers_that_take_them(
    name: str, flow_shift: float, rng: torch.Generator
) -> None:
    given = [1.0, 0.8125, 0.5, 0.3, 0.125]
    scheduler, own = pair(name, flow_shift)
    scheduler.set_timesteps(sigmas=np.array(given))  # the published UniPC fails on a list
    grid = own.custom_grid(sigmas=given)
    torch.testing.assert_close(grid.sigmas, scheduler.sigmas, rtol=0, atol=1e-7)
    torch.testing.assert_close(grid.timesteps, scheduler.timesteps.float(), rtol=0, atol=1e-4)
    start = torch.randn(2, 3, 4, 6, generator=rng)
    found, expected = walk_ours(own.solver.step, grid, start), walk(scheduler, start)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_timesteps_of_the_caller_agree_where_no_shift_makes_the_published_ones_contradict(
    rng: torch.Generator,
) -> None:
    told = [990.0, 700.0, 333.0, 20.0]
    scheduler, own = pair("euler", 1.0)
    scheduler.set_timesteps(timesteps=told)
    grid = own.custom_grid(timesteps=told)
    start = torch.randn(2, 3, 4, 6, generator=rng)
    found, expected = walk_ours(own.solver.step, grid, start), walk(scheduler, start)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_survive_the_other_library(name: str, tmp_path: Path) -> None:
    theirs, own = pair(name, 2.5)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    assert ours.read_scheduler(tmp_path / "theirs") == own
    assert ours.as_scheduler(theirs) == own
    own.save_pretrained(tmp_path / "ours")
    assert ours.read_scheduler(tmp_path / "ours") == own
    back = type(theirs).from_pretrained(str(tmp_path / "ours"))
    written = json.loads((tmp_path / "ours" / "scheduler_config.json").read_text())
    for key in written.keys() - {"_class_name", "_diffusers_version"}:
        assert back.config[key] == theirs.config[key], key


@pytest.mark.parametrize("to", [DPM, UNIPC])
@pytest.mark.parametrize("name", ["dpm 2", "dpm 2, heun", "dpm 3", "unipc 2", "unipc 3"])
def test_a_config_of_another_class_means_what_it_means_there(name: str, to: str) -> None:
    theirs, own = pair(name, 3.0)
    changed = ours.CLASSES[to].from_config(own.config, flow_shift=4.0)
    expected = getattr(diffusers, to).from_config(theirs.config, flow_shift=4.0)
    assert ours.as_scheduler(expected) == changed


@pytest.mark.parametrize("settings", PUBLISHED_TIMESTEPS)
def test_timesteps_are_the_published_integers(settings: tuple[int, float]) -> None:
    expected = [float(number) for number in PUBLISHED_TIMESTEPS[settings].split()]
    assert flow_dpm_sigmas(*settings).timesteps.tolist() == expected
