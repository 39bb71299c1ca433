"""Laws of the learning rates: where they start, peak and end, and that they never jump."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest

from sanakit.train.config import FLOORS, LoopConfig, batch_factor, learning_rate

TOTAL, BATCH = 10_000, 10


def rate(images: int, schedule: str, **more: Any) -> float:
    given = {"batch_size": BATCH, "total_images": TOTAL, "peak_lr": 1.0, "warmup_images": 1000}
    return learning_rate(LoopConfig(schedule=schedule, **{**given, **more}), images)


@pytest.mark.parametrize("name", FLOORS)
def test_rates_rise_to_the_peak_fall_and_never_jump(name: str) -> None:
    values = [rate(images, name) for images in range(0, TOTAL, BATCH)]
    assert values[0] == pytest.approx(0.01)  # the first step moves
    assert max(values) == values[99] == 1.0  # as the last step of the warm-up begins
    assert values[:100] == sorted(values[:100])
    assert values[100:] == sorted(values[100:], reverse=True)
    assert max(abs(b - a) for a, b in pairwise(values)) <= 0.0101
    assert all(0 <= value <= 1 for value in values)
    assert rate(0, name, warmup_images=0) == 1.0


@pytest.mark.parametrize(
    ("name", "end"),
    [("constant", 1.0), ("linear-end", 0.02), ("cosine", 0.0), ("cosine-then-constant", 0.1)],
)
def test_rates_end_where_they_should_and_stay_there(name: str, end: float) -> None:
    for images in (TOTAL, TOTAL + 12_345):
        assert rate(images, name) == pytest.approx(end)


@pytest.mark.parametrize(("decay_share", "half"), [(0.2, 9_000), (0.7, 6_500), (1.0, 5_000)])
def test_linear_end_falls_over_its_share(decay_share: float, half: int) -> None:
    assert rate(half, "linear-end", decay_share=decay_share) == pytest.approx(0.5)
    assert rate(round(TOTAL * (1 - decay_share)) + 10, "linear-end", warmup_images=0) <= 1.0


def test_a_cosine_is_half_way_in_the_middle_and_symmetric() -> None:
    assert rate(5_500, "cosine") == pytest.approx(0.5)
    for distance in (500, 2_250, 4_490):
        both = rate(5_500 - distance, "cosine") + rate(5_500 + distance, "cosine")
        assert both == pytest.approx(1.0)
    assert rate(3_250, "cosine") == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_cosine_then_constant_reaches_its_floor_at_its_share() -> None:
    more = {"decay_share": 0.6, "warmup_images": 0}
    assert rate(5_990, "cosine-then-constant", **more) > 0.1
    for images in (6_000, 8_000):
        assert rate(images, "cosine-then-constant", **more) == pytest.approx(0.1)
    assert rate(3_000, "cosine-then-constant", **more) == pytest.approx(0.55)


def test_the_batch_rules() -> None:
    assert [batch_factor("sqrt", size) for size in (64, 256, 1024)] == [0.5, 1.0, 2.0]
    assert [batch_factor("linear", size) for size in (64, 256, 1024)] == [0.25, 1.0, 4.0]
    assert [batch_factor("none", size) for size in (64, 256, 1024)] == [1.0] * 3
    assert batch_factor("sqrt", 8 * 64) == pytest.approx(math.sqrt(2))
    assert rate(0, "constant", batch_size=64, lr_rule="sqrt", warmup_images=0) == 0.5
