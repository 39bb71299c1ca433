"""What a file says of itself, read from its bytes before any decoder sees them: format, size, end.

Nothing here decompresses pixels or allocates by a number that the file claims.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator

from PIL.TiffImagePlugin import TiffImageFile

Size = tuple[int, int]  # height, width

PNG_START = b"\x89PNG\r\n\x1a\n"
_STARTS = (
    (b"\xff\xd8\xff", "jpeg"),
    (PNG_START, "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
)
# Pictures that exist but are no training data, or whose decoders are not to see a stranger's bytes.
_OTHERS = (
    (b"\0\0\1\0", "an icon (ICO)"),
    (b"8BPS", "a Photoshop document"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"%PDF", "a PDF"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"II+\0", "BigTIFF"),
    (b"MM\0+", "BigTIFF"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"DDS ", "a DDS texture"),
    (b"qoif", "QOI"),
    (b"\x1aE\xdf\xa3", "a video"),
)
# All that pixels and colors depend on; texts and whatever else a file carries are never unpacked.
_PNG_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"eXIf", b"IDAT"}
_PNG_CHECKED = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
PROFILE_LIMIT = 1 << 20  # bytes of an unpacked ICC profile
_SCAN = 0xDA  # the marker of JPEG after which pixels begin


def format_of(data: bytes) -> tuple[str, str]:
    """The format that the bytes begin as, and what they are where sanakit does not decode it.

    Of ``("png", "")``, ``("", "a PDF")`` (a picture or document of another kind) and
    ``("", "")`` (no picture that is known here) exactly one kind is given.
    """
    for start, name in _STARTS:
        if data.startswith(start):
            return name, ""
    if data[:4] == b"RIFF":
        return ("webp", "") if data[8:12] == b"WEBP" else ("", "a RIFF file that is no WebP")
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        return ("avif", "") if brand in (b"avif", b"avis") else ("", _container(brand))
    for start, what in _OTHERS:
        if data.startswith(start):
            return "", what
    if b"<svg" in data[:1024].lower():
        return "", "SVG: render it first"
    return "", ""


def described(data: bytes) -> str:
    """What bytes that are no picture look like, so that their origin can be found."""
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page, as a download that failed leaves"
    if data == bytes(len(data)):  # quicker than looking at each byte
        return f"{len(data)} bytes that are all zero"
    try:
        text = data[:64].decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    if text and text.replace("\n", "").replace("\t", "").replace("\r", "").isprintable():
        return f"text that begins {text[:24]!r}"
    return f"begins {data[:8]!r}"


def claimed_size(data: bytes, kind: str) -> Size | None:
    """Height and width as the header of a WebP or AVIF has them; None where it has none.

    Pillow reads those of other formats without any pixel; these two it cannot open cheaply.
    """
    sizes: list[Size] = []
    try:
        if kind == "avif":
            for found in re.finditer(b"ispe", data[: 1 << 16]):
                width, height = struct.unpack_from(">II", data, found.end() + 4)
                sizes.append((height, width))
        elif kind == "webp" and data[12:16] == b"VP8X":
            (packed,) = struct.unpack_from("<Q", data[:30].ljust(32, b"\0"), 24)
            sizes.append(((packed >> 24 & 0xFFFFFF) + 1, (packed & 0xFFFFFF) + 1))
        elif kind == "webp" and data[12:16] == b"VP8L":
            (packed,) = struct.unpack_from("<I", data, 21)
            sizes.append(((packed >> 14 & 0x3FFF) + 1, (packed & 0x3FFF) + 1))
        elif kind == "webp" and data[12:16] == b"VP8 ":
            width, height = struct.unpack_from("<HH", data, 26)
            sizes.append((height & 0x3FFF, width & 0x3FFF))
    except struct.error:
        return None
    return max(sizes, key=lambda size: size[0] * size[1], default=None)


def is_cut_short(data: bytes, kind: str) -> bool:
    """Whether the end is missing, by the lengths and end marks that the format has."""
    if kind == "jpeg":
        return not data.rstrip(b"\0").endswith(b"\xff\xd9")
    if kind == "webp":
        return len(data) < 12 or int.from_bytes(data[4:8], "little") + 8 > len(data)
    if kind == "gif":
        return not data.rstrip(b"\0").endswith(b";")
    if kind == "bmp":
        return len(data) < 54 or int.from_bytes(data[2:6], "little") > len(data)
    if kind == "avif":
        return _boxes_end(data) > len(data)
    return kind == "tiff" and _tiff_end(data) > len(data)


def jpeg_scans(data: bytes) -> int:
    """How many scans a JPEG has, or more: markers of scans inside metadata count too."""
    markers = dict(_jpeg_markers(data))
    start = markers.get(_SCAN, len(data))
    for frame in (0xC0, 0xC1):
        at = markers.get(frame, len(data))
        # A scan of all components of a frame that is not progressive is the only one.
        if data[at + 9 : at + 10] == data[start + 4 : start + 5] != b"":
            return 1
    return data.count(b"\xff\xda", start)


def jpeg_has_end(data: bytes) -> bool:
    """Whether an end mark follows the first scan.

    Decoders take the zeros that fill the rest of a broken download for pixels, and are content.
    """
    return data.rfind(b"\xff\xd9") > dict(_jpeg_markers(data)).get(_SCAN, len(data))


class PngError(Exception):
    """A PNG that is cut short or whose check sums do not hold."""

    def __init__(self, message: str, *, cut_short: bool) -> None:
        super().__init__(message)
        self.cut_short = cut_short


def plain_png(data: bytes) -> tuple[bytes, int]:
    """The same PNG with nothing but what its pixels depend on, and its number of frames.

    Texts go, so that none is unpacked; so do the frames of an animation after the first.
    """
    kept: list[bytes | memoryview] = [PNG_START]
    frames = 1
    for name, body, whole in _png_chunks(data):
        if name in _PNG_CHECKED and zlib.crc32(whole[4:-4]) != _big(whole[-4:]):
            raise PngError(f"the check sum of {name.decode()} does not hold", cut_short=False)
        if name == b"acTL" and len(body) >= 4:
            frames = max(frames, _big(body[:4]))
        if name in _PNG_KEPT and (name != b"iCCP" or _small_profile(body)):
            kept.append(whole)
        if name == b"IEND":
            kept.append(whole)
            return b"".join(kept), frames
    raise PngError("no end mark (IEND)", cut_short=True)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, memoryview]]:
    view = memoryview(data)
    position = len(PNG_START)
    while position + 8 <= len(data):
        end = position + 12 + _big(view[position : position + 4])
        if end > len(data):
            raise PngError(f"ends {end - len(data)} bytes early", cut_short=True)
        name = bytes(view[position + 4 : position + 8])
        yield name, view[position + 8 : end - 4], view[position:end]
        position = end
    if position < len(data) or position == len(PNG_START):
        raise PngError("ends inside the head of a chunk", cut_short=True)


def _small_profile(body: memoryview) -> bool:
    packed = bytes(body).split(b"\0", 1)[-1][1:]
    try:
        unpacking = zlib.decompressobj()
        unpacking.decompress(packed, PROFILE_LIMIT)
    except zlib.error:
        return False
    return not unpacking.unconsumed_tail


def _jpeg_markers(data: bytes) -> Iterator[tuple[int, int]]:
    """Markers and where they are, up to the first scan: those of a thumbnail are not among them."""
    at = 2
    while at + 4 <= len(data):
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0xFF:
            at += 1
        elif marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            at += 2
        else:
            yield marker, at
            if marker in (_SCAN, 0xD9):
                return
            at += 2 + _big(data[at + 2 : at + 4])


def _boxes_end(data: bytes) -> int:
    position = 0
    while position + 8 <= len(data):
        length = _big(data[position : position + 4])
        if length == 1:
            length = _big(data[position + 8 : position + 16])
        if length < 8:
            return len(data)  # 0: as far as the file goes; others: not for us to judge
        position += length
    return position


def _tiff_end(data: bytes) -> int:
    """Where the strips or tiles of the first page end; past the file where that cannot be read."""
    try:
        tags = TiffImageFile(io.BytesIO(data)).tag_v2
        return max(
            offset + length
            for offsets, lengths in ((273, 279), (324, 325))
            for offset, length in zip(tags.get(offsets, ()), tags.get(lengths, ()), strict=False)
        )
    except Exception:  # of any kind, on hostile bytes
        return len(data) + 1


def _container(brand: bytes) -> str:
    if brand in (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"heim", b"heis"):
        return "HEIC: save it as JPEG or PNG first"
    return "a video"


def _big(value: bytes | memoryview) -> int:
    return int.from_bytes(value, "big")
