"""Drawings become square RGBA pictures: centred on their visible part, with a small margin."""

from __future__ import annotations

import importlib
import io
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from recipes.glyph.data.iconify import Icon, svg_text
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


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a first look at a drawing tells: the square ``view`` to draw, in the drawing's units.

    ``box`` is the visible part inside that view, as parts of its side; ``pixels`` are
    the whole canvas, square, not framed.
    """

    view: Box
    box: Box
    pixels: Pixels


def _found(pixels: Pixels, view: Box) -> Box | None:
    """The box of what a picture of a ``view`` shows, in the view's units."""
    box = visible_box(pixels[..., 3])
    if box is None:
        return None
    unit = view[2] / len(pixels)
    return view[0] + box[0] * unit, view[1] + box[1] * unit, box[2] * unit, box[3] * unit


def _inside(found: Box, view: Box) -> Box:
    """A box in parts of a view's side."""
    left, top = (found[0] - view[0]) / view[2], (found[1] - view[1]) / view[2]
    width, height = found[2] / view[2], found[3] / view[2]
    return round(left, 4), round(top, 4), round(width, 4), round(height, 4)


def _render(svg: str) -> Pixels:
    renderer = load_renderer()
    try:
        png = renderer.svg_to_bytes(svg_string=svg, skip_system_fonts=True)
    except BaseException as error:
        # A renderer that panics raises what is no Exception, and only its name tells.
        if type(error).__name__ == "PanicException":
            raise ValueError(f"the renderer crashed: {error}") from error
        raise
    with Image.open(io.BytesIO(png)) as image:
        return np.array(image.convert("RGBA"), dtype=np.uint8)


def probe_icon(icon: Icon, *, colour: str | None = None) -> Probe | None:
    """Find what to draw of an icon; None if nothing of it is visible.

    Raises:
        DataError: the renderer is not installed.
        ValueError: the renderer refuses the drawing.
    """
    side = max(icon.canvas[2:])
    probe = _look(icon, (*icon.canvas[:2], side, side), colour)
    if probe is not None and max(probe.box[2:]) * probe.view[2] < side * SHARP_PROBE / PROBE:
        return _look(icon, probe.view, colour)  # a small thing on a large page: from nearer
    return probe


def _look(icon: Icon, view: Box, colour: str | None) -> Probe | None:
    """Draw a view of an icon small, and frame what it shows."""
    pixels = _render(svg_text(icon, view, size=PROBE, colour=colour))
    found = _found(pixels, view)
    if found is None:
        return None
    framed = framing(found, max(icon.canvas[2:]), icon.zoom)
    return Probe(view=framed, box=_inside(found, framed), pixels=pixels)


def draw_icon(icon: Icon, view: Box, *, size: int, colour: str | None = None) -> Pixels:
    """The ``view`` of an icon as ``size size 4`` uint8 RGBA.

    Raises:
        DataError: the renderer is not installed.
        ValueError: the renderer refuses the drawing.
    """
    return _render(svg_text(icon, view, size=size, colour=colour))


def render_icon(icon: Icon, *, size: int, colour: str | None = None) -> Pixels | None:
    """Draw an icon as ``size size 4`` uint8 RGBA, framed; None if nothing of it is visible.

    Raises:
        DataError: the renderer is not installed.
        ValueError: the renderer refuses the drawing.
    """
    probe = probe_icon(icon, colour=colour)
    return None if probe is None else draw_icon(icon, probe.view, size=size, colour=colour)


def _decode(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGBA"), dtype=np.uint8)


def probe_picture(data: bytes) -> Probe | None:
    """Find what to show of a picture file with alpha, in its pixels; None if it is empty.

    Raises:
        OSError: the file cannot be decoded.
    """
    rgba = _decode(data)
    side = max(rgba.shape[:2])
    square = np.zeros((side, side, 4), dtype=np.uint8)
    square[: rgba.shape[0], : rgba.shape[1]] = rgba
    found = _found(square, (0.0, 0.0, side, side))
    if found is None:
        return None
    view = framing(found, side)
    return Probe(view=view, box=_inside(found, view), pixels=square)


def draw_picture(data: bytes, view: Box, *, size: int) -> Pixels:
    """The ``view`` of a picture file as ``size size 4``.

    Colours are averaged weighted by alpha, so that the invisible colour of empty pixels does not
    bleed into the edge.

    Raises:
        OSError: the file cannot be decoded.
    """
    left, top, side = round(view[0]), round(view[1]), round(view[2])
    crop = Image.fromarray(_decode(data)).crop((left, top, left + side, top + side))
    return np.array(crop.resize((size, size), Image.Resampling.LANCZOS), dtype=np.uint8)


def resize_picture(data: bytes, *, size: int) -> Pixels | None:
    """Decode a picture file with alpha and frame it as ``size size 4``; None if it is empty.

    Raises:
        OSError: the file cannot be decoded.
    """
    probe = probe_picture(data)
    return None if probe is None else draw_picture(data, probe.view, size=size)
