"""A decoded picture takes its place in a batch, resized to cover it and cut to its centre."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sanakit.data.buckets import fit, fitted


def fit_into(slot: Tensor, image: Image.Image) -> None:
    """Write an RGB picture into its slot of a batch, uint8 ``h w 3``.

    A picture of the slot's size is copied. Others are as :func:`sanakit.data.buckets.fitted` makes
    them, to within half a pixel of place and a few levels: torch's resize of uint8 takes a quarter
    of Pillow's time, but starts at whole pixels.
    """
    height, width = slot.shape[:2]
    if image.size == (width, height):
        slot.numpy()[...] = np.asarray(image)
        return
    how = fit(image.height, image.width, (height, width))
    if not _has_lanczos():
        slot.numpy()[...] = fitted(np.asarray(image), (height, width))
        return
    top, left = round(how.top), round(how.left)
    # Cut before it becomes an array: what is thrown away need not be copied. And not asarray, as
    # torch warns of arrays that it could write to but must not.
    kept = np.array(image.crop((left, top, image.width - left, image.height - top)))
    resized = F.interpolate(
        torch.from_numpy(kept).permute(2, 0, 1)[None],
        size=(height, width),
        mode="lanczos" if how.scale < 1 else "bicubic",
        antialias=True,
    )
    slot.copy_(resized[0].permute(1, 2, 0))


@cache
def _has_lanczos() -> bool:
    """Whether this version of torch resizes by Lanczos."""
    try:
        # Not to a single pixel: torch 2.13 fails there, by an assertion of its own.
        F.interpolate(
            torch.zeros(1, 3, 8, 8, dtype=torch.uint8), size=4, mode="lanczos", antialias=True
        )
    except (NotImplementedError, ValueError, RuntimeError):
        return False
    return True
