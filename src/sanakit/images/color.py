"""Pixels of every mode that Pillow has, as sRGB of 8 bits without transparency."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_SRGB_ERROR = 2  # of 255: a profile that moves no color further is sRGB under another name
_WIDE = {"I", "I;16", "I;16L", "I;16B", "I;16N"}
_PLAIN = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"}
_SEE_THROUGH = {"LA", "PA", "RGBA", "La", "RGBa"}


class UnclearColors(Exception):
    """Pixels whose numbers have no one meaning as colors."""


WHITE = (255, 255, 255)


def to_rgb(image: Image.Image, *, over: tuple[int, int, int] = WHITE) -> Image.Image:
    """A loaded image in mode RGB: its ICC profile applied, transparency laid over a color.

    16-bit grey is scaled to 8 bits, floating point in [0, 1] too.
    """
    profile = image.info.get("icc_profile")
    if image.mode in _WIDE or image.mode == "F":
        image = _narrowed(image)
    elif image.mode in _SEE_THROUGH or (image.mode in _PLAIN and "transparency" in image.info):
        image = _with_alpha(image)
    elif image.mode not in _PLAIN:
        raise UnclearColors(f"color space {image.mode}")
    if image.mode not in ("RGBA", "LA"):
        return _managed(image, profile)
    alpha = image.getchannel("A")
    color = _managed(image.convert("RGB" if image.mode == "RGBA" else "L"), profile)
    if alpha.getextrema() == (255, 255):
        return color
    below = Image.new("RGB", image.size, over)
    below.paste(color, mask=alpha)
    return below


def _with_alpha(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        return image.convert("LA")
    return image if image.mode in ("LA", "RGBA") else image.convert("RGBA")


def _narrowed(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "F":
        if not np.isfinite(values).all():
            raise ValueError("values that are not finite")
        top = 1.0
    else:
        top = 65535.0
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > top:
        raise UnclearColors(f"values from {low:g} to {high:g}: which of them is white is not known")
    scaled = np.rint(values.astype(np.float32) * (255 / top))
    return Image.fromarray(scaled.astype(np.uint8))


def _managed(image: Image.Image, profile: object) -> Image.Image:
    mode = image.mode if image.mode in ("L", "RGB", "CMYK") else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    transform = _transform(profile, mode) if isinstance(profile, bytes) and profile else None
    if transform is not None:
        return transform.apply(image)
    return image if mode == "RGB" else image.convert("RGB")


@lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The way from a profile to sRGB; None where it is sRGB already or is of no use."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        transform = ImageCms.ImageCmsTransform(source, target, mode, "RGB")
        return None if _changes_nothing(transform, mode) else transform
    # A profile that is damaged or of another color space is ignored, as browsers do; a Pillow
    # without LittleCMS says ImportError.
    except (ImportError, OSError, ImageCms.PyCMSError, ValueError, TypeError):
        return None


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    if mode == "CMYK":
        return False
    levels = np.linspace(0, 255, 9 if mode == "RGB" else 256).round().astype(np.uint8)
    if mode == "RGB":
        values = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    else:
        values = levels[None]
    before = Image.fromarray(values)
    after = np.asarray(transform.apply(before), dtype=np.int16)
    moved = np.abs(after - np.asarray(before.convert("RGB"), dtype=np.int16))
    return int(moved.max()) <= _SRGB_ERROR
