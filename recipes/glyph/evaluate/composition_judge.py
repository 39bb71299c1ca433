"""Which known thing is seen: crops of things, and the nearest of pictures of known concepts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from recipes.glyph.data.backgrounds import BACKGROUNDS
from recipes.glyph.data.pictures import GlyphPictures, compose
from recipes.glyph.evaluate.segmentation import (
    PLAIN,
    SURE,
    Part,
    Pixels,
    Seen,
    joined,
    label,
    oklab,
    take_apart,
)
from sanakit.errors import DataError
from sanakit.pipeline.images import to_pixels

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
