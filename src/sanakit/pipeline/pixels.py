"""Tensors to pixels and back, by the package's one rounding rule."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from torch.nn import functional as F

from sanakit.errors import ConfigError, NumericsError
from sanakit.shapes import Image

Pixels = NDArray[np.uint8]
"""``b H W 3``, or ``H W 3`` for one picture."""


def to_pixels(image: Image, *, component: str = "decode") -> Pixels:
    """Give ``b H W 3`` uint8: [-1, 1] to [0, 255] in fp32, clamped, halves to even."""
    values = image.detach().float()
    broken = int((~values.isfinite()).sum())
    if broken:
        raise NumericsError(
            f"{component}: {broken} of {values.numel()} values of the picture are not finite",
            hint="use bfloat16 or float32: float16 overflows in the autoencoder",
        )
    scaled = (values / 2 + 0.5).clamp(0, 1) * 255
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def from_pixels(pixels: Pixels) -> Image:
    """Give ``b 3 H W`` fp32 in [-1, 1] from ``b H W 3``; :func:`to_pixels` gives them back."""
    _require_pixels(pixels, dimensions=4)
    values = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).contiguous().float()
    return values / 127.5 - 1


def to_pil(pixels: Pixels) -> list[PILImage.Image]:
    """Give one RGB picture for each of ``b H W 3``."""
    _require_pixels(pixels, dimensions=4)
    return [PILImage.fromarray(np.ascontiguousarray(picture)) for picture in pixels]


def _require_pixels(pixels: Pixels, *, dimensions: int) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != dimensions or pixels.shape[-1] != 3:
        raise ConfigError(
            f"pixels of shape {pixels.shape} and type {pixels.dtype} are not uint8 b H W 3",
            hint="to_pixels makes them from a tensor",
        )


class Cover(NamedTuple):
    """How a picture covers a size: scaled to ``height`` and ``width``, then cut from the corner."""

    height: int
    width: int
    top: int
    left: int


def cover(have: tuple[int, int], want: tuple[int, int]) -> Cover:
    """Give the smallest scale at which a picture of a size covers another, and its centre.

    Source: diffusers src/diffusers/image_processor.py, which cuts next to nothing out where a
    product that should be whole is rounded down.
    """
    ratio = max(want[0] / have[0], want[1] / have[1])
    height, width = (max(int(own * ratio), least) for own, least in zip(have, want, strict=True))
    return Cover(height, width, (height - want[0]) // 2, (width - want[1]) // 2)


def cut_to(image: Image, height: int, width: int) -> Image:
    """Scale a picture to cover a size, bilinearly, and cut its centre out."""
    have_height, have_width = image.shape[-2:]
    if (have_height, have_width) == (height, width):
        return image
    high, wide, top, left = cover((have_height, have_width), (height, width))
    scaled = F.interpolate(image, size=(high, wide), mode="bilinear", align_corners=False)
    return scaled[:, :, top : top + height, left : left + width]
