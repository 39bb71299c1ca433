"""One step of the network under guidance, against the network called by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from sanakit.errors import ConfigError
from sanakit.flow.grids import NoiseLevel
from sanakit.flow.guidance import Guidance
from sanakit.models.config import TransformerConfig
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.prompts import EncodedText
from sanakit.pipeline.sampler import Denoiser
from tiny import TRANSFORMER

LEVEL = NoiseLevel(torch.tensor(0.6), torch.tensor(600.0))


def model_of(config: TransformerConfig) -> LinearDiT:
    torch.manual_seed(0)
    model = LinearDiT(config).eval().requires_grad_(False)
    torch.nn.init.ones_(model.caption_norm.weight)
    return model


def text_of(lengths: list[int], rng: torch.Generator) -> EncodedText:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    text = torch.randn(len(lengths), max(lengths), 8, generator=rng)
    return EncodedText(text=text, mask=mask, dropped=tuple(lengths))


def test_texts_of_two_widths_stack_with_masked_places(rng: torch.Generator) -> None:
    narrow, wide = text_of([2, 1], rng), text_of([5], rng)
    both = EncodedText.joined([narrow, wide])
    assert both.text.shape == (3, 5, 8)
    assert both.mask.sum(dim=1).tolist() == [2, 1, 5]
    assert torch.equal(both.text[:2, :2], narrow.text)
    assert torch.equal(both.text[2:], wide.text)
    assert both.dropped == (2, 1, 5)
    assert EncodedText.joined([wide, narrow]).mask.sum(dim=1).tolist() == [5, 2, 1]


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.0, 0.5)])
def test_all_passes_of_a_step_are_those_made_by_hand(
    rng: torch.Generator, interval: tuple[float, float]
) -> None:
    model = model_of(TRANSFORMER)
    positive, negative = text_of([4, 2], rng), text_of([1, 3], rng)
    guidance = Guidance(guidance_scale=3.0, pag_scale=2.0, guidance_interval=interval)
    layers = frozenset({1})
    denoiser = Denoiser.prepare(model, positive, negative, guidance, pag_layers=layers)
    x = torch.randn(2, 4, 2, 2, generator=rng)
    time = torch.full((2,), 600.0)
    cond = model.velocity(x, time, positive.text, positive.mask)
    uncond = model.velocity(x, time, negative.text, negative.mask)
    off = torch.zeros(2, dtype=torch.bool)
    perturbed = model.velocity(x, time, positive.text, positive.mask, mix=off, mix_layers=layers)
    guided = uncond + 3 * (cond - uncond) + 2 * (cond - perturbed)
    expected = guided if interval[1] == 1 else cond
    assert_close(denoiser(x, LEVEL), expected, atol=1e-5, rtol=1e-4)


def test_perturbed_attention_needs_no_negative_text(rng: torch.Generator) -> None:
    model = model_of(TRANSFORMER)
    text = text_of([4], rng)
    layers = frozenset({0})
    denoiser = Denoiser.prepare(model, text, None, Guidance(pag_scale=2.0), pag_layers=layers)
    x = torch.randn(1, 4, 2, 2, generator=rng)
    time = torch.full((1,), 600.0)
    cond = model.velocity(x, time, text.text, text.mask)
    off = torch.zeros(1, dtype=torch.bool)
    perturbed = model.velocity(x, time, text.text, text.mask, mix=off, mix_layers=layers)
    assert_close(denoiser(x, LEVEL), 3 * cond - 2 * perturbed, atol=1e-5, rtol=1e-4)


def test_guidance_without_a_negative_text_is_refused(rng: torch.Generator) -> None:
    model, text = model_of(TRANSFORMER), text_of([2], rng)
    with pytest.raises(ConfigError, match=r"guidance_scale=2.0 needs a negative"):
        Denoiser.prepare(model, text, None, Guidance(guidance_scale=2.0))
    Denoiser.prepare(model, text, None, Guidance())


def test_a_model_that_embeds_guidance_is_told_it_in_one_pass(rng: torch.Generator) -> None:
    config = replace(
        TRANSFORMER, guidance_embeds=True, guidance_embeds_scale=0.1, timestep_scale=0.001
    )
    model, text = model_of(config), text_of([3], rng)
    denoiser = Denoiser.prepare(model, text, None, Guidance(guidance_scale=4.0))
    x = torch.randn(1, 4, 2, 2, generator=rng)
    told = torch.tensor([0.4])
    expected = model.velocity(x, torch.tensor([0.6]), text.text, text.mask, guidance=told)
    assert_close(denoiser(x, LEVEL), expected, atol=1e-6, rtol=1e-5)


def test_a_predicted_variance_is_not_read_and_states_stay_fp32(rng: torch.Generator) -> None:
    model = model_of(replace(TRANSFORMER, out_channels=8)).to(torch.bfloat16)
    text = text_of([3], rng)
    denoiser = Denoiser.prepare(model, text, None, Guidance())
    x = torch.randn(1, 4, 2, 2, generator=rng)
    states = text.text.to(torch.bfloat16)
    expected = model.velocity(x.to(torch.bfloat16), torch.tensor([600.0]), states, text.mask)
    found = denoiser(x, LEVEL)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected[:, :4].float())
