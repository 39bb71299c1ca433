"""Formulas of operations against torch's own count, kernel by kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Gemma2Config, Gemma2Model, LlamaConfig, LlamaModel

from sanakit.models.config import TRANSFORMERS
from sanakit.models.flops import language_model_flops, transformer_flops
from sanakit.models.transformer import LinearDiT

TINY = TRANSFORMERS["tiny"]


def counted_flops(call: Callable[[], object]) -> int:
    """What a call computes, counted as it runs."""
    formulas = {torch.ops.aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        call()
    return int(counter.get_total_flops())


def _convolution_backward(
    gradient: tuple[int, ...], x: tuple[int, ...], weight: tuple[int, ...], *rest: Any, **named: Any
) -> int:
    """As much as forward for each of the two gradients; torch's own takes groups for full."""
    transposed, asked = rest[4], rest[7]
    positions = math.prod((x if transposed else gradient)[2:]) * x[0]
    return int(2 * positions * math.prod(weight)) * (bool(asked[0]) + bool(asked[1]))


@pytest.mark.parametrize(
    ("config", "grid", "tokens"),
    [
        (TINY, (3, 5), 7),
        (replace(TINY, patch_size=2, num_layers=3), (4, 6), 1),
        (replace(TINY, out_channels=8, attention_head_dim=8, num_attention_heads=1), (2, 2), 5),
        (replace(TINY, guidance_embeds=True, qk_norm="rms_norm_across_heads"), (4, 4), 3),
        (replace(TINY, mlp_ratio=1.7), (4, 4), 300),
        (TRANSFORMERS["sana-0.6b"], (32, 32), 300),
    ],
)
def test_a_transformer_takes_what_is_counted(config: Any, grid: Any, tokens: int) -> None:
    with torch.device("meta"):
        model = LinearDiT(config)
        x = torch.empty(2, config.in_channels, *grid)
        text = torch.empty(2, tokens, config.caption_channels)
        scalar = torch.empty(2)
    guidance = scalar if config.guidance_embeds else None
    with torch.no_grad():
        counted = counted_flops(lambda: model.velocity(x, scalar, text, None, guidance=guidance))
    assert counted == 2 * transformer_flops(config, grid, tokens)


def test_training_takes_three_times_the_forward_pass() -> None:
    """But for what is computed twice, and the gradient of the latent, which nobody asks for."""
    config = replace(TRANSFORMERS["sana-0.6b"], num_layers=4)
    with torch.device("meta"):
        model = LinearDiT(config)
        x, text = torch.empty(1, 32, 32, 32), torch.empty(1, 300, config.caption_channels)
        time = torch.empty(1)
    counted = counted_flops(lambda: model.velocity(x, time, text, None).sum().backward())
    assert counted == pytest.approx(3 * transformer_flops(config, (32, 32), 300), rel=0.02)


@pytest.mark.parametrize("kind", [Gemma2Config, LlamaConfig])
def test_a_language_model_takes_what_is_counted(kind: Any) -> None:
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50}
    config = kind(**sizes, **heads)
    model = {Gemma2Config: Gemma2Model, LlamaConfig: LlamaModel}[kind]
    module = model._from_config(config, attn_implementation="eager")
    ids = torch.ones(1, 9, dtype=torch.long)
    with torch.no_grad():
        counted = counted_flops(lambda: module(input_ids=ids, use_cache=False))
    assert counted == language_model_flops(config, 9)
    head = language_model_flops(config, 9, head=True) - language_model_flops(config, 9)
    assert head == 2 * 9 * 24 * 50
