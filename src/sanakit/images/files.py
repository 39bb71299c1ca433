"""A picture by its path: read, told from another one, decoded."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from PIL import Image

from sanakit.errors import DataError
from sanakit.images.color import WHITE
from sanakit.images.decode import BadPicture, DecodeLimits, decoded_image
from sanakit.untrusted import read_file

LIMITS = DecodeLimits(max_pixels=1 << 26)
"""As real numbers a picture takes many times its bytes."""


def digest_of(path: str | Path) -> str:
    """Give the sha256 of a file; errors as of `read_image`."""
    return sha256(_read(path)).hexdigest()


def read_image(
    path: str | Path, *, digest: str | None = None, over: tuple[int, int, int] = WHITE
) -> Image.Image:
    """Give the RGB picture in a file, upright; what is transparent is laid over a color.

    Raises:
        DataError: it cannot be read, is no picture, or its sha256 is not ``digest``.
    """
    data = _read(path)
    if digest is not None and sha256(data).hexdigest() != digest:
        raise DataError(
            f"{path}: is not the file that it was (its sha256 differs)",
            hint="put the picture back that was there then",
        )
    try:
        image, _, _ = decoded_image(data, limits=LIMITS, over=over)
    except BadPicture as error:
        raise DataError(f"{path}: {error.message}") from error
    return image


def _read(path: str | Path) -> bytes:
    try:
        return read_file(Path(path).expanduser())
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({reason})") from error
