"""Stand-in for the buckets of the builder: how a picture is made to fit a size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from PIL import Image

Bucket: TypeAlias = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Scale, and what is cut from either end of a side in pixels of the picture as it was."""

    top: float
    left: float
    scale: float


def fit(height: int, width: int, bucket: Bucket) -> Fit:
    """How a picture of some size covers a bucket: one side fits, the other is cut at both ends."""
    scale = max(bucket[0] / height, bucket[1] / width)
    top = max(0.0, (height - bucket[0] / scale) / 2)
    left = max(0.0, (width - bucket[1] / scale) / 2)
    return Fit(top=top, left=left, scale=scale)


def fitted(pixels: np.ndarray, bucket: Bucket) -> np.ndarray:
    """Scale a picture to cover a bucket and cut its centre out: uint8 ``H W 3`` to ``h w 3``."""
    height, width = pixels.shape[:2]
    if (height, width) == bucket:
        return pixels
    how = fit(height, width, bucket)
    box = (how.left, how.top, width - how.left, height - how.top)
    filter_ = Image.Resampling.LANCZOS if how.scale < 1 else Image.Resampling.BICUBIC
    scaled = Image.fromarray(pixels).resize((bucket[1], bucket[0]), filter_, box=box)
    return np.asarray(scaled)
