"""Self-attention with a ReLU kernel: cost linear in the number of tokens, no softmax, no mask."""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn

from sanakit.nn.cpu import linear_attention_of_inputs
from sanakit.nn.gpu import with_kernel
from sanakit.nn.inference import Linear, attend_by_rows
from sanakit.nn.int8 import products
from sanakit.nn.norm import RMSNorm
from sanakit.nn.recompute import without_autocast
from sanakit.nn.ways import infers_at_length
from sanakit.shapes import Heads, Mix, Tokens

Total = Callable[[Tensor], Tensor]
"""Adds up what several processes, each with some of the tokens, give."""
QK_NORM_EPS = 1e-5
FP16_END = torch.finfo(torch.float16).max


@with_kernel
def relu_linear_attention(
    q: Heads, k: Heads, v: Heads, *, eps: float = 1e-15, total: Total | None = None
) -> Heads:
    """Attend with the kernel relu(q) . relu(k), keys first: O(n * dh^2) a head, no n-by-n map.

    Sums and their quotient are at least fp32, within autocast too (bf16 would keep 8 bits of
    each); the result has the dtype of ``v``. A query that matches no key yields zeros, not NaN.
    With ``total`` the tokens are some of a picture's, and its sums over all of them are read.
    Source: docs/maths/linear_attention.md (L2)-(L4); ``eps`` as in diffusers
    src/diffusers/models/attention_processor.py.
    """
    wide = torch.promote_types(v.dtype, torch.float32)
    with without_autocast(v):
        q, k = q.relu().to(wide), k.relu().to(wide)
        summary, keys = k.transpose(2, 3) @ v.to(wide), k.sum(dim=2).unsqueeze(3)
        if total is not None:
            summary, keys = total(torch.cat([summary, keys], dim=3)).split([v.shape[3], 1], dim=3)
        mass = q @ keys
        return (q @ summary / (mass + eps)).to(v.dtype)


def trained_linear_attention(q: Heads, k: Heads, v: Heads, *, eps: float = 1e-15) -> Heads:
    """The same function, the faster way; where a gradient is wanted only its inputs are kept."""
    if infers_at_length(v):
        with without_autocast(v):
            return attend_by_rows(q, k, v, eps)
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return relu_linear_attention(q, k, v, eps=eps)
    return linear_attention_of_inputs(q, k, v, eps)


class LinearAttention(nn.Module):
    """Multi-head linear self-attention under the published parameter names."""

    def __init__(
        self,
        heads: int,
        head_dim: int,
        *,
        bias: bool,
        qk_norm: bool,
        dropout: float,
        clip: float | None = None,
    ) -> None:
        """Make the layer; ``clip`` bounds what it gives, in every dtype (`clipped`)."""
        super().__init__()
        width = heads * head_dim
        self.head_dim = head_dim
        self.clip = clip
        self.total: Total | None = None
        """Set while processes share the tokens of a picture, for inference."""
        self.to_q = Linear(width, width, bias=bias)
        self.to_k = Linear(width, width, bias=bias)
        self.to_v = Linear(width, width, bias=bias)
        self.norm_q = RMSNorm(width, QK_NORM_EPS) if qk_norm else None
        self.norm_k = RMSNorm(width, QK_NORM_EPS) if qk_norm else None
        self.to_out = nn.ModuleList([Linear(width, width), nn.Dropout(dropout)])

    def forward(self, x: Tokens, *, mix: Mix | None = None) -> Tokens:
        """Mix tokens; rows where ``mix`` is False keep their own value (identity map, for PAG)."""
        q, k, v = products(x, (self.to_q, self.to_k, self.to_v))
        if self.norm_q is not None and self.norm_k is not None:
            q, k = self.norm_q(q), self.norm_k(k)
        pattern = "b n (heads dh) -> b heads n dh"
        q, k, v = (rearrange(each, pattern, dh=self.head_dim) for each in (q, k, v))
        if self.total is None:
            y = trained_linear_attention(q, k, v)
        else:
            y = relu_linear_attention(q, k, v, total=self.total)
        if mix is not None:
            y = torch.where(mix.view(-1, 1, 1, 1), y, v)
        y = self.to_out[0](rearrange(y, "b heads n dh -> b n (heads dh)"))
        return clipped(self.to_out[1](y), self.clip)


def clipped(y: Tokens, clip: float | None) -> Tokens:
    """Bound what self-attention gives, both ways.

    In fp16 always by its largest finite value, for published weights overflow to infinity here.
    ``clip`` bounds every other dtype too: a network trained in fp16 never saw a larger value, and
    draws ruined pictures where one gets through. In bf16 the bound is the nearest value that bf16
    has, 65536. Source: NVlabs/Sana diffusion/model/nets/sana_blocks.py, ``LiteLA``, which bounds
    under fp16 autocast alone; huggingface/diffusers#10336.
    """
    if y.dtype == torch.float16:
        clip = FP16_END if clip is None else min(clip, FP16_END)
    return y if clip is None else y.clamp(-clip, clip)
