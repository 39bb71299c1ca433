"""3x3 convolutions with int8 weights, of maps that are rounded to 8 bits as they come.

A map is rounded some rows at a time, which have one scale and one zero point: a convolution adds
what neighbouring positions hold, so that they cannot have scales of their own. What comes before
and after is computed in the same pass, while the rows are in the cache. Sums are exact integers.

A convolution of a doubled map is one of 2x2 for each of the four places that a value goes to, whose
taps are sums of those of 3x3, rounded once more. Of both the twin is the convolution by the weight
made real, which also takes rows of which a few channels are so large that one scale would leave
most others with hardly a level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sanakit.nn.fast_convolution import Conv3x3, DoublingConv3x3
from sanakit.nn.int8 import LEVELS, SMALLEST, Int8Layer, activation_levels, round_weight
from sanakit.nn.ways import infers_on_cpu, untouched
from sanakit.shapes import AnyMap, Map

ROUNDED = 1 << 20
"""Values of a map that are rounded together, about, and so have one scale."""
FEWEST = 4
"""Rows of wide maps, as two more are rounded with them."""
STEPS = 254
"""Between the least and the largest value; of 255, one is left for the zero point's rounding."""
USED = 16
"""Steps that half of the channels use at least, or the rows are not rounded."""
GRID = ([1, 1], [0, 0], [1, 1], 1)
"""Stride, padding, dilation, groups."""
Before = Callable[[Tensor], Tensor]
After = Callable[[Map, Map, int, slice], Map]


class Int8Conv3x3(Int8Layer, Conv3x3):
    """A 3x3 convolution of int8 weights."""

    def forward(self, x: Map) -> AnyMap:
        """``b inputs h w`` to ``b outputs h w``."""
        if rounds(self, x):
            return convolved_in_stripes(self, x)
        return F.conv2d(x, self.real_weight(x.dtype), self.bias, padding=1)


class Int8DoublingConv3x3(Int8Layer, DoublingConv3x3):
    """A 3x3 convolution of int8 weights, of a map that is doubled before it."""

    def forward(self, x: Map) -> AnyMap:
        """``b inputs h w`` to ``b outputs 2h 2w``."""
        if rounds(self, x):
            return doubled_in_stripes(self, x)
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return F.conv2d(x, self.real_weight(x.dtype), self.bias, padding=1)


KINDS = (Int8Conv3x3, Int8DoublingConv3x3)


def pays(device: str | torch.device) -> bool:
    """Whether 3x3 convolutions in int8 are faster there than those of `fast_convolution`.

    They are on a CPU with units for products of 8 bits, which add four at once.
    """
    return torch.device(device).type == "cpu" and activation_levels() == LEVELS


def rounds(conv: Int8Layer, x: Map) -> bool:
    """Whether the convolution rounds ``x``."""
    return conv.levels(x) == LEVELS and infers_on_cpu(x) and not torch.is_autocast_enabled("cpu")


def fuses(conv: nn.Module, x: Map) -> TypeGuard[Int8Layer]:
    """Whether it does, and its own result is shown to nobody: more may be done in its pass."""
    return (
        isinstance(conv, KINDS) and any(untouched(conv, kind) for kind in KINDS) and rounds(conv, x)
    )


def convolved_in_stripes(
    conv: Int8Layer,
    x: Map,
    *,
    before: Before | None = None,
    after: After | None = None,
    overwrite: bool = False,
) -> AnyMap:
    """The convolution of a map padded by zeros, channels last.

    Args:
        conv: of int8 weights.
        x: ``b inputs h w``.
        before: done to ``x``, value by value.
        after: done to rows of the result. Takes those, a place for what it makes of them, which may
            be used, the place in the batch and which rows they are.
        overwrite: put the result where ``x`` is, with ``before`` and if it has the same shape.
    """
    y = x
    if not (overwrite and before and len(conv.weight) == x.shape[1]):
        shape = len(x), len(conv.weight), *x.shape[2:]
        y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    stripes = _stripes(x, conv.weight, conv.weight_scale, conv.bias, before)
    for place, rows, made in stripes:
        out = y[place : place + 1, :, rows]
        made = made if after is None else after(made, out, place, rows)
        if made is not out:
            out.copy_(made)
    return y


def doubled_in_stripes(conv: Int8Layer, x: Map, *, shortcut: bool = False) -> AnyMap:
    """The convolution of ``x`` with each value four times, channels last.

    With the ``shortcut``, plus ``x`` that is doubled by `pixel_shuffle` of its repeated channels.
    """
    batch, inputs, height, width = x.shape
    outputs = len(conv.weight)
    bias = None if conv.bias is None else conv.bias.repeat(4)
    images = x.permute(0, 2, 3, 1)
    y = torch.empty(batch, height, 2, width, 2, outputs, dtype=x.dtype)
    for place, rows, made in _stripes(x, *_of_doubled(conv), bias, None):
        # ``made`` are four results at each place between values.
        for index, part in enumerate(made[0].permute(1, 2, 0).split(outputs, dim=-1)):
            down, across = divmod(index, 2)
            part = part[down : down + rows.stop - rows.start, across : across + width]
            out = y[place, rows, down, :, across]
            if shortcut:
                torch.add(part, images[place, rows, :, _channels(index, inputs, outputs)], out=out)
            else:
                out.copy_(part)
    return y.view(batch, 2 * height, 2 * width, outputs).permute(0, 3, 1, 2)


def _channels(place: int, inputs: int, outputs: int) -> slice | Tensor:
    """Which channels come to one of a value's four places by the shortcut."""
    repeats = 4 * outputs // inputs
    if 4 % repeats == 0:
        return slice(place // repeats, None, 4 // repeats)
    return torch.arange(place, 4 * outputs, 4) // repeats


def _stripes(
    x: Map, weight: Tensor, scale: Tensor, bias: Tensor | None, before: Before | None
) -> Iterator[tuple[int, slice, Map]]:
    """Places in the batch, rows there, and the fp32 results of those.

    With ``before``, rows may be overwritten as soon as they were given.
    """
    _, inputs, height, width = x.shape
    outputs, scale = len(weight), scale.flatten()
    packed = torch.ops.onednn.qconv_prepack(weight, scale, 1.0, 0, *GRID, None)
    of_one = weight.sum((1, 2, 3), dtype=torch.int32) * scale
    offset = torch.zeros(outputs) if bias is None else bias.float()
    no_zeros = torch.zeros(outputs, dtype=torch.int32)
    most = min(height, max(FEWEST, ROUNDED // (width * inputs)))
    scaled = torch.empty(most + 2, width, inputs)
    held = scaled if before is None else torch.empty_like(scaled)
    padded = torch.empty(most + 2, width + 2, inputs, dtype=torch.uint8)
    for place, image in enumerate(x.permute(0, 2, 3, 1)):
        seen = held
        for top in range(0, height, most):
            rows = slice(top, min(top + most, height))
            above, count = int(top > 0), rows.stop - top
            given = image[top - above : rows.stop + 1]
            if before is None:
                seen = given
            else:
                held[: 2 * above] = seen[len(seen) - 2 * above :]  # the last stripe's last two rows
                seen = held[: len(given)]
                seen[2 * above :] = before(given[2 * above :])
            seen = seen.float()
            ends = _range(seen)
            if ends is None:
                real = (weight.flatten(1) * scale[:, None]).view(weight.shape)
                beside = F.pad(seen, (0, 0, 1, 1, 1 - above, count + 1 + above - len(seen)))
                yield place, rows, F.conv2d(beside[None].permute(0, 3, 1, 2), real, offset)
                continue
            step, zero = _rounded(seen, *ends, scaled, padded[1 - above :])
            padded[: 1 - above] = padded[1 - above + len(seen) : count + 2] = zero
            made = torch.ops.onednn.qconv_pointwise(
                *(padded[None, : count + 2].permute(0, 3, 1, 2), step, 0, packed, scale),
                *(no_zeros, offset - of_one * (step * zero), *GRID),
                *(1.0, 0, torch.float32, "none", [], None),
            )
            yield place, rows, made


def _range(rows: Tensor) -> tuple[float, float] | None:
    """From where to where ``n w inputs`` and zero go; None where few channels use it."""
    low, high = rows.amin((0, 1)).clamp_(max=0), rows.amax((0, 1)).clamp_(min=0)
    lowest, highest = float(low.min()), float(high.max())
    if float((high - low).median()) * STEPS < USED * (highest - lowest):
        return None
    return lowest, highest


def _rounded(
    rows: Tensor, low: float, high: float, scaled: Tensor, padded: Tensor
) -> tuple[float, int]:
    """Write ``n w inputs`` to ``padded``, between columns of zeros; the step and zero's level."""
    step = max((high - low) / STEPS, SMALLEST)
    zero = round(-low / step) if step < float("inf") else 0
    # To whole numbers is towards zero, and none is negative.
    moved = torch.add(torch.tensor(zero + 0.5), rows, alpha=1 / step, out=scaled[: len(rows)])
    padded[: len(rows), 1:-1] = moved
    padded[: len(rows), 0] = padded[: len(rows), -1] = zero
    return step, zero


def _of_doubled(conv: Int8Layer) -> tuple[Tensor, Tensor]:
    """Int8 ``4 outputs, inputs 2 2`` and scales: what falls on each of a value's four places."""
    taps = conv.weight.permute(0, 2, 3, 1).to(torch.float32, memory_format=torch.contiguous_format)
    taps.mul_(conv.weight_scale[:, :, None, None])
    places = [_pairs(_pairs(taps, 1, down), 2, across) for down in (0, 1) for across in (0, 1)]
    levels, scale = round_weight(torch.cat(places), name="taps of a doubled map")
    return levels.permute(0, 3, 1, 2), scale


def _pairs(taps: Tensor, dim: int, odd: int) -> Tensor:
    """Three taps over values seen twice are two: of a pair's first place, or of its second."""
    first, middle, last = taps.unbind(dim)
    both = (first + middle, last) if odd else (first, middle + last)
    return torch.stack(both, dim)
