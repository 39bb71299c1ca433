"""A data set of pictures with alpha and their records, and what puts pictures on a background."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from recipes.glyph.data.rasterize import Pixels
from recipes.glyph.data.store import INDEX, PictureStore
from sanakit.errors import DataError
from sanakit.shapes import Image

RECORDS = "records.jsonl"
SUMMARY = "summary.json"  # written last: without it the build is unfinished
SPLITS = ("train", "held_concept", "held_style")
_STORE = "pictures-"


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known of one picture.

    ``name`` is the concept, the same in every style; ``weight`` is how often to draw the picture
    relative to others; ``colour`` is its colour word, or empty; a ``pale`` picture would nearly
    vanish on white.
    """

    id: str
    name: str
    style: str
    style_words: list[str]
    captions: list[str]
    source: str
    licence: str
    split: str
    weight: float
    colour: str
    pale: bool
    row: str = ""
    cutout: bool = False
    """Whether it shows one whole, countable thing, fit to stand in a composite."""
    painted: bool = False
    """Whether the colour was ours to choose: a drawing of one colour."""
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    """Left, top, width and height of what is drawn, as parts of the side."""
    hidden_on: tuple[str, ...] = ()
    """Names of the backgrounds on which too little of it shows."""


def store_folder(folder: Path, size: int) -> Path:
    """Where the pictures of one size are."""
    return folder / f"{_STORE}{size}"


def sizes(folder: Path) -> list[int]:
    """The sizes a data set was built at, the smallest first."""
    names = (path.parent.name for path in folder.glob(f"{_STORE}*/{INDEX}"))
    found = (name.removeprefix(_STORE) for name in names)
    return sorted(int(size) for size in found if size.isdigit())


@dataclass(frozen=True, kw_only=True)
class GlyphPictures:
    """A data set on disk, at one size: picture and record of a number belong together."""

    store: PictureStore
    records: list[Record]

    @classmethod
    def open(cls, folder: Path, size: int | None = None) -> GlyphPictures:
        """Open the data set in a folder; pictures are read when they are asked for.

        ``size`` may be left out if the data set was built at one size.

        Raises:
            DataError: a file is absent or damaged, pictures and records differ in number, or the
                data set was built at several sizes or not at this one.
        """
        hint = "build the data set first"
        if not (folder / SUMMARY).is_file():
            raise DataError(f"{folder / SUMMARY} is missing", hint=hint)
        records = read_all_records(folder)
        built = sizes(folder)
        if size is None and len(built) != 1:
            listed = ", ".join(str(one) for one in built) or "none"
            raise DataError(f"{folder} has pictures of these sizes: {listed}", hint="name one size")
        store = PictureStore.open(store_folder(folder, built[0] if size is None else size))
        if len(store) != len(records):
            raise DataError(
                f"{folder} has {len(store)} pictures and {len(records)} records", hint=hint
            )
        return cls(store=store, records=records)

    @property
    def size(self) -> int:
        """The side of a picture, pixels."""
        return self.store.size

    def rgba(self, indices: npt.NDArray[np.integer] | list[int]) -> Pixels:
        """The pictures of these numbers: ``b S S 4`` uint8, straight alpha."""
        return self.store.rgba(indices)

    def indices(self, split: str) -> npt.NDArray[np.int64]:
        """The numbers of the pictures in a split.

        Raises:
            DataError: there is no such split.
        """
        if split not in SPLITS:
            raise DataError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        chosen = [index for index, record in enumerate(self.records) if record.split == split]
        return np.array(chosen, dtype=np.int64)


def read_all_records(folder: Path) -> list[Record]:
    """The records of a data set, in the order of its pictures.

    Raises:
        DataError: the file is absent or damaged.
    """
    path, hint = folder / RECORDS, "build the data set first"
    if not path.is_file():
        raise DataError(f"{path} is missing", hint=hint)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        return [parse_record(json.loads(line)) for line in lines if line]
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error}", hint=hint) from error


def parse_record(value: dict[str, Any]) -> Record:
    """The record a JSON object holds.

    Raises:
        TypeError: a field is absent or unknown.
    """
    for name in ("box", "hidden_on"):
        if name in value:
            value[name] = tuple(value[name])
    return Record(**value)


def compose(rgba: npt.NDArray[np.uint8], background: npt.NDArray[np.floating]) -> Image:
    """Put pictures ``b H W 4`` on plain colours ``b 3`` in [0, 1]; float32 in [-1, 1].

    Alpha is straight; colours mix as stored, without gamma, as browsers do.
    """
    pixels = torch.from_numpy(np.array(rgba)).permute(0, 3, 1, 2).float() / 255
    behind = torch.from_numpy(np.asarray(background, dtype=np.float32))[:, :, None, None]
    colour, alpha = pixels[:, :3], pixels[:, 3:]
    return (behind + (colour - behind) * alpha) * 2 - 1
