"""Drawings in a portable form: vectors stay vectors, and any size can be drawn from them.

A pack of drawings is two or three files: `NAME.records.xz`, what is known of each, one JSON object
a line; `NAME.drawings.xz`, the drawings, likewise; `NAME.rasters`, the picture files among them.
"""

from __future__ import annotations

import io
import json
import lzma
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from recipes.glyph.data.iconify import Icon
from recipes.glyph.data.pictures import Record, parse_record
from recipes.glyph.data.rasterize import Box, Pixels, draw_icon, draw_picture
from sanakit.errors import DataError

RECORDS_XZ, DRAWINGS_XZ, RASTERS = ".records.xz", ".drawings.xz", ".rasters"
_PRESET = 6
_RASTER_QUALITY = 90


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What one picture is drawn from: a ``view`` of an icon, or of a picture file with alpha.

    An empty ``shade`` leaves the icon's own colours; ``encoded`` excludes ``icon``.
    """

    record: Record
    view: Box
    icon: Icon | None = None
    shade: str = ""
    encoded: bytes = b""

    def draw(self, size: int) -> Pixels:
        """The picture, ``size size 4``.

        Raises:
            DataError: the renderer is not installed, or it refuses the drawing.
        """
        try:
            if self.icon is None:
                return draw_picture(self.encoded, self.view, size=size)
            return draw_icon(self.icon, self.view, size=size, colour=self.shade or None)
        except (ValueError, OSError) as error:
            raise DataError(
                f"{self.record.id} cannot be drawn at {size} px: {error}",
                hint="leave its row out, or draw with the version of resvg-py it was made with",
            ) from error


def compact(encoded: bytes) -> bytes:
    """A picture file as it is if it is WebP already, else as a small WebP; alpha stays exact."""
    with Image.open(io.BytesIO(encoded)) as image:
        if image.format == "WEBP":
            return encoded
        buffer = io.BytesIO()
        image.convert("RGBA").save(buffer, "WEBP", quality=_RASTER_QUALITY, method=4)
    return buffer.getvalue()


def write_drawings(folder: Path, name: str, drawings: Sequence[Drawing]) -> None:
    """Write one pack."""
    lines: list[list[Any]] = []
    rasters = b"".join(drawing.encoded for drawing in drawings)
    start = 0
    for drawing in drawings:
        view = [float(f"{number:.6g}") for number in drawing.view]
        if drawing.icon is None:
            lines.append([view, start, len(drawing.encoded)])
            start += len(drawing.encoded)
        else:
            lines.append([view, drawing.shade, list(drawing.icon.canvas), drawing.icon.body])
    if rasters:
        (folder / f"{name}{RASTERS}").write_bytes(rasters)
    _write_lines(folder / f"{name}{DRAWINGS_XZ}", lines)
    _write_lines(folder / f"{name}{RECORDS_XZ}", [asdict(one.record) for one in drawings])


def read_records(folder: Path, name: str) -> list[Record]:
    """The records of a pack.

    Raises:
        DataError: the file is absent or damaged.
    """
    return [parse_record(line) for line in _read_lines(folder / f"{name}{RECORDS_XZ}")]


def read_drawings(folder: Path, name: str) -> Iterator[Drawing]:
    """The drawings of a pack, in order.

    Raises:
        DataError: a file is absent or damaged.
    """
    path = folder / f"{name}{RASTERS}"
    rasters = path.read_bytes() if path.is_file() else b""
    lines = _read_lines(folder / f"{name}{DRAWINGS_XZ}")
    for record, line in zip(read_records(folder, name), lines, strict=True):
        view: Box = tuple(line[0])
        if len(line) == 3:
            encoded = rasters[line[1] : line[1] + line[2]]
            yield Drawing(record=record, view=view, encoded=encoded)
        else:
            _, shade, canvas, body = line
            icon = Icon(name=record.id, body=body, canvas=tuple(canvas))
            yield Drawing(record=record, view=view, icon=icon, shade=shade)


def _write_lines(path: Path, values: Sequence[Any]) -> None:
    text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    path.write_bytes(lzma.compress(text.encode("utf-8", "surrogatepass"), preset=_PRESET))


def _read_lines(path: Path) -> list[Any]:
    try:
        text = lzma.decompress(path.read_bytes()).decode("utf-8", "surrogatepass")
        return [json.loads(line) for line in text.split("\n") if line]
    except (OSError, lzma.LZMAError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {error}", hint="delete the folder's marks and build again"
        ) from error
