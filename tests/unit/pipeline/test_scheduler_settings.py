"""Schedulers as frozen settings: what is read, carried over, refused, and what they solve with."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recipes.glyph.train.start import FLOW_SHIFT
from torch import Tensor

from sanakit import SanaPipeline
from sanakit.errors import ConfigError, MissingModelError
from sanakit.flow.grids import NoiseLevel
from sanakit.pipeline.components import Components, GenerationDefaults
from sanakit.pipeline.pipeline import Pipeline
from sanakit.pipeline.request import GenerateRequest
from sanakit.pipeline.schedulers import (
    CLASSES,
    NAMED,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    Scheduler,
    SCMScheduler,
    UniPCMultistepScheduler,
    as_scheduler,
    read_scheduler,
    scheduler_from_config,
    scheduler_named,
)
from tiny import tiny_components, write_tiny

DRAW = {"height": 64, "width": 64, "num_inference_steps": 3, "output_type": "latent"}


@pytest.fixture(scope="module")
def components() -> Components:
    return tiny_components(
        GenerationDefaults(scheduler=DPMSolverMultistepScheduler(flow_shift=2.0))
    )


@pytest.fixture
def pipe(components: Components) -> SanaPipeline:
    return SanaPipeline(Pipeline(components))


def velocity(x: Tensor, level: NoiseLevel) -> Tensor:
    return torch.sin(3 * x) + level.sigma * x


def drawn(pipe: SanaPipeline, **arguments: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe("a tree", generator=generator, **(DRAW | arguments)).images


@pytest.mark.parametrize("name", NAMED)
def test_a_scheduler_knows_its_name_whatever_its_shift(name: str) -> None:
    assert scheduler_named(name, 7.5).solver_name == name


def test_settings_that_no_name_has_have_no_name() -> None:
    assert DPMSolverMultistepScheduler(solver_type="heun").solver_name is None
    assert UniPCMultistepScheduler(flow_shift=7.5).solver_name == "flow-unipc"


def test_settings_can_be_read_and_not_changed() -> None:
    scheduler = DPMSolverMultistepScheduler(flow_shift=3.0)
    assert scheduler.config.flow_shift == scheduler.config["flow_shift"] == 3.0
    assert dict(scheduler.config)["_class_name"] == "DPMSolverMultistepScheduler"
    assert "solver_order" in scheduler.config
    with pytest.raises(AttributeError, match="no setting 'flow_shfit'"):
        _ = scheduler.config.flow_shfit
    with pytest.raises(dataclasses.FrozenInstanceError):
        scheduler.flow_shift = 4.0  # type: ignore[misc]


def test_the_shift_is_carried_over_under_its_other_name() -> None:
    dpm = DPMSolverMultistepScheduler(flow_shift=3.0, solver_order=3)
    euler = FlowMatchEulerDiscreteScheduler.from_config(dpm.config)
    assert euler == FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert DPMSolverMultistepScheduler.from_config(euler.config).flow_shift == 3.0
    assert FlowMatchHeunDiscreteScheduler.from_config(dpm.config, flow_shift=5.0).shift == 5.0
    assert UniPCMultistepScheduler.from_config(euler.config, shift=6.0).flow_shift == 6.0
    assert UniPCMultistepScheduler.from_config(dpm.config).solver_order == 3


def test_a_published_file_is_read_with_all_its_keys(tmp_path: Path) -> None:
    """Keys that describe betas decide nothing for a flow, and are in every published file."""
    published = {
        "_class_name": "DPMSolverMultistepScheduler",
        "_diffusers_version": "0.32.0",
        "algorithm_type": "dpmsolver++",
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "dynamic_thresholding_ratio": 0.995,
        "euler_at_final": False,
        "final_sigmas_type": "zero",
        "flow_shift": 4.0,
        "lambda_min_clipped": -float("inf"),
        "lower_order_final": True,
        "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction",
        "rescale_betas_zero_snr": False,
        "sample_max_value": 1.0,
        "solver_order": 2,
        "solver_type": "midpoint",
        "steps_offset": 0,
        "thresholding": False,
        "timestep_spacing": "linspace",
        "trained_betas": None,
        "use_flow_sigmas": True,
        "use_karras_sigmas": False,
        "variance_type": None,
    }
    (tmp_path / "scheduler_config.json").write_text(json.dumps(published))
    assert read_scheduler(tmp_path) == DPMSolverMultistepScheduler(flow_shift=4.0)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("flow-dpm-solver", {"use_karras_sigmas": True}, "trained at levels of a flow"),
        ("flow-dpm-solver", {"prediction_type": "epsilon"}, "predict a flow's velocity"),
        ("flow-dpm-solver", {"use_flow_sigmas": False}, "leave it at True"),
        ("flow-dpm-solver", {"algorithm_type": "sde-dpmsolver++"}, "add no noise"),
        ("flow-dpm-solver", {"algorithm_type": "dpmsolver"}, "solved for x0"),
        ("flow-dpm-solver", {"solver_order": 4}, "orders are 1, 2 and 3"),
        ("flow-dpm-solver", {"solver_type": "linear"}, "'midpoint' or 'heun'"),
        ("flow-dpm-solver", {"final_sigmas_type": "sigma_min"}, "noise would be left"),
        ("flow-dpm-solver", {"thresholding": True}, "made for pixels"),
        ("flow-dpm-solver", {"flow_shift": 0}, "must be a positive number"),
        ("flow-dpm-solver", {"flow_shift": float("nan")}, "must be a positive number"),
        ("flow-dpm-solver", {"flow_shift": "3"}, "must be a positive number"),
        ("flow-dpm-solver", {"num_train_timesteps": 500}, "told timesteps of 0 to 1000"),
        ("flow-dpm-solver", {"beta_start": 0.1}, "has no effect on the levels of a flow"),
        ("flow-dpm-solver", {"flow_shfit": 3.0}, "did you mean 'flow_shift'"),
        ("flow-unipc", {"solver_type": "bh1"}, "bh1 has no finite step into sigma 0"),
        ("flow-unipc", {"lower_order_final": False}, "only order 1 is finite"),
        ("flow-unipc", {"disable_corrector": [-1]}, "lists steps from 0 up"),
        ("flow-euler", {"stochastic_sampling": True}, "add no noise"),
        ("flow-euler", {"use_dynamic_shifting": True}, "not of a picture's size"),
        ("flow-euler", {"shift": -1.0}, "must be a positive number"),
        ("flow-heun", {"solver_order": 2}, "is no setting of this scheduler"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_a_hint(
    name: str, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        type(NAMED[name]).from_config(NAMED[name].config, **changes)
    assert refused.value.hint
    if set(changes) <= {field.name for field in dataclasses.fields(NAMED[name])}:
        with pytest.raises(ConfigError, match=said):
            type(NAMED[name])(**changes)
        with pytest.raises(ConfigError, match=said):
            scheduler_from_config({**NAMED[name].config, **changes})


def test_a_file_with_a_key_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    config = {**NAMED["flow-unipc"].config, "flow_shitf": 3.0}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"scheduler_config\.json: 'flow_shitf' is no setting"):
        read_scheduler(tmp_path)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("DPMSolverMultistepSchedular", "did you mean 'DPMSolverMultistepScheduler'"),
        ("", "known: .*UniPCMultistepScheduler"),
    ],
)
def test_an_unknown_class_is_refused_naming_one_there_is(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=rf"is not known\n.*{hint}"):
        scheduler_from_config({"_class_name": name})


@pytest.mark.parametrize("face", [kind for kind in CLASSES.values() if kind is not SCMScheduler])
def test_a_scheduler_comes_back_from_the_disk(face: type[Scheduler], tmp_path: Path) -> None:
    scheduler = face.from_config({}, flow_shift=2.5)
    scheduler.save_pretrained(tmp_path / "scheduler")
    assert face.from_pretrained(tmp_path) == scheduler
    assert face.from_pretrained(tmp_path / "scheduler") == scheduler
    assert face.from_pretrained(tmp_path, flow_shift=1.5).flow_shift == 1.5
    with pytest.raises(MissingModelError):
        face.from_pretrained(tmp_path / "nowhere")


def test_a_model_may_bring_any_scheduler(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "m")
    scheduler = UniPCMultistepScheduler(flow_shift=2.0, disable_corrector=[0])
    pipe = SanaPipeline.from_pretrained(folder, scheduler=scheduler)
    assert pipe.scheduler == scheduler
    pipe.save_pretrained(tmp_path / "n")
    assert SanaPipeline.from_pretrained(tmp_path / "n").scheduler == scheduler
    assert UniPCMultistepScheduler.from_pretrained(tmp_path / "m").flow_shift == 3.0
    assert UniPCMultistepScheduler.from_pretrained("glyph").flow_shift == FLOW_SHIFT


def test_a_scheduler_that_was_swapped_in_is_saved_with_the_model(
    pipe: SanaPipeline, tmp_path: Path
) -> None:
    pipe.scheduler = UniPCMultistepScheduler(flow_shift=2.5)
    pipe.save_pretrained(tmp_path / "m")
    assert SanaPipeline.from_pretrained(tmp_path / "m").scheduler == pipe.scheduler


@pytest.mark.parametrize("name", NAMED)
def test_swapping_the_scheduler_swaps_what_draws(name: str, pipe: SanaPipeline) -> None:
    core = Pipeline(pipe.core.components)
    pipe.scheduler = type(NAMED[name]).from_config(NAMED[name].config, flow_shift=2.0)
    asked = {"height": 64, "width": 64, "guidance_scale": 1.0}
    request = GenerateRequest(
        prompt="a tree", num_steps=3, solver=name, flow_shift=2.0, seed=5, **asked
    )
    by_name = core.generate(request).pictures[0]
    by_swap = pipe(
        "a tree", num_inference_steps=3, generator=torch.Generator().manual_seed(5), **asked
    ).images[0]
    assert (by_name.pixels == np.array(by_swap)).all()
    assert by_name.settings["solver"] == name


def test_a_swap_touches_no_other_pipeline(components: Components) -> None:
    first, second = SanaPipeline(Pipeline(components)), SanaPipeline(Pipeline(components))
    before = drawn(second)
    first.scheduler = FlowMatchEulerDiscreteScheduler.from_config(first.scheduler.config)
    assert first.transformer is second.transformer
    assert second.scheduler == components.defaults.scheduler
    assert torch.equal(drawn(second), before)
    assert not torch.equal(drawn(first), before)


@pytest.mark.parametrize("name", NAMED)
def test_levels_of_the_caller_work_with_every_scheduler(name: str, pipe: SanaPipeline) -> None:
    pipe.scheduler = type(NAMED[name]).from_config(NAMED[name].config, flow_shift=3.0)
    told = [750, 500]
    by_time = drawn(pipe, timesteps=told)
    assert torch.equal(by_time, drawn(pipe, sigmas=[0.5, 0.25]))
    assert by_time.isfinite().all()
    with pytest.raises(ConfigError, match="timesteps and sigmas: both given"):
        drawn(pipe, timesteps=told, sigmas=[0.5])


@pytest.mark.parametrize("other", [None, "flow-unipc", object()])
def test_what_is_no_scheduler_is_refused(other: object, pipe: SanaPipeline) -> None:
    with pytest.raises(ConfigError, match="is no scheduler"):
        pipe.scheduler = other
    with pytest.raises(ConfigError, match="is no scheduler"):
        as_scheduler(other)
