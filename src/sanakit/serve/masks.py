"""Masks as clients send them become ours, which are white where a picture is drawn anew."""

from __future__ import annotations

import io

from PIL import Image as PILImage
from PIL import ImageChops

from sanakit.images.color import WHITE
from sanakit.images.decode import BadPicture, DecodeLimits, decoded_image
from sanakit.serve.refusals import Refused

BLACK = (0, 0, 0)


def mask_of_alpha(data: bytes, max_pixels: int) -> bytes:
    """Give a PNG that is white where a picture is transparent.

    Laid over white and over black, a picture differs by how transparent it is.

    Raises:
        Refused: 400, no picture, or one of which nothing is transparent.
    """
    over_white, over_black = (_mask(data, max_pixels, over=color) for color in (WHITE, BLACK))
    clear = ImageChops.difference(over_white, over_black).convert("L")
    if clear.getextrema() == (0, 0):
        raise Refused(
            400,
            "mask: nothing of it is transparent, and what is transparent is drawn anew",
            param="mask",
            code="bad_picture",
        )
    return _png(clear)


def inverted(data: bytes, max_pixels: int) -> bytes:
    """Give a PNG that is white where a picture is dark or transparent.

    Raises:
        Refused: 400, no picture.
    """
    return _png(ImageChops.invert(_mask(data, max_pixels, over=BLACK)))


def _mask(data: bytes, max_pixels: int, *, over: tuple[int, int, int]) -> PILImage.Image:
    try:
        return decoded_image(data, limits=DecodeLimits(max_pixels=max_pixels), over=over)[0]
    except BadPicture as error:
        raise Refused(400, f"mask: {error.message}", param="mask", code="bad_picture") from None


def _png(picture: PILImage.Image) -> bytes:
    out = io.BytesIO()
    picture.convert("RGB").save(out, "png")
    return out.getvalue()
