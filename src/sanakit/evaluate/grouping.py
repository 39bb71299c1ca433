"""Parts of a picture become things: which belong together, and how many alike there are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
from PIL import Image

from sanakit.evaluate.segmentation import Part, gaps, joined, label

SPECK = 0.04  # of everything drawn: a smaller part is no thing of its own
NEAR = 0.02  # of the side: parts no farther apart are one thing
FAR = 0.15  # of the side: parts farther apart are no one thing
ALIKE = 0.7  # how much of two copies must agree
SIZES = 0.6  # the smaller of two copies, as a part of the larger
BRIDGE = 0.012  # of the side: two copies may touch by what is no thicker than twice this
_RASTER = 24


def two_things(parts: Sequence[Part]) -> list[Part]:
    """Parts as two things, those nearest to each other joined first; fewer if there are fewer."""
    found = _without_specks(parts)
    while len(found) > 2:
        apart = gaps(found)
        np.fill_diagonal(apart, np.inf)
        one, other = divmod(int(apart.argmin()), len(found))
        rest = [part for number, part in enumerate(found) if number not in (one, other)]
        found = [joined([found[one], found[other]]), *rest]
    return found


def copies(parts: Sequence[Part], side: int) -> list[Part]:
    """Parts as things of one kind: what is near is one; what is unlike is joined until it is alike.

    Of a thing in pieces, all copies are in the same pieces: joining the nearest first comes to a
    point where whole copies are left, which are alike as the pieces were not. Things that touch
    are parted again where the parts are copies of each other. ``side`` is the picture's, pixels.
    """
    whole = _without_specks(parts)
    if len(whole) <= 1:
        return _parted(whole, side)
    apart = gaps(whole)
    levels = sorted({float(gap) for gap in apart[np.triu_indices(len(whole), 1)]})
    start = _linked(whole, apart, NEAR * side)
    if are_alike(start):
        return _parted(start, side)
    for level in levels:
        if NEAR * side < level <= FAR * side:
            found = _linked(whole, apart, level)
            if len(found) < len(start) and are_alike(found):
                return found
    if are_alike(split := [piece for part in start for piece in _parted([part], side)]):
        return split
    return _without_specks(start, least=0.3 / len(start))


def are_alike(things: Sequence[Part]) -> bool:
    """Whether all are copies of one, about the same size and the same shape."""
    if len(things) < 2:
        return True
    sizes = np.array([[one.box[2] - one.box[0], one.box[3] - one.box[1]] for one in things])
    if (sizes.min(axis=0) < SIZES * sizes.max(axis=0)).any():
        return False
    areas = [one.area for one in things]
    if min(areas) < SIZES * max(areas):
        return False
    shapes = [_raster(one) for one in things]
    return all(_overlap(one, other) >= ALIKE for one, other in combinations(shapes, 2))


def _without_specks(parts: Sequence[Part], least: float = SPECK) -> list[Part]:
    """Specks joined to what is nearest to them."""
    total = sum(part.area for part in parts)
    large = [part for part in parts if part.area >= least * total]
    small = [part for part in parts if part.area < least * total]
    if not small or not large:
        return list(parts)
    apart = gaps([*large, *small])[len(large) :, : len(large)]
    groups = [[part] for part in large]
    for part, row in zip(small, apart, strict=True):
        groups[int(row.argmin())].append(part)
    return [joined(group) for group in groups]


def _linked(parts: Sequence[Part], apart: npt.NDArray[np.float32], level: float) -> list[Part]:
    """Parts joined that a chain of gaps of at most ``level`` links."""
    group = list(range(len(parts)))
    for one, other in combinations(range(len(parts)), 2):
        if apart[one, other] <= level and group[one] != group[other]:
            old, new = group[other], group[one]
            group = [new if number == old else number for number in group]
    return [
        joined([part for part, number in zip(parts, group, strict=True) if number == one])
        for one in dict.fromkeys(group)
    ]


def _parted(things: Sequence[Part], side: int) -> list[Part]:
    """Things cut at bridges that are thin, where the pieces are copies of each other."""
    found: list[Part] = []
    for thing in things:
        pieces = _cut(thing, max(1, round(BRIDGE * side)))
        shapes = [_raster(piece) for piece in pieces]
        # A pair of lenses is mirrored, copies are not: only what agrees unmirrored is parted.
        mirrored = all(
            _overlap(one, other[:, ::-1]) >= _overlap(one, other)
            for one, other in combinations(shapes, 2)
        )
        found += pieces if len(pieces) > 1 and are_alike(pieces) and not mirrored else [thing]
    return found


def _cut(thing: Part, radius: int) -> list[Part]:
    """What is left of a thing in pieces, if its border is taken away and given back."""
    left, top, right, bottom = (int(edge) for edge in thing.box)
    edge = radius + 1
    mask = np.zeros((bottom - top + 2 * edge, right - left + 2 * edge), dtype=bool)
    mask[thing.pixels[:, 0] - top + edge, thing.pixels[:, 1] - left + edge] = True
    core = mask
    for _ in range(radius):
        core = core & _shifted(core, all)
    labels = label(core)
    numbers = [n for n in range(1, int(labels.max()) + 1) if (labels == n).sum() >= 0.1 * core.sum()]
    pieces = []
    for number in numbers:
        piece = labels == number
        for _ in range(radius):
            piece = _shifted(piece, any) & mask
        pieces.append(Part(np.argwhere(piece) + [top - edge, left - edge]))
    return pieces


def _shifted(mask: npt.NDArray[np.bool_], rule: object) -> npt.NDArray[np.bool_]:
    """Whether all, or any, of the four neighbours and the pixel itself are set."""
    near = np.stack([mask, *(np.roll(mask, step, axis) for step in (1, -1) for axis in (0, 1))])
    return near.all(axis=0) if rule is all else near.any(axis=0)


def _raster(thing: Part) -> npt.NDArray[np.float32]:
    """The shape of a thing in its box, on a fixed grid; 1 is inside."""
    left, top, right, bottom = (int(edge) for edge in thing.box)
    mask = np.zeros((bottom - top, right - left), dtype=np.uint8)
    mask[thing.pixels[:, 0] - top, thing.pixels[:, 1] - left] = 255
    small = Image.fromarray(mask).resize((_RASTER, _RASTER), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / 255


def _overlap(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """Intersection over union of two shapes in [0, 1]."""
    return float(np.minimum(one, other).sum() / max(np.maximum(one, other).sum(), 1e-6))
