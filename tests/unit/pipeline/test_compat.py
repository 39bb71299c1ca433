"""What the two stacks do differently, through the face of the pipeline."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sanakit import Pipeline, SanaPAGPipeline, SanaPipeline
from sanakit.errors import ConfigError
from sanakit.flow.guidance import Guidance
from sanakit.models.config import TRANSFORMERS
from sanakit.pipeline import components
from sanakit.pipeline.components import GenerationDefaults, scheduler_as
from sanakit.pipeline.prompts import (
    COMPLEX_HUMAN_INSTRUCTION,
    check_compat,
    instruction_as,
    instruction_lines,
)
from sanakit.pipeline.schedulers import DPMSolverMultistepScheduler
from tiny import TRANSFORMER, tiny_components

CALL = {"height": 64, "width": 64, "num_inference_steps": 3, "output_type": "latent"}


@pytest.fixture(scope="module")
def pipe() -> SanaPipeline:
    return SanaPipeline(Pipeline(tiny_components()))


def draw(pipe: SanaPipeline, prompt: str = "A red Apple", **more: object) -> Tensor:
    return pipe(prompt, generator=torch.Generator().manual_seed(0), **CALL, **more).images


def test_a_run_of_nvlabs_is_the_core_run_by_hand(pipe: SanaPipeline) -> None:
    core = pipe.core
    positive = core.components.prompts.encode(
        ["A red Apple"], instruction=instruction_lines("double"), compat="nvlabs"
    )
    negative = core.components.prompts.encode_null(["blurry"], positive, compat="nvlabs")
    assert torch.equal(negative.mask, positive.mask)
    sampling = core.sampling(
        scheduler=GenerationDefaults().scheduler, num_steps=3, guidance=Guidance(guidance_scale=4.5)
    )
    noise = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    expected = core.sample(noise, positive, negative, sampling)
    found = draw(pipe, negative_prompt="blurry", compat="nvlabs")
    assert torch.equal(found, expected)
    assert not torch.equal(found, draw(pipe, negative_prompt="blurry"))


def test_it_may_be_chosen_for_a_pipeline_or_a_call(pipe: SanaPipeline) -> None:
    native = SanaPipeline.from_pipe(pipe, compat="nvlabs")
    assert torch.equal(draw(native), draw(pipe, compat="nvlabs"))
    assert torch.equal(draw(native, compat="diffusers"), draw(pipe))
    assert not torch.equal(draw(native), draw(pipe))
    weak = SanaPAGPipeline.from_pipe(native)
    assert weak.compat == "nvlabs"
    assert torch.equal(draw(weak, pag_scale=0.0), draw(native))
    assert not torch.equal(draw(weak), draw(native))


def test_only_diffusers_lower_cases(pipe: SanaPipeline) -> None:
    for stack, same in (("diffusers", True), ("nvlabs", False)):
        upper, lower = (draw(pipe, text, compat=stack) for text in ("A RED APPLE", "a red apple"))
        assert torch.equal(upper, lower) == same


def test_one_negative_wears_the_mask_of_each_prompt(pipe: SanaPipeline) -> None:
    prompts = ["a tree", "a long prompt about a small house by the sea"]
    noise = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    together = pipe(prompts, latents=noise, compat="nvlabs", **CALL).images
    for row, prompt in enumerate(prompts):
        alone = pipe(prompt, latents=noise[row : row + 1], compat="nvlabs", **CALL).images
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=0)


def test_quotes_of_the_published_instruction_alone_are_changed() -> None:
    native = instruction_as(COMPLEX_HUMAN_INSTRUCTION, "nvlabs")
    assert native is not None
    assert '"Enhanced prompt"' in native[0]
    assert instruction_as(COMPLEX_HUMAN_INSTRUCTION, "diffusers") == COMPLEX_HUMAN_INSTRUCTION
    assert instruction_as(("it's",), "nvlabs") == ("it's",)
    assert instruction_as(None, "nvlabs") is None


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_only_sana_600m_at_1024_is_sampled_with_shift_4(name: str) -> None:
    config = TRANSFORMERS[name]
    expected = 4.0 if name == "sana-0.6b" else 3.0
    assert scheduler_as(GenerationDefaults(), config, "nvlabs").flow_shift == expected
    assert scheduler_as(GenerationDefaults(), config, "diffusers") == GenerationDefaults().scheduler
    own = GenerationDefaults(scheduler=DPMSolverMultistepScheduler(flow_shift=2.0))
    assert scheduler_as(own, config, "nvlabs") == own.scheduler


def test_that_shift_reaches_the_levels_and_a_scheduler_of_ones_own_overrules_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(components, "_SMALL", TRANSFORMER)  # the tiny model plays the 0.6B one
    told: list[float] = []

    def tell(_: object, __: int, timestep: Tensor, ___: object) -> None:
        told.append(float(timestep))

    pipe = SanaPipeline(Pipeline(tiny_components()))
    pipe("a tree", compat="nvlabs", callback_on_step_end=tell, **CALL)
    pipe("a tree", callback_on_step_end=tell, **CALL)
    pipe.scheduler = DPMSolverMultistepScheduler(flow_shift=2.0)
    pipe("a tree", compat="nvlabs", callback_on_step_end=tell, **CALL)
    by_hand = [
        DPMSolverMultistepScheduler(flow_shift=shift).grid(3).timesteps for shift in (4.0, 3.0, 2.0)
    ]
    assert told == torch.cat(by_hand).tolist()


def test_a_stack_that_is_not_known_is_refused(pipe: SanaPipeline) -> None:
    assert check_compat("nvlabs") == "nvlabs"
    with pytest.raises(ConfigError, match=r"compat='nvlab' .*\n.*did you mean 'nvlabs'"):
        SanaPipeline(pipe.core, compat="nvlab")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="known: diffusers, nvlabs"):
        draw(pipe, compat="comfy")
