"""How many floating-point operations a network takes: products only, two for each multiply-add.

Formulas for transformers, which are asked for every batch; a count on the meta device, which has
shapes and no values, for autoencoders.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import TransformerConfig
from sanakit.nn.embed import FREQUENCIES
from sanakit.shapes import Grid


def transformer_flops(config: TransformerConfig, grid: Grid, text_tokens: int) -> int:
    """One sample's forward pass through a `LinearDiT`.

    ``grid`` is that of the latent, ``text_tokens`` with the padding that is computed.
    """
    width, patch = config.width, config.patch_size**2
    image = grid[0] * grid[1] // patch
    embeds = 2 if config.guidance_embeds else 1
    once = embeds * (FREQUENCIES + width) * width + 6 * width**2
    text = text_tokens * (config.caption_channels + width) * width
    ends = image * width * patch * (config.in_channels + config.output_channels)
    return 2 * (once + text + ends + config.num_layers * block_products(config, image, text_tokens))


def block_products(config: TransformerConfig, image_tokens: int, text_tokens: int) -> int:
    """Multiply-adds of one block for one sample."""
    width, hidden = config.width, config.ffn_width
    # Keys by values, queries by that, and the mass of each query.
    linear = image_tokens * width * (4 * width + 2 * config.attention_head_dim + 1)
    cross = 2 * (image_tokens + text_tokens) * width**2 + 2 * image_tokens * text_tokens * width
    mix = image_tokens * (2 * width * hidden + 2 * 9 * hidden + hidden * width)
    return linear + cross + mix


def language_model_flops(config: Any, tokens: int, *, head: bool = False) -> int:
    """One row's forward pass through a decoder of the Llama and Gemma family.

    ``config`` is its `transformers` config; ``head`` counts the output weights in. Attention is
    counted whole, as kernels without a causal short cut compute it.
    """
    width, inner = config.hidden_size, config.num_attention_heads * config.head_dim
    shared = config.num_key_value_heads * config.head_dim
    layer = width * (2 * inner + 2 * shared + 3 * config.intermediate_size)
    layers = config.num_hidden_layers * tokens * (layer + 2 * tokens * inner)
    return 2 * (layers + (tokens * width * config.vocab_size if head else 0))


def autoencoder_flops(module: Autoencoder, size: tuple[int, int]) -> int:
    """Encoding and decoding one picture of ``size`` pixels, and the backward pass.

    Gradients are counted for the weights that ask for one now, and for what lies behind them.
    """
    with torch.device("meta"):
        shadow = Autoencoder(module.config)
        image = torch.empty(1, module.config.in_channels, *size)
    # Batch norms of one picture with one position have no variance; shapes are the same without.
    shadow.eval()
    for mine, real in zip(shadow.parameters(), module.parameters(), strict=True):
        mine.requires_grad_(real.requires_grad)

    def both() -> None:
        restored: Tensor = shadow.decode(shadow.encode(image))
        if restored.requires_grad:
            restored.sum().backward()

    return counted_flops(both)


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
