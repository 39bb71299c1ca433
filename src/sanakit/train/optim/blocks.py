"""Eight bits for a value: codes with a scale for every block of a row.

Blocks never cross a row, so a matrix that is sharded by rows takes its scales along, and a state
saved on one number of ranks loads on another without a change. A row's last block may be shorter.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 16_384
"""Tensors of at most so many values keep 32 bits: they are little, and often the delicate ones."""
NARROWEST = 32
"""Nor is a row of fewer values worth the scales of its own."""
TINY = torch.finfo(torch.float32).tiny
SIGNED_LEVELS = 127
UNSIGNED_LEVELS = 255


def fits_eight_bits(shape: torch.Size) -> bool:
    """Whether a tensor of this shape, of all ranks together, is worth quantizing."""
    numel = shape.numel()
    return len(shape) > 1 and numel > SMALLEST and numel // shape[0] >= NARROWEST


def block_count(width: int, block: int) -> int:
    """Blocks of a row; the last may be ragged."""
    return -(-width // block)


def in_blocks(x: Tensor, block: int) -> list[Tensor]:
    """View ``rows width`` as ``rows blocks block``: the whole blocks, then the ragged one."""
    width = x.shape[1]
    whole = width - width % block
    views = [x[:, :whole].unflatten(1, (-1, block))] if whole else []
    return views + ([x[:, None, whole:]] if whole < width else [])


def _scales(scale: Tensor, width: int, block: int) -> list[Tensor]:
    """The scales of each of the views that :func:`in_blocks` gives."""
    whole, ragged = divmod(width, block)
    views = [scale[:, :whole, None]] if whole else []
    return views + ([scale[:, whole:, None]] if ragged else [])


def encode_range(x: Tensor, codes: Tensor, low: Tensor, scale: Tensor, *, block: int) -> None:
    """Round to 256 even steps from a block's least value to its largest.

    ``x`` fp32 ``rows width``; written are ``codes`` uint8 of its shape, ``low`` and ``scale`` fp32
    ``rows blocks``. What :func:`decode_range` gives back is off by half a ``scale`` at most. A
    block of equal values, zeros too, has scale 0 and comes back exactly.
    """
    blocks = zip(
        in_blocks(x, block),
        in_blocks(codes, block),
        _scales(low, x.shape[1], block),
        _scales(scale, x.shape[1], block),
        strict=True,
    )
    for values, code, least, step in blocks:
        # Two vectorised passes: CPUs take aminmax value by value.
        smallest, largest = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
        least.copy_(smallest)
        # A step below fp32's normal numbers has no inverse: it is as good as none.
        even = (largest - smallest).div_(UNSIGNED_LEVELS)
        step.copy_(even.mul_(even >= TINY))
        offsets = (values - smallest).mul_(_inverse(step)).round_()
        code.copy_(offsets.clamp_(max=UNSIGNED_LEVELS))


def decode_range(codes: Tensor, low: Tensor, scale: Tensor, *, block: int) -> Tensor:
    """Undo :func:`encode_range`: fp32 ``rows width``."""
    out = codes.float()
    lows, steps = (_scales(part, codes.shape[1], block) for part in (low, scale))
    for values, least, step in zip(in_blocks(out, block), lows, steps, strict=True):
        values.mul_(step).add_(least)
    return out


def encode_signed(x: Tensor, codes: Tensor, scale: Tensor, *, block: int) -> None:
    """Round the root of |x|, relative to the block's largest, to 127 steps a side.

    The root spends its steps on small values: the first is 6e-5 of the largest. ``codes`` int8.
    """
    for values, code, largest in _all(x, codes, scale, block):
        magnitude = values.abs()
        largest.copy_(magnitude.amax(dim=-1, keepdim=True))
        magnitude.mul_(_inverse(largest) * SIGNED_LEVELS**2).sqrt_().round_()
        code.copy_(magnitude.copysign_(values))


def decode_signed(codes: Tensor, scale: Tensor, *, block: int) -> Tensor:
    """Undo :func:`encode_signed`: fp32 ``rows width``."""
    out = codes.float()
    out.mul_(out.abs())
    for values, _, largest in _all(out, codes, scale, block):
        values.mul_(largest / SIGNED_LEVELS**2)
    return out


def encode_positive(
    x: Tensor, codes: Tensor, scale: Tensor, *, block: int, threshold: float
) -> None:
    """Bring the fourth root of x, relative to the block's largest, to 255 steps.

    A fraction of a step is rounded up where it is at least ``1 - threshold``: a threshold that
    walks evenly over [0, 1) lets changes much smaller than a step add up instead of being lost.
    Nothing but a block of zeros becomes zero: what is divided by must not vanish. ``codes`` uint8.
    """
    for values, code, largest in _all(x, codes, scale, block):
        largest.copy_(values.amax(dim=-1, keepdim=True))
        # The largest must not miss its own code by fp32's rounding: a little more than 255.
        gain = _inverse(largest) * (UNSIGNED_LEVELS**4 * (1 + 2**-19))
        root = (values * gain).sqrt_().sqrt_()
        code.copy_(root.add_(threshold).clamp_(1, UNSIGNED_LEVELS))  # the cast drops the fraction


def decode_positive(codes: Tensor, scale: Tensor, *, block: int) -> Tensor:
    """Undo :func:`encode_positive`: fp32 ``rows width``."""
    out = codes.float().square_().square_()
    for values, _, largest in _all(out, codes, scale, block):
        values.mul_(largest / UNSIGNED_LEVELS**4)
    return out


def _all(x: Tensor, codes: Tensor, scale: Tensor, block: int) -> zip[tuple[Tensor, Tensor, Tensor]]:
    return zip(
        in_blocks(x, block),
        in_blocks(codes, block),
        _scales(scale, x.shape[1], block),
        strict=True,
    )


def _inverse(largest: Tensor) -> Tensor:
    """One over it; 0 where it is none, so that a block of zeros stays one."""
    return torch.where(largest >= TINY, largest, torch.inf).reciprocal()
