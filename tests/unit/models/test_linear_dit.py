"""The transformer's own promises: fast paths equal slow ones, misuse is named, a known start."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sanakit.errors import ConfigError
from sanakit.models.config import TRANSFORMERS, TransformerConfig
from sanakit.models.init import init_transformer
from sanakit.models.transformer import LinearDiT

TINY = replace(TRANSFORMERS["tiny"], qk_norm="rms_norm_across_heads")
WIDE = replace(
    TRANSFORMERS["tiny"],
    num_attention_heads=8,
    attention_head_dim=32,
    num_cross_attention_heads=4,
    cross_attention_head_dim=64,
    cross_attention_dim=256,
)


def model_of(config: TransformerConfig, rng: torch.Generator) -> LinearDiT:
    model = LinearDiT(config)
    init_transformer(model, generator=rng)
    torch.nn.init.ones_(model.caption_norm.weight)  # text at full strength, so that it shows
    return model


def inputs(rng: torch.Generator, batch: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = torch.randn(batch, 4, 4, 6, generator=rng)
    timestep = torch.linspace(10, 990, batch)
    text = torch.randn(batch, 5, 8, generator=rng)
    lengths = torch.arange(batch).unsqueeze(1) % 4 + 1
    return x, timestep, text, torch.arange(5) < lengths


def test_prepared_text_changes_nothing_but_the_time_it_takes(rng: torch.Generator) -> None:
    model = model_of(TINY, rng)
    x, timestep, text, mask = inputs(rng)
    prepared = model.prepare_text(text)
    assert torch.equal(
        model.velocity(x, timestep, prepared, mask), model.velocity(x, timestep, text, mask)
    )


def test_rows_of_prepared_text_are_the_text_of_those_rows(rng: torch.Generator) -> None:
    model = model_of(TINY, rng)
    x, timestep, text, mask = inputs(rng, batch=3)
    rows = torch.tensor([2, 0])
    few = model.velocity(x[rows], timestep[rows], model.prepare_text(text).rows(rows), mask[rows])
    every = model.velocity(x, timestep, text, mask)
    torch.testing.assert_close(few, every[rows], rtol=0, atol=1e-6)


def test_masked_tokens_are_not_read(rng: torch.Generator) -> None:
    model = model_of(TINY, rng)
    x, timestep, text, mask = inputs(rng)
    other = torch.where(mask.unsqueeze(2), text, 100.0)
    assert torch.equal(
        model.velocity(x, timestep, other, mask), model.velocity(x, timestep, text, mask)
    )
    assert not torch.equal(
        model.velocity(x, timestep, other, None), model.velocity(x, timestep, text, None)
    )


def test_checkpointing_gives_the_same_gradients(rng: torch.Generator) -> None:
    model = model_of(TINY, rng)
    gradients = []
    for flag in (False, True):
        model.zero_grad()
        model.gradient_checkpointing = flag
        model.velocity(*inputs(torch.Generator().manual_seed(1))).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None
        assert plain.abs().sum() > 0
        torch.testing.assert_close(recomputed, plain, rtol=0, atol=1e-7)


def test_dropout_acts_in_training_only(rng: torch.Generator) -> None:
    model = model_of(replace(TINY, dropout=0.5), rng)
    given = inputs(rng)
    assert not torch.equal(model.velocity(*given), model.velocity(*given))
    model.eval()
    assert torch.equal(model.velocity(*given), model.velocity(*given))


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (TINY, {"x": (2, 3, 4, 6)}, "latent has 3 channels, the model takes 4"),
        (replace(TINY, patch_size=2), {"x": (2, 4, 3, 6)}, "3 x 6.*patch_size=2"),
        (replace(TINY, guidance_embeds=True), {}, "embeds the guidance scale.*\n.*0.1"),
        (TINY, {"guidance": True}, "does not embed a guidance scale"),
        (TINY, {"mix_layers": frozenset({8})}, "block 8, the model has 2 blocks\n.*0 to 1"),
    ],
)
def test_misuse_is_named_with_the_way_out(
    config: TransformerConfig, change: dict[str, object], message: str, rng: torch.Generator
) -> None:
    x, timestep, text, mask = inputs(rng)
    if "x" in change:
        x = torch.zeros(change.pop("x"))  # type: ignore[call-overload]
    if change.get("guidance"):
        change = {"guidance": torch.ones(2)}
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        LinearDiT(config).velocity(x, timestep, text, mask, **change)


def test_the_start_is_the_published_one(rng: torch.Generator) -> None:
    model = LinearDiT(replace(WIDE, guidance_embeds=True, qk_norm="rms_norm_across_heads"))
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    init_transformer(model, generator=rng)
    width = 256
    xavier = {  # bound of a uniform draw, over the fan-in and fan-out of the matrix drawn at once
        "attn1.to_q.weight": 4 * width,
        "attn1.to_v.weight": 4 * width,
        "attn1.to_out.0.weight": 2 * width,
        "attn2.to_q.weight": 2 * width,
        "attn2.to_k.weight": 3 * width,
        "attn2.to_out.0.weight": 2 * width,
    }
    block = dict(model.transformer_blocks[1].named_parameters())
    for name, fans in xavier.items():
        assert block[name].std().item() == pytest.approx((2 / fans) ** 0.5, rel=0.02), name
    assert model.patch_embed.proj.weight.std().item() == pytest.approx(
        (2 / (4 + width)) ** 0.5, rel=0.05
    )
    assert model.proj_out.weight.std().item() == pytest.approx((2 / (4 + width)) ** 0.5, rel=0.05)
    assert block["ff.conv_inverted.weight"].std().item() == pytest.approx(
        (1 / (3 * width)) ** 0.5, rel=0.02
    )
    for module in (model.time_embed, model.caption_projection):
        for name, parameter in module.named_parameters():
            expected = 0.02 if name.endswith("weight") else 0.0
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
    assert block["scale_shift_table"].std().item() == pytest.approx(width**-0.5, rel=0.05)
    assert torch.equal(model.caption_norm.weight, torch.full((width,), 0.01))
    assert torch.equal(block["attn1.norm_q.weight"], torch.ones(width))
    assert not any(parameter.isnan().any() for parameter in model.parameters())


def test_one_generator_state_gives_one_start() -> None:
    models = [LinearDiT(TINY), LinearDiT(TINY)]
    for model in models:
        init_transformer(model, generator=torch.Generator().manual_seed(3))
    for first, second in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(first, second)
