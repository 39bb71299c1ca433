"""Stand-in for the safe decoder of the scan: any bytes become pixels, or one known error."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from sanakit.errors import DataError


class BadPicture(DataError):
    """Bytes that are not a whole picture; ``reason`` is one of a fixed few."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True)
class Picture:
    """A decoded picture: uint8 ``H W 3``."""

    pixels: np.ndarray


def decode(data: bytes, *, cover: tuple[int, int] | None = None) -> Picture:
    """Decode a picture; a JPEG may come smaller than it is, but never than ``cover`` (h, w)."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if cover is not None and image.format == "JPEG":
                image.draft("RGB", (cover[1], cover[0]))
            image.load()
            return Picture(np.asarray(ImageOps.exif_transpose(image).convert("RGB")))
    except OSError as error:
        raise BadPicture("truncated" if data else "empty file", str(error)) from error
