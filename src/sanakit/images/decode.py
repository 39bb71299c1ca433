"""Bytes from anywhere become RGB pixels, or an error with a reason; nothing else can happen.

The format is told by the bytes, never by the name; only its own decoder sees them, after the size
that the header claims was judged. Color is sRGB, rotation as shown, transparency over white or
another color.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, features
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from sanakit.errors import ConfigError, DataError
from sanakit.images import file_format
from sanakit.images.color import WHITE, UnclearColors, to_rgb
from sanakit.images.file_format import Size

REASONS = frozenset(
    {
        *("empty file", "not a picture", "unsupported format", "truncated", "damaged"),
        *("too many pixels", "too small", "animated"),
    }
)
_DECODERS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "jpeg": JpegImageFile,
    "png": PngImageFile,
    "webp": WebPImageFile,
    "gif": GifImageFile,
    "bmp": BmpImageFile,
    "tiff": TiffImageFile,
    "avif": AvifImageFile,
}
FORMATS = tuple(_DECODERS)
_MOST_SCANS = 500  # a JPEG of more is made to keep decoders busy
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadPicture(DataError):
    """Bytes that give no picture; ``reason`` is one of :data:`REASONS`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeLimits:
    """What is still decoded.

    ``max_pixels`` bounds memory: a decode takes up to 12 bytes a pixel for a moment.
    ``first_frame`` takes the first frame of an animation, the first page of a TIFF.
    """

    max_pixels: int = 1 << 27
    min_side: int = 1
    first_frame: bool = False

    def __post_init__(self) -> None:
        for name in ("max_pixels", "min_side"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is not 1 or more")


DEFAULT = DecodeLimits()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Picture:
    """A decoded picture.

    ``pixels`` are uint8 ``H W 3``, sRGB, as shown. ``height`` and ``width`` are those of the whole
    picture, also where ``pixels`` were decoded smaller; ``format`` is one of :data:`FORMATS`.
    """

    pixels: NDArray[np.uint8]
    format: str
    height: int
    width: int


def decode(
    data: bytes, *, limits: DecodeLimits = DEFAULT, cover: tuple[int, int] | None = None
) -> Picture:
    """Decode a whole picture, or a smaller one that still covers ``cover``.

    ``cover`` is height and width as shown: a JPEG is then decoded at 1/2, 1/4 or 1/8 where the
    result is at least that large, which is faster; other formats are decoded whole.

    Raises:
        BadPicture: the bytes are no picture, not a whole one, or over the limits.
    """
    image, kind, (height, width) = decoded_image(data, limits=limits, cover=cover)
    return Picture(pixels=np.array(image, dtype=np.uint8), format=kind, height=height, width=width)


def decoded_image(
    data: bytes,
    *,
    limits: DecodeLimits = DEFAULT,
    cover: tuple[int, int] | None = None,
    over: tuple[int, int, int] = WHITE,
) -> tuple[Image.Image, str, Size]:
    """As :func:`decode`, with the pixels where Pillow has them: an image of mode RGB.

    What is transparent is laid over the color ``over``. Gives the image, without what the file told
    beside pixels, its format, and the height and width of the whole picture as shown.
    """
    kind = _format(data)
    if (claimed := file_format.claimed_size(data, kind)) is not None:
        _judge(claimed, limits)
    frames = 1
    if kind == "png":
        try:
            data, frames = file_format.plain_png(data)
        except file_format.PngError as error:
            reason = "truncated" if error.cut_short else "damaged"
            raise BadPicture(reason, str(error)) from error
    if kind == "jpeg":
        if (scans := file_format.jpeg_scans(data)) > _MOST_SCANS:
            raise BadPicture("damaged", f"{scans} scans in one JPEG")
        if not file_format.jpeg_has_end(data):
            raise BadPicture("truncated", "no end mark (EOI)")
    try:
        with _pillow_keeps_quiet():
            image = _DECODERS[kind](io.BytesIO(data))
            height, width = _judge((image.height, image.width), limits)
            if max(frames, _frames(image)) > 1 and not limits.first_frame:
                raise BadPicture("animated", f"{max(frames, _frames(image))} frames or pages")
            turn = 1 if kind == "tiff" else _orientation(image)  # Pillow turns TIFF by itself
            across = 5 <= turn <= 8
            if across:
                height, width = width, height
            if cover is not None and kind == "jpeg":
                image.draft(None, cover if across else (cover[1], cover[0]))
            image.load()
            rgb = to_rgb(image, over=over)
            if turn in _TURNS:
                rgb = rgb.transpose(_TURNS[turn])
            rgb.info.clear()  # it still told of a turn, and who heeds that turns it again
    except BadPicture:
        raise
    except UnclearColors as error:
        raise BadPicture("unsupported format", str(error)) from error
    except Image.DecompressionBombError as error:  # of a tile, or of a limit that a caller set
        raise BadPicture("too many pixels", str(error)) from error
    except MemoryError as error:
        raise BadPicture("too many pixels", "memory does not suffice") from error
    # A decoder's errors on hostile bytes are of any kind: the whole tree below is meant.
    except Exception as error:
        reason = "truncated" if file_format.is_cut_short(data, kind) else "damaged"
        raise BadPicture(reason, " ".join(str(error).split())[:200]) from error
    if kind == "tiff":
        height, width = rgb.height, rgb.width
    return rgb, kind, (height, width)


def _format(data: bytes) -> str:
    if not data:
        raise BadPicture("empty file")
    kind, other = file_format.format_of(data)
    if other:
        raise BadPicture("unsupported format", other)
    if kind in ("avif", "webp") and not features.check(kind):
        raise BadPicture("unsupported format", f"{kind}: this Pillow is built without it")
    if not kind:
        raise BadPicture("not a picture", file_format.described(data))
    return kind


def _judge(size: Size, limits: DecodeLimits) -> Size:
    height, width = size
    if height * width > limits.max_pixels:
        raise BadPicture(
            "too many pixels", f"{width} x {height}, and {limits.max_pixels} pixels are decoded"
        )
    if min(size) < limits.min_side:
        raise BadPicture("too small", f"{width} x {height}, and a side has {limits.min_side}")
    return size


def _frames(image: ImageFile.ImageFile) -> int:
    if isinstance(image, TiffImageFile):
        return 2 if image.tag_v2.next else 1  # not counted: a chain of pages may be very long
    return int(getattr(image, "is_animated", False)) + 1


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    # EXIF is decoration: what is wrong in it never costs a picture.
    except Exception:
        return 1


_quiet = threading.Lock()
_decoding = 0
_filters = warnings.catch_warnings()


@contextmanager
def _pillow_keeps_quiet() -> Iterator[None]:
    """No warnings of Pillow, which go to the terminal or, where asked for, become errors.

    Warning filters belong to the process: the first of several threads sets them, the last one
    puts the old ones back.
    """
    global _decoding, _filters
    with _quiet:
        if _decoding == 0:
            _filters = warnings.catch_warnings()
            _filters.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _decoding += 1
    try:
        yield
    finally:
        with _quiet:
            _decoding -= 1
            if _decoding == 0:
                _filters.__exit__(None, None, None)
