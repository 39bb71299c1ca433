"""Functions of single positions, computed for a few rows of a map at a time.

Their intermediate results stay in a processor's cache, and none of them takes the memory of a map.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sanakit.nn.ways import CACHED, infers_on_cpu, is_unhooked
from sanakit.shapes import AnyMap


def by_rows(function: Callable[..., Tensor], *maps: AnyMap, into: AnyMap | None = None) -> AnyMap:
    """Give ``function(*maps)``, which sees no row of a map beside its own.

    The maps may be of several heights, each a multiple of the least, of which the result has the
    first. ``into`` takes the result where memory may be overwritten, see `own`; it may be the first
    map. Where a graph is recorded, or not on a CPU, the function is just called.
    """
    first = maps[0]
    height = min(each.shape[-2] for each in maps)
    row = sum(each[0].numel() for each in maps) // max(1, height)
    step = max(1, CACHED * torch.get_num_threads() // max(1, row))
    if not all(map(infers_on_cpu, maps)) or (len(first) == 1 and step >= height):
        return function(*maps)
    out = into
    for sample in range(len(first)):
        for top in range(0, height, step):
            parts = [_rows(each, sample, top, step, height) for each in maps]
            made = function(*parts)
            if out is None:
                shape = (len(first), made.shape[1], *first.shape[-2:])
                out = torch.empty(shape, dtype=made.dtype, memory_format=torch.channels_last)
            elif made.dtype != out.dtype:
                return function(*maps)
            _rows(out, sample, top, step, height).copy_(made)
    assert out is not None
    return out


def own(layer: nn.Module, y: AnyMap, kind: type[nn.Module] = nn.Conv2d) -> AnyMap | None:
    """What a layer gave, if nobody else can hold it: ``into`` for what follows.

    A hook may keep it, and a layer of another kind may give what it was given.
    """
    return y if isinstance(layer, kind) and is_unhooked(layer) else None


def _rows(x: Tensor, sample: int, top: int, count: int, height: int) -> Tensor:
    """Rows of one sample, counted on a map of that height."""
    times = x.shape[-2] // height
    return x[sample : sample + 1, :, times * top : times * (top + count)]
