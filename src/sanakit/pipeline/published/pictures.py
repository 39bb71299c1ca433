"""Pictures in and out, by the names that published code imports."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.request import Request, urlopen

from PIL import Image, ImageOps, UnidentifiedImageError

from sanakit.errors import ConfigError, DataError
from sanakit.untrusted import read_file

MOST_BYTES = 64 * 2**20
SECONDS = 30


def load_image(
    image: str | Path | Image.Image,
    convert_method: Callable[[Image.Image], Image.Image] | None = None,
) -> Image.Image:
    """Give an upright RGB picture of a file, an address or a picture.

    ``convert_method`` takes the place of turning it into RGB.

    Raises:
        DataError: it cannot be read. ConfigError: it is none of these.
    """
    if isinstance(image, str | Path):
        picture = _opened(image)
    elif isinstance(image, Image.Image):
        picture = image
    else:
        raise ConfigError(
            f"load_image is given a {type(image).__name__}", hint="a path, an address or a picture"
        )
    upright = ImageOps.exif_transpose(picture)
    return upright.convert("RGB") if convert_method is None else convert_method(upright)


def _opened(place: str | Path) -> Image.Image:
    name = str(place)
    try:
        if name.startswith(("http://", "https://")):
            request = Request(name, headers={"User-Agent": "sanakit"})
            with urlopen(request, timeout=SECONDS) as answer:
                data = answer.read(MOST_BYTES + 1)
            if len(data) > MOST_BYTES:
                raise DataError(f"{name}: is larger than {MOST_BYTES >> 20} MiB")
        else:
            data = read_file(Path(name).expanduser())
        picture = Image.open(io.BytesIO(data))
        picture.load()
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        reason = str(error).split("\n")[0]
        raise DataError(f"{name}: cannot be read as a picture ({reason})") from error
    return picture


def make_image_grid(
    images: Sequence[Image.Image], rows: int, cols: int, resize: int | None = None
) -> Image.Image:
    """Put pictures side by side, row by row, each ``resize`` pixels high and wide if asked.

    Raises:
        ConfigError: not as many pictures as places.
    """
    if not images or len(images) != rows * cols:
        raise ConfigError(f"{len(images)} pictures do not fill {rows} rows of {cols}")
    tiles = [image if resize is None else image.resize((resize, resize)) for image in images]
    width, height = tiles[0].size
    grid = Image.new("RGB", (cols * width, rows * height))
    for index, tile in enumerate(tiles):
        grid.paste(tile, (index % cols * width, index // cols * height))
    return grid
