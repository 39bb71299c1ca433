"""Norms: root mean square, over the last axis or the channels of a map; modulated layer norms."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sanakit.nn.by_rows import by_rows
from sanakit.nn.gpu import with_kernel
from sanakit.nn.recompute import product_dtype
from sanakit.nn.ways import infers_at_length
from sanakit.shapes import Tokens


class RMSNorm(nn.Module):
    """Divide by the root mean square over the last axis, then apply a learned gain (and bias).

    Statistics are fp32 whatever comes in. Where the weight is 16 bit the normalised input is
    rounded to the weight's dtype before the gain; otherwise gain and result are fp32 for a 16-bit
    input. Source: ``RMSNorm`` of diffusers src/diffusers/models/normalization.py.
    """

    def __init__(self, width: int, eps: float, *, bias: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``... width``."""
        variance = x.float().square().mean(dim=-1, keepdim=True)
        y = x * torch.rsqrt(variance + self.eps)
        if self.weight.dtype in (torch.float16, torch.bfloat16):
            y = y.to(self.weight.dtype)
        y = y * self.weight
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Show what the shapes do not."""
        return f"{self.weight.numel()}, eps={self.eps}, bias={self.bias is not None}"


class ChannelRMSNorm(RMSNorm):
    """The same norm and parameters over dim 1 of a ``b d h w`` map."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each position of ``b d h w`` over its channels."""
        return by_rows(self._of_rows, x)

    def _of_rows(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


@with_kernel
def modulated_norm(x: Tokens, norm: nn.Module, shift: Tensor, scale: Tensor) -> Tokens:
    """Normalise, then shift and scale, for products; both are ``b 1 d``.

    ``scale`` is a deviation from one.
    """
    y = norm(x)
    if infers_at_length(y):
        return torch.addcmul(shift, y, 1 + scale).to(product_dtype(y))
    return (y * (1 + scale) + shift).to(product_dtype(y))
