"""What is where in a picture on a plain background: parts, things, known things."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage
from scipy.sparse import csgraph

from recipes.glyph.data.backgrounds import BACKGROUNDS
from recipes.glyph.data.pictures import GlyphPictures, compose
from sanakit.errors import DataError
from sanakit.pipeline.pixels import to_pixels

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Box = tuple[float, float, float, float]

RING = 0.02  # of the side: the border that shows the background
PLAIN = 0.06  # Oklab: a pixel no farther than this from the background belongs to it
SURE = 0.12  # what is nowhere this far from the background is a shadow of noise, no part
PART = 0.0004  # of the picture's area: a smaller part is a speck
MOST_PARTS = 48  # the largest are kept
_OUTLINE = 300  # pixels of an outline that distances are measured between

_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def oklab(rgb: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Lightness and two opponent colours of sRGB ``... 3`` in [0, 1]; distances are as seen.

    Source: Ottosson, "A perceptual color space for image processing" (2020).
    """
    values = np.asarray(rgb, dtype=np.float64)
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return (np.cbrt(linear @ _LMS.T) @ _LAB.T).astype(np.float32)


_NAMES = tuple(BACKGROUNDS)
_KNOWN = oklab(list(BACKGROUNDS.values()))


@dataclass(frozen=True)
class Background:
    """What is behind: its colour in Oklab, its nearest known name, how it compares.

    ``share`` is the part of the border that has this colour; ``apart`` the distance to the name's.
    """

    lab: npt.NDArray[np.float32]
    name: str
    share: float
    apart: float


def find_background(lab: npt.NDArray[np.float32]) -> Background:
    """The colour of most of the border of ``H W 3`` Oklab, whatever else touches it.

    The median over what is near the commonest known colour, so that a thing at the border and
    soft edges do not shift it.
    """
    width = max(1, round(RING * min(lab.shape[:2])))
    inside = np.zeros(lab.shape[:2], dtype=bool)
    inside[width:-width, width:-width] = True
    ring = lab[~inside]
    middle = np.median(ring, axis=0)
    close = np.linalg.norm(ring - middle, axis=1) <= PLAIN
    if close.mean() < 0.5:  # the median of two colours is neither: take the commonest name's
        nearest = np.linalg.norm(ring[:, None] - _KNOWN, axis=2).argmin(axis=1)
        middle = np.median(ring[nearest == np.bincount(nearest).argmax()], axis=0)
        close = np.linalg.norm(ring - middle, axis=1) <= PLAIN
    apart = np.linalg.norm(_KNOWN - middle, axis=1)
    best = int(apart.argmin())
    return Background(
        lab=middle.astype(np.float32),
        name=_NAMES[best],
        share=float(close.mean()),
        apart=float(apart[best]),
    )


@dataclass(frozen=True)
class Part:
    """A connected area: its pixels ``n 2`` as rows and columns, and its place in pixels."""

    pixels: npt.NDArray[np.intp]

    @property
    def area(self) -> int:
        """Pixels."""
        return len(self.pixels)

    @property
    def box(self) -> Box:
        """Left, top, right and bottom."""
        (top, left), (bottom, right) = self.pixels.min(axis=0), self.pixels.max(axis=0) + 1
        return float(left), float(top), float(right), float(bottom)

    @property
    def centre(self) -> tuple[float, float]:
        """Of its box, across and down."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


def label(mask: Mask) -> npt.NDArray[np.int32]:
    """Number the connected areas of ``H W`` from 1, corners connect; 0 is outside."""
    found: npt.NDArray[np.int32] = ndimage.label(mask, structure=np.ones((3, 3)))[0]
    return found


def parts_of(mask: Mask, strength: npt.NDArray[np.float32] | None = None) -> list[Part]:
    """The connected areas of a mask, the largest first, without specks.

    ``strength`` is how far each pixel is from the background; areas that are nowhere `SURE` are
    left out.
    """
    labels = label(mask)
    rows, columns = np.nonzero(labels)
    if not len(rows):
        return []
    of = labels[rows, columns]
    order = np.argsort(of, kind="stable")
    pixels = np.stack([rows, columns], axis=1)[order]
    cuts = np.flatnonzero(np.diff(of[order])) + 1
    found = [Part(one) for one in np.split(pixels, cuts) if len(one) >= PART * mask.size]
    if strength is not None:
        found = [one for one in found if strength[tuple(one.pixels.T)].max() >= SURE]
    return sorted(found, key=lambda part: -part.area)[:MOST_PARTS]


@dataclass(frozen=True)
class Seen:
    """A picture taken apart: its background, how far each pixel is from it, and its parts."""

    pixels: Pixels
    lab: npt.NDArray[np.float32]
    background: Background
    strength: npt.NDArray[np.float32]
    parts: list[Part]


def take_apart(pixels: Pixels) -> Seen:
    """Find the background and the parts of ``H W 3`` uint8."""
    lab = oklab(pixels / np.float32(255))
    background = find_background(lab)
    strength = np.linalg.norm(lab - background.lab, axis=-1)
    return Seen(
        pixels=pixels,
        lab=lab,
        background=background,
        strength=strength,
        parts=parts_of(strength > PLAIN, strength),
    )


def joined(parts: Sequence[Part]) -> Part:
    """One part of several."""
    return parts[0] if len(parts) == 1 else Part(np.concatenate([one.pixels for one in parts]))


def gaps(parts: Sequence[Part]) -> npt.NDArray[np.float32]:
    """The least distance between any two parts in pixels, ``n n``; 0 on the diagonal."""
    outlines = [_outline(part) for part in parts]
    found = np.zeros((len(parts), len(parts)), dtype=np.float32)
    for one in range(len(parts)):
        for other in range(one):
            apart = outlines[one][:, None] - outlines[other]
            least = np.sqrt(np.square(apart).sum(axis=2).min())
            found[one, other] = found[other, one] = least
    return found


def _outline(part: Part) -> npt.NDArray[np.float32]:
    """Some pixels of the border of a part, evenly spread over its rows and columns."""
    rows, columns = part.pixels.T
    ends = []
    for along, across in ((rows, columns), (columns, rows)):
        order = np.lexsort((across, along))
        change = np.flatnonzero(np.diff(along[order]))
        ends += [order[np.append(0, change + 1)], order[np.append(change, len(order) - 1)]]
    chosen = np.unique(np.concatenate(ends))
    # Both ends of every row and column are the whole outline but for hollows, which nothing is in.
    every = max(1, len(chosen) // _OUTLINE)
    return part.pixels[chosen[::every]].astype(np.float32)


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


CROP = 112
"""Pixels of a crop's side: no thing of a composite is drawn much larger."""
MARGIN = 0.06
"""Room around a thing in its crop, as a part of its longer side."""
PAPER = 0.8  # gray: neither white things nor black ones vanish on it
MOST_OF_CONCEPT = 16
"""Pictures of a concept that are known, of as many styles as there are."""
SHAPE = 0.5  # how much the shape counts beside colours and what the network sees
DRAWN = 0.15  # Oklab: what is so far from the paper is fully there
PAINT = 0.1  # Oklab: how far the colours of a thing painted in one colour are from its median
PAINTED = 0.85  # part of a thing that must be so near

Describe = Callable[[Pixels], npt.NDArray[np.float32]]
"""Crops ``b s s 3`` to what is compared of them, ``b d``."""


def crop(seen: Seen, thing: Part) -> Pixels:
    """A thing alone on gray paper, in the middle of a square; ``s s 3``.

    What it encloses counts as its inside. Where that has the background's colour it is white,
    whichever background that was: the white of an eye on white, and the hole of a ring. A thing
    of one colour becomes black, since what it is does not depend on its paint.
    """
    left, top, right, bottom = (int(edge) for edge in thing.box)
    pad = 2
    height, width = seen.strength.shape
    window = (
        slice(max(top - pad, 0), min(bottom + pad, height)),
        slice(max(left - pad, 0), min(right + pad, width)),
    )
    own = np.zeros((height, width), dtype=bool)
    own[tuple(thing.pixels.T)] = True
    own = own[window]
    inside = _enclosed(own)
    near = own.copy()
    for _ in range(pad):  # soft edges
        for axis in (0, 1):
            near |= np.roll(near, 1, axis) | np.roll(near, -1, axis)
    low = PLAIN / 2
    alpha = np.clip((seen.strength[window] - low) / (SURE - low), 0, 1) * near
    paint = seen.pixels[window].astype(np.float32) / 255
    if _is_painted(seen.lab[window][_core(own)]):
        paint = np.zeros_like(paint)
    paint = np.where((inside & ~own)[..., None], 1.0, paint)
    alpha = np.where(inside, np.where(own, np.maximum(alpha, 0.5), 1.0), alpha)[..., None]
    shown = PAPER + alpha * (paint - PAPER)
    side = round(max(shown.shape[:2]) * (1 + 2 * MARGIN))
    square = np.full((side, side, 3), PAPER, dtype=np.float32)
    at = [(side - length) // 2 for length in shown.shape[:2]]
    square[at[0] : at[0] + shown.shape[0], at[1] : at[1] + shown.shape[1]] = shown
    image = Image.fromarray(np.rint(square * 255).astype(np.uint8))
    return np.asarray(image.resize((CROP, CROP), Image.Resampling.BICUBIC), dtype=np.uint8)


def _core(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """What is inside, away from soft edges; all of it if nothing is."""
    inner = mask.copy()
    for axis in (0, 1):
        inner &= np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
    return inner if inner.sum() >= 0.2 * mask.sum() else mask


def _is_painted(lab: npt.NDArray[np.float32]) -> bool:
    return bool((np.linalg.norm(lab - np.median(lab, axis=0), axis=1) <= PAINT).mean() >= PAINTED)


def _enclosed(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The mask and everything that it shuts off from the border."""
    outside = np.pad(~mask, 1, constant_values=True)
    return (label(outside) != label(outside)[0, 0])[1:-1, 1:-1]


def with_plain_looks(describe: Describe) -> Describe:
    """What a network sees and, beside it, plain shape and colours; each of unit length.

    Networks that know photographs take one silhouette for another and know nothing that is blurred;
    shape and colours alone do not know the same thing in another style. What each of them is worth
    was measured: recipes/glyph/evaluation.md.
    """

    def looks(crops: Pixels) -> npt.NDArray[np.float32]:
        parts = [describe(crops), SHAPE * shapes_of(crops), colours_of(crops)]
        parts[0] = _unit(parts[0])
        return np.concatenate(parts, axis=1)

    return looks


def shapes_of(crops: Pixels) -> npt.NDArray[np.float32]:
    """How much each of 24 x 24 areas differs from the paper, without its mean; unit ``b 576``."""
    apart = np.linalg.norm(_areas(crops, 24), axis=-1).reshape(len(crops), -1)
    drawn = np.minimum(apart / DRAWN, 1)
    return _unit(drawn - drawn.mean(axis=1, keepdims=True))


def colours_of(crops: Pixels) -> npt.NDArray[np.float32]:
    """How each of 16 x 16 areas differs from the paper, in Oklab; unit ``b 768``."""
    return _unit(_areas(crops, 16).reshape(len(crops), -1))


def _areas(crops: Pixels, grid: int) -> npt.NDArray[np.float32]:
    small = [Image.fromarray(one).resize((grid, grid), Image.Resampling.BOX) for one in crops]
    lab = oklab(np.stack([np.asarray(one, dtype=np.float32) for one in small]) / 255)
    return lab - oklab([PAPER] * 3)


def _unit(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)).astype(np.float32)


@dataclass(frozen=True)
class KnownThings:
    """What known concepts look like: a concept, a picture's number and features for each row."""

    concepts: tuple[str, ...]
    numbers: tuple[int, ...]
    features: npt.NDArray[np.float32]

    def likeness(
        self, features: npt.NDArray[np.float32], *, without: Sequence[int] = ()
    ) -> dict[str, float]:
        """The cosine of ``d`` with the nearest picture of each concept, the most like first.

        ``without`` are numbers of pictures that do not count; a concept that has no others is left
        out.
        """
        cosines = self.features @ (features / max(float(np.linalg.norm(features)), 1e-9))
        found: dict[str, float] = {}
        for row in np.argsort(-cosines, kind="stable").tolist():
            if self.numbers[row] not in without:
                found.setdefault(self.concepts[row], float(cosines[row]))
        return found


def known_things(
    pictures: GlyphPictures,
    concepts: Iterable[str],
    describe: Describe,
    *,
    most: int = MOST_OF_CONCEPT,
) -> KnownThings:
    """Look at pictures of concepts as they are in the training split: ``most`` of each.

    They are drawn on white, or where they would vanish on dark blue, taken apart and cropped as
    the things that are compared with them.

    Raises:
        DataError: a concept that the training split does not show as one whole thing.
    """
    wanted = sorted(set(concepts))
    rows: dict[str, list[int]] = {name: [] for name in wanted}
    drawings = set()
    for number, one in enumerate(pictures.records):
        if one.name in rows and one.cutout and one.split == "train" and one.weight > 0:
            # One drawing is painted in many colours: one of them is enough.
            drawing = one.id.rpartition("/")[0] if one.painted else one.id
            if drawing not in drawings:
                drawings.add(drawing)
                rows[one.name].append(number)
    crops, numbers = [], []
    for name, found in rows.items():
        if not found:
            raise DataError(f"no training picture shows one whole {name}")
        for number in _varied(found, [pictures.records[i].style for i in found])[:most]:
            crops.append(_portrait(pictures, number))
            numbers.append(number)
    features = describe(np.stack(crops)).astype(np.float32)
    return KnownThings(
        concepts=tuple(pictures.records[number].name for number in numbers),
        numbers=tuple(numbers),
        features=_unit(features),
    )


def _varied(numbers: Sequence[int], styles: Sequence[str]) -> list[int]:
    """One of each style first, then a second of each, in order."""
    seen: dict[str, int] = {}
    turns = []
    for number, style in zip(numbers, styles, strict=True):
        turns.append((seen.setdefault(style, 0), number))
        seen[style] += 1
    return [number for _, number in sorted(turns)]


def _portrait(pictures: GlyphPictures, number: int) -> Pixels:
    behind = "dark blue" if "white" in pictures.records[number].hidden_on else "white"
    image = compose(pictures.rgba([number]), np.array([BACKGROUNDS[behind]]))
    seen = take_apart(to_pixels(image)[0])
    whole = joined(seen.parts) if seen.parts else Part(np.argwhere(seen.strength >= 0))
    return crop(seen, whole)
