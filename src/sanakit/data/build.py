"""The stage `build`: samples that passed the scan become tar shards, one bucket a shard.

The plan is a pure function of the samples and the settings, and each shard one of its plan. So the
result is the same however many processes made it, and however often they were stopped.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from sanakit.data.buckets import Bucket
from sanakit.data.build_stage import PLAN, VERSION, BuildShards, plan_path
from sanakit.data.pictures import DecodeLimits
from sanakit.data.samples import Refusal, refusal_from, to_line
from sanakit.data.shard_plan import BuildSettings, ShardPlan, bucket_of, plan_shards
from sanakit.data.shards import INDEX, TAR, Index, ShardFile
from sanakit.data.sources.wids import META, write_wids
from sanakit.data.stages import (
    MARK,
    Engine,
    Mark,
    Report,
    clear_leftovers,
    fingerprint,
    read_mark,
    run_stage,
)
from sanakit.data.training_set import REFUSED, SHARDS, TrainingSet, read_lines
from sanakit.errors import DataError
from sanakit.weights.atomic import write_atomically

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
    # Those of the scan: what it took, such as the first frame of an animation, is taken here too.
    limits = DecodeLimits(**training_set.settings.get("limits", {}))
    stage = BuildShards(
        set_folder=training_set.folder, root=root, store=settings.store, limits=limits
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
    totals = Counter[str]()
    for mark in marks.values():
        totals.update({name: count for name, count in mark.stats.items() if name != "captioners"})
    return BuildSummary(
        samples=index.samples,
        shards=len(index.shards),
        fresh=sum(mark.fresh for mark in marks.values()),
        buckets=len(index.buckets),
        bytes=sum(shard.bytes for shard in index.shards),
        enlarged=totals["enlarged"],
        without_captions=totals["without_captions"],
        left_out=dict(Counter(one.reason for one in (*plan.left_out, *lost)).most_common()),
    )


def last_settings(training_set: TrainingSet) -> BuildSettings | None:
    """What the shards of a set were last built with, None where none were.

    Raises:
        DataError: the record of it is damaged.
    """
    path = training_set.folder / SHARDS / PLAN / SETTINGS
    if not path.exists():
        return None
    try:
        return BuildSettings(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error})", hint=f"remove {path}") from error


def _write_plan(folder: Path, plan: ShardPlan, settings: BuildSettings) -> None:
    (folder / PLAN).mkdir(parents=True, exist_ok=True)
    for at in (folder / PLAN, folder):
        clear_leftovers(at)
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
            whole |= set() if mark.stats["left_out"] else {unit}
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
        if mark.stats["samples"]:
            size, digest = mark.files[f"{unit}{TAR}"]
            shard = ShardFile(
                file=f"{unit}{TAR}", samples=mark.stats["samples"], bytes=size, sha256=digest
            )
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
    if path.exists() and path.read_bytes() == data:
        return False
    write_atomically(path, data)
    return True
