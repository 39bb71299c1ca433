"""One unit of a scan: every picture is decoded once, and what is wrong with one gets a reason."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from sanakit.data.duplicates import CELLS, Duplicate, Look, look_at
from sanakit.data.pictures import DEFAULT, REASONS, BadPicture, DecodeLimits, decoded_image
from sanakit.data.samples import Place, Refusal, Sample, to_line
from sanakit.data.sources.places import read_place
from sanakit.data.sources.source import Source
from sanakit.data.stages import fingerprint
from sanakit.data.training_set import REFUSED, SCAN
from sanakit.errors import DataError

VERSION = 1
DUPLICATE = "duplicate picture"
UNREADABLE = "unreadable"
TOO_SMALL = "too small"
REMARKS = frozenset({"bad captions"})
"""Reasons that keep something out, but not the picture."""
ALL_REASONS = MappingProxyType(
    {
        **REASONS,
        UNREADABLE: "the file cannot be read: permissions, gone, a link that leads nowhere",
        DUPLICATE: "another picture of the set, the first in order, shows the same",
        "duplicate key": "another picture of the source has the same id",
        "unsafe name": "an absolute name, one with `..`, a link out of the source, not UTF-8",
        "no picture": "captions or a record without a picture",
        "not listed": "in the folder, but not in the list that the source has",
        "bad captions": "captions that cannot be read; the picture stays",
    }
)
COLOURS = ".colours.npy"
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
    """The stage: a unit of the source is a unit of the scan. See `data/stages.py`."""

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
        colours = []
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
                colours.append(look.colours)
                misnamed += _is_misnamed(item.place, kind)
        (staging / f"{unit}.jsonl").write_bytes(lines(passed))
        (staging / f"{unit}{REFUSED}").write_bytes(lines(refused))
        shape = (len(colours), CELLS, CELLS, 3)
        np.save(staging / f"{unit}{COLOURS}", np.array(colours, dtype=np.uint8).reshape(shape))
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
            sha256=hashlib.sha256(data).hexdigest(),
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
