"""How many floating-point operations a network takes: products only, two for each multiply-add.

Formulas for transformers; `train.flops` counts what has none.
"""

from __future__ import annotations

from typing import Any

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
