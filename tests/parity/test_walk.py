"""Schedulers driven by hand, as published loops do it, beside the reference's."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import sanakit
from sanakit import Pipeline, SanaPipeline
from sanakit.errors import ConfigError
from sanakit.pipeline.schedulers import CLASSES, Scheduler, as_scheduler
from tiny import tiny_components

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}

FLOWS = [name for name in CLASSES if name != "SCMScheduler"]


def pair(name: str, shift: float = 3.0, **more: Any) -> tuple[Any, Any]:
    reference = getattr(diffusers, name)
    if name.startswith("FlowMatch"):
        return CLASSES[name](shift=shift, **more), reference(shift=shift, **more)
    return CLASSES[name](flow_shift=shift, **more), reference(flow_shift=shift, **FLOW, **more)


def walked(scheduler: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    for timestep in scheduler.timesteps:
        velocity = torch.sin(3 * x) + float(timestep) / 1000 * x
        x = scheduler.step(velocity, timestep, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("name", FLOWS)
def test_a_published_loop_walks_as_with_the_reference(name: str, steps: int) -> None:
    ours, theirs = pair(name)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(steps, device="cpu")
    assert torch.equal(ours.timesteps, theirs.timesteps.to(ours.timesteps))
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, atol=1e-7, rtol=0)
    assert ours.order == theirs.order
    torch.testing.assert_close(walked(ours), walked(theirs), atol=1e-5, rtol=0)
    ours.set_timesteps(steps)
    assert walked(ours, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_a_loop_by_hand_is_what_the_pipeline_runs(name: str) -> None:
    pipe = SanaPipeline(Pipeline(tiny_components()), scheduler=pair(name)[0])
    call = {"num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "latent"}
    call |= {"height": 64, "width": 64, "use_resolution_binning": False}
    noise = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    text, mask, *_ = pipe.encode_prompt("a tree", do_classifier_free_guidance=False)
    expected = pipe(None, prompt_embeds=text, prompt_attention_mask=mask, latents=noise, **call)
    pipe.scheduler.set_timesteps(4)
    x = noise * pipe.scheduler.init_noise_sigma
    with torch.no_grad():
        for timestep in pipe.scheduler.timesteps:
            velocity = pipe.transformer(
                hidden_states=pipe.scheduler.scale_model_input(x, timestep),
                encoder_hidden_states=text,
                encoder_attention_mask=mask,
                timestep=timestep.expand(1),
            ).sample
            x = pipe.scheduler.step(velocity, timestep, x).prev_sample
    torch.testing.assert_close(x, expected.images, atol=1e-5, rtol=0)


def test_a_walk_begins_in_the_middle_and_starts_over() -> None:
    ours, theirs = pair("FlowMatchEulerDiscreteScheduler")
    x = torch.ones(1, 1, 2, 2)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(5)
    for _ in range(2):
        there = [s.step(x, s.timesteps[3], x).prev_sample for s in (ours, theirs)]
        torch.testing.assert_close(*there)
        theirs.set_timesteps(5)
    with pytest.raises(ConfigError, match=r"timestep=3\.0 is none of this scheduler's"):
        ours.step(x, 3.0, x)


def test_a_walk_goes_through_levels_of_the_caller() -> None:
    ours, theirs = pair("FlowMatchEulerDiscreteScheduler", shift=1.0)
    for given in ({"sigmas": [1.0, 0.7, 0.2]}, {"timesteps": [990.0, 700.0, 20.0]}):
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(**given)
        torch.testing.assert_close(ours.timesteps, theirs.timesteps, atol=1e-4, rtol=0)
        torch.testing.assert_close(walked(ours), walked(theirs), atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match="timesteps and sigmas: both given"):
        ours.set_timesteps(sigmas=[1.0, 0.5], timesteps=[990.0, 20.0])


def test_steps_before_any_levels_are_refused() -> None:
    ours, _ = pair("FlowMatchEulerDiscreteScheduler")
    x = torch.ones(1, 1, 2, 2)
    with pytest.raises(ConfigError, match="step before set_timesteps"):
        ours.step(x, 1000.0, x)
    with pytest.raises(ConfigError, match=r"mu=1\.0"):
        ours.set_timesteps(3, mu=1.0)
    with pytest.raises(ConfigError, match="needs num_inference_steps"):
        ours.set_timesteps()


def test_noise_is_added_as_in_training_scripts() -> None:
    ours, theirs = pair("FlowMatchEulerDiscreteScheduler")
    torch.testing.assert_close(ours.timesteps, theirs.timesteps)
    x, noise = torch.randn(2, 3, 1, 2, 2)
    chosen = ours.timesteps[[10, 500, 999]]
    torch.testing.assert_close(
        ours.scale_noise(x, chosen, noise), theirs.scale_noise(x, chosen, noise)
    )
    dpm, reference = pair("DPMSolverMultistepScheduler")
    for scheduler in (dpm, reference):
        scheduler.set_timesteps(4)
    torch.testing.assert_close(
        dpm.add_noise(x, noise, dpm.timesteps[:3]),
        reference.add_noise(x, noise, reference.timesteps[:3]),
    )
    with pytest.raises(ConfigError, match=r"timestep=1\.5 is none"):
        dpm.add_noise(x, noise, torch.tensor([1.5]))


@pytest.mark.parametrize("name", FLOWS)
def test_the_reference_is_built_from_our_settings_and_back(name: str) -> None:
    ours, _ = pair(name, shift=5.0)
    for other in ("EulerDiscreteScheduler", *FLOWS):
        assert isinstance(
            getattr(diffusers, other).from_config(ours.config), getattr(diffusers, other)
        )
    assert as_scheduler(getattr(diffusers, name).from_config(ours.config)) == ours


def test_a_scheduler_object_means_what_it_does_and_not_what_it_carries_along() -> None:
    own = sanakit.DPMSolverMultistepScheduler(flow_shift=3.0).config
    euler = diffusers.FlowMatchEulerDiscreteScheduler
    assert as_scheduler(euler.from_config(own, shift=7.0)).flow_shift == 7.0
    assert as_scheduler(euler.from_config(own)).flow_shift == 1.0
    moved = euler.from_config(own)
    moved.set_shift(4.0)
    assert as_scheduler(moved).flow_shift == 4.0
    # A file holds both, too.
    both = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 7.0, "flow_shift": 3.0}
    for values in (both, dict(reversed(both.items()))):
        assert CLASSES["FlowMatchEulerDiscreteScheduler"].from_config(values).flow_shift == 7.0
        assert CLASSES["UniPCMultistepScheduler"].from_config(values).flow_shift == 3.0


@pytest.mark.parametrize(
    "name", ["EulerDiscreteScheduler", "DDIMScheduler", "DPMSolverSinglestepScheduler"]
)
def test_a_scheduler_that_is_not_here_is_refused_by_name(name: str) -> None:
    pipe = SanaPipeline(Pipeline(tiny_components()))
    with pytest.raises(ConfigError, match=f"scheduler {name} is not known"):
        pipe.scheduler = getattr(diffusers, name)()


def test_stepping_by_hand_changes_no_settings_and_no_other_pipeline() -> None:
    pipes = [SanaPipeline(Pipeline(tiny_components())) for _ in range(2)]
    before = dict(pipes[0].scheduler.config)
    pipes[0].scheduler.set_timesteps(5)
    assert pipes[0].scheduler.num_inference_steps == 5
    assert pipes[1].scheduler.num_inference_steps is None
    assert isinstance(pipes[0].scheduler, Scheduler)
    assert pipes[0].scheduler == pipes[1].scheduler
    assert pipes[0].scheduler.config == before == copy.deepcopy(pipes[0].scheduler.config)
    for change in (
        lambda config: config.update(flow_shift=1.0),
        lambda config: config.__setitem__("flow_shift", 1.0),
        lambda config: setattr(config, "flow_shift", 1.0),
    ):
        with pytest.raises(ConfigError, match="settings are fixed"):
            change(pipes[0].scheduler.config)


def test_a_config_is_read_saved_and_changed_by_published_methods(
    folder: Path, tmp_path: Path
) -> None:
    kind = sanakit.DPMSolverMultistepScheduler
    read = kind.load_config(folder, subfolder="scheduler", local_files_only=True)
    scheduler = kind.from_pretrained(folder, subfolder="scheduler", revision=None, token=None)
    assert kind.from_config(read) == scheduler
    scheduler.save_config(tmp_path)
    assert kind.from_pretrained(tmp_path, flow_shift=2.0) == scheduler.shifted(2.0)
    with pytest.raises(AttributeError, match=r"write pipe\.scheduler = pipe\.scheduler\.shifted"):
        scheduler.set_shift(5.0)
    assert set(scheduler.compatibles) == {CLASSES[name] for name in FLOWS}
    assert not hasattr(scheduler, "alphas_cumprod")
    assert copy.deepcopy(scheduler) == scheduler
