"""A small training set as the scan leaves it, without the scan."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sanakit.data.samples import Caption, Place, Refusal, Sample, to_line
from sanakit.data.stages import fingerprint, finish_unit
from sanakit.data.training_set import DUPLICATES, QUARANTINE, REFUSED, TrainingSet


def picture(
    height: int, width: int, *, seed: int = 0, format_: str = "PNG", quality: int = 95
) -> bytes:
    """A smooth picture, different for each seed."""
    rng = np.random.default_rng(seed)
    corners = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8))
    buffer = io.BytesIO()
    options = {"quality": quality} if format_ in ("JPEG", "WEBP") else {}
    corners.resize((width, height), Image.Resampling.BICUBIC).save(buffer, format_, **options)
    return buffer.getvalue()


@dataclass(frozen=True)
class _Scanned:
    folder: Path
    lines: str
    refused: str

    def made_from(self, unit: str) -> str:
        return fingerprint(self.lines, self.refused)

    def open(self) -> None:
        pass

    def process(self, unit: str, staging: Path) -> dict[str, Any]:
        (staging / f"{unit}.jsonl").write_text(self.lines, encoding="utf-8")
        (staging / f"{unit}{REFUSED}").write_text(self.refused, encoding="utf-8")
        return {}


def scanned_set(
    folder: Path,
    pictures: Path,
    captions: dict[str, tuple[Caption, ...]] | None = None,
    refused: tuple[Refusal, ...] = (),
    units: int = 1,
) -> TrainingSet:
    """The set of all pictures in a folder: what could be opened, with the captions given by id."""
    samples = []
    for path in sorted(pictures.rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        with Image.open(path) as image:
            width, height = image.size
        name = str(path.relative_to(pictures))
        samples.append(
            Sample(
                id=name.rsplit(".", 1)[0],
                place=Place(kind="file", file=name),
                captions=(captions or {}).get(name.rsplit(".", 1)[0], ()),
                licence="CC0-1.0",
                source="folder",
                height=height,
                width=width,
                sha256=hashlib.sha256(data).hexdigest(),
            )
        )
    names = tuple(f"{number:05}" for number in range(units))
    for number, unit in enumerate(names):
        lines = "".join(to_line(sample) for sample in samples[number::units])
        lost = "".join(to_line(one) for one in refused) if number == 0 else ""
        finish_unit(_Scanned(folder / "scan", lines, lost), unit)
    training_set = TrainingSet(folder=folder, source=str(pictures), units=names, settings={})
    (folder / "scan" / DUPLICATES).write_text("", encoding="utf-8")
    (folder / QUARANTINE).write_text("".join(map(to_line, refused)), encoding="utf-8")
    training_set.save()
    return training_set
