"""A data set small enough for every test: coloured squares on transparency, in the format read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from sanakit.data.glyph.pictures import RECORDS, SUMMARY, GlyphPictures, Record, store_folder
from sanakit.data.glyph.store import write_index, write_pack

COLOURS = ("Red", "green", "blue", "yellow")


def tiny_record(index: int, *, split: str = "train", weight: float = 1.0) -> Record:
    """The record of a square; two captions each, one of them capitalised."""
    colour = COLOURS[index % len(COLOURS)]
    return Record(
        id=f"square-{index}",
        name="square",
        style="flat",
        style_words=["flat"],
        captions=[f"a {colour} square", f"a tree, {colour} number {index}"],
        source="test",
        licence="CC0-1.0",
        split=split,
        weight=weight,
        colour=colour.lower(),
        pale=False,
    )


def write_pictures(folder: Path, records: list[Record], *, size: int = 64) -> Path:
    """Write one picture a record: its own colour, its own place, half of it see-through."""
    rng = np.random.default_rng(0)
    pictures = np.zeros((len(records), size, size, 4), dtype=np.uint8)
    for picture in pictures:
        top, left = rng.integers(0, size // 2, 2)
        square = picture[top : top + size // 2, left : left + size // 2]
        square[..., :3] = rng.integers(0, 256, 3)
        square[..., 3] = 255
        square[: size // 4, :, 3] = 128
    store = store_folder(folder, size)
    store.mkdir(parents=True, exist_ok=True)
    half = len(records) // 2
    parts = {"first": pictures[:half], "second": pictures[half:]}
    write_index(
        store, size, [(name, write_pack(store, name, part)) for name, part in parts.items()]
    )
    lines = [json.dumps(asdict(record)) for record in records]
    (folder / RECORDS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / SUMMARY).write_text("{}\n", encoding="utf-8")
    return folder


def tiny_pictures(folder: Path, *, size: int = 64) -> GlyphPictures:
    """Six to train on, two of each held-out split, written and opened again."""
    splits = ["train"] * 6 + ["held_concept"] * 2 + ["held_style"] * 2
    records = [tiny_record(index, split=split) for index, split in enumerate(splits)]
    return GlyphPictures.open(write_pictures(folder, records, size=size))
