"""What the report says, counted from the files of a set; knows nothing of how it is shown."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sanakit.data.build import LEFT_OUT
from sanakit.data.samples import Refusal, Sample, refusal_from
from sanakit.data.scan import DUPLICATE, REMARKS
from sanakit.data.shards import Index, read_index
from sanakit.data.training_set import SHARDS, TrainingSet, read_lines
from sanakit.data.units import read_mark
from sanakit.files import sha256_of

EXAMPLES = 5
DUPLICATE_KEY = "duplicate key"


@dataclass(kw_only=True)
class CaptionerFacts:
    """What one captioner wrote: how many captions of how many words, and their scores."""

    captions: int = 0
    words: Counter[int] = field(default_factory=Counter)
    scores: Counter[float] = field(default_factory=Counter)


@dataclass(frozen=True, kw_only=True)
class Refused:
    """What was left out for one reason, with the first few by id."""

    reason: str
    count: int
    examples: tuple[Refusal, ...]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Counts of a whole set.

    ``sides`` counts the shorter sides in px, ``ratios`` height over width. ``remarks`` are of
    pictures that stayed, such as captions that could not be read. ``chosen`` are samples drawn by
    a hash of their ids: as good as random, and the same each time.
    """

    name: str
    source: str
    samples: int
    captions: int
    without_captions: int
    enlarged: int
    sides: Counter[int]
    ratios: Counter[float]
    licences: Counter[str]
    captioners: dict[str, CaptionerFacts]
    left_out: tuple[Refused, ...]
    remarks: tuple[Refused, ...]
    index: Index | None
    chosen: tuple[Sample, ...]

    @property
    def refused(self) -> int:
        """How many pictures are not in the set."""
        return sum(one.count for one in self.left_out)

    @property
    def duplicates(self) -> int:
        """How many of those show what another one shows."""
        return sum(one.count for one in self.left_out if one.reason == DUPLICATE)


def gather(training_set: TrainingSet, *, choose: int = 24) -> Facts:
    """Count a set, and choose some samples to show."""
    counts: Counter[str] = Counter()
    sides: Counter[int] = Counter()
    ratios: Counter[float] = Counter()
    licences: Counter[str] = Counter()
    captioners: dict[str, CaptionerFacts] = {}
    refusals = _refusals(training_set)
    chosen: list[tuple[int, str, Sample]] = []
    for sample in _remaining(training_set, refusals):
        counts["samples"] += 1
        counts["captions"] += len(sample.captions)
        counts["without"] += not sample.captions
        sides[min(sample.height, sample.width)] += 1
        ratios[round(sample.height / max(1, sample.width), 2)] += 1
        licences[sample.licence or "not stated"] += 1
        for caption in sample.captions:
            facts = captioners.setdefault(caption.captioner, CaptionerFacts())
            facts.captions += 1
            facts.words[len(caption.text.split())] += 1
            if caption.score is not None:
                facts.scores[round(caption.score, 1)] += 1
        # A heap of the smallest hashes: negative, as the largest of them goes first.
        item = (-_hash(sample.id), sample.id, sample)
        if len(chosen) < choose:
            heapq.heappush(chosen, item)
        elif chosen and item > chosen[0]:
            heapq.heapreplace(chosen, item)
    index = read_index(training_set.folder / SHARDS)
    return Facts(
        name=training_set.folder.resolve().name,
        source=training_set.source,
        samples=counts["samples"],
        captions=counts["captions"],
        without_captions=counts["without"],
        enlarged=_enlarged(training_set.folder / SHARDS, index),
        sides=sides,
        ratios=ratios,
        licences=licences,
        captioners=dict(sorted(captioners.items())),
        left_out=_by_reason(one for one in refusals if one.reason not in REMARKS),
        remarks=_by_reason(one for one in refusals if one.reason in REMARKS),
        index=index,
        chosen=tuple(sample for _, _, sample in sorted(chosen, reverse=True)),
    )


def _refusals(training_set: TrainingSet) -> list[Refusal]:
    path = training_set.folder / SHARDS / LEFT_OUT
    if path.exists():
        return [refusal_from(value) for value in read_lines(path)]
    return training_set.quarantined()


def _remaining(training_set: TrainingSet, refusals: list[Refusal]) -> Iterator[Sample]:
    """The samples that neither scan nor build left out.

    The one that came second with an id is left out under the id of the first, which stays.
    """
    gone = {one.id for one in refusals if one.reason not in REMARKS | {DUPLICATE_KEY}}
    return (sample for sample in training_set.kept() if sample.id not in gone)


def _by_reason(refusals: Iterable[Refusal]) -> tuple[Refused, ...]:
    groups: dict[str, list[Refusal]] = {}
    for one in refusals:
        groups.setdefault(one.reason, []).append(one)
    return tuple(
        Refused(
            reason=reason,
            count=len(group),
            examples=tuple(heapq.nsmallest(EXAMPLES, group, key=lambda one: (one.id, one.detail))),
        )
        for reason, group in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    )


def _enlarged(folder: Path, index: Index | None) -> int:
    marks: list[Any] = [read_mark(folder, shard.unit) for shard in index.shards] if index else []
    return sum(mark.count("enlarged") for mark in marks if mark is not None)


def _hash(identity: str) -> int:
    return int(sha256_of(f"sheet\0{identity}")[:16], 16)
