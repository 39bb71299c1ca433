"""Layers computed another way where nothing is learned: equal to the plain way, faster on a CPU.

The plain ways, which these are tested against, stand in `attention` and `mix_ffn`. `ways` says
when.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sanakit.nn.processor import has_units
from sanakit.nn.ways import infers_on_cpu, multiplies_by_onednn
from sanakit.shapes import Heads, Map

STRIPE = 1024
"""Positions that are widened at a time: enough for a product's full speed, and in the cache."""


class Linear(nn.Linear):
    """A linear layer that multiplies by `product`."""

    def forward(self, input: Tensor) -> Tensor:
        """Multiply the last axis."""
        return product(input, self.weight, self.bias)


def product(x: Tensor, weight: Tensor, bias: Tensor | None, *, then: str = "none") -> Tensor:
    """``F.linear``, and what comes after it, by the library that is faster on this processor.

    Args:
        x: ``... n``, of any dtype and on any device.
        weight: ``m n``.
        bias: ``m``.
        then: ``none``, or ``swish``, which is SiLU.
    """
    if multiplies_by_onednn(x, weight):
        made: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "")
        return made
    y = F.linear(x, weight, bias)
    return y if then == "none" else F.silu(y, inplace=infers_on_cpu(y))


def read_by_rows(q: Heads, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Heads:
    """Softmax attention of each row to so many first keys of its own."""
    rows = [slice(row, row + 1) for row in range(len(q))]
    read = F.scaled_dot_product_attention
    return torch.cat(
        [read(q[i], k[i, :, :n], v[i, :, :n]) for i, n in zip(rows, lengths, strict=True)]
    )


def attend_by_rows(q: Heads, k: Heads, v: Heads, eps: float) -> Heads:
    """`relu_linear_attention` of one row at a time, its heads as they lie beside each other.

    Products of all rows at once have every operand copied first. Sums are fp32 at least.
    """
    wide = torch.promote_types(v.dtype, torch.float32)
    y = torch.empty_like(v)
    for row in range(len(v)):
        keys, values = k[row].relu().to(wide), v[row].to(wide)
        summary = torch.cat([keys.mT @ values, keys.sum(dim=1).unsqueeze(2)], dim=2)
        made = q[row].relu().to(wide) @ summary
        torch.div(made[..., :-1], made[..., -1:].add_(eps), out=y[row])
    return y


def mix_in_stripes(x: Map, widen: nn.Conv2d, depth: nn.Conv2d, narrow: nn.Conv2d) -> Map:
    """The Mix-FFN of a map, some of its rows at a time; no row is widened twice.

    ``widen`` and ``narrow`` are 1x1 convolutions, ``depth`` a depthwise 3x3 one. Small maps are
    one stripe. The widened map of a large one, ten times as wide as a model in all, is never held
    whole: large blocks of memory are given back and taken anew for every layer, which takes as
    long as the layer.
    """
    tokens = x.movedim(1, -1)
    weights = widen.weight.flatten(1), narrow.weight.flatten(1)
    if tokens[..., 0].numel() <= STRIPE:
        whole = product(tokens, weights[0], widen.bias, then="swish")
        return _seen(whole, depth, 1, weights[1], narrow.bias).movedim(-1, 1)
    _, height, width, _ = tokens.shape
    y = tokens.new_empty((*tokens.shape[:-1], len(weights[1])))
    rows = min(height, max(1, STRIPE // width))
    band = tokens.new_empty(1, rows + 3, width, len(weights[0]))
    for sample, out in zip(tokens.split(1), y.split(1), strict=True):
        # ``band`` holds the rows to be looked at, from the one above the next to be finished on.
        band[:, :1], held, done = 0, 1, 0
        for top in range(0, height, rows):
            some = sample[:, top : top + rows]
            fresh = band[:, held : held + some.shape[1]]
            _activate(some, weights[0], widen.bias, fresh)
            held += some.shape[1]
            if top + rows >= height:
                band[:, held : held + 1], held = 0, held + 1
            if held > 2:
                ready = _seen(band[:, :held], depth, 0, weights[1], narrow.bias)
                out[:, done : done + held - 2], done = ready, done + held - 2
                band[:, :2], held = band[:, held - 2 : held].clone(), 2
    return y.movedim(-1, 1)


def _activate(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """SiLU of a product, written to its place."""
    direct = x.dtype == weight.dtype and has_units(x.dtype)
    if bias is None or not direct or multiplies_by_onednn(x, weight):
        out.copy_(product(x, weight, bias, then="swish"))
    else:
        torch.addmm(bias, x.flatten(0, -2), weight.mT, out=out.flatten(0, -2))
        F.silu(out, inplace=True)


def _seen(
    band: Tensor, depth: nn.Conv2d, border: int, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """What comes after widening, of ``b rows w wide`` with so many rows of zeros around them."""
    seen = F.conv2d(
        band.movedim(-1, 1), depth.weight, depth.bias, padding=(border, 1), groups=depth.groups
    )
    value, gate = seen.movedim(1, -1).chunk(2, dim=-1)
    return product(value * F.silu(gate, inplace=True), weight, bias)
