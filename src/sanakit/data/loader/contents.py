"""What a folder of built shards holds, as the loader needs it: buckets in order, nothing empty."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import PurePosixPath

from sanakit.data.shards import Index, ShardFile
from sanakit.data.stages import fingerprint
from sanakit.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketShards:
    """The shards whose pictures are ``height`` x ``width`` pixels, or are to be made so."""

    height: int
    width: int
    shards: tuple[ShardFile, ...]

    @property
    def samples(self) -> int:
        """The number of samples in all shards; at least 1."""
        return sum(shard.samples for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """All buckets that hold samples. Equal ``digest``: the same samples in the same places."""

    buckets: tuple[BucketShards, ...]

    @property
    def samples(self) -> int:
        """The number of samples in all buckets."""
        return sum(bucket.samples for bucket in self.buckets)

    @property
    def digest(self) -> str:
        """64 hexadecimal digits that change with any shard, its name, place or content."""
        return fingerprint([asdict(bucket) for bucket in self.buckets])


def contents_of(index: Index, *, source: str) -> Contents:
    """Take over an index; ``source`` names it in errors.

    Raises:
        DataError: it lists no samples, or files outside its folder.
    """
    buckets = []
    for (height, width), shards in index.buckets.items():
        for shard in shards:
            if PurePosixPath(shard.file).name != shard.file or "\\" in shard.file:
                raise DataError(f"{source} names {shard.file!r}, which is outside its folder")
        filled = tuple(shard for shard in shards if shard.samples > 0)
        if filled:
            buckets.append(BucketShards(height=height, width=width, shards=filled))
    if not buckets:
        raise DataError(f"{source} lists no samples", hint="look at the report of the build")
    return Contents(buckets=tuple(buckets))
