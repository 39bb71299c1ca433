"""3x3 convolutions of wide maps with a quarter of their multiplications, out of torch's own sums.

A minimal filtering algorithm F(4, 3) gives four neighbouring results of a filter of three taps from
six products instead of twelve. It multiplies polynomials by their values at the points 0, p, -p,
q, -q and infinity: what the six inputs and the three taps are there, one product for each, and
back. In two dimensions the 16 results of a tile of 6 x 6 inputs take 36 products of channels, not
144, and each of the 36 is one matrix product over all tiles of some rows. Points of p = 1/sqrt(2)
and q = sqrt(2) keep the rounding error at that of the plain sums in fp32 (about 1e-6 of a result's
root mean square; 1 and 2 lose twice as much, and the worst results five times).

A convolution of nearest neighbours sees each value twice, so that with the taps g of a row

    y[2i]     = (g0 + g1 + g2) x[i] + g0 (x[i - 1] - x[i])
    y[2i + 1] = (g0 + g1 + g2) x[i] - g2 (x[i] - x[i + 1]).

In two dimensions these are 9 products on the small grid for what takes 36 on the large one.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (arXiv 1509.09308); the
points: Barabasz et al., Error Analysis and Improving the Accuracy of Winograd Convolution for Deep
Neural Networks (arXiv 1803.10986). The plain convolution is the oracle of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sanakit.nn.ways import filters_less, is_unhooked
from sanakit.shapes import AnyMap, Map

AT_ONCE = 4 << 20
"""Bytes of transformed inputs that a thread makes before it multiplies them."""
Parts = Sequence[Tensor] | Tensor
P, Q = 0.5**0.5, 2**0.5
SIDE = 4
"""Of the results of a tile."""
SEEN = SIDE + 2


class Conv1x1(nn.Conv2d):
    """A 1x1 convolution by the library's own, of maps that no linear layer takes as tokens."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 1, bias=bias)


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution of stride 1 that keeps the grid."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=bias)

    def forward(self, x: Map) -> AnyMap:
        """``b inputs h w`` to ``b outputs h w``."""
        if pays(self, x):
            return tiled(x, self.weight, self.bias)
        return super().forward(x)


class DoublingConv3x3(nn.Conv2d):
    """A 3x3 convolution of a map that is doubled before it, each value to four neighbours."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=bias)

    def forward(self, x: Map) -> AnyMap:
        """``b inputs h w`` to ``b outputs 2h 2w``."""
        if pays(self, x):
            return doubled(x, self.weight, self.bias)
        return super().forward(F.interpolate(x, scale_factor=2, mode="nearest"))


def pays(conv: nn.Conv2d, x: Map) -> bool:
    """Whether the ways of this file are right and faster for that input."""
    return filters_less(conv, x, (Conv3x3, DoublingConv3x3))


def convolved(conv: nn.Module, x: Map) -> AnyMap:
    """What the layer gives, in the memory of ``x`` where it is ours and shows it to nobody."""
    if isinstance(conv, Conv3x3) and pays(conv, x) and is_unhooked(conv):
        return tiled(x, conv.weight, conv.bias, overwrite=True)
    y: AnyMap = conv(x)
    return y


def tiled(x: Map, weight: Tensor, bias: Tensor | None, *, overwrite: bool = False) -> AnyMap:
    """The convolution of a map padded by zeros, channels last, tile by tile of 4 x 4 results.

    ``overwrite`` allows to put it where ``x`` is, which is done if it has the same shape.
    """
    batch, inputs, height, width = x.shape
    outputs, wide = len(weight), torch.promote_types(x.dtype, torch.float32)
    down, across = -(-height // SIDE), -(-width // SIDE)
    most = AT_ONCE * torch.get_num_threads() // (SEEN * SEEN * across * inputs * wide.itemsize)
    rows = -(-down // -(-down // max(1, most)))  # of tiles at once: equal parts
    kernels = _spread(wide) @ weight.to(wide).reshape(-1, 9).mT
    kernels = kernels.view(SEEN * SEEN, outputs, inputs).mT

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=wide)

    # Column 4 t + f of the padded input is phase f of tile t: each is one run of memory.
    padded = torch.zeros(SIDE, rows * SIDE + 2, across + 1, inputs, dtype=wide)
    columns, values = (
        empty(SEEN, rows * SIDE + 2, across, inputs),
        empty(SEEN, SEEN, rows, across, inputs),
    )
    products, downwards = (
        empty(SEEN, SEEN, rows, across, outputs),
        empty(SIDE, SEEN, rows, across, outputs),
    )
    result = empty(rows, SIDE, across, SIDE, outputs)
    flat = values.flatten(0, 1).flatten(1, 2), products.flatten(0, 1).flatten(1, 2)
    seen = [padded[j % SIDE, :, j // SIDE : j // SIDE + across] for j in range(SEEN)]
    seen_down = [columns[:, i : i + rows * SIDE - SIDE + 1 : SIDE] for i in range(SEEN)]
    out_down = [downwards[:, j] for j in range(SEEN)]
    out = [result[:, :, :, j].transpose(0, 1) for j in range(SIDE)]
    spare = [
        (empty(*a.shape), empty(*a.shape)) for a in (columns[0], values[0], products[0], out[0])
    ]
    images = x.permute(0, 2, 3, 1)
    y = images
    if not overwrite or inputs != outputs or not images.is_contiguous():
        y = torch.empty(batch, height, width, outputs, dtype=x.dtype)
    for image, place in zip(images, y, strict=True):
        for top in range(0, height, rows * SIDE):
            if top:  # the row above is results by now
                padded[:, 0] = padded[:, rows * SIDE]
            _fill(padded[:, 1:] if top else padded, image, top or -1)
            _values(seen, columns, *spare[0])
            _values(seen_down, values, *spare[1])
            torch.bmm(flat[0], kernels, out=flat[1])
            _results(products, downwards, *spare[2])
            _results(out_down, out, *spare[3])
            part = place[top : top + rows * SIDE]
            made = result.flatten(2, 3).flatten(0, 1)[: len(part), :width]
            part.copy_(made) if bias is None else torch.add(made, bias, out=part)
    return y.permute(0, 3, 1, 2)


def _fill(padded: Tensor, image: Tensor, top: int) -> None:
    """Copy the rows from ``top`` on, and zeros where there are none, sorted by phase."""
    height, width = image.shape[:2]
    low, high = max(0, top), min(height, top + padded.shape[1])
    padded[:, : low - top].zero_()
    padded[:, high - top :].zero_()
    for phase in range(SIDE):
        first = int(phase == 0)  # column -1 is phase 0 of tile 0
        source = image[low:high, phase - 1 + SIDE * first : width : SIDE]
        source = source[:, : padded.shape[2] - first]
        padded[phase, low - top : high - top, first : first + source.shape[1]] = source


@cache
def _spread(dtype: torch.dtype) -> Tensor:
    """What nine taps are at the 36 pairs of points, scaled as `_values` and `_results` need."""
    pair = [(P, Q), (-P, Q), (Q, P), (-Q, P)]
    # The value at a point over the product of its distances from the others (P Q is 1); P or Q
    # more, so that the first differences of `_results` need no factor.
    rows = [[1.0, 0.0, 0.0]]
    for at, other in pair:
        scale = abs(at) / (2 * at**2 * (at**2 - other**2))
        rows.append([scale, scale * at, scale * at * at])
    rows.append([0.0, 0.0, 1.0])
    once = torch.tensor(rows, dtype=torch.float64)
    return torch.kron(once, once).to(dtype)


def _values(d: Sequence[Tensor], out: Parts, a: Tensor, b: Tensor) -> None:
    """Six inputs at the points 0, P, -P, Q, -Q and infinity."""
    for first, (inner, point) in ((1, (Q, P)), (3, (P, Q))):
        torch.sub(d[4], d[2], alpha=inner**2, out=a)
        torch.sub(d[3], d[1], alpha=inner**2, out=b)
        torch.add(a, b, alpha=point, out=out[first])
        torch.sub(a, b, alpha=point, out=out[first + 1])
    torch.sub(d[4], d[2], alpha=P**2 + Q**2, out=out[0]).add_(d[0])
    torch.sub(d[5], d[3], alpha=P**2 + Q**2, out=out[5]).add_(d[1])


def _results(m: Parts, out: Parts, a: Tensor, b: Tensor) -> None:
    """Four results of the six products."""
    torch.add(m[1], m[2], out=a)
    torch.add(m[3], m[4], out=b)
    torch.add(m[0], a, alpha=1 / P, out=out[0]).add_(b, alpha=1 / Q)
    torch.add(a, b, alpha=Q / P, out=out[2]).mul_(P)
    torch.sub(m[1], m[2], out=a)
    torch.sub(m[3], m[4], out=b)
    torch.add(a, b, out=out[1])
    torch.add(m[5], a, alpha=P**2, out=out[3]).add_(b, alpha=Q**2)


def doubled(x: Map, weight: Tensor, bias: Tensor | None) -> AnyMap:
    """The convolution of ``x`` with each value four times, from nine products on its own grid."""
    batch, inputs, height, width = x.shape
    outputs, wide = len(weight), torch.promote_types(x.dtype, torch.float32)
    most = AT_ONCE * torch.get_num_threads() // (9 * width * outputs * wide.itemsize)
    rows = -(-height // -(-height // max(1, most)))
    # The value itself, differences along rows, along columns, along both; before and after.
    own, before, after = torch.ones(3), torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 0, 1])
    ways = [(own, own), (own, before), (own, after), (before, own), (after, own)]
    ways += [(down, across) for down in (before, after) for across in (before, after)]
    spread = torch.stack([torch.outer(*way).flatten() for way in ways]).to(wide)
    kernels = (spread @ weight.to(wide).reshape(-1, 9).mT).view(9 * outputs, inputs).mT
    for_value, for_rows, for_columns, for_both = kernels.split(
        [outputs, 2 * outputs, 2 * outputs, 4 * outputs], dim=1
    )
    offset = torch.zeros(outputs, dtype=wide) if bias is None else bias.to(wide)
    padded = torch.zeros(rows + 2, width + 2, inputs, dtype=wide)
    y = torch.empty(batch, height, 2, width, 2, outputs, dtype=x.dtype)
    for image, place in zip(x.permute(0, 2, 3, 1), y, strict=True):
        for top in range(0, height, rows):
            count = min(rows, height - top)
            low, high = max(0, top - 1), min(height, top + rows + 1)
            padded[: low - top + 1].zero_()
            padded[high - top + 1 :].zero_()
            padded[low - top + 1 : high - top + 1, 1:-1] = image[low:high]
            around = padded[: count + 2]
            across = around[:, :-1] - around[:, 1:]
            down = around[:-1, 1:-1] - around[1:, 1:-1]
            base = torch.addmm(offset, around[1:-1, 1:-1].flatten(0, 1), for_value)
            of_rows = across[1:-1].flatten(0, 1) @ for_rows
            of_columns = down.flatten(0, 1) @ for_columns
            of_both = (across[:-1] - across[1:]).flatten(0, 1) @ for_both
            base = base.view(count, width, outputs)
            of_rows = of_rows.view(count, width + 1, 2, outputs)
            of_columns = of_columns.view(count + 1, width, 2, outputs)
            of_both = of_both.view(count + 1, width + 1, 2, 2, outputs)
            for i in (0, 1):
                below = torch.add(base, of_columns[i : i + count, :, i], alpha=1 - 2 * i)
                for j in (0, 1):
                    both = of_both[i : i + count, j : j + width, i, j]
                    beside = torch.add(of_rows[:, j : j + width, j], both, alpha=1 - 2 * i)
                    part = place[top : top + count, i, :, j]
                    torch.add(below, beside, alpha=1 - 2 * j, out=part)
    return y.view(batch, 2 * height, 2 * width, outputs).permute(0, 3, 1, 2)
