"""A training set on disk as scan and build leave it, small enough for every test."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sanakit.data.samples import Caption, Place, Sample, to_line
from sanakit.data.shards import Index, ShardFile, ShardWriter
from sanakit.data.stages import LocalEngine, fingerprint, run_stage, sha256_of
from sanakit.data.training_set import SCAN, SHARDS, TrainingSet

UNITS = ("00000", "00001")
PER_UNIT = 3
SHARD_NAMES = ("64x64-00000", "64x96-00000")


def png(number: int, *, height: int = 48, width: int = 40) -> bytes:
    """A picture of its own for each number: large blocks of colour."""
    rng = np.random.default_rng(number)
    blocks = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    held = io.BytesIO()
    Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST).save(held, "PNG")
    return held.getvalue()


def samples() -> list[Sample]:
    """Six: ids with a folder, a dot, a space and letters beyond ASCII; one without captions."""
    ids = ["cats/tom", "a.b", "two words", "übergröße", "plain", "last"]
    made = []
    for number, identity in enumerate(ids):
        captions = [
            Caption(text=f"a picture of number {number}", captioner="original"),
            Caption(text="a dog", captioner="file name"),
        ]
        place = Place(kind="file", file=f"{number}.png")
        made.append(Sample(id=identity, place=place, captions=tuple(captions)))
    return [*made[:-1], replace(made[-1], captions=())]


class Scanned:
    """The stage that writes what the scan would."""

    def __init__(self, folder: Path, all_samples: list[Sample]) -> None:
        self.folder = folder
        self._samples = all_samples

    def made_from(self, unit: str) -> str:
        return fingerprint([to_line(sample) for sample in self.of(unit)])

    def of(self, unit: str) -> list[Sample]:
        return self._samples[int(unit) * PER_UNIT : (int(unit) + 1) * PER_UNIT]

    def open(self) -> None:
        pass

    def process(self, unit: str, staging: Path) -> dict[str, Any]:
        lines = "".join(map(to_line, self.of(unit)))
        (staging / f"{unit}.jsonl").write_text(lines, encoding="utf-8")
        return {}


def scan(folder: Path, all_samples: list[Sample]) -> None:
    """Write, or write again, the samples of the set."""
    run_stage(Scanned(folder / SCAN, all_samples), UNITS, engine=LocalEngine(), report=len)


def scanned_set(folder: Path) -> TrainingSet:
    """Two units of three samples, scanned; their pictures lie beside the set."""
    pictures = folder.parent / f"{folder.name}-pictures"
    pictures.mkdir(parents=True)
    for number in range(len(UNITS) * PER_UNIT):
        (pictures / f"{number}.png").write_bytes(png(number))
    made = TrainingSet(folder=folder, source=str(pictures), units=UNITS, settings={})
    made.save()
    scan(folder, samples())
    return made


class Built:
    """The stage that writes shards as the build would, three samples each."""

    def __init__(self, folder: Path, all_samples: list[Sample]) -> None:
        self.folder = folder
        self._samples = all_samples

    def made_from(self, unit: str) -> str:
        return fingerprint([to_line(sample) for sample in self._samples], unit)

    def open(self) -> None:
        pass

    def process(self, unit: str, staging: Path) -> dict[str, Any]:
        height, width = map(int, unit.split("-")[0].split("x"))
        first = SHARD_NAMES.index(unit) * PER_UNIT
        writer = ShardWriter(folder=staging, unit=unit)
        for number, sample in enumerate(self._samples[first : first + PER_UNIT], first):
            captions = [
                {"text": each.text, "captioner": each.captioner, "score": None, "weight": 1.0}
                for each in sample.captions
            ]
            record = {"width": width, "sanakit": {"id": sample.id, "captions": captions}}
            writer.add(sample.id, png(number, height=height, width=width), "png", record)
        writer.close()
        return {}


def build(folder: Path, all_samples: list[Sample] | None = None) -> None:
    """Write two shards of two sizes and their index into the set's folder."""
    shards = folder / SHARDS
    stage = Built(shards, samples() if all_samples is None else all_samples)
    run_stage(stage, SHARD_NAMES, engine=LocalEngine(), report=len)
    buckets = {}
    for name in SHARD_NAMES:
        tar = shards / f"{name}.tar"
        shard = ShardFile(
            file=tar.name, samples=PER_UNIT, bytes=tar.stat().st_size, sha256=sha256_of(tar)
        )
        height, width = map(int, name.split("-")[0].split("x"))
        buckets[height, width] = (shard,)
    index = Index(resolution=64, store="fitted", made_from="test", buckets=buckets)
    (shards / "index.json").write_bytes(index.to_bytes())


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, by its path."""
    return {
        str(path.relative_to(folder)): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
