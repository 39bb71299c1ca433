"""The folder of a training set: which file of which stage is where, and its samples merged.

    set.json                    the source, its units, format version
    scan/UNIT.jsonl             samples that passed; UNIT.refused.jsonl those that did not
    scan/duplicates.jsonl       those that show what an earlier one shows: {"id", "of", "distance"}
    quarantine.jsonl            all that stays out, of all units: {"id", "reason", "detail"}
    captions/NAME/UNIT.jsonl    captions that a model wrote: {"id", "text"}
    scores/NAME/UNIT.jsonl      agreement of each caption: {"id", "scores": {captioner: number}}
    shards/                     tar shards by bucket, index.json
    latents/KEY/, text/KEY/     states of frozen networks, one file a shard
    report/                     index.html and its pictures

Every stage folder holds a mark for each finished unit (`data/units.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sanakit.data.samples import Caption, Refusal, Sample, reading, refusal_from, sample_from
from sanakit.data.units import SET, clear_leftovers, read_mark
from sanakit.errors import DataError
from sanakit.files import expanded, names_in, write_json
from sanakit.images.decode import DecodeLimits
from sanakit.untrusted import dataclass_from, parse_json, read_file, shown

FORMAT = 1
SCAN, CAPTIONS, SCORES, SHARDS = "scan", "captions", "scores", "shards"
LATENTS, TEXT, REPORT = "latents", "text", "report"
REFUSED = ".refused.jsonl"
_UNIT = re.compile(r"[\w-]+")
DUPLICATES, QUARANTINE = "duplicates.jsonl", "quarantine.jsonl"


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """A training set on disk. ``source`` is the path it was read from, as the user gave it."""

    folder: Path
    source: str
    units: tuple[str, ...]
    settings: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> TrainingSet:
        """Open the set in a folder.

        Raises:
            DataError: the folder holds none, or one of another format.
        """
        path = folder / SET
        if not path.exists():
            raise DataError(
                f"{folder} holds no training set: {SET} is missing",
                hint=f"make one: sanakit data scan PICTURES --out {folder}",
            )
        with reading(path, "run `sanakit data scan` again"):
            value = parse_json(read_file(path))
            if value["format"] != FORMAT:
                raise DataError(f"{path} has format {shown(value['format'])}, and this is {FORMAT}")
            units, settings = tuple(value["units"]), dict(value["settings"])
            if not all(isinstance(unit, str) and _UNIT.fullmatch(unit) for unit in units):
                raise ValueError("units are no names")
            dataclass_from(DecodeLimits, settings.get("limits", {}), source=str(path))
            return cls(folder=folder, source=str(value["source"]), units=units, settings=settings)

    @property
    def root(self) -> Path:
        """The folder that the places of samples are relative to; absolute, for other processes."""
        source = expanded(self.source).absolute()
        return source if source.is_dir() else source.parent

    @property
    def limits(self) -> DecodeLimits:
        """What the scan took, such as the first frame of an animation, is taken later too."""
        return dataclass_from(
            DecodeLimits, self.settings.get("limits", {}), source=f"{self.folder / SET}: limits"
        )

    def save(self) -> None:
        """Write `set.json`, and clear away what a killed process was writing beside it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        clear_leftovers(self.folder)
        value = {
            "format": FORMAT,
            "source": self.source,
            "units": list(self.units),
            "settings": self.settings,
        }
        write_json(self.folder / SET, value)

    def scanned(self, unit: str) -> list[Sample]:
        """The samples of a unit as the scan left them, with the captions of the source alone."""
        return [sample_from(value) for value in self._lines(SCAN, unit)]

    def refused(self, unit: str) -> list[Refusal]:
        """What the scan kept out of a unit, and why."""
        path = self.folder / SCAN / f"{unit}{REFUSED}"
        return [refusal_from(value) for value in read_lines(path)]

    def makers(self, stage: str) -> list[str]:
        """The names of the models that wrote captions or scores, in order of their names."""
        folder = self.folder / stage
        return names_in(folder)

    def samples(self, unit: str) -> list[Sample]:
        """The samples of a unit with all captions, of the source and of models, and their scores.

        A caption gets the mean of its scores where several models gave one.
        """
        with reading(self.folder, "run the stage that made its captions or scores again"):
            return self._with_added(unit, self.scanned(unit))

    def _with_added(self, unit: str, samples: list[Sample]) -> list[Sample]:
        added: dict[str, list[Caption]] = {}
        for captioner in self.makers(CAPTIONS):
            for value in self._lines(f"{CAPTIONS}/{captioner}", unit, optional=True):
                caption = Caption(text=value["text"], captioner=captioner)
                added.setdefault(value["id"], []).append(caption)
        scores: dict[tuple[str, str], list[float]] = {}
        for scorer in self.makers(SCORES):
            for value in self._lines(f"{SCORES}/{scorer}", unit, optional=True):
                for captioner, score in value["scores"].items():
                    scores.setdefault((value["id"], captioner), []).append(float(score))
        return [
            replace(
                sample,
                captions=tuple(
                    _scored(caption, scores.get((sample.id, caption.captioner)))
                    for caption in (*sample.captions, *added.get(sample.id, ()))
                ),
            )
            for sample in samples
        ]

    def all_samples(self) -> Iterator[Sample]:
        """The samples of all units, in order."""
        for unit in self.units:
            yield from self.samples(unit)

    def duplicates(self) -> dict[str, str]:
        """The id of each duplicate, and of the sample that stays in its place."""
        path = self.folder / SCAN / DUPLICATES
        if not path.exists():
            raise DataError(
                f"{self.folder}: the scan is not finished",
                hint="run `sanakit data scan` again: it goes on where it stopped",
            )
        with reading(path, "run `sanakit data scan` again"):
            return {value["id"]: value["of"] for value in read_lines(path)}

    def kept(self) -> Iterator[Sample]:
        """The samples of all units that are in the set: those that are no duplicates, in order."""
        duplicates = self.duplicates()
        return (sample for sample in self.all_samples() if sample.id not in duplicates)

    def quarantined(self) -> list[Refusal]:
        """All that the scan kept out, duplicates and captions included."""
        return [refusal_from(value) for value in read_lines(self.folder / QUARANTINE)]

    def hash_of(self, stage: str, unit: str) -> str | None:
        """The hash of what a stage wrote of a unit; None where it is not finished."""
        mark = read_mark(self.folder / stage, unit)
        if mark is None and stage == SCAN:
            raise self._unfinished(stage, unit)
        return None if mark is None else mark.files[f"{unit}.jsonl"][1]

    def _unfinished(self, stage: str, unit: str) -> DataError:
        return DataError(
            f"{self.folder / stage}: unit {unit} is not finished",
            hint="run `sanakit data scan` again: it goes on where it stopped",
        )

    def _lines(self, stage: str, unit: str, *, optional: bool = False) -> list[dict[str, Any]]:
        folder = self.folder / stage
        if read_mark(folder, unit) is None:
            if optional:
                return []
            raise self._unfinished(stage, unit)
        return read_lines(folder / f"{unit}.jsonl")


def _scored(caption: Caption, scores: list[float] | None) -> Caption:
    return replace(caption, score=sum(scores) / len(scores)) if scores else caption


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON values of a file, one a line."""
    with reading(path, "run the stage that made it again"):
        # Not splitlines(): captions may hold other characters that it takes for line ends.
        found = [parse_json(line) for line in read_file(path).decode().split("\n") if line]
        if not all(isinstance(value, dict) for value in found):
            raise ValueError("a line is no object")
        return found
