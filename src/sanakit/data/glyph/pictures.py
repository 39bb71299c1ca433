"""Reads a data set of pictures with alpha and their records, and puts pictures on a background."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from sanakit.errors import DataError
from sanakit.shapes import Image

PICTURES = "pictures.npy"
RECORDS = "records.jsonl"
SUMMARY = "summary.json"  # written last: without it the build is unfinished
SPLITS = ("train", "held_concept", "held_style")


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


@dataclass(frozen=True, kw_only=True)
class GlyphPictures:
    """A data set on disk: ``pictures`` is a read-only memory map ``N H W 4`` uint8 RGBA."""

    pictures: npt.NDArray[np.uint8]
    records: list[Record]

    @classmethod
    def open(cls, folder: Path) -> GlyphPictures:
        """Open the data set in a folder; pixels are read when they are asked for.

        Raises:
            DataError: a file is absent or damaged, or pictures and records differ in number.
        """
        hint = "build the data set first"
        for name in (SUMMARY, PICTURES, RECORDS):
            if not (folder / name).is_file():
                raise DataError(f"{folder / name} is missing", hint=hint)
        try:
            pictures = np.load(folder / PICTURES, mmap_mode="r")
            lines = (folder / RECORDS).read_text(encoding="utf-8").splitlines()
            records = [Record(**json.loads(line)) for line in lines]
        except (ValueError, TypeError) as error:
            raise DataError(f"{folder} holds a damaged data set: {error}", hint=hint) from error
        if pictures.ndim != 4 or pictures.shape[-1] != 4 or pictures.dtype != np.uint8:
            raise DataError(
                f"{folder / PICTURES} is {pictures.dtype} {pictures.shape}, not uint8 N H W 4",
                hint=hint,
            )
        if len(pictures) != len(records):
            raise DataError(
                f"{folder} has {len(pictures)} pictures and {len(records)} records", hint=hint
            )
        return cls(pictures=pictures, records=records)

    def indices(self, split: str) -> npt.NDArray[np.int64]:
        """The numbers of the pictures in a split.

        Raises:
            DataError: there is no such split.
        """
        if split not in SPLITS:
            raise DataError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        chosen = [index for index, record in enumerate(self.records) if record.split == split]
        return np.array(chosen, dtype=np.int64)


def compose(rgba: npt.NDArray[np.uint8], background: npt.NDArray[np.floating]) -> Image:
    """Put pictures ``b H W 4`` on plain colours ``b 3`` in [0, 1]; float32 in [-1, 1].

    Alpha is straight; colours mix as stored, without gamma, as browsers do.
    """
    pixels = torch.from_numpy(np.array(rgba)).permute(0, 3, 1, 2).float() / 255
    behind = torch.from_numpy(np.asarray(background, dtype=np.float32))[:, :, None, None]
    colour, alpha = pixels[:, :3], pixels[:, 3:]
    return (behind + (colour - behind) * alpha) * 2 - 1
