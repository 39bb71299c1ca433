"""Draws many pictures with several processes into one memory map that appears only when done."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from sanakit.data.glyph.iconify import Icon
from sanakit.data.glyph.rasterize import Pixels, load_renderer, render_icon, resize_picture
from sanakit.errors import DataError
from sanakit.weights.atomic import replacing

Report: TypeAlias = Callable[[str], None]
REPORT_EVERY = 1000


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What one picture is drawn from: an icon and the colour it is painted in, or a picture file.

    An empty ``colour`` leaves the icon's own colours; ``encoded`` excludes ``icon``.
    """

    id: str
    icon: Icon | None = None
    colour: str = ""
    encoded: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The numbers of the drawings that were kept, in order, and the ids of those that were not."""

    kept: list[int]
    blank: list[str]
    failed: dict[str, str]


def _draw(task: tuple[Drawing, int]) -> Pixels | str | None:
    """One picture: its pixels, None if it is blank, or what went wrong."""
    drawing, size = task
    try:
        if drawing.icon is None:
            return resize_picture(drawing.encoded, size=size)
        return render_icon(drawing.icon, size=size, colour=drawing.colour or None)
    except (ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"


def _results(drawings: Sequence[Drawing], size: int, workers: int) -> Iterator[Pixels | str | None]:
    tasks = ((drawing, size) for drawing in drawings)
    if workers == 1:
        yield from map(_draw, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(_draw, tasks, chunksize=32)


def draw_all(
    path: Path, drawings: Sequence[Drawing], *, size: int, workers: int, report: Report
) -> Drawn:
    """Write the pictures as ``N size size 4`` uint8 to the .npy file ``path``, in order.

    Blank and failed drawings are left out, so N may be less than ``len(drawings)``. The result
    does not depend on ``workers``; with more than one the calling script must be importable.

    Raises:
        DataError: the renderer is not installed, or nothing could be drawn.
    """
    if any(drawing.icon for drawing in drawings):
        load_renderer()
    kept: list[int] = []
    blank: list[str] = []
    failed: dict[str, str] = {}
    with replacing(path) as temporary:
        shape = (len(drawings), size, size, 4)
        canvas = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
        for index, result in enumerate(_results(drawings, size, workers)):
            if isinstance(result, np.ndarray):
                canvas[len(kept)] = result
                kept.append(index)
            elif result is None:
                blank.append(drawings[index].id)
            else:
                failed[drawings[index].id] = result
            if (index + 1) % REPORT_EVERY == 0:
                report(f"drew {index + 1} of {len(drawings)} pictures")
        if not kept:
            raise DataError(
                f"none of {len(drawings)} pictures could be drawn",
                hint=f"the first failures: {list(failed.items())[:3]}",
            )
        canvas.flush()
        if len(kept) < len(drawings):
            _shorten(temporary, len(kept))
    return Drawn(kept=kept, blank=blank, failed=failed)


def _shorten(path: Path, length: int) -> None:
    """Keep the first ``length`` pictures of a .npy file."""
    whole = np.load(path, mmap_mode="r")
    with replacing(path) as shorter:
        shape = (length, *whole.shape[1:])
        part = np.lib.format.open_memmap(shorter, "w+", np.uint8, shape)
        for start in range(0, length, 256):
            part[start : start + 256] = whole[start : min(start + 256, length)]
        part.flush()
