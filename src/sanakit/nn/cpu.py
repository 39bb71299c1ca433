"""Other ways of computing a layer that are equal, and faster on a processor.

The plain functions stand in `attention`, `linear_attention` and `mix_ffn`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sanakit.nn.recompute import without_autocast
from sanakit.nn.ways import CACHED
from sanakit.shapes import Heads, Map


def read_few(q: Heads, k: Tensor, v: Tensor, keep: Tensor | None) -> Heads:
    """Softmax attention in plain products, its map kept: ``softmax(q kᵀ / sqrt(dh)) v``.

    ``keep`` is broadcast against the map ``b heads n l``. The same function as
    ``scaled_dot_product_attention``, whose backward pass on a CPU takes five to seven times as long
    where keys are few: it works in blocks of keys that they do not fill.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    scores = scores.to(torch.promote_types(v.dtype, torch.float32))
    if keep is not None:
        scores = scores.masked_fill(~keep, -torch.inf)
    return scores.softmax(dim=-1).to(v.dtype) @ v


def linear_attention_of_inputs(q: Heads, k: Heads, v: Heads, eps: float) -> Heads:
    """`relu_linear_attention` that keeps its three inputs for the backward pass and nothing else.

    On a CPU it goes by a few samples, whose fp32 copies stay in the cache: half the time.
    """
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


class PointConv(nn.Conv2d):
    """A 1x1 convolution, computed as the product over channels that it is.

    The backward pass of the general convolution takes two to three times as long on a CPU. Maps
    come and go channels last: tokens seen as a map are just that, and nothing is copied.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 1, bias=bias)

    def forward(self, x: Map) -> Float[Tensor, "b outputs h w"]:
        """Mix the channels of each position."""
        y = F.linear(x.movedim(1, -1), self.weight.flatten(1), self.bias)
        return y.movedim(-1, 1)
