"""Cross-attention from image tokens to text, split so that the text side can be made once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from sanakit.nn.cpu import read_few
from sanakit.nn.inference import Linear, read_by_rows
from sanakit.nn.linear_attention import QK_NORM_EPS
from sanakit.nn.norm import RMSNorm
from sanakit.nn.ways import reads_few
from sanakit.shapes import Text, TextMask, Tokens

TextHeads: TypeAlias = Float[Tensor, "b heads l dh"]
Kept: TypeAlias = "TextMask | Sequence[int] | None"
"""Which tokens are read: those of a mask, so many first ones of each row, or all."""


class CrossAttention(nn.Module):
    """Softmax attention over text tokens under the published parameter names."""

    def __init__(self, heads: int, head_dim: int, *, qk_norm: bool, dropout: float) -> None:
        super().__init__()
        width = heads * head_dim
        self.head_dim = head_dim
        self.to_q = Linear(width, width)
        self.to_k = Linear(width, width)
        self.to_v = Linear(width, width)
        self.norm_q = RMSNorm(width, QK_NORM_EPS) if qk_norm else None
        self.norm_k = RMSNorm(width, QK_NORM_EPS) if qk_norm else None
        self.to_out = nn.ModuleList([Linear(width, width), nn.Dropout(dropout)])

    def keys_values(self, text: Text) -> tuple[TextHeads, TextHeads]:
        """Make keys and values from projected text; they depend on neither image nor noise."""
        k, v = self.to_k(text), self.to_v(text)
        if self.norm_k is not None:
            k = self.norm_k(k)
        pattern = "b l (heads dh) -> b heads l dh"
        return (
            rearrange(k.to(v.dtype), pattern, dh=self.head_dim),
            rearrange(v, pattern, dh=self.head_dim),
        )

    def forward(self, x: Tokens, k: TextHeads, v: TextHeads, mask: Kept) -> Tokens:
        """Read the text; every row of ``mask`` must keep at least one token.

        A masked token has weight zero, where the published networks add -10000 to its logit:
        the same for any logit that is not itself below -9000. Source: diffusers
        src/diffusers/models/transformers/sana_transformer.py.
        """
        q = self.to_q(x)
        if self.norm_q is not None:
            q = self.norm_q(q)
        q = rearrange(q.to(v.dtype), "b n (heads dh) -> b heads n dh", dh=self.head_dim)
        if mask is None or isinstance(mask, Tensor):
            keep = None if mask is None else mask[:, None, None, :]
            attend = read_few if reads_few(q, k) else F.scaled_dot_product_attention
            y = attend(q, k, v, keep)
        else:
            y = read_by_rows(q, k, v, mask)
        y = self.to_out[0](rearrange(y, "b heads n dh -> b n (heads dh)"))
        return self.to_out[1](y)
