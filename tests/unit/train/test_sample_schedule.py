"""Which rank computes which sample, and that a sample's randomness knows nothing of it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sanakit.train.sample_schedule import (
    Prefetched,
    SampleSchedule,
    generator_of,
    normal_of,
    uniform_of,
)


@given(
    ranks=st.integers(1, 5),
    parts=st.integers(1, 4),
    size=st.integers(1, 3),
    batches=st.integers(1, 3),
    start=st.integers(0, 7),
)
def test_ranks_and_parts_divide_every_batch_without_gap_or_overlap(
    ranks: int, parts: int, size: int, batches: int, start: int
) -> None:
    batch = ranks * parts * size
    seen = []
    for rank in range(ranks):
        schedule = SampleSchedule(
            seed=0,
            batch_size=batch,
            images_seen=start * batch,
            rank=rank,
            ranks=ranks,
            parts=parts,
        )
        spans = list(itertools.islice(schedule.spans(), batches * parts))
        assert {len(span) for span in spans} == {size}
        for number in range(batches):  # a rank's part of a batch is one stretch
            stretch = [k for span in spans[number * parts : (number + 1) * parts] for k in span]
            first = (start + number) * batch + rank * parts * size
            assert stretch == list(range(first, first + parts * size))
            seen += stretch
    assert sorted(seen) == list(range(start * batch, (start + batches) * batch))


def test_a_sample_has_the_same_noise_in_whatever_batch_it_comes() -> None:
    together = normal_of([generator_of(3, k) for k in range(4)], 2, 5)
    for k in range(4):
        assert torch.equal(normal_of([generator_of(3, k)], 2, 5)[0], together[k])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(normal_of([generator_of(4, 0)], 2, 5)[0], together[0])
    uniform = uniform_of([generator_of(3, k) for k in range(2000)], 1)
    assert 0 <= float(uniform.min()) < float(uniform.max()) < 1
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.03)


def test_what_is_fetched_ahead_comes_in_order_and_its_end_is_an_end() -> None:
    assert list(Prefetched(lambda: iter(range(20)))) == list(range(20))


def test_an_error_comes_where_its_item_would_have_and_again() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise ValueError("bad shard")

    stream = Prefetched(source)
    assert next(stream) == 1
    for _ in range(2):
        with pytest.raises(ValueError, match="bad shard"):
            next(stream)


def test_closing_ends_the_thread_of_an_endless_source() -> None:
    drawn: list[int] = []

    def source() -> Iterator[int]:
        for number in itertools.count():
            drawn.append(number)
            yield number

    stream = Prefetched(source, ahead=2)
    assert next(stream) == 0
    stream.close()
    assert not any(thread is stream._thread for thread in threading.enumerate())
    assert len(drawn) <= 5


def test_closing_waits_for_the_item_in_flight_unless_told_how_long() -> None:
    drawing, may_end = threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        drawing.set()
        may_end.wait()
        yield 0

    stream = Prefetched(source)
    drawing.wait()
    stream.close(timeout=0.01)
    assert stream._thread.is_alive()
    threading.Timer(0.2, may_end.set).start()
    stream.close()
    assert not stream._thread.is_alive()
