"""The bytes at a place of a source, and never a byte outside the source's folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sanakit.data.samples import Place
from sanakit.data.sources.names import path_inside, shown
from sanakit.data.sources.rows import read_cell
from sanakit.errors import DataError

LARGEST = 1 << 29
"""Bytes of the largest file that counts as a picture: reading more could exhaust the memory."""
LARGEST_TEXT = 1 << 20
"""Bytes of the largest file of captions of one picture."""


def read_place(root: Path, place: Place) -> bytes:
    """The bytes of a picture. ``root`` is the source's folder, or the file it was opened from.

    Raises:
        DataError: nothing is there, it is cut short, larger than ``LARGEST``, not a regular file,
            or the place leads out of ``root`` by its name or by a link.
    """
    root = root.parent if root.is_file() else root
    if place.kind == "file":
        return read_inside(root, place.file, limit=LARGEST)
    if place.kind == "span":
        return read_inside(root, place.file, start=place.start, length=place.length, limit=LARGEST)
    cell = read_cell(path_inside(root, place.file), place.start, place.column)
    if isinstance(cell, str):  # a row that names a file instead of holding it
        return read_inside(root, cell, limit=LARGEST)
    return cell


def read_inside(
    root: Path, name: str, *, limit: int, start: int = 0, length: int | None = None
) -> bytes:
    """``length`` bytes (None: all) from ``start`` of a regular file below ``root``.

    Raises:
        DataError: as :func:`read_place`.
    """
    path = path_inside(root, name)
    # A named pipe would block for ever: it is opened without waiting and refused by its kind.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise DataError(f"{shown(name)} is not a regular file")
            wanted = found.st_size - start if length is None else length
            if start < 0 or wanted < 0 or start + wanted > found.st_size:
                raise DataError(
                    f"{shown(name)} has {found.st_size} bytes, and {start} to {start + wanted} are"
                    " asked for: it was cut short or changed",
                    hint="run `sanakit data scan` again",
                )
            if wanted > limit:
                raise DataError(f"{shown(name)}: {wanted} bytes are more than {limit}")
            os.lseek(descriptor, start, os.SEEK_SET)
            return _exactly(descriptor, wanted, name)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DataError(f"{shown(name)} cannot be read ({error.strerror or error})") from error


def _exactly(descriptor: int, length: int, name: str) -> bytes:
    blocks = []
    while length:
        block = os.read(descriptor, length)
        if not block:
            raise DataError(f"{shown(name)} became shorter while it was read")
        blocks.append(block)
        length -= len(block)
    return b"".join(blocks)
