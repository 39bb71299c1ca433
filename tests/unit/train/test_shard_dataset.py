"""Where an autoencoder's pictures come from: what is drawn, how often, and for whom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sanakit.errors import DataError
from sanakit.train.recipes.shard_dataset import (
    ShardDataset,
    ShardSource,
    as_image,
)
from sanakit.train.sample_schedule import SampleSchedule


def first(source: ShardSource, size: int, seed: int = 0) -> Tensor:
    return next(source.batches(SampleSchedule(seed=seed, batch_size=size)))


@dataclass
class Counted:
    """A loader's batch whose pictures are numbers of samples."""

    pixels: Tensor | None


def counted(schedule: SampleSchedule) -> Iterator[Counted]:
    size = schedule.batch_size // schedule.ranks
    number = schedule.images_seen + schedule.rank * size
    while True:
        pixels = torch.arange(number, number + size, dtype=torch.uint8).view(-1, 1, 1, 1)
        yield Counted(pixels.expand(-1, 4, 6, 3))
        number += schedule.batch_size


@pytest.mark.parametrize(("ranks", "parts"), [(1, 1), (1, 3), (2, 1), (2, 3)])
def test_shards_give_each_rank_and_part_the_samples_of_its_span(ranks: int, parts: int) -> None:
    source = ShardSource(counted)
    for rank in range(ranks):
        schedule = SampleSchedule(
            seed=0, batch_size=12, images_seen=24, rank=rank, ranks=ranks, parts=parts
        )
        pairs = zip(schedule.spans(), source.batches(schedule), strict=False)
        for _ in range(5):
            span, pixels = next(pairs)
            assert pixels.shape == (len(span), 3, 4, 6)
            assert pixels[:, 0, 0, 0].tolist() == list(span)


def test_held_pictures_have_shards_of_their_own_or_are_seen_ones() -> None:
    def others(schedule: SampleSchedule) -> Iterator[Counted]:
        for batch in counted(schedule):
            assert batch.pixels is not None
            yield Counted(batch.pixels + 100)

    assert not ShardSource(counted).unseen
    assert [len(x) for x in ShardSource(counted).held(40)] == [32, 8]
    source = ShardSource(counted, others)
    assert source.unseen
    assert torch.cat(list(source.held(5)))[:, 0, 0, 0].tolist() == [100, 101, 102, 103, 104]
    assert first(source, 2)[:, 0, 0, 0].tolist() == [0, 1]


def test_latents_are_no_pictures() -> None:
    with pytest.raises(DataError, match="the loader gives latents"):
        first(ShardSource(lambda schedule: [Counted(None)]), 2)


def test_bytes_become_the_range_from_minus_one_to_one() -> None:
    assert as_image(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]
    image = torch.rand(1, 3, 2, 2)
    assert as_image(image) is image


has_loader = pytest.mark.skipif(
    find_spec("sanakit.data.loader") is None, reason="this branch has no loader"
)


@has_loader
def test_shards_of_a_built_set_go_on_where_a_run_stands(tmp_path: Path) -> None:
    from tiny_shards import write_shards  # type: ignore[import-not-found]

    shards = write_shards(tmp_path, {(32, 32): [6, 5], (32, 64): [4]})
    source = ShardSource(ShardDataset(shards=str(shards)).batches)
    schedule = SampleSchedule(seed=3, batch_size=4)
    stream = source.batches(schedule)
    batches = [next(stream) for _ in range(3)]
    later = next(source.batches(replace(schedule, images_seen=8)))
    assert_close(later, batches[2])
    halves = [next(source.batches(replace(schedule, ranks=2, rank=rank))) for rank in range(2)]
    assert_close(torch.cat(halves), batches[0])
    assert batches[0].dtype == torch.uint8
