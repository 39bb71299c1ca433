"""Pictures with alpha, losslessly compressed one by one, read at random.

A folder holds packs: `NAME.webps` is pictures one after another, `NAME.spans.npy` where each of
them begins. `index.json` lists the packs in order and is written last.
"""

from __future__ import annotations

import io
import json
import mmap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from recipes.glyph.data.rasterize import Pixels
from sanakit.errors import DataError
from sanakit.files import write_json

INDEX = "index.json"
PACK, SPANS = ".webps", ".spans.npy"
FORMAT = 1

# Emoji at 256 px, one core: 3.2 ms to write, 0.36 ms to read, 8.2 KiB. PNG takes 1.7, 0.57 and
# 15.5; WebP's method 0 1.1, 0.51 and 13.7; method 2 4.1, 0.37 and 7.9.
_METHOD, _EFFORT = 1, 0


def encode(rgba: Pixels) -> bytes:
    """Compress ``H W 4``; every visible pixel is kept exactly, invisible ones lose their colour."""
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, "WEBP", lossless=True, method=_METHOD, quality=_EFFORT)
    return buffer.getvalue()


def decode(data: bytes) -> Pixels:
    """The ``H W 4`` that was compressed."""
    with Image.open(io.BytesIO(data), formats=("WEBP",)) as image:
        return np.asarray(image.convert("RGBA"), dtype=np.uint8)


def write_pack(folder: Path, name: str, pictures: Iterable[Pixels]) -> int:
    """Write one pack; gives the number of its pictures."""
    spans = [0]
    with (folder / f"{name}{PACK}").open("wb") as file:
        for rgba in pictures:
            spans.append(spans[-1] + file.write(encode(rgba)))
    np.save(folder / f"{name}{SPANS}", np.array(spans, dtype=np.int64))
    return len(spans) - 1


def write_index(
    folder: Path, size: int, packs: Sequence[tuple[str, int]], *, made_from: str = ""
) -> None:
    """Declare a folder finished: ``packs`` are names and numbers of pictures, in order."""
    listed = [list(pack) for pack in packs]
    value = {"format": FORMAT, "size": size, "packs": listed, "made_from": made_from}
    write_json(folder / INDEX, value, indent=None)


@dataclass(frozen=True)
class PictureStore:
    """All pictures of one size; opens a pack when it is first read, also in another process."""

    folder: Path
    size: int
    packs: tuple[tuple[str, int], ...]
    _open: dict[str, tuple[mmap.mmap, npt.NDArray[np.int64]]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @classmethod
    def open(cls, folder: Path) -> PictureStore:
        """Open a finished folder.

        Raises:
            DataError: the index is absent, damaged or of another format, or a pack is absent.
        """
        hint = "build the data set first"
        path = folder / INDEX
        if not path.is_file():
            raise DataError(f"{path} is missing", hint=hint)
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            if value["format"] != FORMAT:
                raise ValueError(f"format {value['format']}, not {FORMAT}")
            packs = tuple((str(name), int(count)) for name, count in value["packs"])
            store = cls(folder, int(value["size"]), packs)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged: {error}", hint=hint) from error
        for name, _ in packs:
            for ending in (PACK, SPANS):
                if not (folder / f"{name}{ending}").is_file():
                    raise DataError(f"{folder / f'{name}{ending}'} is missing", hint=hint)
        return store

    def __len__(self) -> int:
        return sum(count for _, count in self.packs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a memory map does not travel to another process

    def rgba(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> Pixels:
        """The pictures of these numbers: ``b S S 4`` uint8, straight alpha.

        Raises:
            DataError: a number is out of range, or a picture is damaged.
        """
        found = np.empty((len(indices), self.size, self.size, 4), dtype=np.uint8)
        starts = np.cumsum([0, *(count for _, count in self.packs)])
        for picture, number in zip(found, np.asarray(indices).tolist(), strict=True):
            if not 0 <= number < starts[-1]:
                raise DataError(f"picture {number} of {starts[-1]} does not exist")
            pack = int(np.searchsorted(starts, number, side="right")) - 1
            name = self.packs[pack][0]
            data, spans = self._pack(name)
            row = number - int(starts[pack])
            try:
                picture[:] = decode(data[spans[row] : spans[row + 1]])
            except (OSError, ValueError, IndexError) as error:
                raise DataError(
                    f"{self.folder / name}{PACK}: picture {row} is damaged ({error})",
                    hint="delete the pack's .done.json and build the data set again",
                ) from error
        return found

    def _pack(self, name: str) -> tuple[mmap.mmap, npt.NDArray[np.int64]]:
        if name not in self._open:
            with (self.folder / f"{name}{PACK}").open("rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._open[name] = data, np.load(self.folder / f"{name}{SPANS}")
        return self._open[name]
