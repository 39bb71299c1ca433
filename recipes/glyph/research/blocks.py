"""What stands in place of linear attention and of the Mix-FFN in the variants of a block."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, cast

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional

from sanakit.models.config import TransformerConfig
from sanakit.models.init import init_transformer
from sanakit.models.transformer import Block, LinearDiT
from sanakit.nn.cpu import PointConv
from sanakit.nn.linear_attention import LinearAttention
from sanakit.shapes import Map, Mix, Tokens

Attention = Literal["linear", "softmax"]
FeedForward = Literal["mix", "plain"]


class SoftmaxAttention(LinearAttention):
    """The parameters of `LinearAttention`, read as ordinary attention: every token with every."""

    def forward(self, x: Tokens, *, mix: Mix | None = None) -> Tokens:
        assert mix is None
        pattern = "b n (heads dh) -> b heads n dh"
        q, k, v = (
            rearrange(project(x), pattern, dh=self.head_dim)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.to_out[0](rearrange(y, "b heads n dh -> b n (heads dh)"))


class PlainFFN(nn.Module):
    """Widen, GELU, narrow: each token on its own, as in DiT."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.widen = PointConv(width, hidden)
        self.narrow = PointConv(hidden, width)

    @classmethod
    def as_large_as(cls, mix: nn.Module, width: int) -> PlainFFN:
        """With as many parameters as another, to within those of one hidden channel."""
        count = sum(p.numel() for p in mix.parameters())
        return cls(width, round((count - width) / (2 * width + 1)))

    def forward(self, x: Map) -> Map:
        return self.narrow(functional.gelu(self.widen(x)))


def transformer_of(
    config: TransformerConfig,
    *,
    attention: Attention = "linear",
    ffn: FeedForward = "mix",
    seed: int = 0,
) -> LinearDiT:
    """A transformer of such blocks; what two of them share begins with the same weights."""
    model = LinearDiT(config)
    init_transformer(model, generator=torch.Generator().manual_seed(seed))
    # As in the recipe of the embedded model: its text encoder's states are of unit size.
    nn.init.ones_(model.caption_norm.weight)
    generator = torch.Generator().manual_seed(seed + 1)
    for each in model.transformer_blocks:
        block = cast(Block, each)
        if attention == "softmax":
            linear = block.attn1
            block.attn1 = SoftmaxAttention(
                config.num_attention_heads,
                config.attention_head_dim,
                bias=config.attention_bias,
                qk_norm=False,
                dropout=0.0,
            )
            block.attn1.load_state_dict(linear.state_dict())
        if ffn == "plain":
            plain = PlainFFN.as_large_as(block.ff, config.width)
            for convolution in (plain.widen, plain.narrow):
                bound = convolution.in_channels**-0.5
                for parameter in convolution.parameters():
                    nn.init.uniform_(parameter, -bound, bound, generator=generator)
            block.ff = plain  # type: ignore[assignment]
    return model


def with_positions(config: TransformerConfig) -> TransformerConfig:
    """The same with sine and cosine positions added to the tokens."""
    return replace(config, interpolation_scale=1.0)
