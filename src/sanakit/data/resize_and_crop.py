"""Sizes that the pictures of a set share, and how a picture is made to fit its size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from PIL import Image

from sanakit.errors import ConfigError
from sanakit.pipeline.aspect_ratios import Table, nearest_bin, published_table

BucketKind: TypeAlias = Literal["training", "inference", "square"]
Bucket: TypeAlias = tuple[int, int]
MULTIPLE = 32
"""Of the sides of every size: what the published autoencoder shrinks by."""
_PATCHES = 2
_COARSE_FROM = 256
_PUBLISHED_AT = 1024
_INFERENCE_HAS_ALL = (2048, 4096)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a picture covers a bucket.

    It is scaled by ``scale``; ``top`` and ``left``, of which one is 0, are what is cut from either
    end of a side, in pixels of the picture as it was.
    """

    top: float
    left: float
    scale: float


def usual_multiple(resolution: int) -> int:
    """What sides are multiples of where no model is named: every model reads them.

    Published sizes at 512 px are multiples of 32. At a resolution that has none sides are multiples
    of 64, which also suit patches of 2 x 2 latents; below 256 px too few sizes would be left.
    """
    coarse = MULTIPLE * _PATCHES
    published = resolution % _PUBLISHED_AT == 0 or resolution == _PUBLISHED_AT // 2
    return MULTIPLE if published or resolution < _COARSE_FROM or resolution % coarse else coarse


def bucket_table(
    resolution: int, kind: BucketKind = "training", *, multiple: int | None = None
) -> Table:
    """The (height, width) of all buckets by the key of their ratio, height over width.

    ``training`` has the 40 published ratios; ``inference`` the 33 of them that pictures are drawn
    at, all 40 at 2048 and 4096 px; ``square`` one. Sizes are those at 1024 px, scaled and rounded
    to ``multiple`` (:func:`usual_multiple`); multiples of 32 change none at 512 px and its
    multiples. A table with a rounded size has the true quotients as keys, and each quotient once.

    Raises:
        ConfigError: the resolution is not a positive multiple of ``multiple``.
    """
    if kind not in get_args(BucketKind):
        raise ConfigError(f"no buckets {kind!r}", hint=f"one of {', '.join(get_args(BucketKind))}")
    multiple = multiple or usual_multiple(resolution)
    if resolution < multiple or resolution % multiple:
        near = max(1, round(resolution / multiple)) * multiple
        raise ConfigError(
            f"resolution {resolution} is not a multiple of {multiple}", hint=f"try {near}"
        )
    if kind == "square":
        return {1.0: (resolution, resolution)}
    extra = kind == "training" or resolution in _INFERENCE_HAS_ALL
    table: Table = {}
    rounded: Table = {}
    exact = True
    for key, (height, width) in published_table(1, extra=extra).items():
        size = (_scaled(height, resolution, multiple), _scaled(width, resolution, multiple))
        exact = exact and size[0] * _PUBLISHED_AT == height * resolution
        exact = exact and size[1] * _PUBLISHED_AT == width * resolution
        table[key] = size
        quotient = size[0] / size[1]
        rival = rounded.get(quotient, size)
        rounded[quotient] = min(size, rival, key=lambda one: abs(one[0] * one[1] - resolution**2))
    return table if exact else dict(sorted(rounded.items()))


def nearest_bucket(height: int, width: int, table: Table) -> Bucket:
    """The bucket whose key is nearest to ``height / width``; of two as near, the wider."""
    return nearest_bin(height, width, table)


def fit(height: int, width: int, bucket: Bucket) -> Fit:
    """How a picture of some size covers a bucket: one side fits, the other is cut at both ends."""
    scale = max(bucket[0] / height, bucket[1] / width)
    # The side that decides the scale is not cut; the division could leave a rounding error of it.
    top = 0.0 if scale == bucket[0] / height else (height - bucket[0] / scale) / 2
    left = 0.0 if scale == bucket[1] / width else (width - bucket[1] / scale) / 2
    return Fit(top=max(0.0, top), left=max(0.0, left), scale=scale)


def fitted(pixels: np.ndarray, bucket: Bucket) -> np.ndarray:
    """Scale a picture to cover a bucket and cut its centre out: uint8 ``H W 3`` to ``h w 3``.

    Lanczos with antialiasing where it shrinks, bicubic where it grows; a picture of the bucket's
    size is returned as it is. Source: NVlabs' loader uses bicubic for both.
    """
    height, width = pixels.shape[:2]
    if (height, width) == bucket:
        return pixels
    how = fit(height, width, bucket)
    # Only the part that is kept is scaled: covering a bucket with a thin strip would make a
    # picture of a thousand times its area. Equal scales, so only the ends of the other side go.
    box = (how.left, how.top, width - how.left, height - how.top)
    filter_ = Image.Resampling.LANCZOS if how.scale < 1 else Image.Resampling.BICUBIC
    scaled = Image.fromarray(pixels).resize((bucket[1], bucket[0]), filter_, box=box)
    return np.asarray(scaled)


def _scaled(side: int, resolution: int, multiple: int) -> int:
    return max(1, math.floor(side * resolution / (_PUBLISHED_AT * multiple) + 0.5)) * multiple
