"""The stage `build`: samples that passed the scan become tar shards, one bucket a shard.

The plan is a pure function of the samples and the settings, and each shard one of its plan. So the
result is the same however many processes made it, and however often they were stopped.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from PIL import Image

from sanakit.data.resize_and_crop import (
    MULTIPLE,
    Bucket,
    BucketKind,
    bucket_table,
    fit,
    fitted,
    nearest_bucket,
)
from sanakit.data.samples import Refusal, Sample, reading, refusal_from, sample_from, to_line
from sanakit.data.shards import (
    INDEX,
    TAR,
    Index,
    ShardFile,
    ShardWriter,
    bucket_of,
    key_of,
    unit_name,
)
from sanakit.data.sources.places import read_place
from sanakit.data.sources.wids import META, write_wids
from sanakit.data.training_set import REFUSED, SHARDS, TrainingSet, read_lines
from sanakit.data.units import (
    MARK,
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
from sanakit.images.decode import BadPicture, DecodeLimits, decode
from sanakit.pipeline.aspect_ratios import Table
from sanakit.untrusted import dataclass_from, number, parse_json, read_file

Store: TypeAlias = Literal["fitted", "original"]
VERSION = 1  # raise it when the same plan would give other shards
PLAN = "plan"
JPEG_QUALITY = 95
_SIGNATURES = {b"\xff\xd8\xff": "jpg", b"\x89PNG\r\n\x1a\n": "png"}


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """What shards are made of samples.

    ``store`` keeps pictures ``fitted`` to their bucket, or the ``original`` bytes. Pictures with a
    side below ``min_side`` px are left out. ``seed`` shuffles the samples over the shards. Sides
    are multiples of ``multiple``; None: as is usual at the resolution.
    """

    resolution: int = 512
    multiple: int | None = None
    buckets: BucketKind = "training"
    store: Store = "fitted"
    shard_samples: int = 1000
    min_side: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        self.table()
        if self.store not in get_args(Store):
            raise ConfigError(
                f"store {self.store!r} is unknown", hint=f"one of {', '.join(get_args(Store))}"
            )
        if self.shard_samples < 1:
            raise ConfigError(
                f"shards of {self.shard_samples} samples cannot be", hint="1000 is usual"
            )
        if self.min_side < 0:
            raise ConfigError(
                f"a side of {self.min_side} px cannot be", hint="0 leaves nothing out"
            )

    def table(self) -> Table:
        """The sizes of the buckets by their ratio."""
        return bucket_table(self.resolution, self.buckets, multiple=self.multiple)


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """For each shard its samples as lines of JSON, in order; and what was left out."""

    shards: dict[str, list[bytes]]
    left_out: tuple[Refusal, ...]


def plan_shards(
    samples: Iterable[Sample],
    settings: BuildSettings,
) -> ShardPlan:
    """Group samples by bucket, shuffle each group by a hash of seed and id, cut it into shards.

    The order of ``samples`` makes no difference. Shards of a bucket differ by one sample at most.
    Holds a line of each sample in memory: about a kilobyte.
    """
    table = settings.table()
    groups: dict[Bucket, list[tuple[str, bytes]]] = {}
    left_out = []
    for sample in samples:
        if min(sample.height, sample.width) < settings.min_side:
            detail = f"{sample.height} x {sample.width}, and a side has to be {settings.min_side}"
            left_out.append(Refusal(id=sample.id, reason="too small", detail=detail))
            continue
        bucket = nearest_bucket(sample.height, sample.width, table)
        line = to_line(sample).encode("utf-8", "surrogatepass")
        groups.setdefault(bucket, []).append((_place_in_order(settings.seed, sample.id), line))
    shards = {}
    for bucket in sorted(groups):
        ordered = [line for _, line in sorted(groups[bucket])]
        number = -(-len(ordered) // settings.shard_samples)
        for shard in range(number):
            first, last = (len(ordered) * edge // number for edge in (shard, shard + 1))
            shards[unit_name(bucket, shard)] = ordered[first:last]
    return ShardPlan(shards=shards, left_out=tuple(sorted(left_out, key=lambda one: one.id)))


def _place_in_order(seed: int, identity: str) -> str:
    return sha256_of(f"{seed}\0{identity}")


@dataclass(frozen=True, kw_only=True)
class BuildShards:
    """The stage: a unit is a shard, its input the lines of its plan. See `data/units.py`."""

    set_folder: Path
    root: Path
    store: Store
    limits: DecodeLimits

    @property
    def folder(self) -> Path:
        """The folder of the shards."""
        return self.set_folder / SHARDS

    def made_from(self, unit: str) -> str:
        """The plan of the shard, which holds the hash of each picture, and how they are stored."""
        return fingerprint(
            VERSION, self.store, asdict(self.limits), sha256_of(plan_path(self.folder, unit))
        )

    def open(self) -> None:
        """Nothing to load."""

    def process(self, unit: str, staging: Path) -> dict[str, Any]:
        """Write one shard; a picture that cannot be had any more is left out with a line."""
        bucket = bucket_of(unit)
        counts: Counter[str] = Counter(samples=0, captions=0, without_captions=0, enlarged=0)
        captioners: Counter[str] = Counter()
        left_out = []
        writer = ShardWriter(folder=staging, unit=unit)
        try:
            for value in read_lines(plan_path(self.folder, unit)):
                sample = sample_from(value)
                stored = self._stored(sample, bucket)
                if isinstance(stored, Refusal):
                    left_out.append(stored)
                    continue
                image, ending = stored
                writer.add(sample.id, image, ending, self._record(sample, bucket, ending))
                counts["samples"] += 1
                counts["captions"] += len(sample.captions)
                counts["without_captions"] += not sample.captions
                counts["enlarged"] += fit(sample.height, sample.width, bucket).scale > 1
                captioners.update(caption.captioner for caption in sample.captions)
            writer.close()
        finally:
            writer.abandon()
        if left_out:
            lines = "".join(to_line(refusal) for refusal in left_out)
            (staging / f"{unit}{REFUSED}").write_bytes(lines.encode("utf-8", "surrogatepass"))
        return {**counts, "captioners": dict(sorted(captioners.items())), "left_out": len(left_out)}

    def _stored(self, sample: Sample, bucket: Bucket) -> tuple[bytes, str] | Refusal:
        """The bytes that the shard holds and their ending, or why there are none."""
        try:
            data = read_place(self.root, sample.place)
            if sample.sha256 and sha256_of(data) != sample.sha256:
                detail = "its bytes are not those of the scan; run `sanakit data scan` again"
                return Refusal(id=sample.id, reason="changed since the scan", detail=detail)
            ending = _ending_of(data)
            if self.store == "original" and ending:
                return data, ending
            cover = bucket if self.store == "fitted" else None
            pixels = decode(data, limits=self.limits, cover=cover).pixels
        except BadPicture as error:
            return Refusal(id=sample.id, reason=error.reason, detail=error.message)
        except DataError as error:
            return Refusal(id=sample.id, reason="unreadable", detail=error.message)
        if self.store == "fitted":
            pixels = fitted(pixels, bucket)
        return _encoded(pixels, "jpg" if ending == "jpg" else "png")

    def _record(self, sample: Sample, bucket: Bucket, ending: str) -> dict[str, Any]:
        how = fit(sample.height, sample.width, bucket)
        height, width = bucket if self.store == "fitted" else (sample.height, sample.width)
        record: dict[str, Any] = {
            "file_name": f"{key_of(sample.id)}.{ending}",
            "prompt": sample.captions[0].text if sample.captions else "",
            "width": width,
            "height": height,
        }
        for caption in sample.captions[1:]:
            name = caption.captioner
            record[f"{name} caption" if name in (*record, "sanakit") else name] = caption.text
        record["sanakit"] = {
            "id": sample.id,
            "captions": [asdict(caption) for caption in sample.captions],
            "licence": sample.licence,
            "source": sample.source,
            "sha256": sample.sha256,
            "original_size": [sample.height, sample.width],
            "crop": [how.top, how.left, how.scale],
        }
        return record


def plan_path(folder: Path, unit: str) -> Path:
    """The file with the plan of a shard: its samples, a line each, in order."""
    return folder / PLAN / f"{unit}.jsonl"


def _ending_of(data: bytes) -> str:
    """The ending of what other readers of shards know; "" for other formats."""
    for signature, ending in _SIGNATURES.items():
        if data.startswith(signature):
            return ending
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else ""


def _encoded(pixels: np.ndarray, ending: str) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if ending == "jpg":
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue(), ending


SETTINGS = "settings.json"
LEFT_OUT = "left-out.jsonl"
_OF_UNIT = re.compile(r"(\d+x\d+-\d{5,})\D")


@dataclass(frozen=True, kw_only=True)
class BuildSummary:
    """What a build gave. ``fresh`` counts the shards that this run made.

    ``left_out`` counts by reason what the build itself left out, the scan's refusals not included;
    ``enlarged`` the pictures that are smaller than their bucket.
    """

    samples: int
    shards: int
    fresh: int
    buckets: int
    bytes: int
    enlarged: int
    without_captions: int
    left_out: dict[str, int]


def build_shards(
    training_set: TrainingSet,
    settings: BuildSettings,
    *,
    engine: Engine,
    report: Report,
    max_bad: float = 0.05,
) -> BuildSummary:
    """Make all shards of a set that are not made, remove those of an older plan, write the index.

    More than ``max_bad`` of the pictures, as a share, that cannot be read any more end the build:
    the source is not there, or was changed.

    Raises:
        DataError: nothing to build, too much that cannot be read, or the disk refuses.
    """
    number(max_bad, name="max_bad", low=0, high=1)
    folder = training_set.folder / SHARDS
    plan = plan_shards(training_set.kept(), settings)
    planned = sum(map(len, plan.shards.values()))
    if not planned:
        raise DataError(
            f"{training_set.folder}: no picture is left to build shards of",
            hint=f"reasons: sanakit data stats {training_set.folder}",
        )
    root = Path(training_set.source)
    if not root.exists():
        raise DataError(
            f"{root}: the pictures of the set are gone",
            hint="bring them back, or make the set again: sanakit data build PICTURES --out SET",
        )
    _write_plan(folder, plan, settings)
    stage = BuildShards(
        set_folder=training_set.folder,
        root=root,
        store=settings.store,
        limits=training_set.limits,
    )
    _prepare(stage, plan)
    marks = run_stage(stage, list(plan.shards), engine=engine, report=report)
    lost = [refusal for unit in marks for refusal in _refused(folder, unit)]
    if len(lost) > max_bad * planned:
        raise DataError(
            f"{len(lost)} of {planned} pictures cannot be read any more, such as {lost[0].id}: "
            f"{lost[0].reason}",
            hint="run `sanakit data scan` again, or allow more: --max-bad 1",
        )
    _write_manifest(training_set, (*plan.left_out, *lost))
    index = _index(settings, marks)
    if _write_if_other(folder / INDEX, index.to_bytes()) or not (folder / META).exists():
        write_wids(folder)
    return BuildSummary(
        samples=index.samples,
        shards=len(index.shards),
        fresh=sum(mark.fresh for mark in marks.values()),
        buckets=len(index.buckets),
        bytes=sum(shard.bytes for shard in index.shards),
        enlarged=sum(mark.count("enlarged") for mark in marks.values()),
        without_captions=sum(mark.count("without_captions") for mark in marks.values()),
        left_out=dict(Counter(one.reason for one in (*plan.left_out, *lost)).most_common()),
    )


def last_settings(training_set: TrainingSet) -> BuildSettings | None:
    """What the shards of a set were last built with, None where none were."""
    path = training_set.folder / SHARDS / PLAN / SETTINGS
    if not path.exists():
        return None
    with reading(path, f"remove {path}"):
        # Before it was a setting, all sides were multiples of 32.
        value = {"multiple": MULTIPLE, **parse_json(read_file(path))}
        return dataclass_from(BuildSettings, value, source=str(path))


def _write_plan(folder: Path, plan: ShardPlan, settings: BuildSettings) -> None:
    for at in (folder, folder / PLAN):
        own_folder(at)
    for unit, lines in plan.shards.items():
        _write_if_other(plan_path(folder, unit), b"".join(lines))
    text = json.dumps(asdict(settings), indent=1)
    _write_if_other(folder / PLAN / SETTINGS, f"{text}\n".encode())


def _prepare(stage: BuildShards, plan: ShardPlan) -> None:
    """Take back the index unless all it lists is still wanted and whole; drop what is not.

    The index goes first: from then on a reader finds none or, at the end, one that is true. What
    could not be read by an earlier run is tried again: its disk may be back.
    """
    folder = stage.folder
    whole = set()
    for unit in plan.shards:
        mark = read_mark(folder, unit)
        if mark is not None and mark.made_from == stage.made_from(unit):
            whole |= set() if mark.count("left_out") else {unit}
    found = {path: _OF_UNIT.match(path.name) for path in sorted(folder.iterdir())}
    stale = [path for path, match in found.items() if match and match[1] not in whole]
    if stale or len(whole) < len(plan.shards):
        (folder / INDEX).unlink(missing_ok=True)
        (folder / META).unlink(missing_ok=True)
    # Marks before the files that they vouch for.
    for path in sorted(stale, key=lambda path: not path.name.endswith(MARK)):
        path.unlink()
    for path in (folder / PLAN).glob("*.jsonl"):
        if path.stem not in plan.shards:
            path.unlink()


def _write_manifest(training_set: TrainingSet, more: Iterable[Refusal]) -> None:
    """List all that is not in the shards: what the scan refused, then what the build left out."""
    refused = training_set.quarantined()
    lines = "".join(to_line(one) for one in (*refused, *more))
    path = training_set.folder / SHARDS / LEFT_OUT
    _write_if_other(path, lines.encode("utf-8", "surrogatepass"))


def _index(settings: BuildSettings, marks: dict[str, Mark]) -> Index:
    buckets: dict[Bucket, tuple[ShardFile, ...]] = {}
    for unit, mark in marks.items():
        if samples := mark.count("samples"):
            size, digest = mark.files[f"{unit}{TAR}"]
            shard = ShardFile(file=f"{unit}{TAR}", samples=samples, bytes=size, sha256=digest)
            buckets[bucket_of(unit)] = (*buckets.get(bucket_of(unit), ()), shard)
    files = [(one.file, one.sha256) for shards in buckets.values() for one in shards]
    return Index(
        resolution=settings.resolution,
        store=settings.store,
        made_from=fingerprint(VERSION, settings.resolution, settings.store, files),
        buckets=buckets,
    )


def _refused(folder: Path, unit: str) -> list[Refusal]:
    path = folder / f"{unit}{REFUSED}"
    return [refusal_from(value) for value in read_lines(path)] if path.exists() else []


def _write_if_other(path: Path, data: bytes) -> bool:
    with suppress(OSError, ValueError):
        if read_file(path, most=len(data)) == data:
            return False
    write_atomically(path, data)
    return True
