"""Where things are in a picture on a plain background, by colour alone: no network, no training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from recipes.glyph.data.backgrounds import BACKGROUNDS

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
