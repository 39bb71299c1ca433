"""Perturbed-attention guidance through the whole core, against diffusers' SanaPAGPipeline."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch

from sanakit import GenerateRequest, Pipeline
from sanakit.flow.guidance import Guidance
from sanakit.flow.path import seeded_noise
from sanakit.pipeline.request import Call


@pytest.fixture(scope="module")
def core(folder: Path) -> Pipeline:
    return Pipeline.load(folder)


def published(folder: Path, layers: list[str]) -> diffusers.SanaPAGPipeline:
    plain = diffusers.SanaPipeline.from_pretrained(str(folder))
    pipeline = diffusers.SanaPAGPipeline(**plain.components, pag_applied_layers=layers)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents(core: Pipeline, guidance: Guidance, layers: tuple[int, ...]) -> torch.Tensor:
    sampling = core.sampling(
        scheduler=core.components.defaults.scheduler,
        num_steps=4,
        guidance=guidance,
        pag_layers=layers,
    )
    call = Call(prompt="a red apple", negative_prompt="a car")
    positive, negative = core.texts(call, guided=guidance.guidance_scale != 1.0)
    return core.sample(seeded_noise(3, 4, 2, 3), positive, negative, sampling)


@pytest.mark.parametrize("layers", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize(
    ("guidance_scale", "pag_scale", "pag_adaptive_scale"),
    [(4.5, 3.0, 0.0), (1.0, 3.0, 0.0), (4.5, 2.0, 0.004), (1.0, 2.0, 0.004)],
)
def test_latents_equal_those_of_the_published_pipeline(
    core: Pipeline,
    folder: Path,
    layers: tuple[int, ...],
    guidance_scale: float,
    pag_scale: float,
    pag_adaptive_scale: float,
) -> None:
    expected = published(folder, [f"transformer_blocks.{layer}" for layer in layers])(
        "a red apple",
        negative_prompt="a car",
        height=64,
        width=96,
        num_inference_steps=4,
        guidance_scale=guidance_scale,
        pag_scale=pag_scale,
        pag_adaptive_scale=pag_adaptive_scale,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
        use_resolution_binning=False,
    ).images
    guidance = Guidance(
        guidance_scale=guidance_scale, pag_scale=pag_scale, pag_adaptive_scale=pag_adaptive_scale
    )
    found = latents(core, guidance, layers)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    off = latents(core, Guidance(guidance_scale=guidance_scale), layers)
    assert (found - off).abs().max() > 1e-3  # or nothing was guided


def test_a_request_is_drawn_with_its_perturbed_attention(core: Pipeline) -> None:
    request = GenerateRequest(
        prompt="a red apple",
        negative_prompt="a car",
        seed=3,
        num_steps=4,
        height=64,
        width=96,
        pag_scale=3.0,
        pag_layers=(1,),
    )
    found = core.generate(request).pictures[0].pixels
    latent = latents(core, Guidance(guidance_scale=4.5, pag_scale=3.0), (1,))
    pixels = ((core.decode(latent) / 2 + 0.5).clamp(0, 1) * 255).round()
    torch.testing.assert_close(
        torch.from_numpy(found).permute(2, 0, 1)[None].float(), pixels, atol=1, rtol=0
    )
