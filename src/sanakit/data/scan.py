"""The first look at a source: what is in the set, what stays out, and why.

Gives `scan/` of a training set (sizes, hashes, refusals by unit), `scan/duplicates.jsonl` and
`quarantine.jsonl`, which lists all that stays out. No picture is copied or changed.
"""

from __future__ import annotations

import json
import os
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from sanakit.data.duplicates import CELLS, NEAR, Duplicate, DuplicateFinder, Look, look_at
from sanakit.data.samples import Place, Refusal, Sample, reading, to_line
from sanakit.data.sources.places import read_place
from sanakit.data.sources.source import Source
from sanakit.data.training_set import DUPLICATES, QUARANTINE, REFUSED, SCAN, TrainingSet
from sanakit.data.units import (
    MARK,
    SET,
    Engine,
    Mark,
    Report,
    fingerprint,
    own_folder,
    read_mark,
    run_stage,
)
from sanakit.errors import ConfigError, DataError
from sanakit.files import sha256_of, write_atomically
from sanakit.images.decode import DEFAULT, BadPicture, DecodeLimits, decoded_image
from sanakit.untrusted import open_file

VERSION = 1
DUPLICATE = "duplicate picture"
UNREADABLE = "unreadable"
TOO_SMALL = "too small"
REMARKS = frozenset({"bad captions"})
"""Reasons that keep something out, but not the picture."""
COLORS = ".colours.npy"
_SMALL = 64  # px: enough for a look, and a JPEG decodes to it at an eighth of its size
_ENDINGS = MappingProxyType(
    {
        **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "jpeg"),
        **dict.fromkeys((".tif", ".tiff"), "tiff"),
        **{f".{kind}": kind for kind in ("png", "webp", "gif", "bmp", "avif")},
    }
)


@dataclass(frozen=True, kw_only=True)
class ScanStage:
    """The stage: a unit of the source is a unit of the scan. See `data/units.py`."""

    set_folder: Path
    source: Source
    limits: DecodeLimits = DEFAULT

    @property
    def folder(self) -> Path:
        """The folder of the scan."""
        return self.set_folder / SCAN

    def made_from(self, unit: str) -> str:
        """The input of the unit and what is still decoded."""
        return fingerprint(VERSION, self.source.made_from(unit), asdict(self.limits))

    def open(self) -> None:
        """Nothing to load."""

    def process(self, unit: str, staging: Path) -> dict[str, Any]:
        """Decode every picture of the unit: what passes, what does not, and what it looks like."""
        passed: list[Sample] = []
        refused: list[Refusal] = []
        colors = []
        misnamed = 0
        for item in _read(self.source, unit):
            if isinstance(item, Refusal):
                refused.append(item)
                continue
            try:
                sample, look, kind = self._seen(item)
            except BadPicture as error:
                refused.append(_refusal(item, error.reason, error.detail))
            # A place that cannot be read must not look like a disk that cannot be written.
            except (DataError, OSError) as error:
                detail = error.message if isinstance(error, DataError) else str(error)
                refused.append(_refusal(item, UNREADABLE, detail))
            else:
                passed.append(sample)
                colors.append(look.colors)
                misnamed += _is_misnamed(item.place, kind)
        (staging / f"{unit}.jsonl").write_bytes(lines(passed))
        (staging / f"{unit}{REFUSED}").write_bytes(lines(refused))
        shape = (len(colors), CELLS, CELLS, 3)
        np.save(staging / f"{unit}{COLORS}", np.array(colors, dtype=np.uint8).reshape(shape))
        return {
            "samples": len(passed),
            "refused": dict(sorted(Counter(one.reason for one in refused).items())),
            "misnamed": misnamed,
        }

    def _seen(self, sample: Sample) -> tuple[Sample, Look, str]:
        data = read_place(self.source.root, sample.place)
        # A JPEG is read to its end at any scale, so a smaller decode finds the same faults.
        image, kind, (height, width) = decoded_image(
            data, limits=self.limits, cover=(_SMALL, _SMALL)
        )
        look = look_at(image)
        seen = replace(
            sample,
            height=height,
            width=width,
            sha256=sha256_of(data),
            phash=f"{look.phash:016x}",
        )
        return seen, look, kind


def lines(records: Iterable[Sample | Refusal | Duplicate]) -> bytes:
    """Records as lines of JSON.

    A byte of a name that is no UTF-8 becomes an escape of JSON, and comes back as it was.
    """
    text = "".join(
        f"{json.dumps(asdict(record), ensure_ascii=False)}\n"
        if isinstance(record, Duplicate)
        else to_line(record)
        for record in records
    )
    return text.encode("utf-8", "backslashreplace")


def _read(source: Source, unit: str) -> Iterator[Sample | Refusal]:
    """What a unit holds; one that breaks in the middle ends with a refusal in its own name."""
    try:
        yield from source.read(unit)
    except (DataError, OSError) as error:
        detail = error.message if isinstance(error, DataError) else str(error)
        yield Refusal(id=f"unit {unit}", reason=UNREADABLE, detail=detail)


def _refusal(sample: Sample, reason: str, detail: str) -> Refusal:
    where = f"{sample.place.file}: " if sample.place.kind == "file" else ""
    return Refusal(id=sample.id, reason=reason, detail=(where + detail).removesuffix(": "))


def _is_misnamed(place: Place, kind: str) -> bool:
    ending = os.path.splitext(place.file)[1].lower()
    return place.kind == "file" and _ENDINGS.get(ending, kind) != kind


SIZES = (256, 512, 1024)
_SEEN = 20  # pictures, before a share says anything


@dataclass(frozen=True, kw_only=True)
class ScanSummary:
    """What a scan found. ``pictures`` are in the set; ``refused`` and duplicates are not.

    ``same_bytes`` and ``same_look`` are duplicates. ``remarks`` are refusals that keep no picture
    out. ``misnamed`` pictures have the ending of another format; ``sides`` are the shortest, the
    median and the longest of the shorter sides in px, and ``smaller_than`` counts the pictures
    that a training resolution would enlarge.
    """

    pictures: int
    units: int
    fresh: int
    refused: dict[str, int]
    remarks: dict[str, int]
    same_bytes: int
    same_look: int
    without_captions: int
    captions: int
    misnamed: int
    sides: tuple[int, int, int]
    smaller_than: dict[int, int]

    @property
    def seen(self) -> int:
        """All pictures of the source."""
        return self.pictures + sum(self.refused.values()) + self.same_bytes + self.same_look


def scan_source(
    source: Source,
    set_folder: Path,
    engine: Engine,
    *,
    given: str | Path,
    near: int | None = NEAR,
    limits: DecodeLimits = DEFAULT,
    max_refused: float | None = None,
    report: Report,
) -> ScanSummary:
    """Scan a source into a training set; what was scanned before and has not changed is kept.

    ``given`` is the path that the source was opened from, as the user typed it. ``near`` is the
    largest distance of duplicates, 0 for the same bytes alone, None to keep duplicates.
    ``max_refused`` stops the scan when more than this share of the pictures is refused; None
    never stops. What :attr:`DecodeLimits.min_side` keeps out is asked for and not counted.

    Raises:
        DataError: nothing passed, too much was refused, the folder holds a set of another source,
            or the disk refuses. What was scanned until then stays and is not scanned again.
        ConfigError: ``near`` or ``max_refused`` is out of range.
    """
    if max_refused is not None and not 0 <= max_refused <= 1:
        raise ConfigError(f"max_refused={max_refused} is not a share from 0 to 1")
    finder = DuplicateFinder(NEAR if near is None else near)
    units = source.units()
    if not units:
        raise DataError(f"{given} holds no pictures")
    stage = ScanStage(set_folder=set_folder, source=source, limits=limits)
    training_set = _set_of(given, set_folder, units, near=near, stage=stage)
    watch = _Watch(limit=max_refused)
    try:
        marks = run_stage(stage, units, engine=engine, report=report, watch=watch.count)
        watch.judge(final=True)
    except _TooManyRefused as error:
        finished = [unit for unit in units if read_mark(stage.folder, unit) is not None]
        _write_quarantine(training_set, finished, ())
        report_file = set_folder / QUARANTINE
        raise DataError(
            f"{given}: {error.message}; the scan stopped",
            hint=f"{report_file} names them; --max-refused {error.share:.2f} goes on",
        ) from error
    duplicates: list[Duplicate] = []
    kept = []
    for sample, look in _looks(training_set):
        found = None if near is None else finder.add(sample.id, sample.sha256, look)
        if found is None:
            kept.append((min(sample.height, sample.width), len(sample.captions)))
        else:
            duplicates.append(found)
    write_atomically(stage.folder / DUPLICATES, lines(duplicates))
    _write_quarantine(training_set, units, duplicates)
    if not kept:
        raise DataError(
            f"{given}: no picture passed the scan: {_in_words(watch.refused)}",
            hint=f"{set_folder / QUARANTINE} names each with its reason",
        )
    sides = [side for side, _ in kept]
    return ScanSummary(
        pictures=len(kept),
        units=len(units),
        fresh=sum(mark.fresh for mark in marks.values()),
        refused={key: n for key, n in watch.refused.most_common() if key not in REMARKS},
        remarks={key: n for key, n in watch.refused.most_common() if key in REMARKS},
        same_bytes=finder.same_bytes,
        same_look=finder.same_look,
        without_captions=sum(not captions for _, captions in kept),
        captions=sum(captions for _, captions in kept),
        misnamed=sum(mark.count("misnamed") for mark in marks.values()),
        sides=(min(sides), int(statistics.median(sides)), max(sides)),
        smaller_than={size: sum(side < size for side in sides) for size in SIZES},
    )


class _TooManyRefused(DataError):
    def __init__(self, message: str, share: float) -> None:
        super().__init__(message)
        self.share = share


@dataclass(kw_only=True)
class _Watch:
    """Counts refusals as units finish, and stops when more than ``limit`` of all are refused."""

    limit: float | None
    passed: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def count(self, marks: Sequence[Mark]) -> None:
        for mark in marks:
            self.passed += mark.count("samples")
            self.refused.update(mark.counts("refused"))
        self.judge()

    def judge(self, *, final: bool = False) -> None:
        counted = Counter(
            {key: n for key, n in self.refused.items() if key not in REMARKS | {TOO_SMALL}}
        )
        refused = sum(counted.values())
        total = self.passed + refused
        if self.limit is None or total == 0 or (total < _SEEN and not final):
            return
        share = refused / total
        if share > self.limit:
            raise _TooManyRefused(
                f"{refused} of {total} pictures are refused ({_in_words(counted)}), more than the"
                f" {self.limit:.0%} of --max-refused",
                min(1.0, int(share * 100 + 1) / 100),
            )


def _set_of(
    given: str | Path, folder: Path, units: list[str], *, near: int | None, stage: ScanStage
) -> TrainingSet:
    """The set of a folder, made or brought up to date; what a smaller source left goes."""
    if (folder / SET).exists():
        before = TrainingSet.open(folder)
        if os.path.abspath(before.source) != os.path.abspath(given):
            raise DataError(
                f"{folder} holds the pictures of {before.source}, not of {given}",
                hint="name another folder with --out, or remove this one",
            )
    settings = {"kind": stage.source.kind, "near": near, "limits": asdict(stage.limits)}
    training_set = TrainingSet(
        folder=folder, source=str(given), units=tuple(units), settings=settings
    )
    own_folder(stage.folder)
    training_set.save()
    # Until the scan is whole again nothing can be built from a part of it.
    (stage.folder / DUPLICATES).unlink(missing_ok=True)
    for mark in sorted(stage.folder.glob(f"*{MARK}")):
        unit = mark.name[: -len(MARK)]
        if unit not in units:
            for ending in (MARK, ".jsonl", REFUSED, COLORS):
                (stage.folder / f"{unit}{ending}").unlink(missing_ok=True)
    return training_set


def _looks(training_set: TrainingSet) -> Iterator[tuple[Sample, Look]]:
    for unit in training_set.units:
        samples = training_set.scanned(unit)
        path = training_set.folder / SCAN / f"{unit}{COLORS}"
        again = f"remove {path.with_name(f'{unit}{MARK}')} and run the scan again"
        with reading(path, again), open_file(path) as file:
            colors = np.load(file, allow_pickle=False)
        for sample, shown in zip(samples, colors, strict=True):
            yield sample, Look(phash=int(sample.phash, 16), colors=shown)


def _write_quarantine(
    training_set: TrainingSet, units: Iterable[str], duplicates: Iterable[Duplicate]
) -> None:
    refusals = [refusal for unit in units for refusal in training_set.refused(unit)]
    refusals += [
        Refusal(
            id=one.id,
            reason=DUPLICATE,
            detail=f"shows what {one.of} shows; {one.distance} of 64 bits differ",
        )
        for one in duplicates
    ]
    write_atomically(training_set.folder / QUARANTINE, lines(refusals))


def _in_words(counts: Counter[str]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in counts.most_common(3)) or "nothing was there"
