"""Stand-in with the agreed signatures, to be replaced by the real safe decoder."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sanakit.errors import DataError


class BadPicture(DataError):
    """A picture that cannot be used, for one of a few reasons."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class Picture:
    """uint8 H W 3."""

    pixels: np.ndarray


def decode(data: bytes, *, cover: tuple[int, int] | None = None) -> Picture:
    """Decode any bytes."""
    if not data:
        raise BadPicture("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            image: Image.Image = Image.open(io.BytesIO(data))
            if cover is not None:
                image.draft("RGB", (cover[1], cover[0]))
            image.load()
        return Picture(pixels=np.asarray(ImageOps.exif_transpose(image).convert("RGB")))
    except UnidentifiedImageError as error:
        raise BadPicture("not a picture", str(error)) from error
    except (OSError, Warning, ValueError) as error:
        raise BadPicture("truncated", str(error)) from error
