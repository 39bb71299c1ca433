"""Drawings become square RGBA pictures: centred on their visible part, with a small margin."""

from __future__ import annotations

import importlib
import io
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from sanakit.data.glyph.iconify import Icon, svg_text
from sanakit.errors import DataError

Pixels: TypeAlias = npt.NDArray[np.uint8]  # H W 4, straight alpha

MARGIN = 0.06  # empty border, as a part of the side
MAX_ZOOM = 1.5  # of a picture file; an icon has its own
VISIBLE = 12  # alpha, of 255, from which a pixel counts as drawn
PROBE = 96  # side of the first rendering, which only finds the visible part
SHARP_PROBE = 32  # side of a visible part in it that is found exactly enough

Box: TypeAlias = tuple[float, float, float, float]  # left, top, width, height


def load_renderer() -> Any:
    """The SVG renderer's module, imported on first use so that reading data never needs it.

    Raises:
        DataError: it is not installed.
    """
    try:
        return importlib.import_module("resvg_py")
    except ImportError as error:
        raise DataError(
            "rendering SVG needs the package resvg-py", hint='pip install "sanakit[data]"'
        ) from error


def visible_box(alpha: npt.NDArray[np.uint8]) -> Box | None:
    """The smallest box, in pixels, around everything drawn; None for an empty picture."""
    drawn = alpha >= VISIBLE
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    if rows.size == 0:
        return None
    top, left = int(rows[0]), int(columns[0])
    return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top


def framing(box: Box, side: float, zoom: float = MAX_ZOOM) -> Box:
    """The square view that centres ``box`` with a margin and enlarges it ``zoom`` at most.

    ``side`` is the side of the canvas the box was found in, in the box's units.
    """
    left, top, width, height = box
    view = max(max(width, height) / (1 - 2 * MARGIN), side / zoom)
    return left + (width - view) / 2, top + (height - view) / 2, view, view


def _render(renderer: Any, svg: str) -> Pixels:
    png = renderer.svg_to_bytes(svg_string=svg, skip_system_fonts=True)
    with Image.open(io.BytesIO(png)) as image:
        return np.array(image.convert("RGBA"), dtype=np.uint8)


def render_icon(icon: Icon, *, size: int, colour: str | None = None) -> Pixels | None:
    """Draw an icon as ``size size 4`` uint8 RGBA, framed; None if nothing of it is visible.

    Raises:
        DataError: the renderer is not installed.
        ValueError: the renderer refuses the drawing.
    """
    renderer = load_renderer()
    side = max(icon.canvas[2:])
    view = (*icon.canvas[:2], side, side)
    for _ in range(2):
        probe = _render(renderer, svg_text(icon, view, size=PROBE, colour=colour))
        box = visible_box(probe[..., 3])
        if box is None:
            return None
        unit = view[2] / PROBE
        found = (view[0] + box[0] * unit, view[1] + box[1] * unit, box[2] * unit, box[3] * unit)
        view = framing(found, side, icon.zoom)
        if max(box[2:]) > SHARP_PROBE:
            break  # a small thing on a large page is measured again, from nearer
    return _render(renderer, svg_text(icon, view, size=size, colour=colour))


def resize_picture(data: bytes, *, size: int) -> Pixels | None:
    """Decode a picture file with alpha and frame it as ``size size 4``; None if it is empty.

    Colours are averaged weighted by alpha, so that the invisible colour of empty pixels does not
    bleed into the edge.

    Raises:
        OSError: the file cannot be decoded.
    """
    with Image.open(io.BytesIO(data)) as image:
        rgba = np.array(image.convert("RGBA"), dtype=np.uint8)
    box = visible_box(rgba[..., 3])
    if box is None:
        return None
    left, top, side, _ = framing(box, max(rgba.shape[:2]))
    start = round(left), round(top)
    crop = Image.fromarray(rgba).crop((*start, start[0] + round(side), start[1] + round(side)))
    return np.array(crop.resize((size, size), Image.Resampling.LANCZOS), dtype=np.uint8)
