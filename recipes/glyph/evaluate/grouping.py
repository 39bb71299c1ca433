"""Parts of a picture become things: which belong together, and how many alike there are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage
from scipy.sparse import csgraph

from recipes.glyph.evaluate.segmentation import Part, gaps, joined, label

SPECK = 0.04  # of everything drawn: a smaller part is no thing of its own
NEAR = 0.02  # of the side: parts no farther apart are one thing
FAR = 0.15  # of the side: parts farther apart are no one thing
LONE = 0.5  # likeness that several pieces must beat, not to be one thing
FIRST = 0.05  # likeness by which any other way to count must beat the first
COPIES = 0.75  # likeness of two things that touch
BRIDGE = 0.012  # of the side: two copies may touch by what is no thicker than twice this
CORE = 0.1  # of a thing without its border: a smaller piece is a corner, no copy
_RASTER = 24


def two_things(parts: Sequence[Part]) -> list[list[Part]]:
    """Ways to see parts as two things, the likeliest first; none if there is only one part.

    Those nearest to each other belong together; or all on one side of the widest gap that goes
    straight through the picture. Where the ways agree there is one.
    """
    found: list[list[Part]] = []
    seen: set[frozenset[tuple[float, ...]]] = set()
    for option in (_by_nearness(parts), _by_gap(parts, 0), _by_gap(parts, 1)):
        key = frozenset(part.box for part in option)
        if len(option) == 2 and key not in seen:
            seen.add(key)
            found.append(option)
    return found


def _by_nearness(parts: Sequence[Part]) -> list[Part]:
    found = _without_specks(parts)
    while len(found) > 2:
        apart = gaps(found)
        np.fill_diagonal(apart, np.inf)
        one, other = divmod(int(apart.argmin()), len(found))
        rest = [part for number, part in enumerate(found) if number not in (one, other)]
        found = [joined([found[one], found[other]]), *rest]
    return found


def _by_gap(parts: Sequence[Part], axis: int) -> list[Part]:
    """The parts before and after the widest straight gap across (0) or down (1)."""
    order = sorted(parts, key=lambda part: part.box[axis])
    ends = np.maximum.accumulate([part.box[axis + 2] for part in order])
    total = sum(part.area for part in order)
    best, cut = 0.0, 0
    for number in range(1, len(order)):
        share = sum(part.area for part in order[:number]) / total
        gap = order[number].box[axis] - float(ends[number - 1])
        if gap > best and SPECK <= share <= 1 - SPECK:
            best, cut = gap, number
    return [joined(order[:cut]), joined(order[cut:])] if cut else []


def copies(parts: Sequence[Part], side: int) -> list[Part]:
    """Parts as things of one kind: what is near is one; what is unlike is joined until it is alike.

    Of a thing in pieces, all copies are in the same pieces: joining the nearest first comes to a
    point where whole copies are left, which are alike as the pieces were not. Things that touch
    are parted again where the parts are copies of each other. ``side`` is the picture's, pixels.
    """
    whole = _without_specks(parts)
    if not whole:
        return []
    apart = gaps(whole)
    start = _linked(whole, apart, NEAR * side)
    # What the eye counts first: other ways must be clearly better.
    options = [(likeness(start) + FIRST, start)]
    options.append((likeness(split := _parted(start, side)), split))
    for level in sorted({float(gap) for gap in apart[np.triu_indices(len(whole), 1)]}):
        if NEAR * side < level <= FAR * side:
            found = _linked(whole, apart, level)
            options.append((likeness(found), found))
    return max(options, key=lambda option: option[0])[1]


def likeness(things: Sequence[Part]) -> float:
    """How alike things are in shape and size, in [0, 1]: 1 is copies, `LONE` a thing alone."""
    if len(things) < 2:
        return LONE
    areas = [one.area for one in things]
    shapes = [_raster(one) for one in things]
    sizes = np.array([[one.box[2] - one.box[0], one.box[3] - one.box[1]] for one in things])
    found = []
    for one, other in combinations(range(len(things)), 2):
        pair = sizes[[one, other]]
        size = float((pair.min(axis=0) / pair.max(axis=0)).min())
        area = min(areas[one], areas[other]) / max(areas[one], areas[other])
        found.append(_overlap(shapes[one], shapes[other]) * min(size, area))
    return float(np.mean(found))


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
    _, group = csgraph.connected_components(apart <= level, directed=False)
    numbers = group.tolist()
    return [
        joined([part for part, number in zip(parts, numbers, strict=True) if number == one])
        for one in dict.fromkeys(numbers)
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
        copied = len(pieces) > 1 and likeness(pieces) >= COPIES and not mirrored
        found += pieces if copied else [thing]
    return found


def _cut(thing: Part, radius: int) -> list[Part]:
    """What is left of a thing in pieces, if its border is taken away and given back."""
    left, top, right, bottom = (int(edge) for edge in thing.box)
    edge = radius + 1
    mask = np.zeros((bottom - top + 2 * edge, right - left + 2 * edge), dtype=bool)
    mask[thing.pixels[:, 0] - top + edge, thing.pixels[:, 1] - left + edge] = True
    labels = label(ndimage.binary_erosion(mask, iterations=radius))
    areas = np.bincount(labels.ravel())
    pieces = []
    for number in range(1, len(areas)):
        if areas[number] < CORE * areas[1:].sum():
            continue
        piece = ndimage.binary_dilation(labels == number, iterations=radius, mask=mask)
        pieces.append(Part(np.argwhere(piece) + np.array([top - edge, left - edge])))
    return pieces


def _raster(thing: Part) -> npt.NDArray[np.float32]:
    """The shape of a thing in its box, on a fixed grid; 1 is inside."""
    left, top, right, bottom = (int(edge) for edge in thing.box)
    mask = np.zeros((bottom - top, right - left), dtype=np.uint8)
    mask[thing.pixels[:, 0] - top, thing.pixels[:, 1] - left] = 255
    small = Image.fromarray(mask).resize((_RASTER, _RASTER), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / np.float32(255)


def _overlap(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """Intersection over union of two shapes in [0, 1]."""
    return float(np.minimum(one, other).sum() / max(np.maximum(one, other).sum(), 1e-6))
