"""Pictures that show the same thing: a hash of 64 bits proposes, a look at the colors decides.

The hash is the sign of the 64 lowest frequencies of a discrete cosine transform, so it hardly
changes when a picture is scaled, compressed or made a little brighter. Simple drawings of different
things may share it (every disc on white does), which is why eight by eight colors are compared
before a picture is called a duplicate.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sanakit.errors import ConfigError

NEAR = 4
NEAREST, FARTHEST = 0, 8
BITS = 64
_SIDE = 32  # of the small picture that is transformed
CELLS = 8  # a side, of the colors
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601

# A frequency counts as present where it is above this share of the root mean square of all, and
# above this many levels. Without a dead zone what is exactly zero in a symmetric drawing gives
# random bits: of 400 emoji saved as JPEG at quality 50, 17 % were then more than 4 bits away.
_SHARE, _LEVELS = 0.05, 2.0

# What may differ between the colors of one picture and of the same one saved again, as root mean
# square and in the one cell that differs most. Photographs and emoji that were resized, compressed
# or darkened differ by up to 2.9 and 12 levels (99 %); desktop folders with another emblem by 15 in
# a cell. Of 16,597 emoji and icons 348 are found so, nearly all one drawing under two names, where
# the hash alone takes a purple square for a black one.
_RESIDUAL, _CELL = 3.0, 13.0
_GAIN, _SHIFT, _STILL = 0.2, 24.0, 2.0
_STRUCTURE = 8.0  # levels: below it a picture is flat, and a shift is another color, not light


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicate:
    """A picture that stays out because ``of``, which is in the set, shows the same.

    ``distance`` is how many of 64 bits of the hash differ; files of the same bytes have 0.
    """

    id: str
    of: str
    distance: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Look:
    """What is compared of a picture: a hash of 64 bits, and colors as uint8 ``8 8 3``."""

    phash: int
    colors: NDArray[np.uint8]


def look_at(image: Image.Image) -> Look:
    """The look of a picture of mode RGB."""
    reduced = image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0)
    small = np.asarray(reduced, dtype=np.float32)
    cell = _SIDE // CELLS
    colors = small.reshape(CELLS, cell, CELLS, cell, 3).mean(axis=(1, 3))
    return Look(phash=_hash(small @ _LUMA), colors=np.rint(colors).astype(np.uint8))


def distance(one: int, other: int) -> int:
    """How many bits of two hashes differ; of unrelated pictures about 28 of 64."""
    return (one ^ other).bit_count()


def same_colors(one: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of ``others``, ``n 8 8 3``, have the colors ``one``, but for contrast and light.

    One gain and one shift for all three channels are allowed, so a red square is not a blue one;
    the flatter a picture is, the less of both.
    """
    first = one.reshape(1, -1).astype(np.float32)
    rest = others.reshape(len(others), -1).astype(np.float32)
    channels = first.reshape(-1, 3)
    structure = float(np.sqrt(np.mean((channels - channels.mean(axis=0)) ** 2)))
    room = min(1.0, structure / _STRUCTURE)
    mean, means = first.mean(), rest.mean(axis=1, keepdims=True)
    centred = first - mean
    power = float(np.mean(centred**2))
    gain = np.ones_like(means)
    if power > 0:
        gain = np.mean(centred * (rest - means), axis=1, keepdims=True) / power
    gain = np.clip(gain, 1 / (1 + _GAIN * room), 1 + _GAIN * room)
    shift = np.clip(means - mean, -_STILL - _SHIFT * room, _STILL + _SHIFT * room)
    left = np.abs(rest - (gain * centred + mean + shift))
    return (np.sqrt(np.mean(left**2, axis=1)) <= _RESIDUAL) & (left.max(axis=1) <= _CELL)


class DuplicateFinder:
    """Takes pictures in order and says which of them show what an earlier one shows.

    Compared is with those only that stay, so there are no chains, and the result is a function of
    the order alone. ``near`` is the largest distance of hashes; 0 compares nothing but bytes.

    Two hashes of a distance up to 2m - 1 agree, but for one bit, in at least one of m parts: a
    picture is looked up under each part and its neighbours, not compared with all. Source:
    Norouzi, Punjani and Fleet, "Fast search in Hamming space with multi-index hashing" (2012).
    """

    def __init__(self, near: int = NEAR) -> None:
        if not NEAREST <= near <= FARTHEST:
            raise ConfigError(
                f"near={near} is not from {NEAREST} to {FARTHEST}",
                hint="0 finds the same bytes, 4 the same picture; unrelated ones differ by 28",
            )
        self.near = near
        self.same_bytes = 0
        self.same_look = 0
        self._ids: list[str] = []
        self._hashes: list[int] = []
        self._colors: list[bytes] = []
        self._by_bytes: dict[bytes, tuple[int, int]] = {}
        parts = near // 2 + 1
        ends = [BITS * part // parts for part in range(parts + 1)]
        self._parts: list[tuple[int, int, tuple[int, ...], dict[int, list[int]]]] = [
            (low, (1 << high - low) - 1, (0, *(1 << bit for bit in range(high - low))), {})
            for low, high in pairwise(ends)
        ]

    def add(self, identity: str, sha256: str, look: Look) -> Duplicate | None:
        """Take the next picture; None if it stays."""
        digest = bytes.fromhex(sha256)
        found = self._by_bytes.get(digest)
        if found is not None:
            self.same_bytes += 1
        elif self.near and (found := self._nearest(look)) is not None:
            self.same_look += 1
        if found is None:
            found = len(self._ids), 0
            self._keep(identity, look)
            self._by_bytes[digest] = found
            return None
        self._by_bytes[digest] = found
        return Duplicate(id=identity, of=self._ids[found[0]], distance=found[1])

    def _keep(self, identity: str, look: Look) -> None:
        number = len(self._ids)
        self._ids.append(identity)
        if not self.near:
            return
        self._hashes.append(look.phash)
        self._colors.append(look.colors.tobytes())
        for low, mask, _, table in self._parts:
            table.setdefault(look.phash >> low & mask, []).append(number)

    def _nearest(self, look: Look) -> tuple[int, int] | None:
        """Number and distance of the nearest picture that looks the same, the earliest first."""
        found: set[int] = set()
        for low, mask, flips, table in self._parts:
            part = look.phash >> low & mask
            for flip in flips:
                found.update(table.get(part ^ flip, ()))
        near = sorted(
            (apart, number)
            for number in found
            if (apart := distance(look.phash, self._hashes[number])) <= self.near
        )
        if not near:
            return None
        others = np.frombuffer(b"".join(self._colors[number] for _, number in near), np.uint8)
        same = same_colors(look.colors, others.reshape(len(near), CELLS, CELLS, 3))
        return (near[int(same.argmax())][1], near[int(same.argmax())][0]) if same.any() else None


def _cosines() -> NDArray[np.float32]:
    """The orthonormal DCT-II of 32 values: entry (u, x) is cos(pi (2x + 1) u / 64), scaled."""
    x = np.arange(_SIDE)
    matrix = np.cos(np.pi * (2 * x[None] + 1) * x[:, None] / (2 * _SIDE)) * np.sqrt(2 / _SIDE)
    matrix[0] /= np.sqrt(2)
    return matrix.astype(np.float32)


_COSINES = _cosines()
# The 64 lowest by distance from the mean, which is left out: light is no content.
_LOWEST = sorted(
    ((u, v) for u in range(_SIDE) for v in range(_SIDE) if u or v),
    key=lambda uv: (uv[0] ** 2 + uv[1] ** 2, uv),
)[:BITS]
_ROWS = np.array([u for u, _ in _LOWEST])
_COLUMNS = np.array([v for _, v in _LOWEST])


def _hash(grey: NDArray[np.float32]) -> int:
    lowest = (_COSINES @ grey @ _COSINES.T)[_ROWS, _COLUMNS]
    threshold = max(_LEVELS, _SHARE * float(np.sqrt(np.mean(lowest**2))))
    return int.from_bytes(np.packbits(lowest > threshold).tobytes(), "big")
