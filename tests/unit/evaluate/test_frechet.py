"""Distances of sets of features: closed forms of Gaussians, slower definitions, laws, intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sanakit.errors import ConfigError, NumericsError
from sanakit.evaluate.distances import inside, kernel_distance, nearest
from sanakit.evaluate.frechet import Reference, frechet_distance, paired_distance

Rows = npt.NDArray[np.float64]


def with_moments(rng: np.random.Generator, count: int, mean: Rows, covariance: Rows) -> Rows:
    """Samples whose mean and covariance are exactly these."""
    rows = rng.normal(size=(count, len(mean)))
    rows -= rows.mean(axis=0)
    whitened = np.linalg.solve(np.linalg.cholesky(rows.T @ rows / (count - 1)), rows.T).T
    return whitened @ np.linalg.cholesky(covariance).T + mean


def covariance(rng: np.random.Generator, width: int) -> Rows:
    rows = rng.normal(size=(2 * width, width))
    return rows.T @ rows / width


def test_of_gaussians_with_covariances_that_commute_the_closed_form_holds() -> None:
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    first, second = np.array([1.0, 4, 9, 0.25, 1, 2]), np.array([4.0, 1, 1, 1, 16, 2])
    means = rng.normal(size=(2, 6))
    samples = [
        with_moments(rng, count, mean, axes * values @ axes.T)
        for count, mean, values in zip((50, 9), means, (first, second), strict=True)
    ]
    wanted = (
        np.square(means[0] - means[1]).sum() + np.square(np.sqrt(first) - np.sqrt(second)).sum()
    )
    assert frechet_distance(samples[1], samples[0]) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(samples[0], samples[1]) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("count", [7, 40])
def test_it_is_the_distance_by_the_square_root_of_the_product(count: int) -> None:
    linalg: Any = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(1)
    one = rng.normal(size=(count, 12)) @ covariance(rng, 12) + 1
    other = rng.normal(size=(60, 12)) @ covariance(rng, 12)
    a, b = np.cov(one.T), np.cov(other.T)
    # Of a product of singular matrices sqrtm warns; a little on the diagonal changes 1e-4 at most.
    root = linalg.sqrtm((a + 1e-12 * np.eye(12)) @ b)
    apart = np.square(one.mean(axis=0) - other.mean(axis=0)).sum()
    wanted = apart + np.trace(a) + np.trace(b) - 2 * np.trace(root).real
    assert frechet_distance(one, other) == pytest.approx(wanted, rel=1e-5)


def test_samples_that_span_few_directions_give_a_finite_distance_and_equal_ones_none() -> None:
    rng = np.random.default_rng(2)
    rows = (rng.normal(size=(5, 300)) * 1e3 + 1e4).astype(np.float32)
    scale = float(np.square(rows - rows.mean(axis=0)).sum())
    assert 0 <= frechet_distance(rows, rows) < 1e-6 * scale
    assert np.isfinite(frechet_distance(np.repeat(rows[:1], 4, axis=0), rows))


def test_a_sample_that_counts_twice_is_a_sample_that_is_there_twice() -> None:
    rng = np.random.default_rng(3)
    reference = Reference(rng.normal(size=(30, 6)))
    for count in (5, 40):  # both ways of the product
        rows = rng.normal(size=(count, 6))
        weights = rng.integers(0, 3, count)
        weights[:3] = 2
        weighted = reference._from(reference._projected(rows), weights.astype(float))
        assert weighted == pytest.approx(reference.distance(np.repeat(rows, weights, axis=0)))


def test_the_interval_covers_what_other_samples_of_that_number_give() -> None:
    rng = np.random.default_rng(4)
    reference = Reference(rng.normal(size=(2000, 5)))
    every = [rng.normal(size=(200, 5)) * 1.3 + 0.2 for _ in range(80)]
    found = [reference.resampled(rows).estimate for rows in every]
    expected = np.mean([each.value for each in found])
    covered = np.mean([each.low <= expected <= each.high for each in found])
    assert 0.87 <= covered <= 1
    assert np.mean([each.high - each.low for each in found]) < 0.8 * expected


def test_fewer_samples_lie_farther_so_that_only_equal_numbers_compare() -> None:
    rng = np.random.default_rng(5)
    reference = Reference(rng.normal(size=(3000, 20)))
    few, many = (reference.resampled(rng.normal(size=(n, 20)), resamples=5) for n in (40, 400))
    assert few.value > 5 * many.value
    with pytest.raises(ConfigError, match="40 samples against 400"):
        few.over(many)


def test_a_ratio_is_paired() -> None:
    """What both sets share does not widen the interval of their ratio."""
    rng = np.random.default_rng(6)
    reference = Reference(rng.normal(size=(500, 4)))
    rows = rng.normal(size=(100, 4)) + 1
    near, far = reference.resampled(rows), reference.resampled(rows + 1)
    ratio = far.over(near)
    assert ratio.value == pytest.approx(far.value / near.value)
    assert ratio.low < ratio.value < ratio.high
    same = near.over(near)
    assert same.low == same.value == same.high == 1
    shuffled = reference.resampled(rows + 1, seed=1).over(near)
    assert ratio.high - ratio.low < 0.7 * (shuffled.high - shuffled.low)


def test_the_kernel_distance_is_the_mean_over_pairs_of_other_samples() -> None:
    rng = np.random.default_rng(7)
    one, other = rng.normal(size=(40, 3)) + 0.5, rng.normal(size=(60, 3))

    def pairs(x: Rows, y: Rows, *, same: bool) -> float:
        kernels = [
            (a @ b / 3 + 1) ** 3
            for i, a in enumerate(x)
            for j, b in enumerate(y)
            if not (same and i == j)
        ]
        return float(np.mean(kernels))

    order = np.random.default_rng(0)
    first, second = order.permutation(40), order.permutation(60)
    wanted = [
        pairs(a, a, same=True) + pairs(b, b, same=True) - 2 * pairs(a, b, same=False)
        for a, b in (
            (one[first[2 * k : 2 * k + 2]], other[second[3 * k : 3 * k + 3]]) for k in range(20)
        )
    ]
    found = kernel_distance(one, other)
    assert found.value == pytest.approx(np.mean(wanted))
    assert found.high - found.value == pytest.approx(2.093 * np.std(wanted, ddof=1) / 20**0.5)


def test_the_kernel_distance_of_equal_distributions_is_none_at_any_number_of_samples() -> None:
    rng = np.random.default_rng(8)
    for count in (40, 200):
        found = [
            kernel_distance(rng.normal(size=(count, 8)), rng.normal(size=(400, 8)))
            for _ in range(200)
        ]
        values = [each.value for each in found]
        assert abs(np.mean(values)) < 4 * np.std(values) / 200**0.5
        assert np.mean([each.low <= 0 <= each.high for each in found]) > 0.9


def test_inside_is_what_the_definition_says() -> None:
    rng = np.random.default_rng(9)
    rows, known = rng.normal(size=(70, 4)) * 1.5, rng.normal(size=(30, 4))

    def apart(x: Rows, y: Rows) -> Rows:
        return np.linalg.norm(x[:, None] - y[None], axis=2)

    radii = np.sort(apart(known, known), axis=1)[:, 3]
    wanted = (apart(rows, known) <= radii).any(axis=1)
    assert 0 < wanted.mean() < 1
    assert np.array_equal(inside(rows, known), wanted)
    assert inside(known, known).all()
    assert not inside(known + 100, known).any()


def test_modes_that_are_left_out_cost_recall_and_samples_beside_the_real_cost_precision() -> None:
    rng = np.random.default_rng(10)
    real = rng.normal(size=(200, 3)) + 20.0 * rng.integers(0, 2, (200, 1))
    half = real[real[:, 0] < 10][:80] + rng.normal(size=(1, 3)) * 0.01
    wild = np.concatenate([real[:50], rng.normal(size=(50, 3)) * 200])
    assert inside(half, real).mean() > 0.9
    assert inside(real, half).mean() < 0.6
    assert inside(wild, real).mean() < 0.6


@pytest.mark.parametrize("rank", [0, 2])
def test_the_nearest_is_the_nearest_across_parts(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sanakit.evaluate.distances._AT_A_TIME", 4)
    rng = np.random.default_rng(11)
    rows, known = rng.normal(size=(11, 5)), rng.normal(size=(9, 5))
    apart = np.linalg.norm(rows[:, None] - known[None], axis=2)
    index, distance = nearest(rows, known, rank=rank)
    assert np.array_equal(index, np.argsort(apart, axis=1)[:, rank])
    assert np.allclose(distance, np.sort(apart, axis=1)[:, rank])


def test_too_few_samples_and_two_widths_are_refused() -> None:
    rows = np.zeros((50, 3))
    for wrong in (rows[:1], rows[:, :2], rows[0]):
        with pytest.raises(ConfigError):
            Reference(rows).distance(wrong)
    with pytest.raises(ConfigError, match="39 and 50 samples are too few"):
        kernel_distance(rows[:39], rows)
    with pytest.raises(ConfigError, match="3 neighbours"):
        inside(rows, rows[:3])


def broken_rows(rows: Rows) -> list[Any]:
    one = rows.copy()
    one[3, 2] = np.nan
    endless = rows.copy()
    endless[0] = np.inf
    return [one, endless, np.full_like(rows, np.nan)]


@pytest.mark.parametrize("wide", [3, 400])
def test_features_that_are_not_finite_score_nothing(wide: int) -> None:
    rng = np.random.default_rng(5)
    good = rng.normal(size=(60, wide))
    for bad in broken_rows(rng.normal(size=(60, wide))):
        for measure in (frechet_distance, paired_distance, kernel_distance, inside, nearest):
            for pair in ((bad, good), (good, bad)):
                with pytest.raises(NumericsError, match="not finite"):
                    measure(*pair)
