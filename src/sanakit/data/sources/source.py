"""What every source gives, whatever its layout: units of samples, in an order that never changes.

A source knows places and captions; it decodes no picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from sanakit.data.samples import Refusal, Sample

# Reasons of the refusals that sources make; `data/images/decode.py` has those of pictures.
DUPLICATE, UNREADABLE, UNSAFE = "duplicate key", "unreadable", "unsafe name"
BAD_CAPTIONS, NO_PICTURE, FORMAT = "bad captions", "no picture", "unsupported format"
UNLISTED = "not listed"


class Source(Protocol):
    """Pictures with what is known of them.

    ``root`` is the folder that places are relative to; ``kind`` is "folder", "table",
    "hugging-face", "webdataset" or "wids". Opening the same files again, in any process, gives
    the same units.
    """

    @property
    def root(self) -> Path:
        """The folder that the files of places are in."""

    @property
    def kind(self) -> str:
        """The layout that was found."""

    def units(self) -> list[str]:
        """Names of the units, sorted: a unit has at most ``unit_size`` samples."""

    def made_from(self, unit: str) -> str:
        """A hash that changes when files of the unit do: their names, sizes, times, settings."""

    def read(self, unit: str) -> Iterator[Sample | Refusal]:
        """The unit's samples in order; what is wrong with one becomes a refusal beside it.

        A refusal with the reason "bad captions" keeps captions out, not their picture.
        """


def unit_names(count: int, size: int) -> list[str]:
    """Names of the units that ``count`` things in groups of ``size`` make, zero-padded."""
    units = -(-count // size)
    width = max(5, len(str(units - 1)))
    return [f"{unit:0{width}d}" for unit in range(units)]


def file_state(path: Path) -> tuple[int, int]:
    """Size in bytes and time of the last change in nanoseconds; (-1, -1) where no file is."""
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns
