"""Exact tiles: a chain of steps run part by part, and the memory that it takes, before it is run.

Memory is of activations, not of weights. Each step says how many values live at once for a
position of its finer grid; what is added here is how many positions there are.
benchmarks/decoding.py compares it with what a process really takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sanakit.errors import ConfigError
from sanakit.shapes import AnyMap, Grid, Map

Span = tuple[int, int]
Place = tuple[Span, Span]
FEWEST_ROWS = 8
"""Coarse tiles are no smaller: theirs is a small part of the memory, and context would dominate."""
WHOLE = 1 << 30


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut. All four are pixels.

    A side longer than ``tile_sample_min_*`` is cut into tiles that advance by
    ``tile_sample_stride_*``. Where ``exact``, a tile is its stride, the context around it is as
    deep as the network needs, and nothing is blended. Otherwise tiles are decoded on their own and
    blended where they overlap, by minimum less stride: less memory, and tones may differ.
    """

    tile_sample_min_height: int = 512
    tile_sample_min_width: int = 512
    tile_sample_stride_height: int = 448
    tile_sample_stride_width: int = 448
    exact: bool = True

    def __post_init__(self) -> None:
        for side in ("height", "width"):
            least = getattr(self, f"tile_sample_min_{side}")
            stride = getattr(self, f"tile_sample_stride_{side}")
            for name, value in ((f"min_{side}", least), (f"stride_{side}", stride)):
                if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                    raise ConfigError(
                        f"tile_sample_{name}={value!r} must be a whole number of pixels, at least 1"
                    )
            if stride > least:
                raise ConfigError(
                    f"tile_sample_stride_{side}={stride} leaves gaps between tiles of {least}",
                    hint=f"{least * 7 // 8 or 1} overlaps by an eighth",
                )

    @classmethod
    def rows(cls, height: int) -> Tiling:
        """Exact stripes of the whole width."""
        return cls.squares(height, WHOLE)

    @classmethod
    def squares(cls, height: int, width: int) -> Tiling:
        """Exact tiles of one size."""
        return cls(
            tile_sample_min_height=height,
            tile_sample_min_width=width,
            tile_sample_stride_height=height,
            tile_sample_stride_width=width,
        )

    def cuts(self, height: int, width: int) -> bool:
        """Whether a picture of that size is cut at all."""
        return height > self.tile_sample_min_height or width > self.tile_sample_min_width

    def minimum(self, unit: int) -> Grid:
        """Tile size in units of so many pixels."""
        return self.tile_sample_min_height // unit, self.tile_sample_min_width // unit

    def advance(self, unit: int) -> Grid:
        """Stride likewise."""
        return self.tile_sample_stride_height // unit, self.tile_sample_stride_width // unit

    def require_multiples(self, unit: int) -> None:
        """Refuse sizes that cannot be cut from a latent."""
        for name in ("min_height", "min_width", "stride_height", "stride_width"):
            value = getattr(self, f"tile_sample_{name}")
            if value % unit:
                raise ConfigError(
                    f"tile_sample_{name}={value} is not a multiple of {unit}",
                    hint=f"use {max(unit, round(value / unit) * unit)}, or exact tiles",
                )

    def stride(self, height: int, width: int) -> Grid:
        """How far tiles of that picture advance, each side at most the picture's."""
        return (
            self.tile_sample_stride_height if height > self.tile_sample_min_height else height,
            self.tile_sample_stride_width if width > self.tile_sample_min_width else width,
        )


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A step that sees ``reach`` positions around its own, on the coarser of its two grids."""

    run: Callable[[Tensor], Tensor]
    channels: int
    """Of the result."""
    reach: int = 1
    up: int = 1
    down: int = 1
    storage_values: float = 0
    """Most values that live at once in the storage dtype, for a position of the finer grid."""
    fp32_values: float = 0
    """The same for values that are fp32 whatever the storage dtype, at the same moment."""
    frugal_values: float | None = None
    """Those in the storage dtype where layers run by rows and in place; None where none do."""

    def size(self, length: int) -> int:
        """Side of the result for a side of the input."""
        return length * self.up // self.down

    def needs(self, span: Span, limit: int) -> Span:
        """Input positions for those results; ``limit`` is the length of the input."""
        low = (span[0] // self.up - self.reach) * self.down
        high = (-(-span[1] // self.up) + self.reach) * self.down
        return max(0, low), min(limit, high)


class GlobalAttention(Protocol):
    """Attention that reads all positions through one sum."""

    @property
    def reach(self) -> int:
        """Positions around its own that :meth:`project` sees."""

    def sums(self, positions: int) -> bool:
        """Whether a map of so many positions is attended through the sum."""

    def project(self, x: Map) -> AnyMap:
        """Queries, keys and values."""

    def summarise(self, qkv: Map) -> Tensor:
        """The sum over those positions; sums of parts add up."""

    def read(self, x: Map, qkv: Map, summary: Tensor) -> Map:
        """The block's result at those positions, given the sum over all."""

    def __call__(self, x: Map) -> Map:
        """All of it at once."""


@dataclass(frozen=True, kw_only=True)
class Attend:
    """A step that sees the whole map."""

    module: GlobalAttention
    channels: int
    storage_values: float = 0
    fp32_values: float = 0


Step = Layer | Attend


class Tile(NamedTuple):
    """A finished part of the result."""

    rows: slice
    columns: slice
    values: Tensor


def tiles(steps: Sequence[Step], x: Map, tiling: Tiling) -> Iterator[Tile]:
    """Give the result of the chain part by part; every position is given once.

    Held at once: the maps around the last attention step, then the last of them and one tile with
    its context. ``steps`` ends with a `Layer`.
    """
    size = result_size(steps, x)
    picture = (max(x.shape[-2], size[0]), max(x.shape[-1], size[1]))
    *coarse, last = segments(steps)
    for segment in coarse:
        x = _whole(segment, x, tiling, picture)
    yield from _local_tiles(last, x, tile_size(last, x, tiling, picture))


def assemble(steps: Sequence[Step], x: Map, tiling: Tiling) -> AnyMap:
    """Run the chain tile by tile into one map."""
    channels, size = steps[-1].channels, result_size(steps, x)
    return _collect(tiles(steps, x, tiling), x.new_empty(x.shape[0], channels, *size))


def segments(steps: Sequence[Step]) -> list[list[Step]]:
    """Cut a chain into single attention steps and the longest runs of local steps between them."""
    found: list[list[Step]] = []
    for step in steps:
        if found and isinstance(step, Layer) and isinstance(found[-1][-1], Layer):
            found[-1].append(step)
        else:
            found.append([step])
    return found


def result_size(steps: Sequence[Step], x: Map) -> Grid:
    """Height and width of what the chain makes of ``x``."""
    height, width = x.shape[-2:]
    for step in steps:
        if isinstance(step, Layer):
            height, width = step.size(height), step.size(width)
    return height, width


def tile_size(segment: Sequence[Step], x: Map, tiling: Tiling, picture: Grid) -> Grid:
    """A tile's size on the grid of the segment's result."""
    size, stride = result_size(segment, x), tiling.stride(*picture)
    height, width = (
        max(min(FEWEST_ROWS, side), -(-step * side // whole))
        for step, side, whole in zip(stride, size, picture, strict=True)
    )
    return height, width


def spans_needed(layers: Sequence[Layer], x: Map, rows: Span, columns: Span) -> list[Place]:
    """Where every layer's input has to be known, and last the result, for that part of it."""
    sizes: list[Grid] = [(x.shape[-2], x.shape[-1])]
    for layer in layers[:-1]:
        sizes.append((layer.size(sizes[-1][0]), layer.size(sizes[-1][1])))
    places = [(rows, columns)]
    for layer, (height, width) in zip(reversed(layers), reversed(sizes), strict=True):
        high, wide = places[-1]
        places.append((layer.needs(high, height), layer.needs(wide, width)))
    return places[::-1]


def _whole(segment: Sequence[Step], x: Map, tiling: Tiling, picture: Grid) -> AnyMap:
    cut = tile_size(segment, x, tiling, picture)
    size = result_size(segment, x)
    if cut[0] >= size[0] and cut[1] >= size[1]:
        for step in segment:
            x = step.run(x) if isinstance(step, Layer) else step.module(x)
        return x
    out = x.new_empty(x.shape[0], segment[-1].channels, *size)
    if isinstance(segment[0], Attend):
        return _collect(_attention_tiles(segment[0].module, x, cut), out)
    return _collect(_local_tiles(segment, x, cut), out)


def _spans(length: int, step: int) -> list[Span]:
    return [(start, min(start + step, length)) for start in range(0, length, step)]


def _cut(x: Tensor, rows: Span, columns: Span, origin: Grid = (0, 0)) -> Tensor:
    top, left = origin
    return x[..., rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left]


def _collect(parts: Iterator[Tile], out: Tensor) -> Tensor:
    for part in parts:
        out[:, :, part.rows, part.columns] = part.values
    return out


def _local_tiles(segment: Sequence[Step], x: Map, cut: Grid) -> Iterator[Tile]:
    layers = [step for step in segment if isinstance(step, Layer)]
    height, width = result_size(segment, x)
    for rows, columns in product(_spans(height, cut[0]), _spans(width, cut[1])):
        have, *wanted = spans_needed(layers, x, rows, columns)
        part = _cut(x, *have)
        for layer, want in zip(layers, wanted, strict=True):
            # The edge of the part was padded like the edge of a picture; what that spoilt is cut.
            origin = (layer.size(have[0][0]), layer.size(have[1][0]))
            part = _cut(layer.run(part), *want, origin)
            have = want
        yield Tile(slice(*rows), slice(*columns), part)


def _attention_tiles(module: GlobalAttention, x: Map, cut: Grid) -> Iterator[Tile]:
    height, width = x.shape[-2:]
    if not module.sums(height * width):
        yield Tile(slice(0, height), slice(0, width), module(x))
        return

    def projected(rows: Span, columns: Span) -> Tensor:
        top, left = max(0, rows[0] - module.reach), max(0, columns[0] - module.reach)
        around = x[..., top : rows[1] + module.reach, left : columns[1] + module.reach]
        return _cut(module.project(around), rows, columns, (top, left))

    places = list(product(_spans(height, cut[0]), _spans(width, cut[1])))
    summary = module.summarise(projected(*places[0]))
    for place in places[1:]:
        summary = summary + module.summarise(projected(*place))
    for place in places:
        values = module.read(_cut(x, *place), projected(*place), summary)
        yield Tile(slice(*place[0]), slice(*place[1]), values)


def blended(
    run: Callable[[Tensor], Tensor],
    x: Map,
    *,
    tile: Grid,
    stride: Grid,
    scale: Callable[[int], int],
    channels: int,
) -> AnyMap:
    """Run overlapping tiles on their own and blend them linearly; fp32, and only nearly exact.

    Each tile has full size, the last ones are moved inwards. The outer quarter of an overlap is
    context: it is run and thrown away.

    Args:
        run: what makes a tile's result.
        x: the input.
        tile: size of a tile in positions of the input.
        stride: how far tiles advance, likewise.
        scale: positions of the result for positions of the input.
        channels: of the result.
    """
    height, width = x.shape[-2:]
    out = x.new_zeros(x.shape[0], channels, scale(height), scale(width), dtype=torch.float32)
    down, across = (
        _windows(length, min(side, length), step, scale)
        for length, side, step in zip((height, width), tile, stride, strict=True)
    )
    for (rows, tall), (columns, wide) in product(down, across):
        part = run(_cut(x, rows, columns)).float()
        weight = tall[:, None].to(part) * wide.to(part)
        place = _cut(out, (scale(rows[0]), scale(rows[1])), (scale(columns[0]), scale(columns[1])))
        place += part * weight
    return out


def _windows(
    length: int, side: int, step: int, scale: Callable[[int], int]
) -> list[tuple[Span, Tensor]]:
    """Tiles of one axis, and weights over each one's result that sum to one everywhere."""
    starts = list(range(0, max(1, length - side), step))
    if starts[-1] + side < length:
        starts.append(length - side)
    spans = [(start, start + side) for start in starts]
    total = torch.zeros(scale(length))
    shapes = []
    for index, (low, high) in enumerate(spans):
        shape = torch.ones(scale(side))
        position = torch.arange(scale(side)) + 0.5
        if index:
            shape = torch.minimum(shape, _ramp(position, scale(spans[index - 1][1] - low)))
        if index + 1 < len(spans):
            overlap = scale(high - spans[index + 1][0])
            shape = torch.minimum(shape, _ramp(scale(side) - position, overlap))
        shapes.append(shape)
        total[scale(low) : scale(high)] += shape
    return [
        (span, shape / total[scale(span[0]) : scale(span[1])])
        for span, shape in zip(spans, shapes, strict=True)
    ]


def _ramp(position: Tensor, overlap: int) -> Tensor:
    """From 0 to 1 over the middle half of an overlap, never quite 0 where no other tile may be."""
    if overlap <= 0:
        return torch.ones_like(position)
    return ((position - overlap / 4) / (overlap / 2)).clamp(1e-6, 1.0)


def whole_bytes(steps: Sequence[Step], x: Map, *, frugal: bool = False) -> int:
    """Most bytes at once when the chain is run whole; ``x`` may be on the meta device.

    ``frugal`` is by rows and in place, as layers run on a CPU that nothing is hooked to.
    """
    size = (x.shape[-2], x.shape[-1])
    peak = 0.0
    for step in steps:
        positions = size[0] * size[1]
        if isinstance(step, Layer):
            size = step.size(size[0]), step.size(size[1])
            positions = max(positions, size[0] * size[1])
        peak = max(peak, positions * _values_bytes(step, x.dtype, frugal))
    return round(peak * x.shape[0])


def tiled_bytes(steps: Sequence[Step], x: Map, tiling: Tiling, *, frugal: bool = False) -> int:
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
                max(_area(before), _area(after)) * _values_bytes(layer, x.dtype, frugal)
                for layer, before, after in zip(layers, places, places[1:], strict=False)
            )
        else:
            around = 2 * segment[0].module.reach
            positions = min(height, cut[0] + around) * min(width, cut[1] + around)
            work = positions * _values_bytes(segment[0], x.dtype, frugal)
        peak = max(peak, held + batch * work)
        x = torch.empty(
            batch, segment[-1].channels, height, width, dtype=x.dtype, device=torch.device("meta")
        )
    return round(peak)


def _values_bytes(step: Step, dtype: torch.dtype, frugal: bool) -> float:
    values = step.storage_values
    if frugal and isinstance(step, Layer) and step.frugal_values is not None:
        values = step.frugal_values
    return values * dtype.itemsize + step.fp32_values * 4


def _middle(length: int, cut: int) -> tuple[int, int]:
    """A tile with context on both sides, where the map has room for one."""
    start = max(0, (length - cut) // 2)
    return start, min(length, start + cut)


def _area(place: Place) -> int:
    rows, columns = place
    return (rows[1] - rows[0]) * (columns[1] - columns[0])
