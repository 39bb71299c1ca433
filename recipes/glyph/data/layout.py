"""Where the things of a composite stand: cells that do not touch, and boxes inside them.

Everything is in parts of the picture's side. A box is ``(left, top, width, height)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from recipes.glyph.data.rasterize import Box

Arrangement = Literal["across", "down", "scattered"]
"""Left to right, top to bottom, or neither: quarters of the picture, or one place anywhere."""

EDGE = 0.03  # room between a cell and the picture's border
GAP = 0.04  # room between two cells
_BAND = {1: 0.9, 2: 0.66, 3: 0.46, 4: 0.36}  # how much of the other direction cells of a row take
_LARGEST = 0.9  # of a picture that is mostly margin, enlarged no further than this
_FILL = (0.78, 1.0)  # how much of its cell a thing takes
_SMALL = (0.36, 0.48)  # a small thing's longer side, as a part of a big one's


def cells(count: int, arrangement: Arrangement, rng: np.random.Generator) -> list[Box]:
    """Cells for ``count`` things, 4 at most, in reading order; none touches another."""
    if arrangement == "scattered":
        return _quarters(count, rng) if count > 1 else [_anywhere(rng)]
    band = _BAND[count]
    other = rng.uniform(EDGE, 1 - EDGE - band)
    uneven = rng.uniform(-0.07, 0.07) if count == 2 else 0.0
    side = (1 - 2 * EDGE - (count - 1) * GAP) / count
    found = []
    start = EDGE
    for index in range(count):
        length = side + (uneven if index == 0 else -uneven)
        across = (start, other, length, band)
        found.append(across if arrangement == "across" else (other, start, band, length))
        start += length + GAP
    return found


def _anywhere(rng: np.random.Generator) -> Box:
    side = rng.uniform(0.45, 0.9)
    left, top = rng.uniform(EDGE, 1 - EDGE - side, 2)
    return float(left), float(top), side, side


def _quarters(count: int, rng: np.random.Generator) -> list[Box]:
    side = (1 - 2 * EDGE - GAP) / 2
    chosen = sorted(rng.permutation(4)[:count].tolist())
    starts = (EDGE, EDGE + side + GAP)
    return [(starts[quarter % 2], starts[quarter // 2], side, side) for quarter in chosen]


def largest(box: Box, cell: Box) -> float:
    """How large a picture may be drawn for its visible ``box`` to fit into a cell."""
    return min(cell[2] / box[2], cell[3] / box[3], _LARGEST)


def fill(rng: np.random.Generator) -> float:
    """How much of its cell a thing takes."""
    return float(rng.uniform(*_FILL))


def small_scale(box: Box, cell: Box, big: Box, big_scale: float, rng: np.random.Generator) -> float:
    """How large a picture is drawn for its thing to look small beside a big one."""
    longer = max(big[2:]) * big_scale * rng.uniform(*_SMALL)
    return min(longer / max(box[2:]), largest(box, cell))


def place(box: Box, cell: Box, scale: float, rng: np.random.Generator) -> Box:
    """A place inside the cell for the visible ``box`` of a picture drawn so large."""
    width, height = box[2] * scale, box[3] * scale
    spare_x, spare_y = max(0.0, cell[2] - width), max(0.0, cell[3] - height)
    left = cell[0] + spare_x * float(rng.random())
    top = cell[1] + spare_y * float(rng.random())
    return left, top, width, height


def apart(boxes: Sequence[Box]) -> bool:
    """Whether no two boxes share any area."""
    return not any(
        one[0] < other[0] + other[2]
        and other[0] < one[0] + one[2]
        and one[1] < other[1] + other[3]
        and other[1] < one[1] + one[3]
        for index, one in enumerate(boxes)
        for other in boxes[:index]
    )
