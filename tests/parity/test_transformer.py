"""The transformer against diffusers' SanaTransformer2DModel on one set of random weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import SanaTransformer2DModel
from diffusers.models.attention_processor import (
    PAGCFGSanaLinearAttnProcessor2_0,
    PAGIdentitySanaLinearAttnProcessor2_0,
)
from torch import Tensor

from sanakit.models.config import TRANSFORMERS, TransformerConfig, config_to_dict
from sanakit.models.transformer import LinearDiT

SMALL = TransformerConfig(
    in_channels=3,
    out_channels=5,
    num_attention_heads=6,
    attention_head_dim=4,
    num_layers=3,
    num_cross_attention_heads=3,
    cross_attention_head_dim=8,
    cross_attention_dim=24,
    caption_channels=10,
    sample_size=8,
)

VARIANTS = {
    "plain": SMALL,
    "one set of channels": replace(SMALL, out_channels=None),
    "qk-norm": replace(SMALL, qk_norm="rms_norm_across_heads"),
    "guidance": replace(SMALL, guidance_embeds=True, qk_norm="rms_norm_across_heads"),
    "biased attention": replace(SMALL, attention_bias=True, norm_elementwise_affine=True),
    "other norm eps and ffn": replace(SMALL, norm_eps=1e-3, mlp_ratio=1.7),
    "patches": replace(SMALL, patch_size=2),
    "patches and positions": replace(SMALL, patch_size=2, interpolation_scale=1.0),
    "positions": replace(SMALL, interpolation_scale=1.0),
    "positions at scale 2": replace(SMALL, interpolation_scale=2.0),
}


def random_weights(reference: torch.nn.Module, rng: torch.Generator) -> dict[str, Tensor]:
    """Weights that keep activations near one and leave no bias, gain or table at its default.

    A few gains of norms are negative: with positive ones norm_q and norm_k could be exchanged.
    """
    weights = {}
    for name, value in reference.state_dict().items():
        drawn = torch.randn(value.shape, generator=rng)
        if value.ndim > 1 and not name.endswith("scale_shift_table"):
            weights[name] = drawn * value[0].numel() ** -0.5
        elif "norm" in name and name.endswith("weight"):
            weights[name] = 1 + 0.6 * drawn
        else:
            weights[name] = 0.3 * drawn
    return weights


def pair(
    config: TransformerConfig, rng: torch.Generator
) -> tuple[LinearDiT, SanaTransformer2DModel]:
    """Both networks on one set of tensors, loaded strictly: the names are the same set."""
    reference = SanaTransformer2DModel(**config_to_dict(config)).eval()
    model = LinearDiT(config).eval()
    reference.load_state_dict(random_weights(reference, rng), strict=True)
    model.load_state_dict(reference.state_dict(), strict=True)
    reference.load_state_dict(model.state_dict(), strict=True)
    return model, reference


def inputs(
    config: TransformerConfig,
    rng: torch.Generator,
    *,
    batch: int,
    size: tuple[int, int],
    tokens: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = torch.randn(batch, config.in_channels, *size, generator=rng)
    text = torch.randn(batch, tokens, config.caption_channels, generator=rng)
    lengths = torch.randint(1, tokens + 1, (batch, 1), generator=rng)
    timestep = torch.rand(batch, generator=rng) * 1000
    return x, timestep, text, torch.arange(tokens) < lengths


@torch.inference_mode()
def published(
    reference: SanaTransformer2DModel,
    x: Tensor,
    timestep: Tensor,
    text: Tensor,
    mask: Tensor | None,
    **more: Any,
) -> Tensor:
    return reference(
        hidden_states=x,
        timestep=timestep,
        encoder_hidden_states=text,
        encoder_attention_mask=None if mask is None else mask.long(),
        return_dict=False,
        **more,
    )[0]


@pytest.mark.parametrize("size", [(8, 8), (4, 10), (6, 2)])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_agrees_at_every_aspect(
    name: str, size: tuple[int, int], rng: torch.Generator
) -> None:
    config = VARIANTS[name]
    model, reference = pair(config, rng)
    x, timestep, text, mask = inputs(config, rng, batch=3, size=size, tokens=7)
    guidance = {"guidance": torch.rand(3, generator=rng)} if config.guidance_embeds else {}
    with torch.inference_mode():
        got = model.velocity(x, timestep, text, mask, **guidance)
    expected = published(reference, x, timestep, text, mask, **guidance)
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (7, 9)])
def test_odd_latents_agree_with_and_without_a_mask(
    size: tuple[int, int], masked: bool, rng: torch.Generator
) -> None:
    config = VARIANTS["positions at scale 2"]
    model, reference = pair(config, rng)
    x, timestep, text, mask = inputs(config, rng, batch=2, size=size, tokens=5)
    given = mask if masked else None
    with torch.inference_mode():
        got = model.velocity(x, timestep, text, given)
    expected = published(reference, x, timestep, text, given)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_a_text_of_padding_only_is_read_whole(rng: torch.Generator) -> None:
    model, reference = pair(SMALL, rng)
    x, timestep, text, _ = inputs(SMALL, rng, batch=2, size=(4, 4), tokens=5)
    mask = torch.tensor([[False] * 5, [True, True, False, False, False]])
    with torch.inference_mode():
        got = model.velocity(x, timestep, text, mask)
    # The bias of -10000 costs the published logits three digits on the row that is all padding.
    expected = published(reference, x, timestep, text, mask)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("processor", "mixed"),
    [
        (PAGIdentitySanaLinearAttnProcessor2_0, [True, False]),
        (PAGCFGSanaLinearAttnProcessor2_0, [True, True, False]),
    ],
)
def test_rows_outside_the_mix_are_the_perturbed_rows_of_pag(
    processor: type, mixed: list[bool], rng: torch.Generator
) -> None:
    model, reference = pair(SMALL, rng)
    x, timestep, text, mask = inputs(SMALL, rng, batch=len(mixed), size=(4, 6), tokens=5)
    reference.transformer_blocks[1].attn1.processor = processor()
    expected = published(reference, x, timestep, text, mask)
    with torch.inference_mode():
        mix = torch.tensor(mixed)
        got = model.velocity(x, timestep, text, mask, mix=mix, mix_layers=frozenset({1}))
        plain = model.velocity(x, timestep, text, mask)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert torch.equal(got[mix], plain[mix])
    assert (got[~mix] - plain[~mix]).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["plain", "guidance", "positions at scale 2"])
def test_half_precision_follows_the_reference(
    name: str, dtype: torch.dtype, rng: torch.Generator
) -> None:
    config = replace(VARIANTS[name], num_layers=1)
    model, reference = pair(config, rng)
    x, timestep, text, mask = inputs(config, rng, batch=2, size=(8, 8), tokens=5)
    x, text = x.to(dtype), text.to(dtype)
    guidance = {"guidance": torch.rand(2, generator=rng)} if config.guidance_embeds else {}
    with torch.inference_mode():
        got = model.to(dtype).velocity(x, timestep, text, mask, **guidance)
    expected = published(reference.to(dtype), x, timestep, text, mask, **guidance)
    assert got.dtype == dtype
    # Up to sixteen roundings of the largest value in one block, whose sums differ in order.
    atol = 16 * torch.finfo(dtype).eps * expected.abs().max().item()
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


def test_the_0_6b_network_agrees_at_512_pixels(rng: torch.Generator) -> None:
    config = replace(TRANSFORMERS["sana-0.6b-512"], num_layers=4)  # all 28 are alike
    with torch.device("meta"):
        reference = SanaTransformer2DModel(**config_to_dict(config)).eval()
        model = LinearDiT(config).eval()
    weights = random_weights(reference, rng)
    reference.load_state_dict(weights, strict=True, assign=True)
    model.load_state_dict(weights, strict=True, assign=True)
    x, timestep, text, mask = inputs(config, rng, batch=1, size=(16, 16), tokens=20)
    with torch.inference_mode():
        got = model.velocity(x, timestep, text, mask)
    expected = published(reference, x, timestep, text, mask)
    assert 0.1 < expected.std() < 100
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
