"""Which picture goes into which shard: decided by the samples and the settings alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from sanakit.data.images.resize_and_crop import Bucket, BucketKind, bucket_table, nearest
from sanakit.data.samples import Refusal, Sample, to_line
from sanakit.errors import ConfigError
from sanakit.files import sha256_of

Store: TypeAlias = Literal["fitted", "original"]


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """What shards are made of samples.

    ``store`` keeps pictures ``fitted`` to their bucket, or the ``original`` bytes. Pictures with a
    side below ``min_side`` px are left out. ``seed`` shuffles the samples over the shards.
    """

    resolution: int = 512
    buckets: BucketKind = "training"
    store: Store = "fitted"
    shard_samples: int = 1000
    min_side: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        bucket_table(self.resolution, self.buckets)
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
    table = bucket_table(settings.resolution, settings.buckets)
    groups: dict[Bucket, list[tuple[str, bytes]]] = {}
    left_out = []
    for sample in samples:
        if min(sample.height, sample.width) < settings.min_side:
            detail = f"{sample.height} x {sample.width}, and a side has to be {settings.min_side}"
            left_out.append(Refusal(id=sample.id, reason="too small", detail=detail))
            continue
        bucket = nearest(sample.height, sample.width, table)
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


def unit_name(bucket: Bucket, number: int) -> str:
    """The name of a shard: height x width, and its number."""
    return f"{bucket[0]}x{bucket[1]}-{number:05}"


def bucket_of(unit: str) -> Bucket:
    """Undo :func:`unit_name` for the bucket."""
    height, width = unit.rsplit("-", 1)[0].split("x")
    return int(height), int(width)


def _place_in_order(seed: int, identity: str) -> str:
    return sha256_of(f"{seed}\0{identity}")
