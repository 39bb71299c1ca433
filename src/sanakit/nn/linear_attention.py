"""Self-attention with a ReLU kernel: cost linear in the number of tokens, no softmax, no mask."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sanakit.nn.norm import RMSNorm
from sanakit.nn.recompute import without_autocast
from sanakit.shapes import Heads, Mix, Tokens

QK_NORM_EPS = 1e-5
CACHED = 100_000
"""Values of a tensor that a CPU works on at a time."""


def relu_linear_attention(q: Heads, k: Heads, v: Heads, *, eps: float = 1e-15) -> Heads:
    """Attend with the kernel relu(q) . relu(k), keys first: O(n * dh^2) a head, no n-by-n map.

    Sums and their quotient are at least fp32, within autocast too (bf16 would keep 8 bits of
    each); the result has the dtype of ``v``. A query that matches no key yields zeros, not NaN.
    Source: docs/maths/linear_attention.md (L2)-(L4); ``eps`` as in diffusers
    src/diffusers/models/attention_processor.py.
    """
    wide = torch.promote_types(v.dtype, torch.float32)
    with without_autocast(v):
        q, k = q.relu().to(wide), k.relu().to(wide)
        summary = k.transpose(2, 3) @ v.to(wide)
        mass = q @ k.sum(dim=2).unsqueeze(3)
        return (q @ summary / (mass + eps)).to(v.dtype)


def trained_linear_attention(q: Heads, k: Heads, v: Heads, *, eps: float = 1e-15) -> Heads:
    """`relu_linear_attention` that keeps its three inputs for the backward pass and nothing else.

    On a CPU it goes by a few samples, whose fp32 copies stay in the cache: half the time. Where no
    gradient is wanted, or a compiler looks on, it is the plain function.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return relu_linear_attention(q, k, v, eps=eps)
    with without_autocast(v):
        attended: Heads = _KeptInputs.apply(q, k, v, eps)
    return attended


class _KeptInputs(torch.autograd.Function):
    """Its gradients, from the inputs alone.

    With S = kᵀv, z = kᵀ1, m = qz + eps and y = qS / m, for a gradient g of y:
    t = g / m and r = -(t · y); dq = t Sᵀ + r zᵀ; dv = k (qᵀt); dk = v (qᵀt)ᵀ + 1 (qᵀr)ᵀ.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.eps = eps
        y = torch.empty_like(v)
        for rows in _at_once(v):
            wide_q, wide_k, wide_v = _kernel(q[rows]), _kernel(k[rows]), _wide(v[rows])
            summary = wide_k.mT @ wide_v
            mass = (wide_q @ wide_k.sum(-2).unsqueeze(-1)).add_(eps)
            y[rows] = (wide_q @ summary).div_(mass)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v = ctx.saved_tensors
        dq, dk, dv = (torch.empty_like(each) for each in (q, k, v))
        with without_autocast(v):
            for rows in _at_once(v):
                wide_q, wide_k, wide_v = _kernel(q[rows]), _kernel(k[rows]), _wide(v[rows])
                summary, total = wide_k.mT @ wide_v, wide_k.sum(-2).unsqueeze(-1)
                mass = (wide_q @ total).add_(ctx.eps)
                top = _wide(gradient[rows]).div_(mass)
                rest = (wide_q @ summary).mul_(top).sum(-1, keepdim=True).div_(mass).neg_()
                behind = wide_q.mT @ top
                to_q = (top @ summary.mT).addcmul_(rest, total.mT)
                to_k = (wide_v @ behind.mT).add_((wide_q.mT @ rest).mT)
                dq[rows] = to_q.masked_fill_(wide_q <= 0, 0)
                dk[rows] = to_k.masked_fill_(wide_k <= 0, 0)
                dv[rows] = wide_k @ behind
        return dq, dk, dv, None


def _at_once(x: Tensor) -> Iterable[slice]:
    """The rows of a batch that are computed together."""
    if x.device.type != "cpu":
        return (slice(None),)
    step = max(1, CACHED * len(x) // max(1, x.numel()))
    return (slice(first, first + step) for first in range(0, len(x), step))


def _wide(x: Tensor) -> Tensor:
    """A copy in fp32 at least, of heads one after another."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _kernel(x: Tensor) -> Tensor:
    return _wide(x).relu_()


class LinearAttention(nn.Module):
    """Multi-head linear self-attention under the published parameter names."""

    def __init__(
        self, heads: int, head_dim: int, *, bias: bool, qk_norm: bool, dropout: float
    ) -> None:
        super().__init__()
        width = heads * head_dim
        self.head_dim = head_dim
        self.to_q = nn.Linear(width, width, bias=bias)
        self.to_k = nn.Linear(width, width, bias=bias)
        self.to_v = nn.Linear(width, width, bias=bias)
        self.norm_q = RMSNorm(width, QK_NORM_EPS) if qk_norm else None
        self.norm_k = RMSNorm(width, QK_NORM_EPS) if qk_norm else None
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Dropout(dropout)])

    def forward(self, x: Tokens, *, mix: Mix | None = None) -> Tokens:
        """Mix tokens; rows where ``mix`` is False keep their own value (identity map, for PAG)."""
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        if self.norm_q is not None and self.norm_k is not None:
            q, k = self.norm_q(q), self.norm_k(k)
        pattern = "b n (heads dh) -> b heads n dh"
        q, k, v = (rearrange(each, pattern, dh=self.head_dim) for each in (q, k, v))
        y = trained_linear_attention(q, k, v)
        if mix is not None:
            y = torch.where(mix.view(-1, 1, 1, 1), y, v)
        y = self.to_out[0](rearrange(y, "b heads n dh -> b n (heads dh)"))
        y = self.to_out[1](y)
        # fp16 overflows to infinity here on published weights; the largest finite value passes on.
        return y.clamp(-65504, 65504) if y.dtype == torch.float16 else y
