"""Pictures as clients send them: out of base64, decoded a few at a time, masks made ours.

Our masks are white where a picture is drawn anew.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import functools
import io
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from PIL import Image as PILImage
from PIL import ImageChops

from sanakit.images.color import WHITE
from sanakit.images.decode import BadPicture, DecodeLimits, Picture, decode, decoded_image
from sanakit.serve.refusals import Refused

P = ParamSpec("P")
R = TypeVar("R")
DATA_URL = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,", re.IGNORECASE)
_DECODERS = ThreadPoolExecutor(2, thread_name_prefix="decode-picture")
"""Few, since each decode takes memory, and none of the event loop's own."""
BLACK = (0, 0, 0)


async def decoding(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Do what decodes pictures away from the event loop, a few at a time."""
    call = functools.partial(work, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_DECODERS, call)


def picture_bytes(text: str, name: str) -> bytes:
    """Give the bytes of a picture in base64 or in a ``data:`` URL; no other URL is ever opened.

    Raises:
        Refused: 400, neither.
    """
    start = DATA_URL.match(text)
    if start is None and re.match(r"[A-Za-z][A-Za-z0-9+.-]{0,20}:", text):
        raise Refused(
            400,
            f"{name} is a URL, and none is fetched here; send the picture's bytes in base64",
            param=name,
            code="url_not_fetched",
        )
    try:
        return base64.b64decode(text[start.end() if start else 0 :], validate=True)
    except (binascii.Error, ValueError):
        raise Refused(400, f"{name} is not base64", param=name, code="bad_picture") from None


def in_base64(data: bytes) -> str:
    """Give bytes as a text."""
    return base64.b64encode(data).decode("ascii")


@contextmanager
def _judged(name: str) -> Iterator[None]:
    """Tell a picture that is none by the name of its parameter."""
    try:
        yield
    except BadPicture as error:
        raise Refused(400, f"{name}: {error.message}", param=name, code="bad_picture") from None


def picture(data: bytes, name: str, max_pixels: int) -> Picture:
    """Decode a picture that a client sent.

    Raises:
        Refused: 400 with what is wrong with it.
    """
    with _judged(name):
        return decode(data, limits=DecodeLimits(max_pixels=max_pixels))


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
    with _judged("mask"):
        return decoded_image(data, limits=DecodeLimits(max_pixels=max_pixels), over=over)[0]


def _png(picture: PILImage.Image) -> bytes:
    out = io.BytesIO()
    picture.convert("RGB").save(out, "png")
    return out.getvalue()
