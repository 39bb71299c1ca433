"""A data set of plain shapes that can stand in composites, each found again by its colour."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from sanakit.data.glyph.pictures import RECORDS, SUMMARY, GlyphPictures, Record, store_folder
from sanakit.data.glyph.rasterize import visible_box
from sanakit.data.glyph.store import write_index, write_pack
from tiny_pictures import tiny_record

SIZE = 64
# Concept -> its own colour, told apart from every other and from every background.
THINGS = {
    "red apple": (220, 20, 40),
    "key": (20, 160, 60),
    "cup of coffee": (120, 60, 10),
    "mouse": (90, 40, 160),
    "fish": (250, 150, 0),
    "box": (0, 120, 140),
    "umbrella": (160, 0, 110),
}
PAINTED = ("star", "car", "leaf", "hourglass", "bell")


def shape(index: int) -> np.ndarray:
    """A full rectangle somewhere in the middle, wide for even numbers and tall for odd ones."""
    rgba = np.zeros((SIZE, SIZE, 4), np.uint8)
    wide, high = (56, 30 + index) if index % 2 == 0 else (26 + index, 56)
    left, top = (SIZE - wide) // 2, (SIZE - high) // 2
    rgba[top : top + high, left : left + wide] = (0, 0, 0, 255)
    return rgba


def _art() -> Iterator[tuple[np.ndarray, Record]]:
    for index, (concept, rgb) in enumerate(THINGS.items()):
        picture = shape(index)
        picture[..., :3] = rgb
        record = replace(
            tiny_record(index), id=f"flat/{concept}", name=concept, colour="", cutout=True,
            style_words=["flat vector emoji"], hidden_on=("peach",) if concept == "fish" else (),
        )  # fmt: skip
        yield picture, record
    for index, concept in enumerate(PAINTED):
        record = replace(
            tiny_record(index), id=f"silhouette/{concept}", name=concept, style="silhouette",
            style_words=["solid one-color icon"], colour="black", cutout=True, painted=True,
        )  # fmt: skip
        yield shape(index), record
    others = {
        "gorilla": {"split": "held_concept"},
        "tulip": {"split": "held_style"},
        "flag": {"cutout": False},
        "dot": {"weight": 0},
    }
    for concept, changes in others.items():
        record = replace(tiny_record(0), id=concept, name=concept, cutout=True)
        yield shape(0), replace(record, **changes)


def tiny_scenes(folder: Path) -> GlyphPictures:
    """Seven things in one style, five to be painted, and four that may not be used."""
    return write_art(folder, _art())


def write_art(folder: Path, art: Iterable[tuple[np.ndarray, Record]]) -> GlyphPictures:
    """A data set of drawings of one size, their boxes found."""
    pictures, records = zip(*art, strict=True)
    framed = []
    for picture, record in zip(pictures, records, strict=True):
        box = visible_box(picture[..., 3])
        assert box is not None
        framed.append(replace(record, box=tuple(part / len(picture) for part in box)))
    size = pictures[0].shape[0]
    store = store_folder(folder, size)
    store.mkdir(parents=True)
    write_index(store, size, [("all", write_pack(store, "all", pictures))])
    lines = [json.dumps(asdict(record)) for record in framed]
    (folder / RECORDS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / SUMMARY).write_text("{}\n", encoding="utf-8")
    return GlyphPictures.open(folder)
