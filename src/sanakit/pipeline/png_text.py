"""Text chunks of a PNG, read without decoding its pixels; knows nothing of what they mean.

Source: PNG specification, third edition, 5.3 (chunk layout) and 11.3.3 (textual information).
"""

from __future__ import annotations

import struct
import zlib

from sanakit.errors import DataError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LARGEST_TEXT = 16 << 20
"""Bytes a compressed text may unpack to; a small file can claim gigabytes."""
OTHER_FORMATS = {b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"RIFF": "WebP", b"BM": "BMP"}


def read_texts(data: bytes, *, source: str) -> dict[str, str]:
    """Give keyword to text for all tEXt, zTXt and iTXt chunks; of equal keywords the first counts.

    A file that is cut off after its texts is read as far as it goes.

    Raises:
        DataError: not a PNG, cut off before any text, or damaged.
    """
    if not data.startswith(SIGNATURE):
        other = next((name for head, name in OTHER_FORMATS.items() if data.startswith(head)), None)
        raise DataError(
            f"{source}: is not a PNG" + (f" but {other}" if other else ""),
            hint="settings are kept in the PNG that was generated; conversions lose them",
        )
    texts: dict[str, str] = {}
    place = len(SIGNATURE)
    kind = b""
    while kind != b"IEND":
        length, kind = _header(data, place)
        end = place + 8 + length
        if len(data) < end + 4 or not kind:
            if texts:
                break
            raise DataError(f"{source}: is cut off at {len(data)} bytes", hint="copy it again")
        body = data[place + 8 : end]
        (checksum,) = struct.unpack(">I", data[end : end + 4])
        # Of every chunk: a text whose kind was garbled would otherwise pass for absent.
        if zlib.crc32(kind + body) != checksum:
            raise DataError(f"{source}: is damaged near byte {place}", hint="copy it again")
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            try:
                keyword, text = _decoded(kind, body)
            except (ValueError, IndexError, zlib.error) as error:
                raise DataError(
                    f"{source}: a text chunk is damaged ({error})", hint="copy it again"
                ) from error
            texts.setdefault(keyword, text)
        place = end + 4
    return texts


def _header(data: bytes, place: int) -> tuple[int, bytes]:
    """Length and kind of the chunk there; no kind where the data ends."""
    head = data[place : place + 8]
    return struct.unpack(">I4s", head) if len(head) == 8 else (0, b"")


def _decoded(kind: bytes, body: bytes) -> tuple[str, str]:
    key, rest = body.split(b"\0", 1)
    keyword = key.decode("latin-1")
    if kind == b"tEXt":
        return keyword, rest.decode("latin-1")
    if kind == b"zTXt":
        return keyword, _inflated(rest[1:]).decode("latin-1")
    compressed, rest = rest[0], rest[2:]
    _language, _translated, text = rest.split(b"\0", 2)
    return keyword, (_inflated(text) if compressed else text).decode("utf-8")


def _inflated(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    text = stream.decompress(data, LARGEST_TEXT)
    if stream.unconsumed_tail:
        raise ValueError(f"it unpacks to more than {LARGEST_TEXT} bytes")
    return text
