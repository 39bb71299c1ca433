"""What adaptive projected guidance remembers belongs to one run, and to finished steps only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sanakit import AdaptiveProjectedGuidance, GenerateRequest, Pipeline, SanaPipeline, SCMScheduler
from sanakit.errors import ConfigError
from sanakit.flow.projection import Projected
from sanakit.models.published import say_once
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.components import Components, GenerationDefaults
from sanakit.pipeline.numerics import NumericsWarning
from tiny import TRANSFORMER, tiny_components

GUIDER = AdaptiveProjectedGuidance(
    eta=0.0, adaptive_projected_guidance_momentum=-0.5, adaptive_projected_guidance_rescale=2.0
)
CALL: dict[str, Any] = {
    "height": 64,
    "width": 64,
    "num_inference_steps": 4,
    "guidance_scale": 6.0,
    "guider": GUIDER,
    "output_type": "latent",
}


@pytest.fixture
def parts() -> Components:
    return tiny_components()


def noise(count: int) -> Tensor:
    return torch.randn(count, 4, 2, 2, generator=torch.Generator().manual_seed(0))


def drawn(made: Components, prompt: str | list[str], latents: Tensor, **more: Any) -> Tensor:
    return SanaPipeline(Pipeline(made))(prompt, latents=latents, **{**CALL, **more}).images


def test_a_call_remembers_nothing_of_another(parts: Components) -> None:
    pipe = SanaPipeline(Pipeline(parts))
    first, second = (pipe("a fox", latents=noise(1), **CALL).images for _ in range(2))
    assert torch.equal(first, second)
    without = AdaptiveProjectedGuidance(eta=0.0, adaptive_projected_guidance_rescale=2.0)
    assert not torch.allclose(first, drawn(parts, "a fox", noise(1), guider=without), atol=1e-4)
    assert not torch.allclose(first, drawn(parts, "a fox", noise(1), guider=None), atol=1e-4)


def test_pictures_of_one_batch_are_those_drawn_alone(parts: Components) -> None:
    prompts, start = ["a fox", "two red apples"], noise(2)
    # A callback makes it one batch on a CPU, too.
    both = drawn(parts, prompts, start, callback_on_step_end=lambda *_: {})
    for row, prompt in enumerate(prompts):
        assert_close(
            both[row : row + 1], drawn(parts, prompt, start[row : row + 1]), atol=1e-4, rtol=0
        )


def test_a_step_done_again_goes_on_from_the_last_that_counted(
    parts: Components, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As with units for 16 bits: elsewhere a network runs in fp32 inside.
    monkeypatch.setattr("sanakit.nn.wide_products.is_emulated", lambda weight: False)
    network: nn.Module = parts.transformer.to(torch.bfloat16)
    answers, given = [], []

    def breaks(_: nn.Module, __: Any, answer: Tensor) -> Tensor:
        answers.append(answer.dtype)
        return answer * float("nan") if len(answers) == 3 else answer

    project = AdaptiveProjectedGuidance.project

    def seen(*arguments: Any) -> Projected:
        given.append(arguments[-1])
        return project(*arguments)

    network.proj_out.register_forward_hook(breaks)
    monkeypatch.setattr(AdaptiveProjectedGuidance, "project", seen)
    with pytest.warns(NumericsWarning, match="at step 3 of 4"):
        drawn(parts, "a fox", noise(1))
    assert answers == [torch.bfloat16] * 3 + [torch.float32] * 2
    assert given[0] is None
    assert given[2] is given[3]
    assert all(torch.isfinite(before).all() for before in given[1:])


def test_a_request_writes_its_guider_down() -> None:
    asked = GenerateRequest(prompt="a fox", guidance_scale=6.0, guider=GUIDER)
    assert GenerateRequest.from_json(asked.to_json()) == asked
    assert asked.guidance(1.0).guider == GUIDER
    with pytest.raises(ConfigError, match="unknown key etta"):
        GenerateRequest.from_json({"prompt": "", "guider": {"etta": 1.0}})
    with pytest.raises(ConfigError, match="guider: is a str, not an object"):
        GenerateRequest.from_json({"prompt": "", "guider": "apg"})


def test_the_command_and_the_published_pipeline_draw_the_same(parts: Components) -> None:
    request = GenerateRequest(
        prompt="a fox", height=64, width=64, num_steps=4, guidance_scale=6.0, guider=GUIDER
    )
    core = Pipeline(parts)
    picture = core.generate(request).pictures[0]
    assert picture.settings["guider"] == request.to_json()["guider"]
    call = {**CALL, "output_type": "pil"}
    generator = torch.Generator().manual_seed(0)
    image = SanaPipeline(core)("a fox", generator=generator, **call).images[0]
    assert image.tobytes() == picture.pixels.tobytes()


def test_a_model_that_was_taught_its_guidance_takes_no_guider() -> None:
    config = replace(TRANSFORMER, guidance_embeds=True, guidance_embeds_scale=0.1)
    defaults = GenerationDefaults(scheduler=SCMScheduler())
    parts = replace(tiny_components(defaults), transformer=LinearDiT(config))
    with pytest.raises(ConfigError, match="guider does nothing here"):
        Pipeline(parts).generate(GenerateRequest(prompt="a fox", guider=GUIDER))


def test_a_guider_of_another_library_is_told_ours(parts: Components) -> None:
    with pytest.raises(ConfigError, match=r"guider is a diffusers\..*Guidance") as caught:
        drawn(parts, "a fox", noise(1), guider=diffusers.AdaptiveProjectedGuidance())
    assert caught.value.hint is not None
    assert "sanakit.AdaptiveProjectedGuidance" in caught.value.hint


def test_what_only_guidance_reads_is_said_to_do_nothing_without(
    parts: Components, caplog: pytest.LogCaptureFixture
) -> None:
    say_once.cache_clear()
    plain = drawn(parts, "a fox", noise(1), guidance_scale=1.0, guider=None)
    assert not caplog.records
    found = drawn(parts, "a fox", noise(1), guidance_scale=1.0, negative_prompt="blurry")
    assert torch.equal(found, plain)
    assert [record.message for record in caplog.records] == [
        f"{name} does nothing at a guidance scale of 1"
        for name in ("a negative prompt", "adaptive projected guidance")
    ]
    caplog.clear()
    drawn(parts, "a fox", noise(1), guidance_scale=1.0)
    drawn(parts, "a fox", noise(1), negative_prompt="blurry")
    assert not caplog.records
