"""A data set of coloured shapes in three styles, and eyes and words small enough to learn it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer

from sanakit.data.glyph.pictures import RECORDS, SUMMARY, GlyphPictures, Record, store_folder
from sanakit.data.glyph.rasterize import visible_box
from sanakit.data.glyph.store import write_index, write_pack
from sanakit.evaluate.judge_run import Words
from sanakit.evaluate.judge_sight import Sight
from sanakit.train.settings import LoopConfig
from tiny import TOKENIZER
from tiny_pictures import tiny_record

SIZE = 64
COLOURS = {
    "red": (215, 25, 30), "green": (20, 150, 50), "blue": (30, 60, 200),
    "orange": (245, 140, 10), "purple": (130, 30, 160), "brown": (110, 65, 20),
}  # fmt: skip
SHAPES = ("square", "disc", "bar", "corner")
STYLES = {"flat": 1.0, "small": 0.6, "tiny": 0.4}
HELD = {"red disc", "blue bar", "green corner", "brown square", "orange disc", "purple bar"}
LOOP = LoopConfig(
    batch_size=64, total_images=64 * 90, peak_lr=3e-3, schedule="cosine", warmup_images=640,
    weight_decay=0.05, compute_dtype="float32", device="cpu", log_every=50, evaluate_every=1000,
)  # fmt: skip


def shape(name: str, rgb: tuple[int, int, int], scale: float) -> np.ndarray:
    """A shape in the middle, ``scale`` of the side wide."""
    y, x = (np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2) / (SIZE / 2) / scale
    inside = {
        "square": (abs(x) < 0.9) & (abs(y) < 0.9),
        "disc": x**2 + y**2 < 0.8,
        "bar": (abs(x) < 0.9) & (abs(y) < 0.25),
        "corner": (abs(x) < 0.9) & (abs(y) < 0.9) & ((x < -0.4) | (y > 0.4)),
    }[name]
    rgba = np.zeros((SIZE, SIZE, 4), np.uint8)
    rgba[inside] = (*rgb, 255)
    return rgba


def _art() -> Iterator[tuple[np.ndarray, Record]]:
    for place, (colour, rgb) in enumerate(COLOURS.items()):
        for number, name in enumerate(SHAPES):
            concept = f"{colour} {name}"
            for turn, (style, scale) in enumerate(STYLES.items()):
                picture = shape(name, rgb, scale)
                box = visible_box(picture[..., 3])
                assert box is not None
                split = "held_style" if (place + number) % 3 == turn else "train"
                yield picture, replace(
                    tiny_record(0), id=f"{style}/{concept}", name=concept, style=style,
                    style_words=[f"{style} icon"], colour=colour, cutout=True,
                    split="held_concept" if concept in HELD else split,
                    captions=[f"a {concept}", f"{style} {concept}"],
                    box=tuple(part / SIZE for part in box),
                    hidden_on=("dark blue", "black"),
                )  # fmt: skip


def tiny_shapes(folder: Path) -> GlyphPictures:
    """Six colours of four shapes in three styles: 72 pictures."""
    pictures, records = zip(*_art(), strict=True)
    store = store_folder(folder, SIZE)
    store.mkdir(parents=True)
    write_index(store, SIZE, [("all", write_pack(store, "all", pictures))])
    lines = [json.dumps(asdict(record)) for record in records]
    (folder / RECORDS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / SUMMARY).write_text("{}\n", encoding="utf-8")
    return GlyphPictures.open(folder)


def tiny_sight(fingerprint: str = "edges") -> Sight:
    """Sees edges, in the place of a classifier's features."""

    def edges(image: Tensor) -> list[Tensor]:
        grey = image.mean(dim=1, keepdim=True)
        across, down = grey.diff(dim=3).abs(), grey.diff(dim=2).abs()
        maps = torch.cat([F.adaptive_avg_pool2d(one, 8) for one in (across, down)], dim=1)
        return [maps, maps]

    return Sight(edges, fingerprint=fingerprint)


def tiny_words() -> Words:
    """The tests' tokenizer, with random embeddings."""
    tokenizer = AutoTokenizer.from_pretrained(str(TOKENIZER))
    generator = torch.Generator().manual_seed(0)
    return Words(
        tokenizer=tokenizer, embeddings=torch.randn(len(tokenizer), 48, generator=generator)
    )
