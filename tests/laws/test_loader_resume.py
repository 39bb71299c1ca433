"""Laws of resuming: any stop, any ranks and workers before and after, one and the same sequence."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sanakit.data.captions.choice import CaptionChoice
from sanakit.data.loader.loader import Loader
from tiny_shards import write_shards

Shown = list[tuple[int, int, int, int, str, str]]
CHOICE = CaptionChoice(temperature=2.0, null_chance=0.2)
BATCH_SIZE = 4


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    buckets = {(32, 32): [5, 7, 3], (32, 64): [4], (64, 32): [1, 2], (64, 64): [9]}
    return write_shards(tmp_path_factory.mktemp("shards"), buckets)


def one_rank(
    shards: Path, count: int, state: dict[str, Any] | None, **options: Any
) -> tuple[list[Shown], dict[str, Any]]:
    """What a rank sees in ``count`` batches, and its state after them."""
    with Loader(shards, batch_size=BATCH_SIZE, captions=CHOICE, **options) as loader:
        if state is not None:
            loader.restore(json.loads(json.dumps(state)))
        batches = [
            [
                (batch.number, batch.epoch, batch.height, batch.width, id, caption)
                for id, caption in zip(batch.ids, batch.captions, strict=True)
            ]
            for batch in islice(loader, count)
        ]
        return batches, loader.state()


def all_ranks(
    shards: Path, count: int, state: dict[str, Any] | None, *, world: int, **options: Any
) -> tuple[list[Shown], dict[str, Any]]:
    """What all ranks see together, batch by batch; they must stay in step."""
    ranks = [one_rank(shards, count, state, rank=r, world=world, **options) for r in range(world)]
    assert all(after == ranks[0][1] for _, after in ranks)
    together: list[Shown] = []
    for parts in zip(*(batches for batches, _ in ranks), strict=True):
        assert all(len(part) == BATCH_SIZE // world for part in parts)
        assert len({sample[:4] for part in parts for sample in part}) == 1
        together.append([sample for part in parts for sample in part])
    return together, ranks[0][1]


@given(
    seed=st.integers(0, 2**40),
    stops=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    worlds=st.lists(st.sampled_from([1, 2, 4]), min_size=4, max_size=4),
    window=st.integers(1, 4),
    remainder=st.sampled_from(["repeat", "drop"]),
)
@settings(max_examples=40)
def test_any_stops_with_any_world_sizes_give_the_undisturbed_sequence(
    shards: Path, seed: int, stops: list[int], worlds: list[int], window: int, remainder: str
) -> None:
    options = {"seed": seed, "shuffle_shards": window, "remainder": remainder}
    undisturbed, _ = all_ranks(shards, sum(stops) + 4, None, world=1, **options)
    seen: list[Shown] = []
    state = None
    for count, world in zip([*stops, 4], worlds, strict=False):
        batches, state = all_ranks(shards, count, state, world=world, **options)
        seen += batches
    assert seen == undisturbed


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize("stop_at_the_edge", [False, True])
def test_any_workers_before_and_after_a_stop_give_the_undisturbed_sequence(
    shards: Path, stop_at_the_edge: bool
) -> None:
    edge = Loader(shards, batch_size=BATCH_SIZE).batches_per_epoch
    stop = edge if stop_at_the_edge else edge - 3
    undisturbed, _ = all_ranks(shards, stop + edge, None, world=1, workers=0)
    for first, second, world in ((0, 2, 1), (1, 4, 1), (4, 1, 2), (2, 0, 4)):
        before, state = all_ranks(shards, stop, None, world=world, workers=first)
        after, _ = all_ranks(shards, edge, state, world=3 - min(world, 2), workers=second)
        assert before + after == undisturbed, (first, second, world)
