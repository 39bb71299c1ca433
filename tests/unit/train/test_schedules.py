"""Laws of the learning rates: where they start, peak and end, and that they never jump."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest

from sanakit.errors import ConfigError
from sanakit.train.config import (
    SCHEDULES,
    LoopConfig,
    batch_factor,
    constant,
    cosine,
    cosine_then_constant,
    learning_rate,
    linear_end,
)

TOTAL, BATCH = 10_000, 10
Rate = Callable[[int], float]


def rate_of(name: str, warmup_images: int = 1000) -> Rate:
    total = {} if name == "constant" else {"total_images": TOTAL}
    schedule = SCHEDULES[name]
    return lambda images: schedule(images, batch_size=BATCH, warmup_images=warmup_images, **total)


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_rise_to_the_peak_fall_and_never_jump(name: str) -> None:
    rate = rate_of(name)
    values = [rate(images) for images in range(0, TOTAL, BATCH)]
    assert values[0] == pytest.approx(0.01)  # the first step moves
    assert max(values) == values[99] == 1.0  # as the last step of the warm-up begins
    assert values[:100] == sorted(values[:100])
    assert values[100:] == sorted(values[100:], reverse=True)
    assert max(abs(b - a) for a, b in pairwise(values)) <= 0.0101
    assert all(0 <= value <= 1 for value in values)


@pytest.mark.parametrize(
    ("name", "end"),
    [("constant", 1.0), ("linear-end", 0.02), ("cosine", 0.0), ("cosine-then-constant", 0.1)],
)
def test_rates_end_where_they_should_and_stay_there(name: str, end: float) -> None:
    for images in (TOTAL, TOTAL + 12_345):
        assert rate_of(name)(images) == pytest.approx(end)


@pytest.mark.parametrize("name", SCHEDULES)
def test_without_a_warm_up_the_first_step_is_whole(name: str) -> None:
    assert rate_of(name, warmup_images=0)(0) == 1.0


@pytest.mark.parametrize("decay_share", [0.2, 0.7, 1.0])
@pytest.mark.parametrize("warmup_images", [0, 30, 500])
def test_linear_end_is_the_rule_of_the_loop(decay_share: float, warmup_images: int) -> None:
    config = LoopConfig(
        batch_size=7,
        total_images=1000,
        peak_lr=3.0,
        decay_share=decay_share,
        warmup_images=warmup_images,
    )
    for images in range(0, 1001, 7):
        share = linear_end(
            images,
            batch_size=7,
            total_images=1000,
            warmup_images=warmup_images,
            decay_share=decay_share,
        )
        assert 3.0 * share == pytest.approx(learning_rate(config, images), rel=1e-12)


def test_a_cosine_is_half_way_in_the_middle_and_symmetric() -> None:
    def rate(images: int) -> float:
        return cosine(images, batch_size=1, total_images=1200, warmup_images=200, floor=0.2)

    assert rate(700) == pytest.approx(0.6)
    for distance in (100, 250, 499):
        assert rate(700 - distance) + rate(700 + distance) == pytest.approx(1.2)
    assert rate(450) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4)))


def test_cosine_then_constant_reaches_its_floor_at_its_share() -> None:
    def rate(images: int) -> float:
        return cosine_then_constant(
            images, batch_size=1, total_images=1000, decay_share=0.6, floor=0.3
        )

    assert rate(599) > 0.3
    assert [rate(600), rate(800), rate(1000)] == pytest.approx([0.3] * 3)
    assert rate(300) == pytest.approx(0.65)


def test_constant_holds() -> None:
    assert {constant(images, batch_size=1, warmup_images=9) for images in range(8, 99)} == {1.0}


def test_the_batch_rules() -> None:
    assert [batch_factor("sqrt", size) for size in (64, 256, 1024)] == [0.5, 1.0, 2.0]
    assert [batch_factor("linear", size) for size in (64, 256, 1024)] == [0.25, 1.0, 4.0]
    assert [batch_factor("none", size) for size in (64, 256, 1024)] == [1.0] * 3
    assert batch_factor("sqrt", 8 * 64) == pytest.approx(math.sqrt(2))


def test_what_breaks_a_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'cube' is unknown\n.*sqrt, linear, none"):
        batch_factor("cube", 64)
    with pytest.raises(ConfigError, match="batch_size=0"):
        batch_factor("none", 0)
    with pytest.raises(ConfigError, match="decay_share=0 must"):
        linear_end(0, batch_size=1, total_images=10, decay_share=0)
    with pytest.raises(ConfigError, match=r"floor=1\.5 must"):
        cosine(0, batch_size=1, total_images=10, floor=1.5)
    with pytest.raises(ConfigError, match="total_images=0 must"):
        cosine_then_constant(0, batch_size=1, total_images=0)
