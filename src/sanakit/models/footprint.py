"""Estimate how much memory a chain of steps takes, before it is run: activations, not weights.

Each step says how many values live at once for a position of its finer grid; what is added here is
how many positions there are. benchmarks/decoding.py compares it with what a process really takes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sanakit.models.tiling import (
    Layer,
    Place,
    Step,
    Tiling,
    result_size,
    segments,
    spans_needed,
    tile_size,
)
from sanakit.shapes import Map


def whole_bytes(steps: Sequence[Step], x: Map) -> int:
    """Most bytes at once when the chain is run whole; ``x`` may be on the meta device."""
    size = (x.shape[-2], x.shape[-1])
    peak = 0.0
    for step in steps:
        positions = size[0] * size[1]
        if isinstance(step, Layer):
            size = step.size(size[0]), step.size(size[1])
            positions = max(positions, size[0] * size[1])
        peak = max(peak, positions * _values_bytes(step, x.dtype))
    return round(peak * x.shape[0])


def tiled_bytes(steps: Sequence[Step], x: Map, tiling: Tiling) -> int:
    """Most bytes at once when it is run tile by tile; the place for the result comes on top."""
    height, width = result_size(steps, x)
    picture = (max(x.shape[-2], height), max(x.shape[-1], width))
    batch, element = x.shape[0], x.element_size()
    peak = 0.0
    *_, last = parts = segments(steps)
    for segment in parts:
        height, width = result_size(segment, x)
        cut = tile_size(segment, x, tiling, picture)
        held = x.numel() * element
        if segment is not last:
            held += batch * segment[-1].channels * height * width * element
        if isinstance(segment[0], Layer):
            middle = (_middle(height, cut[0]), _middle(width, cut[1]))
            layers = [step for step in segment if isinstance(step, Layer)]
            places = spans_needed(layers, x, *middle)
            work = max(
                max(_area(before), _area(after)) * _values_bytes(layer, x.dtype)
                for layer, before, after in zip(layers, places, places[1:], strict=False)
            )
        else:
            around = 2 * segment[0].module.reach
            positions = min(height, cut[0] + around) * min(width, cut[1] + around)
            work = positions * _values_bytes(segment[0], x.dtype)
        peak = max(peak, held + batch * work)
        x = torch.empty(
            batch, segment[-1].channels, height, width, dtype=x.dtype, device=torch.device("meta")
        )
    return round(peak)


def _values_bytes(step: Step, dtype: torch.dtype) -> float:
    return step.storage_values * dtype.itemsize + step.fp32_values * 4


def _middle(length: int, cut: int) -> tuple[int, int]:
    """A tile with context on both sides, where the map has room for one."""
    start = max(0, (length - cut) // 2)
    return start, min(length, start + cut)


def _area(place: Place) -> int:
    rows, columns = place
    return (rows[1] - rows[0]) * (columns[1] - columns[0])
